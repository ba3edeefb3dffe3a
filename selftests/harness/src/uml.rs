// SPDX-License-Identifier: GPL-2.0

//! Boots a kernel that is a process, ARCH=um, with the host's root as its own, read-only.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

use crate::scan;

/// Between two looks at whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// The kernel and the processes that it makes: all of them end with this.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // An ID that was waited for may be somebody else's by now.
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = killpg(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// Boots `kernel` with `init` as PID 1 and returns what `init` printed on the console. It has to
/// power off. `log` is a file for all that was said.
pub fn run(
    kernel: &Path,
    init: &Path,
    arguments: &[String],
    timeout: Duration,
    log: &Path,
) -> Result<String> {
    let init = format!("init={}", init.display());
    let mut all: Vec<String> = ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]
        .into_iter()
        .chain(["kunit.enable=0", &init, "--"])
        .map(String::from)
        .collect();
    all.extend_from_slice(arguments);
    // UML adds `console=tty0` at the end.
    all.push("--".into());
    boot(kernel, &all, timeout, log)
}

/// Boots `kernel`, which has to power off by itself, with `arguments`, and returns what was said on
/// the console. `log` is a file for all of it.
pub fn boot(kernel: &Path, arguments: &[String], timeout: Duration, log: &Path) -> Result<String> {
    let mut command = Command::new(kernel);
    command
        .args(["mem=1G", "panic=-1", "con0=fd:0,fd:1", "con=null"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(File::create(log)?)
        // The kernel's own messages: a pipe would fill up.
        .stderr(File::create(log.with_extension("kernel.log"))?)
        .process_group(0);
    let child = command
        .spawn()
        .with_context(|| format!("run {}", kernel.display()))?;
    let mut group = Group(child);
    let start = Instant::now();
    while group.0.try_wait()?.is_none() {
        if start.elapsed() > timeout {
            bail!(
                "{} did not end in {} s, see {}",
                kernel.display(),
                timeout.as_secs(),
                log.display()
            );
        }
        thread::sleep(POLL);
    }
    drop(group);

    let read = |path: &Path| -> Result<String> {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
    };
    let said = read(log)?;
    let kernel_said = read(&log.with_extension("kernel.log"))?;
    for text in [&said, &kernel_said] {
        if let Some(splat) = scan::scan(text).0.first() {
            bail!("{}: splat: {}", log.display(), splat.title);
        }
    }
    Ok(said)
}
