// SPDX-License-Identifier: GPL-2.0

//! Everything that can fail does, one after the other: memory for a pin, for the ledger, for the copies of
//! a bio, and the I/O. A pin fails with an errno and leaves nothing behind, writeback tells fsync, and the
//! data stays until it can be stored.
//!
//! These run on a kernel that looks for leaks, booted with `kmemleak=on`; the last test reads what it
//! found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};

use super::common::{fallocate, wait_until, Pinned, KIB, MIB};
use crate::context::Context;
use crate::device::{errno, Kind};
use crate::diag;
use crate::inject::{function, Capability, Faults, Nth, MEMORY};
use crate::kmsg;
use crate::layer::{Hold, Layer};
use crate::ledger::{self, Stats};
use crate::map::{Mapping, PAGE};
use crate::pagemap::PageFlags;
use crate::stamp::Stamp;
use crate::tap::{expect_eq, skip, Invariant, Test};
use crate::uring::Uring;
use crate::verbs::{Domain, Region};

use Invariant::{I1, I4, I6, I7};

pub const TESTS: &[Test] = &[
    Test::new("faults.first_pin", first_pin).proves(&[I7]),
    Test::new("faults.pin_uring", pin_uring).proves(&[I7]),
    Test::new("faults.pin_verbs", pin_verbs).proves(&[I7]),
    Test::new("faults.unpin", unpin).proves(&[I7]),
    Test::new("faults.exit", exit).proves(&[I7]),
    Test::new("faults.fsync", fsync).proves(&[I1, I4, I6]),
    Test::new("faults.bounce", bounce).proves(&[I4]),
    Test::new("faults.requests", requests).proves(&[I1, I4]),
    Test::new("faults.conversion", conversion).proves(&[I4]),
    Test::new("faults.pool_is_full", pool_is_full).on(Layer::Held),
    Test::new("faults.leaks", leaks),
];

/// True if the kernel looks for leaks.
pub fn is_leak_detector_on(command_line: &str) -> bool {
    command_line
        .split_whitespace()
        .any(|word| word == "kmemleak=on")
}

/// Nothing takes that many allocations.
const LIMIT: u32 = 3000;

/// How often each errno came.
#[derive(Default)]
struct Errors(BTreeMap<i32, u32>);

impl Errors {
    /// Notes the errno; only those in `plain` are fit for an application.
    fn note(&mut self, error: Option<i32>, plain: &[i32]) -> Result<()> {
        match error {
            Some(errno) if plain.contains(&errno) => *self.0.entry(errno).or_default() += 1,
            Some(errno) => bail!("failed with {}", io::Error::from_raw_os_error(errno)),
            None => bail!("failed without an errno"),
        }
        Ok(())
    }

    fn tell(&self, what: &str) {
        for (errno, count) in &self.0 {
            let error = io::Error::from_raw_os_error(*errno);
            diag!("{what}: {count} times {error}");
        }
    }
}

/// A new file with neither pages nor blocks.
fn fresh(context: &Context, len: u64) -> Result<(File, Mapping)> {
    let _ = fs::remove_file(context.path("file"));
    let file = context.sparse("file", len)?;
    let map = Mapping::shared(&file, 0, len as usize)?;
    Ok((file, map))
}

/// What always works, still does.
fn works_again(context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "afterwards", MIB)?;
    for round in 1..=2 {
        pinned.write(round)?;
        pinned.file.sync_all().context("fsync without faults")?;
        pinned.expect_on_disk(context, round)?;
    }
    pinned.device.unpin()?;
    ledger::wait_until_empty(10)
}

/// Calls `attempt` with one failure after the other, until it gets through without.
fn one_by_one(mut attempt: impl FnMut(&Nth, u32) -> Result<bool>) -> Result<u32> {
    let nth = Nth::of_this_task()?;
    for n in 1..LIMIT {
        let failed = attempt(&nth, n).with_context(|| format!("failure number {n}"))?;
        if !failed {
            diag!("{} failures", n - 1);
            if n == 1 {
                bail!("nothing could be made to fail");
            }
            return Ok(n - 1);
        }
    }
    bail!("no end after {LIMIT} failures")
}

/// The first pin since boot has to allocate the reserve of the copies, and tables of the ledger at all
/// levels. What was allocated stays when a later allocation fails.
fn first_pin(context: &Context) -> Result<()> {
    // The reserve, which is allocated as a whole, or not: itself, two arrays and two tables; and pages,
    // one like the other.
    const OBJECTS: u32 = 5;
    const PAGES: u32 = 512;
    const NO_PAGES: u32 = 10;

    if Stats::read()?.get("leaves") > 0 {
        return skip("there were pins since boot");
    }
    let faults = Faults::ready()?;
    let len = 4 * PAGE as u64;
    let (file, map) = fresh(context, len)?;
    let mut ring = Uring::new()?;
    let nth = Nth::of_this_task()?;
    let mut errors = Errors::default();
    let mut attempt = |n: u32| -> Result<bool> {
        let (pinned, _) = nth.during(n, || ring.pin(&map, 0..len))?;
        let done = pinned.is_ok();
        match pinned {
            Ok(()) => {
                expect_eq("pins", ledger::pins_of(&file)?, len / PAGE as u64)?;
                ring.unpin()?;
            }
            Err(error) => errors.note(error.raw_os_error(), &[libc::ENOMEM])?,
        }
        expect_eq("pins left behind", ledger::pins_of(&file)?, 0)?;
        Ok(done)
    };
    faults.pages_from_order(NO_PAGES)?;
    faults.only_below(&function("6bounce7prepare")?)?;
    for n in 1..=OBJECTS {
        if attempt(n)? {
            bail!("pinned without object {n} of the reserve");
        }
    }
    faults.pages_from_order(0)?;
    for n in [PAGES / 8, PAGES / 2, PAGES] {
        if attempt(n)? {
            bail!("pinned without all pages of the reserve: {n}");
        }
    }
    faults.only_below(&function("12KernelMemoryE3add")?)?;
    let storm = faults.start(&MEMORY, 100)?;
    if attempt(0)? {
        bail!("pinned without a ledger");
    }
    drop(storm);
    let mut n = 1;
    while !attempt(n)? {
        n += 1;
        if n > LIMIT {
            bail!("there is memory for the ledger, and no pin");
        }
    }
    diag!("pinned with failure number {n} below the ledger");
    // A leaf is for 2 MiB.
    let frames = PageFlags::open()?.frames(&map, 0..map.len())?;
    let regions: BTreeSet<u64> = frames.iter().map(|frame| frame / 512).collect();
    let leaves = Stats::read()?.get("leaves");
    expect_eq("leaves", leaves, regions.len() as u64)?;
    errors.tell("the pin failed");
    drop(faults);
    works_again(context)
}

/// Memory for a pin is also that of the page faults, which find a signal to send, or a bad address.
const NO_PIN: &[i32] = &[libc::ENOMEM, libc::EFAULT];

fn pin_uring(context: &Context) -> Result<()> {
    // A lack of memory inside the filesystem is an error that it reports.
    kmsg::expect("EXT4-fs error");
    let faults = Faults::ready()?;
    let len = 4 * PAGE as u64;
    let mut ring = Uring::new()?;
    let mut errors = Errors::default();
    one_by_one(|nth, n| {
        let (file, map) = fresh(context, len)?;
        let (pinned, failed) = nth.during(n, || ring.pin(&map, 0..len))?;
        match pinned {
            Ok(()) => {
                expect_eq("pins", ledger::pins_of(&file)?, len / PAGE as u64)?;
                ring.unpin()?;
            }
            Err(error) => errors.note(error.raw_os_error(), NO_PIN)?,
        }
        expect_eq("pins left behind", ledger::pins_of(&file)?, 0)?;
        Ok(failed)
    })?;
    errors.tell("the pin failed");
    drop(faults);
    works_again(context)
}

fn pin_verbs(context: &Context) -> Result<()> {
    kmsg::expect("EXT4-fs error");
    let faults = Faults::ready()?;
    let len = 4 * PAGE as u64;
    let domain: Arc<Domain> = Domain::open()?;
    let mut errors = Errors::default();
    one_by_one(|nth, n| {
        let (file, map) = fresh(context, len)?;
        let (region, failed) = nth.during(n, || Region::for_writes(&domain, &map, 0..len))?;
        match region {
            Ok(region) => {
                expect_eq("pins", ledger::pins_of(&file)?, len / PAGE as u64)?;
                drop(region);
            }
            Err(error) => errors.note(errno(&error), NO_PIN)?,
        }
        expect_eq("pins left behind", ledger::pins_of(&file)?, 0)?;
        Ok(failed)
    })?;
    errors.tell("the registration failed");
    drop(faults);
    works_again(context)
}

/// Giving pins back needs no memory.
fn unpin(context: &Context) -> Result<()> {
    let faults = Faults::ready()?;
    let len = MIB;
    let (file, map) = fresh(context, len)?;
    let mut ring = Uring::new()?;
    for function_name in ["__x64_sys_io_uring_register", "io_ring_exit_work"] {
        ring.pin(&map, 0..len)?;
        expect_eq("pins", ledger::pins_of(&file)?, len / PAGE as u64)?;
        faults.only_below(&function(function_name)?)?;
        let storm = faults.start(&MEMORY, 100)?;
        if function_name == "io_ring_exit_work" {
            ring = Uring::new()?;
        } else {
            ring.unpin().context("unpin without memory")?;
        }
        ledger::wait_until_empty(10).context("unpin without memory")?;
        diag!("{function_name}: {} failures", storm.failures()?);
    }
    drop((ring, faults));
    works_again(context)
}

/// A process that has pins ends, and one allocation on the way fails.
fn exit(context: &Context) -> Result<()> {
    const FAILURES: u32 = 12;
    let _faults = Faults::ready()?;
    let len = 16 * PAGE as u64;
    for n in 1..=FAILURES {
        let (_file, map) = fresh(context, len)?;
        // SAFETY: this process has one thread, so that the child may do as it likes.
        let child = unsafe { libc::fork() };
        match child {
            -1 => return Err(io::Error::last_os_error()).context("fork"),
            0 => {
                let armed = Uring::register(&map, 0..len).and_then(|ring| {
                    std::mem::forget(ring);
                    Nth::of_this_task()?.arm(n)
                });
                // SAFETY: ends the process and nothing else.
                unsafe { libc::_exit(i32::from(armed.is_err())) };
            }
            _ => {}
        }
        let mut status = 0;
        // SAFETY: `status` is valid for writing.
        unsafe { libc::waitpid(child, &mut status, 0) };
        expect_eq("status of the child", status, 0)?;
        ledger::wait_until_empty(10).with_context(|| format!("failure number {n}"))?;
    }
    works_again(context)
}

/// What fsync may say if memory or the disk is missing.
const NO_SYNC: &[i32] = &[libc::ENOMEM, libc::EIO, libc::ENOSPC];

/// fsync finds blocks for holes under a pin, allocates them, copies, and writes, and one after the other
/// of these fails.
fn fsync(context: &Context) -> Result<()> {
    kmsg::expect("EXT4-fs error");
    kmsg::expect("Buffer I/O error");
    let len = 256 * KIB;
    let stamp = Stamp::fresh();
    let file = context.written("file", len, stamp, len as usize)?;
    let mut pinned = Pinned::new(Kind::Uring, file, stamp)?;
    if ledger::folios_of(&pinned.file)?.len() > 1 {
        return skip("the page cache gave no large folio");
    }
    let mut faults = Faults::ready()?;
    faults.of_device(context.device())?;
    let mut errors = Errors::default();
    let mut silent = 0;
    one_by_one(|nth, n| {
        let hole = 64 * KIB..128 * KIB;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        fallocate(&pinned.file, mode, hole).context("punch")?;
        pinned.write(n)?;
        let (synced, failed) = nth.during(n, || pinned.file.sync_all())?;
        match synced {
            Ok(()) => {
                silent += u32::from(failed);
                pinned
                    .expect_on_disk(context, n)
                    .context("fsync returned 0")?;
            }
            Err(error) => {
                errors.note(error.raw_os_error(), NO_SYNC)?;
                if !failed {
                    return Err(error).context("fsync without a failure");
                }
                pinned.file.sync_all().context("the next fsync")?;
                pinned
                    .expect_on_disk(context, n)
                    .context("the next fsync returned 0")?;
            }
        }
        Ok(failed)
    })?;
    diag!("{silent} failures did no harm");
    errors.tell("fsync failed");
    drop(faults);
    let last = pinned.stamp.round(LIMIT);
    pinned.device.write(last, 0..len)?;
    pinned.file.sync_all()?;
    context.expect_after_power_cut("file", 0..len, last)?;
    pinned.device.unpin()?;
    works_again(context)
}

/// Copies are made out of the reserve alone, by several files at once.
fn bounce(context: &Context) -> Result<()> {
    const FILES: usize = 3;
    let faults = Faults::ready()?;
    let mut files = Vec::new();
    for index in 0..FILES {
        let mut pinned = Pinned::sparse(context, Kind::Uring, &format!("file{index}"), 4 * MIB)?;
        pinned.write(0)?;
        pinned.file.sync_all()?;
        files.push(pinned);
    }
    faults.only_below(&function("__pinwb_bounce_bio")?)?;
    let lacks: [&[Capability]; 2] = [&MEMORY, &[Capability::Mempool, Capability::MempoolBulk]];
    for (round, lack) in (1..).zip(lacks) {
        let storm = faults.start(lack, 100)?;
        for pinned in &mut files {
            pinned.write(round)?;
        }
        thread::scope(|scope| {
            let syncs: Vec<_> = files
                .iter()
                .map(|pinned| &pinned.file)
                .map(|file| scope.spawn(|| file.sync_all()))
                .collect();
            for sync in syncs {
                match sync.join() {
                    Ok(synced) => synced.context("fsync without memory but the reserve")?,
                    Err(_) => bail!("an fsync panicked"),
                }
            }
            Ok(())
        })?;
        let failures = storm.failures()?;
        diag!("{lack:?}: {failures} failures");
        if failures == 0 {
            bail!("no copy needed the reserve");
        }
        for pinned in &files {
            pinned.expect_on_disk(context, round)?;
        }
    }
    for pinned in files {
        pinned.device.unpin()?;
    }
    drop(faults);
    works_again(context)
}

/// Any bio of data may fail, and the device never stops writing.
fn requests(context: &Context) -> Result<()> {
    const ROUNDS: u32 = 16;
    kmsg::expect("Buffer I/O error");
    kmsg::expect("I/O error, dev");
    let mut faults = Faults::ready()?;
    faults.of_device(context.device())?;
    faults.only_below(&function("ext4_io_submit")?)?;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", 512 * KIB)?;
    let mut errors = Errors::default();
    let storm = faults.start(&[Capability::Requests], 50)?;
    let mut stored = 0;
    for round in 1..=ROUNDS {
        pinned.write(round)?;
        match pinned.file.sync_all() {
            Ok(()) => {
                stored += 1;
                pinned
                    .expect_on_disk(context, round)
                    .with_context(|| format!("fsync returned 0 in round {round}"))?;
            }
            Err(error) => errors.note(error.raw_os_error(), &[libc::EIO])?,
        }
    }
    diag!(
        "{} bios failed, {stored} of {ROUNDS} rounds were stored",
        storm.failures()?
    );
    errors.tell("fsync failed");
    if errors.0.is_empty() {
        bail!("no bio failed");
    }
    drop(storm);
    pinned.file.sync_all().context("fsync without faults")?;
    pinned.expect_on_disk(context, ROUNDS)?;
    context.expect_after_power_cut("file", pinned.range.clone(), pinned.stamp.round(ROUNDS))?;
    pinned.device.unpin()?;
    drop(faults);
    works_again(context)
}

/// The data is on the disk, and the extent can't be marked written: reads would give zeroes.
fn conversion(context: &Context) -> Result<()> {
    kmsg::expect("EXT4-fs error");
    kmsg::expect("failed to convert unwritten extents");
    let faults = Faults::ready()?;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", 256 * KIB)?;
    pinned.write(1)?;
    faults.only_below(&function("ext4_end_io_rsv_work")?)?;
    let storm = faults.start(&MEMORY, 100)?;
    let synced = pinned.file.sync_all();
    let failures = storm.failures()?;
    drop(storm);
    diag!("{failures} failures, fsync: {synced:?}");
    if synced.is_ok() {
        pinned
            .expect_on_disk(context, 1)
            .context("fsync returned 0")?;
    }
    if failures == 0 {
        return skip("extents are not converted here, or without memory");
    }
    pinned.file.sync_all().context("fsync without faults")?;
    pinned.expect_on_disk(context, 1)?;
    context.expect_after_power_cut("file", pinned.range.clone(), pinned.stamp.round(1))?;
    pinned.device.unpin()?;
    drop(faults);
    works_again(context)
}

/// After all this the reserve still serves two of the largest bios at once, which is all of it.
fn pool_is_full(context: &Context) -> Result<()> {
    const BIOS: u64 = 2;
    let faults = Faults::ready()?;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", 4 * MIB)?;
    pinned.write(0)?;
    pinned.file.sync_all()?;
    pinned.write(1)?;
    let bios = || -> Result<u64> { Ok(Stats::read()?.get("bounced_bios")) };
    let before = bios()?;
    let file = &pinned.file;
    faults.only_below(&function("__pinwb_bounce_bio")?)?;
    let storm = faults.start(&MEMORY, 100)?;
    let hold = Hold::start()?;
    thread::scope(|scope| -> Result<()> {
        let sync = scope.spawn(|| file.sync_all());
        let served = wait_until(Duration::from_secs(10), || Ok(bios()? - before >= BIOS))?;
        thread::sleep(Duration::from_millis(300));
        let in_flight = bios()? - before;
        drop(hold);
        match sync.join() {
            Ok(synced) => synced?,
            Err(_) => bail!("fsync panicked"),
        }
        if !served {
            bail!("the reserve had copies for {in_flight} bios, not {BIOS}");
        }
        expect_eq("bios that were served at once", in_flight, BIOS)
    })?;
    diag!("{} failures", storm.failures()?);
    drop((storm, faults));
    pinned.expect_on_disk(context, 1)
}

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";

/// Nothing that the subsystem allocated was forgotten. What others forget is only told.
fn leaks(_: &Context) -> Result<()> {
    let command_line = fs::read_to_string("/proc/cmdline")?;
    if !Path::new(KMEMLEAK).exists() || !is_leak_detector_on(&command_line) {
        return skip("the kernel does not look for leaks, see kmemleak=on");
    }
    // An object has to be of some age, and to look the same twice.
    for _ in 0..2 {
        thread::sleep(Duration::from_secs(6));
        fs::write(KMEMLEAK, "scan").context("cannot scan")?;
    }
    let found = fs::read_to_string(KMEMLEAK)?;
    let mut ours = Vec::new();
    for object in objects(&found) {
        if is_ours(&object) {
            ours.push(object);
        } else {
            diag!("somebody else's: {}", object.join(" | "));
        }
    }
    for object in &ours {
        for line in object {
            diag!("{line}");
        }
    }
    match ours.len() {
        0 => Ok(()),
        leaks => bail!("{leaks} leaks"),
    }
}

/// The reports of kmemleak, a list of lines each.
fn objects(found: &str) -> Vec<Vec<&str>> {
    let mut objects: Vec<Vec<&str>> = Vec::new();
    for line in found.lines() {
        if line.starts_with("unreferenced object") {
            objects.push(Vec::new());
        }
        if let Some(object) = objects.last_mut() {
            object.push(line);
        }
    }
    objects
}

/// True if one of our functions is in the trace of the allocation.
fn is_ours(object: &[&str]) -> bool {
    object
        .iter()
        .skip_while(|line| !line.trim_start().starts_with("backtrace"))
        .any(|line| {
            ["pinwb", "pin_longterm", "ext4_map_dirty"]
                .iter()
                .any(|name| line.contains(name))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaks_are_told_apart_by_their_traces() {
        let found = "\
unreferenced object 0xffff888101234000 (size 4096):
  comm \"pinwb-test\", pid 93, jiffies 4294901234
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 0):
    kmalloc_noprof+0x1/0x2
    __pinwb_admit+0x10/0x20
unreferenced object 0xffff888101235000 (size 64):
  comm \"pinwb-test\", pid 93, jiffies 4294901234
  backtrace (crc 0):
    kmalloc_noprof+0x1/0x2
    rxe_init+0x10/0x20
";
        let objects = objects(found);
        assert_eq!(objects.len(), 2);
        assert!(is_ours(&objects[0]));
        assert!(!is_ours(&objects[1]));
    }
}
