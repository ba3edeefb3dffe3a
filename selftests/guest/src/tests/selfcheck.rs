// SPDX-License-Identifier: GPL-2.0

//! That the tests can tell a disk that has the data from one that hasn't. No pins here: these pass on any
//! kernel.

use std::thread;
use std::time::Duration;

use anyhow::{bail, Result};

use super::common::{Flush, KIB};
use crate::context::Context;
use crate::device::Kind;
use crate::layer::{Hold, Layer};
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::tap::Test;
use crate::uring;

pub const TESTS: &[Test] = &[
    Test::new("selfcheck.disk", stores),
    Test::new("selfcheck.held", held).on(Layer::Held).once(),
    Test::new("selfcheck.integrity", stores)
        .on(Layer::Integrity)
        .once(),
    Test::new("selfcheck.uring", |_| device(Kind::Uring)).on(Layer::None),
    Test::new("selfcheck.verbs", |_| device(Kind::Verbs)).on(Layer::None),
];

/// The CPU is the device: its stores are on the disk after a sync, and not before.
fn stores(context: &Context) -> Result<()> {
    // Little enough that the smallest filesystem need not write it back to make room for metadata.
    let len = 128 * KIB;
    let file = context.sparse("file", len)?;
    let map = Mapping::shared(&file, 0, len as usize)?;
    let stamp = Stamp::fresh();
    for (round, flush) in (1..).zip(Flush::ALL) {
        let stamp = stamp.round(round);
        let bytes = stamp.bytes(0, len as usize);
        map.store(0, &bytes);
        if round > 1 {
            let sectors = context.mismatches(&file, 0..len, &bytes, stamp)?;
            if sectors as u64 != len / 512 {
                bail!("only {sectors} sectors differ before {flush:?}: something writes back");
            }
        }
        flush.call(&file, &map)?;
        context.expect_on_disk(&file, 0..len, stamp)?;
        if round == 3 {
            context.expect_after_power_cut("file", 0..len, stamp)?;
        }
    }
    Ok(())
}

/// What is held doesn't reach the disk, and fsync waits for it.
fn held(context: &Context) -> Result<()> {
    stores(context)?;
    let len = 64 * KIB;
    let stamp = Stamp::fresh();
    let file = context.written("held", len, stamp, len as usize)?;
    let map = Mapping::shared(&file, 0, len as usize)?;
    let bytes = stamp.round(1).bytes(0, len as usize);
    map.store(0, &bytes);
    let hold = Hold::start()?;
    thread::scope(|scope| {
        // Not fsync(2): on btrfs that holds the inode's lock, which FIEMAP takes to find the blocks.
        let sync = scope.spawn(|| Flush::Syncfs.call(&file, &map));
        thread::sleep(Duration::from_millis(300));
        let returned = sync.is_finished();
        let sectors = context.mismatches(&file, 0..len, &bytes, stamp.round(1))?;
        drop(hold);
        match sync.join() {
            Ok(synced) => synced?,
            Err(_) => bail!("syncfs panicked"),
        }
        if returned || sectors == 0 {
            bail!("held, yet {sectors} sectors differ and syncfs returned: {returned}");
        }
        Ok(())
    })?;
    context.expect_on_disk(&file, 0..len, stamp.round(1))
}

/// The device writes where it should, here to shared memory without a disk.
fn device(kind: Kind) -> Result<()> {
    let len = 512 * KIB;
    let file = uring::memory_file(c"pinned")?;
    file.set_len(len)?;
    let map = Mapping::shared(&file, 0, len as usize)?;
    let mut device = kind.attach(&map, 0..len)?;
    let stamp = Stamp::fresh();
    for round in 1..=3 {
        // Part by part, and not from the start.
        for part in [64 * KIB..len, 0..4 * KIB, 4 * KIB..64 * KIB] {
            device.write(stamp.round(round), part)?;
        }
        if map.load(0, len as usize) != stamp.round(round).bytes(0, len as usize) {
            bail!("round {round}: the mapping has other data");
        }
    }
    device.unpin()
}
