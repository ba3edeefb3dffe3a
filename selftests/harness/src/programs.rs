// SPDX-License-Identifier: GPL-2.0

//! Builds the programs of this workspace that run in the guest.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::cache;

/// PID 1 of the guest.
pub const INIT: &str = "pinwb-init";
/// The guest's test program.
pub const TEST: &str = "pinwb-test";

/// The guest's benchmark.
pub const BENCH: &str = "pinwb-bench";
/// What runs xfstests in the guest.
pub const XFSTESTS: &str = "pinwb-xfstests";

/// Builds the guest's programs; returns those that are there. A guest without [`TEST`] still runs
/// other commands, so a mistake in it is only a warning here.
pub fn guest_programs() -> Result<Vec<PathBuf>> {
    let mut built = Vec::new();
    for name in [INIT, TEST, BENCH] {
        match build(name) {
            Ok(program) => built.push(program),
            Err(error) if name == INIT => return Err(error),
            Err(error) => eprintln!("harness: {error}; the guest goes without it"),
        }
    }
    Ok(built)
}

/// Builds one program of this workspace.
pub fn build(name: &str) -> Result<PathBuf> {
    // Where this program was built; `cargo run` may have been given any directory.
    let exe = env::current_exe()?;
    let target = exe
        .parent()
        .and_then(Path::parent)
        .context("this program is not in a target directory")?;
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "--locked", "--bin", name])
        .arg("--manifest-path")
        .arg(cache::selftests().join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status()
        .context("run cargo")?;
    if !status.success() {
        bail!("{name} does not build");
    }
    Ok(target.join("release").join(name))
}
