// SPDX-License-Identifier: GPL-2.0

//! The command `btrfs`, and where btrfs has what: its extent maps tell addresses of its own, which the chunk tree maps to devices.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::fs::run;

/// Runs `btrfs` with the arguments, and what they are about.
pub fn command(arguments: &[&str], objects: &[&Path]) -> Result<String> {
    run(Command::new("btrfs").args(arguments).args(objects))
}

/// Makes a snapshot of a subvolume.
pub fn snapshot(subvolume: &Path, name: &Path, read_only: bool) -> Result<()> {
    let mut arguments = vec!["subvolume", "snapshot"];
    if read_only {
        arguments.push("-r");
    }
    command(&arguments, &[subvolume, name]).map(drop)
}

/// Stretches of the filesystem's address space, in order.
pub struct Chunks(Vec<Chunk>);

struct Chunk {
    start: u64,
    len: u64,
    /// Where its first copy is on the first device.
    physical: u64,
    kind: u64,
}

/// struct btrfs_ioctl_search_args
#[repr(C)]
struct SearchArgs {
    tree_id: u64,
    objectids: [u64; 2],
    offsets: [u64; 2],
    transids: [u64; 2],
    types: [u32; 2],
    items: u32,
    unused: u32,
    unused_more: [u64; 4],
    buffer: [u8; 3992],
}

const CHUNK_TREE: u64 = 3;
const FIRST_CHUNK_TREE: u64 = 256;
const CHUNK_ITEM: u32 = 228;
const HEADER_LEN: usize = 32;
const CHUNK_LEN: usize = 48;
const DATA: u64 = 1;
/// Data, system and metadata.
const KINDS: u64 = 7;
/// Profiles that stripe: a file's bytes alternate between places.
const STRIPED: u64 = 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8;

/// True if the file is on btrfs.
pub fn is_home_of(file: &File) -> io::Result<bool> {
    const BTRFS_SUPER_MAGIC: u64 = 0x9123_683e;
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open, and there is room for the answer.
    if unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in by the call, which succeeded.
    Ok(unsafe { found.assume_init() }.f_type as u64 == BTRFS_SUPER_MAGIC)
}

impl Chunks {
    /// Those of the filesystem that `file` is on.
    pub fn of(file: &File) -> Result<Self> {
        const BTRFS_IOC_TREE_SEARCH: libc::c_ulong = 0xd000_9411;
        let mut chunks = Vec::new();
        let mut next = 0;
        loop {
            let mut args = SearchArgs {
                tree_id: CHUNK_TREE,
                objectids: [FIRST_CHUNK_TREE; 2],
                offsets: [next, u64::MAX],
                transids: [0, u64::MAX],
                types: [CHUNK_ITEM; 2],
                items: u32::MAX,
                unused: 0,
                unused_more: [0; 4],
                buffer: [0; 3992],
            };
            // SAFETY: the structure is the one that the request takes and fills in.
            let done =
                unsafe { libc::ioctl(file.as_raw_fd(), BTRFS_IOC_TREE_SEARCH as _, &mut args) };
            if done != 0 {
                return Err(io::Error::last_os_error()).context("cannot search the chunk tree");
            }
            if args.items == 0 {
                return Ok(Self(chunks));
            }
            let mut rest = &args.buffer[..];
            for _ in 0..args.items {
                let (header, after) = rest.split_at(HEADER_LEN);
                let start = number(header, 16);
                let len = u32::from_le_bytes(header[28..32].try_into().expect("4 bytes")) as usize;
                chunks.push(Chunk::parse(start, &after[..len])?);
                next = start + 1;
                rest = &after[len..];
            }
        }
    }

    /// The place on the device of an address.
    pub fn on_device(&self, address: u64) -> Result<u64> {
        self.0
            .iter()
            .find(|chunk| (chunk.start..chunk.start + chunk.len).contains(&address))
            .map(|chunk| chunk.physical + (address - chunk.start))
            .with_context(|| format!("no chunk has address {address}"))
    }

    /// The places of data and of nothing else.
    pub fn of_data(&self) -> Vec<Range<u64>> {
        let of_data = self.0.iter().filter(|chunk| chunk.kind & KINDS == DATA);
        of_data
            .map(|chunk| chunk.physical..chunk.physical + chunk.len)
            .collect()
    }
}

impl Chunk {
    fn parse(start: u64, item: &[u8]) -> Result<Self> {
        let kind = number(item, 24);
        if kind & STRIPED != 0 {
            bail!("the chunk at {start} is striped");
        }
        Ok(Self {
            start,
            len: number(item, 0),
            physical: number(item, CHUNK_LEN + 8),
            kind,
        })
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_size_of_the_request() {
        assert_eq!(std::mem::size_of::<SearchArgs>(), 4096);
    }

    #[test]
    fn addresses_are_mapped_by_their_chunk() {
        let mut item = vec![0; CHUNK_LEN + 32];
        item[..8].copy_from_slice(&1000_u64.to_le_bytes());
        item[CHUNK_LEN + 8..CHUNK_LEN + 16].copy_from_slice(&7000_u64.to_le_bytes());
        let chunks = Chunks(vec![Chunk::parse(5000, &item).unwrap()]);
        assert_eq!(chunks.on_device(5000).unwrap(), 7000);
        assert_eq!(chunks.on_device(5999).unwrap(), 7999);
        assert!(chunks.on_device(6000).is_err());
        item[24] = 1 << 3;
        assert!(Chunk::parse(5000, &item).is_err());
    }
}
