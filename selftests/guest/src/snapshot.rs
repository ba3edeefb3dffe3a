// SPDX-License-Identifier: GPL-2.0

//! Snapshots of a disk below its filesystem, by the device mapper, as LVM takes them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::fs::LoopDevice;
use crate::layer::dmsetup;

/// What filesystem and snapshot have in common.
const BASE: &str = "pinwb-base";
/// What is mounted.
pub const ORIGIN: &str = "pinwb-origin";
const SNAPSHOT: &str = "pinwb-snapshot";

fn mapped(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// Sets up the device that snapshots can be taken of, over the first `size` bytes of a disk.
pub fn set_up(disk: &Path, size: u64) -> Result<PathBuf> {
    let sectors = size / 512;
    let table = format!("0 {sectors} linear {} 0", disk.display());
    dmsetup(&["create", BASE, "--table", &table])?;
    let table = format!("0 {sectors} snapshot-origin {}", mapped(BASE).display());
    dmsetup(&["create", ORIGIN, "--table", &table])?;
    Ok(mapped(ORIGIN))
}

/// Takes it away.
pub fn tear_down() {
    // A test that was killed may have left the filesystem frozen.
    let _ = dmsetup(&["resume", ORIGIN]);
    for name in [SNAPSHOT, ORIGIN, BASE] {
        let _ = dmsetup(&["remove", "--retry", name]);
    }
}

/// A snapshot; there can be one at a time.
pub struct Snapshot {
    _changes: LoopDevice,
    file: PathBuf,
}

impl Snapshot {
    /// Freezes the filesystem, takes a snapshot of its `size` bytes, and thaws it. What changes later is
    /// kept in `directory`.
    pub fn take(size: u64, directory: &Path) -> Result<Self> {
        let file = directory.join("snapshot-changes.img");
        File::create(&file)?.set_len(size + (size >> 3))?;
        let changes = LoopDevice::new(&file)?;
        let table = format!(
            "0 {} snapshot {} {} N 8",
            size / 512,
            mapped(BASE).display(),
            changes.path().display()
        );
        dmsetup(&["suspend", ORIGIN])?;
        let created = dmsetup(&["create", SNAPSHOT, "--table", &table]);
        dmsetup(&["resume", ORIGIN])?;
        created?;
        Ok(Self {
            _changes: changes,
            file,
        })
    }

    /// The device with what was there at the moment.
    pub fn path(&self) -> PathBuf {
        mapped(SNAPSHOT)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // The origin has to be at rest while its snapshot goes.
        let _ = dmsetup(&["suspend", ORIGIN]);
        let _ = dmsetup(&["remove", "--retry", SNAPSHOT]);
        let _ = dmsetup(&["resume", ORIGIN]);
        let _ = fs::remove_file(&self.file);
    }
}
