// SPDX-License-Identifier: GPL-2.0

//! A file whose folios are pinned, written by a device, written back and truncated.
//!
//! Content is a number: the version that a device wrote last. So is the disk.

use std::cell::Cell;
use std::rc::Rc;

use loom::sync::atomic::Ordering;
use loom::thread::{self, JoinHandle};

use crate::admit::{self, PinnedRange};
use crate::bindings;
use crate::debug::{self, Knockout};
use crate::entry::Entry;
use crate::error::{code::EAGAIN, Result};
use crate::ledger::LEDGER;
use crate::memory;
use crate::mm::folio::Folio;
use crate::page::PAGE_SHIFT;
use crate::sync::atomic::Atomic;
use crate::writeback;

/// PFN of the first folio. Those that follow share its leaf.
pub(crate) const PFN: usize = 0x1_2345;
/// What is in every folio, and on disk, at the beginning.
pub(crate) const OLD: u64 = 1;
/// What a device writes.
pub(crate) const NEW: u64 = 2;

/// One folio, and its blocks on disk.
struct Page {
    folio: Box<bindings::folio>,
    content: Atomic<u64>,
    /// Not one of loom's words: a disk has no old values. I/O on one folio takes turns.
    disk: Cell<u64>,
}

/// A file of one or two pages.
pub(crate) struct World {
    pages: Vec<Page>,
    mm: Box<bindings::mm_struct>,
    _mapping: Box<bindings::address_space>,
    _folios: Box<[*mut bindings::folio]>,
    _host: Box<bindings::inode>,
}

// SAFETY: All threads of an execution take turns on one thread of the host.
unsafe impl Send for World {}
// SAFETY: As above; what they share is in loom's words and locks.
unsafe impl Sync for World {}

/// What the threads of an execution share. Not counted by loom, to which it means nothing.
#[derive(Clone)]
pub(crate) struct Shared(Rc<World>);

// SAFETY: As for `World`.
unsafe impl Send for Shared {}

impl Shared {
    /// Starts a thread of the execution.
    pub(crate) fn spawn<T: 'static>(&self, f: impl FnOnce(&World) -> T + 'static) -> JoinHandle<T> {
        let world = self.clone();

        thread::spawn(move || f(&world))
    }
}

impl core::ops::Deref for Shared {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

fn address<T>(word: &Atomic<T>) -> usize {
    core::ptr::from_ref(word).expose_provenance()
}

fn set<T>(word: &Atomic<T>, value: u64) {
    memory::store(address(word), value, Ordering::Relaxed);
}

fn get<T>(word: &Atomic<T>) -> u64 {
    memory::load(address(word), Ordering::Relaxed)
}

impl World {
    pub(crate) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// A file of `pages` clean pages, all of which were pinned before, so that the tables of the
    /// ledger are there and the mapping is flagged.
    pub(crate) fn pinned_before(pages: usize) -> Shared {
        let world = Self::never_pinned(pages);

        for page in 0..pages {
            LEDGER.add(PFN + page, 1, 0).expect("memory for tables");
            assert_eq!(LEDGER.sub(PFN + page, 1).short, 0);
        }
        // SAFETY: The mapping is valid.
        unsafe { bindings::mapping_set_was_pinned(world.mapping()) };
        world
    }

    /// A file of `pages` clean pages.
    pub(crate) fn never_pinned(pages: usize) -> Shared {
        memory::start();

        let mut host = Box::new(bindings::inode {
            i_blkbits: PAGE_SHIFT as u32,
            wb: Default::default(),
        });
        let mut mapping = Box::new(bindings::address_space::new(&mut *host));
        let raw: *mut bindings::address_space = &mut *mapping;
        let mut pages: Vec<Page> = (0..pages)
            .map(|i| Page {
                folio: Box::new(bindings::folio::new(PFN + i, raw, i)),
                content: Atomic::new(0),
                disk: Cell::new(OLD),
            })
            .collect();

        let folios: Box<[_]> = pages.iter_mut().map(|p| &raw mut *p.folio).collect();

        mapping.set_up(&folios);
        for page in &pages {
            set(&page.content, OLD);
        }
        // The root of the ledger is a static, and no allocation of ours.
        assert_eq!(LEDGER.get(PFN).count(), 0);
        Shared(Rc::new(Self {
            pages,
            mm: Box::new(bindings::mm_struct { mapping: raw }),
            _mapping: mapping,
            _folios: folios,
            _host: host,
        }))
    }

    fn mapping(&self) -> *mut bindings::address_space {
        self.mm.mapping
    }

    fn folio(&self, page: usize) -> *mut bindings::folio {
        core::ptr::from_ref(&*self.pages[page].folio).cast_mut()
    }

    fn user_pages(&self) -> Vec<*mut bindings::page> {
        (0..self.pages.len())
            .map(|i| self.folio(i).cast())
            .collect()
    }

    /// A store by the CPU: `->page_mkwrite()`, then the store.
    pub(crate) fn store(&self, page: usize) {
        // SAFETY: `mm` is valid.
        let mm = core::ptr::from_ref(&*self.mm).cast_mut();

        // SAFETY: As above.
        unsafe { bindings::pinwb_fault_for_write(mm, page << PAGE_SHIFT, true) };
    }

    // The driver and its device.

    /// Pins all pages, as `pin_longterm_pages()`. Returns whether it did: the pages may be in the
    /// file no more, and then GUP would find others.
    pub(crate) fn pin(&self) -> bool {
        match self.try_pin() {
            Ok(()) => true,
            Err(EAGAIN) => false,
            Err(error) => panic!("pin failed: {error:?}"),
        }
    }

    /// As [`World::pin`], with the error.
    pub(crate) fn try_pin(&self) -> Result {
        let pages = self.user_pages();
        // SAFETY: The structure outlives the range.
        let mm =
            unsafe { core::ptr::NonNull::new_unchecked(core::ptr::from_ref(&*self.mm).cast_mut()) };
        // SAFETY: The pages belong to the execution.
        let range = unsafe { PinnedRange::new(mm, 0, &pages, true) };

        if debug::is(Knockout::LateCount) {
            // The order that admission must not have.
            range.admit()?;
            self.unpin();
            for page in 0..self.pages.len() {
                LEDGER.add(PFN + page, 1, 0)?;
            }
            return Ok(());
        }
        range.admit()
    }

    /// Releases a pin of each page.
    pub(crate) fn unpin(&self) {
        // SAFETY: The pages belong to the execution.
        unsafe { admit::forget_pages(&self.user_pages()) };
    }

    /// The device writes.
    pub(crate) fn dma(&self, page: usize, version: u64) {
        set(&self.pages[page].content, version);
    }

    // The filesystem.

    /// `->writepages()` for one folio, as WB_SYNC_ALL.
    pub(crate) fn write(&self, page: usize) {
        let Page { content, disk, .. } = &self.pages[page];
        let (raw, mapping) = (self.folio(page), self.mapping());
        // SAFETY: The folio belongs to the execution.
        let folio = unsafe { Folio::from_raw(raw) };
        let locked = folio.lock();

        if locked.mapping().is_none() {
            return;
        }
        // SAFETY: Folio and mapping belong to the execution; the calls are in the order of
        // `mpage_submit_folio()` and `ext4_bio_write_folio()`, under the folio lock.
        unsafe {
            bindings::folio_wait_writeback(raw);
            if !bindings::folio_clear_dirty_for_io(raw) {
                return;
            }
            bindings::pinwb_keep_dirty(raw, mapping);
            bindings::folio_start_writeback(raw);
        }
        drop(locked);

        // `ext4_io_submit()`.
        // SAFETY: The mapping belongs to the execution.
        let bounce =
            unsafe { bindings::mapping_was_pinned(mapping) } && writeback::is_pinned(folio);
        if bounce && !debug::is(Knockout::NoCopy) {
            let copy = get(content);

            writeback::late_keep_dirty()(folio);
            disk.set(copy);
        } else {
            // The block layer reads it twice: for a checksum, and to write it.
            let checksum = get(content);
            let written = get(content);

            assert_eq!(checksum, written, "I2: a device wrote to what is under I/O");
            disk.set(written);
        }
        // SAFETY: The folio is under writeback, by us.
        unsafe { bindings::folio_end_writeback(raw) };
    }

    /// `file_write_and_wait()`: writes what is dirty, waits for what is under writeback.
    pub(crate) fn fsync(&self, page: usize) {
        let raw = self.folio(page);

        // SAFETY: The folio belongs to the execution.
        unsafe {
            if bindings::folio_tagged_dirty(raw) {
                self.write(page);
            }
            bindings::folio_wait_writeback(raw);
        }
    }

    /// Takes a page out of the file.
    pub(crate) fn truncate(&self, page: usize) {
        self.remove(page, true);
    }

    /// Takes a page out of the page cache if it is clean, before a direct write.
    pub(crate) fn invalidate(&self, page: usize) {
        self.remove(page, false);
    }

    fn remove(&self, page: usize, dirty_as_well: bool) {
        let raw = self.folio(page);
        // SAFETY: The folio belongs to the execution.
        let locked = unsafe { Folio::from_raw(raw) }.lock();

        // SAFETY: As above, and it is locked.
        unsafe {
            bindings::folio_wait_writeback(raw);
            if dirty_as_well || !locked.is_dirty() {
                bindings::filemap_remove_folio(raw);
            }
        }
    }

    // Reclaim.

    /// Puts a page on the list for what it is, which is new, or was isolated.
    pub(crate) fn put_on_lru(&self, page: usize) {
        // SAFETY: The folio belongs to the execution.
        unsafe { bindings::folio_putback_lru(self.folio(page)) };
    }

    /// Looks at a page, if nobody else does, and puts it where it belongs.
    pub(crate) fn scan(&self, page: usize) {
        // SAFETY: The folio belongs to the execution.
        if unsafe { bindings::folio_isolate_lru(self.folio(page)) } {
            self.put_on_lru(page);
        }
    }

    /// Would move a page from one list that reclaim scans to another.
    pub(crate) fn activate(&self, page: usize) {
        // SAFETY: The folio belongs to the execution.
        unsafe { bindings::folio_batch_move_lru(self.folio(page)) };
    }

    /// Opts the file out, as for verity. Returns whether there were no pins.
    pub(crate) fn opt_out(&self) -> bool {
        // SAFETY: The mapping belongs to the execution.
        unsafe {
            bindings::mapping_clear_pinned_writeback(self.mapping());
            loom::sync::atomic::fence(Ordering::SeqCst);
            !bindings::pinwb_mapping_has_pins(self.mapping())
        }
    }

    // What must be true.

    /// I1, of a page that has a pin: dirty, whoever has the folio lock.
    ///
    /// Returns whether the page is in the file.
    pub(crate) fn check_dirty(&self, page: usize) -> bool {
        // SAFETY: The folio belongs to the execution.
        let locked = unsafe { Folio::from_raw(self.folio(page)) }.lock();
        let in_file = locked.mapping().is_some();

        assert!(!in_file || locked.is_dirty(), "I1: a pinned folio is clean");
        in_file
    }

    /// I4, after an fsync: so much of the page is on disk, at least.
    pub(crate) fn check_disk(&self, page: usize, version: u64) {
        let disk = self.pages[page].disk.get();

        assert!(
            disk >= version,
            "I4: fsync returned, version {disk} is on disk and not {version}"
        );
    }

    /// I7, when nothing runs: the count is the number of pins. And I5.
    pub(crate) fn check_count(&self, page: usize, pins: u64) {
        let count = LEDGER.get(PFN + page).count();

        assert_eq!(count, pins, "I7: pins counted, and held");
        self.check_exempt();
    }

    /// When nothing runs: a page without pins is where reclaim finds it.
    pub(crate) fn check_lru(&self, page: usize) {
        // SAFETY: The folio belongs to the execution.
        let culled = unsafe { bindings::folio_is_culled(self.folio(page)) };
        let pinned = LEDGER.get(PFN + page).count() != 0;

        assert!(
            !culled || pinned,
            "lru: a folio without pins was left behind"
        );
    }

    /// I5, when nothing runs: the counters of what the dirty limits leave out have what is dirty and
    /// pinned; a folio that was unpinned since it was written may count for its bdi_writeback.
    fn check_exempt(&self) {
        let mut expected = [0, 0];

        for page in 0..self.pages.len() {
            // SAFETY: The folio belongs to the execution.
            let folio = unsafe { Folio::from_raw(self.folio(page)) };
            let locked = folio.lock();
            let dirty = locked.mapping().is_some() && locked.is_dirty();
            let pinned = LEDGER.get(PFN + page).count() != 0;
            let exempt = writeback::is_exempt(folio);
            let bits = writeback::exempt_bits(folio);

            expected[0] += i64::from(exempt);
            expected[1] += i64::from(bits & Entry::IN_WB != 0);
            assert!(
                dirty || bits == 0,
                "I5: a clean folio is exempt from the dirty limits"
            );
            let owner = LEDGER.get(PFN + page).owner();
            assert!(pinned || owner == 0, "I7: a process has pins that are gone");
            assert!(
                pinned || !exempt,
                "I5: a folio without pins is exempt from the dirty limits"
            );
            // What the other knock-outs leave out is not to be found here.
            let whole = debug::is(Knockout::None) || debug::is(Knockout::NoExempt);
            assert!(
                !(whole && dirty && pinned) || exempt,
                "I5: a pinned folio counts against the dirty limits"
            );
        }
        assert_eq!(
            memory::counters(),
            expected,
            "I5: pages counted as exempt, and exempt"
        );
    }
}
