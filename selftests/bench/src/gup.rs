// SPDX-License-Identifier: GPL-2.0

//! The kernel's own benchmark of get_user_pages(): its program, and its ioctls.

use std::ffi::OsStr;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::ptr::NonNull;

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use nix::libc::c_void;
use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};

use crate::{file, Series};

/// Bytes in a page of the only architecture that the guests have.
pub const PAGE: usize = 4096;
/// Pages that one call pins.
pub const PAGES_PER_CALL: u32 = 512;

/// `FOLL_WRITE` of `linux/mm_types.h`.
const FOLL_WRITE: u32 = 1;
const FILE: &str = "/sys/kernel/debug/gup_test";

/// `struct gup_test` of `mm/gup_test.h`.
#[repr(C)]
#[derive(Default)]
pub struct GupTest {
    get_delta_usec: u64,
    put_delta_usec: u64,
    addr: u64,
    size: u64,
    nr_pages_per_call: u32,
    gup_flags: u32,
    test_flags: u32,
    which_pages: [u32; 8],
}

/// `PIN_LONGTERM_TEST_FLAG_USE_WRITE` of `mm/gup_test.h`.
const USE_WRITE: u32 = 1;

/// `struct pin_longterm_test` of `mm/gup_test.h`.
#[repr(C)]
pub struct PinLongtermTest {
    addr: u64,
    size: u64,
    flags: u32,
}

nix::ioctl_write_ptr!(pin_longterm_test_start, b'g', 7, PinLongtermTest);
nix::ioctl_none!(pin_longterm_test_stop, b'g', 8);
nix::ioctl_readwrite!(gup_fast_benchmark, b'g', 1, GupTest);
nix::ioctl_readwrite!(pin_fast_benchmark, b'g', 2, GupTest);
nix::ioctl_readwrite!(pin_longterm_benchmark, b'g', 3, GupTest);
nix::ioctl_readwrite!(gup_basic_test, b'g', 4, GupTest);
nix::ioctl_readwrite!(pin_basic_test, b'g', 5, GupTest);

/// Which function of the kernel is called.
#[derive(Clone, Copy)]
pub enum Call {
    /// `get_user_pages_fast()`
    GetFast,
    /// `pin_user_pages_fast()`
    PinFast,
    /// `pin_longterm_pages()`
    PinLongterm,
    /// `get_user_pages()`
    Get,
    /// `pin_user_pages()`
    Pin,
}

/// A mapping, all of it faulted in for write.
pub struct Area {
    address: NonNull<c_void>,
    len: usize,
}

impl Area {
    /// Anonymous memory without huge pages.
    pub fn anonymous(len: usize) -> Result<Self> {
        let (size, protection) = Self::parameters(len)?;
        // SAFETY: the kernel chooses the address, so that no existing mapping is touched.
        let address =
            unsafe { mman::mmap_anonymous(None, size, protection, MapFlags::MAP_PRIVATE) }
                .context("mmap")?;
        // SAFETY: the range was just mapped, and the advice changes no contents.
        match unsafe { mman::madvise(address, len, MmapAdvise::MADV_NOHUGEPAGE) } {
            // A kernel that has no huge pages.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error).context("madvise"),
        }
        Ok(Self { address, len }.faulted_in())
    }

    /// A shared mapping of a file.
    pub fn shared(path: &Path, len: usize) -> Result<Self> {
        let (size, protection) = Self::parameters(len)?;
        let file = file::open(path)?;
        // SAFETY: as above.
        let address = unsafe { mman::mmap(None, size, protection, MapFlags::MAP_SHARED, file, 0) }
            .context("mmap")?;
        Ok(Self { address, len }.faulted_in())
    }

    fn parameters(len: usize) -> Result<(NonZeroUsize, ProtFlags)> {
        let size = NonZeroUsize::new(len).context("a mapping has a size")?;
        Ok((size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE))
    }

    fn faulted_in(self) -> Self {
        let start = self.address.cast::<u8>();
        for offset in (0..self.len).step_by(PAGE) {
            // SAFETY: the byte is inside the mapping, which nothing else refers to.
            unsafe { start.add(offset).write_volatile(1) };
        }
        self
    }

    /// Pins all of it and lets go again, `repeats` times. Both parts in microseconds.
    pub fn measure(&self, call: Call, write: bool, repeats: u32) -> Result<Series> {
        let device = file::open(Path::new(FILE))?;
        let mut series = Series::default();
        for _ in 0..repeats {
            let (get, put) = self.pin_once(&device, call, write)?;
            series.get.push(get);
            series.put.push(put);
        }
        Ok(series)
    }

    /// Pins all of it for write, until what this returns is dropped. There can be one such pin.
    pub fn pin(&self) -> Result<Held> {
        let device = file::open(Path::new(FILE))?;
        let range = PinLongtermTest {
            addr: self.address.as_ptr() as u64,
            size: self.len as u64,
            flags: USE_WRITE,
        };
        // SAFETY: the kernel reads a `struct pin_longterm_test`, and looks at the range as user
        // memory only.
        unsafe { pin_longterm_test_start(device.as_raw_fd(), &range) }.context("pin")?;
        Ok(Held(device))
    }

    /// The mapped bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is as long as that, and nobody writes to it while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().cast(), self.len) }
    }

    /// The same for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr().cast(), self.len) }
    }

    fn pin_once(&self, device: &File, call: Call, write: bool) -> Result<(u64, u64)> {
        let mut test = GupTest {
            addr: self.address.as_ptr() as u64,
            size: self.len as u64,
            nr_pages_per_call: PAGES_PER_CALL,
            gup_flags: if write { FOLL_WRITE } else { 0 },
            ..GupTest::default()
        };
        let ioctl = match call {
            Call::GetFast => gup_fast_benchmark,
            Call::PinFast => pin_fast_benchmark,
            Call::PinLongterm => pin_longterm_benchmark,
            Call::Get => gup_basic_test,
            Call::Pin => pin_basic_test,
        };
        // SAFETY: all of these take a pointer to a `struct gup_test`, which they write to; the range
        // in it is looked at as user memory only.
        unsafe { ioctl(device.as_raw_fd(), &mut test) }.context("gup_test")?;
        ensure!(
            test.size == self.len as u64,
            "only {} of {} bytes were pinned",
            test.size,
            self.len
        );
        Ok((test.get_delta_usec, test.put_delta_usec))
    }
}

/// Pins that are held.
pub struct Held(File);

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the call has no argument. It fails only if there are no pins.
        let _ = unsafe { pin_longterm_test_stop(self.0.as_raw_fd()) };
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and nothing refers to it any more.
        let _ = unsafe { mman::munmap(self.address, self.len) };
    }
}

/// Runs `gup_test -L` over `mebibytes`, and reads from what it prints how long each of its rounds
/// took, in microseconds.
pub fn program(path: &Path, mebibytes: usize, repeats: u32, more: &[&OsStr]) -> Result<Series> {
    let mut command = Command::new(path);
    command
        .arg("-L")
        .args(["-m", &mebibytes.to_string()])
        .args(["-n", &PAGES_PER_CALL.to_string()])
        .args(["-r", &repeats.to_string()])
        .args(more);
    let out = command
        .output()
        .with_context(|| format!("run {}", path.display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() || text.contains("not ok") || text.contains("truncated") {
        bail!("{command:?}: {}\n{text}", out.status);
    }
    let mut series = Series::default();
    for line in text.lines().filter(|line| line.contains("Time: get:")) {
        let after = |key: &str| -> Option<u64> {
            let digits = line.split_once(key)?.1;
            let end = digits.find(|c: char| !c.is_ascii_digit())?;
            digits[..end].parse().ok()
        };
        match (after("get:"), after("put:")) {
            (Some(get), Some(put)) => {
                series.get.push(get);
                series.put.push(put);
            }
            _ => bail!("{command:?}: what is {line:?}?"),
        }
    }
    Ok(series)
}
