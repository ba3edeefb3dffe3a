// SPDX-License-Identifier: GPL-2.0

//! What is measured, against what, and what is to be reached.

use crate::samples::FASTEST;

/// A part of the benchmark, with a table and a plot of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Pins, in UML
    Time,
    /// Pins and writes, in QEMU
    Instructions,
    /// fsync of pinned files, in UML
    Writeback,
    /// The ledger beside other ways to know what is pinned, in UML
    Ledger,
    /// Writing files beside much that is pinned, in QEMU
    Writer,
    /// fsync of other files beside pins, in QEMU
    Latency,
    /// Reclaim beside pins, in QEMU
    Reclaim,
}

impl Part {
    /// In the order of the document.
    pub const ALL: [Self; 7] = [
        Self::Time,
        Self::Instructions,
        Self::Writeback,
        Self::Ledger,
        Self::Writer,
        Self::Latency,
        Self::Reclaim,
    ];

    /// On the command line, and in names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Instructions => "instructions",
            Self::Writeback => "writeback",
            Self::Ledger => "ledger",
            Self::Writer => "writer",
            Self::Latency => "latency",
            Self::Reclaim => "reclaim",
        }
    }

    pub(super) fn rows(self) -> Vec<Row> {
        match self {
            Self::Time => time(),
            Self::Instructions => instructions(),
            Self::Writeback => writeback(),
            Self::Ledger => ledger(),
            Self::Writer => writer(),
            Self::Latency => latency(),
            Self::Reclaim => reclaim(),
        }
    }

    /// MiB that each round pins, or writes.
    pub(super) fn mebibytes(self) -> u32 {
        match self {
            Self::Instructions => 32,
            _ => 64,
        }
    }

    /// What a value is to be multiplied with. Pins are measured in microseconds, of a real clock or
    /// of one that takes a nanosecond for each instruction, for all pages of a round, and the ledger
    /// in nanoseconds; they are shown in nanoseconds or instructions for each page.
    pub(super) fn scale(self, what: &str) -> f64 {
        match (self, what) {
            (_, what) if is_count(what) => 1.0,
            (_, "bytes") => 1.0 / 1024.0,
            (Self::Ledger, "lookup") => 1.0 / LEDGER_PAGES,
            (Self::Ledger, _) => 2.0 / LEDGER_PAGES,
            (Self::Writeback | Self::Latency, _) => 0.001,
            _ => 1000.0 / f64::from(self.mebibytes() * 256),
        }
    }

    /// Digits after the point.
    pub(super) fn digits(self, what: &str) -> usize {
        match (self, what) {
            (_, what) if is_count(what) || what == "bytes" => 0,
            (Self::Latency, _) => 2,
            _ => 1,
        }
    }

    /// Above its table.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Time => "Pins in UML, nanoseconds for each page: medians of the boots, and of the best rounds",
            Self::Instructions => "Instructions, those of pins for each page: medians",
            Self::Writeback => "fsync in UML, milliseconds: medians",
            Self::Ledger => "The ledger in UML, nanoseconds for each page, KiB: medians",
            Self::Writer => "Writing 200 MiB in QEMU, milliseconds: medians",
            Self::Latency => "fsync of another file in QEMU, milliseconds: medians of the turns",
            Self::Reclaim => {
                "A group half of which is pinned, in QEMU, pages and milliseconds: medians"
            }
        }
    }

    /// What the two columns of numbers are.
    pub(super) fn columns(self) -> [&'static str; 2] {
        match self {
            Self::Time | Self::Instructions => ["without", "with"],
            Self::Writeback => ["against", "pinned"],
            Self::Ledger => ["other", "ledger"],
            Self::Writer | Self::Latency => ["no pins", "pins"],
            Self::Reclaim => ["listed", "hidden"],
        }
    }
}

/// Shown as it is, a whole number.
fn is_count(what: &str) -> bool {
    matches!(
        what,
        "instructions" | "scanned" | "refaults" | "unmapped" | "ms"
    )
}

/// Pages of one thread in `rust/pinwb/bench.c`; half of them get a pin.
const LEDGER_PAGES: f64 = 4096.0;

/// The kernel without the subsystem.
pub const WITHOUT: &str = "n";
/// The kernel with it.
pub const WITH: &str = "y";
/// The same, booted with `pinwb=off`.
pub const OFF: &str = "off";

/// The same in UML, with two CPUs.
pub const SMP: &str = "smp";

/// The kinds of filesystem that are measured in QEMU.
pub const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// How far the measured ratio may be from what is to be reached.
#[derive(Debug, Clone, Copy)]
pub enum Reach {
    /// At most this, in two digits after the point.
    AtMost(f64),
    /// At most this share away from 1.
    Equal(f64),
    /// Shown for comparison.
    Nothing,
}

/// A case on a kernel.
#[derive(Debug, Clone)]
pub struct Case {
    pub kernel: &'static str,
    pub name: String,
}

/// One comparison of two cases.
pub struct Row {
    pub title: String,
    pub with: Case,
    pub base: Case,
    pub what: &'static [&'static str],
    /// For the last of `what`.
    pub reach: Reach,
}

const PINS: &[&str] = &["get", "put", "sum"];
const TIMES: &[&str] = &["get", "put", "sum", FASTEST];
const SUM: &[&str] = &["sum"];
const COUNT: &[&str] = &["instructions"];

fn case(kernel: &'static str, name: impl Into<String>) -> Case {
    Case {
        kernel,
        name: name.into(),
    }
}

/// A case on a kernel, against a case on the kernel without the subsystem.
fn row(
    title: &str,
    kernel: &'static str,
    name: &str,
    base: &str,
    what: &'static [&'static str],
    reach: Reach,
) -> Row {
    Row {
        title: title.into(),
        with: case(kernel, name),
        base: case(WITHOUT, base),
        what,
        reach,
    }
}

/// Two cases on the kernel with the subsystem.
fn both(
    title: impl Into<String>,
    name: impl Into<String>,
    base: impl Into<String>,
    what: &'static [&'static str],
    reach: Reach,
) -> Row {
    Row {
        title: title.into(),
        with: case(WITH, name),
        base: case(WITH, base),
        what,
        reach,
    }
}

#[rustfmt::skip]
fn time() -> Vec<Row> {
    vec![
        row("anonymous memory", WITH, "anon", "anon", TIMES, Reach::AtMost(1.0)),
        row("the same after pins of a file", WITH, "anon-after", "anon", TIMES, Reach::Nothing),
        row("shmem", WITH, "shmem", "shmem", TIMES, Reach::Nothing),
        row("dirty ext4, for read", WITH, "ext4-read", "ext4-read", TIMES, Reach::Nothing),
        row("dirty ext4, against shmem", WITH, "ext4", "shmem", TIMES, Reach::AtMost(1.25)),
    ]
}

const EQUAL: Reach = Reach::Equal(0.005);

#[rustfmt::skip]
fn instructions() -> Vec<Row> {
    vec![
        row("write(2) over a page, fsync", WITH, "write-rewrite", "write-rewrite", COUNT, EQUAL),
        row("the same, pinwb=off", OFF, "write-rewrite", "write-rewrite", COUNT, EQUAL),
        row("write(2) at EOF, fsync", WITH, "write-append", "write-append", COUNT, EQUAL),
        row("the same, pinwb=off", OFF, "write-append", "write-append", COUNT, EQUAL),
        row("get_user_pages()", WITH, "get_user_pages", "get_user_pages", SUM, EQUAL),
        row("get_user_pages_fast()", WITH, "get_user_pages_fast", "get_user_pages_fast", SUM, EQUAL),
        row("pin_user_pages()", WITH, "pin_user_pages", "pin_user_pages", SUM, EQUAL),
        row("pin_user_pages_fast()", WITH, "pin_user_pages_fast", "pin_user_pages_fast", SUM, EQUAL),
        row("long-term, anonymous", WITH, "longterm-anon", "longterm-anon", PINS, Reach::AtMost(1.0)),
        row("long-term, shmem, 4 KiB", WITH, "longterm-shmem-4k", "longterm-shmem-4k", SUM, Reach::Nothing),
        row("long-term, ext4 for read, 4 KiB", WITH, "longterm-ext4-read-4k", "longterm-ext4-read-4k", SUM, Reach::Nothing),
        row("long-term, ext4 against shmem, 4 KiB", WITH, "longterm-ext4-4k", "longterm-shmem-4k", PINS, Reach::Nothing),
        row("long-term, shmem, 2 MiB", WITH, "longterm-shmem-2m", "longterm-shmem-2m", SUM, Reach::Nothing),
        row("long-term, ext4 for read, 2 MiB", WITH, "longterm-ext4-read-2m", "longterm-ext4-read-2m", SUM, Reach::Nothing),
        row("long-term, ext4 against shmem, 2 MiB", WITH, "longterm-ext4-2m", "longterm-shmem-2m", PINS, Reach::AtMost(1.05)),
    ]
}

fn writeback() -> Vec<Row> {
    vec![
        both(
            "fsync, against unpinned",
            "pinned",
            "unpinned",
            &["us"],
            Reach::Nothing,
        ),
        both(
            "what it takes longer, against memcpy",
            "more",
            "memcpy",
            &["us"],
            Reach::AtMost(1.2),
        ),
    ]
}

fn ledger() -> Vec<Row> {
    let steps = &["pin", "unpin", "lookup"];
    let mut rows = Vec::new();
    for (kernel, threads, how) in [
        (WITH, 1, ""),
        // Where an acquire is a fence, as it isn't on x86.
        (SMP, 2, ", two threads"),
    ] {
        for other in ["xarray", "page_ext", "refcount"] {
            let reach = match (kernel, other) {
                (SMP, _) | (_, "refcount") => Reach::Nothing,
                _ => Reach::AtMost(1.0),
            };
            for order in ["dense", "scattered"] {
                let name = |store| case(kernel, format!("{store}-{order}-{threads}"));
                rows.push(Row {
                    title: format!("{other}, {order}{how}"),
                    with: name("ledger"),
                    base: name(other),
                    what: steps,
                    reach,
                });
            }
        }
    }
    for order in ["dense", "scattered"] {
        for (other, title, reach) in [
            ("bound", "8 B a page, a leaf a region", Reach::AtMost(1.0)),
            ("page_ext", "page_ext, 1 GiB of memory", Reach::Nothing),
        ] {
            rows.push(both(
                format!("{title}, {order}"),
                format!("ledger-{order}"),
                format!("{other}-{order}"),
                &["bytes"],
                reach,
            ));
        }
    }
    rows
}

fn writer() -> Vec<Row> {
    let mut rows = Vec::new();
    for fs in FILESYSTEMS {
        for (place, name) in [("same", "the same"), ("other", "another")] {
            for (base, of) in [("nothing", ""), ("locked", ", against mlock")] {
                rows.push(both(
                    format!("pins on {fs}, written to {name}{of}"),
                    format!("{fs}-{place}-pins"),
                    format!("{fs}-{place}-{base}"),
                    &["ms"],
                    Reach::AtMost(1.02),
                ));
            }
        }
    }
    rows
}

/// A row for each filesystem that is measured in QEMU.
fn by_filesystem(with: &str, base: &str, what: &'static [&'static str], reach: Reach) -> Vec<Row> {
    let row = |fs| {
        both(
            fs,
            format!("{fs}-{with}"),
            format!("{fs}-{base}"),
            what,
            reach,
        )
    };
    FILESYSTEMS.map(row).into()
}

fn latency() -> Vec<Row> {
    by_filesystem("pins", "nothing", &["p50", "p99"], Reach::AtMost(1.1))
}

fn reclaim() -> Vec<Row> {
    let what = &["ms", "refaults", "unmapped", "scanned"];
    by_filesystem("hidden", "listed", what, Reach::AtMost(1.0))
}
