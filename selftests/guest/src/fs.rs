// SPDX-License-Identifier: GPL-2.0

//! The filesystems that the tests run on.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::btrfs;
use crate::disk::RawDisk;

/// What differs from one filesystem to the next.
pub trait FsKind: Sync {
    /// The name that mount(2) knows.
    fn name(&self) -> &'static str;
    /// The command that makes a filesystem of `size` bytes on `device`.
    fn mkfs(&self, device: &Path, size: u64, options: &[String]) -> Command;
    /// The command that exits with 0 if the unmounted filesystem is sound, and changes nothing.
    fn check(&self, device: &Path) -> Command;
    /// Fails unless what is mounted at `root` is sound, in memory and on disk. Some can be looked at offline
    /// only, by [`FsKind::check`].
    fn scrub(&self, _root: &Path) -> Result<()> {
        Ok(())
    }
    /// True if on the disk there are zeroes between the end of a file and that of its last block. It will do
    /// to zero them when the block is read and when the file grows.
    fn zeroes_tails(&self) -> bool {
        true
    }
    /// Bytes of the largest folio of a file that it asks for.
    fn largest_folio(&self) -> u64 {
        2 << 20
    }
    /// What it logs as errors if it finds data other than was written.
    fn complaints(&self) -> &'static [&'static str] {
        &[]
    }
    /// Makes a directory `name` in `root` with a copy of the file that shares its blocks; false if there is no
    /// such thing here.
    fn copy(&self, _root: &Path, _file: &str, _name: &str) -> Result<bool> {
        Ok(false)
    }
    /// Removes such a directory.
    fn remove_copy(&self, directory: &Path) -> Result<()> {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))
    }
    /// Mount options that every test has.
    fn mount_options(&self) -> &'static str {
        ""
    }
    /// True if all that a mount needs after a power cut is the mount itself: without a journal there is
    /// work for fsck.
    fn recovers(&self, _disk: &RawDisk) -> Result<bool> {
        Ok(true)
    }
    /// True if, mounted like this, a file may have stale blocks after a power cut where it was not synced.
    fn exposes_stale_blocks(&self, _mount_options: &str) -> bool {
        false
    }
    /// True if a direct read may reach beyond the end of the file. XFS has reserved blocks there at times, and
    /// fails a direct read that meets them.
    fn reads_directly_past_eof(&self) -> bool {
        true
    }
    /// Ways to make and mount it in which writeback or the journal goes another way; mkfs and mount
    /// options.
    fn variants(&self) -> &'static [(&'static str, &'static str)];
}

struct Ext4;

impl FsKind for Ext4 {
    fn name(&self) -> &'static str {
        "ext4"
    }

    fn mkfs(&self, device: &Path, size: u64, options: &[String]) -> Command {
        let mut command = Command::new("mkfs.ext4");
        // The device was zeroed, so neither the journal nor the inode tables need it.
        command
            .args(["-q", "-F", "-E"])
            .arg("nodiscard,lazy_itable_init=1,lazy_journal_init=1")
            .args(options)
            .arg(device)
            .arg(format!("{}k", size / 1024));
        command
    }

    fn check(&self, device: &Path) -> Command {
        let mut command = Command::new("e2fsck");
        command.args(["-f", "-n"]).arg(device);
        command
    }

    fn mount_options(&self) -> &'static str {
        "noinit_itable"
    }

    fn recovers(&self, disk: &RawDisk) -> Result<bool> {
        // s_feature_compat of the superblock; EXT4_FEATURE_COMPAT_HAS_JOURNAL
        let features = disk.read(1024 + 0x5c..1024 + 0x60)?;
        Ok(features[0] & 0x4 != 0)
    }

    fn exposes_stale_blocks(&self, mount_options: &str) -> bool {
        mount_options
            .split(',')
            .any(|option| option == "data=writeback")
    }

    fn variants(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("", ""),
            ("-O fast_commit", ""),
            ("", "data=writeback"),
            ("", "nodelalloc"),
            ("-b 1024", ""),
            ("", "data=writeback,nodelalloc"),
            ("-O bigalloc -C 16384", ""),
            ("", "dioread_lock"),
            ("-b 1024 -O fast_commit", "nodelalloc"),
            ("", "discard"),
        ]
    }
}

struct Xfs;

impl FsKind for Xfs {
    fn name(&self) -> &'static str {
        "xfs"
    }

    fn mkfs(&self, device: &Path, size: u64, options: &[String]) -> Command {
        let mut command = Command::new("mkfs.xfs");
        // Smaller than XFS is meant to be: without these it refuses to.
        for name in ["TEST_DIR", "TEST_DEV", "QA_CHECK_FS"] {
            command.env(name, "1");
        }
        command
            .args(["-q", "-f", "-K", "--unsupported", "-d"])
            .arg(format!("size={size}"))
            .args(options)
            .arg(device);
        command
    }

    fn check(&self, device: &Path) -> Command {
        let mut command = Command::new("xfs_repair");
        // The geometry of a filesystem with one allocation group can't be compared with that of another.
        command.args(["-n", "-o", "force_geometry"]).arg(device);
        command
    }

    fn scrub(&self, root: &Path) -> Result<()> {
        run(Command::new("xfs_scrub").arg("-n").arg(root)).map(drop)
    }

    fn copy(&self, root: &Path, file: &str, name: &str) -> Result<bool> {
        let directory = root.join(name);
        fs::create_dir(&directory)?;
        clone_file(
            &File::open(root.join(file))?,
            &File::create(directory.join(file))?,
        )?;
        Ok(true)
    }

    fn mount_options(&self) -> &'static str {
        // The image of a disk has the same UUID as the disk, which may still be mounted.
        "nouuid"
    }

    fn reads_directly_past_eof(&self) -> bool {
        false
    }

    fn variants(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("", ""),
            ("-m reflink=0", ""),
            ("-b size=1024", ""),
            ("-d extszinherit=4", ""),
            ("-m rmapbt=1", ""),
            ("-d cowextsize=4", ""),
            ("-b size=1024 -m rmapbt=1", ""),
            ("", "allocsize=64k"),
            ("", "wsync"),
            ("", "discard"),
        ]
    }
}

struct Btrfs;

/// Below this there is not enough room for two copies of metadata, and below that not for block groups of
/// its own.
const BTRFS_DUP_SIZE: u64 = 128 << 20;
const BTRFS_SINGLE_SIZE: u64 = 48 << 20;

impl FsKind for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn mkfs(&self, device: &Path, size: u64, options: &[String]) -> Command {
        let mut command = Command::new("mkfs.btrfs");
        command.args(["-q", "-f", "-K"]);
        if size < BTRFS_SINGLE_SIZE {
            command.arg("-M");
        } else if size < BTRFS_DUP_SIZE {
            command.args(["-m", "single"]);
        }
        command
            .args(options)
            .args(["-b", &size.to_string()])
            .arg(device);
        command
    }

    fn check(&self, device: &Path) -> Command {
        let mut command = Command::new("btrfs");
        command
            .args(["check", "--readonly", "--check-data-csum"])
            .arg(device);
        command
    }

    fn scrub(&self, root: &Path) -> Result<()> {
        // -B waits, -r repairs nothing, -R counts errors by kind. Some versions exit with 0 all the same.
        let said = btrfs::command(&["scrub", "start", "-B", "-r", "-R"], &[root])?;
        let bad = said.lines().map(str::trim).find(|line| {
            line.split_once(":")
                .is_some_and(|(name, count)| name.ends_with("_errors") && count.trim() != "0")
        });
        match bad {
            Some(bad) => bail!("scrub: {bad}"),
            None => Ok(()),
        }
    }

    fn zeroes_tails(&self) -> bool {
        false
    }

    fn largest_folio(&self) -> u64 {
        // 64 blocks
        256 << 10
    }

    fn complaints(&self) -> &'static [&'static str] {
        &["BTRFS error", "BTRFS warning"]
    }

    fn copy(&self, root: &Path, _file: &str, name: &str) -> Result<bool> {
        btrfs::snapshot(root, &root.join(name), false)?;
        Ok(true)
    }

    fn remove_copy(&self, directory: &Path) -> Result<()> {
        btrfs::command(&["subvolume", "delete"], &[directory]).map(drop)
    }

    fn variants(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("", ""),
            ("", "notreelog"),
            ("", "compress-force=zstd"),
            ("", "nodatasum"),
            ("-O ^no-holes", ""),
            ("", "flushoncommit"),
            ("", "autodefrag"),
            ("-n 4096", "max_inline=0"),
            ("-R quota", ""),
        ]
    }
}

/// The filesystem of that name.
pub fn by_name(name: &str) -> Result<&'static dyn FsKind> {
    match name {
        "ext4" => Ok(&Ext4),
        "xfs" => Ok(&Xfs),
        "btrfs" => Ok(&Btrfs),
        _ => bail!("no tests for filesystem {name}"),
    }
}

/// Runs a command; its output becomes part of the error if it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, text.trim_end());
    }
    Ok(text)
}

/// Freezes the filesystem that `root` is on, does something, and thaws it.
pub fn while_frozen<T>(root: &Path, body: impl FnOnce() -> T) -> io::Result<T> {
    const FIFREEZE: libc::c_ulong = 0xc004_5877;
    const FITHAW: libc::c_ulong = 0xc004_5878;
    let root = File::open(root)?;
    let call = |request: libc::c_ulong| {
        // SAFETY: the descriptor is open; neither request looks at its argument.
        match unsafe { libc::ioctl(root.as_raw_fd(), request as _, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    call(FIFREEZE)?;
    let done = body();
    call(FITHAW)?;
    Ok(done)
}

/// Makes all of `to` share the blocks of `from`.
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    const FICLONE: libc::c_ulong = 0x4004_9409;
    // SAFETY: the argument is a descriptor that is open.
    match unsafe { libc::ioctl(to.as_raw_fd(), FICLONE as _, from.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// sync(2): everything that is dirty, on all filesystems. It tells no errors.
pub fn sync() {
    // SAFETY: sync has no arguments.
    unsafe { libc::sync() };
}

/// Drops all that can be dropped from page cache and slabs.
pub fn drop_caches() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches")
}

/// Joins mount options that may be empty.
pub fn join_options(options: &[&str]) -> String {
    let some: Vec<&str> = options.iter().copied().filter(|o| !o.is_empty()).collect();
    some.join(",")
}

/// Mounts `device` on `directory`.
pub fn mount(device: &Path, directory: &Path, kind: &str, options: &str) -> Result<()> {
    let mut command = Command::new("mount");
    command.args(["-t", kind]);
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    run(command.arg(device).arg(directory)).map(|_| ())
}

/// A file that is a block device until this is dropped.
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Sets it up. Not by `mount -o loop`: that holds the device open for writing while it mounts, which
    /// a kernel without CONFIG_BLK_DEV_WRITE_MOUNTED refuses.
    pub fn new(image: &Path) -> Result<Self> {
        let path = run(Command::new("losetup").args(["-f", "--show"]).arg(image))?;
        Ok(Self(path.trim().into()))
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run(Command::new("losetup").arg("-d").arg(&self.0));
    }
}

/// Unmounts `directory`. A ring or a memory region of a process that has just died may hold it for a
/// moment.
pub fn unmount(directory: &Path) -> Result<()> {
    let path = CString::new(directory.as_os_str().as_encoded_bytes())?;
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        // SAFETY: `path` is a C string.
        if unsafe { libc::umount2(path.as_ptr(), 0) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= end {
            return Err(error).with_context(|| format!("cannot unmount {}", directory.display()));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Detaches `directory` whatever uses it; for cleaning up after a failure.
pub fn detach(directory: &Path) {
    if let Ok(path) = CString::new(directory.as_os_str().as_encoded_bytes()) {
        // SAFETY: `path` is a C string.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}
