// SPDX-License-Identifier: GPL-2.0

//! One quick round trip with each way to make and mount a filesystem.

use anyhow::{bail, Result};

use super::common::{Pinned, KIB, MIB};
use crate::context::{expect_contents, Context};
use crate::device::Kind;
use crate::disk;
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::tap::Invariant::{I1, I4};
use crate::tap::Test;

/// The round trip with some options, which fails in its second round if pinned folios are cleaned.
const fn trip(
    name: &'static str,
    run: fn(&Context) -> Result<()>,
    mkfs: &'static str,
    mount: &'static str,
) -> Test {
    Test::new(name, run)
        .only("ext4")
        .made(mkfs, mount)
        .proves(&[I1, I4])
        .without("no_keep_dirty")
}

pub const TESTS: &[Test] = &[
    trip("options.data_ordered", quick, "", "data=ordered"),
    trip("options.data_writeback", quick, "", "data=writeback"),
    trip("options.nodelalloc", quick, "", "nodelalloc"),
    trip("options.dioread_nolock", quick, "", "dioread_nolock"),
    trip("options.dioread_lock", quick, "", "dioread_lock"),
    trip("options.block_1k", quick, "-b 1024", ""),
    trip(
        "options.block_1k_nodelalloc",
        quick,
        "-b 1024",
        "nodelalloc",
    ),
    trip(
        "options.bigalloc",
        quick,
        "-b 4096 -O bigalloc -C 16384",
        "",
    ),
    trip("options.no_journal", quick, "-O ^has_journal", ""),
    trip("options.no_extent", quick, "-O ^extent,^64bit", ""),
    trip("options.inline_data", inline_data, "-O inline_data", ""),
];

/// Three rounds, then a truncation in the middle of a pinned page, then one more, then a remount.
fn quick(context: &Context) -> Result<()> {
    const LEN: u64 = 2 * MIB;
    const CUT: u64 = MIB + 5000;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    for round in 1..=3 {
        pinned.write(round)?;
        pinned.file.sync_all()?;
        pinned.expect_on_disk(context, round)?;
    }
    pinned.file.set_len(CUT)?;
    pinned.write(4)?;
    pinned.file.sync_all()?;
    let stamp = pinned.stamp.round(4);
    context.expect_on_disk(&pinned.file, 0..CUT, stamp)?;
    context.expect_after_power_cut("file", 0..CUT, stamp)?;
    let file = pinned.remount(context, "file")?;
    crate::tap::expect_eq("length", file.metadata()?.len(), CUT)?;
    expect_contents(&file, 0..CUT, stamp)
}

/// A file that lives in its inode leaves it before it is pinned.
fn inline_data(context: &Context) -> Result<()> {
    const LEN: u64 = 56;
    let stamp = Stamp::fresh();
    let file = context.written("file", LEN, stamp, LEN as usize)?;
    if !disk::is_inline(&file)? {
        bail!("the file is not in its inode to begin with");
    }
    let map = Mapping::shared(&file, 0, 4096)?;
    let mut device = Kind::Uring.attach(&map, 0..4096)?;
    for round in 1..=3 {
        let stamp = stamp.round(round);
        device.write(stamp, 0..4096)?;
        file.sync_all()?;
        if disk::is_inline(&file)? {
            bail!("the file is still in its inode");
        }
        context.expect_on_disk(&file, 0..LEN, stamp)?;
        context.expect_after_power_cut("file", 0..LEN, stamp)?;
    }
    file.set_len(4 * KIB)?;
    device.write(stamp.round(4), 0..4096)?;
    file.sync_all()?;
    context.expect_on_disk(&file, 0..4096, stamp.round(4))
}
