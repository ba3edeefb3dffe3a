// SPDX-License-Identifier: GPL-2.0

//! When fsync, msync, sync or syncfs returns 0, what the device wrote before is on the disk.

use std::time::{Duration, Instant};

use anyhow::{bail, Result};

use super::common::{Flush, Pinned, MIB};
use crate::context::{expect_contents, Context};
use crate::device::{while_writing, Kind};
use crate::diag;
use crate::ledger::Stats;
use crate::tap::Invariant::{I1, I2, I4};
use crate::tap::Test;

pub const TESTS: &[Test] = &[
    Test::new("uring.fsync_rounds", |c| fsync_rounds(c, Kind::Uring))
        .proves(&[I1, I4])
        .without("no_keep_dirty"),
    Test::new("verbs.fsync_rounds", |c| fsync_rounds(c, Kind::Verbs))
        .timeout(300)
        .once()
        .proves(&[I1, I4])
        .without("no_keep_dirty"),
    Test::new("uring.fsync_while_dma", |c| fsync_while_dma(c, Kind::Uring))
        .proves(&[I4])
        .without("no_keep_dirty"),
    Test::new("verbs.fsync_while_dma", |c| fsync_while_dma(c, Kind::Verbs))
        .timeout(300)
        .once()
        .proves(&[I4]),
    Test::new("uring.shared_bio", shared_bio)
        .proves(&[I2])
        .without("no_copy"),
];

const LEN: u64 = 8 * MIB;

fn fsync_rounds(context: &Context, kind: Kind) -> Result<()> {
    let mut pinned = Pinned::sparse(context, kind, "file", LEN)?;
    let last = Flush::ALL.len() as u32;
    for (round, flush) in (1..).zip(Flush::ALL) {
        pinned.write(round)?;
        flush.call(&pinned.file, &pinned.map)?;
        pinned
            .expect_on_disk(context, round)
            .map_err(|error| error.context(format!("round {round}, {flush:?}")))?;
        if round == 2 || round == last {
            context.expect_after_power_cut("file", 0..LEN, pinned.stamp.round(round))?;
        }
    }
    // Nothing but unpin and unmount makes this round durable.
    let round = last + 1;
    pinned.write(round)?;
    let expected = pinned.stamp.round(round);
    expect_contents(&pinned.remount(context, "file")?, 0..LEN, expected)
}

fn fsync_while_dma(context: &Context, kind: Kind) -> Result<()> {
    let mut pinned = Pinned::sparse(context, kind, "file", LEN)?;
    let range = pinned.range.clone();
    let (map, file) = (&pinned.map, &pinned.file);
    let (syncs, last) = while_writing(&mut *pinned.device, pinned.stamp, range, || {
        let end = Instant::now() + Duration::from_secs(3);
        let mut syncs = 0;
        while Instant::now() < end {
            Flush::ALL[syncs % Flush::ALL.len()].call(file, map)?;
            syncs += 1;
        }
        Ok(syncs)
    })?;
    diag!("{syncs} syncs while {last} rounds were written");
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, last)?;
    context.expect_after_power_cut("file", pinned.range.clone(), pinned.stamp.round(last))
}

/// Pinned and ordinary pages side by side, so that they share bios: only the pinned ones are copied.
fn shared_bio(context: &Context) -> Result<()> {
    let len = 2 * MIB;
    let file = context.sparse("file", len)?;
    let map = crate::map::Mapping::shared(&file, 0, len as usize)?;
    map.advise_random();
    let stamp = crate::stamp::Stamp::fresh();
    map.store(0, &stamp.bytes(0, len as usize));
    let middle = MIB..MIB + MIB / 4;
    let mut device = Kind::Uring.attach(&map, middle.clone())?;
    for round in 1..=3 {
        let before = Stats::read().map(|stats| stats.get("bounced_bytes")).ok();
        let stamp = stamp.round(round);
        map.store(0, &stamp.bytes(0, middle.start as usize));
        let tail = stamp.bytes(middle.end, (len - middle.end) as usize);
        map.store(middle.end as usize, &tail);
        device.write(stamp, middle.clone())?;
        file.sync_all()?;
        context.expect_on_disk(&file, 0..len, stamp)?;
        if let Some(before) = before {
            let bounced = Stats::read()?.get("bounced_bytes") - before;
            diag!("round {round}: {bounced} bytes bounced");
            // Large folios are copied as a whole; nothing else may be.
            if bounced < middle.end - middle.start || bounced == len {
                bail!("{bounced} bytes bounced, {middle:?} of {len} are pinned");
            }
        }
    }
    Ok(())
}
