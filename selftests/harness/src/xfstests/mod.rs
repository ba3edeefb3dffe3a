// SPDX-License-Identifier: GPL-2.0

//! `xfstests`: runs a user's own build of xfstests in guests, and compares with the same kernel
//! booted with `pinwb=off`.
//!
//! The guest's root image holds the checkout, with the project's own tests laid over it. One guest
//! runs as many tests as it can; when it dies or hangs, the test that ran has failed, and the next
//! guest goes on behind it. Every verdict is on disk before the next test's, so that a run that
//! was interrupted goes on where it was.

pub mod list;
pub mod output;
pub mod results;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, Context, Result};
use nix::fcntl::{Flock, FlockArg};

use self::list::Suite;
use self::output::{Event, Orders, Verdict};
use self::results::{minutes, Change, Counts, Record, Store};
use crate::job::Job;
use crate::place::Place;
use crate::qemu::{self, Config, Stream};
use crate::rootfs::{self, Extra};
use crate::{cache, programs, scan};

/// Where the checkout is in the guest.
pub const CHECKOUT: &str = "/xfstests";
const BASELINE: &str = "baseline (pinwb=off)";
/// Programs that replace others.
pub const WRAPPERS: &str = "/usr/lib/pinwb/xfstests";
/// Programs that replace others while files are being pinned.
pub const STORM_WRAPPERS: &str = "/usr/lib/pinwb/pinstorm";

/// What to forget before the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fresh {
    /// The verdicts of this run.
    Run,
    /// Those and the baseline's.
    All,
}

/// Which tests run with `pinwb=off`, to be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Baseline {
    /// All of them, first.
    All,
    /// Those that do not pass, afterwards: what passes can't be worse.
    Failed,
    /// All of them, and nothing else is run.
    Only,
    /// None: every failure counts.
    None,
}

/// What the user asked for.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The checkout, built
    #[arg(long, value_name = "DIR")]
    checkout: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Which: "-g quick", @pinwb, "generic/001 generic/01?"; see [`Suite::choose`]
    #[arg(long, default_value = "@pinwb", allow_hyphen_values = true)]
    tests: String,
    /// Pin the tests' files meanwhile
    #[arg(long)]
    pinstorm: bool,
    /// What is pinned follows from this number
    #[arg(long)]
    seed: Option<u64>,
    /// Switch this step of pinned writeback off: each of the tests has to fail
    #[arg(long, value_name = "NAME", conflicts_with_all = ["pinstorm", "baseline"])]
    knockout: Option<String>,
    /// Run again what has a verdict
    #[arg(long)]
    fresh: Option<Fresh>,
    /// Which tests run with pinwb=off, to be compared with
    #[arg(long, default_value = "all")]
    baseline: Baseline,
    /// Seconds that a test may take
    #[arg(long, default_value_t = 900)]
    limit: u64,
    /// Size of each of the three test disks, in MiB
    #[arg(long, default_value_t = 2048)]
    disk: u64,
}

/// One way to run the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// `pinwb=off`, the baseline.
    Off,
    /// With pinned writeback.
    On,
    /// While files are being pinned.
    Storm,
    /// With a step of it switched off.
    Knockout,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::On => "on",
            Mode::Storm => "pinstorm",
            Mode::Knockout => "knockout",
        }
    }
}

/// What is the same for all guests of a run.
struct Setup<'a> {
    options: &'a Options,
    config: Config,
    /// Directory of the stores.
    dir: PathBuf,
}

/// Runs what was asked for; returns the exit status.
pub fn xfstests(config: &Config, options: &Options) -> Result<u8> {
    let checkout = checkout(options.checkout.as_deref())?;
    let own = own_dir();
    let mut suite = Suite::read(&checkout, &options.place.fs)?;
    let added = add_own_tests(&mut suite, &own)?;
    let all = suite.choose(&options.tests, &|name| {
        let path = own.join(format!("{name}.list"));
        fs::read_to_string(&path).with_context(|| format!("TESTS: no list {}", path.display()))
    })?;
    let mode = match (&options.knockout, options.pinstorm) {
        (Some(_), _) => Mode::Knockout,
        (None, true) => Mode::Storm,
        (None, false) => Mode::On,
    };
    let excluded = match mode {
        Mode::Storm => list::parse_list(&fs::read_to_string(own.join("pinstorm.exclude"))?)?,
        _ => Vec::new(),
    };
    let excluded: BTreeMap<String, String> =
        excluded.into_iter().map(|e| (e.test, e.note)).collect();
    let (skipped, tests): (Vec<String>, Vec<String>) =
        all.into_iter().partition(|t| excluded.contains_key(t));
    if tests.is_empty() {
        bail!("all of these tests are in pinstorm.exclude");
    }

    let kernel = cache::kernel(config.kernel.as_deref())?;
    let dir = cache::dir()?.join("xfstests").join(format!(
        "{}-{:016x}",
        options.place.fs,
        key(config, options, &checkout, &kernel)?
    ));
    fs::create_dir_all(&dir)?;
    let lock = fs::File::create(dir.join("lock"))?;
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        bail!("another run with this kernel and filesystem is under way");
    };
    let mut config = config.clone();
    config.kernel = Some(kernel);
    let image = image(&checkout, &own, &suite, &added)?;
    let _image_in_use = rootfs::hold(&image)?;
    config.root = Some(image);
    config.disks = vec![options.disk << 20; 3];
    let setup = Setup {
        options,
        config,
        dir,
    };

    if let Some(knockout) = &options.knockout {
        return setup.prove(knockout, &tests);
    }
    let mut base = Store::open(&setup.dir.join(Mode::Off.name()))?;
    if options.fresh == Some(Fresh::All) {
        base.forget(&tests)?;
    }
    if matches!(options.baseline, Baseline::All | Baseline::Only) {
        setup.run(Mode::Off, &mut base, &tests, None)?;
    }
    if options.baseline == Baseline::Only {
        println!("{BASELINE}: {}", Counts::of(&base, &tests));
        return Ok(0);
    }
    let mut now = Store::open(&setup.dir.join(mode.name()))?;
    if options.fresh.is_some() {
        now.forget(&tests)?;
    }
    setup.run(mode, &mut now, &tests, Some(&base))?;
    let mut compared = tests.clone();
    match options.baseline {
        Baseline::None => {
            let counts = Counts::of(&now, &tests);
            println!("{}: {counts}", mode.name());
            return Ok(u8::from(counts.failed > 0));
        }
        Baseline::Failed => {
            let passed = |test: &String| {
                matches!(
                    now.get(test).map(|record| &record.verdict),
                    Some(Verdict::Pass)
                )
            };
            compared.retain(|test| !passed(test));
            setup.run(Mode::Off, &mut base, &compared, Some(&now))?;
        }
        Baseline::All | Baseline::Only => {}
    }

    let skipped: Vec<String> = skipped
        .iter()
        .map(|test| format!("{test}: {}", excluded[test]))
        .collect();
    let (text, good) = summary(mode, &base, &now, &tests, &compared, &skipped);
    fs::write(now.dir().join("summary.txt"), &text)?;
    print!("{text}");
    Ok(u8::from(!good))
}

fn own_dir() -> PathBuf {
    cache::selftests().join("xfstests")
}

/// The checkout, if it is one, and built.
fn checkout(asked: Option<&Path>) -> Result<PathBuf> {
    let Some(asked) = asked.filter(|p| !p.as_os_str().is_empty()) else {
        bail!("which xfstests? make xfstests XFSTESTS=<a checkout that was built with `make`>");
    };
    let path = fs::canonicalize(asked).with_context(|| format!("XFSTESTS={}", asked.display()))?;
    if !path.join("check").is_file() || !path.join("common/rc").is_file() {
        bail!("XFSTESTS={}: not a checkout of xfstests", path.display());
    }
    for built in ["ltp/fsx", "ltp/fsstress", "tests/generic/group.list"] {
        if !path.join(built).is_file() {
            bail!(
                "XFSTESTS={}: not built ({built} is missing); run `make` in it",
                path.display()
            );
        }
    }
    Ok(path)
}

/// Adds the project's own tests to the suite; returns their names.
fn add_own_tests(suite: &mut Suite, own: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for path in glob::glob(&own.join("tests/*/*").to_string_lossy())?.flatten() {
        if path.extension().is_some() {
            continue;
        }
        let script = fs::read_to_string(&path)?;
        let name = path.strip_prefix(own.join("tests"))?.to_string_lossy();
        suite.add(&name, list::groups_of(&script).into_iter());
        names.push(name.into_owned());
    }
    Ok(names)
}

/// True for what the guest needs of a checkout.
fn is_needed(relative: &Path) -> bool {
    let name = relative.file_name().unwrap_or_default().to_string_lossy();
    let kind = relative.extension().unwrap_or_default().to_string_lossy();
    let top = relative.iter().next().unwrap_or_default().to_string_lossy();
    let tops = ["results", "build", "m4", "doc", "LICENSES"];
    let kinds = ["o", "lo", "la", "a", "c", "h", "cpp"];
    !(top.starts_with('.')
        || tops.contains(&top.as_ref())
        || kinds.contains(&kind.as_ref())
        || relative.iter().any(|part| part == ".libs")
        // The user's own settings are for other machines.
        || name == "local.config")
}

/// Every file of the checkout that the guest needs, relative to it.
fn needed(checkout: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![checkout.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let relative = path.strip_prefix(checkout)?;
            if entry.file_type()?.is_dir() {
                if !relative.iter().any(|part| part == ".git") {
                    dirs.push(path);
                }
            } else if path.is_file() && is_needed(relative) {
                found.push(relative.to_path_buf());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What decides about a verdict: another of these is another baseline.
fn key(config: &Config, options: &Options, checkout: &Path, kernel: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    fs::read(kernel)
        .with_context(|| format!("read {}", kernel.display()))?
        .hash(&mut hasher);
    (&options.place, options.disk).hash(&mut hasher);
    (config.memory, config.cpus, &config.append).hash(&mut hasher);
    for file in needed(checkout)? {
        let meta = fs::metadata(checkout.join(&file))?;
        (&file, meta.len(), meta.mtime()).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// The root image with the checkout in it.
fn image(checkout: &Path, own: &Path, suite: &Suite, added: &[String]) -> Result<PathBuf> {
    let inside = Path::new(CHECKOUT);
    let mut files = Vec::new();
    for file in needed(checkout)? {
        files.push((inside.join(&file), checkout.join(&file)));
    }
    for pattern in ["common/*", "tests/*/*"] {
        for path in glob::glob(&own.join(pattern).to_string_lossy())?.flatten() {
            files.push((inside.join(path.strip_prefix(own)?), path));
        }
    }
    let dirs: BTreeSet<&str> = added
        .iter()
        .filter_map(|name| name.split_once('/').map(|(dir, _)| dir))
        .collect();
    let lists = cache::dir()?.join("xfstests").join("lists");
    fs::create_dir_all(&lists)?;
    for dir in dirs {
        let text = suite.group_list(dir);
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let path = lists.join(format!("{dir}-{:016x}", hasher.finish()));
        if !path.exists() {
            fs::write(&path, &text)?;
        }
        files.push((inside.join("tests").join(dir).join("group.list"), path));
    }
    let agent = Path::new("/usr/lib/pinwb").join(programs::XFSTESTS);
    files.push((agent, programs::build(programs::XFSTESTS)?));
    rootfs::image_with(Some(&Extra {
        manifest: own.join("manifest"),
        overlays: vec![own.join("files")],
        files,
    }))
}

/// What a guest said, put in order.
struct Boot<'a> {
    mode: Mode,
    store: &'a mut Store,
    /// For the estimate: how long tests took in another run.
    times: Option<&'a Store>,
    console: PathBuf,
    total: usize,
    /// Tests without a verdict, in order.
    left: Vec<String>,
    running: Option<String>,
    over: Option<f64>,
    line: Vec<u8>,
    notes: Vec<String>,
    done: Vec<String>,
}

impl Boot<'_> {
    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(event) => self.event(event)?,
                Err(_) => self
                    .notes
                    .push(String::from_utf8_lossy(&line).trim_end().into()),
            }
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Note(line) => self.notes.push(line),
            Event::Start(test) => self.running = Some(test),
            Event::Overtime { seconds, .. } => self.over = Some(seconds),
            Event::Done {
                test,
                verdict,
                seconds,
                storm,
                files,
            } => {
                self.running = None;
                let record = Record {
                    test,
                    verdict,
                    seconds,
                    storm,
                };
                self.record(record, &files)?;
            }
        }
        Ok(())
    }

    fn record(&mut self, mut record: Record, files: &[(String, String)]) -> Result<()> {
        let console = segment(&self.console_text(), &record.test);
        if let Some(title) = splat(&console) {
            record.verdict = Verdict::Fail(match &record.verdict {
                Verdict::Fail(why) => format!("console: {title}\n{why}"),
                _ => format!("console: {title}"),
            });
        }
        self.left.retain(|test| *test != record.test);
        self.done.push(record.test.clone());
        self.keep(&record, &console, files)?;
        self.progress(&record);
        self.store.put(record)
    }

    /// Leaves in the results what there is to say about a failure.
    fn keep(&self, record: &Record, console: &str, files: &[(String, String)]) -> Result<()> {
        let dir = self.store.failure(&record.test);
        let _ = fs::remove_dir_all(&dir);
        let Verdict::Fail(why) = &record.verdict else {
            return Ok(());
        };
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("why"), format!("{why}\n"))?;
        fs::write(dir.join("console"), console)?;
        for (name, text) in files {
            fs::write(dir.join(name.replace('/', "-")), text)?;
        }
        Ok(())
    }

    fn console_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    fn progress(&self, record: &Record) {
        let (word, why) = match &record.verdict {
            Verdict::Pass => ("pass", ""),
            Verdict::Fail(why) => ("FAIL", why.lines().next().unwrap_or_default()),
            Verdict::NotRun(why) => ("not run", why.as_str()),
        };
        let pins = match record.storm {
            Some(storm) => format!("  {} pins", storm.pinned),
            None => String::new(),
        };
        eprintln!(
            "[{:>4}/{}] {:<12} {:<12} {word:<8} {:>4.0} s{pins}  {}left {}",
            self.total - self.left.len(),
            self.total,
            self.mode.name(),
            record.test,
            record.seconds,
            if why.is_empty() {
                String::new()
            } else {
                format!("({why})  ")
            },
            minutes(self.estimate()),
        );
    }

    /// Seconds that the tests that are left will take.
    fn estimate(&self) -> f64 {
        let known = |test: &String| {
            let record = self.times.and_then(|times| times.get(test));
            record.map(|r| r.seconds)
        };
        let (sum, count) = self
            .done
            .iter()
            .filter_map(|test| self.store.get(test))
            .fold((0.0, 0), |(sum, n), r| (sum + r.seconds, n + 1));
        let mean = if count > 0 {
            sum / f64::from(count)
        } else {
            10.0
        };
        self.left.iter().map(|t| known(t).unwrap_or(mean)).sum()
    }
}

impl Setup<'_> {
    /// Runs the tests without a step of pinned writeback. Returns 1 unless each of them fails.
    fn prove(&self, knockout: &str, tests: &[String]) -> Result<u8> {
        let mut store = Store::open(&self.dir.join(format!("knockout-{knockout}")))?;
        // Whether a knock-out shows is a matter of timing: ask each time.
        store.forget(tests)?;
        self.run(Mode::Knockout, &mut store, tests, None)?;
        let verdict = |test: &&String| store.get(test).map(|record| &record.verdict);
        let (proven, useless): (Vec<_>, Vec<_>) = tests
            .iter()
            .partition(|test| matches!(verdict(test), Some(Verdict::Fail(_))));
        for test in &useless {
            println!("does not fail without {knockout}: {test}");
        }
        println!(
            "knocked out: {knockout}: {} tests fail, {} do not",
            proven.len(),
            useless.len()
        );
        Ok(u8::from(!useless.is_empty()))
    }

    /// Boots guests until each test has a verdict.
    fn run(
        &self,
        mode: Mode,
        store: &mut Store,
        tests: &[String],
        times: Option<&Store>,
    ) -> Result<()> {
        loop {
            let left: Vec<String> = tests
                .iter()
                .filter(|test| store.get(test).is_none())
                .cloned()
                .collect();
            if left.is_empty() {
                return Ok(());
            }
            let number = left.len();
            eprintln!(
                "harness: xfstests on {}, {}: {number} of {} tests to run",
                self.options.place.fs,
                mode.name(),
                tests.len()
            );
            let boot = self.boot(mode, store, tests.len(), left, times)?;
            if boot.left.len() == number {
                bail!("the guest ran no test at all:\n{}", boot.notes.join("\n"));
            }
        }
    }

    fn boot<'s>(
        &self,
        mode: Mode,
        store: &'s mut Store,
        total: usize,
        left: Vec<String>,
        times: Option<&'s Store>,
    ) -> Result<Boot<'s>> {
        let log = cache::new_run(&format!("xfstests-{}", mode.name()))?;
        let options = self.options;
        let limit = Duration::from_secs(options.limit);
        let mut config = self.config.clone();
        config.timeout = limit * u32::try_from(left.len())? + Duration::from_secs(600);
        config.silence = limit + Duration::from_secs(120);
        if mode == Mode::Off {
            config.append.push("pinwb=off".to_string());
        }
        let seed = options.seed.unwrap_or_else(|| cache::now() as u64);
        if mode == Mode::Storm {
            eprintln!("harness: files are pinned with --seed {seed}");
        }
        let orders = Orders {
            fs: options.place.fs.clone(),
            mkfs: options.place.mkfs_opts.clone(),
            mount: options.place.mount_opts.clone(),
            tests: left.clone(),
            limit: options.limit,
            pinstorm: (mode == Mode::Storm).then_some(seed),
            knockout: options.knockout.clone().filter(|_| mode == Mode::Knockout),
        };
        let job = Job {
            argv: vec![programs::XFSTESTS.into(), serde_json::to_string(&orders)?],
            ..Job::default()
        };
        let mut boot = Boot {
            mode,
            store,
            times,
            console: log.join("console.log"),
            total,
            left,
            running: None,
            over: None,
            line: Vec::new(),
            notes: Vec::new(),
            done: Vec::new(),
        };
        let mut broken = None;
        let outcome = qemu::boot(&config, &job, &log, &mut |stream, bytes| {
            let fed = match stream {
                Stream::Out => boot.feed(bytes),
                Stream::Err => {
                    boot.notes
                        .push(String::from_utf8_lossy(bytes).trim_end().into());
                    Ok(())
                }
            };
            if let Err(error) = fed {
                broken.get_or_insert(error);
            }
        })?;
        fs::write(log.join("notes"), boot.notes.join("\n"))?;
        if let Some(error) = broken {
            return Err(error);
        }
        if let Some(test) = boot.running.take() {
            let why = match boot.over {
                Some(seconds) => format!("over its limit: {seconds:.0} s"),
                None => match outcome.end.complaint() {
                    Some(complaint) => format!("the guest died: {complaint}"),
                    None => "check ended in the middle of it".to_string(),
                },
            };
            let record = Record {
                test,
                verdict: Verdict::Fail(why),
                seconds: boot.over.unwrap_or_default(),
                storm: None,
            };
            boot.record(record, &[])?;
        }
        recheck(&mut boot)?;
        for wrong in &outcome.wrong {
            eprintln!("harness: {wrong}");
        }
        Ok(boot)
    }
}

/// Looks at the whole console again: what a test caused may have come after its verdict.
fn recheck(boot: &mut Boot) -> Result<()> {
    let console = boot.console_text();
    for test in boot.done.clone() {
        let text = segment(&console, &test);
        let Some(title) = splat(&text) else { continue };
        let Some(record) = boot.store.get(&test) else {
            continue;
        };
        if matches!(record.verdict, Verdict::Fail(_)) {
            continue;
        }
        let record = Record {
            verdict: Verdict::Fail(format!("console: {title}")),
            ..record.clone()
        };
        eprintln!("harness: {test} failed after all: {title}");
        boot.keep(&record, &text, &[])?;
        boot.store.put(record)?;
    }
    Ok(())
}

/// The part of a console log that belongs to a test: from xfstests' own mark to the next one.
fn segment(console: &str, test: &str) -> String {
    const MARK: &str = "run fstests ";
    let mark = format!("{MARK}{test} at ");
    let lines: Vec<&str> = console.lines().collect();
    let Some(start) = lines.iter().rposition(|line| line.contains(&mark)) else {
        return String::new();
    };
    let length = lines[start + 1..]
        .iter()
        .position(|line| line.contains(MARK))
        .map_or(lines.len() - start, |n| n + 1);
    let mut text = lines[start..start + length].join("\n");
    text.push('\n');
    text
}

/// The first report of the kernel in a piece of the console. Tests break disks on purpose, so
/// messages are not looked at; nor are the stacks that fault injection prints.
fn splat(console: &str) -> Option<String> {
    let (splats, _) = scan::scan(console);
    splats
        .into_iter()
        .filter(|s| {
            s.report
                && !s
                    .lines
                    .iter()
                    .any(|l| l.contains("FAULT_INJECTION: forcing"))
        })
        .map(|s| s.title)
        .next()
}

/// What there is to say at the end, and whether all is well.
fn summary(
    mode: Mode,
    base: &Store,
    now: &Store,
    tests: &[String],
    compared: &[String],
    skipped: &[String],
) -> (String, bool) {
    let mut text = String::new();
    let mut say = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    let changes = results::changes(base, now, compared);
    for (change, test) in &changes {
        let word = match change {
            Change::Regression => "REGRESSION",
            Change::Missing => "no verdict",
            Change::Lost => "not run any more",
            Change::FailsInBoth => "fails in both",
            Change::Better => "fails in the baseline only",
            Change::Same => continue,
        };
        say(&format!("{word}: {test}"));
        let record = now.get(test);
        if let Some(Record {
            verdict: Verdict::Fail(why) | Verdict::NotRun(why),
            ..
        }) = record
        {
            for line in why
                .lines()
                .take(if *change == Change::Regression { 12 } else { 1 })
            {
                say(&format!("    {line}"));
            }
        }
        if *change == Change::Regression {
            say(&format!("    see {}", now.failure(test).display()));
        }
    }
    for line in skipped {
        say(&format!("excluded with PINSTORM: {line}"));
    }
    let mut slow: Vec<&Record> = tests.iter().filter_map(|t| now.get(t)).collect();
    slow.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let slow: Vec<String> = slow
        .iter()
        .take(5)
        .map(|r| format!("{} {:.0} s", r.test, r.seconds))
        .collect();
    say(&format!("slowest: {}", slow.join(", ")));
    let part = match compared.len() == tests.len() {
        true => "",
        false => " of what did not pass",
    };
    say(&format!("{BASELINE}{part}: {}", Counts::of(base, compared)));
    say(&format!("{}: {}", mode.name(), Counts::of(now, tests)));
    let bad = changes
        .iter()
        .filter(|(change, _)| *change <= Change::Lost)
        .count();
    if bad == 0 {
        say("No test fails that passes in the baseline.");
    } else {
        say(&format!(
            "FAILED: {bad} tests are worse than in the baseline"
        ));
    }
    (text, bad == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "\
[    1.0] Linux
[    2.0] run fstests generic/001 at 2026-11-20 12:00:00
[    3.0] EXT4-fs error (device vdc): it was told to
[    4.0] run fstests generic/002 at 2026-11-20 12:00:09
[    5.0] WARNING: CPU: 0 PID: 7 at fs/ext4/inode.c:4 f+0x1/0x2
[    6.0] fine again
";

    #[test]
    fn consoles_are_split() {
        assert_eq!(segment(CONSOLE, "generic/001").lines().count(), 2);
        assert_eq!(segment(CONSOLE, "generic/002").lines().count(), 3);
        assert_eq!(segment(CONSOLE, "generic/00"), "");
        assert_eq!(splat(&segment(CONSOLE, "generic/001")), None);
        let title = splat(&segment(CONSOLE, "generic/002")).unwrap();
        assert!(title.contains("WARNING"), "{title}");
    }

    #[test]
    fn injected_faults_are_no_splats() {
        let text = "[ 1.0] FAULT_INJECTION: forcing a failure.\n[ 1.0] name failslab\n\
                    [ 1.0] Call Trace:\n[ 1.0]  </TASK>\n";
        assert_eq!(splat(text), None);
    }

    #[test]
    fn what_goes_into_the_image() {
        for needed in [
            "check",
            "ltp/fsx",
            "tests/generic/001.out",
            "src/aio-dio-regress/x",
        ] {
            assert!(is_needed(Path::new(needed)), "{needed}");
        }
        for other in [
            ".git/config",
            "local.config",
            "src/lstat64.c",
            "lib/.libs/libtest.a",
            "results/check.log",
        ] {
            assert!(!is_needed(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn wrong_checkouts() {
        let dir = tempfile::tempdir().unwrap();
        let say = |path: Option<&Path>| format!("{:#}", checkout(path).unwrap_err());
        assert!(say(None).contains("XFSTESTS="));
        assert!(say(Some(Path::new(""))).contains("XFSTESTS="));
        assert!(say(Some(dir.path())).contains("not a checkout"));
        fs::create_dir(dir.path().join("common")).unwrap();
        for file in ["check", "common/rc"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        assert!(say(Some(dir.path())).contains("not built"));
    }

    #[test]
    fn verdict_of_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut base = Store::open(&dir.path().join("off")).unwrap();
        let mut now = Store::open(&dir.path().join("on")).unwrap();
        let tests = ["generic/001", "generic/002"].map(String::from);
        let record = |test: &String, verdict| Record {
            test: test.clone(),
            verdict,
            seconds: 1.0,
            storm: None,
        };
        for test in &tests {
            base.put(record(test, Verdict::Pass)).unwrap();
            now.put(record(test, Verdict::Pass)).unwrap();
        }
        assert!(summary(Mode::On, &base, &now, &tests, &tests, &[]).1);
        now.put(record(&tests[1], Verdict::Fail("lost data".into())))
            .unwrap();
        let (text, good) = summary(Mode::On, &base, &now, &tests, &tests, &[]);
        assert!(
            !good && text.contains("REGRESSION: generic/002\n    lost data"),
            "{text}"
        );
        base.put(record(&tests[1], Verdict::Fail("lost data".into())))
            .unwrap();
        assert!(summary(Mode::On, &base, &now, &tests, &tests, &[]).1);
        base.forget(&tests[..1]).unwrap();
        assert!(!summary(Mode::On, &base, &now, &tests, &tests, &[]).1);
        let (text, good) = summary(Mode::On, &base, &now, &tests, &tests[1..], &[]);
        assert!(
            good && text.contains("of what did not pass: 0 passed, 1 failed"),
            "{text}"
        );
        base.put(record(&tests[0], Verdict::Pass)).unwrap();
        now.forget(&tests[..1]).unwrap();
        assert!(!summary(Mode::On, &base, &now, &tests, &tests, &[]).1);
    }
}
