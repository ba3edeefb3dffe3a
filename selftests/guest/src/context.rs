// SPDX-License-Identifier: GPL-2.0

//! What a test gets: a mounted filesystem, and ways to look below it.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context as _, Result};

use crate::diag;
use crate::disk::{self, Place, RawDisk};
use crate::fs::{self as filesystem, FsKind, LoopDevice};
use crate::stamp::{self, Stamp};

/// A mounted filesystem and the device that it is on.
pub struct Context {
    kind: &'static dyn FsKind,
    work: PathBuf,
    device: PathBuf,
    size: u64,
    mount_options: String,
    /// The device as it is below all caches; none for a test without a filesystem.
    raw: Option<RawDisk>,
}

impl Context {
    /// Describes what the runner has set up.
    pub fn new(
        kind: &'static dyn FsKind,
        work: &Path,
        device: Option<(&Path, &Path, u64)>,
        mount_options: &str,
    ) -> Result<Self> {
        let (device, raw, size) = match device {
            Some((device, raw, size)) => (device.to_owned(), Some(RawDisk::open(raw)?), size),
            None => (PathBuf::new(), None, 0),
        };
        Ok(Self {
            kind,
            work: work.to_owned(),
            device,
            size,
            mount_options: mount_options.to_owned(),
            raw,
        })
    }

    /// The name of a file on the filesystem under test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.work.join("mnt").join(name)
    }

    /// The root of the filesystem under test.
    pub fn root(&self) -> PathBuf {
        self.work.join("mnt")
    }

    /// Creates a file on the filesystem under test.
    pub fn create(&self, name: &str) -> Result<File> {
        create(&self.path(name))
    }

    /// A new file that is all hole.
    pub fn sparse(&self, name: &str, len: u64) -> Result<File> {
        let file = self.create(name)?;
        file.set_len(len)?;
        Ok(file)
    }

    /// A new file with stamped contents, written with calls of `step` bytes and on the disk.
    pub fn written(&self, name: &str, len: u64, stamp: Stamp, step: usize) -> Result<File> {
        let file = self.create(name)?;
        let mut offset = 0;
        while offset < len {
            let bytes = stamp.bytes(offset, step.min((len - offset) as usize));
            file.write_all_at(&bytes, offset)?;
            offset += bytes.len() as u64;
        }
        file.sync_all()?;
        Ok(file)
    }

    /// Opens a file for reading and writing.
    pub fn open(&self, name: &str) -> Result<File> {
        let path = self.path(name);
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    }

    /// Opens a file for direct I/O.
    pub fn open_direct(&self, name: &str) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.path(name))
            .with_context(|| format!("cannot open {name} with O_DIRECT"))
    }

    /// The device that is mounted.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// The device below the filesystem.
    pub fn raw(&self) -> Result<&RawDisk> {
        self.raw.as_ref().context("the test has no device")
    }

    /// Counts the sectors of `range` that are on the disk with contents other than `expected`.
    pub fn mismatches(
        &self,
        file: &File,
        range: Range<u64>,
        expected: &[u8],
        stamp: Stamp,
    ) -> Result<usize> {
        let found = disk::read_below(self.raw()?, file, range.clone())?;
        let difference = stamp::compare(expected, &found.bytes, range.start, stamp);
        if difference.sectors > 0 {
            for (piece, place) in found.missing.iter().take(4) {
                diag!("bytes {piece:?} are not on the disk: {place:?}");
            }
            for note in &difference.notes {
                diag!("on the disk, {note}");
            }
        }
        Ok(difference.sectors)
    }

    /// Fails unless `range` of the file is on the disk as `stamp` says.
    pub fn expect_on_disk(&self, file: &File, range: Range<u64>, stamp: Stamp) -> Result<()> {
        let expected = stamp.bytes(range.start, (range.end - range.start) as usize);
        let sectors = self.mismatches(file, range.clone(), &expected, stamp)?;
        if sectors > 0 {
            bail!(
                "{sectors} sectors of bytes {range:?} are not on the disk as round {} wrote them",
                stamp.round
            );
        }
        Ok(())
    }

    /// True if part of the file has no written block.
    pub fn is_missing(&self, file: &File, range: Range<u64>) -> Result<bool> {
        let missing = disk::read_below(self.raw()?, file, range)?.missing;
        Ok(missing
            .iter()
            .any(|(_, place)| !matches!(place, Place::Opaque)))
    }

    /// Images the disk as a power cut would leave it, mounts the image, with journal recovery, and
    /// compares a file in it. The image is then checked. If the filesystem can't recover by itself, only
    /// the blocks of the file are compared.
    pub fn expect_after_power_cut(
        &self,
        name: &str,
        range: Range<u64>,
        stamp: Stamp,
    ) -> Result<()> {
        if !self.kind.recovers(self.raw()?)? {
            return self.expect_on_disk(&self.open(name)?, range, stamp);
        }
        self.after_power_cut(|directory| {
            File::open(directory.join(name))
                .with_context(|| format!("{name} is gone after a power cut"))
                .and_then(|file| expect_contents(&file, range, stamp).context("after a power cut"))
        })
    }

    /// Images the disk as a power cut would leave it, mounts the image, with journal recovery, and has it
    /// looked at in that directory. The image is then checked.
    pub fn after_power_cut(&self, look: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.with_copy(self.raw()?, look)
    }

    /// [`Context::with_image`] for a copy of a disk.
    pub fn with_copy(&self, disk: &RawDisk, look: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let image = self.work.join("power-cut.img");
        disk.copy_sparse(self.size, &image)?;
        let seen = self.with_image(&image, look);
        let _ = fs::remove_file(&image);
        seen
    }

    /// Mounts an image of a power cut, with journal recovery, has it looked at, and checks it afterwards.
    /// What the look finds comes before what the check finds.
    pub fn with_image<T>(&self, image: &Path, look: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let directory = self.work.join("power-cut");
        fs::create_dir_all(&directory)?;
        let device = LoopDevice::new(image)?;
        filesystem::mount(
            device.path(),
            &directory,
            self.kind.name(),
            &self.mount_options,
        )
        .context("cannot mount the image of a power cut")?;
        let seen = look(&directory);
        filesystem::unmount(&directory)?;
        drop(device);
        let checked = filesystem::run(&mut self.kind.check(image));
        let seen = seen?;
        checked.context("the image of a power cut is damaged")?;
        Ok(seen)
    }

    /// Bytes of the device below the filesystem.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where images may be put.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The filesystem under test.
    pub fn kind(&self) -> &'static dyn FsKind {
        self.kind
    }

    /// Fails unless it is sound, in memory and on disk.
    pub fn scrub(&self) -> Result<()> {
        self.kind.scrub(&self.root())
    }

    /// What it is mounted with.
    pub fn mount_options(&self) -> &str {
        &self.mount_options
    }

    /// Unmounts and mounts again, so that nothing is left in the page cache.
    pub fn remount(&self) -> Result<()> {
        filesystem::unmount(&self.root())?;
        self.mount()
    }

    /// As [`Context::remount`], and checks the filesystem in between.
    pub fn remount_checked(&self) -> Result<()> {
        filesystem::unmount(&self.root())?;
        let checked = filesystem::run(&mut self.kind.check(&self.device));
        self.mount()?;
        checked.map(|_| ())
    }

    /// Mounts the filesystem that a test has unmounted.
    pub fn mount(&self) -> Result<()> {
        filesystem::mount(
            &self.device,
            &self.root(),
            self.kind.name(),
            &self.mount_options,
        )
    }
}

/// Creates a file for reading and writing.
pub fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))
}

/// Fails unless read(2) of `range` returns what `stamp` says.
pub fn expect_contents(file: &File, range: Range<u64>, stamp: Stamp) -> Result<()> {
    let expected = stamp.bytes(range.start, (range.end - range.start) as usize);
    let mut found = vec![0; expected.len()];
    let len = read_up_to(file, &mut found, range.start)?;
    let difference = stamp::compare(&expected, &found[..len], range.start, stamp);
    if difference.sectors > 0 {
        for note in &difference.notes {
            diag!("in the file, {note}");
        }
        bail!(
            "{} sectors of bytes {range:?} differ from what round {} wrote",
            difference.sectors,
            stamp.round
        );
    }
    Ok(())
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], offset + len as u64)? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}
