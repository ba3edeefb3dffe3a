// SPDX-License-Identifier: GPL-2.0

//! What those pay who never pin a file, in instructions; see [`crate::instructions`] for how they are
//! counted. Short: it runs as a test, for a kernel that is booted with `pinwb=off` and without.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;

use crate::{gup, instructions, report_end};

const ROUNDS: u32 = 30;
const PAGES: u64 = 64;
const REPEATS: u32 = 9;
const PINNED: usize = 16 << 20;

#[derive(Args)]
pub struct Options {
    /// Write once more with this knock-out; the cases are named after it
    #[arg(long, value_name = "KNOCKOUT")]
    without: Option<String>,
}

/// Runs all cases.
pub fn run(options: &Options) -> Result<()> {
    let ext4 = instructions::set_up()?;
    instructions::rewrite_many(&ext4, "rewrite-many", ROUNDS, PAGES)?;
    instructions::writes(&ext4, "write-rewrite", ROUNDS, |_| 0)?;
    instructions::writes(&ext4, "write-append", ROUNDS, |round| {
        u64::from(round) * gup::PAGE as u64
    })?;
    instructions::anonymous(PINNED, REPEATS)?;
    if let Some(name) = &options.without {
        let switch = Path::new("/sys/kernel/debug/pinwb/knockout").join(name);
        fs::write(&switch, "1").with_context(|| format!("write {}", switch.display()))?;
        let case = format!("rewrite-many [{name}]");
        instructions::rewrite_many(&ext4, &case, ROUNDS, PAGES)?;
        fs::write(&switch, "0")?;
    }
    report_end();
    Ok(())
}
