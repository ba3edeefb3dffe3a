// SPDX-License-Identifier: GPL-2.0

//! What is on the disk, as a power cut would leave it.
//!
//! A read through the mounted filesystem proves nothing: a cached one returns the page that the device
//! wrote to, a direct one writes the page back first. So the bytes are read from the block device below,
//! past every cache, either where the file's extent map says that they are or from an image of the whole
//! filesystem that is mounted anew, with journal recovery.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::btrfs::{self, Chunks};
use crate::diag;
use crate::map::{Mapping, PAGE};

/// A block device, read with O_DIRECT.
pub struct RawDisk {
    file: File,
    path: PathBuf,
}

const CHUNK: usize = 1 << 20;

impl RawDisk {
    /// Opens the device at `path` for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .with_context(|| format!("cannot open {} with O_DIRECT", path.display()))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Reads `range` of the device. It is widened to whole pages for the device's sake.
    pub fn read(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        self.read_chunks(range, |_, chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn read_chunks(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let most = CHUNK.min((range.end - range.start) as usize);
        let buffer = Mapping::anonymous(most.next_multiple_of(PAGE) + PAGE)?;
        let mut copy = vec![0; most];
        let mut position = range.start;
        while position < range.end {
            let start = position / PAGE as u64 * PAGE as u64;
            let end = range.end.min(position + CHUNK as u64);
            let len = (end - start).next_multiple_of(PAGE as u64) as usize;
            let read = buffer.read_from(&self.file, len, start)?;
            if (read as u64) < end - start {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let wanted = &mut copy[..(end - position) as usize];
            buffer.load_into((position - start) as usize, wanted);
            each(position, wanted)?;
            position = end;
        }
        Ok(())
    }

    /// Copies the first `len` bytes to a new file at `path`, leaving holes where there are zeroes.
    pub fn copy_sparse(&self, len: u64, path: &Path) -> Result<()> {
        const ZEROES: [u8; PAGE] = [0; PAGE];
        let _ = fs::remove_file(path);
        let image = File::create(path)?;
        image.set_len(len)?;
        self.read_chunks(0..len, |position, chunk| {
            for (index, block) in chunk.chunks(PAGE).enumerate() {
                if *block != ZEROES[..block.len()] {
                    image.write_all_at(block, position + (index * PAGE) as u64)?;
                }
            }
            Ok(())
        })
        .with_context(|| format!("cannot copy {}", self.path.display()))
    }
}

/// The block device whose serial number is `serial`, if there is one.
pub fn by_serial(serial: &str) -> Option<PathBuf> {
    let entries = fs::read_dir("/sys/block").ok()?;
    entries.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("serial")).ok()?;
        (found.trim() == serial).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// The disk beside the test disk, for whoever needs one.
pub fn second() -> Result<PathBuf> {
    by_serial("pinwb-disk1").context("no second disk: nothing has serial number pinwb-disk1")
}

/// Where sysfs has something about the block device at `path`.
pub fn attribute_path(path: &Path, name: &str) -> Result<PathBuf> {
    let device = path.file_name().context("no device name")?;
    Ok(Path::new("/sys/block").join(device).join(name))
}

/// What a file there says.
pub fn attribute(path: &Path, name: &str) -> Result<String> {
    let path = attribute_path(path, name)?;
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// The numbers that the kernel keeps about what the block device at `path` was asked for.
pub struct Requests {
    /// Write requests that have ended.
    pub writes: u64,
    /// Requests of any kind that have not.
    pub in_flight: u64,
}

impl Requests {
    /// As they are now.
    pub fn of(path: &Path) -> Result<Self> {
        const WRITES: usize = 4;
        const IN_FLIGHT: usize = 8;
        let text = attribute(path, "stat")?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let number = |nth: usize| -> Result<u64> {
            let word = words.get(nth).context("a short line in sysfs")?;
            Ok(word.parse()?)
        };
        Ok(Self {
            writes: number(WRITES)?,
            in_flight: number(IN_FLIGHT)?,
        })
    }
}

/// How many KiB a request to a block device may have; can be set to less.
pub const MOST_KIB: &str = "queue/max_sectors_kb";

/// How many pages, none next to another, a request to the block device at `path` may have.
pub fn most_pages(path: &Path) -> Result<u64> {
    let segments: u64 = attribute(path, "queue/max_segments")?.trim().parse()?;
    let kib: u64 = attribute(path, MOST_KIB)?.trim().parse()?;
    Ok(segments.min((kib << 10) / PAGE as u64))
}

/// Bytes that the block device at `path` holds.
pub fn device_size(path: &Path) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    Ok(File::open(path)?.seek(SeekFrom::End(0))?)
}

/// Writes zeroes over the first `len` bytes of a device, by the device's own means if it has any.
pub fn zero(path: &Path, len: u64) -> Result<()> {
    const BLKZEROOUT: libc::c_ulong = 0x127f;
    let device = OpenOptions::new().read(true).write(true).open(path)?;
    let range: [u64; 2] = [0, len];
    // SAFETY: BLKZEROOUT reads two 64-bit numbers from `range`.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), BLKZEROOUT as _, range.as_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot zero {}", path.display()));
    }
    device.sync_all()?;
    Ok(())
}

/// Writes zeroes over the first `len` bytes of a device, as data: what the device keeps beside them, such as
/// guard tags, is then theirs.
pub fn overwrite(path: &Path, len: u64) -> Result<()> {
    let device = OpenOptions::new().write(true).open(path)?;
    let zeroes = vec![0; CHUNK];
    for start in (0..len).step_by(CHUNK) {
        let part = CHUNK.min((len - start) as usize);
        device.write_all_at(&zeroes[..part], start)?;
    }
    device.sync_all()?;
    Ok(())
}

/// One extent as FIEMAP tells it; all in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent {
    logical: u64,
    physical: u64,
    len: u64,
    flags: u32,
}

const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_UNKNOWN: u32 = 0x2;
const FIEMAP_EXTENT_DELALLOC: u32 = 0x4;
const FIEMAP_EXTENT_ENCODED: u32 = 0x8;
const FIEMAP_EXTENT_DATA_INLINE: u32 = 0x200;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;

/// Where one stretch of a file lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this byte of the device.
    Disk(u64),
    /// Nowhere: reads as zeroes.
    Hole,
    /// Has blocks, but reads as zeroes until they are converted.
    Unwritten,
    /// Waits for blocks.
    Delayed,
    /// In the inode, compressed or encrypted: the raw bytes say nothing.
    Opaque,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const EXTENTS_AT_ONCE: usize = 128;

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS_AT_ONCE],
}

/// The extents of a file, with their places on the device. Without FIEMAP_FLAG_SYNC: that would write the
/// pages back.
pub fn extents(file: &File) -> Result<Vec<Extent>> {
    let mut extents = fiemap(file)?;
    if btrfs::is_home_of(file)? {
        let chunks = Chunks::of(file)?;
        let nowhere = FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DATA_INLINE;
        for extent in extents.iter_mut().filter(|e| e.flags & nowhere == 0) {
            extent.physical = chunks.on_device(extent.physical)?;
        }
    }
    Ok(extents)
}

fn fiemap(file: &File) -> Result<Vec<Extent>> {
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    let mut found: Vec<Extent> = Vec::new();
    let mut start = 0;
    loop {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut request: Fiemap = unsafe { std::mem::zeroed() };
        request.start = start;
        request.length = u64::MAX - start;
        request.extent_count = EXTENTS_AT_ONCE as u32;
        // SAFETY: the structure has room for `extent_count` extents, all that the kernel writes.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &mut request) };
        if done != 0 {
            return Err(io::Error::last_os_error()).context("FIEMAP failed");
        }
        let batch = &request.extents[..request.mapped_extents as usize];
        found.extend(batch.iter().map(|extent| Extent {
            logical: extent.logical,
            physical: extent.physical,
            len: extent.length,
            flags: extent.flags,
        }));
        match batch.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => {
                start = last.logical + last.length;
            }
            _ => return Ok(found),
        }
    }
}

/// Cuts `range` of a file into stretches that each live in one place. `extents` are in file order.
fn pieces(extents: &[Extent], range: Range<u64>) -> Vec<(Range<u64>, Place)> {
    let mut pieces = Vec::new();
    let mut position = range.start;
    for extent in extents {
        let start = extent.logical.max(position);
        let end = (extent.logical + extent.len).min(range.end);
        if start >= end {
            continue;
        }
        if position < start {
            pieces.push((position..start, Place::Hole));
        }
        let opaque = FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_DATA_INLINE;
        let place = if extent.flags & FIEMAP_EXTENT_DELALLOC != 0 {
            Place::Delayed
        } else if extent.flags & (opaque | FIEMAP_EXTENT_UNKNOWN) != 0 {
            Place::Opaque
        } else if extent.flags & FIEMAP_EXTENT_UNWRITTEN != 0 {
            Place::Unwritten
        } else {
            Place::Disk(extent.physical + (start - extent.logical))
        };
        pieces.push((start..end, place));
        position = end;
    }
    if position < range.end {
        pieces.push((position..range.end, Place::Hole));
    }
    pieces
}

/// The contents of one stretch of a file as the disk has them.
pub struct OnDisk {
    /// The bytes; zeroes where the file has no written block.
    pub bytes: Vec<u8>,
    /// Stretches that have no written block, and why.
    pub missing: Vec<(Range<u64>, Place)>,
}

/// A look at the disk that takes longer than this is worth a line.
const SLOW: Duration = Duration::from_secs(2);

/// Reads `range` of a file from the device below its filesystem.
///
/// A sync of something else may write pinned folios meanwhile, and where blocks are not written in place, what
/// is read then is free, or somebody else's: it is read again if it is not where it was.
pub fn read_below(disk: &RawDisk, file: &File, range: Range<u64>) -> Result<OnDisk> {
    const ATTEMPTS: u32 = 20;
    let mut map = extents(file)?;
    for _ in 1..ATTEMPTS {
        let on_disk = read_extents(disk, &map, range.clone())?;
        let map_now = extents(file)?;
        if map_now == map {
            return Ok(on_disk);
        }
        map = map_now;
    }
    read_extents(disk, &map, range)
}

fn read_extents(disk: &RawDisk, extents: &[Extent], range: Range<u64>) -> Result<OnDisk> {
    let mut on_disk = OnDisk {
        bytes: Vec::with_capacity((range.end - range.start) as usize),
        missing: Vec::new(),
    };
    let start = Instant::now();
    for (piece, place) in pieces(extents, range) {
        let len = (piece.end - piece.start) as usize;
        match place {
            Place::Disk(physical) => {
                let bytes = disk
                    .read(physical..physical + len as u64)
                    .with_context(|| format!("cannot read {len} bytes at {physical}"))?;
                on_disk.bytes.extend_from_slice(&bytes);
            }
            _ => {
                on_disk.bytes.resize(on_disk.bytes.len() + len, 0);
                on_disk.missing.push((piece, place));
            }
        }
    }
    let all = start.elapsed();
    if all > SLOW {
        diag!("looking at the disk took {all:?}");
    }
    Ok(on_disk)
}

/// Where `range` of a file lies on the device; fails if part of it has no written block.
pub fn locate(file: &File, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    pieces(&extents(file)?, range)
        .into_iter()
        .map(|(piece, place)| match place {
            Place::Disk(physical) => Ok(physical..physical + (piece.end - piece.start)),
            other => bail!("bytes {piece:?} of the file are not on the disk: {other:?}"),
        })
        .collect()
}

/// Where on the device the next writes to `range` of a file go, in order: to its blocks, or, where no block
/// is written twice, anywhere that data goes.
pub fn rewritten_at(file: &File, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let mut places = match btrfs::is_home_of(file)? {
        true => Chunks::of(file)?.of_data(),
        false => locate(file, range)?,
    };
    places.sort_by_key(|place| place.start);
    Ok(places)
}

/// True if the contents of the file are in its inode.
pub fn is_inline(file: &File) -> Result<bool> {
    Ok(extents(file)?
        .iter()
        .any(|extent| extent.flags & FIEMAP_EXTENT_DATA_INLINE != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, physical: u64, len: u64, flags: u32) -> Extent {
        Extent {
            logical,
            physical,
            len,
            flags,
        }
    }

    #[test]
    fn a_file_without_extents_is_a_hole() {
        assert_eq!(pieces(&[], 0..4096), [(0..4096, Place::Hole)]);
    }

    #[test]
    fn a_range_starts_and_ends_inside_extents() {
        let extents = [extent(0, 10_000, 4096, 0), extent(4096, 50_000, 4096, 0)];
        assert_eq!(
            pieces(&extents, 1024..5120),
            [
                (1024..4096, Place::Disk(11_024)),
                (4096..5120, Place::Disk(50_000)),
            ]
        );
    }

    #[test]
    fn gaps_are_holes_and_flags_are_obeyed() {
        let extents = [
            extent(4096, 0, 4096, FIEMAP_EXTENT_UNWRITTEN),
            extent(
                8192,
                0,
                4096,
                FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNKNOWN,
            ),
            extent(16_384, 1_000, 4096, FIEMAP_EXTENT_LAST),
        ];
        assert_eq!(
            pieces(&extents, 0..24_576),
            [
                (0..4096, Place::Hole),
                (4096..8192, Place::Unwritten),
                (8192..12_288, Place::Delayed),
                (12_288..16_384, Place::Hole),
                (16_384..20_480, Place::Disk(1_000)),
                (20_480..24_576, Place::Hole),
            ]
        );
    }
}
