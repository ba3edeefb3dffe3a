// SPDX-License-Identifier: GPL-2.0

//! Contents that say where they belong.
//!
//! Every aligned 8-byte word of a test file is a reversible hash of the file's number, the round that
//! wrote it and its offset. A word found in the wrong place therefore tells which write it came from:
//! an old round (lost write), another offset (misplaced), two rounds in one sector (torn).

use std::fmt;

/// The smallest unit that differences are counted in, in bytes.
pub const SECTOR: usize = 512;

const FILE_BITS: u32 = 20;
const ROUND_BITS: u32 = 12;

/// What one round writes into one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the file, 20 bits.
    pub file: u32,
    /// Number of the round, 12 bits; a longer series wraps.
    pub round: u32,
}

impl Stamp {
    /// A file number that differs between runs, so that what an earlier test left on the disk never passes
    /// for what this one wrote.
    pub fn fresh() -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |t| t.as_nanos() as u64);
        let salt = mix(now ^ u64::from(std::process::id()) << 32);
        Self {
            file: (salt as u32) & ((1 << FILE_BITS) - 1),
            round: 0,
        }
    }

    /// The same file in another round.
    pub fn round(self, round: u32) -> Self {
        Self { round, ..self }
    }

    /// The word at byte `offset` of the file, a multiple of 8.
    pub fn word(self, offset: u64) -> u64 {
        let file = u64::from(self.file & ((1 << FILE_BITS) - 1));
        let round = u64::from(self.round & ((1 << ROUND_BITS) - 1));
        mix(file << 44 | round << 32 | (offset / 8) & 0xffff_ffff)
    }

    /// Writes the contents of the file from byte `base` on into `buffer`.
    pub fn fill(self, buffer: &mut [u8], base: u64) {
        debug_assert!(base & 7 == 0);
        for (index, word) in buffer.chunks_mut(8).enumerate() {
            let value = self.word(base + 8 * index as u64).to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        }
    }

    /// `len` bytes of the file's contents from byte `base` on.
    pub fn bytes(self, base: u64, len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        self.fill(&mut buffer, base);
        buffer
    }
}

/// What a word found on a disk says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Zero,
    Ours { round: u32, offset: u64 },
    Foreign,
}

fn read_word(word: u64, file: u32) -> Word {
    if word == 0 {
        return Word::Zero;
    }
    let plain = unmix(word);
    if (plain >> 44) as u32 != file & ((1 << FILE_BITS) - 1) {
        return Word::Foreign;
    }
    Word::Ours {
        round: (plain >> 32) as u32 & ((1 << ROUND_BITS) - 1),
        offset: (plain & 0xffff_ffff) * 8,
    }
}

/// What a sector holds that is not what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Zero,
    /// What one other round wrote there.
    Stale {
        /// Which.
        round: u32,
    },
    /// What belongs elsewhere.
    Misplaced {
        /// Bytes from its place.
        by: i64,
    },
    /// Words of more than one round, or of one round and zeroes.
    Torn {
        /// The first and the last of them.
        rounds: (u32, u32),
    },
    /// What was never written to this file.
    Foreign,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Zero => write!(f, "zeroes"),
            Fault::Stale { round } => write!(f, "data of round {round}"),
            Fault::Misplaced { by } => write!(f, "misplaced by {by} bytes"),
            Fault::Torn { rounds: (a, b) } => write!(f, "torn: data of rounds {a} and {b}"),
            Fault::Foreign => write!(f, "data that this test never wrote there"),
        }
    }
}

/// Says what a sector holds that was read at byte `base` of the file; the round of `stamp` plays no part.
pub fn classify(sector: &[u8], base: u64, stamp: Stamp) -> Fault {
    let mut rounds: Option<(u32, u32)> = None;
    let mut zeroes = 0;
    let mut words = 0;
    for (index, bytes) in sector.chunks_exact(8).enumerate() {
        words += 1;
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        match read_word(u64::from_le_bytes(word), stamp.file) {
            Word::Zero => zeroes += 1,
            Word::Foreign => return Fault::Foreign,
            Word::Ours { round, offset } => {
                let expected = base + 8 * index as u64;
                if offset != expected {
                    return Fault::Misplaced {
                        by: offset as i64 - expected as i64,
                    };
                }
                rounds = Some(match rounds {
                    None => (round, round),
                    Some((low, high)) => (low.min(round), high.max(round)),
                });
            }
        }
    }
    match rounds {
        None if zeroes == words && words > 0 => Fault::Zero,
        Some((low, high)) if low == high && zeroes == 0 => Fault::Stale { round: low },
        Some(rounds) => Fault::Torn { rounds },
        None => Fault::Foreign,
    }
}

/// How two stretches of a file differ.
#[derive(Debug, Default)]
pub struct Difference {
    /// Sectors that are not byte for byte the same.
    pub sectors: usize,
    /// One line for each run of sectors that differ in the same way; the first few only.
    pub notes: Vec<String>,
}

const NOTES: usize = 8;

/// Compares what is there with what should be; `base` is the file offset of the first byte.
pub fn compare(expected: &[u8], found: &[u8], base: u64, stamp: Stamp) -> Difference {
    let mut difference = Difference::default();
    let mut run: Option<(u64, u64, Fault)> = None;
    let mut close = |run: &mut Option<(u64, u64, Fault)>| {
        if let Some((start, end, fault)) = run.take() {
            if difference.notes.len() < NOTES {
                difference
                    .notes
                    .push(format!("bytes {start}..{end}: {fault}"));
            }
        }
    };
    let mut sectors = 0;
    for (index, expected) in expected.chunks(SECTOR).enumerate() {
        let start = index * SECTOR;
        let end = start + expected.len();
        let actual = found.get(start..end).unwrap_or(&[]);
        if actual == expected {
            close(&mut run);
            continue;
        }
        sectors += 1;
        let (from, to) = (base + start as u64, base + end as u64);
        let fault = classify(actual, from, stamp);
        match &mut run {
            Some((_, end, previous)) if *previous == fault => *end = to,
            _ => {
                close(&mut run);
                run = Some((from, to, fault));
            }
        }
    }
    close(&mut run);
    difference.sectors = sectors;
    difference
}

// The finaliser of MurmurHash3, a bijection on 64 bits, and its inverse.
fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

fn unmix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0x9cb4_b2f8_1293_37db);
    x ^= x >> 33;
    x = x.wrapping_mul(0x4f74_430c_22a5_4005);
    x ^ x >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        file: 0x1_2345,
        round: 7,
    };

    fn notes(expected: &[u8], found: &[u8]) -> Vec<String> {
        compare(expected, found, 4096, STAMP).notes
    }

    #[test]
    fn a_word_can_be_read_back() {
        for offset in [0, 8, 4096, 1 << 34] {
            let word = STAMP.word(offset);
            assert_eq!(read_word(word, STAMP.file), Word::Ours { round: 7, offset });
            assert_eq!(read_word(word, STAMP.file + 1), Word::Foreign);
        }
    }

    #[test]
    fn equal_contents_have_no_difference() {
        let bytes = STAMP.bytes(4096, 5000);
        assert_eq!(compare(&bytes, &bytes, 4096, STAMP).sectors, 0);
    }

    #[test]
    fn a_stale_round_is_named() {
        let old = STAMP.round(6).bytes(4096, 1024);
        let difference = compare(&STAMP.bytes(4096, 1024), &old, 4096, STAMP);
        assert_eq!(difference.sectors, 2);
        assert_eq!(difference.notes, ["bytes 4096..5120: data of round 6"]);
    }

    #[test]
    fn zeroes_tearing_displacement_and_garbage_are_told_apart() {
        let expected = STAMP.bytes(4096, 512);
        assert_eq!(notes(&expected, &[0; 512]), ["bytes 4096..4608: zeroes"]);
        let mut torn = expected.clone();
        STAMP.round(6).fill(&mut torn[..64], 4096);
        assert_eq!(
            notes(&expected, &torn),
            ["bytes 4096..4608: torn: data of rounds 6 and 7"]
        );
        assert_eq!(
            notes(&expected, &STAMP.bytes(8192, 512)),
            ["bytes 4096..4608: misplaced by 4096 bytes"]
        );
        assert_eq!(
            notes(&expected, &[0x5a; 512]),
            ["bytes 4096..4608: data that this test never wrote there"]
        );
    }

    #[test]
    fn a_short_read_differs() {
        let expected = STAMP.bytes(0, 1024);
        assert_eq!(compare(&expected, &expected[..512], 0, STAMP).sectors, 1);
    }
}
