// SPDX-License-Identifier: GPL-2.0

//! Programs that people use, on a mapped file.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use super::common::{Flush, MIB};
use crate::beside::beside_steps;
use crate::context::Context;
use crate::diag;
use crate::fs::run;
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::tap::Test;

pub const TESTS: &[Test] = &[
    Test::new("perftest.write_bw_under_sync", write_bw)
        .timeout(240)
        .once(),
    Test::new("fio.read", |c| fio(c, "read", false)).once(),
    Test::new("fio.randread_direct", |c| fio(c, "randread", true)).once(),
];

fn need(program: &str) -> Result<()> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
    match found {
        true => Ok(()),
        false => bail!("no {program} in the guest"),
    }
}

/// `ib_write_bw` between two mapped files, while the filesystem is written back again and again.
fn write_bw(context: &Context) -> Result<()> {
    need("ib_write_bw")?;
    let Some(device) = std::fs::read_dir("/sys/class/infiniband")
        .ok()
        .and_then(|mut devices| devices.next())
    else {
        bail!("no RDMA device");
    };
    let device = device?.file_name();
    let start = |file: &Path, server: Option<&str>| -> Result<Child> {
        let mut command = Command::new("ib_write_bw");
        command
            .arg("-d")
            .arg(&device)
            .arg(format!("--mmap={}", file.display()))
            .args(["--mmap-offset=0", "-s", "65536", "-n", "50", "-F"])
            .args(server)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().context("cannot start ib_write_bw")
    };
    for name in ["server", "client"] {
        context.sparse(name, 16 * MIB)?;
    }
    let ((), syncs) = while_syncfs(&context.open("server")?, || {
        converse(start(&context.path("server"), None)?, || {
            start(&context.path("client"), Some("localhost"))
        })
    })?;
    diag!("{syncs} syncs meanwhile");
    Ok(())
}

/// Syncs the filesystem that `file` is on, again and again, while `body` runs.
fn while_syncfs<T>(file: &File, body: impl FnOnce() -> Result<T>) -> Result<(T, u32)> {
    let map = Mapping::shared(file, 0, 4096)?;
    let sync = || {
        Flush::Syncfs.call(file, &map)?;
        thread::sleep(Duration::from_millis(20));
        Ok(())
    };
    beside_steps(sync, body)
}

fn converse(server: Child, client: impl FnOnce() -> Result<Child>) -> Result<()> {
    wait_for_listener(18515);
    let client = client()?;
    for (name, child) in [("client", client), ("server", server)] {
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines().filter(|line| line.contains("65536")) {
            diag!("{name}: {}", line.trim());
        }
        if !output.status.success() {
            bail!(
                "ib_write_bw {name}: {}\n{}{}",
                output.status,
                text,
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    Ok(())
}

/// Waits until some process listens on the TCP port, without connecting: the server takes one client.
fn wait_for_listener(port: u16) {
    let wanted = format!(":{port:04X}");
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let listens = ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
            std::fs::read_to_string(table).is_ok_and(|text| {
                text.lines().any(|line| {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    // State 0A is LISTEN.
                    fields.len() > 3 && fields[1].ends_with(&wanted) && fields[3] == "0A"
                })
            })
        });
        if listens {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// fio reads a file into registered buffers that are themselves a mapped file.
fn fio(context: &Context, pattern: &str, direct: bool) -> Result<()> {
    need("fio")?;
    let len = 4 * MIB;
    let source = context.written("source", len, Stamp::fresh(), MIB as usize)?;
    // fio takes the file as large as it is.
    context.sparse("buffers", 2 * MIB)?;
    let buffers = context.path("buffers");
    let mut command = Command::new("fio");
    command
        .args(["--name=pinned", "--ioengine=io_uring", "--fixedbufs=1"])
        .arg(format!("--mem=mmapshared:{}", buffers.display()))
        .arg(format!("--filename={}", context.path("source").display()))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--direct={}", u8::from(direct)))
        .arg(format!("--size={len}"))
        .args([
            "--bs=64k",
            "--iodepth=8",
            "--loops=4",
            "--allow_file_create=0",
        ])
        .args(["--thread=1", "--minimal", "--output-format=terse"]);
    while_syncfs(&source, || run(&mut command))?;
    // The buffers are an ordinary file again: what is in the cache is what remains.
    let cached = std::fs::read(&buffers)?;
    if cached.iter().all(|byte| *byte == 0) {
        bail!("fio left no data in {}", buffers.display());
    }
    drop(source);
    context.remount()?;
    if std::fs::read(&buffers)? != cached {
        bail!("{} changed with the remount", buffers.display());
    }
    Ok(())
}
