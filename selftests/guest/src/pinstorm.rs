// SPDX-License-Identifier: GPL-2.0

//! Pins files that belong to somebody else: the storm in which every other test has to pass.
//!
//! Ranges of regular files below some directories are registered with an io_uring and released after
//! a random time, whatever their owner does with them meanwhile. What the owner sees must not change:
//!
//! - *Contents.* Nothing is written through these pins. Even writing back the bytes that are there would
//!   be a race with the owner's own writes. Admission makes the folios dirty, and as long as they are
//!   pinned writeback keeps them so and copies them, which is what the storm is about.
//! - *Space.* Only ranges that have data are pinned: the fault of a pin in a hole would allocate a block.
//! - *Mounts.* The file is open and mapped until its pages are registered, and not after; a registered
//!   buffer holds pages, not the mount. While the file is open the storm holds [`LOCK`] shared. Who
//!   unmounts takes it exclusively, see `mount` and `umount` in `selftests/xfstests/files`.
//! - *Execution.* Files with an execute bit are left alone: open for writing, they can't be executed.
//!
//! Writes through pins go to files of the storm's own, in one directory that it is told. Their contents
//! are checked each time the filesystem was mounted anew, and after it has been unmounted with pins.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;

use crate::device::Dma;
use crate::map::{Mapping, PAGE};
use crate::stamp::{Stamp, SECTOR};
use crate::uring::Uring;

/// Whoever holds this lock shared may have files open; whoever unmounts holds it exclusively.
const LOCK: &str = "/run/pinstorm.lock";
/// Ranges that are pinned at a time.
const HELD: usize = 24;
/// Names that are tried in one go: many are empty files, or none at all any more.
const TRIES: u32 = 8;
/// Directory of the storm's own files.
const OWN: &str = ".pinstorm";
const OWN_FILES: usize = 4;
const OWN_LEN: u64 = 256 << 10;
/// Rounds that a file may be behind its last fsync; more can't be told apart cheaply.
const ROUNDS_BEHIND: u32 = 8;
/// Names that are looked at in a directory, and directories that are gone down.
const NAMES: usize = 256;
const DEPTH: u32 = 6;

/// What to pin.
#[derive(Args, Debug)]
pub struct Options {
    /// Where random numbers start
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep the counts of what was done in this file, as JSON
    #[arg(long)]
    counts: Option<PathBuf>,
    /// A mount point: write through pins to files in a directory .pinstorm there
    #[arg(long)]
    own: Option<PathBuf>,
    /// Mount points: pin files on what is mounted there, as long as it is
    #[arg(required = true)]
    mounts: Vec<PathBuf>,
}

/// The generator of Sebastiano Vigna's SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        match from.len() {
            0 => None,
            len => from.get(self.below(len as u64) as usize),
        }
    }

    /// Mostly short, at times long.
    fn hold(&mut self) -> Duration {
        let most = match self.below(10) {
            0..5 => 100,
            5..9 => 1000,
            _ => 10_000,
        };
        Duration::from_millis(self.below(most))
    }
}

#[derive(Default)]
struct Counts {
    pinned: u64,
    refused: u64,
    writes: u64,
}

impl Counts {
    fn save(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let text = json!({
            "pinned": self.pinned,
            "refused": self.refused,
            "writes": self.writes,
        });
        fs::write(&new, text.to_string())?;
        fs::rename(new, path)
    }
}

/// Runs until killed.
pub fn run(options: &Options) -> Result<()> {
    let lock = File::create(LOCK).with_context(|| format!("cannot create {LOCK}"))?;
    let mut random = Random(options.seed);
    let mut counts = Counts::default();
    let mut held: Vec<(Instant, Uring)> = Vec::new();
    let mut own: Vec<Own> = match &options.own {
        Some(mount) => (0..OWN_FILES).map(|n| Own::new(mount, n)).collect(),
        None => Vec::new(),
    };
    loop {
        let now = Instant::now();
        held.retain(|(until, _)| *until > now);
        // An unmount that is under way is not waited for: the pins that are due must go meanwhile.
        if let Some(_open) = Shared::try_lock(&lock) {
            let mut mounts: Vec<&PathBuf> = options.mounts.iter().collect();
            mounts.retain(|mount| held.len() < HELD && is_mount_point(mount));
            for _ in 0..TRIES {
                let Some(mount) = random.pick(&mounts) else {
                    break;
                };
                match pin_some_file(mount, &mut random) {
                    Ok(None) => continue,
                    Ok(Some(ring)) => {
                        counts.pinned += 1;
                        held.push((now + random.hold(), ring));
                    }
                    Err(_) => counts.refused += 1,
                }
                break;
            }
            let mine = random.below(4 * OWN_FILES as u64) as usize;
            if let Some(own) = own.get_mut(mine) {
                if is_mount_point(&own.mount) && own.step(&mut random).unwrap_or(false) {
                    counts.writes += 1;
                }
            }
        }
        if let Some(path) = &options.counts {
            counts.save(path)?;
        }
        thread::sleep(Duration::from_millis(5 + random.below(60)));
    }
}

/// [`LOCK`], held shared.
struct Shared<'a>(&'a File);

impl<'a> Shared<'a> {
    fn try_lock(file: &'a File) -> Option<Self> {
        // SAFETY: flock only takes numbers.
        let done = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) };
        (done == 0).then_some(Self(file))
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        // SAFETY: flock only takes numbers.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
    }
}

fn is_mount_point(path: &Path) -> bool {
    let (Ok(here), Some(parent)) = (fs::metadata(path), path.parent()) else {
        return false;
    };
    fs::metadata(parent).is_ok_and(|above| above.dev() != here.dev())
}

/// A regular file somewhere below `mount`, on the same filesystem.
fn some_file(mount: &Path, random: &mut Random) -> Option<PathBuf> {
    let device = fs::metadata(mount).ok()?.dev();
    let mut dir = mount.to_owned();
    for _ in 0..DEPTH {
        let names: Vec<_> = fs::read_dir(&dir).ok()?.take(NAMES).flatten().collect();
        let entry = random.pick(&names)?;
        let kind = entry.file_type().ok()?;
        let path = entry.path();
        if kind.is_file() {
            return Some(path);
        }
        let is_here = fs::symlink_metadata(&path).is_ok_and(|m| m.dev() == device);
        if !kind.is_dir() || !is_here || entry.file_name() == OWN {
            return None;
        }
        dir = path;
    }
    None
}

fn pin_some_file(mount: &Path, random: &mut Random) -> Result<Option<Uring>> {
    let Some(path) = some_file(mount, random) else {
        return Ok(None);
    };
    // A lease is for its owner to notice, an access time for nobody.
    let Ok(file) = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NOATIME | libc::O_NONBLOCK)
        .open(path)
    else {
        return Ok(None);
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.mode() & 0o111 != 0 || meta.len() == 0 {
        return Ok(None);
    }
    let Some((offset, len)) = some_data(&file, meta.len(), random) else {
        return Ok(None);
    };
    let map = Mapping::shared(&file, offset, len)?;
    Uring::register(&map, 0..len as u64).map(Some)
}

/// A range of whole pages with data in all of them.
fn some_data(file: &File, size: u64, random: &mut Random) -> Option<(u64, usize)> {
    let page = PAGE as u64;
    let seek = |offset: u64, whence: i32| -> Option<u64> {
        // SAFETY: lseek only takes numbers.
        let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
        u64::try_from(found).ok()
    };
    let from = random.below(size) / page * page;
    let data = seek(from, libc::SEEK_DATA)?;
    let hole = seek(data, libc::SEEK_HOLE)?;
    let start = data.next_multiple_of(page);
    // The last page of the file counts as a whole.
    let end = if hole >= size {
        size.next_multiple_of(page)
    } else {
        hole / page * page
    };
    let pages = end.checked_sub(start)? / page;
    let most = if random.below(4) == 0 { 512 } else { 32 };
    let len = match pages.min(most) {
        0 => return None,
        most => (1 + random.below(most)) * page,
    };
    let room = (end - start - len) / page;
    Some((start + random.below(room.min(64) + 1) * page, len as usize))
}

/// A file of the storm's own.
struct Own {
    mount: PathBuf,
    path: PathBuf,
    stamp: Stamp,
    /// The last round that fsync promised.
    synced: u32,
    /// Where the file was when it was pinned; another number says that it was mounted anew.
    id: u64,
    ring: Option<Uring>,
}

impl Own {
    fn new(mount: &Path, number: usize) -> Self {
        Self {
            mount: mount.to_owned(),
            path: mount.join(OWN).join(number.to_string()),
            stamp: Stamp::fresh().round(0),
            synced: 0,
            id: 0,
            ring: None,
        }
    }

    /// Writes one round through the pins; true if that could be done.
    fn step(&mut self, random: &mut Random) -> Result<bool> {
        let id = mount_id(&self.mount)?;
        if self.ring.is_none() || id != self.id {
            self.ring = None;
            self.start(id)?;
        }
        let Some(ring) = &mut self.ring else {
            return Ok(false);
        };
        self.stamp.round += 1;
        ring.write(self.stamp, 0..OWN_LEN)?;
        if random.below(4) == 0 || self.stamp.round - self.synced >= ROUNDS_BEHIND {
            File::open(&self.path)?.sync_all()?;
            self.synced = self.stamp.round;
        }
        if random.below(8) == 0 {
            self.ring = None;
        }
        Ok(true)
    }

    /// Checks what is in the file if it is there, and pins it.
    fn start(&mut self, id: u64) -> Result<()> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut open = OpenOptions::new();
        let file = match open.read(true).write(true).open(&self.path) {
            Ok(file) if self.stamp.round > 0 => {
                self.check(&file)?;
                file
            }
            _ => {
                // Made anew by somebody, or never there.
                self.stamp = Stamp::fresh().round(0);
                let file = open.create(true).truncate(true).open(&self.path)?;
                file.write_all_at(&self.stamp.bytes(0, OWN_LEN as usize), 0)?;
                file
            }
        };
        file.sync_all()?;
        self.synced = self.stamp.round;
        let map = Mapping::shared(&file, 0, OWN_LEN as usize)?;
        self.ring = Some(Uring::register(&map, 0..OWN_LEN)?);
        self.id = id;
        Ok(())
    }

    /// Every sector has to be of a round that fsync promised, or a later one. What is found is what the
    /// next rounds build on.
    fn check(&mut self, file: &File) -> Result<()> {
        let mut found = vec![0; OWN_LEN as usize];
        file.read_exact_at(&mut found, 0)?;
        let rounds: Vec<Vec<u8>> = (self.synced..=self.stamp.round)
            .map(|round| self.stamp.round(round).bytes(0, found.len()))
            .collect();
        let lost = found
            .chunks(SECTOR)
            .enumerate()
            .filter(|(n, sector)| {
                let start = n * SECTOR;
                !rounds
                    .iter()
                    .any(|round| round[start..start + SECTOR] == **sector)
            })
            .count();
        if lost > 0 {
            complain(&format!(
                "{lost} sectors of {} are older than round {}, which fsync promised",
                self.path.display(),
                self.synced
            ));
        }
        Ok(())
    }
}

/// Says in the kernel log what fails the test that runs.
fn complain(what: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = log.write_all(format!("pinstorm: BUG: {what}").as_bytes());
    }
}

/// A number that another mount of the same filesystem does not have.
fn mount_id(mount: &Path) -> Result<u64> {
    let path = std::ffi::CString::new(mount.as_os_str().as_encoded_bytes())?;
    // SAFETY: an all-zero statx is a valid value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a C string and `found` has room for the answer.
    let done = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            libc::STATX_MNT_ID_UNIQUE,
            &mut found,
        )
    };
    match done {
        0 => Ok(found.stx_mnt_id),
        _ => Err(io::Error::last_os_error().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_is_the_same_storm() {
        let draw = |seed| {
            let mut random = Random(seed);
            (0..32).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|n| *n < 1000));
        assert_eq!(Random(1).pick::<u8>(&[]), None);
    }

    #[test]
    fn ranges_are_pages_with_data() {
        let path = std::env::temp_dir().join(format!("pinstorm-{}", std::process::id()));
        let file = crate::context::create(&path).unwrap();
        // Data in pages 2 to 4 and, up to the middle, in page 9.
        file.write_all_at(&[1; 3 * PAGE], 2 * PAGE as u64).unwrap();
        let size = 9 * PAGE as u64 + 100;
        file.write_all_at(&[1; 100], size - 100).unwrap();
        let mut random = Random(3);
        let mut seen = Vec::new();
        for _ in 0..200 {
            let Some((offset, len)) = some_data(&file, size, &mut random) else {
                continue;
            };
            assert!(offset % PAGE as u64 == 0 && len > 0 && len % PAGE == 0);
            let pages = offset / PAGE as u64..(offset + len as u64) / PAGE as u64;
            let whole = seek_hole_is_exact(&file);
            assert!(!whole || pages.clone().all(|p| (2..5).contains(&p) || p == 9));
            seen.extend(pages);
        }
        assert!([2, 3, 4, 9].iter().all(|p| seen.contains(p)));
        fs::remove_file(path).unwrap();
    }

    /// A filesystem may take all of a file for data.
    fn seek_hole_is_exact(file: &File) -> bool {
        // SAFETY: lseek only takes numbers.
        unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_HOLE) == 0 }
    }
}
