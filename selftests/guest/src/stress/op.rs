// SPDX-License-Identifier: GPL-2.0

//! What a history is made of.
//!
//! Steps say absolute offsets, so that a step means the same after others before it were left out. One
//! that can't be done any more (no such pin, nothing mapped) is passed over.

use serde::{Deserialize, Serialize};

/// The largest file, in bytes.
pub const FILE_MAX: u64 = 256 << 10;
/// The most bytes that one step writes or reads.
pub const IO_MAX: u64 = 64 << 10;
/// Registered buffers of each file.
pub const SLOTS: usize = 4;

/// One step of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The file that it is about, for those that are about one.
    pub file: usize,
    /// What is done.
    #[serde(flatten)]
    pub op: Op,
}

/// The calls that put data on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncCall {
    /// fsync(2).
    Fsync,
    /// fdatasync(2).
    Fdatasync,
    /// msync(2) of all that is mapped, fsync(2) if nothing is.
    Msync,
    /// sync(2): all files.
    Sync,
    /// syncfs(2): all files.
    Syncfs,
    /// sync_file_range(2), waiting, and then fsync(2), since it writes no metadata.
    RangeThenFsync,
}

impl SyncCall {
    /// All of them.
    pub const ALL: [SyncCall; 6] = [
        SyncCall::Fsync,
        SyncCall::Fdatasync,
        SyncCall::Msync,
        SyncCall::Sync,
        SyncCall::Syncfs,
        SyncCall::RangeThenFsync,
    ];
}

/// What one step does. `at` and `len` are bytes of the file, `data` is where in the pattern the bytes
/// come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// A device writes through a pin.
    Dma {
        slot: usize,
        at: u64,
        len: u64,
        data: u64,
    },
    /// A store through the mapping.
    Store { at: u64, len: u64, data: u64 },
    /// write(2).
    Write { at: u64, len: u64, data: u64 },
    /// write(2) with O_DIRECT.
    WriteDirect { at: u64, len: u64, data: u64 },
    /// read(2), compared.
    Read { at: u64, len: u64 },
    /// read(2) with O_DIRECT, compared.
    ReadDirect { at: u64, len: u64 },
    /// ftruncate(2).
    Truncate { len: u64 },
    /// fallocate(2).
    Allocate { at: u64, len: u64, keep_size: bool },
    /// fallocate(2), punch hole.
    Punch { at: u64, len: u64 },
    /// fallocate(2), zero range.
    Zero { at: u64, len: u64, keep_size: bool },
    /// fallocate(2), collapse range: refused while there are pins.
    Collapse { at: u64, len: u64 },
    /// fallocate(2), insert range: refused while there are pins.
    Insert { at: u64, len: u64 },
    /// mmap(2); `random` for a folio to each page.
    Map { random: bool },
    /// munmap(2). Pins stay.
    Unmap,
    /// Registers a range for writing.
    Pin { slot: usize, at: u64, len: u64 },
    /// Drops a registration.
    Unpin { slot: usize },
    /// posix_fadvise(2), DONTNEED: starts writeback, and drops what is clean.
    Forget { at: u64, len: u64 },
    /// Drops all clean pages and slabs.
    DropCaches,
    /// Clones the file to another one, whose contents must stay.
    Clone,
    /// Syncs and compares with the disk.
    Sync { how: SyncCall },
    /// Unlinks the file and creates it anew. Its pins stay, on pages of no file.
    Replace,
    /// Freezes the filesystem, compares with the disk, thaws.
    Freeze,
    /// Images the disk as after a power cut, and mounts the image.
    PowerCut { how: SyncCall },
    /// Unmounts, checks, mounts. Pins that are kept end on pages of no file.
    Remount { keep_pins: bool },
}

impl Op {
    /// A name for the count of what was done.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Dma { .. } => "dma",
            Op::Store { .. } => "store",
            Op::Write { .. } => "write",
            Op::WriteDirect { .. } => "write_direct",
            Op::Read { .. } => "read",
            Op::ReadDirect { .. } => "read_direct",
            Op::Truncate { .. } => "truncate",
            Op::Allocate { .. } => "allocate",
            Op::Punch { .. } => "punch",
            Op::Zero { .. } => "zero",
            Op::Collapse { .. } => "collapse",
            Op::Insert { .. } => "insert",
            Op::Map { .. } => "map",
            Op::Unmap => "unmap",
            Op::Pin { .. } => "pin",
            Op::Unpin { .. } => "unpin",
            Op::Forget { .. } => "forget",
            Op::DropCaches => "drop_caches",
            Op::Clone => "clone",
            Op::Sync { .. } => "sync",
            Op::Replace => "replace",
            Op::Freeze => "freeze",
            Op::PowerCut { .. } => "power_cut",
            Op::Remount { .. } => "remount",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_survives_the_journey() {
        let step = Step {
            file: 2,
            op: Op::Dma {
                slot: 1,
                at: 4097,
                len: 3,
                data: 77,
            },
        };
        let line = serde_json::to_string(&step).unwrap();
        assert_eq!(
            line,
            r#"{"file":2,"op":"dma","slot":1,"at":4097,"len":3,"data":77}"#
        );
        assert_eq!(serde_json::from_str::<Step>(&line).unwrap(), step);
        let unit = r#"{"file":0,"op":"unmap"}"#;
        assert_eq!(serde_json::from_str::<Step>(unit).unwrap().op, Op::Unmap);
    }
}
