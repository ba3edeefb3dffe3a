// SPDX-License-Identifier: GPL-2.0

//! The kernel's own memory-management selftests, built from the tree under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::cache;

/// Programs of `tools/testing/selftests/mm` that know about long-term pins.
const PROGRAMS: &[&str] = &["gup_longterm", "cow", "gup_test"];

/// Changed when the way they are built changes.
const VERSION: u32 = 1;

/// The kernel source tree: `PINWB_TREE`, else the one beside the kernel's build directory.
fn tree() -> Option<PathBuf> {
    cache::set("PINWB_TREE").or_else(|| {
        let kernel = cache::kernel(None).ok()?;
        let tree = kernel.ancestors().nth(5)?.join("linux");
        tree.is_dir().then_some(tree)
    })
}

fn output() -> Result<PathBuf> {
    Ok(cache::dir()?.join("kselftests"))
}

/// The programs, built if the tree has changed; none without a tree.
pub fn built() -> Result<Vec<PathBuf>> {
    let Some(tree) = tree() else {
        return Ok(Vec::new());
    };
    build(&tree)
}

/// Builds the programs with the host's compiler and the tree's own headers. The selftests'
/// makefile writes into the source tree, so this compiles each of them directly.
pub fn build(tree: &Path) -> Result<Vec<PathBuf>> {
    let selftests = tree.join("tools/testing/selftests");
    let sources = selftests.join("mm");
    if !sources.is_dir() {
        bail!("no selftests in {}", tree.display());
    }
    let out = output()?;
    let headers = out.join("headers");
    fs::create_dir_all(&headers)?;

    // Two runs may want this at once.
    let lock = fs::File::create(out.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;

    let mut inputs: Vec<PathBuf> = Vec::new();
    for pattern in ["mm/*.[ch]", "kselftest.h"] {
        inputs.extend(glob::glob(&selftests.join(pattern).to_string_lossy())?.flatten());
    }
    inputs.push(tree.join("mm/gup_test.h"));
    let stamp = out.join("stamp");
    let state = state(tree, &inputs);
    let programs: Vec<PathBuf> = PROGRAMS.iter().map(|p| out.join(p)).collect();
    let same = fs::read_to_string(&stamp).is_ok_and(|s| s == state);
    if same && programs.iter().all(|p| p.is_file()) {
        return Ok(programs);
    }

    eprintln!("harness: building the kernel's selftests");
    run(Command::new("make")
        .arg("-s")
        .arg("-C")
        .arg(tree)
        .arg(format!("O={}", headers.display()))
        .args(["ARCH=x86", "headers"]))?;
    let uring = has_liburing();
    let config = if uring {
        "#define LOCAL_CONFIG_HAVE_LIBURING 1\n"
    } else {
        eprintln!("harness: no liburing here: the selftests' io_uring cases are left out");
        "// No liburing support found\n"
    };
    fs::write(out.join("local_config.h"), config)?;
    for (name, program) in PROGRAMS.iter().zip(&programs) {
        let mut gcc = Command::new("gcc");
        // gup_longterm makes a file beside __FILE__: a bare name puts that into the directory
        // which it runs in.
        gcc.current_dir(&sources)
            .args(["-O2", "-w", "-U_FORTIFY_SOURCE", "-D_GNU_SOURCE="])
            .arg("-I")
            .arg(&out)
            .arg("-I")
            .arg(tree)
            .arg("-I")
            .arg(&selftests)
            .arg("-isystem")
            .arg(headers.join("usr/include"))
            .arg("-isystem")
            .arg(tree.join("tools/include/uapi"))
            .arg(format!("{name}.c"));
        for shared in ["vm_util.c", "hugepage_settings.c", "thp_settings.c"] {
            if sources.join(shared).is_file() {
                gcc.arg(shared);
            }
        }
        gcc.arg("-o")
            .arg(program)
            .args(["-lrt", "-lpthread", "-lm"]);
        if uring {
            gcc.arg("-luring");
        }
        run(&mut gcc)?;
    }
    fs::write(&stamp, state)?;
    Ok(programs)
}

fn state(tree: &Path, inputs: &[PathBuf]) -> String {
    let mut state = format!("{VERSION} {}\n", tree.display());
    for input in inputs {
        let modified = fs::metadata(input).and_then(|m| m.modified());
        state.push_str(&format!("{} {modified:?}\n", input.display()));
    }
    state
}

fn has_liburing() -> bool {
    Command::new("sh")
        .args([
            "-c",
            "echo '#include <liburing.h>' | gcc -E - >/dev/null 2>&1",
        ])
        .status()
        .is_ok_and(|s| s.success())
}

fn run(command: &mut Command) -> Result<()> {
    let out = command
        .output()
        .with_context(|| format!("run {:?}", command.get_program()))?;
    if !out.status.success() {
        bail!(
            "{:?}: {}",
            command.get_program(),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(())
}
