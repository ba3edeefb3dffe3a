// SPDX-License-Identifier: GPL-2.0

//! What a file may look like after a power cut.
//!
//! A file is judged sector by sector. What was there when the last sync of the file began that returned
//! before the cut is durable; each change that was begun since may have reached the disk or not. So a
//! sector may hold, after the cut, what it held at that sync or what a later change was about to put there,
//! and nothing else: no older round, nothing of another place or file. A device may write to a sector while
//! writeback copies it, so one that is not certain may be a mixture of what it may hold; one that is
//! certain may not.

use std::ops::Range;

use crate::stamp::{classify, Fault, Stamp, SECTOR};

/// The number of the device's write that a sector comes from; 0 stands for zeroes or a hole.
pub type Round = u16;

/// What one sector may hold: zeroes, or any round of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    zero: bool,
    low: Round,
    high: Round,
}

impl Cell {
    const NOTHING: Self = Self {
        zero: false,
        low: Round::MAX,
        high: 0,
    };

    fn allow(&mut self, round: Round) {
        if round == 0 {
            self.zero = true;
        } else {
            self.low = self.low.min(round);
            self.high = self.high.max(round);
        }
    }

    fn has(self, round: u32) -> bool {
        (u32::from(self.low)..=u32::from(self.high)).contains(&round)
    }

    fn is_certain(self) -> bool {
        self.zero && self.low > self.high || !self.zero && self.low == self.high
    }
}

/// What a file may look like.
#[derive(Clone, Debug)]
pub struct Allowed {
    absent: bool,
    present: bool,
    sizes: (u64, u64),
    cells: Vec<Cell>,
}

/// What is special about a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// The file is replaced as a whole: all of it comes from the same round.
    pub is_replaced: bool,
}

/// A file, as it is now and as a power cut may leave it.
pub struct File {
    /// Its name in the root of the filesystem.
    pub name: String,
    stamp: Stamp,
    manner: Manner,
    present: bool,
    size: u64,
    now: Vec<Round>,
    in_flight: Vec<(Range<usize>, Round)>,
    allowed: Allowed,
    /// What will be allowed when the sync that runs is complete.
    after: Option<Allowed>,
}

fn sectors(range: &Range<u64>) -> Range<usize> {
    range.start as usize / SECTOR..range.end as usize / SECTOR
}

impl File {
    /// A file that is not there yet and never gets longer than `capacity` bytes.
    pub fn new(name: &str, stamp: Stamp, capacity: u64, manner: Manner) -> Self {
        let len = capacity as usize / SECTOR;
        let mut file = Self {
            name: name.to_owned(),
            stamp,
            manner,
            present: false,
            size: 0,
            now: vec![0; len],
            in_flight: Vec::new(),
            allowed: Allowed {
                absent: true,
                present: false,
                sizes: (0, 0),
                cells: vec![Cell::NOTHING; len],
            },
            after: None,
        };
        file.allowed = file.exactly();
        file
    }

    fn exactly(&self) -> Allowed {
        let mut cells = vec![Cell::NOTHING; self.now.len()];
        for (cell, round) in cells.iter_mut().zip(&self.now) {
            cell.allow(*round);
        }
        for (range, round) in &self.in_flight {
            for cell in &mut cells[range.clone()] {
                cell.allow(*round);
            }
        }
        Allowed {
            absent: !self.present,
            present: self.present,
            sizes: (self.size, self.size),
            cells,
        }
    }

    fn allow(&mut self, more: impl Fn(&mut Allowed)) {
        more(&mut self.allowed);
        if let Some(after) = &mut self.after {
            more(after);
        }
    }

    /// About to be created, or emptied.
    pub fn create(&mut self) {
        self.appear(0, 0);
        self.resize(0);
    }

    /// About to be replaced as a whole by a file of that round.
    pub fn replace(&mut self, size: u64, round: Round) {
        self.appear(size, round);
        self.allow_size(size);
        self.allow(|allowed| allowed.cells.iter_mut().for_each(|c| c.allow(round)));
        self.size = size;
        self.now.fill(round);
    }

    /// What a file that was not there may look like does not depend on an older one of that name.
    fn appear(&mut self, size: u64, round: Round) {
        self.present = true;
        self.allow(|allowed| {
            if !allowed.present {
                let mut cell = Cell::NOTHING;
                cell.allow(round);
                allowed.cells.fill(cell);
                allowed.sizes = (size, size);
                allowed.present = true;
            }
        });
    }

    /// About to be removed, or to get another name.
    pub fn remove(&mut self) {
        self.present = false;
        self.allow(|allowed| allowed.absent = true);
    }

    /// About to get another size.
    pub fn resize(&mut self, size: u64) {
        self.allow_size(size);
        let len = (self.now.len() * SECTOR) as u64;
        self.zero(self.size.min(size)..len);
        self.size = size;
    }

    fn allow_size(&mut self, size: u64) {
        self.allow(|allowed| {
            allowed.sizes.0 = allowed.sizes.0.min(size);
            allowed.sizes.1 = allowed.sizes.1.max(size);
        });
    }

    /// About to lose what is in `range`.
    pub fn zero(&mut self, range: Range<u64>) {
        let range = sectors(&range);
        self.allow(|allowed| {
            allowed.cells[range.clone()]
                .iter_mut()
                .for_each(|c| c.allow(0))
        });
        self.now[range].fill(0);
    }

    /// About to be written.
    pub fn begin(&mut self, range: Range<u64>, round: Round) {
        let end = range.end;
        let range = sectors(&range);
        self.allow(|allowed| {
            allowed.sizes.1 = allowed.sizes.1.max(end);
            allowed.cells[range.clone()]
                .iter_mut()
                .for_each(|c| c.allow(round));
        });
        self.in_flight.push((range, round));
    }

    /// Written.
    pub fn complete(&mut self, range: Range<u64>, round: Round) {
        self.size = self.size.max(range.end);
        let range = sectors(&range);
        self.in_flight.retain(|(_, other)| *other != round);
        self.now[range].fill(round);
    }

    /// A sync that covers the file begins: what is complete now is durable when it returns.
    pub fn sync_begins(&mut self) {
        self.after = Some(self.exactly());
    }

    /// That sync has returned.
    pub fn sync_ends(&mut self) {
        if let Some(after) = self.after.take() {
            self.allowed = after;
        }
    }

    /// What a power cut may leave now.
    pub fn allowed(&self) -> Allowed {
        self.allowed.clone()
    }

    /// Says what is wrong with a file that was found: none if there was no such file. With `any_stale`,
    /// blocks that were not durable may hold anything, as data=writeback has it.
    pub fn judge(&self, allowed: &Allowed, found: Option<&[u8]>, any_stale: bool) -> Vec<String> {
        let name = &self.name;
        let Some(bytes) = found else {
            return match allowed.absent {
                true => Vec::new(),
                false => vec![format!("{name}: gone")],
            };
        };
        if !allowed.present {
            return vec![format!("{name}: there again after it was removed")];
        }
        let (low, high) = allowed.sizes;
        let size = bytes.len() as u64;
        if !(low..=high).contains(&size) {
            return vec![format!(
                "{name}: {size} bytes long, must be {low} to {high}"
            )];
        }
        let mut faults = Faults::default();
        let mut rounds: Option<(u32, u32)> = None;
        for (index, (sector, cell)) in bytes.chunks(SECTOR).zip(&allowed.cells).enumerate() {
            let base = (index * SECTOR) as u64;
            let found = classify(sector, base, self.stamp);
            if let Fault::Stale { round } = found {
                let (low, high) = rounds.unwrap_or((round, round));
                rounds = Some((low.min(round), high.max(round)));
            }
            let right = match found {
                Fault::Zero => cell.zero,
                Fault::Stale { round } => cell.has(round),
                Fault::Torn { .. } | Fault::Foreign | Fault::Misplaced { .. } => {
                    self.is_mixture(sector, base, *cell)
                }
            };
            if !(right || any_stale && cell.zero && !cell.is_certain()) {
                faults.add(base, found, *cell);
            }
        }
        let mut faults = faults.into_lines(name);
        if let (true, Some((low, high))) = (self.manner.is_replaced, rounds) {
            if low != high {
                faults.push(format!(
                    "{name}: has rounds {low} to {high}, must be of one"
                ));
            }
        }
        faults
    }

    /// True if each byte comes from a round that is allowed. Under emulation, copies and device writes go
    /// byte by byte.
    fn is_mixture(&self, sector: &[u8], base: u64, cell: Cell) -> bool {
        if cell.is_certain() {
            return false;
        }
        let mut unexplained: Vec<usize> = (0..sector.len()).collect();
        if cell.zero {
            unexplained.retain(|index| sector[*index] != 0);
        }
        for round in cell.low..=cell.high {
            if unexplained.is_empty() {
                break;
            }
            let bytes = self.stamp.round(round.into()).bytes(base, sector.len());
            unexplained.retain(|index| sector[*index] != bytes[*index]);
        }
        unexplained.is_empty()
    }
}

/// Runs of sectors that are wrong in the same way.
#[derive(Default)]
struct Faults(Vec<(Range<u64>, Fault, Cell)>);

/// More runs of one file than this are only counted.
const LINES: usize = 6;

impl Faults {
    fn add(&mut self, base: u64, fault: Fault, cell: Cell) {
        let end = base + SECTOR as u64;
        match self.0.last_mut() {
            Some((range, f, c)) if range.end == base && *f == fault && *c == cell => {
                range.end = end;
            }
            _ => self.0.push((base..end, fault, cell)),
        }
    }

    fn into_lines(self, name: &str) -> Vec<String> {
        let more = self.0.len().saturating_sub(LINES);
        let line = |(range, fault, cell): &(Range<u64>, Fault, Cell)| {
            let mut may = Vec::new();
            if cell.zero {
                may.push("zeroes".to_owned());
            }
            if cell.low <= cell.high {
                may.push(format!("rounds {} to {}", cell.low, cell.high));
            }
            format!(
                "{name}: bytes {range:?}: {fault}, may be {}",
                may.join(" or ")
            )
        };
        let mut lines: Vec<String> = self.0.iter().take(LINES).map(line).collect();
        if more > 0 {
            lines.push(format!("{name}: {more} more stretches like these"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 4096;
    const STAMP: Stamp = Stamp {
        file: 0x54321,
        round: 0,
    };

    fn file(manner: Manner) -> File {
        let mut file = File::new("f", STAMP, LEN, manner);
        file.create();
        file.resize(LEN);
        write(&mut file, 0..LEN, 1);
        sync(&mut file);
        file
    }

    fn write(file: &mut File, range: Range<u64>, round: Round) {
        file.begin(range.clone(), round);
        file.complete(range, round);
    }

    fn sync(file: &mut File) {
        file.sync_begins();
        file.sync_ends();
    }

    fn judge(file: &File, found: &[u8]) -> Vec<String> {
        file.judge(&file.allowed(), Some(found), false)
    }

    fn round(round: u32) -> Vec<u8> {
        STAMP.round(round).bytes(0, LEN as usize)
    }

    #[test]
    fn what_was_synced_is_there() {
        let mut file = file(Manner::default());
        assert!(judge(&file, &round(1)).is_empty());
        assert_eq!(judge(&file, &[0; LEN as usize]).len(), 1);
        assert_eq!(file.judge(&file.allowed(), None, false), ["f: gone"]);
        write(&mut file, 0..LEN, 2);
        assert!(judge(&file, &round(1)).is_empty());
        assert!(judge(&file, &round(2)).is_empty());
        sync(&mut file);
        assert_eq!(
            judge(&file, &round(1)),
            ["f: bytes 0..4096: data of round 1, may be rounds 2 to 2"]
        );
        assert!(judge(&file, &round(2)).is_empty());
        assert_eq!(judge(&file, &round(3)).len(), 1);
    }

    #[test]
    fn a_sync_promises_what_was_complete_when_it_began() {
        let mut file = file(Manner::default());
        file.begin(0..LEN, 2);
        file.sync_begins();
        file.complete(0..LEN, 2);
        write(&mut file, 0..512, 3);
        file.sync_ends();
        let mut found = round(1);
        assert!(judge(&file, &found).is_empty());
        STAMP.round(3).fill(&mut found[..512], 0);
        assert!(judge(&file, &found).is_empty());
        sync(&mut file);
        assert_eq!(judge(&file, &found).len(), 1);
    }

    #[test]
    fn sizes_and_holes() {
        let mut file = file(Manner::default());
        file.resize(1024);
        assert!(judge(&file, &round(1)).is_empty());
        assert!(judge(&file, &round(1)[..1024]).is_empty());
        file.resize(2048);
        sync(&mut file);
        assert_eq!(judge(&file, &round(1)[..2048]).len(), 1);
        assert_eq!(judge(&file, &round(1)[..1024]).len(), 1);
        let mut found = round(1);
        found[1024..].fill(0);
        assert!(judge(&file, &found[..2048]).is_empty());
        file.zero(0..512);
        assert!(judge(&file, &found[..2048]).is_empty());
        sync(&mut file);
        assert_eq!(judge(&file, &found[..2048]).len(), 1);
        found[..512].fill(0);
        assert!(judge(&file, &found[..2048]).is_empty());
    }

    #[test]
    fn a_mixture_is_of_rounds_that_are_allowed() {
        let mut file = file(Manner::default());
        write(&mut file, 0..LEN, 2);
        sync(&mut file);
        write(&mut file, 0..LEN, 3);
        let mut found = round(3);
        found[1000..1003].copy_from_slice(&round(2)[1000..1003]);
        assert!(judge(&file, &found).is_empty());
        let allowed = file.allowed();
        sync(&mut file);
        assert_eq!(judge(&file, &found).len(), 1);
        found[1000..1003].copy_from_slice(&round(1)[1000..1003]);
        assert_eq!(file.judge(&allowed, Some(&found), false).len(), 1);
    }

    #[test]
    fn a_file_that_is_replaced_is_of_one_round() {
        let mut file = file(Manner { is_replaced: true });
        write(&mut file, 0..LEN, 2);
        assert!(judge(&file, &round(1)).is_empty());
        assert!(judge(&file, &round(2)).is_empty());
        let mut found = round(2);
        found[..512].copy_from_slice(&round(1)[..512]);
        assert_eq!(
            judge(&file, &found),
            ["f: has rounds 1 to 2, must be of one"]
        );
    }

    #[test]
    fn writeback_mode_may_expose_what_was_not_synced_only() {
        let mut file = file(Manner::default());
        file.zero(0..512);
        write(&mut file, 0..512, 2);
        let mut found = round(1);
        found[..512].fill(0x5a);
        assert_eq!(judge(&file, &found).len(), 1);
        let allowed = file.allowed();
        assert!(file.judge(&allowed, Some(&found), true).is_empty());
        found[512..1024].fill(0x5a);
        assert_eq!(file.judge(&allowed, Some(&found), true).len(), 1);
    }
}
