// SPDX-License-Identifier: GPL-2.0

//! Tracepoints say what happens to pinned folios.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{bail, Context as _, Result};

use super::common::{expect_refused, Pinned, KIB, MIB};
use crate::context::Context;
use crate::device::Kind;
use crate::map::Mapping;
use crate::tap::{skip, Test};

pub const TESTS: &[Test] = &[
    Test::new("trace.uring", |c| life_of_a_pin(c, Kind::Uring)),
    Test::new("trace.verbs", |c| life_of_a_pin(c, Kind::Verbs)),
    Test::new("trace.refuse", refuse)
        .only("ext4")
        .made("", "data=journal"),
];

/// No folio is larger than half of it.
const LEN: u64 = 8 * MIB;
const PAGE: u64 = 4 * KIB;

/// The events of pinwb, while this exists.
struct Tracing(());

const ROOT: &str = "/sys/kernel/tracing";

fn set(file: &str, value: &str) -> Result<()> {
    let path = Path::new(ROOT).join(file);
    fs::write(&path, value).with_context(|| format!("cannot set {}", path.display()))
}

impl Tracing {
    fn start() -> Result<Self> {
        if !Path::new(ROOT).join("events/pinwb").is_dir() {
            return skip("the kernel has no events of pinwb");
        }
        set("trace", "")?;
        set("buffer_size_kb", "4096")?;
        set("events/pinwb/enable", "1")?;
        Ok(Self(()))
    }

    /// What happened to one file, by the name of the event: the fields of each.
    fn of(&self, file: &fs::File) -> Result<Events> {
        let inode = file.metadata()?.ino().to_string();
        let text = fs::read_to_string(Path::new(ROOT).join("trace"))?;
        if text.contains("LOST EVENTS") {
            bail!("the buffer was too small");
        }
        let mut events = Events::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((_, event)) = line.split_once(": pinwb_") else {
                continue;
            };
            let (name, fields) = event.split_once(": ").context("an event without fields")?;
            let fields = parse(fields);
            if fields.get("ino") == Some(&inode) {
                events.0.entry(name.to_owned()).or_default().push(fields);
            }
        }
        Ok(events)
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = set("events/pinwb/enable", "0");
    }
}

type Fields = BTreeMap<String, String>;

/// Pairs of words: name and value.
fn parse(text: &str) -> Fields {
    let words: Vec<&str> = text.split_whitespace().collect();
    let pairs = words.chunks_exact(2);
    pairs
        .map(|pair| (pair[0].to_owned(), pair[1].trim_end_matches(':').to_owned()))
        .collect()
}

#[derive(Default)]
struct Events(BTreeMap<String, Vec<Fields>>);

impl Events {
    fn sum(&self, event: &str, field: &str) -> u64 {
        let all = self.0.get(event).into_iter().flatten();
        all.filter_map(|fields| fields.get(field)?.parse::<u64>().ok())
            .sum()
    }

    fn expect(&self, event: &str, field: &str, sum: u64) -> Result<()> {
        let found = self.sum(event, field);
        if found != sum {
            bail!("pinwb_{event} says {field} {found} in all, not {sum}");
        }
        Ok(())
    }
}

fn life_of_a_pin(context: &Context, kind: Kind) -> Result<()> {
    let tracing = Tracing::start()?;
    let mut pinned = Pinned::sparse(context, kind, "file", LEN)?;
    tracing
        .of(&pinned.file)?
        .expect("pin", "pins", LEN / PAGE)?;

    pinned.write(1)?;
    pinned.file.sync_all()?;
    let events = tracing.of(&pinned.file)?;
    // A folio may be written a second time, by a commit of the journal.
    for (event, field, sum) in [
        ("keep_dirty", "pages", LEN / PAGE),
        ("keep_dirty", "pins", LEN / PAGE),
        ("bounce", "copied", LEN),
        ("bounce", "bytes", LEN),
    ] {
        let found = events.sum(event, field);
        if !(sum..2 * sum).contains(&found) {
            bail!("pinwb_{event} says {field} {found} in all, not {sum}");
        }
    }

    pinned.file.set_len(LEN / 2)?;
    let events = tracing.of(&pinned.file)?;
    events.expect("orphan", "pages", LEN / PAGE / 2)?;
    events.expect("orphan", "pins", LEN / PAGE / 2)?;
    events.expect("unpin", "pins", 0)?;

    let Pinned { device, file, .. } = pinned;
    device.unpin()?;
    // What has left its file has no inode any more.
    let events = tracing.of(&file)?;
    events.expect("unpin", "pins", LEN / PAGE / 2)?;
    events.expect("pin", "pins", LEN / PAGE)
}

fn refuse(context: &Context) -> Result<()> {
    let tracing = Tracing::start()?;
    let file = context.sparse("file", LEN)?;
    let map = Mapping::shared(&file, 0, LEN as usize)?;
    expect_refused(Kind::Uring, &map)?;
    let events = tracing.of(&file)?;
    match events.0.get("refuse").map_or(0, Vec::len) {
        0 => bail!("the refusal was not traced"),
        _ => events.expect("pin", "pins", 0),
    }
}
