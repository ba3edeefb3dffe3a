// SPDX-License-Identifier: GPL-2.0

//! Full disks.

use std::fs::{self, File};

use anyhow::{bail, Context as _, Result};

use super::common::{fallocate, Pinned, KIB, MIB};
use crate::context::Context;
use crate::device::{errno, Kind};
use crate::diag;
use crate::ledger;
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::tap::{skip, Test};

pub const TESTS: &[Test] = &[
    Test::new("errors.enospc_at_pin", enospc_at_pin),
    Test::new("errors.enospc_in_writeback", enospc_in_writeback),
];

/// A file that takes all the space that is left.
fn fill(context: &Context, name: &str) -> Result<()> {
    // SAFETY: sync has no arguments.
    unsafe { libc::sync() };
    let file = context.create(name)?;
    let mut end = 0;
    let mut step = 64 * MIB;
    while step >= KIB {
        match fallocate(&file, 0, end..end + step) {
            Ok(()) => end += step,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                end = file.metadata()?.len().max(end);
                step /= 2;
            }
            Err(error) => return Err(error).context("fallocate"),
        }
    }
    file.sync_all()?;
    diag!("{} KiB taken", end / KIB);
    Ok(())
}

/// A fault that finds no space refuses the pin.
fn enospc_at_pin(context: &Context) -> Result<()> {
    let file = context.sparse("file", MIB)?;
    fill(context, "filler")?;
    let map = Mapping::shared(&file, 0, MIB as usize)?;
    match Kind::Uring.attach(&map, 0..MIB) {
        Ok(_) => bail!("pages without space for their blocks were pinned"),
        Err(error) => match errno(&error) {
            Some(libc::EFAULT | libc::ENOSPC) => diag!("refused: {error:#}"),
            _ => return Err(error),
        },
    }
    ledger::wait_until_empty(5)?;
    fs::remove_file(context.path("filler"))?;
    drop(map);
    let mut pinned = Pinned::new(Kind::Uring, file, Stamp::fresh())?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 1)
}

/// Writeback that finds no space tells fsync and keeps the data; with space it stores them.
fn enospc_in_writeback(context: &Context) -> Result<()> {
    let len = 2 * MIB;
    let stamp = Stamp::fresh();
    let file = context.written("file", len, stamp, len as usize)?;
    let mut pinned = Pinned::new(Kind::Uring, file, stamp)?;
    let pages = ledger::folios_of(&pinned.file)?
        .iter()
        .map(|folio| folio.pages)
        .max();
    if pages < Some(256) {
        return skip("the page cache gave no large folio");
    }
    let hole = 256 * KIB + 512..768 * KIB + 512;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(&pinned.file, mode, hole).context("punch")?;
    fill(context, "filler")?;
    pinned.write(1)?;
    let failed = |file: &File| match file.sync_all() {
        Ok(()) => None,
        Err(error) => {
            diag!("fsync on a full disk: {error}");
            Some(error)
        }
    };
    if failed(&pinned.file).is_none() && context.is_missing(&pinned.file, 0..len)? {
        bail!("fsync returned 0, and part of the file has no block");
    }
    let expected = stamp.round(1).bytes(0, len as usize);
    if pinned.map.load(0, len as usize) != expected {
        bail!("the data is no longer in memory");
    }
    fs::remove_file(context.path("filler"))?;
    // SAFETY: sync has no arguments.
    unsafe { libc::sync() };
    // An error that sync(2) met is reported once; what counts is the call after it.
    let _ = failed(&pinned.file);
    pinned.file.sync_all().context("fsync with space again")?;
    pinned.expect_on_disk(context, 1)?;
    context.expect_after_power_cut("file", 0..len, stamp.round(1))
}
