// SPDX-License-Identifier: GPL-2.0

//! Runs tests, each in a process of its own on a filesystem of its own, and says what came of them in TAP.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context as _, Result};

use crate::context::Context;
use crate::fs::{self as filesystem, FsKind};
use crate::kmsg::{self, Kmsg};
use crate::layer::Layer;
use crate::ledger::{self, Switch};
use crate::options::Options;
use crate::tasks;
use crate::vmstat;

/// The reason why a test can't run here; travels as an error.
#[derive(Debug)]
pub struct Skip(String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends the test: it can't run here.
pub fn skip<T>(why: impl Into<String>) -> Result<T> {
    Err(Skip(why.into()).into())
}

/// Prints a diagnostic line. The runner marks it as one.
#[macro_export]
macro_rules! diag {
    ($($argument:tt)*) => { println!($($argument)*) };
}

/// What the design promises; see Documentation/design.rst. I8 is the harness's to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// Never clean while pinned.
    I1,
    /// Stable I/O.
    I2,
    /// No waiting.
    I3,
    /// Durable.
    I4,
    /// No throttling.
    I5,
    /// A home for every block.
    I6,
    /// Exact counts.
    I7,
}

/// Where a test runs, and what it does.
#[derive(Clone, Copy)]
pub struct Test {
    /// `theme.name`.
    pub name: &'static str,
    /// The body.
    pub run: fn(&Context) -> Result<()>,
    /// The device below the filesystem.
    pub layer: Layer,
    /// mkfs options beside those of the command line.
    pub mkfs: &'static str,
    /// Mount options beside those of the command line.
    pub mount: &'static str,
    /// The filesystems that it is about, separated by spaces; empty if any will do.
    pub only: &'static str,
    /// A text among the mkfs options of the command line that makes it pointless; empty if there is none.
    pub unless_made: &'static str,
    /// Seconds after which it has failed.
    pub timeout: u64,
    /// Comes to the same however the filesystem was made and mounted.
    pub once: bool,
    /// The invariants that it is about.
    pub proves: &'static [Invariant],
    /// The step that it fails without; see [`Test::without`]. Empty if there is none.
    pub without: &'static str,
    /// The filesystems that need this step, separated by spaces; empty if all do.
    pub without_on: &'static str,
}

impl Test {
    /// A test on a plain disk with the options of the command line.
    pub const fn new(name: &'static str, run: fn(&Context) -> Result<()>) -> Self {
        Self {
            name,
            run,
            layer: Layer::Disk,
            mkfs: "",
            mount: "",
            only: "",
            unless_made: "",
            timeout: 180,
            once: false,
            proves: &[],
            without: "",
            without_on: "",
        }
    }

    /// On another device.
    pub const fn on(self, layer: Layer) -> Self {
        Self { layer, ..self }
    }

    /// For these filesystems only, separated by spaces.
    pub const fn only(self, only: &'static str) -> Self {
        Self { only, ..self }
    }

    /// Not for filesystems made with this option.
    pub const fn unless_made(self, option: &'static str) -> Self {
        Self {
            unless_made: option,
            ..self
        }
    }

    /// With options of its own for mkfs and mount.
    pub const fn made(self, mkfs: &'static str, mount: &'static str) -> Self {
        Self {
            mkfs,
            mount,
            ..self
        }
    }

    /// With another time limit, in seconds.
    pub const fn timeout(self, timeout: u64) -> Self {
        Self { timeout, ..self }
    }

    /// Comes to the same however the filesystem was made and mounted: runs with one set of options only.
    pub const fn once(self) -> Self {
        Self { once: true, ..self }
    }

    /// False if the options of the command line make no difference.
    pub const fn depends_on_options(&self) -> bool {
        let own = !self.mkfs.is_empty() || !self.mount.is_empty();
        !(self.once || own || matches!(self.layer, Layer::None))
    }

    /// Says which invariants it is about.
    pub const fn proves(self, proves: &'static [Invariant]) -> Self {
        Self { proves, ..self }
    }

    /// The test runs a second time with this knock-out (a name in debugfs) and must fail then: by an error
    /// that it returns, or by a filesystem that is damaged. A panic, a splat or a timeout doesn't count.
    pub const fn without(self, without: &'static str) -> Self {
        Self { without, ..self }
    }

    /// As [`Test::without`], for a step that only these filesystems need, separated by spaces.
    pub const fn without_on(self, without_on: &'static str, without: &'static str) -> Self {
        Self {
            without_on,
            ..self.without(without)
        }
    }

    /// True if the test is one for this filesystem.
    pub fn is_for(&self, fs: &str) -> bool {
        is_among(self.only, fs)
    }

    /// True if there is a step to leave out on this filesystem.
    fn has_knockout(&self, fs: &str) -> bool {
        !self.without.is_empty() && is_among(self.without_on, fs)
    }
}

fn is_among(names: &str, fs: &str) -> bool {
    names.is_empty() || names.split(' ').any(|name| name == fs)
}

/// What came of a test.
enum Verdict {
    Pass,
    Skip(String),
    /// It found something wrong, for these reasons.
    Fail(Vec<String>),
    /// It did not come to a result, or the kernel complained.
    Broken(Vec<String>),
}

/// Exit status of a child whose test can't run, as in the kernel's selftests.
pub const EXIT_SKIP: i32 = 4;
/// Exit status of a child whose test has failed; a panic's is another.
const EXIT_FAIL: i32 = 1;
const SKIP_MARK: &str = "\u{1}skip ";

/// Runs the body of one test in this process and returns the exit status.
pub fn run_here(test: &Test, context: &Context) -> i32 {
    match (test.run)(context) {
        Ok(()) => 0,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(why)) => {
                println!("{SKIP_MARK}{}", why.replace('\n', " "));
                EXIT_SKIP
            }
            None => {
                println!("{error:#}");
                EXIT_FAIL
            }
        },
    }
}

/// Runs `tests` one after the other. Returns true if none failed.
pub fn run_all(tests: &[Test], options: &Options) -> Result<bool> {
    let runner = Runner::new(options)?;
    println!("TAP version 13");
    let runs: Vec<(&Test, bool)> = tests
        .iter()
        .flat_map(|test| {
            let knocked_out = test.has_knockout(&options.fs).then_some((test, true));
            [Some((test, false)), knocked_out]
        })
        .flatten()
        .collect();
    println!("1..{}", runs.len());
    let mut sound = true;
    for (index, (test, knocked_out)) in runs.into_iter().enumerate() {
        let number = index + 1;
        let start = Instant::now();
        let (name, verdict) = if knocked_out {
            let name = format!("{} [{}]", test.name, test.without);
            (name, runner.run_knocked_out(test))
        } else {
            (test.name.to_owned(), runner.run(test, &[]))
        };
        let seconds = start.elapsed().as_secs_f32();
        match verdict {
            Verdict::Pass => println!("ok {number} - {name}"),
            Verdict::Skip(why) => println!("ok {number} - {name} # SKIP {why}"),
            Verdict::Fail(why) | Verdict::Broken(why) => {
                for line in why.iter().flat_map(|text| text.lines()) {
                    println!("# {line}");
                }
                println!("not ok {number} - {name}");
                sound = false;
            }
        }
        println!("# {name} took {seconds:.1} s");
    }
    Ok(sound)
}

/// How often a test is run without its step until it fails.
const ATTEMPTS: u32 = 3;

struct Runner<'a> {
    options: &'a Options,
    kind: &'static dyn FsKind,
    work: PathBuf,
}

impl<'a> Runner<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let kind = filesystem::by_name(&options.fs)?;
        let work = options.work.clone();
        fs::create_dir_all(&work)?;
        filesystem::mount(Path::new("tmpfs"), &work, "tmpfs", "")?;
        fs::create_dir_all(work.join("mnt"))?;
        Ok(Self {
            options,
            kind,
            work,
        })
    }

    /// Runs a test without the step that it is about, and inverts what comes of it. Some lose a race or not,
    /// as the machine pleases: what has to be shown is that the test can fail, so it is run again.
    fn run_knocked_out(&self, test: &Test) -> Verdict {
        for attempt in 1..=ATTEMPTS {
            let switch = match Switch::knock_out(test.without) {
                Ok(switch) => switch,
                Err(error) => return Verdict::Broken(vec![format!("{error:#}")]),
            };
            let verdict = self.run(test, self.kind.complaints());
            drop(switch);
            match verdict {
                Verdict::Pass => println!("# attempt {attempt}: passes with {} on", test.without),
                Verdict::Fail(why) => {
                    for line in why.iter().flat_map(|text| text.lines()) {
                        println!("# as it should: {line}");
                    }
                    return Verdict::Pass;
                }
                verdict => return verdict,
            }
        }
        fail(format!(
            "passes with {} on, {ATTEMPTS} times: the test can't fail",
            test.without
        ))
    }

    /// Runs a test; messages that contain one of the texts are not held against it.
    fn run(&self, test: &Test, expected: &[&str]) -> Verdict {
        let mut kmsg = Kmsg::follow();
        expected.iter().for_each(|text| kmsg::expect(text));
        // No periodic writeback: what is on the disk was put there by the call under test.
        let _ = fs::write("/proc/sys/vm/dirty_writeback_centisecs", "0");
        let result = self.run_on_device(test);
        ledger::reset_switches();
        let verdict = match result {
            Ok(Verdict::Pass) => match vmstat::wait_until_unpinned(Duration::from_secs(10)) {
                Ok(()) => Verdict::Pass,
                Err(error) => Verdict::Broken(vec![format!("{error:#}")]),
            },
            Ok(verdict) => verdict,
            Err(error) => match error.downcast::<Skip>() {
                Ok(Skip(why)) => Verdict::Skip(why),
                Err(error) => Verdict::Broken(vec![format!("{error:#}")]),
            },
        };
        let splats = splats(&mut kmsg);
        if splats.is_empty() {
            return verdict;
        }
        let mut failures = match verdict {
            Verdict::Fail(failures) | Verdict::Broken(failures) => failures,
            Verdict::Pass | Verdict::Skip(_) => Vec::new(),
        };
        failures.extend(splats);
        Verdict::Broken(failures)
    }

    fn run_on_device(&self, test: &Test) -> Result<Verdict> {
        if test.layer == Layer::None {
            return self.run_child(test, None);
        }
        let options = self.options;
        if !test.unless_made.is_empty() && options.mkfs_opts.contains(test.unless_made) {
            return Ok(Verdict::Skip(format!("made with {}", test.unless_made)));
        }
        let device = test.layer.set_up(
            options.disk_path().as_deref(),
            options.view_path().as_deref(),
            options.size_mib << 20,
        )?;
        let directory = self.work.join("mnt");
        let mkfs: Vec<String> = format!("{} {}", options.mkfs_opts, test.mkfs)
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        filesystem::run(&mut self.kind.mkfs(&device.path, device.size, &mkfs))?;
        let mount_options =
            filesystem::join_options(&[self.kind.mount_options(), &options.mount_opts, test.mount]);
        filesystem::mount(&device.path, &directory, self.kind.name(), &mount_options)?;

        let mut verdict = self.run_child(
            test,
            Some(&Place {
                device: &device.path,
                raw: &device.raw,
                size: device.size,
                mount_options: &mount_options,
            }),
        );
        device.release();
        let mut failures = Vec::new();
        if let Err(error) = filesystem::unmount(&directory) {
            failures.push(format!("{error:#}"));
            filesystem::detach(&directory);
        } else if let Err(error) = filesystem::run(&mut self.kind.check(&device.path)) {
            failures.push(format!("{error:#}"));
        }
        if !failures.is_empty() {
            match verdict {
                Ok(Verdict::Fail(ref mut why) | Verdict::Broken(ref mut why)) => {
                    why.append(&mut failures);
                }
                Ok(_) => verdict = Ok(Verdict::Fail(failures)),
                Err(ref error) => {
                    failures.insert(0, format!("{error:#}"));
                    verdict = Ok(Verdict::Broken(failures));
                }
            }
        }
        verdict
    }

    fn run_child(&self, test: &Test, place: Option<&Place<'_>>) -> Result<Verdict> {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["one", test.name])
            .args(self.options.to_arguments());
        if let Some(place) = place {
            command
                .arg("--device")
                .arg(place.device)
                .arg("--raw")
                .arg(place.raw)
                .args(["--device-size", &place.size.to_string()])
                .args(["--mounted-with", place.mount_options]);
        }
        // Stdout and stderr share one pipe, so that lines stay in order.
        let (reader, writer) = pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0);
        let mut child = command.spawn().context("cannot start the test")?;
        drop(command);
        let output = thread::spawn(move || forward(reader));
        let timeout = test.timeout * u64::from(self.options.timeout_scale);
        let status = wait(&mut child, Duration::from_secs(timeout));
        if status.is_none() {
            for line in tasks::of_group(child.id()) {
                println!("# {line}");
            }
        }
        // Whatever the test has left behind goes with it, and closes the pipe.
        // SAFETY: the group is the child's own.
        unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
        let Some(status) = status else {
            // A task that the kernel never lets go can't be reaped.
            return match wait(&mut child, Duration::from_secs(10)) {
                Some(_) => Ok(broken(format!("timed out after {timeout} s"))),
                None => {
                    println!("Bail out! {} can't be killed", test.name);
                    Err(anyhow!(
                        "stuck in the kernel: {}",
                        tasks::stack(child.id().to_string())
                    ))
                }
            };
        };
        let skipped = output.join().unwrap_or_default();
        Ok(match status.code() {
            Some(0) => Verdict::Pass,
            Some(EXIT_SKIP) => Verdict::Skip(skipped.unwrap_or_default()),
            Some(EXIT_FAIL) => fail(format!("the test ended with {status}")),
            _ => broken(format!("the test ended with {status}")),
        })
    }
}

/// A pipe that no other child inherits.
fn pipe() -> Result<(File, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors, which then belong to nobody else.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error()).context("pipe");
        }
        Ok((File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Where the filesystem of a test is.
struct Place<'a> {
    device: &'a Path,
    raw: &'a Path,
    size: u64,
    mount_options: &'a str,
}

fn fail(why: String) -> Verdict {
    Verdict::Fail(vec![why])
}

fn broken(why: String) -> Verdict {
    Verdict::Broken(vec![why])
}

fn splats(kmsg: &mut Kmsg) -> Vec<String> {
    kmsg::splats(kmsg.messages())
        .into_iter()
        .map(|message| format!("kernel: {message}"))
        .collect()
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Prints what a test says as diagnostics; returns its reason for skipping.
fn forward(output: impl Read) -> Option<String> {
    let mut skipped = None;
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        match line.strip_prefix(SKIP_MARK) {
            Some(why) => skipped = Some(why.to_owned()),
            None => println!("# {line}"),
        }
    }
    skipped
}

impl Drop for Runner<'_> {
    fn drop(&mut self) {
        filesystem::detach(&self.work);
    }
}

/// Fails unless a condition holds, with both sides in the message.
pub fn expect_eq<T: PartialEq + fmt::Debug>(what: &str, found: T, expected: T) -> Result<()> {
    if found != expected {
        bail!("{what}: {found:?}, expected {expected:?}");
    }
    Ok(())
}
