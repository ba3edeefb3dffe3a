// SPDX-License-Identifier: GPL-2.0

//! Quota: what writeback has to allocate under a pin counts as anything else does.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result};

use super::common::{fallocate, KIB, MIB};
use super::errors::{expect_kept, expect_sync_fails, in_large_folios};
use crate::context::Context;
use crate::tap::{Invariant, Test};

use Invariant::{I1, I4, I6};

pub const TESTS: &[Test] = &[
    Test::new("quota.user", |c| in_writeback(c, Quota::User))
        .only("ext4")
        .made("-O quota", "usrquota")
        .proves(&[I1, I4, I6])
        .without("no_hole_alloc"),
    Test::new("quota.project", |c| in_writeback(c, Quota::Project))
        .only("ext4")
        .made("-I 256 -O quota,project", "prjquota")
        .proves(&[I1, I4, I6])
        .without("no_hole_alloc"),
];

/// The kinds of quota.
#[derive(Clone, Copy)]
enum Quota {
    User,
    Project,
}

/// A user, or project, that owns nothing else.
const ID: u32 = 4711;

impl Quota {
    /// Makes the file count against [`ID`].
    fn charge(self, file: &File) -> Result<()> {
        match self {
            Quota::User => std::os::unix::fs::fchown(file, Some(ID), None).context("fchown"),
            Quota::Project => set_project(file, ID).context("cannot set the project"),
        }
    }

    fn call(self, file: &File, command: i32, limits: &mut libc::dqblk) -> io::Result<()> {
        let kind = match self {
            Quota::User => 0,
            Quota::Project => 2,
        };
        // SAFETY: the structure is what both commands take; the descriptor is open.
        let done = unsafe {
            libc::syscall(
                libc::SYS_quotactl_fd,
                file.as_raw_fd(),
                libc::QCMD(command, kind),
                ID,
                std::ptr::from_mut(limits),
            )
        };
        match done {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Permits so many bytes more than are in use.
    fn permit(self, file: &File, more: u64) -> Result<()> {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut limits: libc::dqblk = unsafe { std::mem::zeroed() };
        self.call(file, libc::Q_GETQUOTA, &mut limits)
            .context("cannot read the quota")?;
        limits.dqb_bhardlimit = limits.dqb_curspace.div_ceil(KIB) + more / KIB;
        limits.dqb_bsoftlimit = 0;
        limits.dqb_valid = libc::QIF_BLIMITS;
        self.call(file, libc::Q_SETQUOTA, &mut limits)
            .context("cannot set the quota")
    }
}

#[repr(C)]
#[derive(Default)]
struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

fn set_project(file: &File, project: u32) -> io::Result<()> {
    const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
    const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
    let mut attributes = FileAttributes::default();
    // SAFETY: the structure is `struct fsxattr`, which both calls take.
    unsafe {
        if libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR as _, &mut attributes) == 0 {
            attributes.project = project;
            if libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR as _, &attributes) == 0 {
                return Ok(());
            }
        }
    }
    Err(io::Error::last_os_error())
}

/// Gives up the right to exceed limits, for good: it exempts from quota.
fn become_bound_by_limits() -> Result<()> {
    const CAP_SYS_RESOURCE: u32 = 24;
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    // Effective, permitted and inheritable, twice.
    let mut sets = [0u32; 6];
    // SAFETY: the kernel reads a header and writes, and reads, two sets of three words.
    let done = unsafe {
        libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) == 0 && {
            sets[0] &= !(1 << CAP_SYS_RESOURCE);
            libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) == 0
        }
    };
    if !done {
        return Err(io::Error::last_os_error()).context("cannot give up CAP_SYS_RESOURCE");
    }
    Ok(())
}

/// A hole under a pin may not be filled for want of quota: fsync says so, and stores what the device wrote
/// when there is quota again.
fn in_writeback(context: &Context, quota: Quota) -> Result<()> {
    become_bound_by_limits()?;
    let len = 2 * MIB;
    let mut pinned = in_large_folios(context, "file", len)?;
    quota.charge(&pinned.file)?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(&pinned.file, mode, 256 * KIB..768 * KIB).context("punch")?;
    quota.permit(&pinned.file, 0)?;
    pinned.map.touch();
    pinned.write(1)?;
    expect_sync_fails(&pinned.file, &[libc::EDQUOT], "without quota")?;
    expect_kept(&pinned, 1, "without quota")?;
    pinned.write(2)?;
    expect_sync_fails(&pinned.file, &[libc::EDQUOT], "still without quota")?;
    expect_kept(&pinned, 2, "still without quota")?;
    // What has blocks is written in spite of what has not.
    context.expect_on_disk(&pinned.file, 0..256 * KIB, pinned.stamp.round(2))?;
    context.expect_on_disk(&pinned.file, 768 * KIB..len, pinned.stamp.round(2))?;
    quota.permit(&pinned.file, MIB)?;
    pinned.file.sync_all().context("fsync with quota again")?;
    pinned.expect_on_disk(context, 2)?;
    context.expect_after_power_cut("file", 0..len, pinned.stamp.round(2))
}
