// SPDX-License-Identifier: GPL-2.0

//! What is done to files while every write is logged.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::knock_out;
use super::model::{File, Manner, Round};
use super::random::Random;
use super::recorder::{Id, Recorder};
use super::writer::{fresh_stamp, Source, Target};
use crate::beside::{beside, beside_steps};
use crate::context::Context;
use crate::map::PAGE;
use crate::stamp::SECTOR;
use crate::tests::common::{start_writeback, Flush, KIB, MIB};

/// What a workload is given.
pub struct Scene<'a> {
    /// The filesystem.
    pub context: &'a Context,
    /// The books.
    pub recorder: &'a Recorder,
    /// Where choices come from.
    pub random: Random,
    /// What writes through pins.
    pub source: Source,
    /// So many syncs, about.
    pub steps: u32,
}

/// A workload.
#[derive(Clone, Copy)]
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub run: fn(&mut Scene<'_>) -> Result<()>,
    /// What writes, unless another is asked for.
    pub source: Source,
}

const fn workload(name: &'static str, run: fn(&mut Scene<'_>) -> Result<()>) -> Workload {
    Workload {
        name,
        run,
        source: Source::Uring,
    }
}

/// All of them.
pub const ALL: &[Workload] = &[
    workload("overwrite", overwrite),
    workload("grow", grow),
    workload("cut", cut),
    workload("busy", busy),
    workload("rename", rename),
    workload("flushed", flushed),
    Workload {
        name: "rdma",
        run: overwrite,
        source: Source::Verbs,
    },
];

const UNIT: u64 = SECTOR as u64;
const BLOCK: u64 = PAGE as u64;

impl Scene<'_> {
    fn target(&self, name: &str, size: u64, capacity: u64, manner: Manner) -> Result<Target<'_>> {
        Target::create(
            self.context,
            self.recorder,
            self.source,
            name,
            size,
            capacity,
            manner,
        )
    }
}

/// A sync of one kind or another, and the mark after it. `all` are the files that the kinds which cover
/// more than one file cover.
fn sync(recorder: &Recorder, random: &mut Random, target: &Target<'_>, all: &[Id]) -> Result<()> {
    let flush = *random.pick(&Flush::ALL);
    let one = [target.id];
    let covered = match flush {
        Flush::Sync | Flush::Syncfs => all,
        _ => &one,
    };
    recorder.sync(&format!("{flush:?}"), covered, || {
        flush.call(&target.file, &target.map)
    })
}

/// Something reaches the disk without a sync, now and then.
fn perhaps_write_back(random: &mut Random, target: &Target<'_>) -> Result<()> {
    if random.one_in(3) {
        start_writeback(&target.file)?;
    }
    Ok(())
}

/// A pinned file whose blocks exist is written again and again.
fn overwrite(scene: &mut Scene<'_>) -> Result<()> {
    let len = MIB;
    let name = format!("overwrite-{:?}", scene.source).to_lowercase();
    let mut random = Random::new(scene.random.below(u64::MAX));
    let mut target = scene.target(&name, len, len, Manner::default())?;
    if random.one_in(2) {
        // In large folios.
        target.write_by_call(0..len)?;
    }
    target.pin_from(0)?;
    let all = [target.id];
    target.write(0..len)?;
    for _ in 0..scene.steps {
        sync(scene.recorder, &mut random, &target, &all)?;
        if random.one_in(3) {
            target.write(0..len)?;
        } else {
            for _ in 0..4 {
                let range = random.stretch(0..len, UNIT, 256 * KIB);
                target.write(range)?;
                perhaps_write_back(&mut random, &target)?;
            }
        }
    }
    sync(scene.recorder, &mut random, &target, &all)?;
    target.unpin()
}

/// A sparse file gets blocks from writeback, and gets longer.
fn grow(scene: &mut Scene<'_>) -> Result<()> {
    let capacity = 2 * MIB;
    let mut random = Random::new(scene.random.below(u64::MAX));
    let mut target = scene.target("grow", 64 * KIB, capacity, Manner::default())?;
    target.pin_from(0)?;
    let all = [target.id];
    for step in 0..scene.steps {
        for _ in 0..3 {
            let range = random.stretch(0..target.size()?, UNIT, 96 * KIB);
            target.write(range)?;
            perhaps_write_back(&mut random, &target)?;
        }
        if step % 3 != 2 {
            sync(scene.recorder, &mut random, &target, &all)?;
        }
        // Inside the last page as well as far beyond it.
        let longest = *random.pick(&[BLOCK / 2, 16 * KIB, 256 * KIB]);
        let old = target.size()?;
        let new = capacity.min(old + UNIT * (1 + random.below(longest / UNIT)));
        if new > old {
            target.resize(new)?;
            if new.div_ceil(BLOCK) > old.div_ceil(BLOCK) {
                target.pin_from(old.next_multiple_of(BLOCK))?;
            }
            let tail = random.stretch(old..new, UNIT, 64 * KIB);
            target.write(tail)?;
        }
    }
    sync(scene.recorder, &mut random, &target, &all)?;
    target.unpin()
}

/// Truncate and punch under pins, and growth over what was cut. The page cache has large folios, which stay
/// in the file as a whole when part of them is cut.
fn cut(scene: &mut Scene<'_>) -> Result<()> {
    let capacity = MIB;
    let mut random = Random::new(scene.random.below(u64::MAX));
    let mut target = scene.target("cut", capacity, capacity, Manner::default())?;
    target.write_by_call(0..capacity)?;
    target.pin_from(0)?;
    let all = [target.id];
    sync(scene.recorder, &mut random, &target, &all)?;
    for _ in 0..scene.steps {
        let size = target.size()?;
        if random.one_in(2) {
            let cut = UNIT * random.within(capacity / 4 / UNIT..capacity / UNIT);
            target.resize(cut.min(size))?;
        } else {
            let hole = random.stretch(0..size, UNIT, 256 * KIB);
            target.punch(hole)?;
        }
        if random.one_in(2) {
            sync(scene.recorder, &mut random, &target, &all)?;
        }
        if random.one_in(2) {
            let size = target.size()?;
            let new = size + UNIT * random.below(capacity / 2 / UNIT);
            target.resize(new.min(capacity))?;
        }
        // The device goes on with what it still has; what was cut there needs blocks again.
        for _ in 0..3 {
            let attached = target.attached()?;
            if !attached.is_empty() {
                let piece = random.pick(&attached).clone();
                let range = random.stretch(piece, UNIT, 64 * KIB);
                target.write(range)?;
                perhaps_write_back(&mut random, &target)?;
            }
        }
        if random.one_in(2) {
            sync(scene.recorder, &mut random, &target, &all)?;
        }
        if random.one_in(2) {
            target.pin_again()?;
            let range = random.stretch(0..target.size()?, UNIT, 128 * KIB);
            target.write(range)?;
            sync(scene.recorder, &mut random, &target, &all)?;
        }
    }
    sync(scene.recorder, &mut random, &target, &all)?;
    target.unpin()
}

/// Rounds that a stamp can tell apart, less what may be added at the end.
const ROUNDS: Round = 4000;

/// One file is written by a device that never pauses, in its own thread, until the body is done.
fn beside_busy_device(
    scene: &Scene<'_>,
    name: &str,
    len: u64,
    body: impl FnOnce(Id, &fs::File) -> Result<()>,
) -> Result<()> {
    let mut target = scene.target(name, len, len, Manner::default())?;
    target.pin_from(0)?;
    target.write(0..len)?;
    let (id, file) = (target.id, target.file.try_clone()?);
    let write = |stop: &AtomicBool| {
        while !stop.load(Ordering::Acquire) && target.round() < ROUNDS {
            target.write(0..len)?;
        }
        Ok(())
    };
    beside(write, || body(id, &file))?;
    scene
        .recorder
        .sync("Fsync, no device", &[id], || Ok(target.file.sync_all()?))?;
    target.unpin()
}

/// A device never pauses in one file; the other is written and synced in turn with it.
fn busy(scene: &mut Scene<'_>) -> Result<()> {
    let len = 256 * KIB;
    let mut random = Random::new(scene.random.below(u64::MAX));
    let (scene, steps) = (&*scene, scene.steps);
    let mut quiet = scene.target("busy-quiet", len, len, Manner::default())?;
    quiet.pin_from(0)?;
    beside_busy_device(scene, "busy", len, |id, file| {
        let all = [id, quiet.id];
        for _ in 0..steps {
            let range = random.stretch(0..len, UNIT, len);
            quiet.write(range)?;
            if random.one_in(2) {
                sync(scene.recorder, &mut random, &quiet, &all)?;
            } else {
                scene
                    .recorder
                    .sync("Fsync, busy", &[id], || Ok(file.sync_all()?))?;
            }
        }
        Ok(())
    })?;
    quiet.unpin()
}

/// Up to so many milliseconds pass between one fsync of [`flushed`] and the next.
const PAUSE: u64 = 2 * knock_out::WINDOW as u64;

/// A device never pauses, something else starts writeback all the time, and fsync comes between: now before
/// the copy is taken, now after it. Right after another fsync it would begin writeback of its own.
fn flushed(scene: &mut Scene<'_>) -> Result<()> {
    let mut random = Random::new(scene.random.below(u64::MAX));
    let (scene, steps) = (&*scene, scene.steps);
    let recorder = scene.recorder;
    beside_busy_device(scene, "flushed", 64 * KIB, |id, file| {
        let start = || {
            start_writeback(file)?;
            thread::sleep(Duration::from_millis(1));
            Ok(())
        };
        let sync = |_| {
            thread::sleep(Duration::from_millis(random.below(PAUSE)));
            recorder.sync("Fsync, flushed", &[id], || Ok(file.sync_all()?))
        };
        beside_steps(start, || (0..steps).try_for_each(sync))?;
        Ok(())
    })
}

/// A file is replaced by a new one that was synced before, written by a device or by write(2), beside
/// another that is pinned throughout.
fn rename(scene: &mut Scene<'_>) -> Result<()> {
    const OLD: &str = "rename";
    const NEW: &str = "rename-new";
    let len = 64 * KIB;
    let mut random = Random::new(scene.random.below(u64::MAX));
    let (context, recorder) = (scene.context, scene.recorder);
    let mut beside = scene.target("rename-beside", len, len, Manner::default())?;
    beside.pin_from(0)?;
    let stamp = fresh_stamp(OLD);
    let replaced = Manner { is_replaced: true };
    let old = recorder.add(File::new(OLD, stamp, len, replaced));
    let new = recorder.add(File::new(NEW, stamp, len, Manner::default()));
    let root = fs::File::open(context.root())?;
    for round in 1..=(scene.steps as Round).div_ceil(2) {
        let source = scene.source;
        let mut file = Target::reopen(context, recorder, source, new, NEW, stamp, len, round - 1)?;
        if random.one_in(2) {
            file.pin_from(0)?;
            file.write(0..len)?;
        } else {
            file.write_by_call(0..len)?;
        }
        let range = random.stretch(0..len, UNIT, len);
        beside.write(range)?;
        recorder.sync("Fsync of the new file", &[new], || {
            Ok(file.file.sync_all()?)
        })?;
        if random.one_in(2) {
            file.unpin()?;
        }
        recorder.note(new, File::remove);
        recorder.note(old, |file| file.replace(len, round));
        fs::rename(context.path(NEW), context.path(OLD)).context("rename")?;
        perhaps_write_back(&mut random, &beside)?;
        recorder.sync("Fsync of the directory", &[old, new], || {
            Ok(root.sync_all()?)
        })?;
        file.unpin()?;
    }
    recorder.sync("Fsync", &[beside.id], || Ok(beside.file.sync_all()?))?;
    beside.unpin()
}
