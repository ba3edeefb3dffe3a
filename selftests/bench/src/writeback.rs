// SPDX-License-Identifier: GPL-2.0

//! Times of fsync(2) in a UML kernel: of a file all of whose pages were written to, without pins and
//! with all of them pinned, and beside them what copying as many bytes takes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use clap::Args;

use crate::gup::Area;
use crate::{file, report, report_end, uml};

#[derive(Args)]
pub struct Options {
    /// How often each is measured, by turns
    #[arg(long, default_value_t = 21)]
    repeats: u32,
    /// MiB that the file has
    #[arg(long, default_value_t = 64)]
    mebibytes: usize,
    /// What UML adds to its command line, after ours
    #[arg(last = true, hide = true)]
    _of_the_kernel: Vec<String>,
}

const CHUNK: usize = 1 << 20;

/// Microseconds of an fsync(2) after every page of the file was written to.
fn rewrite(file: &File, mebibytes: usize, fill: u8) -> Result<u64> {
    let chunk = vec![fill; CHUNK];
    for nth in 0..mebibytes {
        file.write_all_at(&chunk, (nth * CHUNK) as u64)?;
    }
    let start = Instant::now();
    file.sync_all().context("fsync")?;
    Ok(start.elapsed().as_micros() as u64)
}

/// Measures it all.
pub fn measure(options: &Options) -> Result<()> {
    let mebibytes = options.mebibytes;
    let len = mebibytes * CHUNK;
    let ext4 = uml::place().join("ext4");
    file::mount_ext4(&ext4)?;
    let path = file::written(ext4.join("file"), len, CHUNK)?;
    let file = file::open(&path)?;
    file.sync_all()?;
    let from = Area::anonymous(len)?;
    let mut to = Area::anonymous(len)?;

    let [mut unpinned, mut pinned, mut copied] = [const { Vec::new() }; 3];
    for nth in 0..options.repeats {
        unpinned.push(rewrite(&file, mebibytes, nth as u8)?);
        ensure!(file::dirty_bytes()? < CHUNK as u64, "fsync left it dirty");

        let start = Instant::now();
        to.bytes_mut().copy_from_slice(from.bytes());
        copied.push(start.elapsed().as_micros() as u64);

        // Without the mapping, whose pages fsync would write-protect.
        let area = Area::shared(&path, len)?;
        let held = area.pin()?;
        drop(area);
        file.sync_all()?;
        pinned.push(rewrite(&file, mebibytes, !nth as u8)?);
        ensure!(
            file::dirty_bytes()? >= len as u64,
            "not all of it was pinned"
        );
        drop(held);
        file.sync_all()?;
    }
    let more: Vec<u64> = pinned
        .iter()
        .zip(&unpinned)
        .map(|(pinned, unpinned)| pinned.saturating_sub(*unpinned))
        .collect();
    report("unpinned", "us", &unpinned);
    report("pinned", "us", &pinned);
    report("memcpy", "us", &copied);
    report("more", "us", &more);
    report_end();
    Ok(())
}
