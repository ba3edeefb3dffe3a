// SPDX-License-Identifier: GPL-2.0

//! Which tests there are, and which of them are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{bail, Context, Result};

/// The tests of a checkout by name (`generic/001`), with the groups that each is in.
#[derive(Debug, Default)]
pub struct Suite {
    tests: BTreeMap<String, BTreeSet<String>>,
}

impl Suite {
    /// Reads the group lists of those directories that are for `fs`; building xfstests makes them.
    pub fn read(checkout: &Path, fs: &str) -> Result<Self> {
        let mut suite = Suite::default();
        for dir in ["generic", "shared", fs] {
            let tests = checkout.join("tests").join(dir);
            let list = tests.join("group.list");
            match fs::read_to_string(&list) {
                Ok(text) => suite.add_group_list(dir, &text),
                Err(_) if !tests.is_dir() => {}
                Err(_) => bail!(
                    "{} is missing: the checkout is not built; run `make` in it",
                    list.display()
                ),
            }
        }
        Ok(suite)
    }

    fn add_group_list(&mut self, dir: &str, text: &str) {
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            if let Some(name) = words.next() {
                self.add(&format!("{dir}/{name}"), words);
            }
        }
    }

    /// Adds a test.
    pub fn add<'a>(&mut self, name: &str, groups: impl Iterator<Item = &'a str>) {
        let all = self.tests.entry(name.to_string()).or_default();
        all.extend(groups.map(String::from));
    }

    /// The group list of a directory, as xfstests' own tools would write it.
    pub fn group_list(&self, dir: &str) -> String {
        let mut text = String::new();
        for (name, groups) in &self.tests {
            if let Some(number) = name.strip_prefix(dir).and_then(|n| n.strip_prefix('/')) {
                let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
                text.push_str(&format!("{number} {}\n", groups.join(" ")));
            }
        }
        text
    }

    /// True if there is a test of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tests.contains_key(name)
    }

    /// The tests that `request` asks for, in order: `-g group,...` adds groups, `-x group,...` and
    /// `-e test,...` take away, `@list` adds those of a list file that exist here, all else is the
    /// name or pattern of tests. `read_list` gives the text of a list file.
    pub fn choose(
        &self,
        request: &str,
        read_list: &dyn Fn(&str) -> Result<String>,
    ) -> Result<Vec<String>> {
        let mut chosen = BTreeSet::new();
        let mut without = BTreeSet::new();
        let mut words = request.split_whitespace();
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .with_context(|| format!("TESTS: {word} needs a value"))
            };
            match word {
                "-g" => {
                    for group in value()?.split(',') {
                        let found = self.in_group(group);
                        if found.is_empty() {
                            bail!("TESTS: no test is in group {group}");
                        }
                        chosen.extend(found);
                    }
                }
                "-x" => {
                    for group in value()?.split(',') {
                        without.extend(self.in_group(group));
                    }
                }
                "-e" => {
                    for pattern in value()?.split(',') {
                        without.extend(self.matching(pattern)?);
                    }
                }
                _ => match word.strip_prefix('@') {
                    Some(list) => {
                        let entries = parse_list(&read_list(list)?)?;
                        let here = entries.into_iter().map(|e| e.test);
                        chosen.extend(here.filter(|test| self.has(test)));
                    }
                    None if word.starts_with('-') => bail!("TESTS: what is {word}?"),
                    None => chosen.extend(self.matching(word)?),
                },
            }
        }
        chosen.retain(|test| !without.contains(test));
        if chosen.is_empty() {
            bail!("TESTS: {request:?} is no test at all");
        }
        Ok(chosen.into_iter().collect())
    }

    fn in_group(&self, group: &str) -> Vec<String> {
        self.tests
            .iter()
            .filter(|(_, groups)| groups.contains(group))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn matching(&self, pattern: &str) -> Result<Vec<String>> {
        let compiled =
            glob::Pattern::new(pattern).with_context(|| format!("TESTS: {pattern:?}"))?;
        let found: Vec<String> = self
            .tests
            .keys()
            .filter(|name| compiled.matches(name))
            .cloned()
            .collect();
        if found.is_empty() {
            bail!("TESTS: no test {pattern} in the checkout");
        }
        Ok(found)
    }
}

/// The groups that a test's script names in its `_begin_fstest` line.
pub fn groups_of(script: &str) -> Vec<&str> {
    script
        .lines()
        .find_map(|line| line.strip_prefix("_begin_fstest "))
        .map(|groups| groups.split_whitespace().collect())
        .unwrap_or_default()
}

/// A line of a list file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name of the test.
    pub test: String,
    /// What stands behind it.
    pub note: String,
}

/// A list file has a test a line, with a note behind it; `#` starts a comment.
pub fn parse_list(text: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (test, note) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if !test.contains('/') {
            bail!("{line:?} is not the name of a test");
        }
        entries.push(Entry {
            test: test.to_string(),
            note: note.trim().to_string(),
        });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite() -> Suite {
        let mut suite = Suite::default();
        suite.add_group_list(
            "generic",
            "# made by a tool\n\n001 rw auto quick\n002 auto\n013 auto quick other\n",
        );
        suite.add_group_list("ext4", "001 auto quick rw\n");
        suite
    }

    fn choose(request: &str) -> Result<Vec<String>> {
        suite().choose(request, &|name| match name {
            "mine" => Ok("generic/013 41 s # slow\n# all\ngeneric/999\next4/001\n".into()),
            _ => bail!("no list {name}"),
        })
    }

    #[test]
    fn requests() {
        let all = choose("-g quick").unwrap();
        assert_eq!(all, ["ext4/001", "generic/001", "generic/013"]);
        assert_eq!(choose("-g quick -x rw").unwrap(), ["generic/013"]);
        assert_eq!(choose("-g auto -e generic/0??").unwrap(), ["ext4/001"]);
        assert_eq!(choose("generic/002").unwrap(), ["generic/002"]);
        assert_eq!(choose("generic/0*").unwrap().len(), 3);
        assert_eq!(choose("@mine").unwrap(), ["ext4/001", "generic/013"]);
        assert_eq!(choose("@mine generic/002").unwrap().len(), 3);
    }

    #[test]
    fn mistakes() {
        for request in [
            "",
            "-g",
            "-g nosuch",
            "-z",
            "generic/7",
            "@other",
            "generic/001 -e generic/*",
        ] {
            assert!(choose(request).is_err(), "{request}");
        }
    }

    #[test]
    fn group_lists_round_trip() {
        let mut suite = suite();
        suite.add("generic/990", ["pinwb", "auto"].into_iter());
        let text = suite.group_list("generic");
        assert_eq!(text.lines().count(), 4);
        assert!(text.ends_with("990 auto pinwb\n"));
        let mut again = Suite::default();
        again.add_group_list("generic", &text);
        assert!(again.has("generic/990") && !again.has("ext4/001"));
    }

    #[test]
    fn scripts() {
        let script = "#! /bin/bash\n. ./common/preamble\n_begin_fstest auto quick pinwb\n";
        assert_eq!(groups_of(script), ["auto", "quick", "pinwb"]);
        assert!(groups_of("echo _begin_fstest auto\n").is_empty());
    }

    #[test]
    fn lists() {
        let entries =
            parse_list("# x\ngeneric/001   compares the block map\n\nxfs/9 # y\n").unwrap();
        assert_eq!(entries[0].note, "compares the block map");
        assert_eq!(
            (entries[1].test.as_str(), entries[1].note.as_str()),
            ("xfs/9", "")
        );
        assert!(parse_list("001 quick\n").is_err());
    }
}
