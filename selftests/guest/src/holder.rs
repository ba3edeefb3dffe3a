// SPDX-License-Identifier: GPL-2.0

//! A process that has registered a file with a device, and can be stopped or killed while it holds the pins.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};
use clap::Args;

use crate::device::Kind;
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::tasks;
use crate::vmstat;

/// What the process is told.
#[derive(Args, Clone, Debug)]
pub struct Orders {
    device: Kind,
    file: PathBuf,
    /// Have the device write the contents of the file of this number, round 0
    #[arg(long)]
    write: Option<u32>,
    /// Close and unmap the file, so that nothing but the pins is left
    #[arg(long)]
    let_go: bool,
}

impl Orders {
    /// Register all of the file at `path`, which must exist.
    pub fn new(device: Kind, path: &Path) -> Self {
        Self {
            device,
            file: path.to_owned(),
            write: None,
            let_go: false,
        }
    }

    /// Have the device write what `stamp` says in round 0.
    pub fn write(self, stamp: Stamp) -> Self {
        Self {
            write: Some(stamp.file),
            ..self
        }
    }

    /// Close and unmap the file then.
    pub fn let_go(self) -> Self {
        Self {
            let_go: true,
            ..self
        }
    }

    /// The command that follows them; see [`Holder::start`].
    pub fn command(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.args(["hold-pins", self.device.name()]);
        command.arg(&self.file);
        if let Some(number) = self.write {
            command.args(["--write", &number.to_string()]);
        }
        if self.let_go {
            command.arg("--let-go");
        }
        command
    }

    /// What the process does: follows the orders, says so, and keeps the pins until killed.
    pub fn follow(&self) -> Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.file)?;
        let len = file.metadata()?.len();
        let map = Mapping::shared(&file, 0, len as usize)?;
        let mut device = self.device.attach(&map, 0..len)?;
        if let Some(file) = self.write {
            device.write(Stamp { file, round: 0 }, 0..len)?;
        }
        let rest = (!self.let_go).then_some((file, map));
        let mut output = io::stdout();
        writeln!(output, "{PINNED}")?;
        output.flush()?;
        loop {
            // SAFETY: pause has no arguments.
            unsafe { libc::pause() };
            std::hint::black_box(&rest);
        }
    }
}

const PINNED: &str = "pinned";

/// The process. It is killed when this is dropped.
pub struct Holder(Child);

impl Holder {
    /// Starts it and waits until it has the pins.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take();
        let holder = Self(child);
        let mut line = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut line)?;
        }
        match line.trim() {
            PINNED => Ok(holder),
            other => bail!("the process could not pin, and says {other:?}"),
        }
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Bytes of files in its page tables.
    pub fn mapped_file_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        vmstat::kilobytes(&status, "RssFile")
    }

    fn signal(&self, signal: libc::c_int) -> Result<()> {
        // SAFETY: the process is a child that was not waited for, so the number is still its own.
        match unsafe { libc::kill(self.0.id() as i32, signal) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()).context("kill"),
        }
    }

    /// Stops it, and returns when all of it has stopped.
    pub fn stop(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)?;
        let end = Instant::now() + Duration::from_secs(10);
        while !self.is_stopped()? {
            if Instant::now() >= end {
                bail!("the process does not stop");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// True if it is there and does nothing.
    pub fn is_stopped(&self) -> Result<bool> {
        let (state, _) = tasks::stat(&self.0.id().to_string()).context("the process is gone")?;
        Ok(state == "T")
    }

    /// Kills it, stopped or not. Its pins go with it, but not always at once.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}
