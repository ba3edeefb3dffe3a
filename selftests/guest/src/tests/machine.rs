// SPDX-License-Identifier: GPL-2.0

//! What happens to the disk below a pinned file: a snapshot is taken of it, it becomes read-only, it goes
//! away. Nothing hangs, nothing that was promised is lost, and the filesystem can be unmounted.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};

use super::common::{wait_until, Pinned, Sysctl, MIB};
use crate::context::{create, expect_contents, Context};
use crate::device::{while_writing, Kind};
use crate::diag;
use crate::disk::{self, RawDisk};
use crate::fs::{self as filesystem, run};
use crate::kmsg;
use crate::layer::{self, Layer};
use crate::snapshot::Snapshot;
use crate::stamp::Stamp;
use crate::tap::{skip, Invariant, Test};

use Invariant::{I1, I3, I4};

pub const TESTS: &[Test] = &[
    Test::new("machine.snapshot", snapshot)
        .on(Layer::Origin)
        .proves(&[I1, I3, I4]),
    // The emergency remount passes filesystems without a device of their own by.
    Test::new("machine.sysrq_u", sysrq_u)
        .only("ext4 xfs")
        .proves(&[I1, I3]),
    Test::new("machine.setro", setro).proves(&[I1, I3]),
    Test::new("machine.removed", removed).proves(&[I1, I3]),
    Test::new("machine.suspend", suspend).proves(&[I1, I3, I4]),
];

const LEN: u64 = 4 * MIB;

/// Mounts a copy of a snapshot, looks at the pinned file in it, and has the copy checked.
fn look_into(
    context: &Context,
    snapshot: &Snapshot,
    look: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let disk = RawDisk::open(&snapshot.path())?;
    context
        .with_copy(&disk, |directory| look(&directory.join("file")))
        .context("in the snapshot")
}

/// A snapshot has what the device had written when it was taken, and can be mounted, also if the device
/// does not stop.
fn snapshot(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    pinned.write(2)?;
    let taken = Snapshot::take(context.size(), context.work())?;
    pinned.write(3)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 3)?;
    let (range, stamp) = (pinned.range.clone(), pinned.stamp);
    look_into(context, &taken, |file| {
        expect_contents(&fs::File::open(file)?, range, stamp.round(2))
    })?;
    drop(taken);

    let stamp = Stamp::fresh();
    let range = pinned.range.clone();
    let (taken, last) = while_writing(&mut *pinned.device, stamp, range, || {
        pinned.file.sync_all()?;
        Snapshot::take(context.size(), context.work())
    })?;
    look_into(context, &taken, |file| match fs::metadata(file)?.len() {
        LEN => Ok(()),
        len => bail!("the file has {len} bytes"),
    })?;
    drop(taken);
    pinned.file.sync_all()?;
    context.expect_on_disk(&pinned.file, pinned.range.clone(), stamp.round(last))
}

/// fsync(2) of what the device wrote while the disk could perhaps not be written: if it returns 0 the data
/// is there. Returns whether it did.
fn sync_or_fail(context: &Context, pinned: &Pinned, round: u32) -> Result<bool> {
    match pinned.file.sync_all() {
        Ok(()) => pinned
            .expect_on_disk(context, round)
            .context("fsync returned 0")
            .map(|()| true),
        Err(error) => {
            diag!("fsync: {error}");
            Ok(false)
        }
    }
}

/// The emergency remount does not ask.
fn sysrq_u(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    fs::write("/proc/sysrq-trigger", "u")?;
    let is_read_only = || -> Result<bool> {
        Ok(fs::read_to_string("/proc/self/mounts")?
            .lines()
            .any(|line| {
                let fields: Vec<_> = line.split(' ').collect();
                fields.get(1).map(Path::new) == Some(&context.root())
                    && fields
                        .get(3)
                        .is_some_and(|options| options.split(',').any(|option| option == "ro"))
            }))
    };
    if !wait_until(Duration::from_secs(20), is_read_only)? {
        bail!("the filesystem was not remounted");
    }
    pinned.write(2)?;
    let synced = sync_or_fail(context, &pinned, 2)?;
    let (range, stamp) = (pinned.range.clone(), pinned.stamp);
    pinned.release()?;
    context.remount_checked()?;
    let file = context.open("file")?;
    let second = expect_contents(&file, range.clone(), stamp.round(2));
    match synced {
        true => second,
        // It may have been written nevertheless.
        false => second.or_else(|_| expect_contents(&file, range, stamp.round(1))),
    }
}

/// blockdev --setro of a disk that is mounted: the block layer complains of writes, and does them.
fn setro(context: &Context) -> Result<()> {
    kmsg::expect("Trying to write to read-only block-device");
    let set = |to: &str| run(Command::new("blockdev").arg(to).arg(context.device()));
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    set("--setro")?;
    let written = pinned.write(2);
    let synced = sync_or_fail(context, &pinned, 2);
    set("--setrw")?;
    written?;
    synced?;
    pinned.write(3)?;
    pinned
        .file
        .sync_all()
        .context("fsync with the disk writable")?;
    pinned.expect_on_disk(context, 3)
}

/// Has a SCSI host look for its disks again, when dropped.
struct Rescan(String);

impl Drop for Rescan {
    fn drop(&mut self) {
        let _ = fs::write(format!("/sys/class/scsi_host/{}/scan", self.0), "- - -");
    }
}

/// The SCSI host of a disk, as sysfs names it.
fn scsi_host(device: &Path) -> Result<String> {
    let is_host = |name: &&str| {
        name.strip_prefix("host")
            .is_some_and(|number| number.parse::<u32>().is_ok())
    };
    fs::canonicalize(device)?
        .iter()
        .filter_map(|name| name.to_str())
        .find(is_host)
        .map(String::from)
        .context("a SCSI disk without a host")
}

/// A disk is unplugged. fsync(2) tells, and what the disk had is there when it is back.
fn removed(context: &Context) -> Result<()> {
    let Some(disk) = layer::protected_disk()? else {
        return skip(layer::NO_PROTECTED_DISK);
    };
    for text in ["I/O error", "EXT4-fs", "JBD2", "XFS", "BTRFS"] {
        kmsg::expect(text);
    }
    let kind = context.kind();
    let directory = context.work().join("unplugged");
    fs::create_dir_all(&directory)?;
    let size = disk::device_size(&disk)?;
    // What a test without copies has written has wrong guard tags, and can't be read.
    disk::overwrite(&disk, size)?;
    run(&mut kind.mkfs(&disk, size, &[]))?;
    let mount =
        |disk: &Path| filesystem::mount(disk, &directory, kind.name(), context.mount_options());
    mount(&disk)?;

    let file = create(&directory.join("file"))?;
    file.set_len(LEN)?;
    let mut pinned = Pinned::new(Kind::Uring, file, Stamp::fresh())?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    let device = disk::attribute_path(&disk, "device")?;
    let unplugged = Rescan(scsi_host(&device)?);
    fs::write(device.join("delete"), "1")?;
    pinned.write(2)?;
    let synced = pinned.file.sync_all();
    let (range, stamp) = (pinned.range.clone(), pinned.stamp);
    pinned.release()?;
    filesystem::unmount(&directory).context("without the disk")?;

    // Its name may be another one.
    drop(unplugged);
    let back = || Ok(layer::protected_disk()?.is_some_and(|disk| disk.exists()));
    if !wait_until(Duration::from_secs(10), back)? {
        bail!("the disk did not come back");
    }
    if synced.is_ok() {
        bail!("fsync returned 0 without a disk");
    }
    let disk = layer::protected_disk()?.context("the disk has gone again")?;
    mount(&disk)?;
    let found = fs::File::open(directory.join("file"))
        .map_err(Into::into)
        .and_then(|file| expect_contents(&file, range, stamp.round(1)));
    filesystem::unmount(&directory)?;
    found?;
    run(&mut kind.check(&disk)).map(drop)
}

/// Has the kernel suspend no further than a level, and go on from there.
struct SuspendTest {
    _delay: Sysctl,
}

impl SuspendTest {
    const LEVEL: &str = "/sys/power/pm_test";

    fn new(level: &str) -> Result<Self> {
        if !Path::new(Self::LEVEL).exists() {
            return skip("the kernel has no CONFIG_PM_DEBUG");
        }
        let delay = Sysctl::set("/sys/module/suspend/parameters/pm_test_delay", "1")?;
        fs::write(Self::LEVEL, level).context("pm_test")?;
        Ok(Self { _delay: delay })
    }
}

impl Drop for SuspendTest {
    fn drop(&mut self) {
        let _ = fs::write(Self::LEVEL, "none");
    }
}

/// The machine is suspended until its devices are, while a device writes, and with the filesystems frozen
/// for it as well. It is not kept awake by a pin, has all on the disk that was there before, and goes on.
fn suspend(context: &Context) -> Result<()> {
    let _test = SuspendTest::new("devices")?;
    let suspend = || fs::write("/sys/power/state", "freeze").context("not suspended");
    for (freeze, kind) in [("0", Kind::Verbs), ("1", Kind::Uring)] {
        let _freeze = Sysctl::set("/sys/power/freeze_filesystems", freeze)?;
        let mut pinned = Pinned::sparse(context, kind, "file", LEN)?;
        pinned.write(1)?;
        suspend()?;
        pinned
            .expect_on_disk(context, 1)
            .context("suspending syncs")?;

        let (stamp, range) = (Stamp::fresh(), pinned.range.clone());
        let ((), last) = while_writing(&mut *pinned.device, stamp, range.clone(), suspend)?;
        pinned.file.sync_all()?;
        context.expect_on_disk(&pinned.file, range, stamp.round(last))?;
        pinned.remount(context, "file")?;
    }
    Ok(())
}
