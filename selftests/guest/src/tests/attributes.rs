// SPDX-License-Identifier: GPL-2.0

//! Times and the end of the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::thread;
use std::time::Duration;

use anyhow::{bail, Result};

use super::common::{fallocate, Flush, Pinned, MIB};
use super::errors::in_large_folios;
use crate::context::Context;
use crate::device::{Dma, Kind};
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::tap::Invariant::{I4, I6};
use crate::tap::Test;

pub const TESTS: &[Test] = &[
    Test::new("mtime.moves", mtime_moves)
        .once()
        .without("no_touch"),
    Test::new("eof.zeroed_on_disk", eof_zeroed_on_disk).without("no_eof_zero"),
    Test::new("eof.tail_not_exposed", eof_tail_not_exposed),
    Test::new(
        "eof.rest_of_folio_not_exposed",
        eof_rest_of_folio_not_exposed,
    ),
    Test::new("eof.extended", eof_extended)
        .proves(&[I4, I6])
        .without("no_keep_dirty"),
];

fn times(file: &File) -> Result<((i64, i64), (i64, i64))> {
    let m = file.metadata()?;
    Ok(((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec())))
}

/// Backup programs and NFS clients see that a device has written.
fn mtime_moves(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", MIB)?;
    pinned.file.sync_all()?;
    for (round, flush) in (1..).zip(Flush::ALL) {
        let before = times(&pinned.file)?;
        thread::sleep(Duration::from_millis(50));
        pinned.write(round)?;
        flush.call(&pinned.file, &pinned.map)?;
        let after = times(&pinned.file)?;
        if after.0 <= before.0 || after.1 <= before.1 {
            bail!("{flush:?}: mtime and ctime went from {before:?} to {after:?}");
        }
    }
    Ok(())
}

const LEN: u64 = 5000;
const MAPPED: u64 = 8192;

/// A file that ends inside its second page, pinned with all of that page.
fn pin_past_end(context: &Context, name: &str) -> Result<(File, Mapping, Box<dyn Dma>)> {
    let file = context.sparse(name, LEN)?;
    let map = Mapping::shared(&file, 0, MAPPED as usize)?;
    let device = Kind::Uring.attach(&map, 0..MAPPED)?;
    Ok((file, map, device))
}

/// The contents up to `end`, then zeroes.
fn up_to(end: u64, stamp: Stamp) -> Vec<u8> {
    let mut bytes = stamp.bytes(0, MAPPED as usize);
    bytes[end as usize..].fill(0);
    bytes
}

fn eof_zeroed_on_disk(context: &Context) -> Result<()> {
    let (file, map, mut device) = pin_past_end(context, "file")?;
    let stamp = Stamp::fresh();
    for round in 1..=3 {
        let stamp = stamp.round(round);
        device.write(stamp, 0..MAPPED)?;
        file.sync_all()?;
        let sectors = context.mismatches(&file, 0..MAPPED, &up_to(LEN, stamp), stamp)?;
        if sectors > 0 {
            bail!("round {round}: {sectors} sectors, or what is past the end of the file, differ");
        }
        if map.load(0, MAPPED as usize) != stamp.bytes(0, MAPPED as usize) {
            bail!("round {round}: writeback changed the page under the device");
        }
    }
    Ok(())
}

/// What a device wrote past the end of the file doesn't come to light when the file grows.
fn eof_tail_not_exposed(context: &Context) -> Result<()> {
    type Grow = fn(&File) -> io::Result<()>;
    let ways: [(&str, Grow); 3] = [
        ("ftruncate", |file| file.set_len(7000)),
        ("pwrite", |file| file.write_all_at(&[0], 6999)),
        ("fallocate", |file| fallocate(file, 0, 0..7000)),
    ];
    for (name, grow) in ways {
        let (file, _map, mut device) = pin_past_end(context, name)?;
        let stamp = Stamp::fresh();
        device.write(stamp, 0..MAPPED)?;
        file.sync_all()?;
        grow(&file)?;
        let mut grown = vec![0; 7000];
        file.read_exact_at(&mut grown, 0)?;
        let expected = up_to(LEN, stamp);
        if grown != expected[..7000] {
            bail!("{name}: what the device wrote past the end can be read");
        }
        file.sync_all()?;
        if context.mismatches(&file, 0..MAPPED, &expected, stamp)? > 0 {
            bail!("{name}: what the device wrote past the end is on the disk");
        }
    }
    Ok(())
}

/// Nor what it wrote to the pages of a large folio that are past the end.
fn eof_rest_of_folio_not_exposed(context: &Context) -> Result<()> {
    type Grow = fn(&File, u64, u64) -> io::Result<()>;
    let ways: [(&str, Grow); 3] = [
        ("ftruncate", |file, _, len| file.set_len(len)),
        ("pwrite", |file, _, len| file.write_all_at(&[0], len - 1)),
        ("fallocate", |file, end, len| fallocate(file, 0, end..len)),
    ];
    let len = context.kind().largest_folio();
    let end = len / 2;
    for (name, grow) in ways {
        let mut pinned = in_large_folios(context, name, len)?;
        pinned.file.set_len(end)?;
        pinned.write(1)?;
        grow(&pinned.file, end, len)?;
        let mut rest = vec![0xff; (len - end) as usize];
        pinned.file.read_exact_at(&mut rest, end)?;
        if rest.iter().any(|byte| *byte != 0) {
            bail!("{name}: what the device wrote past the end can be read");
        }
        pinned.file.sync_all()?;
        let stamp = pinned.stamp.round(1);
        let mut expected = stamp.bytes(0, len as usize);
        expected[end as usize..].fill(0);
        if context.mismatches(&pinned.file, 0..len, &expected, stamp)? > 0 {
            bail!("{name}: what the device wrote past the end is on the disk");
        }
        pinned.release()?;
    }
    Ok(())
}

fn eof_extended(context: &Context) -> Result<()> {
    let (file, map, mut device) = pin_past_end(context, "file")?;
    let stamp = Stamp::fresh();
    device.write(stamp.round(1), 0..MAPPED)?;
    file.sync_all()?;
    for (round, len) in [(2, 6000), (3, 7000), (4, MAPPED)] {
        file.set_len(len)?;
        let stamp = stamp.round(round);
        device.write(stamp, 0..MAPPED)?;
        file.sync_all()?;
        let sectors = context.mismatches(&file, 0..MAPPED, &up_to(len, stamp), stamp)?;
        if sectors > 0 {
            bail!("extended to {len} bytes: {sectors} sectors differ from memory");
        }
    }
    device.unpin()?;
    drop((map, file));
    context.remount()?;
    crate::context::expect_contents(&context.open("file")?, 0..MAPPED, stamp.round(4))
}
