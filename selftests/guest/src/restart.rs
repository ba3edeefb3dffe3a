// SPDX-License-Identifier: GPL-2.0

//! A machine that restarts while a device writes to pinned pages: through its firmware, or into another
//! kernel by kexec. Who restarts it calls sync(2) before; what a device had written by then is on the disk
//! afterwards, the filesystem is sound, and nothing waits for the pins.
//!
//! Each restart begins this program anew. How far it was is on the second disk.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, create_dir_all, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::context::expect_contents;
use crate::device::{while_writing, Kind};
use crate::disk;
use crate::fs as filesystem;
use crate::layer::Layer;
use crate::ledger::Switch;
use crate::mounted::on_new_filesystem;
use crate::options::Options;
use crate::stamp::Stamp;
use crate::tap::Invariant;
use crate::tests::common::{Pinned, MIB};

/// What to do.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
}

#[derive(Clone, Copy)]
enum How {
    Firmware,
    Kexec,
}

/// One restart.
pub struct Case {
    /// As a test's.
    pub name: &'static str,
    /// The step that it fails without; empty if it is not run a second time.
    pub without: &'static str,
    fs: &'static str,
    how: How,
    kind: Kind,
}

/// The invariants that all of them are about.
pub const PROVES: &[Invariant] = &[Invariant::I3, Invariant::I4];

/// All of them.
pub const CASES: &[Case] = &[
    Case {
        name: "restart.ext4_firmware",
        without: "",
        fs: "ext4",
        how: How::Firmware,
        kind: Kind::Uring,
    },
    Case {
        name: "restart.ext4_kexec",
        without: "no_keep_dirty",
        fs: "ext4",
        how: How::Kexec,
        kind: Kind::Verbs,
    },
    Case {
        name: "restart.xfs_kexec",
        without: "",
        fs: "xfs",
        how: How::Kexec,
        kind: Kind::Uring,
    },
    Case {
        name: "restart.btrfs_kexec",
        without: "",
        fs: "btrfs",
        how: How::Kexec,
        kind: Kind::Verbs,
    },
];

/// The device has written this part of the file before sync(2) ...
const WRITTEN: Range<u64> = 0..2 * MIB;
/// ... and goes on writing this one until the end.
const BUSY: Range<u64> = 2 * MIB..4 * MIB;
const FILE: &str = "file";
const ROUND: u32 = 2;

/// The serial number of the disk that the kernel is on.
const KERNEL_SERIAL: &str = "pinwb-kernel";

/// What a restart is to leave behind.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Record {
    /// Which of the runs it is.
    run: usize,
    /// The file's number, when sync(2) has returned.
    synced: Option<u32>,
}

/// The second disk, which has the record and nothing else.
struct Notebook(PathBuf);

impl Notebook {
    const LEN: usize = 4096;

    fn open() -> Result<Self> {
        disk::second().map(Self)
    }

    fn read(&self) -> Result<Option<Record>> {
        let mut bytes = vec![0; Self::LEN];
        File::open(&self.0)?.read_exact(&mut bytes)?;
        bytes.retain(|byte| *byte != 0);
        if bytes.is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    fn write(&self, record: &Record) -> Result<()> {
        let mut bytes = serde_json::to_vec(record)?;
        bytes.resize(Self::LEN, 0);
        let mut disk = OpenOptions::new().write(true).open(&self.0)?;
        disk.write_all(&bytes)?;
        disk.sync_all().context("cannot write the record")
    }
}

/// Runs the cases, or goes on with them after a restart, and prints TAP.
pub fn run(arguments: &Arguments, options: &Options) -> Result<()> {
    let runs: Vec<Run> = CASES
        .iter()
        .filter(|case| case.name.contains(&arguments.filter))
        .flat_map(|case| [false, true].map(|knocked_out| Run { case, knocked_out }))
        .filter(|run| !run.knocked_out || !run.case.without.is_empty())
        .collect();
    let notebook = Notebook::open()?;
    let mut next = 0;
    match notebook.read()? {
        None => println!("TAP version 13\n1..{}", runs.len()),
        Some(record) => {
            let run = runs
                .get(record.run)
                .context("the second disk has the record of another run")?;
            run.judge(record.run, &record, options);
            next = record.run + 1;
        }
    }
    for (index, run) in runs.iter().enumerate().skip(next) {
        let Err(error) = run.restart(index, &notebook, options);
        run.say(index, false, &format!("{error:#}"));
    }
    Ok(())
}

/// A case, with its step or without.
struct Run<'a> {
    case: &'a Case,
    knocked_out: bool,
}

impl Run<'_> {
    /// Prints what came of it.
    fn say(&self, index: usize, ok: bool, why: &str) {
        for line in why.lines() {
            println!("# {line}");
        }
        let ok = if ok { "ok" } else { "not ok" };
        let Case { name, without, .. } = self.case;
        match self.knocked_out {
            false => println!("{ok} {} - {name}", index + 1),
            true => println!("{ok} {} - {name} [{without}]", index + 1),
        }
    }

    /// Says whether a restart has left what it had to, or if it has not, without the step.
    fn judge(&self, index: usize, record: &Record, options: &Options) {
        let Some(file) = record.synced else {
            self.say(index, false, "the machine restarted before it was told to");
            return;
        };
        let stamp = Stamp { file, round: ROUND };
        match (self.case.look(stamp, options), self.knocked_out) {
            (Ok(()), false) => self.say(index, true, ""),
            (Ok(()), true) => self.say(index, false, "it passes: the test can't fail"),
            (Err(error), false) => self.say(index, false, &format!("{error:#}")),
            (Err(error), true) => self.say(index, true, &format!("as it should: {error:#}")),
        }
    }

    /// Restarts the machine; returns if that fails.
    fn restart(&self, index: usize, notebook: &Notebook, options: &Options) -> Result<Infallible> {
        let case = self.case;
        notebook.write(&Record {
            run: index,
            synced: None,
        })?;
        if let How::Kexec = case.how {
            load_kernel(&options.work)?;
        }
        // What is on the disk is there for a call of sync(2).
        fs::write("/proc/sys/vm/dirty_writeback_centisecs", "0")?;
        on_new_filesystem(&case.options(options), Layer::Disk, ["", ""], |context| {
            let _knocked_out = self
                .knocked_out
                .then(|| Switch::knock_out(case.without))
                .transpose()?;
            let mut pinned = Pinned::sparse(context, case.kind, FILE, BUSY.end)?;
            pinned.write(1)?;
            filesystem::sync();
            pinned.write(ROUND)?;
            let stamp = pinned.stamp.round(ROUND);
            let (restarted, _) = while_writing(&mut *pinned.device, stamp, BUSY, || {
                filesystem::sync();
                notebook.write(&Record {
                    run: index,
                    synced: Some(stamp.file),
                })?;
                case.how.restart()
            })?;
            Ok(restarted)
        })
    }
}

impl Case {
    fn options(&self, options: &Options) -> Options {
        Options {
            fs: self.fs.to_owned(),
            ..options.clone()
        }
    }

    /// Fails unless a restart has left what `stamp` says.
    fn look(&self, stamp: Stamp, options: &Options) -> Result<()> {
        let options = self.options(options);
        let kind = filesystem::by_name(&options.fs)?;
        let disk = options.disk_path().context("no test disk")?;
        let directory = options.work.join("mnt");
        create_dir_all(&directory)?;
        filesystem::mount(&disk, &directory, kind.name(), kind.mount_options())?;
        let found = File::open(directory.join(FILE))
            .context("cannot open the file")
            .and_then(|file| expect_contents(&file, WRITTEN, stamp));
        filesystem::unmount(&directory)?;
        filesystem::run(&mut kind.check(&disk))?;
        found
    }
}

impl How {
    /// As systemctl(1) does in the end, when processes that it can't stop still run.
    fn restart(self) -> Result<Infallible> {
        let command = match self {
            Self::Firmware => libc::LINUX_REBOOT_CMD_RESTART,
            Self::Kexec => libc::LINUX_REBOOT_CMD_KEXEC,
        };
        // SAFETY: reboot(2) has no pointers with these commands.
        unsafe { libc::reboot(command) };
        Err(io::Error::last_os_error()).context("cannot restart")
    }
}

/// Loads the kernel that runs, with the same command line, for [`How::Kexec`].
fn load_kernel(work: &Path) -> Result<()> {
    const NO_INITRAMFS: libc::c_ulong = 4;
    let disk = disk::by_serial(KERNEL_SERIAL)
        .with_context(|| format!("no kernel: nothing has serial number {KERNEL_SERIAL}"))?;
    create_dir_all(work)?;
    // The system call wants a file.
    let image = work.join("kernel");
    io::copy(&mut File::open(&disk)?, &mut File::create(&image)?)?;
    let kernel = File::open(&image)?;
    let command_line = CString::new(fs::read_to_string("/proc/cmdline")?.trim_end())?;
    let bytes = command_line.as_bytes_with_nul();
    // SAFETY: The command line is `bytes.len()` bytes with the zero at the end; the descriptor is open.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            -1,
            bytes.len(),
            bytes.as_ptr(),
            NO_INITRAMFS,
        )
    };
    if loaded != 0 {
        return Err(io::Error::last_os_error()).context("cannot load a kernel for kexec");
    }
    Ok(())
}
