// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of what periodic writeback leaves out.

use crate::{
    bounce_kunit::Memory,
    ledger::LEDGER,
    unchanged::{
        forget,
        forget_all,
        is_unchanged,
        written,
        written_unseen, //
    }, //
};
use kernel::{
    block::bio::BioVec,
    mm::folio::Folio,
    page::PAGE_SIZE,
    prelude::*, //
};

/// Pages of the folio, as a power of two.
const ORDER: u32 = 2;
const PAGES: usize = 1 << ORDER;

/// A folio with a pin.
struct PinnedFolio(Memory);

impl PinnedFolio {
    fn new() -> Result<Self> {
        let this = Self(Memory::folio(ORDER, 0)?);

        this.pin()?;
        Ok(this)
    }

    fn folio(&self) -> &Folio {
        // SAFETY: The memory is a folio, and lives as long as `self`.
        unsafe { Folio::of_page(self.0.page(0)) }
    }

    fn pin(&self) -> Result {
        LEDGER.add(self.folio().pfn(), 1, 0)
    }

    fn unpin(&self) {
        LEDGER.sub(self.folio().pfn(), 1);
    }

    /// Says that a page of the folio goes to the disk as it is.
    fn write(&self, page: usize) {
        let copy = BioVec::new(self.0.page(page), 0, PAGE_SIZE as u32);

        written(self.folio(), page * PAGE_SIZE, &copy, true);
    }

    fn write_all(&self) {
        (0..PAGES).for_each(|page| self.write(page));
    }
}

impl Drop for PinnedFolio {
    fn drop(&mut self) {
        self.unpin();
    }
}

#[kunit_tests(pinwb_unchanged)]
mod tests {
    use super::*;

    #[test]
    fn content_decides() -> Result {
        let pinned = PinnedFolio::new()?;

        assert!(!is_unchanged(pinned.folio()));
        pinned.write_all();
        assert!(is_unchanged(pinned.folio()));

        pinned.0.fill(1);
        assert!(!is_unchanged(pinned.folio()));
        pinned.0.fill(0);
        assert!(is_unchanged(pinned.folio()));
        Ok(())
    }

    /// All pages have to be known.
    #[test]
    fn part_is_not_enough() -> Result {
        let pinned = PinnedFolio::new()?;

        (0..PAGES - 1).for_each(|page| pinned.write(page));
        assert!(!is_unchanged(pinned.folio()));
        pinned.write(PAGES - 1);
        assert!(is_unchanged(pinned.folio()));
        Ok(())
    }

    /// A piece that is not a whole page is not compared, and what was known of the page is forgotten.
    #[test]
    fn pieces_are_not_compared() -> Result {
        let pinned = PinnedFolio::new()?;
        let half = BioVec::new(pinned.0.page(1), 0, PAGE_SIZE as u32 / 2);

        pinned.write_all();
        written(pinned.folio(), PAGE_SIZE, &half, true);
        assert!(!is_unchanged(pinned.folio()));
        Ok(())
    }

    /// Zeroes may be appended to the file without a change of the page.
    #[test]
    fn pages_at_the_end_are_not_compared() -> Result {
        let pinned = PinnedFolio::new()?;
        let last = BioVec::new(pinned.0.page(PAGES - 1), 0, PAGE_SIZE as u32);

        pinned.write_all();
        written(pinned.folio(), (PAGES - 1) * PAGE_SIZE, &last, false);
        assert!(!is_unchanged(pinned.folio()));
        Ok(())
    }

    /// With one write that fails others may be lost that were said to have ended well.
    #[test]
    fn errors_make_all_forgotten() -> Result {
        let [one, other] = [PinnedFolio::new()?, PinnedFolio::new()?];

        one.write_all();
        other.write_all();
        forget_all();
        assert!(!is_unchanged(one.folio()));
        assert!(!is_unchanged(other.folio()));
        one.write_all();
        assert!(is_unchanged(one.folio()));
        Ok(())
    }

    /// What fsync wrote, or has lost its blocks, is not what was hashed.
    #[test]
    fn other_writes_make_it_forgotten() -> Result {
        let pinned = PinnedFolio::new()?;

        pinned.write_all();
        written_unseen(pinned.folio());
        assert!(!is_unchanged(pinned.folio()));

        pinned.write_all();
        assert!(is_unchanged(pinned.folio()));
        forget(pinned.folio());
        assert!(!is_unchanged(pinned.folio()));
        Ok(())
    }

    /// The page may be another file's when it is pinned again: hashes of its earlier life are not
    /// taken for this one's, not even one by one.
    #[test]
    fn last_unpin_makes_it_forgotten() -> Result {
        let pinned = PinnedFolio::new()?;

        pinned.write_all();
        pinned.unpin();
        assert!(!is_unchanged(pinned.folio()));
        pinned.pin()?;
        assert!(!is_unchanged(pinned.folio()));
        pinned.write(0);
        assert!(!is_unchanged(pinned.folio()));
        Ok(())
    }

    #[test]
    fn nothing_is_remembered_without_a_pin() -> Result {
        let pinned = PinnedFolio::new()?;

        pinned.unpin();
        pinned.write_all();
        pinned.pin()?;
        assert!(!is_unchanged(pinned.folio()));
        Ok(())
    }
}
