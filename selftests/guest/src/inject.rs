// SPDX-License-Identifier: GPL-2.0

//! Failures on demand: the kernel's fault injection, Documentation/fault-injection/fault-injection.rst.

use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::disk;
use crate::tap::skip;

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Objects of the slab allocator, kmalloc() among them.
    Slab,
    /// Pages.
    Pages,
    /// Bios, on devices for which [`Faults::of_device`] asked.
    Requests,
    /// The allocator behind a mempool; the reserve has to do.
    Mempool,
    /// The same when many elements are asked for at once.
    MempoolBulk,
}

use Capability::{Mempool, MempoolBulk, Pages, Requests, Slab};

const ALL: [Capability; 5] = [Slab, Pages, Requests, Mempool, MempoolBulk];
/// All that stands for a lack of memory, and makes a call fail.
pub const MEMORY: [Capability; 2] = [Slab, Pages];

impl Capability {
    fn directory(self) -> PathBuf {
        Path::new("/sys/kernel/debug").join(match self {
            Slab => "failslab",
            Pages => "fail_page_alloc",
            Requests => "fail_make_request",
            Mempool => "fail_mempool_alloc",
            MempoolBulk => "fail_mempool_alloc_bulk",
        })
    }

    fn set(self, name: &str, value: &str) -> Result<()> {
        let path = self.directory().join(name);
        fs::write(&path, value).with_context(|| format!("cannot set {}", path.display()))
    }

    /// Sets one of the two ranges of addresses that stack traces are searched for.
    fn set_range(self, name: &str, range: &Range<u64>) -> Result<()> {
        self.set(&format!("{name}-start"), &format!("{:#x}", range.start))?;
        self.set(&format!("{name}-end"), &format!("{:#x}", range.end))
    }
}

/// As many failures as anyone may want; what is left of them tells how many there were.
const TIMES: u64 = 1 << 30;

/// Fault injection, ready and doing nothing. All is as before when this is dropped.
pub struct Faults {
    devices: Vec<PathBuf>,
}

impl Faults {
    /// Lets every kind of allocation fail if it is asked to, also those that may wait.
    pub fn ready() -> Result<Self> {
        if ALL.iter().any(|c| !c.directory().exists()) || !Path::new(NTH).exists() {
            return skip("no fault injection in this kernel");
        }
        let faults = Self {
            devices: Vec::new(),
        };
        for capability in ALL {
            // A trace for each failure is a splat to whoever reads the log.
            capability.set("verbose", "0")?;
            capability.set("probability", "0")?;
        }
        // The leak detector allocates whenever somebody else does, from a reserve if need be: these failures
        // would do no harm, until the reserve is empty and it gives up.
        if let Ok(detector) = function("__alloc_object") {
            for capability in ALL {
                capability.set_range("reject", &detector)?;
            }
        }
        Slab.set("ignore-gfp-wait", "N")?;
        Pages.set("ignore-gfp-wait", "N")?;
        Pages.set("ignore-gfp-highmem", "N")?;
        faults.pages_from_order(0)?;
        Ok(faults)
    }

    /// Only allocations of so many pages, as a power of two, and more can fail. The slab allocator asks for
    /// many first, and for fewer if that fails: no harm is done.
    pub fn pages_from_order(&self, order: u32) -> Result<()> {
        Pages.set("min-order", &order.to_string())
    }

    /// Lets bios to a block device fail.
    pub fn of_device(&mut self, device: &Path) -> Result<()> {
        let path = disk::attribute_path(device, "make-it-fail")?;
        fs::write(&path, "1").with_context(|| format!("cannot set {}", path.display()))?;
        self.devices.push(path);
        Ok(())
    }

    /// From now on only what is asked for below this function fails.
    pub fn only_below(&self, function: &Range<u64>) -> Result<()> {
        for capability in ALL {
            capability.set_range("require", function)?;
        }
        Ok(())
    }

    /// So many of a hundred fail, in any task, until this is dropped.
    pub fn start(&self, capabilities: &[Capability], percent: u32) -> Result<Storm> {
        for capability in capabilities {
            capability.set("times", &TIMES.to_string())?;
            capability.set("probability", &percent.to_string())?;
        }
        Ok(Storm(capabilities.to_vec()))
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        for capability in ALL {
            let _ = capability.set("probability", "0");
            let _ = capability.set_range("require", &(0..u64::MAX));
            let _ = capability.set_range("reject", &(0..0));
        }
        for device in &self.devices {
            let _ = fs::write(device, "0");
        }
    }
}

/// Failures that go on until this is dropped.
pub struct Storm(Vec<Capability>);

impl Storm {
    /// How many there were so far.
    pub fn failures(&self) -> Result<u64> {
        let mut failures = 0;
        for capability in &self.0 {
            let left = fs::read_to_string(capability.directory().join("times"))?;
            failures += TIMES - left.trim().parse::<u64>()?;
        }
        Ok(failures)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        for capability in &self.0 {
            let _ = capability.set("probability", "0");
        }
    }
}

const NTH: &str = "/proc/thread-self/fail-nth";

/// The one failure that this task is to meet.
pub struct Nth(fs::File);

impl Nth {
    /// The task is the one that asks.
    pub fn of_this_task() -> Result<Self> {
        Ok(Self(OpenOptions::new().read(true).write(true).open(NTH)?))
    }

    /// Makes what this task asks for the `nth` time fail, counted from now.
    pub fn arm(&self, nth: u32) -> Result<()> {
        self.0.write_all_at(nth.to_string().as_bytes(), 0)?;
        Ok(())
    }

    /// Calls `call` and lets its `nth` request for memory or I/O fail, from 1. Returns whether there were
    /// as many. The call should not be more than the system call: the C library needs memory as well.
    pub fn during<T>(&self, nth: u32, call: impl FnOnce() -> T) -> Result<(T, bool)> {
        self.arm(nth)?;
        let value = call();
        let mut left = [0; 16];
        let read = self.0.read_at(&mut left, 0);
        self.arm(0)?;
        let left = std::str::from_utf8(&left[..read?])?;
        Ok((value, left.trim_matches(['\n', '\0', ' ']) == "0"))
    }
}

/// The addresses of a kernel function: the symbol is `name`, or, if that begins with the length of an
/// identifier, has it in its mangled path.
pub fn function(name: &str) -> Result<Range<u64>> {
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let text = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let is_code = matches!(words.next()?, "t" | "T");
        Some((address, is_code, words.next()?.to_owned()))
    };
    let is_mangled = name.starts_with(|c: char| c.is_ascii_digit());
    let wanted = |symbol: &str| match is_mangled {
        true => symbol.starts_with("_R") && symbol.contains(name),
        false => symbol == name,
    };
    let start = symbols
        .lines()
        .filter_map(text)
        .find(|(_, is_code, symbol)| *is_code && wanted(symbol))
        .with_context(|| format!("no function {name} in the kernel"))?
        .0;
    let end = symbols
        .lines()
        .filter_map(text)
        .map(|(address, ..)| address)
        .filter(|address| *address > start)
        .min()
        .context("the last symbol of the kernel")?;
    Ok(start..end)
}
