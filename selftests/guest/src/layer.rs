// SPDX-License-Identifier: GPL-2.0

//! The block devices that the filesystem under test lies on.

use std::fs;
use std::mem;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::disk::{self, RawDisk};
use crate::fs::{run, LoopDevice};
use crate::snapshot;
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
    /// RAID 5 over files in memory, whose parity is computed from the very pages that are written. See
    /// [`parity_mismatches`].
    Raid5,
    /// A SCSI disk with T10 protection information: the guard tags are computed from a write's pages
    /// before the disk takes and verifies them. Needs `scsi_debug.dif=1 scsi_debug.dix=1` on the command
    /// line.
    Protection,
    /// The test disk behind a device that can be stopped: writeback stays in flight for as long as
    /// something is done meanwhile. See [`Hold`].
    Held,
    /// The test disk behind dm-log-writes, with the log on the second test disk: what a power cut would
    /// have left at any time can be made again. See [`crate::logwrites`].
    LogWrites,
    /// The test disk behind a device that snapshots can be taken of. See [`crate::snapshot`].
    Origin,
    /// The test disk behind a path of which any part can go down and come back. See [`Outage`].
    Failing,
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
    /// What the device lies on; goes after it.
    _pieces: Vec<LoopDevice>,
}

const MIB: u64 = 1 << 20;
const INTEGRITY_SIZE: u64 = 32 * MIB;

impl Device {
    /// Lets go of what a test that was killed may have held.
    pub fn release(&self) {
        for name in [HELD, snapshot::ORIGIN] {
            if self.path.ends_with(name) {
                let _ = dmsetup(&["resume", name]);
            }
        }
        if self.path.ends_with(FAILING) {
            let _ = repair();
        }
    }
}

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
                let (disk, view, size) = zeroed(disk, view, size)?;
                Ok(Device {
                    path: disk.to_owned(),
                    raw: view.to_owned(),
                    size,
                    _teardown: None,
                    _pieces: Vec::new(),
                })
            }
            Layer::Integrity => integrity(pair(disk, view)?.0),
            Layer::Raid5 => raid5(),
            Layer::Protection => protection(),
            Layer::Held => held(zeroed(disk, view, size)?),
            Layer::LogWrites => logged(zeroed(disk, view, size.min(LOGGED_SIZE))?),
            Layer::Origin => origin(zeroed(disk, view, size)?),
            Layer::Failing => failing(zeroed(disk, view, size)?),
        }
    }
}

fn pair<'a>(disk: Option<&'a Path>, view: Option<&'a Path>) -> Result<(&'a Path, &'a Path)> {
    match (disk, view) {
        (Some(disk), Some(view)) => Ok((disk, view)),
        _ => bail!("no test disk: neither serial numbers pinwb-disk0 and pinwb-view0 nor options"),
    }
}

/// Of the test disk, and of what shows what is on it, the first bytes, which are zeroes: `size` of them, if
/// there are as many.
fn zeroed<'a>(
    disk: Option<&'a Path>,
    view: Option<&'a Path>,
    size: u64,
) -> Result<(&'a Path, &'a Path, u64)> {
    let (disk, view) = pair(disk, view)?;
    let size = size.min(disk::device_size(disk)?);
    disk::zero(disk, size)?;
    Ok((disk, view, size))
}

const INTEGRITY: &str = "pinwb-integrity";

/// Runs dmsetup(8).
pub fn dmsetup(arguments: &[&str]) -> Result<String> {
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
        bail!("no dm-integrity: {:#}", why.context("no hash")?);
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
        _pieces: Vec::new(),
    })
}

const RAID: &str = "md_pinwb";
const RAID_PIECES: usize = 3;
const RAID_PIECE_SIZE: u64 = 12 * MIB;

fn raid_attribute(name: &str) -> PathBuf {
    Path::new("/sys/block").join(RAID).join("md").join(name)
}

fn set(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

fn remove_raid() {
    let _ = fs::write(raid_attribute("array_state"), "clear");
}

/// A loop device over a file in memory. Its thread takes the data of a write some time after parity was
/// computed, as a disk does; a ram disk would take them at once.
fn raid_piece() -> Result<LoopDevice> {
    let path = std::env::temp_dir().join("pinwb-raid-piece");
    fs::File::create(&path)?.set_len(RAID_PIECE_SIZE)?;
    let piece = LoopDevice::new(&path);
    fs::remove_file(&path)?;
    piece
}

/// Assembles the array by its sysfs files, without any metadata on its pieces.
fn raid5() -> Result<Device> {
    if raid_attribute("array_state").exists() {
        remove_raid();
    }
    let parameters = Path::new("/sys/module/md_mod/parameters");
    if !parameters.exists() {
        return skip("no CONFIG_BLK_DEV_MD");
    }
    // Else an array that was cleared keeps its name.
    let _ = fs::write(parameters.join("legacy_async_del_gendisk"), "0");
    set(&parameters.join("new_array"), RAID)?;
    let teardown = Teardown(remove_raid);
    let pieces = (0..RAID_PIECES)
        .map(|_| raid_piece())
        .collect::<Result<Vec<_>>>()?;
    let kib = (RAID_PIECE_SIZE >> 10).to_string();
    for (name, value) in [
        ("metadata_version", "none"),
        ("level", "raid5"),
        ("raid_disks", &RAID_PIECES.to_string()),
        ("chunk_size", "65536"),
        // Left-symmetric.
        ("layout", "2"),
    ] {
        set(&raid_attribute(name), value)?;
    }
    for (slot, piece) in pieces.iter().enumerate() {
        let name = piece
            .path()
            .file_name()
            .context("a loop device has a name")?;
        let number = disk::attribute(piece.path(), "dev")?;
        set(&raid_attribute("new_dev"), number.trim())?;
        let piece = raid_attribute(&format!("dev-{}", name.to_string_lossy()));
        set(&piece.join("slot"), &slot.to_string())?;
        set(&piece.join("size"), &kib)?;
    }
    set(&raid_attribute("component_size"), &kib)?;
    // Zeroes have the parity that they should.
    set(&raid_attribute("resync_start"), "none")?;
    set(&raid_attribute("array_state"), "active")?;
    // By default, parity is computed from a copy that the array makes, which hides what a device does.
    set(&raid_attribute("skip_copy"), "1")?;
    set(&raid_attribute("sync_speed_min"), "1000000")?;
    let path = Path::new("/dev").join(RAID);
    Ok(Device {
        raw: path.clone(),
        size: RAID_PIECE_SIZE * (RAID_PIECES as u64 - 1),
        path,
        _teardown: Some(teardown),
        _pieces: pieces,
    })
}

/// Reads all of the array of [`Layer::Raid5`]; counts the sectors whose parity is wrong.
pub fn parity_mismatches() -> Result<u64> {
    set(&raid_attribute("sync_action"), "check")?;
    let end = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(raid_attribute("sync_action"))?.trim() != "idle" {
        if Instant::now() >= end {
            bail!("the check of the array does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let count = fs::read_to_string(raid_attribute("mismatch_cnt"))?;
    count.trim().parse().context("mismatch_cnt")
}

const PROTECTED_SIZE: u64 = 24 * MIB;

/// Why a test of [`Layer::Protection`] is skipped.
pub const NO_PROTECTED_DISK: &str =
    "no disk with protection information: scsi_debug.dif=1 scsi_debug.dix=1";

/// The disk with protection information, which is a SCSI disk in memory.
pub fn protected_disk() -> Result<Option<PathBuf>> {
    let mut disks = fs::read_dir("/sys/block")?.flatten().map(|e| e.path());
    let is_protected = |disk: &PathBuf| {
        let read = |name: &str| fs::read_to_string(disk.join(name)).unwrap_or_default();
        read("device/model").contains("scsi_debug") && read("integrity/format").contains("T10-DIF")
    };
    Ok(disks
        .find(is_protected)
        .and_then(|disk| Some(Path::new("/dev").join(disk.file_name()?))))
}

fn protection() -> Result<Device> {
    let Some(path) = protected_disk()? else {
        return skip(NO_PROTECTED_DISK);
    };
    let size = PROTECTED_SIZE.min(disk::device_size(&path)?);
    disk::overwrite(&path, size)?;
    Ok(Device {
        raw: path.clone(),
        size,
        path,
        _teardown: None,
        _pieces: Vec::new(),
    })
}

fn origin((disk, view, size): (&Path, &Path, u64)) -> Result<Device> {
    snapshot::tear_down();
    Ok(Device {
        path: snapshot::set_up(disk, size)?,
        raw: view.to_owned(),
        size,
        _teardown: Some(Teardown(snapshot::tear_down)),
        _pieces: Vec::new(),
    })
}

const HELD: &str = "pinwb-held";

fn remove_held() {
    let _ = dmsetup(&["resume", HELD]);
    let _ = dmsetup(&["remove", "--retry", HELD]);
}

fn held((disk, view, size): (&Path, &Path, u64)) -> Result<Device> {
    linear(HELD, remove_held, disk, view, size)
}

/// A device of that name with the contents of the test disk.
fn linear(name: &str, remove: fn(), disk: &Path, view: &Path, size: u64) -> Result<Device> {
    if dmsetup(&["version"]).is_err() {
        bail!("no device mapper");
    }
    if Path::new("/dev/mapper").join(name).exists() {
        remove();
    }
    let table = format!("0 {} linear {} 0", size / 512, disk.display());
    dmsetup(&["create", name, "--table", &table])?;
    Ok(Device {
        path: Path::new("/dev/mapper").join(name),
        raw: view.to_owned(),
        size,
        _teardown: Some(Teardown(remove)),
        _pieces: Vec::new(),
    })
}

/// Keeps what is sent to the device of [`Layer::Held`] from getting there, until dropped.
pub struct Hold(());

impl Hold {
    /// Everything sent from now on stays in flight.
    pub fn start() -> Result<Self> {
        dmsetup(&["suspend", "--nolockfs", "--noflush", HELD])?;
        Ok(Self(()))
    }

    /// Has another process end it. This one may be stuck: btrfs waits for writeback in a page fault, under
    /// the lock of the address space, which to start a process takes as well.
    pub fn end_after(self, delay: Duration) -> Result<Child> {
        let script = format!("sleep {}; dmsetup resume {HELD}", delay.as_secs_f32());
        let child = Command::new("sh").args(["-c", &script]).spawn()?;
        mem::forget(self);
        Ok(child)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = dmsetup(&["resume", HELD]);
    }
}

/// Name of the device of [`Layer::LogWrites`].
pub const LOGGED: &str = "pinwb-logged";
/// Small, because it is checked as a whole at each of many points.
const LOGGED_SIZE: u64 = 64 * MIB;

fn remove_logged() {
    let _ = dmsetup(&["remove", "--retry", LOGGED]);
}

fn logged((disk, view, size): (&Path, &Path, u64)) -> Result<Device> {
    let log = disk::second()?;
    if Path::new("/dev/mapper").join(LOGGED).exists() {
        remove_logged();
    }
    // The superblock of an older log must not pass for this one's.
    disk::zero(&log, MIB)?;
    let table = format!(
        "0 {} log-writes {} {}",
        size / 512,
        disk.display(),
        log.display()
    );
    dmsetup(&["create", LOGGED, "--table", &table])?;
    Ok(Device {
        path: Path::new("/dev/mapper").join(LOGGED),
        raw: view.to_owned(),
        size,
        _teardown: Some(Teardown(remove_logged)),
        _pieces: Vec::new(),
    })
}

const FAILING: &str = "pinwb-failing";

fn remove_failing() {
    let _ = repair();
    let _ = dmsetup(&["remove", "--retry", FAILING]);
}

fn failing((disk, view, size): (&Path, &Path, u64)) -> Result<Device> {
    linear(FAILING, remove_failing, disk, view, size)
}

/// Puts another table in place, once what is in flight has ended.
fn switch_table(table: &str) -> Result<()> {
    dmsetup(&["reload", FAILING, "--table", table])?;
    dmsetup(&["suspend", "--nolockfs", FAILING])?;
    dmsetup(&["resume", FAILING]).map(|_| ())
}

/// Sectors of the device of [`Layer::Failing`], and the device below, which every target names.
fn whole() -> Result<(u64, String)> {
    let table = dmsetup(&["table", FAILING])?;
    let mut sectors = 0;
    let mut below = None;
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [start, len, _, ref arguments @ ..] = words[..] else {
            bail!("odd table: {line}");
        };
        sectors = start.parse::<u64>()? + len.parse::<u64>()?;
        below = below.or(arguments.first().map(|device| (*device).to_owned()));
    }
    let below = below.context("no device below")?;
    Ok((sectors, below))
}

fn repair() -> Result<()> {
    let (sectors, below) = whole()?;
    switch_table(&format!("0 {sectors} linear {below} 0"))
}

/// A part of the device of [`Layer::Failing`] is out of reach until this is dropped.
pub struct Outage(());

impl Outage {
    /// Reads and writes that touch one of `ranges`, bytes in order, fail. At least one range, and some
    /// other part of the device, have to be left.
    pub fn of(ranges: &[Range<u64>]) -> Result<Self> {
        let (sectors, below) = whole()?;
        let mut table = String::new();
        let mut position = 0;
        let reachable = |from: u64, to: u64| match from < to {
            true => format!("{from} {} linear {below} {from}\n", to - from),
            false => String::new(),
        };
        for range in ranges {
            let (start, end) = (range.start / 512, range.end.div_ceil(512));
            table += &reachable(position, start);
            table += &format!("{start} {} error\n", end - start);
            position = end;
        }
        table += &reachable(position, sectors);
        switch_table(table.trim_end())?;
        Ok(Self(()))
    }

    /// Every write fails; reads don't.
    pub fn of_writes() -> Result<Self> {
        let (sectors, below) = whole()?;
        switch_table(&format!(
            "0 {sectors} flakey {below} 0 0 3600 1 error_writes"
        ))?;
        Ok(Self(()))
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        if let Err(error) = repair() {
            crate::diag!("the path does not come back: {error:#}");
        }
    }
}
