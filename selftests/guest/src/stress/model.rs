// SPDX-License-Identifier: GPL-2.0

//! What a file must contain, and which page of it each pin refers to.
//!
//! A pin is to folios, not to offsets. While a folio is in the file, what a device writes through the pin
//! is the file's, as far as the file reaches at that moment. When truncate or punch take the folio out of
//! the file, the pin goes on to an orphan, and nothing that is written there may ever be seen in the file.
//! A folio that is covered in part stays, with its pins. Bytes beyond the end of the file, which devices
//! and stores can reach in the last folio, are nobody's: they read as zeroes when the file grows.

use std::ops::Range;

use crate::map::PAGE;

/// A pinned page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedPage {
    /// Number of the page frame.
    pub frame: u64,
    /// The pages of the file that its folio has.
    pub folio: Range<u64>,
    /// False once the folio is in no file.
    pub in_file: bool,
}

/// A registered range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The first page, by its place in the file when it was pinned.
    pub first: u64,
    /// The pages.
    pub pages: Vec<PinnedPage>,
}

impl Pin {
    /// The bytes of the file that were registered.
    pub fn range(&self) -> Range<u64> {
        page_bytes(&(self.first..self.first + self.pages.len() as u64))
    }
}

/// One file.
#[derive(Clone, Debug, Default)]
pub struct Model {
    bytes: Vec<u8>,
    pins: Vec<Option<Pin>>,
}

/// What became of a folio when a range was cut out of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Leaves,
    /// Covered in part, or up to the end of the file: the kernel may round.
    Unsure,
}

fn page_bytes(pages: &Range<u64>) -> Range<u64> {
    pages.start * PAGE as u64..pages.end * PAGE as u64
}

fn fate(folio: &Range<u64>, cut: &Range<u64>) -> Fate {
    let folio = page_bytes(folio);
    if cut.start >= cut.end || cut.end <= folio.start || folio.end <= cut.start {
        Fate::Stays
    } else if cut.start <= folio.start && folio.end <= cut.end {
        Fate::Leaves
    } else {
        Fate::Unsure
    }
}

impl Model {
    /// An empty file with room for so many pins.
    pub fn new(slots: usize) -> Self {
        Self {
            bytes: Vec::new(),
            pins: vec![None; slots],
        }
    }

    /// Length of the file.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Length of the file's pages, which is how far stores and pins can go.
    pub fn len_in_pages(&self) -> u64 {
        self.len().next_multiple_of(PAGE as u64)
    }

    /// What the file contains.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The pins, by slot.
    pub fn pins(&self) -> &[Option<Pin>] {
        &self.pins
    }

    /// The file has another length; what comes into view is zeroes.
    pub fn resize(&mut self, len: u64) {
        self.bytes.resize(len as usize, 0);
    }

    /// Writes, growing the file if need be.
    pub fn write(&mut self, at: u64, data: &[u8]) {
        let end = at + data.len() as u64;
        if end > self.len() {
            self.resize(end);
        }
        self.bytes[at as usize..end as usize].copy_from_slice(data);
    }

    /// A store: nothing beyond the end of the file counts.
    pub fn store(&mut self, at: u64, data: &[u8]) {
        let end = self.len().min(at + data.len() as u64);
        if at < end {
            self.bytes[at as usize..end as usize].copy_from_slice(&data[..(end - at) as usize]);
        }
    }

    /// A device writes through a pin: page by page, to the file or to an orphan. `at` is in the range of
    /// the pin.
    pub fn dma(&mut self, slot: usize, at: u64, data: &[u8]) {
        let Some(pin) = &self.pins[slot] else { return };
        let page = PAGE as u64;
        let in_file: Vec<bool> = pin.pages.iter().map(|page| page.in_file).collect();
        let first = pin.first;
        let mut start = at;
        let end = at + data.len() as u64;
        while start < end {
            let stop = end.min((start / page + 1) * page);
            if in_file[(start / page - first) as usize] {
                self.store(start, &data[(start - at) as usize..(stop - at) as usize]);
            }
            start = stop;
        }
    }

    /// Zeroes what there is of a range.
    pub fn zero(&mut self, range: Range<u64>) {
        let end = range.end.min(self.len());
        if range.start < end {
            self.bytes[range.start as usize..end as usize].fill(0);
        }
    }

    /// Takes bytes out of the middle.
    pub fn collapse(&mut self, range: Range<u64>) {
        self.bytes
            .drain(range.start as usize..range.end as usize)
            .for_each(drop);
    }

    /// Puts zeroes into the middle.
    pub fn insert(&mut self, at: u64, len: u64) {
        let at = at as usize;
        self.bytes
            .splice(at..at, std::iter::repeat_n(0, len as usize))
            .for_each(drop);
    }

    /// There is a new pin.
    pub fn pin(&mut self, slot: usize, pin: Pin) {
        self.pins[slot] = Some(pin);
    }

    /// A pin is gone.
    pub fn unpin(&mut self, slot: usize) {
        self.pins[slot] = None;
    }

    /// True if a pin refers to a page of the file.
    pub fn has_pins(&self) -> bool {
        self.pages().any(|page| page.in_file)
    }

    fn pages(&self) -> impl Iterator<Item = &PinnedPage> {
        self.pins.iter().flatten().flat_map(|pin| &pin.pages)
    }

    fn pages_mut(&mut self) -> impl Iterator<Item = &mut PinnedPage> {
        self.pins
            .iter_mut()
            .flatten()
            .flat_map(|pin| &mut pin.pages)
    }

    /// Pins of each page of the file.
    pub fn pins_of_page(&self, page: u64) -> u64 {
        let refers = |pin: &&Pin| {
            page.checked_sub(pin.first)
                .and_then(|index| pin.pages.get(index as usize))
                .is_some_and(|page| page.in_file)
        };
        self.pins.iter().flatten().filter(refers).count() as u64
    }

    /// Pages of the file that are pinned, or share a folio with one that is.
    pub fn is_pinned_folio(&self, page: u64) -> bool {
        self.pages()
            .any(|pinned| pinned.in_file && pinned.folio.contains(&page))
    }

    /// The page cache has lost a range: folios in it have left the file. Returns true if some are covered
    /// in part: [`Model::settle`] has to be told about these.
    pub fn cut(&mut self, range: Range<u64>) -> bool {
        let mut unsure = false;
        for page in self.pages_mut().filter(|page| page.in_file) {
            match fate(&page.folio, &range) {
                Fate::Stays => {}
                Fate::Leaves => page.in_file = false,
                Fate::Unsure => unsure = true,
            }
        }
        unsure
    }

    /// Asks of each page whose folio `range` covers in part whether it is still in the file.
    pub fn settle(&mut self, range: Range<u64>, in_file: impl Fn(&PinnedPage) -> bool) {
        for page in self.pages_mut().filter(|page| page.in_file) {
            if fate(&page.folio, &range) == Fate::Unsure {
                page.in_file = in_file(page);
            }
        }
    }

    /// Inode and page cache are gone.
    pub fn orphan_all(&mut self) {
        self.pages_mut().for_each(|page| page.in_file = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PAGE as u64;

    fn page(frame: u64, folio: Range<u64>) -> PinnedPage {
        PinnedPage {
            frame,
            folio,
            in_file: true,
        }
    }

    /// Four pages, of which 1 to 3 are pinned, in folios of one page.
    fn pinned() -> Model {
        let mut model = Model::new(2);
        model.write(0, &[1; 4 * PAGE]);
        let pages = (1..4).map(|n| page(100 + n, n..n + 1)).collect();
        model.pin(1, Pin { first: 1, pages });
        model
    }

    #[test]
    fn growth_is_zeroes() {
        let mut model = Model::new(0);
        model.write(10, b"ab");
        model.resize(14);
        assert_eq!(model.bytes(), b"\0\0\0\0\0\0\0\0\0\0ab\0\0");
        model.store(13, b"xyz");
        assert_eq!(model.bytes()[13], b'x');
        assert_eq!(model.len(), 14);
        model.resize(16);
        assert_eq!(&model.bytes()[13..], b"x\0\0");
        model.collapse(0..10);
        model.insert(1, 2);
        assert_eq!(model.bytes(), b"a\0\0b\0x\0\0");
    }

    #[test]
    fn dma_reaches_the_file() {
        let mut model = pinned();
        model.dma(1, P + 5, &[7; 5000]);
        assert_eq!(model.bytes()[PAGE + 4], 1);
        assert!(model.bytes()[PAGE + 5..PAGE + 5005].iter().all(|b| *b == 7));
        assert_eq!(model.bytes()[PAGE + 5005], 1);
        model.dma(0, 0, &[9; 10]);
        assert_eq!(model.bytes()[0], 1, "slot 0 has no pin");
    }

    #[test]
    fn what_was_cut_off_is_an_orphan() {
        let mut model = pinned();
        let cut = 2 * P + 100..u64::MAX;
        model.resize(2 * P + 100);
        assert!(model.cut(cut.clone()));
        model.settle(cut, |page| page.frame == 102);
        assert_eq!(
            (0..5).map(|n| model.pins_of_page(n)).collect::<Vec<_>>(),
            [0, 1, 1, 0, 0]
        );
        model.resize(4 * P);
        model.dma(1, 2 * P, &[8; 2 * PAGE]);
        let bytes = model.bytes();
        assert!(bytes[2 * PAGE..3 * PAGE].iter().all(|b| *b == 8));
        assert!(bytes[3 * PAGE..].iter().all(|b| *b == 0));
        assert!(model.has_pins());
        model.orphan_all();
        assert!(!model.has_pins());
    }

    #[test]
    fn a_large_folio_leaves_as_a_whole_or_not_at_all() {
        let mut model = Model::new(1);
        model.write(0, &[1; 8 * PAGE]);
        let pages = vec![page(9, 0..4), page(10, 0..4)];
        model.pin(0, Pin { first: 1, pages });
        assert!(model.is_pinned_folio(3) && !model.is_pinned_folio(4));
        assert!(!model.cut(4 * P..8 * P));
        assert!(model.cut(P..8 * P));
        model.settle(P..8 * P, |_| true);
        assert_eq!(model.pins_of_page(1), 1);
        assert!(!model.cut(0..4 * P));
        assert!(!model.has_pins());
    }

    #[test]
    fn nothing_is_cut_by_an_empty_range() {
        let mut model = pinned();
        assert!(!model.cut(P..P));
        assert_eq!(model.pins_of_page(1), 1);
    }
}
