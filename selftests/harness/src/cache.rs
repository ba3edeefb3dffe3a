// SPDX-License-Identifier: GPL-2.0

//! Where things are: the cache directory, the kernel, the results of a run.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{anyhow, bail, Context, Result};

/// Runs whose results are kept.
const KEEP_RUNS: usize = 40;

/// The cache directory, `PINWB_CACHE`, made if it isn't there.
pub fn dir() -> Result<PathBuf> {
    let dir = match set("PINWB_CACHE") {
        Some(dir) => dir,
        None => match set("XDG_CACHE_HOME") {
            Some(dir) => dir.join("pinwb"),
            None => set("HOME")
                .context("neither PINWB_CACHE nor HOME is set")?
                .join(".cache/pinwb"),
        },
    };
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(fs::canonicalize(dir)?)
}

/// An environment variable that is a path; empty counts as unset.
pub fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

/// The kernel to boot: what was asked for, `PINWB_KERNEL`, `PINWB_BUILD`, else the newest in the
/// cache.
pub fn kernel(asked: Option<&Path>) -> Result<PathBuf> {
    const IMAGE: &str = "arch/x86/boot/bzImage";
    let named = asked
        .map(Path::to_path_buf)
        .or_else(|| set("PINWB_KERNEL"))
        .or_else(|| set("PINWB_BUILD").map(|b| b.join(IMAGE)));
    if let Some(path) = named {
        if !path.is_file() {
            bail!("no kernel at {}", path.display());
        }
        return Ok(path);
    }
    let cache = dir()?;
    let pattern = cache.join("**/build-x86").join(IMAGE);
    glob::glob(&pattern.to_string_lossy())?
        .flatten()
        .max_by_key(|p| modified(p))
        .ok_or_else(|| anyhow!("no kernel: build one, or set PINWB_KERNEL"))
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path)
        .and_then(|m| m.modified())
        .unwrap_or(UNIX_EPOCH)
}

/// The `selftests` directory of the project.
pub fn selftests() -> PathBuf {
    set("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

/// Seconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64)
}

/// `YYYYMMDD-HHMMSS`, UTC. The days-to-date part is Howard Hinnant's `civil_from_days()`.
pub fn timestamp(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}{month:02}{day:02}-{:02}{:02}{:02}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Makes the directory for the results of a new run, and drops those of the oldest.
pub fn new_run(verb: &str) -> Result<PathBuf> {
    let results = dir()?.join("results");
    fs::create_dir_all(&results)?;
    let mut old: Vec<PathBuf> = fs::read_dir(&results)?
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect();
    old.sort_by_key(|p| modified(p));
    for path in old.iter().rev().skip(KEEP_RUNS - 1) {
        let _ = fs::remove_dir_all(path);
    }
    let name = format!("{}-{verb}-{}", timestamp(now()), std::process::id());
    let run = results.join(&name);
    fs::create_dir_all(&run)?;
    let latest = results.join("latest");
    let _ = fs::remove_file(&latest);
    let _ = std::os::unix::fs::symlink(&name, &latest);
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::timestamp;

    #[test]
    fn dates() {
        assert_eq!(timestamp(0), "19700101-000000");
        assert_eq!(timestamp(951_827_696), "20000229-123456");
        assert_eq!(timestamp(1_798_761_599), "20261231-235959");
    }
}
