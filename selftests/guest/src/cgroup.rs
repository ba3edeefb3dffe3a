// SPDX-License-Identifier: GPL-2.0

//! A control group with little memory.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{io, thread, time};

use anyhow::{Context, Result};

use crate::fs as filesystem;
use crate::tap::skip;
use crate::vmstat;

const ROOT: &str = "/sys/fs/cgroup";

/// It is removed when dropped; its processes must be gone by then.
pub struct Cgroup {
    path: PathBuf,
    processes: File,
}

impl Cgroup {
    /// A new group whose processes and page cache have `max` bytes together.
    pub fn new(name: &str, max: u64) -> Result<Self> {
        let root = Path::new(ROOT);
        if !root.join("cgroup.controllers").exists()
            && filesystem::mount(Path::new("cgroup2"), root, "cgroup2", "").is_err()
        {
            return skip("no cgroup2");
        }
        if fs::write(root.join("cgroup.subtree_control"), "+memory").is_err() {
            return skip("no memory controller");
        }
        let path = root.join(name);
        fs::create_dir_all(&path)?;
        fs::write(path.join("memory.max"), max.to_string())?;
        let processes = OpenOptions::new()
            .write(true)
            .open(path.join("cgroup.procs"))?;
        Ok(Self { path, processes })
    }

    /// Has the command run in the group from its beginning. To be started while the group exists.
    pub fn confine<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let processes = self.processes.as_raw_fd();
        // SAFETY: the child calls nothing but write(2), on a descriptor that it has inherited.
        unsafe {
            command.pre_exec(
                move || match libc::write(processes, b"0".as_ptr().cast(), 1) {
                    1 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            )
        }
    }

    /// The number by which the kernel names it.
    pub fn id(&self) -> Result<u64> {
        Ok(self.path.metadata()?.ino())
    }

    /// A process of the group reads a file, so many bytes at a time as dd(1) has them.
    pub fn read(&self, file: &Path, step: &str) -> Result<()> {
        let mut command = Command::new("dd");
        let [input, step] = [format!("if={}", file.display()), format!("bs={step}")];
        command.args([&input, "of=/dev/null", &step]);
        filesystem::run(self.confine(&mut command)).map(drop)
    }

    /// A number that the group's memory controller tells in `memory.stat` or `memory.events`.
    pub fn number(&self, file: &str, name: &str) -> Result<u64> {
        vmstat::field(&fs::read_to_string(self.path.join(file))?, ' ', name)
            .context(file.to_owned())?
            .parse()
            .context("not a number")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has just died may hold it for a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(time::Duration::from_millis(10));
        }
    }
}
