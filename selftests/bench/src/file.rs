// SPDX-License-Identifier: GPL-2.0

//! Filesystems in memory, and files whose pages are all dirty.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use nix::mount::{mount, MsFlags};

/// Directories where mkfs may be.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A ram disk: its I/O ends before it returns, so that nothing ever waits for a device.
const DISK: &str = "/dev/ram0";

/// Mounts a filesystem without a device on a directory, which is made.
pub fn mount_virtual(fstype: &str, at: &Path, options: &str) -> Result<()> {
    let _ = fs::create_dir_all(at);
    mount(
        Some(fstype),
        at,
        Some(fstype),
        MsFlags::empty(),
        Some(options),
    )
    .with_context(|| format!("mount {fstype} on {}", at.display()))
}

/// Makes an ext4 with 4 KiB blocks on a ram disk and mounts it on a directory, which is made.
pub fn mount_ext4(at: &Path) -> Result<()> {
    let out = Command::new("mkfs.ext4")
        .env("PATH", PATH)
        .args(["-q", "-F", "-b", "4096", "-m", "0"])
        // Nothing is to write in the background.
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"])
        .arg(DISK)
        .output()
        .context("run mkfs.ext4")?;
    if !out.status.success() {
        bail!("mkfs.ext4: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    fs::create_dir_all(at)?;
    mount(Some(DISK), at, Some("ext4"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount {DISK} on {}", at.display()))
}

/// Makes a file of `len` bytes by writes of `chunk` bytes: the size of its folios, if the
/// filesystem has large ones.
pub fn written(path: PathBuf, len: usize, chunk: usize) -> Result<PathBuf> {
    let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let bytes = vec![0x5a; chunk];
    for _ in 0..len / chunk {
        file.write_all(&bytes)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(path)
}

/// Keeps the flusher away: what a benchmark made dirty stays dirty.
pub fn no_background_writeback() -> Result<()> {
    for (name, value) in [
        ("dirty_writeback_centisecs", "0"),
        ("dirty_background_bytes", "805306368"),
        ("dirty_bytes", "939524096"),
    ] {
        let path = Path::new("/proc/sys/vm").join(name);
        fs::write(&path, value).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Opens for reading and writing.
pub fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// Bytes in the page cache that are dirty.
pub fn dirty_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix("Dirty:")?.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib << 10)
        .context("no Dirty: in /proc/meminfo")
}

/// Whether the kernel has the subsystem, and it is on: opted-in files can be pinned for write.
pub fn has_pinwb() -> bool {
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    Path::new("/sys/kernel/debug/pinwb").is_dir()
        && !command_line
            .split_whitespace()
            .any(|word| word == "pinwb=off")
}
