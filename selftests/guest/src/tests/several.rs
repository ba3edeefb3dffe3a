// SPDX-License-Identifier: GPL-2.0

//! Filesystems on several devices. On btrfs the copy of a pinned folio is taken once, before it is mirrored,
//! striped or goes into parity. On XFS the data is on a realtime device.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::common::{while_syncing, Pinned, MIB};
use crate::btrfs;
use crate::context::{create, expect_contents, Context};
use crate::device::{while_writing, Kind};
use crate::diag;
use crate::disk::RawDisk;
use crate::fs::{detach, mount, run, unmount, LoopDevice};
use crate::layer::Layer;
use crate::stamp::Stamp;
use crate::tap::{Invariant, Test};

use Invariant::{I1, I2, I3, I4};

const fn several(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
    Test::new(name, run).on(Layer::None)
}

const fn profile(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
    several(name, run)
        .only("btrfs")
        .proves(&[I2, I4])
        .without("no_copy")
}

pub const TESTS: &[Test] = &[
    profile("several.raid0", |c| {
        scrub_while_dma(c, Layout::Profile("raid0"))
    }),
    profile("several.raid1", |c| {
        scrub_while_dma(c, Layout::Profile("raid1"))
    }),
    profile("several.raid10", |c| {
        scrub_while_dma(c, Layout::Profile("raid10"))
    }),
    profile("several.raid5", |c| {
        scrub_while_dma(c, Layout::Profile("raid5"))
    }),
    profile("several.raid6", |c| {
        scrub_while_dma(c, Layout::Profile("raid6"))
    }),
    several("several.replace", replace)
        .only("btrfs")
        .proves(&[I3, I4]),
    several("several.convert", convert)
        .only("btrfs")
        .proves(&[I3, I4]),
    several("several.realtime", realtime)
        .only("xfs")
        .proves(&[I1, I4])
        .without("no_keep_dirty"),
];

const LEN: u64 = MIB;
/// On smaller ones some stripes are on three of four devices, about which the kernel's RAID 6 code warns. And
/// a scrub makes a block group read-only on each device and allocates others for it: on btrfs of 1.5 GiB, of
/// which 2 MiB are used, there may be no space for data then.
const DEVICE_SIZE: u64 = 1024 * MIB;

/// How devices make up a filesystem.
#[derive(Clone, Copy)]
enum Layout {
    /// btrfs, with this profile for data.
    Profile(&'static str),
    /// XFS, with the contents of files on the second.
    Realtime,
}

impl Layout {
    fn devices(self) -> usize {
        match self {
            Layout::Profile(_) => 4,
            Layout::Realtime => 2,
        }
    }

    fn mkfs(self, context: &Context, paths: &[&Path]) -> Command {
        match self {
            Layout::Profile(profile) => {
                let mut command = Command::new("mkfs.btrfs");
                command
                    .args(["-q", "-f", "-K", "-m", "raid1", "-d", profile])
                    .args(paths);
                command
            }
            Layout::Realtime => {
                let device = format!("rtdev={}", paths[1].display());
                let options = ["-d", "rtinherit=1", "-m", "reflink=0", "-r", &device];
                let options = options.map(str::to_owned);
                context.kind().mkfs(paths[0], DEVICE_SIZE, &options)
            }
        }
    }

    fn mount_options(self, paths: &[&Path]) -> String {
        match self {
            // What is discarded takes none of the memory that the devices lie in. And none but the test
            // commits: the devices are copied one after the other, which is no power cut if one of them gets
            // a superblock meanwhile.
            Layout::Profile(_) => {
                let options = "discard,commit=300".to_owned();
                paths.iter().fold(options, |options, path| {
                    format!("{options},device={}", path.display())
                })
            }
            Layout::Realtime => format!("nouuid,rtdev={}", paths[1].display()),
        }
    }

    fn check(self, context: &Context, paths: &[&Path]) -> Result<()> {
        let mut command = context.kind().check(paths[0]);
        if let Layout::Realtime = self {
            command.arg("-r").arg(paths[1]);
        }
        run(&mut command).map(drop)
    }
}

/// A filesystem on several devices, mounted until dropped.
struct Several<'a> {
    context: &'a Context,
    layout: Layout,
    directory: PathBuf,
    devices: Vec<LoopDevice>,
}

fn paths(devices: &[LoopDevice]) -> Vec<&Path> {
    devices.iter().map(LoopDevice::path).collect()
}

/// A device over an empty file in memory.
fn empty_device(context: &Context, nth: usize) -> Result<LoopDevice> {
    let path = context.work().join(format!("several-{nth}"));
    let _ = fs::remove_file(&path);
    File::create(&path)?.set_len(DEVICE_SIZE)?;
    // Gone with the device.
    let device = LoopDevice::new(&path);
    fs::remove_file(&path)?;
    device
}

impl<'a> Several<'a> {
    fn new(context: &'a Context, layout: Layout) -> Result<Self> {
        let devices = (0..layout.devices())
            .map(|nth| empty_device(context, nth))
            .collect::<Result<Vec<_>>>()?;
        run(&mut layout.mkfs(context, &paths(&devices)))?;
        Self::assemble(context, layout, devices)
    }

    fn assemble(context: &'a Context, layout: Layout, devices: Vec<LoopDevice>) -> Result<Self> {
        let directory = context.work().join("several");
        fs::create_dir_all(&directory)?;
        let several = Self {
            context,
            layout,
            directory,
            devices,
        };
        let paths = paths(&several.devices);
        mount(
            paths[0],
            &several.directory,
            context.kind().name(),
            &layout.mount_options(&paths),
        )?;
        Ok(several)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Frees what was replaced since the last commit: the devices are in memory, and their copies will be.
    fn commit(&self) -> Result<()> {
        run(Command::new("sync").arg("-f").arg(&self.directory)).map(drop)
    }

    /// Any error on any device is one too many, however many copies of the block are right.
    fn scrub(&self) -> Result<()> {
        self.context.kind().scrub(&self.directory)
    }

    /// Unmounts and checks it.
    fn end(self) -> Result<()> {
        unmount(&self.directory)?;
        self.layout.check(self.context, &paths(&self.devices))
    }

    /// Cuts the power: what is on the devices now, mounted, in the place of the filesystem.
    fn after_power_cut(self) -> Result<Self> {
        let copies = (0..)
            .zip(&self.devices)
            .map(|(nth, device)| {
                let path = self.context.work().join(format!("several-copy-{nth}"));
                RawDisk::open(device.path())?.copy_sparse(DEVICE_SIZE, &path)?;
                let copy = LoopDevice::new(&path);
                fs::remove_file(&path)?;
                copy
            })
            .collect::<Result<Vec<_>>>()?;
        let (context, layout) = (self.context, self.layout);
        self.end()?;
        Self::assemble(context, layout, copies)
    }
}

impl Drop for Several<'_> {
    fn drop(&mut self) {
        detach(&self.directory);
        if let Layout::Profile(_) = self.layout {
            // The kernel remembers the devices, and would mistake a copy for one of them, or what another test
            // puts in the place of one.
            if let Err(error) = btrfs::command(&["device", "scan", "--forget"], &[]) {
                diag!("{error:#}");
            }
        }
    }
}

/// A device writes and a thread syncs while something is done to the filesystem; then all is on the disks.
fn while_dma(
    context: &Context,
    layout: Layout,
    body: impl FnOnce(&mut Several<'_>) -> Result<()>,
) -> Result<()> {
    let mut several = Several::new(context, layout)?;
    let file = create(&several.path("file"))?;
    file.set_len(LEN)?;
    let mut pinned = Pinned::new(Kind::Uring, file, Stamp::fresh())?;
    pinned.write(0)?;
    pinned.file.sync_all()?;
    let (stamp, range, file) = (pinned.stamp, pinned.range.clone(), &pinned.file);
    let ((), last) = while_writing(&mut *pinned.device, stamp, range.clone(), || {
        while_syncing(file, File::sync_data, || body(&mut several))
    })?;
    several.commit()?;
    several.scrub()?;
    let last = last + 1;
    pinned.write(last)?;
    pinned.file.sync_all()?;
    pinned.release()?;
    let after = several.after_power_cut()?;
    expect_contents(&File::open(after.path("file"))?, range, stamp.round(last))?;
    after.scrub()?;
    after.end()
}

fn scrub_while_dma(context: &Context, layout: Layout) -> Result<()> {
    while_dma(context, layout, |several| {
        (0..3).try_for_each(|_| {
            thread::sleep(Duration::from_millis(300));
            several.scrub()?;
            several.commit()
        })
    })
}

/// A device is copied to another and leaves, while writes go to both.
fn replace(context: &Context) -> Result<()> {
    while_dma(context, Layout::Profile("raid1"), |several| {
        let spare = empty_device(context, several.devices.len())?;
        btrfs::command(
            &["replace", "start", "-B", "-f"],
            &[Path::new("1"), spare.path(), &several.directory],
        )?;
        several.devices[0] = spare;
        Ok(())
    })
}

/// All block groups get another profile.
fn convert(context: &Context) -> Result<()> {
    while_dma(context, Layout::Profile("raid1"), |several| {
        ["-dconvert=raid0", "-dconvert=raid10", "-dconvert=raid5"]
            .iter()
            .try_for_each(|filter| {
                let arguments = ["balance", "start", filter];
                btrfs::command(&arguments, &[&several.directory]).map(drop)
            })
    })
}

/// What is synced while the device writes is on the realtime device.
fn realtime(context: &Context) -> Result<()> {
    scrub_while_dma(context, Layout::Realtime)
}
