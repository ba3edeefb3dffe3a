// SPDX-License-Identifier: GPL-2.0

//! A device that never stops, for as long as one likes: the file is synced every second, and every minute
//! the filesystem is scrubbed and the file copied by sharing its blocks.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use crate::context::Context;
use crate::device::{while_writing, Kind};
use crate::ledger::{self, Stats};
use crate::map::Mapping;
use crate::stamp::Stamp;

/// What to soak for how long.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Go on for so many minutes
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// Seconds between two syncs
    #[arg(long, default_value_t = 1)]
    sync_seconds: u64,
    /// Seconds between two scrubs, and between two copies
    #[arg(long, default_value_t = 60)]
    scrub_seconds: u64,
}

const LEN: u64 = 16 << 20;

/// What has happened so far.
#[derive(Default)]
struct Progress {
    syncs: u32,
    scrubs: u32,
    copies: u32,
}

/// A copy that shares the file's blocks, and what it had when it was made.
struct Copy {
    name: String,
    bytes: Vec<u8>,
}

impl Copy {
    fn make(context: &Context, nth: u32) -> Result<Option<Self>> {
        let name = format!("copy-{nth}");
        if !context.kind().copy(&context.root(), "soak", &name)? {
            return Ok(None);
        }
        let bytes = fs::read(context.path(&format!("{name}/soak")))?;
        Ok(Some(Self { name, bytes }))
    }

    /// The blocks are still those of the moment when it was made.
    fn expect_unchanged(self, context: &Context) -> Result<()> {
        // Not what the page cache has of it.
        crate::fs::drop_caches()?;
        if fs::read(context.path(&format!("{}/soak", self.name)))? != self.bytes {
            bail!("{} has changed since it was made", self.name);
        }
        context.kind().remove_copy(&context.path(&self.name))
    }
}

/// Runs it on a filesystem that is mounted. The caller unmounts and checks it.
pub fn run(context: &Context, arguments: &Arguments) -> Result<()> {
    let stamp = Stamp::fresh();
    let file = context.sparse("soak", LEN)?;
    let map = Mapping::shared(&file, 0, LEN as usize)?;
    let mut device = Kind::Verbs.attach(&map, 0..LEN)?;
    let before = Stats::read()?.get("bounced_bytes");
    let start = Instant::now();
    let end = Duration::from_secs(60 * arguments.minutes);
    let mut progress = Progress::default();
    let (copy, last) = while_writing(&mut *device, stamp, 0..LEN, || {
        let mut copy: Option<Copy> = None;
        let mut next_scrub = Duration::ZERO;
        while start.elapsed() < end {
            let begun = Instant::now();
            file.sync_all().context("fsync")?;
            progress.syncs += 1;
            if start.elapsed() >= next_scrub {
                context.scrub()?;
                progress.scrubs += 1;
                if let Some(copy) = copy.take() {
                    copy.expect_unchanged(context)?;
                }
                copy = Copy::make(context, progress.scrubs)?;
                progress.copies += u32::from(copy.is_some());
                next_scrub = start.elapsed() + Duration::from_secs(arguments.scrub_seconds);
                println!(
                    "soak: {} s of {}: {} syncs, {} scrubs, {} copies",
                    start.elapsed().as_secs(),
                    end.as_secs(),
                    progress.syncs,
                    progress.scrubs,
                    progress.copies
                );
            }
            thread::sleep(
                Duration::from_secs(arguments.sync_seconds).saturating_sub(begun.elapsed()),
            );
        }
        Ok(copy)
    })?;
    file.sync_all()?;
    context.expect_on_disk(&file, 0..LEN, stamp.round(last))?;
    context.scrub()?;
    context.expect_after_power_cut("soak", 0..LEN, stamp.round(last))?;
    if let Some(copy) = copy {
        copy.expect_unchanged(context)?;
    }
    let bounced = Stats::read()?.get("bounced_bytes") - before;
    if bounced == 0 {
        bail!("nothing was bounced: nothing is proven");
    }
    device.unpin()?;
    drop((map, file));
    ledger::wait_until_empty(20)?;
    println!(
        "soak: {} rounds by RDMA, {} syncs, {} scrubs, {} copies, {} MiB bounced; nothing wrong",
        last - stamp.round,
        progress.syncs,
        progress.scrubs,
        progress.copies,
        bounced >> 20
    );
    Ok(())
}
