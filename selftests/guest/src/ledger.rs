// SPDX-License-Identifier: GPL-2.0

//! What the kernel says about its pins, and its switches.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

const ROOT: &str = "/sys/kernel/debug/pinwb";

fn read(name: &str) -> Result<String> {
    let path = Path::new(ROOT).join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// The totals.
#[derive(Clone, Debug)]
pub struct Stats(BTreeMap<String, u64>);

impl Stats {
    /// Reads them; a kernel without them skips the test.
    pub fn read() -> Result<Self> {
        Ok(Self::parse(&read("stats")?))
    }

    fn parse(text: &str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| {
                    let (name, value) = line.trim().split_once(char::is_whitespace)?;
                    Some((name.to_owned(), value.trim().parse().ok()?))
                })
                .collect(),
        )
    }

    /// The value of that name, 0 if the kernel has none.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// One pinned folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folio {
    /// Device, inode and first page of the file, unless the folio has left its file.
    pub place: Option<(u64, u64, u64)>,
    /// Pages in the folio.
    pub pages: u64,
    /// Page frame number of the first one.
    pub frame: u64,
    /// Writable long-term pins.
    pub count: u64,
    /// The process that took the first of them.
    pub owner: u32,
}

fn parse_folio(line: &str) -> Option<Folio> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [device, inode, index, pages, frame, count, owner] = fields[..] else {
        return None;
    };
    let place = match (device.split_once(':'), inode.parse(), index.parse()) {
        (Some((major, minor)), Ok(inode), Ok(index)) => Some((
            libc::makedev(major.parse().ok()?, minor.parse().ok()?),
            inode,
            index,
        )),
        _ => None,
    };
    Some(Folio {
        place,
        pages: pages.parse().ok()?,
        frame: frame.parse().ok()?,
        count: count.parse().ok()?,
        owner: owner.parse().ok()?,
    })
}

/// All folios with a count above zero.
pub fn folios() -> Result<Vec<Folio>> {
    read("ledger")?
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| parse_folio(line).with_context(|| format!("odd ledger line: {line}")))
        .collect()
}

/// A file with pins, as the kernel lists it.
#[derive(Debug, PartialEq, Eq)]
pub struct FilePins {
    pub inode: u64,
    pub pages: u64,
    pub pins: u64,
    pub owner: u32,
    /// Bytes that were copied for writeback.
    pub bounced: u64,
    /// From the root of its filesystem; `-` if it has none.
    pub path: String,
}

fn parse_file(line: &str) -> Option<FilePins> {
    let mut fields = line.splitn(8, ' ');
    let mut next = || fields.next();
    let (_device, inode, _folios) = (next()?, next()?, next()?);
    Some(FilePins {
        inode: inode.parse().ok()?,
        pages: next()?.parse().ok()?,
        pins: next()?.parse().ok()?,
        owner: next()?.parse().ok()?,
        bounced: next()?.parse().ok()?,
        path: next()?.to_owned(),
    })
}

/// All files with pins.
pub fn files() -> Result<Vec<FilePins>> {
    read("files")?
        .lines()
        .map(|line| parse_file(line).with_context(|| format!("odd line of a file: {line}")))
        .collect()
}

/// The pinned folios of one file, in file order.
pub fn folios_of(file: &File) -> Result<Vec<Folio>> {
    let (device, inode) = (superblock_device(file)?, file.metadata()?.ino());
    let mut folios = folios()?;
    folios.retain(|folio| matches!(folio.place, Some((d, i, _)) if (d, i) == (device, inode)));
    folios.sort_by_key(|folio| folio.place);
    Ok(folios)
}

/// The device number of the superblock. That of stat(2) is another one for each subvolume of btrfs.
fn superblock_device(file: &File) -> Result<u64> {
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let mount = about
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .context("fdinfo tells no mnt_id")?
        .trim();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&mount))
        .and_then(|fields| {
            let (major, minor) = fields.get(2)?.split_once(':')?;
            Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
        })
        // What is not mounted, a memfd: its superblock has no subvolumes.
        .map_or_else(|| Ok(file.metadata()?.dev()), Ok)
}

/// Pins on all folios of one file together.
pub fn pins_of(file: &File) -> Result<u64> {
    Ok(folios_of(file)?.iter().map(|folio| folio.count).sum())
}

/// Waits until the kernel knows of no pin any more; some owners release theirs from a work queue.
pub fn wait_until_empty(seconds: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let pins = Stats::read()?.get("pins");
        let folios = folios()?;
        if pins == 0 && folios.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("{pins} pins left after {seconds} s, on {folios:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A debugfs value that goes back to what it is without tests when dropped.
pub struct Switch {
    path: PathBuf,
    off: &'static str,
}

impl Switch {
    fn set(path: PathBuf, on: &str, off: &'static str) -> Result<Self> {
        if !path.exists() {
            bail!("no {}: is CONFIG_PINWB_DEBUG off?", path.display());
        }
        fs::write(&path, on).with_context(|| format!("cannot set {}", path.display()))?;
        Ok(Self { path, off })
    }

    /// Disables one safety step.
    pub fn knock_out(name: &str) -> Result<Self> {
        Self::set(Path::new(ROOT).join("knockout").join(name), "1", "0")
    }

    /// Opens one race window by so many milliseconds.
    pub fn delay(name: &str, milliseconds: u32) -> Result<Self> {
        let path = Path::new(ROOT).join("delay").join(name);
        Self::set(path, &milliseconds.to_string(), "0")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, self.off);
    }
}

/// True if the test runs without that step.
pub fn is_knocked_out(name: &str) -> bool {
    let path = Path::new(ROOT).join("knockout").join(name);
    fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

/// Sets everything back, in case a test was killed while a switch was on.
pub fn reset_switches() {
    for (directory, off) in [("knockout", "0"), ("delay", "0")] {
        let entries = fs::read_dir(Path::new(ROOT).join(directory));
        for entry in entries.into_iter().flatten().flatten() {
            let _ = fs::write(entry.path(), off);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_are_names_and_numbers() {
        let stats = Stats::parse("pins 12\nbounced_bytes  4096\nodd\n");
        assert_eq!(stats.get("pins"), 12);
        assert_eq!(stats.get("bounced_bytes"), 4096);
        assert_eq!(stats.get("absent"), 0);
    }

    #[test]
    fn a_folio_in_a_file_and_one_that_left_it() {
        let place = Some((libc::makedev(254, 16), 12, 512));
        assert_eq!(
            parse_folio("254:16 12 512 512 81920 3 77"),
            Some(Folio {
                place,
                pages: 512,
                frame: 81920,
                count: 3,
                owner: 77
            })
        );
        assert_eq!(
            parse_folio("- - - 1 81920 1 77"),
            Some(Folio {
                place: None,
                pages: 1,
                frame: 81920,
                count: 1,
                owner: 77
            })
        );
        assert_eq!(parse_folio("nonsense"), None);
    }
}
