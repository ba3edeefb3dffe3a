// SPDX-License-Identifier: GPL-2.0

//! `check`: every group of tests, one guest each, and the count of it all.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::job::{Job, Mount};
use crate::matrix::{self, GuestTest};
use crate::qemu::{self, Config, Stream};
use crate::report::Report;
use crate::sets::{self, OptionSet, SETS};
use crate::tap::{self, Parser, Test, Verdict};
use crate::{cache, programs, scan, unused};

/// What the user asked for.
#[derive(Debug)]
pub struct Options {
    /// Only groups, programs or tests whose name contains this; `group/test` for both.
    pub filter: Option<String>,
    /// Only say what there is.
    pub list: bool,
    /// All sets of filesystem options, and nothing else.
    pub matrix: bool,
    /// Show the consoles.
    pub console: bool,
    /// Kernel to boot.
    pub kernel: Option<PathBuf>,
    /// All time limits are multiplied by this.
    pub timeout_scale: u32,
    /// Groups to leave out.
    pub skip: Vec<String>,
}

/// A program that prints TAP.
#[derive(Clone)]
struct Program {
    /// Its name in the results, and in the guest.
    name: &'static str,
    args: Cow<'static, str>,
}

/// One boot.
#[derive(Clone)]
struct Group {
    name: &'static str,
    /// Added to the kernel command line.
    append: &'static str,
    /// MiB.
    memory: u32,
    /// Seconds, for all of it.
    timeout: u64,
    /// Shell commands before the programs.
    prepare: &'static str,
    /// mkfs options of an ext4 on `/mnt`; the programs run in there.
    mount: Option<&'static str>,
    /// The guest restarts, and the programs with it: they say themselves when they begin.
    restarts: bool,
    programs: Cow<'static, [Program]>,
}

const fn program(name: &'static str) -> Program {
    Program {
        name,
        args: Cow::Borrowed(""),
    }
}

impl Group {
    /// All tests of the guest's test program that the options matter to.
    fn of_set(set: &OptionSet) -> Self {
        Self {
            name: set.name,
            append: sets::APPEND,
            memory: 2048,
            timeout: 1800,
            prepare: "",
            mount: None,
            restarts: false,
            programs: Cow::Owned(vec![Program {
                name: programs::TEST,
                args: set.arguments().into(),
            }]),
        }
    }

    /// True if the guest's test program runs this test in the group.
    fn has(&self, test: &GuestTest) -> bool {
        let theme = test.name.split('.').next().unwrap_or_default();
        if APART.contains(&theme) || APART.contains(&self.name) {
            return theme == self.name;
        }
        let mut sets = SETS.iter();
        sets.any(|set| set.name == self.name && (set.all_tests || !test.once))
    }
}

/// The groups of `make check`, or all sets of options for `make matrix`.
fn groups(matrix: bool) -> Vec<Group> {
    let sets = SETS.iter().filter(|set| matrix || set.in_check);
    let others = OTHERS.iter().filter(|_| !matrix).cloned();
    sets.map(Group::of_set).chain(others).collect()
}

/// Name of the group whose tests are in the kernel's own log.
const KUNIT_X86: &str = "kunit-x86";
/// Name of the group whose tests have run before the harness started.
const KUNIT_UML: &str = "kunit-uml";
/// Name of the group, and theme of the tests, with failing allocations.
const FAULTS: &str = "faults";
/// Name of the group, and theme of the tests, that restart the machine.
const RESTART: &str = "restart";
/// Tests of these themes run in the group of that name and nowhere else.
const APART: [&str; 2] = [FAULTS, RESTART];
/// Name of the group of model checks, which have run before the harness started.
const MODELS: &str = "models";
/// The line by which a program's exit status comes back.
const STATUS: &str = "# pinwb-status: ";
/// Splats of one guest that are listed.
const SPLATS: usize = 10;

/// The groups that there are once, whatever the filesystem.
const OTHERS: &[Group] = &[
    Group {
        name: "kselftests",
        append: "hugepages=16",
        memory: 1536,
        timeout: 600,
        prepare: "mkswap $PINWB_DISK1 >/dev/null && swapon $PINWB_DISK1",
        mount: Some(""),
        restarts: false,
        programs: Cow::Borrowed(&[program("gup_longterm"), program("cow")]),
    },
    Group {
        name: "devices",
        append: "",
        memory: 1536,
        timeout: 600,
        prepare: "",
        mount: Some("-b 4096"),
        restarts: false,
        programs: Cow::Borrowed(&[program("test-perftest"), program("test-fio")]),
    },
    Group {
        name: "off",
        append: "pinwb=off hugepages=16",
        memory: 1536,
        timeout: 600,
        prepare: "",
        mount: Some(""),
        restarts: false,
        programs: Cow::Borrowed(&[
            program("test-perftest"),
            program("test-fio"),
            program("gup_longterm"),
        ]),
    },
    Group {
        name: unused::GROUP,
        append: "",
        memory: 2048,
        timeout: 600,
        prepare: "",
        mount: None,
        restarts: false,
        programs: Cow::Borrowed(&[]),
    },
    Group {
        name: FAULTS,
        append: "kmemleak=on",
        memory: 1536,
        timeout: 600,
        prepare: "",
        mount: None,
        restarts: false,
        programs: Cow::Borrowed(&[Program {
            name: programs::TEST,
            args: Cow::Borrowed("run --fs ext4 --mkfs-opts '-b 4096'"),
        }]),
    },
    Group {
        name: RESTART,
        append: "",
        memory: 1536,
        timeout: 600,
        prepare: "",
        mount: None,
        restarts: true,
        programs: Cow::Borrowed(&[Program {
            name: programs::TEST,
            args: Cow::Borrowed("restart"),
        }]),
    },
    Group {
        name: KUNIT_X86,
        append: "kunit.enable=1",
        memory: 1024,
        timeout: 300,
        prepare: "",
        mount: None,
        restarts: false,
        programs: Cow::Borrowed(&[]),
    },
];

/// What of a group is to run.
struct Chosen<'a> {
    group: &'a Group,
    programs: Vec<&'a Program>,
    /// Given to [`programs::TEST`].
    tests: Option<String>,
}

/// Applies the filter to groups, programs and what [`programs::TEST`] lists.
fn choose<'a>(groups: &'a [Group], filter: Option<&str>, tests: &[GuestTest]) -> Vec<Chosen<'a>> {
    let all = |group: &'a Group| Chosen {
        group,
        programs: group.programs.iter().collect(),
        tests: None,
    };
    let Some(filter) = filter else {
        return groups.iter().map(all).collect();
    };
    let (group_part, test_part) = match filter.split_once('/') {
        Some((group, test)) => (group, Some(test)),
        None => ("", None),
    };
    let mut chosen = Vec::new();
    for group in groups {
        if test_part.is_none() && group.name.contains(filter) {
            chosen.push(all(group));
            continue;
        }
        if !group.name.contains(group_part) {
            continue;
        }
        let wanted = test_part.unwrap_or(filter);
        let has_test = tests
            .iter()
            .any(|t| t.name.contains(wanted) && group.has(t));
        let programs: Vec<&Program> = group
            .programs
            .iter()
            .filter(|p| p.name.contains(wanted) || p.name == programs::TEST && has_test)
            .collect();
        if !programs.is_empty() {
            chosen.push(Chosen {
                group,
                programs,
                tests: has_test.then(|| wanted.to_string()),
            });
        }
    }
    chosen
}

/// What the guest's test program lists; it needs no guest for that.
fn guest_tests() -> Result<Vec<GuestTest>> {
    let built = programs::guest_programs()?;
    let Some(program) = built.iter().find(|p| p.ends_with(programs::TEST)) else {
        return Ok(Vec::new());
    };
    let out = Command::new(program).arg("list").output()?;
    let text = String::from_utf8(out.stdout).context("names are not UTF-8")?;
    text.lines().map(GuestTest::parse).collect()
}

/// Runs what was asked for; returns the exit status.
pub fn check(options: &Options) -> Result<u8> {
    let start = Instant::now();
    let tests = guest_tests()?;
    let filter = options.filter.as_deref();
    let mut groups = groups(options.matrix);
    for skip in &options.skip {
        let before = groups.len();
        groups.retain(|group| group.name != skip);
        if groups.len() == before {
            bail!("--skip: there is no group {skip}");
        }
    }
    let chosen = choose(&groups, filter, &tests);
    let with_uml = !options.matrix && filter.is_none_or(|f| KUNIT_UML.contains(f));
    let with_models = !options.matrix && filter.is_none_or(|f| MODELS.contains(f));
    if options.list {
        list(&chosen, &tests);
        return Ok(0);
    }
    if chosen.is_empty() && !with_uml && !with_models {
        bail!("nothing matches {:?}", filter.unwrap_or_default());
    }

    let log = cache::new_run("check")?;
    let mut report = Report::default();
    if with_uml {
        kunit_uml(&mut report)?;
    }
    if with_models {
        models(&mut report);
    }
    let several = chosen.len();
    for (i, chosen) in chosen.iter().enumerate() {
        println!("== {} ({} of {several})", chosen.group.name, i + 1);
        let group_log = log.join(chosen.group.name);
        fs::create_dir_all(&group_log)?;
        if let Err(e) = run_group(options, chosen, &group_log, &mut report) {
            // The other groups may still have something to say.
            println!("{}: {e:#}", chosen.group.name);
            report.fail(chosen.group.name, "guest", vec![format!("{e:#}")]);
        }
    }

    report.write(&log.join("results.tap"))?;
    println!(
        "\n{} s, logs in {}",
        start.elapsed().as_secs(),
        log.display()
    );
    print!(
        "{}",
        matrix::of(&[tests, unused::tests()].concat(), &report)
    );
    print!("{}", report.summary());
    Ok(u8::from(!report.good()))
}

fn list(chosen: &[Chosen<'_>], tests: &[GuestTest]) {
    for chosen in chosen {
        println!("{}", chosen.group.name);
        for program in &chosen.programs {
            if program.name != programs::TEST {
                println!("  {}", program.name);
                continue;
            }
            let wanted = chosen.tests.as_deref().unwrap_or("");
            let here = |t: &&GuestTest| t.name.contains(wanted) && chosen.group.has(t);
            for test in tests.iter().filter(here) {
                println!("  {}", test.name);
                if !test.without.is_empty() {
                    println!("  {}", test.knocked_out());
                }
            }
        }
    }
}

fn kunit_uml(report: &mut Report) -> Result<()> {
    let Some(path) = cache::set("PINWB_KUNIT_TAP") else {
        return Ok(());
    };
    println!("== {KUNIT_UML}");
    let Ok(bytes) = fs::read(&path) else {
        let why = format!("no results at {}", path.display());
        report.fail(KUNIT_UML, "run", vec![why]);
        return Ok(());
    };
    kunit(KUNIT_UML, &String::from_utf8_lossy(&bytes), report);
    let (splats, wrong) = scan::scan(&String::from_utf8_lossy(&bytes));
    judge_console(KUNIT_UML, &splats, &wrong, report);
    Ok(())
}

fn models(report: &mut Report) {
    let Some(path) = cache::set("PINWB_MODELS_TAP") else {
        return;
    };
    println!("== {MODELS}");
    let mut parser = Parser::default();
    for line in fs::read_to_string(&path).unwrap_or_default().lines() {
        parser.line(line);
    }
    parser.finish();
    let of = parser.tests.len();
    for (i, test) in parser.tests.into_iter().enumerate() {
        println!("{MODELS} [{}/{of}] {} {}", i + 1, word(&test), test.name);
        report.add(MODELS, test);
    }
    for what in parser.broken {
        report.fail(MODELS, &what, vec![format!("in {}", path.display())]);
    }
}

/// Adds the KTAP in a kernel's log.
fn kunit(group: &str, log: &str, report: &mut Report) {
    let (tests, broken) = tap::ktap(log);
    if tests.is_empty() && broken.is_empty() {
        let what = "no KUnit suite in this kernel's log".to_string();
        println!("{group}: {what}");
        let test = Test {
            name: "suites".into(),
            verdict: Verdict::Skip(what),
            context: Vec::new(),
        };
        report.add(group, test);
        return;
    }
    let of = tests.len();
    for (i, test) in tests.into_iter().enumerate() {
        println!("{group} [{}/{of}] {} {}", i + 1, word(&test), test.name);
        report.add(group, test);
    }
    for what in broken {
        report.fail(group, &what, Vec::new());
    }
}

fn word(test: &Test) -> &'static str {
    match test.verdict {
        Verdict::Pass => "ok    ",
        Verdict::Fail => "not ok",
        Verdict::Skip(_) => "skip  ",
    }
}

fn judge_console(group: &str, splats: &[scan::Splat], wrong: &[String], report: &mut Report) {
    for splat in splats.iter().take(SPLATS) {
        println!("{group}: splat: {}", splat.title);
        report.fail(
            group,
            &format!("splat: {}", splat.title),
            splat.lines.clone(),
        );
    }
    if splats.len() > SPLATS {
        let more = format!("splats: {} more", splats.len() - SPLATS);
        report.fail(group, &more, Vec::new());
    }
    for what in wrong {
        println!("{group}: {what}");
        report.fail(group, what, Vec::new());
    }
}

/// The shell script that a group's guest runs.
fn script(chosen: &Chosen<'_>, timeout_scale: u32) -> String {
    let mut script = String::from("cd /tmp\n");
    if chosen.group.mount.is_some() {
        script.push_str("cd /mnt\n");
    }
    script.push_str(chosen.group.prepare);
    script.push('\n');
    for program in &chosen.programs {
        let mut call = format!("{} {}", program.name, program.args);
        if program.name == programs::TEST {
            if timeout_scale != 1 {
                call.push_str(&format!(" --timeout-scale {timeout_scale}"));
            }
            if let Some(tests) = &chosen.tests {
                call.push_str(&format!(" --filter '{}'", tests.replace('\'', "")));
            }
        }
        let name = program.name;
        if !chosen.group.restarts {
            script.push_str(&format!("echo '{}{name}'\n", tap::BEGIN));
        }
        script.push_str(&format!("{call}\necho \"{STATUS}{name} $?\"\n"));
    }
    script.push_str("exit 0\n");
    script
}

/// Takes a group's output as it comes, and prints its progress.
struct Live<'a> {
    group: &'a str,
    parser: Parser,
    partial: Vec<u8>,
    /// When the last result came.
    last: Instant,
    statuses: Vec<(String, i32)>,
}

impl Live<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        while let Some(end) = self.partial.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            self.line(&String::from_utf8_lossy(&line[..end]));
        }
    }

    fn line(&mut self, line: &str) {
        if let Some((name, status)) = line
            .strip_prefix(STATUS)
            .and_then(|rest| rest.rsplit_once(' '))
        {
            let status = status.parse().unwrap_or(-1);
            self.statuses.push((name.to_string(), status));
            return;
        }
        if let Some(test) = self.parser.line(line) {
            let (word, name) = (word(test), test.name.clone());
            let seconds = self.last.elapsed().as_secs_f32();
            let (done, of) = (self.parser.done(), self.parser.planned().unwrap_or(0));
            println!("{} [{done}/{of}] {word} {name}  {seconds:.1} s", self.group);
            let _ = std::io::stdout().flush();
            self.last = Instant::now();
        }
    }
}

fn run_group(
    options: &Options,
    chosen: &Chosen<'_>,
    log: &Path,
    report: &mut Report,
) -> Result<()> {
    let group = chosen.group;
    if group.name == unused::GROUP {
        for outcome in unused::run(options.kernel.as_deref(), log, report)? {
            judge_console(group.name, &outcome.splats, &outcome.wrong, report);
        }
        return Ok(());
    }
    let config = Config {
        kernel: options.kernel.clone(),
        append: group.append.split_whitespace().map(String::from).collect(),
        memory: group.memory,
        timeout: Duration::from_secs(group.timeout) * options.timeout_scale,
        silence: Config::default().silence * options.timeout_scale,
        show_console: options.console,
        restarts: group.restarts,
        ..Config::default()
    };
    let mount = group.mount.map(|mkfs| Mount {
        fs: "ext4".into(),
        mkfs: format!("-q {mkfs}"),
        options: String::new(),
    });
    let job = Job {
        argv: vec![
            "bash".into(),
            "-c".into(),
            script(chosen, options.timeout_scale),
        ],
        mount,
        ..Job::default()
    };
    let mut out = File::create(log.join("stdout.log"))?;
    let mut err = File::create(log.join("stderr.log"))?;
    let mut live = Live {
        group: group.name,
        parser: Parser::default(),
        partial: Vec::new(),
        last: Instant::now(),
        statuses: Vec::new(),
    };
    let outcome = qemu::boot(&config, &job, log, &mut |stream, bytes| match stream {
        Stream::Out => {
            let _ = out.write_all(bytes);
            live.bytes(bytes);
        }
        Stream::Err => {
            let _ = err.write_all(bytes);
        }
    })?;
    if !live.partial.is_empty() {
        live.bytes(b"\n");
    }
    println!(
        "{}: booted in {:.1} s, {:.1} s in all",
        group.name,
        outcome.boot.unwrap_or_default().as_secs_f32(),
        outcome.elapsed.as_secs_f32()
    );

    if group.name == KUNIT_X86 {
        let console = fs::read(&outcome.console).unwrap_or_default();
        kunit(group.name, &String::from_utf8_lossy(&console), report);
    } else {
        live.parser.finish();
    }
    let failed_in = |name: &str| {
        let prefix = format!("{name}: ");
        live.parser
            .tests
            .iter()
            .any(|t| t.verdict == Verdict::Fail && t.name.starts_with(&prefix))
    };
    for (name, status) in &live.statuses {
        // Programs that count a failure exit with non-zero for it; 4 is the selftests' skip.
        if ![0, 4].contains(status)
            && !failed_in(name)
            && !live.parser.broken.iter().any(|b| b.contains(name))
        {
            let text = fs::read_to_string(log.join("stderr.log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(20)..];
            let tail = tail.iter().map(|l| l.to_string()).collect();
            report.fail(group.name, &format!("{name}: exit status {status}"), tail);
        }
    }
    for test in std::mem::take(&mut live.parser.tests) {
        // The only program of a group needs no name.
        let name = match chosen.programs.as_slice() {
            [only] => test
                .name
                .strip_prefix(&format!("{}: ", only.name))
                .map(String::from),
            _ => None,
        };
        let name = name.unwrap_or_else(|| test.name.clone());
        report.add(group.name, Test { name, ..test });
    }
    for what in &live.parser.broken {
        println!("{}: {what}", group.name);
        report.fail(group.name, what, Vec::new());
    }
    if let Some(complaint) = outcome.end.complaint() {
        println!("{}: {complaint}", group.name);
        let text = fs::read_to_string(&outcome.console).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        let tail = tail.iter().map(|l| l.to_string()).collect();
        report.fail(group.name, &complaint, tail);
    }
    judge_console(group.name, &outcome.splats, &outcome.wrong, report);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filter: &str) -> Vec<(&'static str, usize, Option<String>)> {
        let tests = [
            "pin.refused\t\t\tonce",
            "bounce.torn\tI2\tno_copy\t",
            "faults.fsync\t\t\tonce",
            "restart.ext4_kexec\tI4\tno_keep_dirty\tonce",
        ];
        let tests = tests.map(|line| GuestTest::parse(line).unwrap());
        choose(&groups(false), Some(filter), &tests)
            .into_iter()
            .map(|c| (c.group.name, c.programs.len(), c.tests))
            .collect()
    }

    #[test]
    fn filters() {
        let all = groups(false);
        assert_eq!(choose(&all, None, &[]).len(), all.len());
        assert_eq!(groups(true).len(), SETS.len());
        let refused = Some("refused".to_string());
        assert_eq!(
            names("refused"),
            ["ext4-4k", "xfs-4k", "btrfs"].map(|name| (name, 1, refused.clone()))
        );
        assert_eq!(names("ext4-1k"), [("ext4-1k", 1, None)]);
        assert_eq!(names("kunit"), [(KUNIT_X86, 0, None)]);
        let torn = Some("torn".to_string());
        assert_eq!(
            names("torn"),
            ["ext4-4k", "ext4-1k", "xfs-4k", "xfs-1k", "btrfs"].map(|set| (set, 1, torn.clone()))
        );
        assert_eq!(names("ext4-4k/torn"), [("ext4-4k", 1, torn)]);
        assert_eq!(names("kexec"), [(RESTART, 1, Some("kexec".to_string()))]);
        assert_eq!(names("fsync"), [(FAULTS, 1, Some("fsync".to_string()))]);
        assert_eq!(
            names("gup_longterm"),
            [("kselftests", 1, None), ("off", 1, None)]
        );
        assert_eq!(names("no such thing"), []);
    }

    #[test]
    fn scripts() {
        let torn = GuestTest::parse("torn\tI2\tno_copy").unwrap();
        let groups = groups(false);
        let torn = &choose(&groups, Some("ext4-4k/torn"), &[torn])[0];
        let script = script(torn, 1);
        assert!(
            script.contains("\npinwb-test run --fs ext4 --mkfs-opts '-b 4096' --filter 'torn'\n")
        );
        assert!(script.contains("# pinwb-status: pinwb-test $?"));
    }
}
