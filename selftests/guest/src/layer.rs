// SPDX-License-Identifier: GPL-2.0

//! The block devices that the filesystem under test lies on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::disk::{self, RawDisk};
use crate::fs::run;
use crate::tap::skip;

/// What a test needs below its filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// No filesystem at all.
    None,
    /// The test disk; a second, read-only device shows what is on it.
    Disk,
    /// dm-integrity on the test disk: it hashes a write's pages beside the disk's reading of them, so
    /// that a page that changes meanwhile fails its checksum when it is read back.
    Integrity,
    /// A RAM disk that finishes every request after so many milliseconds: writeback stays in flight for
    /// long enough to do things meanwhile.
    Slow(u32),
}

/// A device that is ready for mkfs.
pub struct Device {
    /// What is mounted.
    pub path: PathBuf,
    /// Where its contents can be read behind the filesystem's back.
    pub raw: PathBuf,
    /// Bytes for the filesystem.
    pub size: u64,
    _teardown: Option<Teardown>,
}

const MIB: u64 = 1 << 20;
const INTEGRITY_SIZE: u64 = 64 * MIB;
const SLOW_SIZE: u64 = 96 * MIB;

struct Teardown(fn());

impl Drop for Teardown {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Layer {
    /// Sets the device up, with nothing of an earlier test on it.
    pub fn set_up(self, disk: Option<&Path>, view: Option<&Path>, size: u64) -> Result<Device> {
        match self {
            Layer::None => bail!("no device was asked for"),
            Layer::Disk => {
                let (disk, view) = pair(disk, view)?;
                let size = size.min(disk::device_size(disk)?);
                disk::zero(disk, size)?;
                Ok(Device {
                    path: disk.to_owned(),
                    raw: view.to_owned(),
                    size,
                    _teardown: None,
                })
            }
            Layer::Integrity => integrity(pair(disk, view)?.0),
            Layer::Slow(milliseconds) => slow(milliseconds),
        }
    }
}

fn pair<'a>(disk: Option<&'a Path>, view: Option<&'a Path>) -> Result<(&'a Path, &'a Path)> {
    match (disk, view) {
        (Some(disk), Some(view)) => Ok((disk, view)),
        _ => bail!("no test disk: neither serial numbers pinwb-disk0 and pinwb-view0 nor options"),
    }
}

const INTEGRITY: &str = "pinwb-integrity";

fn dmsetup(arguments: &[&str]) -> Result<String> {
    // Nobody answers udev cookies in the guest.
    run(Command::new("dmsetup")
        .env("DM_DISABLE_UDEV", "1")
        .args(arguments))
}

fn remove_integrity() {
    let _ = dmsetup(&["remove", "--retry", INTEGRITY]);
}

fn integrity(disk: &Path) -> Result<Device> {
    remove_integrity();
    disk::zero(disk, 2 * INTEGRITY_SIZE)?;
    let table = |sectors: u64, hash: &str| {
        format!(
            "0 {sectors} integrity {} 0 - D 2 internal_hash:{hash} block_size:1024",
            disk.display()
        )
    };
    // Loaded over zeroes, the target formats the device and writes how many sectors it has room for.
    let mut why = None;
    let Some(hash) = ["crc32c", "sha256"].into_iter().find(|hash| {
        match dmsetup(&["create", INTEGRITY, "--table", &table(8, hash)]) {
            Ok(_) => true,
            Err(error) => {
                why = Some(error);
                false
            }
        }
    }) else {
        return skip(format!("no dm-integrity: {:#}", why.context("no hash")?));
    };
    dmsetup(&["remove", "--retry", INTEGRITY])?;
    let superblock = RawDisk::open(disk)?.read(0..24)?;
    if &superblock[..8] != b"integrt\0" {
        bail!("dm-integrity did not format {}", disk.display());
    }
    let provided = u64::from_le_bytes(superblock[16..24].try_into()?);
    let size = INTEGRITY_SIZE.min(provided * 512 / MIB * MIB);
    dmsetup(&["create", INTEGRITY, "--table", &table(size / 512, hash)])?;
    let teardown = Teardown(remove_integrity);
    let path = Path::new("/dev/mapper").join(INTEGRITY);
    // Tags are valid only where something was written.
    disk::zero(&path, size)?;
    Ok(Device {
        raw: path.clone(),
        path,
        size,
        _teardown: Some(teardown),
    })
}

const NULL_BLK: &str = "/sys/kernel/config/nullb/pinwb-slow";

fn remove_slow() {
    let _ = fs::write(Path::new(NULL_BLK).join("power"), "0");
    let _ = fs::remove_dir(NULL_BLK);
}

fn slow(milliseconds: u32) -> Result<Device> {
    if !Path::new("/sys/kernel/config/nullb").exists() {
        let mut mount = Command::new("mount");
        mount.args(["-t", "configfs", "none", "/sys/kernel/config"]);
        let _ = run(&mut mount);
        if !Path::new("/sys/kernel/config/nullb").exists() {
            return skip("no null_blk".to_owned());
        }
    }
    remove_slow();
    let directory = Path::new(NULL_BLK);
    fs::create_dir(directory).context("cannot create a null_blk device")?;
    let teardown = Teardown(remove_slow);
    let set = |name: &str, value: u64| {
        fs::write(directory.join(name), value.to_string())
            .with_context(|| format!("cannot set {name} of null_blk"))
    };
    set("size", SLOW_SIZE / MIB)?;
    set("memory_backed", 1)?;
    // 2: a timer completes requests.
    set("irqmode", 2)?;
    set("completion_nsec", u64::from(milliseconds) * 1_000_000)?;
    set("power", 1)?;
    // The device has the directory's name.
    let path = PathBuf::from("/dev/pinwb-slow");
    Ok(Device {
        raw: path.clone(),
        path,
        size: SLOW_SIZE,
        _teardown: Some(teardown),
    })
}
