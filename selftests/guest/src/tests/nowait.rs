// SPDX-License-Identifier: GPL-2.0

//! Nothing waits for a pin: a process that holds the pins of a file is stopped, and does not go on before
//! the operation under test is over.
//!
//! Where the test has a knock-out, writeback waits under the folio lock until the folio has no pin, and
//! the operation runs into its time limit: either because it writes pinned folios back itself, or because
//! it needs the lock of a folio that is being written ([`Operation::busy`]). Then the process is killed to
//! get everything going again. Operations without a knock-out do neither: they have to finish all the
//! same, but there is no step of writeback that they depend on.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use super::common::{fallocate, wait_until, Flush, Sysctl, KIB, MIB};
use crate::beside::beside;
use crate::cgroup::Cgroup;
use crate::context::Context;
use crate::device::{errno, Kind};
use crate::diag;
use crate::fs as filesystem;
use crate::holder::{Holder, Orders};
use crate::kmsg::Kmsg;
use crate::ledger::{self, Stats};
use crate::map::{Mapping, PAGE};
use crate::numa;
use crate::stamp::Stamp;
use crate::tap::Invariant::{I3, I4};
use crate::tap::{expect_eq, skip, Test};
use crate::tasks;

/// A test that must fail if writeback waits for the pin.
const fn without_waiting(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
    Test::new(name, run).proves(&[I3]).without("wait_for_pin")
}

/// A test of something that never meets writeback.
const fn apart(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
    Test::new(name, run).proves(&[I3])
}

pub const TESTS: &[Test] = &[
    without_waiting("nowait.fsync", |c| {
        Operation::new(|s| s.flush(Flush::Fsync)).flushes().check(c)
    }),
    // RDMA takes the folio lock to release a page that is clean, which the knock-out waits with.
    apart("nowait.fsync_verbs", |c| {
        Operation::new(|s| s.flush(Flush::Fsync))
            .flushes()
            .pinned_by(Kind::Verbs)
            .check(c)
    }),
    without_waiting("nowait.msync", |c| {
        Operation::new(|s| s.flush(Flush::Msync)).flushes().check(c)
    }),
    without_waiting("nowait.syncfs", |c| {
        Operation::new(|s| s.flush(Flush::Syncfs))
            .flushes()
            .check(c)
    }),
    without_waiting("nowait.sync", |c| {
        Operation::new(|s| s.flush(Flush::Sync)).flushes().check(c)
    }),
    // A commit writes the data that it has found blocks for, and waits for whoever is in the transaction.
    without_waiting("nowait.journal_commit", |c| {
        Operation::new(fsync_of_another).busy().check(c)
    })
    .only("ext4"),
    without_waiting("nowait.freeze", |c| {
        Operation::new(freeze).flushes().check(c)
    }),
    apart("nowait.remount_ro", remount_ro).proves(&[I3, I4]),
    apart("nowait.remount_rw", |c| {
        Operation::new(|s| remount(s.context, libc::MS_LAZYTIME))
            .busy()
            .check(c)
    }),
    without_waiting("nowait.umount", umount),
    apart("nowait.umount_lazy", umount_lazy).proves(&[I3, I4]),
    without_waiting("nowait.truncate", |c| {
        Operation::new(|s| Ok(s.file.set_len(0)?)).busy().check(c)
    }),
    without_waiting("nowait.punch", |c| {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        Operation::fallocate(mode).busy().check(c)
    }),
    without_waiting("nowait.zero_range", |c| {
        Operation::fallocate(libc::FALLOC_FL_ZERO_RANGE)
            .busy()
            .check(c)
    }),
    without_waiting("nowait.collapse", |c| {
        Operation::fallocate(libc::FALLOC_FL_COLLAPSE_RANGE)
            .busy()
            .check(c)
    }),
    without_waiting("nowait.insert", |c| {
        Operation::fallocate(libc::FALLOC_FL_INSERT_RANGE)
            .busy()
            .check(c)
    }),
    without_waiting("nowait.write", |c| {
        Operation::new(|s| Ok(s.file.write_all_at(&[1; PAGE], 0)?))
            .busy()
            .check(c)
    }),
    without_waiting("nowait.direct_read", |c| {
        Operation::new(direct_read).flushes().check(c)
    }),
    without_waiting("nowait.direct_write", |c| {
        Operation::new(direct_write).check(c)
    }),
    without_waiting("nowait.fault", |c| {
        Operation::new(store_and_exit).busy().check(c)
    }),
    // A file that replaces another one is written to the disk first, if it has no blocks yet.
    without_waiting("nowait.rename_flushes", |c| {
        Operation::new(|s| s.rename_over_another()).check(c)
    })
    .only("ext4")
    .made("", "delalloc"),
    apart("nowait.rename_over", |c| {
        Operation::new(|s| s.rename_another_over()).busy().check(c)
    }),
    apart("nowait.unlink", |c| {
        Operation::new(|s| Ok(fs::remove_file(s.context.path(s.name))?))
            .busy()
            .check(c)
    }),
    apart("nowait.drop_caches", |c| {
        Operation::new(|_| filesystem::drop_caches())
            .busy()
            .check(c)
    }),
    apart("nowait.compaction", |c| {
        Operation::new(|_| numa::compact()).busy().check(c)
    }),
    without_waiting("nowait.migration", |c| {
        numa::require()?;
        Operation::new(migrate).busy().check(c)
    }),
    apart("nowait.reclaim", reclaim),
    apart("nowait.hung_tasks", hung_tasks),
];

/// Bytes of the file that is pinned.
const LEN: u64 = MIB;
/// Part of it that is cut out.
const PART: Range<u64> = 0..256 * KIB;
/// What even a busy machine does an operation within, if it waits for nothing.
const LEAST_LIMIT: Duration = Duration::from_secs(3);
/// Time for a thread to be in the middle of writeback.
const HEAD_START: Duration = Duration::from_millis(200);

/// Starts a process that holds pins, the only ones there are, and stops it.
fn hold(command: &mut Command) -> Result<Holder> {
    ledger::wait_until_empty(10)?;
    let holder = Holder::start(command)?;
    holder.stop()?;
    Ok(holder)
}

fn is_not_supported(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.and_then(io::Error::raw_os_error) == Some(libc::EOPNOTSUPP)
}

/// What an operation may take that takes `own` without pins.
fn limit(own: Duration) -> Duration {
    (own * 20).max(LEAST_LIMIT)
}

fn timed(operation: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    operation()?;
    Ok(start.elapsed())
}

/// Runs `operation` while `holder` is stopped, and fails if that takes longer than `limit`. The holder is
/// killed then, which lets the operation finish.
fn within(
    limit: Duration,
    holder: &mut Holder,
    operation: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    let pins = Stats::read()?.get("pins");
    if pins == 0 || !holder.is_stopped()? {
        bail!("no pins are held, or not by a process that is stopped");
    }
    let (sender, receiver) = mpsc::channel();
    let start = Instant::now();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: gettid has no arguments.
            let _ = sender.send(unsafe { libc::gettid() });
            operation()
        });
        let task = receiver.recv().unwrap_or(0);
        let in_time = wait_until(limit, || Ok(thread.is_finished()))?;
        let took = start.elapsed();
        let stack = tasks::stack(format!("self/task/{task}"));
        let held = Stats::read()?.get("pins");
        let stopped = holder.is_stopped()?;
        if !in_time {
            holder.kill();
        }
        let result = match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("the operation panicked"),
        };
        if !in_time {
            bail!("not done within {limit:?}, in {stack}");
        }
        if held < pins || !stopped {
            bail!("{held} of {pins} pins were held to the end: nothing was tested");
        }
        diag!("took {took:?} of at most {limit:?}");
        result
    })
}

/// A file and where it is.
struct Scene<'a> {
    context: &'a Context,
    name: &'static str,
    file: File,
    map: Mapping,
}

impl<'a> Scene<'a> {
    fn new(context: &'a Context, name: &'static str) -> Result<Self> {
        let file = context.sparse(name, LEN)?;
        let map = Mapping::shared(&file, 0, LEN as usize)?;
        // One page to a folio, as a device finds them that is pointed at page after page.
        map.advise_random();
        Ok(Self {
            context,
            name,
            file,
            map,
        })
    }

    /// All of it is dirty by stores, and nothing is pinned.
    fn stored(context: &'a Context, name: &'static str) -> Result<Self> {
        let scene = Self::new(context, name)?;
        scene.map.store(0, &Stamp::fresh().bytes(0, LEN as usize));
        Ok(scene)
    }

    fn flush(&self, flush: Flush) -> Result<()> {
        flush.call(&self.file, &self.map)
    }

    fn rename_over_another(&self) -> Result<()> {
        self.context.create("other")?;
        let other = self.context.path("other");
        Ok(fs::rename(self.context.path(self.name), other)?)
    }

    fn rename_another_over(&self) -> Result<()> {
        self.context.create("other")?;
        let other = self.context.path("other");
        Ok(fs::rename(other, self.context.path(self.name))?)
    }

    fn direct(&self) -> Result<File> {
        self.context.open_direct(self.name)
    }
}

/// What must not take longer with pins than without, up to a limit.
#[derive(Clone, Copy)]
struct Operation {
    call: fn(&Scene<'_>) -> Result<()>,
    /// Another thread writes the file back all the time.
    busy: bool,
    /// The file is on the disk afterwards.
    flushes: bool,
    /// The mode of a fallocate(2) to call instead.
    mode: i32,
    /// What the file is pinned by.
    device: Kind,
}

impl Operation {
    fn new(call: fn(&Scene<'_>) -> Result<()>) -> Self {
        Self {
            call,
            busy: false,
            flushes: false,
            mode: 0,
            device: Kind::Uring,
        }
    }

    /// Takes the first part of the file away, or makes room for one. A prompt refusal will do.
    fn fallocate(mode: i32) -> Self {
        Self {
            mode,
            ..Self::new(|_| Ok(()))
        }
    }

    /// While another thread writes the file back all the time.
    fn busy(self) -> Self {
        Self { busy: true, ..self }
    }

    /// It writes the file to the disk.
    fn flushes(self) -> Self {
        Self {
            flushes: true,
            ..self
        }
    }

    /// Pinned by this device.
    fn pinned_by(self, device: Kind) -> Self {
        Self { device, ..self }
    }

    fn run(self, scene: &Scene<'_>) -> Result<()> {
        if self.mode == 0 {
            return (self.call)(scene);
        }
        match fallocate(&scene.file, self.mode, PART) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                diag!("refused: {error}");
                Ok(())
            }
            result => result.context("fallocate"),
        }
    }

    /// Calls `operation` in the company that it is meant for, then `release`.
    fn in_company<T>(
        self,
        scene: &Scene<'_>,
        operation: impl FnOnce() -> Result<T>,
        release: impl FnOnce(),
    ) -> Result<T> {
        if !self.busy {
            let result = operation();
            release();
            return result;
        }
        let sync = |stop: &AtomicBool| {
            while !stop.load(Ordering::Acquire) && scene.file.sync_data().is_ok() {}
            Ok(())
        };
        let operate = || {
            thread::sleep(HEAD_START);
            let result = operation();
            // The syncing thread may be stuck as well, but that is for another test to say.
            release();
            result
        };
        let (done, ()) = beside(sync, operate)?;
        Ok(done)
    }

    /// Once without pins, to see how long it takes, and once with.
    fn check(self, context: &Context) -> Result<()> {
        let own = {
            let scene = Scene::stored(context, "plain")?;
            match self.in_company(&scene, || timed(|| self.run(&scene)), || ()) {
                Err(error) if is_not_supported(&error) => {
                    return skip(format!("{} can't do that", context.kind().name()));
                }
                result => result.context("without pins")?,
            }
        };
        diag!("without pins: {own:?}");

        let scene = Scene::new(context, "pinned")?;
        let stamp = Stamp::fresh();
        let orders = Orders::new(self.device, &context.path(scene.name)).write(stamp);
        let mut holder = hold(&mut orders.command())?;
        let shared = RefCell::new(&mut holder);
        self.in_company(
            &scene,
            || within(limit(own), &mut shared.borrow_mut(), || self.run(&scene)),
            || shared.borrow_mut().kill(),
        )?;
        if self.flushes {
            context.expect_on_disk(&scene.file, 0..LEN, stamp)?;
        }
        drop(holder);
        ledger::wait_until_empty(10)
    }
}

fn fsync_of_another(scene: &Scene<'_>) -> Result<()> {
    let other = scene.context.create("other")?;
    other.write_all_at(&[1; PAGE], 0)?;
    Ok(other.sync_all()?)
}

fn freeze(scene: &Scene<'_>) -> Result<()> {
    filesystem::while_frozen(&scene.context.root(), || ()).context("freeze or thaw")
}

fn direct_read(scene: &Scene<'_>) -> Result<()> {
    let buffer = Mapping::anonymous(LEN as usize)?;
    let read = buffer.read_from(&scene.direct()?, LEN as usize, 0)?;
    expect_eq("bytes read", read, LEN as usize)
}

fn direct_write(scene: &Scene<'_>) -> Result<()> {
    let buffer = Mapping::anonymous(LEN as usize)?;
    let written = buffer.write_to(&scene.direct()?, LEN as usize, 0)?;
    expect_eq("bytes written", written, LEN as usize)
}

/// Another process stores to every page, through page table entries that writeback protects again and
/// again, and ends with them.
fn store_and_exit(scene: &Scene<'_>) -> Result<()> {
    let pages = scene.map.address() as *mut u8;
    // SAFETY: the child stores to memory that is mapped, and calls nothing but _exit.
    let child = unsafe {
        match libc::fork() {
            0 => {
                for offset in (0..LEN as usize).step_by(PAGE) {
                    pages.add(offset).write_volatile(1);
                }
                libc::_exit(0)
            }
            child => child,
        }
    };
    if child < 0 {
        return Err(io::Error::last_os_error()).context("fork");
    }
    let mut status = 0;
    // SAFETY: `status` is valid for writing.
    unsafe { libc::waitpid(child, &mut status, 0) };
    expect_eq("status of the other process", status, 0)
}

fn migrate(scene: &Scene<'_>) -> Result<()> {
    scene.map.touch();
    for node in numa::NODES {
        let moved = numa::migrate(&scene.map, node)?;
        diag!("{}: {moved} pages on node {node}", scene.name);
    }
    Ok(())
}

fn remount(context: &Context, flags: libc::c_ulong) -> Result<()> {
    let root = CString::new(context.root().as_os_str().as_encoded_bytes())?;
    // SAFETY: the path is a C string, and a remount without options looks at nothing else.
    let done = unsafe {
        libc::mount(
            ptr::null(),
            root.as_ptr(),
            ptr::null(),
            libc::MS_REMOUNT | flags,
            ptr::null(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("remount"),
    }
}

/// A file that a process which is stopped has pinned, but has neither open nor mapped.
fn pinned_only(context: &Context, name: &str) -> Result<(Holder, Stamp)> {
    context.sparse(name, LEN)?;
    let stamp = Stamp::fresh();
    let orders = Orders::new(Kind::Uring, &context.path(name))
        .write(stamp)
        .let_go();
    let holder = hold(&mut orders.command())?;
    Ok((holder, stamp))
}

/// What devices still write could never be stored: refused at once, and the log says who is in the way.
fn remount_ro(context: &Context) -> Result<()> {
    let both_ways = || {
        remount(context, libc::MS_RDONLY)?;
        remount(context, 0)
    };
    drop(Scene::stored(context, "plain")?);
    let own = timed(both_ways).context("without pins")?;
    let (mut holder, stamp) = pinned_only(context, "pinned")?;
    let mut log = Kmsg::follow();
    within(limit(own), &mut holder, || {
        match remount(context, libc::MS_RDONLY) {
            Ok(()) => bail!("remounted read-only, with pins for writing"),
            Err(error) if errno(&error) == Some(libc::EBUSY) => Ok(()),
            Err(error) => Err(error.context("refused, but not with EBUSY")),
        }
    })?;
    let pages = LEN / PAGE as u64;
    let says = format!("{pages} pages of its files are pinned for writing by ");
    let message = log.wait_for(&says, 5).context("nothing in the log")?;
    if !message.ends_with(&format!("[{}]", holder.id())) {
        bail!("the log does not name process {}: {message}", holder.id());
    }
    // It is as it was: what the device wrote can be stored.
    let file = context.open("pinned")?;
    file.sync_all()?;
    context.expect_on_disk(&file, 0..LEN, stamp)?;
    drop(file);
    holder.kill();
    ledger::wait_until_empty(10)?;
    both_ways().context("with no pins left")
}

fn umount(context: &Context) -> Result<()> {
    let unmount = || filesystem::unmount(&context.root());
    drop(Scene::stored(context, "plain")?);
    let own = timed(unmount).context("without pins")?;
    context.mount()?;
    let (mut holder, stamp) = pinned_only(context, "pinned")?;
    let unmounted = within(limit(own), &mut holder, unmount);
    context.mount()?;
    unmounted?;
    context.expect_on_disk(&context.open("pinned")?, 0..LEN, stamp)
}

/// Detached at once; unmounted when the holder is gone, with its data on the disk.
fn umount_lazy(context: &Context) -> Result<()> {
    context.sparse("pinned", LEN)?;
    let stamp = Stamp::fresh();
    let orders = Orders::new(Kind::Uring, &context.path("pinned")).write(stamp);
    let mut holder = hold(&mut orders.command())?;
    within(LEAST_LIMIT, &mut holder, || {
        filesystem::detach(&context.root());
        Ok(())
    })?;
    // Only who has it all to itself may open a device that way.
    let alone = || {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(context.device())
            .is_ok()
    };
    if alone() {
        bail!("unmounted while a process has a file open");
    }
    holder.kill();
    let unmounted = wait_until(Duration::from_secs(20), || Ok(alone()))?;
    context.mount()?;
    if !unmounted {
        bail!("not unmounted though nothing uses it any more");
    }
    context.expect_on_disk(&context.open("pinned")?, 0..LEN, stamp)
}

/// A part of the memory of a control group is pinned, and the rest is not enough for what is read in it.
///
/// Reclaim comes to an end, and leaves pinned folios as they are.
fn reclaim(context: &Context) -> Result<()> {
    const PINNED: u64 = 12 * MIB;
    const MEMORY: u64 = 4 * PINNED;
    const READ: u64 = 2 * MEMORY;
    const LIMIT: Duration = Duration::from_secs(30);
    context.sparse("big", READ)?;
    let group = Cgroup::new("pinwb-reclaim", MEMORY)?;
    let read = || group.read(&context.path("big"), "4M");
    let own = timed(read).context("without pins")?;
    diag!("without pins: {own:?}");
    filesystem::drop_caches()?;

    let file = context.sparse("pinned", PINNED)?;
    let orders = Orders::new(Kind::Uring, &context.path("pinned"));
    let mut holder = hold(group.confine(&mut orders.command()))?;
    let scanned = group.number("memory.stat", "pgscan")?;
    within(limit(own).max(LIMIT), &mut holder, read)?;
    let scanned = group.number("memory.stat", "pgscan")? - scanned;
    let dirty = group.number("memory.stat", "file_dirty")?;
    let mapped = holder.mapped_file_bytes()?;
    diag!("{scanned} pages scanned, {dirty} bytes dirty, {mapped} bytes mapped");
    // The group's own numbers lag behind a little.
    if scanned == 0 || dirty < PINNED - MIB {
        bail!("the group had room for everything: nothing was tested");
    }
    let pages = ledger::folios_of(&file)?.iter().map(|f| f.pages).sum();
    expect_eq::<u64>("pinned pages", pages, PINNED / PAGE as u64)?;
    if mapped < PINNED {
        bail!("pinned pages were unmapped: of {PINNED} bytes {mapped} are mapped");
    }
    // The group can be removed when nobody is in it.
    drop(holder);
    Ok(())
}

/// The kernel's own detector finds nobody who hangs while all sorts of things go on beside a pin. What it
/// finds it says in the log, where the runner sees it.
fn hung_tasks(context: &Context) -> Result<()> {
    const HUNG: u32 = 8;
    let _timeout = Sysctl::set("kernel/hung_task_timeout_secs", &HUNG.to_string())?;
    let _interval = Sysctl::set("kernel/hung_task_check_interval_secs", "1")?;
    let scene = Scene::new(context, "pinned")?;
    let orders = Orders::new(Kind::Uring, &context.path(scene.name));
    let mut holder = hold(&mut orders.command())?;
    // The detector has to see a task twice.
    let end = Instant::now() + Duration::from_secs(u64::from(HUNG) + 3);
    let mut rounds = 0;
    Operation::new(|_| Ok(())).busy().in_company(
        &scene,
        || {
            while Instant::now() < end {
                store_and_exit(&scene)?;
                direct_write(&scene)?;
                fsync_of_another(&scene)?;
                freeze(&scene)?;
                numa::compact()?;
                scene.flush(Flush::Sync)?;
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                fallocate(&scene.file, mode, PART)?;
                rounds += 1;
            }
            Ok(())
        },
        || (),
    )?;
    diag!("{rounds} rounds");
    expect_eq("the holder is stopped", holder.is_stopped()?, true)?;
    holder.kill();
    ledger::wait_until_empty(10)
}
