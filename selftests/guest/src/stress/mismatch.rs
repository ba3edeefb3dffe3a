// SPDX-License-Identifier: GPL-2.0

//! How a history fails.

use std::fmt;
use std::io;

use anyhow::Result;

/// How a history can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The disk has something else after a sync.
    Disk,
    /// The file has something else when read.
    Memory,
    /// After a power cut or a remount the file has something else.
    Remount,
    /// The ledger counts something else.
    Ledger,
    /// A call failed that should not, or the other way round.
    Error,
}

/// Model and file differ; travels as an error.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// In which way.
    pub kind: Kind,
    /// Where.
    pub text: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

impl std::error::Error for Mismatch {}

/// Ends the history.
pub fn mismatch<T>(kind: Kind, text: String) -> Result<T> {
    Err(Mismatch { kind, text }.into())
}

/// How bytes that begin at `base` differ, and where first.
pub fn describe(base: u64, expected: &[u8], found: &[u8]) -> Option<(u64, String)> {
    if expected == found {
        return None;
    }
    if expected.len() != found.len() {
        let text = format!("{} bytes, expected {}", found.len(), expected.len());
        return Some((base, text));
    }
    let differs = |at: &usize| expected[*at] != found[*at];
    let first = (0..expected.len()).find(differs)?;
    let last = (0..expected.len()).rfind(differs)?;
    let count = (first..=last).filter(differs).count();
    let show = |bytes: &[u8]| {
        let part = &bytes[first..(first + 8).min(last + 1)];
        if bytes[first..=last].iter().all(|byte| *byte == 0) {
            "zeroes".to_owned()
        } else {
            format!("{part:02x?}")
        }
    };
    let text = format!(
        "{count} bytes in {}..{} differ: {}, expected {}",
        base + first as u64,
        base + last as u64 + 1,
        show(found),
        show(expected)
    );
    Some((base + first as u64, text))
}
/// The errno of a call that returns 0 or -1.
pub fn check(done: libc::c_int) -> io::Result<()> {
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// True if the filesystem has the operation, an error if it has and failed.
pub fn supported(done: io::Result<()>, what: &str) -> Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => mismatch(Kind::Error, format!("{what}: {error}")),
    }
}

/// An error that ends the history if a call failed.
pub fn fail<T>(done: io::Result<T>, what: &str) -> Result<T> {
    match done {
        Ok(value) => Ok(value),
        Err(error) => mismatch(Kind::Error, format!("{what}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_described() {
        assert!(describe(0, b"abc", b"abc").is_none());
        let (at, text) = describe(10, b"abcdef", b"ab\0\0ef").unwrap();
        assert_eq!(at, 12);
        assert_eq!(text, "2 bytes in 12..14 differ: zeroes, expected [63, 64]");
        let (_, text) = describe(0, b"abc", b"ab").unwrap();
        assert_eq!(text, "2 bytes, expected 3");
    }
}
