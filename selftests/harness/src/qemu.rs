// SPDX-License-Identifier: GPL-2.0

//! Boots a guest, runs its job, brings back output and exit status.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::job::{self, Event, Job, DISKS};
use crate::scan::{self, Splat};
use crate::{cache, rootfs};

/// Size of a test disk. It is a sparse file.
pub const DISK_BYTES: u64 = 1 << 30;
/// How long QEMU may take to connect to the sockets, which it does first of all.
const CONNECT: Duration = Duration::from_secs(20);
/// How long the guest may take from the job's end to power off; a killed guest is a failure.
const SHUTDOWN: Duration = Duration::from_secs(60);
/// How long a stuck guest may print the stacks it is asked for.
const DUMP: Duration = Duration::from_secs(10);

/// Which guest to boot.
#[derive(Debug, Clone)]
pub struct Config {
    /// Kernel image; `None`: found by [`cache::kernel`].
    pub kernel: Option<PathBuf>,
    /// Added to the kernel command line.
    pub append: Vec<String>,
    /// Memory, in MiB.
    pub memory: u32,
    /// Virtual CPUs.
    pub cpus: u32,
    /// The whole run may take this long.
    pub timeout: Duration,
    /// The guest may say nothing, on the console or elsewhere, for this long.
    pub silence: Duration,
    /// Copy the console to stderr as it grows.
    pub show_console: bool,
    /// The guest's clock counts the instructions that it executes, one a nanosecond. One CPU.
    pub count_instructions: bool,
    /// Something is measured: without KVM, an emulated CPU does not say that it copies fast by one instruction. QEMU
    /// does that byte by byte, and a kernel that is told so does all its large copies in that way.
    pub measures: bool,
    /// The guest may restart, and begins its job anew then; it finds its kernel on a disk.
    pub restarts: bool,
    /// Root image; `None`: that of [`rootfs::image`].
    pub root: Option<PathBuf>,
    /// Sizes of the test disks, in bytes.
    pub disks: Vec<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            kernel: None,
            append: Vec::new(),
            memory: 2048,
            cpus: 2,
            timeout: Duration::from_secs(900),
            silence: Duration::from_secs(300),
            show_console: false,
            count_instructions: false,
            measures: false,
            restarts: false,
            root: None,
            disks: vec![DISK_BYTES; DISKS],
        }
    }
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The job exited with this status.
    Exit(i32),
    /// The job was killed by this signal.
    Signal(i32),
    /// The guest could not start the job, or never got that far.
    Broken(String),
    /// The harness ended the guest.
    Timeout(String),
}

impl End {
    /// A status for the shell, as `timeout(1)` and `sh(1)` would give it.
    pub fn status(&self) -> i32 {
        match self {
            End::Exit(code) => *code,
            End::Signal(signal) => 128 + signal,
            End::Broken(_) => 125,
            End::Timeout(_) => 124,
        }
    }

    /// What to tell the user; nothing if the job exited by itself with 0.
    pub fn complaint(&self) -> Option<String> {
        match self {
            End::Exit(0) => None,
            End::Exit(code) => Some(format!("exit status {code}")),
            End::Signal(signal) => Some(format!("killed by signal {signal}")),
            End::Broken(why) => Some(format!("guest broke: {why}")),
            End::Timeout(why) => Some(format!("timed out: {why}")),
        }
    }
}

/// What a run leaves.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What must not be in the console log.
    pub splats: Vec<Splat>,
    /// Other things that are wrong: permits, shutdown.
    pub wrong: Vec<String>,
    /// The console log's file.
    pub console: PathBuf,
    /// From QEMU's start to the job's start.
    pub boot: Option<Duration>,
    /// From QEMU's start to its end.
    pub elapsed: Duration,
}

impl Outcome {
    /// Prints splats and whatever else is wrong to stderr.
    pub fn complain(&self) {
        for splat in &self.splats {
            eprintln!("\nharness: {}:{}:", self.console.display(), splat.line);
            for line in &splat.lines {
                eprintln!("    {line}");
            }
        }
        for wrong in &self.wrong {
            eprintln!("harness: {wrong}");
        }
    }
}

/// Which of the job's outputs a piece came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

enum Message {
    Bytes(Stream, Vec<u8>),
    Event(Event),
    Ctl(UnixStream),
}

/// Kills QEMU when the harness gives up on any path.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// KVM only where it is more than a device node: without the CPU's own support it exists and
/// answers, but guests hang under it.
fn kvm() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtual_machine = flags
        .lines()
        .filter(|l| l.starts_with("flags"))
        .any(|l| l.split_whitespace().any(|f| f == "vmx" || f == "svm"));
    virtual_machine
        && OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

fn blockdev(name: &str, file: &Path, read_only: bool) -> Result<[OsString; 2]> {
    // Both ends of a test disk go through the host's page cache, so each sees the other's writes
    // at once; locks would keep QEMU from opening it twice.
    let json = serde_json::json!({
        "driver": "raw",
        "node-name": name,
        "read-only": read_only,
        "discard": "unmap",
        "cache": { "direct": false, "no-flush": true },
        "file": {
            "driver": "file",
            "filename": file,
            "locking": "off",
            "read-only": read_only,
            "discard": "unmap",
            "cache": { "direct": false, "no-flush": true },
        },
    });
    Ok(["-blockdev".into(), json.to_string().into()])
}

fn command(
    config: &Config,
    job: &Job,
    scratch: &Path,
    log: &Path,
) -> Result<(Command, Vec<(UnixListener, &'static str)>)> {
    let kernel = cache::kernel(config.kernel.as_deref())?;
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-vga", "none", "-machine", "q35"]);
    if !config.restarts {
        qemu.arg("-no-reboot");
    }
    let emulated = match config.measures {
        true => "max,-erms,-fsrm",
        false => "max",
    };
    if config.count_instructions {
        // No waiting in real time: an idle guest's clock goes to the next timer at once.
        qemu.args(["-accel", "tcg,thread=single", "-cpu", emulated])
            .args(["-icount", "shift=0,sleep=off"]);
    } else if kvm() {
        qemu.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", emulated]);
    }
    qemu.arg("-smp").arg(config.cpus.to_string());
    qemu.arg("-m").arg(format!("{}M", config.memory));
    qemu.args(["-device", "virtio-rng-pci"]);

    let mut append: Vec<String> = [
        "root=/dev/vda",
        "ro",
        "rootfstype=ext4",
        "init=/init",
        "console=ttyS0",
        "panic=-1",
        "loglevel=7",
        "net.ifnames=0",
        // A busy host under emulation makes slow guests; these are for stuck ones.
        "rcupdate.rcu_cpu_stall_timeout=120",
        "watchdog_thresh=60",
        // On a busy host the check finds no timer, and the way that the kernel then goes makes jiffies run
        // nearly twice as fast as the clock.
        "no_timer_check",
        "kunit.enable=0",
    ]
    .map(String::from)
    .to_vec();
    append.extend(config.append.iter().cloned());
    qemu.arg("-kernel").arg(&kernel);
    qemu.arg("-append").arg(append.join(" "));

    let mut disk = |name: &str, serial: &str, file: &Path, read_only: bool| -> Result<()> {
        qemu.args(blockdev(name, file, read_only)?);
        let device = format!("virtio-blk-pci,drive={name},serial={serial}");
        qemu.arg("-device").arg(device);
        Ok(())
    };
    let root = match &config.root {
        Some(root) => root.clone(),
        None => rootfs::image()?,
    };
    disk("root", "pinwb-root", &root, true)?;
    for (i, bytes) in config.disks.iter().enumerate() {
        let file = scratch.join(format!("disk{i}"));
        File::create(&file)?.set_len(*bytes)?;
        disk(&format!("disk{i}"), &format!("pinwb-disk{i}"), &file, false)?;
        disk(&format!("view{i}"), &format!("pinwb-view{i}"), &file, true)?;
    }
    if config.restarts {
        disk("kernel", job::KERNEL_SERIAL, &kernel, true)?;
    }
    let file = scratch.join("job");
    let mut bytes = serde_json::to_vec(job)?;
    bytes.resize(bytes.len() / 512 * 512 + 512, 0);
    fs::write(&file, bytes)?;
    disk("job", job::JOB_SERIAL, &file, true)?;

    let console = log.join("console.log");
    if job.interactive {
        let logfile = format!(
            "stdio,id=console,mux=on,signal=off,logfile={}",
            console.display()
        );
        qemu.arg("-chardev").arg(logfile);
        qemu.args(["-mon", "chardev=console,mode=readline"]);
    } else {
        let file = format!("file,id=console,path={}", console.display());
        qemu.arg("-chardev").arg(file);
        qemu.stdin(Stdio::null());
    }
    qemu.args(["-serial", "chardev:console"]);

    let mut listeners = Vec::new();
    qemu.args(["-device", "virtio-serial-pci"]);
    for (i, name) in [job::PORT_OUT, job::PORT_ERR, job::PORT_CTL]
        .into_iter()
        .enumerate()
    {
        let path = scratch.join(name);
        listeners.push((UnixListener::bind(&path)?, name));
        let chardev = format!("socket,id=port{i},path={}", path.display());
        qemu.arg("-chardev").arg(chardev);
        let device = format!("virtserialport,chardev=port{i},name={name}");
        qemu.arg("-device").arg(device);
    }
    if !job.interactive {
        let messages = File::create(log.join("qemu.log"))?;
        qemu.stdout(messages.try_clone()?).stderr(messages);
    }
    // SAFETY: prctl() is async-signal-safe. QEMU dies with the harness, however that ends.
    unsafe {
        qemu.pre_exec(|| {
            nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL);
            Ok(())
        })
    };
    Ok((qemu, listeners))
}

fn serve(listeners: Vec<(UnixListener, &'static str)>, to: &Sender<Message>) {
    for (listener, name) in listeners {
        let to = to.clone();
        thread::spawn(move || {
            let Ok((stream, _)) = listener.accept() else {
                return;
            };
            match name {
                job::PORT_CTL => {
                    if let Ok(writer) = stream.try_clone() {
                        let _ = to.send(Message::Ctl(writer));
                    }
                    for line in BufReader::new(stream).lines().map_while(|l| l.ok()) {
                        if let Ok(event) = serde_json::from_str(&line) {
                            let _ = to.send(Message::Event(event));
                        }
                    }
                }
                _ => {
                    let kind = if name == job::PORT_OUT {
                        Stream::Out
                    } else {
                        Stream::Err
                    };
                    let mut stream = stream;
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        let _ = to.send(Message::Bytes(kind, buffer[..n].to_vec()));
                    }
                }
            }
        });
    }
}

/// Follows the console log; says whether it grew.
struct Console {
    file: File,
    show: bool,
}

impl Console {
    fn poll(&mut self) -> bool {
        let mut fresh = Vec::new();
        let grew = self.file.read_to_end(&mut fresh).is_ok_and(|n| n > 0);
        if grew && self.show {
            let _ = io::stderr().write_all(&fresh);
        }
        grew
    }
}

/// Removes the disks of harnesses that were killed; a directory's name begins with its owner's PID.
fn drop_stale(disks: &Path) {
    for entry in fs::read_dir(disks).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// How often a guest is booted that TCG has broken.
const BOOTS: usize = 3;

/// True if the guest died of a breakpoint before the job began. The kernel patches its own code while it
/// boots, and has every CPU trap meanwhile; TCG with several threads may run the trap after the patch.
fn is_broken_by_tcg(outcome: &Outcome) -> bool {
    let of_patching = |splat: &Splat| splat.title.contains("Oops: int3");
    outcome.boot.is_none()
        && matches!(outcome.end, End::Broken(_))
        && outcome.splats.iter().any(of_patching)
        && !kvm()
}

/// Boots a guest for one job. `sink` gets its output as it comes; logs go to `log`, a directory.
pub fn boot(
    config: &Config,
    job: &Job,
    log: &Path,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Outcome> {
    for attempt in 1..BOOTS {
        let outcome = boot_once(config, job, log, sink)?;
        if !is_broken_by_tcg(&outcome) {
            return Ok(outcome);
        }
        let kept = log.join(format!("console.{attempt}.log"));
        fs::rename(&outcome.console, &kept)?;
        eprintln!(
            "harness: TCG tripped over code patching, boot {attempt} of {BOOTS}: {}",
            kept.display()
        );
    }
    boot_once(config, job, log, sink)
}

fn boot_once(
    config: &Config,
    job: &Job,
    log: &Path,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<Outcome> {
    // Disks are large: not on a tmpfs. Socket paths are short: not in a deep directory.
    let disks = cache::dir()?.join("disks");
    fs::create_dir_all(&disks)?;
    drop_stale(&disks);
    let scratch = tempfile::Builder::new()
        .prefix(&format!("{}-", std::process::id()))
        .tempdir_in(&disks)?;
    if scratch.path().as_os_str().len() > 90 {
        bail!("{}: too long for sockets", scratch.path().display());
    }
    let mut job = job.clone();
    job.time = cache::now();
    let (mut qemu, listeners) = command(config, &job, scratch.path(), log)?;
    fs::write(log.join("qemu.cmd"), format!("{qemu:?}\n"))?;
    let console_path = log.join("console.log");
    File::create(&console_path)?;
    let mut console = Console {
        file: File::open(&console_path)?,
        show: config.show_console && !job.interactive,
    };
    console.file.seek(SeekFrom::Start(0))?;

    let (to, from) = mpsc::channel();
    serve(listeners, &to);
    drop(to);
    let start = Instant::now();
    let mut guest = Guest(qemu.spawn().context("run qemu-system-x86_64")?);
    let mut wrong = Vec::new();
    let (end, boot) = if job.interactive {
        let status = guest.0.wait()?;
        (End::Exit(status.code().unwrap_or(1)), None)
    } else {
        watch(config, &mut guest, &from, &mut console, sink, &mut wrong)
    };
    drop(guest);
    console.poll();

    let text = fs::read(&console_path).unwrap_or_default();
    let (mut splats, permits) = scan::scan(&String::from_utf8_lossy(&text));
    wrong.extend(permits);
    // The harness itself asked a stuck guest for its stacks: not splats.
    if matches!(end, End::Timeout(_)) {
        splats.retain(|s| !s.title.contains("Call Trace:"));
    }
    let end = match end {
        End::Broken(why) => {
            let messages = fs::read_to_string(log.join("qemu.log")).unwrap_or_default();
            End::Broken(format!("{why} {}", messages.trim()).trim().to_string())
        }
        end => end,
    };
    Ok(Outcome {
        end,
        splats,
        wrong,
        console: console_path,
        boot,
        elapsed: start.elapsed(),
    })
}

fn watch(
    config: &Config,
    guest: &mut Guest,
    from: &Receiver<Message>,
    console: &mut Console,
    sink: &mut dyn FnMut(Stream, &[u8]),
    wrong: &mut Vec<String>,
) -> (End, Option<Duration>) {
    let start = Instant::now();
    let mut last_sign = start;
    let mut booted = None;
    let mut end: Option<End> = None;
    let mut ended_at = start;
    let mut ctl: Option<UnixStream> = None;
    let mut connected = true;
    loop {
        let message = if connected {
            from.recv_timeout(Duration::from_millis(50))
        } else {
            thread::sleep(Duration::from_millis(20));
            Err(RecvTimeoutError::Timeout)
        };
        match message {
            Ok(Message::Bytes(stream, bytes)) => {
                last_sign = Instant::now();
                sink(stream, &bytes);
                continue;
            }
            Ok(Message::Ctl(writer)) => ctl = Some(writer),
            Ok(Message::Event(event)) => {
                last_sign = Instant::now();
                let ending = match event {
                    Event::Ready => {
                        booted = Some(start.elapsed());
                        None
                    }
                    Event::Exit(code) => Some(End::Exit(code)),
                    Event::Signal(signal) => Some(End::Signal(signal)),
                    Event::Error(why) => Some(End::Broken(why)),
                };
                if let Some(ending) = ending {
                    end = Some(ending);
                    ended_at = Instant::now();
                }
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Every port is closed: QEMU is about to end.
            Err(RecvTimeoutError::Disconnected) => connected = false,
        }
        if console.poll() {
            last_sign = Instant::now();
        }
        if let Ok(Some(status)) = guest.0.try_wait() {
            // The ports' readers see the end of file before they let go of the channel.
            while let Ok(message) = from.recv_timeout(Duration::from_secs(2)) {
                match message {
                    Message::Bytes(stream, bytes) => sink(stream, &bytes),
                    Message::Event(Event::Exit(code)) => end = Some(End::Exit(code)),
                    Message::Event(Event::Signal(signal)) => end = Some(End::Signal(signal)),
                    Message::Event(Event::Error(why)) => end = Some(End::Broken(why)),
                    _ => {}
                }
            }
            let gone = || End::Broken(format!("it went away ({status})"));
            return (end.unwrap_or_else(gone), booted);
        }

        if end.is_some() {
            if ended_at.elapsed() > SHUTDOWN {
                wrong.push(format!(
                    "the guest did not power off in {} s: stuck in unmount?",
                    SHUTDOWN.as_secs()
                ));
                dump_stacks(&mut ctl, console);
                return (end.unwrap_or(End::Exit(0)), booted);
            }
            continue;
        }
        let why = if start.elapsed() > config.timeout {
            format!("{} s in all", config.timeout.as_secs())
        } else if last_sign.elapsed() > config.silence {
            format!("no output for {} s", config.silence.as_secs())
        } else if ctl.is_none() && start.elapsed() > CONNECT {
            "QEMU does not start".to_string()
        } else {
            continue;
        };
        dump_stacks(&mut ctl, console);
        return (End::Timeout(why), booted);
    }
}

/// Asks the guest for its blocked tasks and busy CPUs, and gives it time to print them.
fn dump_stacks(ctl: &mut Option<UnixStream>, console: &mut Console) {
    let Some(ctl) = ctl else { return };
    if write!(ctl, "{0}w\n{0}l\n", job::SYSRQ).is_err() {
        return;
    }
    let start = Instant::now();
    let mut quiet_since = start;
    while start.elapsed() < DUMP && quiet_since.elapsed() < Duration::from_secs(3) {
        if console.poll() {
            quiet_since = Instant::now();
        }
        thread::sleep(Duration::from_millis(100));
    }
}
