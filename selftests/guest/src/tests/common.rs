// SPDX-License-Identifier: GPL-2.0

//! Steps that many tests share.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use crate::beside::beside_steps;
use crate::context::Context;
use crate::device::{errno, Dma, Kind};
use crate::diag;
use crate::fs::{run, sync};
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::uring;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

/// The calls after which data is on the disk.
#[derive(Clone, Copy, Debug)]
pub enum Flush {
    Fsync,
    Fdatasync,
    Msync,
    Syncfs,
    Sync,
    /// fsync(2) that finds writeback under way.
    FsyncOfStarted,
    /// sync_file_range(2) that writes and waits, which is enough for blocks that exist.
    FileRange,
    RingFsync,
    RingDatasync,
    /// fsync(2) of the same file, opened anew.
    OtherDescriptor,
    /// fsync(2) of another name of the file.
    OtherName,
    OtherProcess,
}

impl Flush {
    /// Those that take a path of their own into the kernel.
    pub const ALL: [Flush; 5] = [
        Flush::Fsync,
        Flush::Msync,
        Flush::Syncfs,
        Flush::Sync,
        Flush::Fdatasync,
    ];

    /// All there are.
    pub const EVERY: [Flush; 12] = [
        Flush::Fsync,
        Flush::FileRange,
        Flush::FsyncOfStarted,
        Flush::Msync,
        Flush::RingFsync,
        Flush::Syncfs,
        Flush::OtherDescriptor,
        Flush::Fdatasync,
        Flush::RingDatasync,
        Flush::OtherName,
        Flush::Sync,
        Flush::OtherProcess,
    ];

    pub fn call(self, file: &File, map: &Mapping) -> Result<()> {
        match self {
            Flush::Fsync => file.sync_all(),
            Flush::Fdatasync => file.sync_data(),
            Flush::Msync => map.sync(),
            // SAFETY: the descriptor is open.
            Flush::Syncfs => match unsafe { libc::syncfs(file.as_raw_fd()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
            Flush::Sync => {
                sync();
                Ok(())
            }
            Flush::FsyncOfStarted => {
                file_range(file, libc::SYNC_FILE_RANGE_WRITE).and_then(|()| file.sync_all())
            }
            Flush::FileRange => file_range(
                file,
                libc::SYNC_FILE_RANGE_WAIT_BEFORE
                    | libc::SYNC_FILE_RANGE_WRITE
                    | libc::SYNC_FILE_RANGE_WAIT_AFTER,
            ),
            Flush::RingFsync => uring::fsync(file, false),
            Flush::RingDatasync => uring::fsync(file, true),
            Flush::OtherDescriptor => File::open(magic_link(file)).and_then(|file| file.sync_all()),
            Flush::OtherName => sync_other_name(file),
            Flush::OtherProcess => {
                run(Command::new("sync").arg(fs::read_link(magic_link(file))?))?;
                Ok(())
            }
        }
        .with_context(|| format!("{self:?} failed"))
    }
}

fn magic_link(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// sync_file_range(2) of the whole file.
pub fn file_range(file: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn sync_other_name(file: &File) -> io::Result<()> {
    let name = fs::read_link(magic_link(file))?;
    let other = name.with_extension("link");
    fs::hard_link(&name, &other)?;
    let synced = File::open(&other).and_then(|file| file.sync_all());
    fs::remove_file(&other)?;
    synced
}

/// A value under /proc/sys, or elsewhere by its full path, that goes back to what it was when dropped.
pub struct Sysctl {
    path: PathBuf,
    before: String,
}

impl Sysctl {
    pub fn set(name: &str, value: &str) -> Result<Self> {
        Self::set_another(name, name, value)
    }

    /// Sets `name`, which is set back by setting `kept` to what it was: one says in bytes what the other
    /// says in percent.
    pub fn set_another(kept: &str, name: &str, value: &str) -> Result<Self> {
        let directory = Path::new("/proc/sys");
        let path = directory.join(kept);
        let before = fs::read_to_string(&path)?;
        fs::write(directory.join(name), value).with_context(|| format!("cannot set {name}"))?;
        Ok(Self { path, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.before);
    }
}

/// Makes the flusher come by every `wake`, for data that is older than `expire`. It comes once at once, and
/// for everything.
pub fn flusher_interval(expire: Duration, wake: Duration) -> Result<[Sysctl; 2]> {
    let set = |name, time: Duration| Sysctl::set(name, &(time.as_millis() / 10).to_string());
    Ok([
        set("vm/dirty_expire_centisecs", expire)?,
        set("vm/dirty_writeback_centisecs", wake)?,
    ])
}

/// [`flusher_interval`] for who wants it to write all the time.
pub fn busy_flusher() -> Result<[Sysctl; 2]> {
    flusher_interval(Duration::from_millis(100), Duration::from_millis(100))
}

/// A file that is mapped and pinned as a whole.
pub struct Pinned {
    pub device: Box<dyn Dma>,
    pub map: Mapping,
    pub file: File,
    pub stamp: Stamp,
    pub range: Range<u64>,
}

impl Pinned {
    /// Pins all of `file`.
    pub fn new(kind: Kind, file: File, stamp: Stamp) -> Result<Self> {
        let len = file.metadata()?.len();
        let map = Mapping::shared(&file, 0, len as usize)?;
        let device = kind.attach(&map, 0..len)?;
        Ok(Self {
            device,
            map,
            file,
            stamp,
            range: 0..len,
        })
    }

    /// Pins a new file of `len` bytes without any blocks.
    pub fn sparse(context: &Context, kind: Kind, name: &str, len: u64) -> Result<Self> {
        Self::new(kind, context.sparse(name, len)?, Stamp::fresh())
    }

    /// The device writes the whole file.
    pub fn write(&mut self, round: u32) -> Result<()> {
        self.device
            .write(self.stamp.round(round), self.range.clone())
    }

    /// Fails unless the disk has what the round wrote.
    pub fn expect_on_disk(&self, context: &Context, round: u32) -> Result<()> {
        context.expect_on_disk(&self.file, self.range.clone(), self.stamp.round(round))
    }

    /// Unpins, and lets go of the file.
    pub fn release(self) -> Result<()> {
        self.device.unpin()
    }

    /// Unpins, lets go of the file, mounts the filesystem anew, and opens the file by its name.
    pub fn remount(self, context: &Context, name: &str) -> Result<File> {
        self.release()?;
        context.remount()?;
        context.open(name)
    }
}

/// Sets a file's length without closing the way to use `?` on the errno.
pub fn fallocate(file: &File, mode: i32, range: Range<u64>) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    let done = unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            mode,
            range.start as libc::off_t,
            (range.end - range.start) as libc::off_t,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts writing dirty pages back and doesn't wait.
pub fn start_writeback(file: &File) -> Result<()> {
    file_range(file, libc::SYNC_FILE_RANGE_WRITE).context("sync_file_range")
}

/// Fails unless the kernel refuses the pin with EFAULT.
pub fn expect_refused(kind: Kind, map: &Mapping) -> Result<()> {
    match kind.attach(map, 0..map.len() as u64) {
        Ok(_) => bail!("{kind:?} could pin, and should not"),
        Err(error) if errno(&error) == Some(libc::EFAULT) => Ok(()),
        Err(error) => Err(error.context("refused, but not with EFAULT")),
    }
}

/// Waits until `done` says so, up to `limit`.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Calls `sync` again and again while `body` runs.
pub fn while_syncing<T>(
    file: &File,
    sync: impl Fn(&File) -> io::Result<()> + Sync,
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (done, times) = beside_steps(|| Ok(sync(file)?), body)?;
    diag!("written back {times} times meanwhile");
    Ok(done)
}
