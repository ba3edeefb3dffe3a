// SPDX-License-Identifier: GPL-2.0

//! TAP 13/14 as our guest programs and the kernel's selftests write it, and KTAP as KUnit does.

use std::collections::VecDeque;

use regex::Regex;

/// Diagnostic lines that are kept before and after a result.
const CONTEXT: usize = 30;

/// A line that is not part of TAP 13 but of the guest scripts: results that follow are those of
/// another program.
pub const BEGIN: &str = "# pinwb-program: ";

/// Outcome of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Pass,
    /// It failed.
    Fail,
    /// It was not run (or failed as expected), for this reason.
    Skip(String),
}

/// One test, with what its program said around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// Name, with that of the program before it where a stream has several.
    pub name: String,
    /// Outcome.
    pub verdict: Verdict,
    /// `#` lines and other output around the result line.
    pub context: Vec<String>,
}

/// One line of TAP.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Version,
    Plan(usize),
    Result { name: String, verdict: Verdict },
    BailOut(&'a str),
    Other,
}

/// Splits a result line's text into its description and its directive.
fn result(ok: bool, text: &str) -> Line<'static> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix("- ").unwrap_or(rest).trim();

    let mut verdict = if ok { Verdict::Pass } else { Verdict::Fail };
    let mut name = rest.to_string();
    // A description may hold a '#': the directive is the last one that is spelled like one.
    for (at, _) in rest.rmatch_indices('#') {
        let directive = rest[at + 1..].trim_start();
        let word: String = directive
            .chars()
            .take_while(|c| c.is_ascii_alphabetic())
            .collect();
        let why = directive[word.len()..].trim_start_matches(':').trim();
        match word.to_ascii_uppercase().as_str() {
            "SKIP" | "SKIPPED" => verdict = Verdict::Skip(why.to_string()),
            "XFAIL" => verdict = Verdict::Skip(format!("expected failure {why}").trim().into()),
            "TODO" if !ok => verdict = Verdict::Skip(format!("to do: {why}")),
            "TODO" => {}
            _ => continue,
        }
        name = rest[..at].trim_end().to_string();
        // ksft_test_result_skip() has the name behind the directive.
        if name.is_empty() {
            name = why.to_string();
            if word.eq_ignore_ascii_case("xfail") {
                verdict = Verdict::Skip("expected failure".into());
            }
        }
        break;
    }
    if name.is_empty() {
        name = format!("test {number}");
    }
    Line::Result { name, verdict }
}

fn parse(line: &str) -> Line<'_> {
    if line.starts_with("TAP version") || line.starts_with("KTAP version") {
        return Line::Version;
    }
    if let Some(text) = line.strip_prefix("Bail out!") {
        return Line::BailOut(text.trim());
    }
    if let Some(count) = line.strip_prefix("1..") {
        let count = count.split([' ', '#']).next().unwrap_or_default();
        if let Ok(count) = count.parse() {
            return Line::Plan(count);
        }
    }
    for (prefix, ok) in [("ok", true), ("not ok", false)] {
        match line.strip_prefix(prefix) {
            Some("") => return result(ok, ""),
            Some(text) if text.starts_with(' ') => return result(ok, text),
            _ => {}
        }
    }
    Line::Other
}

/// Reads a stream of TAP line by line; a stream may hold several documents.
#[derive(Debug, Default)]
pub struct Parser {
    program: String,
    plan: Option<usize>,
    in_document: usize,
    documents: usize,
    before: VecDeque<String>,
    after: usize,
    /// Every test so far.
    pub tests: Vec<Test>,
    /// What is wrong with the stream itself.
    pub broken: Vec<String>,
}

impl Parser {
    /// Takes one line without its newline; says which test it completed, if any.
    pub fn line(&mut self, line: &str) -> Option<&Test> {
        let line = line.trim_end_matches('\r');
        if let Some(program) = line.strip_prefix(BEGIN) {
            self.close();
            self.program = program.trim().to_string();
            return None;
        }
        match parse(line) {
            Line::Version => self.close(),
            Line::Plan(count) => {
                // A plan may also come last; a second one starts a new document.
                if self.plan.is_some() {
                    self.close();
                }
                self.plan = Some(count);
                self.documents += 1;
            }
            Line::BailOut(why) => self
                .broken
                .push(self.of_program(&format!("bail out: {why}"))),
            Line::Result { name, verdict } => {
                let name = self.of_program(&name);
                let context: Vec<String> = self.before.drain(..).collect();
                self.after = if context.is_empty() { 0 } else { CONTEXT };
                self.in_document += 1;
                self.tests.push(Test {
                    name,
                    verdict,
                    context,
                });
                return self.tests.last();
            }
            Line::Other => {
                if self.before.len() == CONTEXT {
                    self.before.pop_front();
                }
                self.before.push_back(line.to_string());
                // Some programs say why only after the result.
                if self.in_document > 0 {
                    if let Some(last) = self.tests.last_mut() {
                        if last.verdict == Verdict::Fail && self.after < CONTEXT {
                            last.context.push(line.to_string());
                            self.after += 1;
                        }
                    }
                }
            }
        }
        None
    }

    /// Tests that the current document has planned.
    pub fn planned(&self) -> Option<usize> {
        self.plan
    }

    /// Results that the current document has so far.
    pub fn done(&self) -> usize {
        self.in_document
    }

    /// Ends the stream.
    pub fn finish(&mut self) {
        self.close();
        if self.documents == 0 {
            self.broken.push("no plan: not TAP".to_string());
        }
    }

    fn of_program(&self, name: &str) -> String {
        if self.program.is_empty() {
            name.to_string()
        } else {
            format!("{}: {name}", self.program)
        }
    }

    fn close(&mut self) {
        let done = std::mem::take(&mut self.in_document);
        match self.plan.take() {
            Some(plan) if plan != done => {
                let what = format!("{done} results, {plan} planned");
                self.broken.push(self.of_program(&what));
            }
            None if done > 0 => self.broken.push(self.of_program("results without a plan")),
            _ => {}
        }
        self.before.clear();
    }
}

/// Reads KTAP with nested subtests, as KUnit prints it to the console, and returns its leaves,
/// named by their path. The second value says what is wrong with it.
pub fn ktap(text: &str) -> (Vec<Test>, Vec<String>) {
    struct Level {
        plan: Option<usize>,
        done: usize,
        title: Option<String>,
    }
    let stamp = Regex::new(r"^(<\d+>)?\[\s*\d+\.\d+\](\[[^\]]*\])? ?").expect("a constant");
    let mut tests: Vec<Test> = Vec::new();
    let mut broken = Vec::new();
    let mut levels: Vec<Level> = Vec::new();
    let mut context: VecDeque<String> = VecDeque::new();
    // The first leaf of each level that is open, to put its parent's name in front.
    let mut first_leaf: Vec<usize> = Vec::new();
    let mut bailed = false;

    for raw in text.lines() {
        let line = stamp.replace(raw.trim_end_matches('\r'), "").into_owned();
        let body = line.trim_start_matches(' ');
        let depth = (line.len() - body.len()) / 4;
        match parse(body) {
            Line::Version if depth <= levels.len() => {
                levels.truncate(depth);
                first_leaf.truncate(depth);
                levels.push(Level {
                    plan: None,
                    done: 0,
                    title: None,
                });
                first_leaf.push(tests.len());
            }
            // A kernel whose suites are all filtered out.
            Line::Plan(0) if depth == 0 && levels.len() == 1 => levels.clear(),
            Line::Plan(count) if depth + 1 == levels.len() => levels[depth].plan = Some(count),
            Line::BailOut(why) => {
                broken.push(format!("bail out: {why}"));
                bailed = true;
            }
            Line::Result { name, verdict } if depth < levels.len() => {
                let nested = levels.len() > depth + 1;
                let start = first_leaf.get(depth + 1).copied();
                if nested {
                    let child = &levels[depth + 1];
                    if child.plan.is_some_and(|p| p != child.done) {
                        let plan = child.plan.unwrap_or_default();
                        broken.push(format!("{name}: {} results, {plan} planned", child.done));
                    }
                    let start = start.unwrap_or(tests.len());
                    let failed = tests[start..].iter().any(|t| t.verdict == Verdict::Fail);
                    for leaf in &mut tests[start..] {
                        leaf.name = format!("{name}.{}", leaf.name);
                    }
                    // A suite's own init or exit may fail with no case that did.
                    if verdict == Verdict::Fail && !failed || start == tests.len() {
                        tests.push(Test {
                            name,
                            verdict,
                            context: context.drain(..).collect(),
                        });
                    }
                    levels.truncate(depth + 1);
                    first_leaf.truncate(depth + 1);
                } else {
                    tests.push(Test {
                        name,
                        verdict,
                        context: context.drain(..).collect(),
                    });
                }
                context.clear();
                levels[depth].done += 1;
                if depth == 0 && levels[0].plan == Some(levels[0].done) {
                    levels.clear();
                    first_leaf.clear();
                }
            }
            _ => {
                if let Some(title) = body.strip_prefix("# Subtest: ") {
                    if let Some(level) = levels.last_mut() {
                        level.title = Some(title.to_string());
                    }
                }
                if !levels.is_empty() {
                    if context.len() == CONTEXT {
                        context.pop_front();
                    }
                    context.push_back(line);
                }
            }
        }
    }
    if !levels.is_empty() && !bailed {
        let at: Vec<&str> = levels.iter().filter_map(|l| l.title.as_deref()).collect();
        broken.push(format!("KTAP ends early, in {:?}", at.join(".")));
    }
    (tests, broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Parser {
        let mut parser = Parser::default();
        for line in text.lines() {
            parser.line(line);
        }
        parser.finish();
        parser
    }

    fn verdicts(tests: &[Test]) -> Vec<(&str, &Verdict)> {
        tests
            .iter()
            .map(|t| (t.name.as_str(), &t.verdict))
            .collect()
    }

    #[test]
    fn plain() {
        let p =
            run("TAP version 14\n1..3\nok 1 - a\n# why\nnot ok 2 - b # c\nok 3 - d # SKIP no e");
        assert_eq!(
            verdicts(&p.tests),
            [
                ("a", &Verdict::Pass),
                ("b # c", &Verdict::Fail),
                ("d", &Verdict::Skip("no e".into()))
            ]
        );
        assert_eq!(p.tests[1].context, ["# why"]);
        assert!(p.broken.is_empty());
    }

    #[test]
    fn diagnostics_after_a_failure() {
        let p = run("1..2\nnot ok 1 - a\n# because\nok 2 - b\n# not this");
        assert_eq!(p.tests[0].context, ["# because"]);
    }

    #[test]
    fn kselftest_style() {
        let p = run(
            "# pinwb-program: cow\nTAP version 13\n1..4\n# [INFO] x\nok 1 No leak\n\
             ok 2 # SKIP need more free huge pages\nok 3 # XFAIL known\nok 4 last # TODO sure",
        );
        assert_eq!(
            verdicts(&p.tests),
            [
                ("cow: No leak", &Verdict::Pass),
                (
                    "cow: need more free huge pages",
                    &Verdict::Skip("need more free huge pages".into())
                ),
                ("cow: known", &Verdict::Skip("expected failure".into())),
                ("cow: last", &Verdict::Pass),
            ]
        );
    }

    #[test]
    fn wrong_plans() {
        assert_eq!(run("1..2\nok 1 a").broken, ["1 results, 2 planned"]);
        assert_eq!(run("1..1\nok 1 a\nok 2 b").broken.len(), 1);
        assert_eq!(run("hello").broken, ["no plan: not TAP"]);
        assert!(!run("ok 1 a").broken.is_empty());
        assert!(run("ok 1 a\n1..1").broken.is_empty());
        assert_eq!(run("1..1\nBail out! disk").broken.len(), 2);
        let two = "# pinwb-program: a\n1..1\n# pinwb-program: b\n1..1\nok 1 x";
        assert_eq!(run(two).broken, ["a: 0 results, 1 planned"]);
    }

    #[test]
    fn not_results() {
        let p = run("1..1\nokay\nnot okay\nok");
        assert_eq!(verdicts(&p.tests), [("test ", &Verdict::Pass)]);
    }

    const KUNIT: &str = "\
[    0.10] Linux version
[    0.11] KTAP version 1
[    0.11] 1..3
[    0.12]     KTAP version 1
[    0.12]     # Subtest: ledger
[    0.12]     # module: pinwb
[    0.12]     1..2
[    0.13]     ok 1 counts
[    0.13]     # below: EXPECTATION FAILED at ledger.rs:1
[    0.13]     not ok 2 below
[    0.13] # ledger: pass:1 fail:1 skip:0 total:2
[    0.13] not ok 1 ledger
[    0.14]     KTAP version 1
[    0.14]     # Subtest: pool
[    0.14]     1..1
[    0.14]         KTAP version 1
[    0.14]         # Subtest: sizes
[    0.14]         ok 1 one
[    0.14]         ok 2 two # SKIP too small
[    0.14]     ok 1 sizes
[    0.14] ok 2 pool
[    0.15] ok 3 flat
[    0.16] reboot: halted
";

    #[test]
    fn kunit() {
        let (tests, broken) = ktap(KUNIT);
        assert_eq!(
            verdicts(&tests),
            [
                ("ledger.counts", &Verdict::Pass),
                ("ledger.below", &Verdict::Fail),
                ("pool.sizes.one", &Verdict::Pass),
                ("pool.sizes.two", &Verdict::Skip("too small".into())),
                ("flat", &Verdict::Pass),
            ]
        );
        assert!(broken.is_empty(), "{broken:?}");
        assert!(tests[1].context[0].contains("EXPECTATION FAILED"));
    }

    #[test]
    fn kunit_cut_short() {
        let cut = &KUNIT[..KUNIT.find("ok 2 two").unwrap()];
        let (tests, broken) = ktap(cut);
        assert_eq!(tests.len(), 3);
        assert_eq!(broken.len(), 1);
        assert_eq!(ktap("no test here"), (vec![], vec![]));
        assert_eq!(ktap("KTAP version 1\n1..0\nmore"), (vec![], vec![]));
    }

    #[test]
    fn kunit_suite_fails_alone() {
        let text = "KTAP version 1\n1..1\n    KTAP version 1\n    1..1\n    ok 1 a\nnot ok 1 s";
        let (tests, _) = ktap(text);
        assert_eq!(
            verdicts(&tests),
            [("s.a", &Verdict::Pass), ("s", &Verdict::Fail)]
        );
    }
}
