// SPDX-License-Identifier: GPL-2.0

//! Which memory node pages are on, and how to have them moved. Two nodes are there with `numa=fake=2` on
//! the kernel's command line.

use std::fs;
use std::io;
use std::path::Path;
use std::ptr;

use anyhow::{bail, Context, Result};

use crate::map::{Mapping, PAGE};
use crate::tap::skip;

/// The two nodes that pages are moved between.
pub const NODES: [i32; 2] = [0, 1];

// <linux/mempolicy.h>
const MPOL_MF_MOVE: libc::c_int = 1 << 1;
const MPOL_MF_MOVE_ALL: libc::c_int = 1 << 2;

/// Skips the test unless pages can be moved from node to node.
pub fn require() -> Result<()> {
    if move_pages(&Mapping::anonymous(PAGE)?, None).is_err() {
        return skip("no move_pages(2): CONFIG_NUMA_MIGRATION is off");
    }
    for node in NODES {
        if !Path::new(&format!("/sys/devices/system/node/node{node}")).exists() {
            return skip("one memory node only; numa=fake=2 makes two");
        }
    }
    Ok(())
}

fn addresses(map: &Mapping) -> Vec<usize> {
    (0..map.len())
        .step_by(PAGE)
        .map(|offset| map.address() + offset)
        .collect()
}

/// move_pages(2) of all pages of `map`, to `nodes` or, without it, nowhere. Returns the state of each
/// page: its node, or an error below zero.
fn move_pages(map: &Mapping, nodes: Option<&[i32]>) -> Result<Vec<i32>> {
    let pages = addresses(map);
    let mut status = vec![0i32; pages.len()];
    // SAFETY: the arrays have the length that is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_ptr(),
            nodes.map_or(ptr::null(), <[i32]>::as_ptr),
            status.as_mut_ptr(),
            MPOL_MF_MOVE_ALL,
        )
    };
    match done {
        // More than zero is the number of pages that could not be moved.
        0.. => Ok(status),
        _ => Err(io::Error::last_os_error()).context("move_pages"),
    }
}

/// The node of each page of `map`, or an error below zero for a page that is not there.
pub fn nodes(map: &Mapping) -> Result<Vec<i32>> {
    move_pages(map, None)
}

/// Asks for all pages of `map` to be moved to `node`. Returns how many are there then.
pub fn migrate(map: &Mapping, node: i32) -> Result<usize> {
    move_pages(map, Some(&vec![node; map.len() / PAGE]))?;
    Ok(nodes(map)?.into_iter().filter(|&on| on == node).count())
}

/// Binds `map` to `node` by mbind(2), which moves its pages there. Returns how many are there then.
pub fn bind(map: &Mapping, node: i32) -> Result<usize> {
    let mask: libc::c_ulong = 1 << node;
    // SAFETY: the range is the mapping; the mask has more bits than are said to count.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            map.address(),
            map.len(),
            libc::MPOL_BIND,
            &mask,
            libc::c_ulong::BITS as usize,
            MPOL_MF_MOVE,
        )
    };
    if done != 0 {
        bail!("mbind: {}", io::Error::last_os_error());
    }
    Ok(nodes(map)?.into_iter().filter(|&on| on == node).count())
}

/// Has the kernel compact all memory.
pub fn compact() -> Result<()> {
    fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")
}
