// SPDX-License-Identifier: GPL-2.0

//! PID 1 of the guest: mounts what a test expects, runs the job, reports, powers off.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context, Result};
use nix::errno::Errno;
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sys::reboot::{reboot, RebootMode};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::Pid;
use pinwb_harness::job::{self, Event, Job};

/// How long a process that was told to die may keep the output pipes open.
const DRAIN: Duration = Duration::from_secs(5);

fn main() {
    if std::process::id() != 1 {
        eprintln!("pinwb-init: not PID 1");
        std::process::exit(2);
    }
    mounts();
    let mut ctl = port(job::PORT_CTL);
    if let Some(reader) = ctl.as_ref().and_then(|c| c.try_clone().ok()) {
        thread::spawn(move || serve_sysrq(reader));
    }
    let event = run(&mut ctl).unwrap_or_else(|e| Event::Error(format!("{e:#}")));
    if let Event::Error(message) = &event {
        kmsg(&format!("pinwb-init: {message}"));
    }
    tell(&mut ctl, &event);
    unmount_disks();
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Without ACPI the kernel halts instead; QEMU runs with -no-reboot unless the job is to restart.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
}

/// Mounts the kernel's filesystems, and tmpfs where programs expect to write: the root is
/// read-only and shared between guests.
fn mounts() {
    let table: &[(&str, &str, &str)] = &[
        ("devtmpfs", "/dev", ""),
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("debugfs", "/sys/kernel/debug", ""),
        ("tracefs", "/sys/kernel/tracing", ""),
        ("configfs", "/sys/kernel/config", ""),
        ("tmpfs", "/tmp", "mode=1777"),
        ("tmpfs", "/run", "mode=755"),
        ("tmpfs", "/mnt", "mode=755"),
        ("tmpfs", "/root", "mode=700"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("devpts", "/dev/pts", "mode=620,ptmxmode=666"),
    ];
    for (fstype, target, data) in table {
        let _ = fs::create_dir(target);
        let done = mount(
            Some(*fstype),
            *target,
            Some(*fstype),
            MsFlags::empty(),
            Some(*data),
        );
        match done {
            // Not every kernel has every one of them; /dev is mounted by the kernel itself.
            Ok(()) | Err(Errno::EBUSY | Errno::ENODEV | Errno::ENOENT) => {}
            Err(e) => kmsg(&format!("pinwb-init: mount {target}: {e}")),
        }
    }
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (to, at) in links {
        let _ = std::os::unix::fs::symlink(to, at);
    }
}

fn kmsg(message: &str) {
    if let Ok(mut f) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = f.write_all(message.as_bytes());
    }
}

fn tell(ctl: &mut Option<File>, event: &Event) {
    if let Some(port) = ctl {
        let mut line = serde_json::to_string(event).unwrap_or_default();
        line.push('\n');
        let _ = port.write_all(line.as_bytes());
    }
}

/// Finds a virtio-serial port by its name; there is no udev to make links.
fn port(name: &str) -> Option<File> {
    let deadline = Instant::now() + Duration::from_secs(5);
    // The ports are announced by the device asynchronously.
    while Instant::now() < deadline {
        for dir in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
            .flatten()
        {
            let found = fs::read_to_string(dir.path().join("name")).unwrap_or_default();
            if found.trim_end() == name {
                let dev = Path::new("/dev").join(dir.file_name());
                match OpenOptions::new().read(true).write(true).open(&dev) {
                    Ok(f) => return Some(f),
                    Err(e) => kmsg(&format!("pinwb-init: {}: {e}", dev.display())),
                }
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    kmsg(&format!("pinwb-init: no port {name}"));
    None
}

/// Finds a disk by its virtio serial.
fn disk(serial: &str) -> Option<PathBuf> {
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|dir| {
        let found = fs::read_to_string(dir.path().join("serial")).ok()?;
        (found.trim_end() == serial).then(|| Path::new("/dev").join(dir.file_name()))
    })
}

fn serve_sysrq(ctl: File) {
    for line in BufReader::new(ctl).lines() {
        let Ok(line) = line else { return };
        if let Some(key) = line.strip_prefix(job::SYSRQ) {
            let _ = fs::write("/proc/sysrq-trigger", key);
        }
    }
}

fn read_job() -> Result<Job> {
    let disk = disk(job::JOB_SERIAL).ok_or_else(|| anyhow!("no disk {}", job::JOB_SERIAL))?;
    let mut bytes = Vec::new();
    File::open(&disk)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .with_context(|| format!("read {}", disk.display()))?;
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    serde_json::from_slice(&bytes[..end]).context("parse the job")
}

fn set_up(job: &Job) -> Result<()> {
    for (serial, var) in disks() {
        if let Some(dev) = disk(&serial) {
            std::env::set_var(var, dev);
        }
    }
    for (key, value) in &job.env {
        std::env::set_var(key, value);
    }
    quiet("ip", &["link", "set", "lo", "up"]);
    if Path::new("/sys/class/infiniband_verbs").exists() {
        let link = ["link", "add", "rxe0", "type", "rxe", "netdev", "lo"];
        quiet("rdma", &link);
    }
    if let Some(m) = &job.mount {
        let dev = disk("pinwb-disk0").ok_or_else(|| anyhow!("no disk 0"))?;
        let out = Command::new(format!("mkfs.{}", m.fs))
            .args(m.mkfs.split_whitespace())
            .arg(&dev)
            .output()
            .with_context(|| format!("mkfs.{}", m.fs))?;
        if !out.status.success() {
            bail!(
                "mkfs.{}: {}",
                m.fs,
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        let data = (!m.options.is_empty()).then_some(m.options.as_str());
        umount2("/mnt", MntFlags::empty())?;
        mount(
            Some(&dev),
            "/mnt",
            Some(m.fs.as_str()),
            MsFlags::empty(),
            data,
        )
        .with_context(|| format!("mount {}", dev.display()))?;
    }
    Ok(())
}

fn disks() -> impl Iterator<Item = (String, String)> {
    (0..job::MAX_DISKS).flat_map(|i| {
        [
            (format!("pinwb-disk{i}"), format!("PINWB_DISK{i}")),
            (format!("pinwb-view{i}"), format!("PINWB_VIEW{i}")),
        ]
    })
}

fn quiet(program: &str, args: &[&str]) {
    match Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
    {
        Ok(out) if out.status.success() => {}
        Ok(out) => {
            let message = String::from_utf8_lossy(&out.stderr);
            kmsg(&format!(
                "pinwb-init: {program} {}: {}",
                args.join(" "),
                message.trim()
            ));
        }
        Err(e) => kmsg(&format!("pinwb-init: {program}: {e}")),
    }
}

fn run(ctl: &mut Option<File>) -> Result<Event> {
    let job = read_job()?;
    let now = nix::libc::timespec {
        tv_sec: job.time,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec that lives across the call.
    unsafe { nix::libc::clock_settime(nix::libc::CLOCK_REALTIME, &now) };
    let path = "/usr/lib/pinwb:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    std::env::set_var("PATH", path);
    std::env::set_var("HOME", "/root");
    std::env::set_var("LANG", "C");
    set_up(&job)?;

    let (program, args) = job.argv.split_first().ok_or_else(|| anyhow!("empty job"))?;
    let mut command = Command::new(program);
    command.args(args).current_dir("/tmp");
    if job.interactive {
        on_console(&mut command)?;
        let child = command.spawn().with_context(|| format!("run {program}"))?;
        return wait_for(child.id());
    }

    // Pipes, not the ports themselves: a port opens only once, so /dev/stdout would fail.
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    tell(ctl, &Event::Ready);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => bail!("{program}: {e}"),
    };
    let (done, drained) = mpsc::channel();
    let pipes: [(Option<Box<dyn Read + Send>>, &str); 2] = [
        (child.stdout.take().map(|p| Box::new(p) as _), job::PORT_OUT),
        (child.stderr.take().map(|p| Box::new(p) as _), job::PORT_ERR),
    ];
    for (pipe, name) in pipes {
        let (Some(mut pipe), Some(mut port)) = (pipe, port(name)) else {
            bail!("no port {name}");
        };
        let done = done.clone();
        thread::spawn(move || {
            let _ = io::copy(&mut pipe, &mut port);
            let _ = done.send(());
        });
    }
    let event = wait_for(child.id())?;
    // Whatever the command left behind holds the pipes open.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let deadline = Instant::now() + DRAIN;
    for _ in 0..2 {
        let left = deadline.saturating_duration_since(Instant::now());
        if drained.recv_timeout(left).is_err() {
            kmsg("pinwb-init: a process outlives SIGKILL");
            break;
        }
    }
    Ok(event)
}

fn on_console(command: &mut Command) -> Result<()> {
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ttyS0")?;
    command.stdin(console.as_fd().try_clone_to_owned()?);
    command.stdout(console.as_fd().try_clone_to_owned()?);
    command.stderr(console);
    command.env(
        "TERM",
        std::env::var("PINWB_TERM").unwrap_or("linux".into()),
    );
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0);
            Ok(())
        })
    };
    Ok(())
}

/// Reaps everything, as PID 1 must, until the job's own process ends.
fn wait_for(id: u32) -> Result<Event> {
    let pid = Pid::from_raw(i32::try_from(id)?);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(p, code)) if p == pid => return Ok(Event::Exit(code)),
            Ok(WaitStatus::Signaled(p, signal, _)) if p == pid => {
                return Ok(Event::Signal(signal as i32))
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => bail!("wait: {e}"),
        }
    }
}

/// Unmounts the test disks, so that a splat in unmount reaches the log of the right group.
fn unmount_disks() {
    let table = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in table.lines().rev() {
        let mut fields = line.split(' ');
        let (Some(device), Some(target)) = (fields.next(), fields.next()) else {
            continue;
        };
        if device.starts_with("/dev/") && target != "/" {
            let _ = umount2(target, MntFlags::empty());
        }
    }
}
