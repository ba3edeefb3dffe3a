// SPDX-License-Identifier: GPL-2.0

//! The kernel's C, as far as the protocol looks: page flags, folio lock, page cache.
//!
//! The functions of `glue.c` and `linux/pinwb.h` that take part in the protocol are the kernel's
//! own, see `build.rs`. The others are written here in a few lines each, and stand for what the
//! comment beside them says.

#![allow(
    non_camel_case_types,
    improper_ctypes,
    clippy::missing_safety_doc,
    reason = "C functions by their C names; C looks at the beginning of structures only"
)]

use core::cell::{RefCell, UnsafeCell};
use core::ffi::{c_int, c_uint};

use loom::sync::atomic::Ordering;
use loom::sync::{Mutex, MutexGuard};
use loom::thread;

use crate::debug::{self, Knockout};
use crate::memory;
use crate::page::PAGE_SHIFT;
use crate::prelude::c_ulong;
use crate::sync::atomic::Atomic;

pub(crate) const PINWB_LEAF_ENTRIES: u32 = 512;
pub(crate) const PINWB_MAX_COUNT: u32 = u32::MAX;
pub(crate) const PINWB_IN_NODE: u64 = 1 << 32;
pub(crate) const PINWB_IN_WB: u64 = 1 << 33;
pub(crate) const PINWB_OWNER_SHIFT: u32 = 34;

/// The process that takes all pins.
pub(crate) const OWNER: u32 = 17;

/// Bits of a folio's flags, as in `kernel.h`.
const PG_DIRTY: u64 = 1 << 0;
const PG_WRITEBACK: u64 = 1 << 1;
const PG_UNEVICTABLE: u64 = 1 << 2;
const PG_LRU: u64 = 1 << 3;
/// Tag of folios that are dirty, or were until writeback of them starts.
const TAG_DIRTY: u64 = 1 << 0;
/// Bits of a mapping's flags, as in `kernel.h`.
const AS_PINNED_WRITEBACK: u64 = 1 << 0;

#[repr(C)]
pub(crate) struct inode {
    pub(crate) i_blkbits: c_uint,
    pub(crate) wb: bdi_writeback,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct bdi_writeback {
    unused: c_int,
}

#[repr(C)]
pub(crate) struct address_space {
    pub(crate) host: *mut inode,
    flags: Atomic<usize>,
    /// The lock of the page cache's tags.
    i_pages: Mutex<()>,
    folios: *const [*mut folio],
}

impl address_space {
    /// A mapping of an inode that the filesystem has opted in, without folios.
    pub(crate) fn new(host: *mut inode) -> Self {
        Self {
            host,
            flags: Atomic::new(0),
            i_pages: Mutex::new(()),
            folios: core::ptr::from_ref(&[]),
        }
    }

    /// Puts folios in, which stay as long as the mapping, and opts in.
    pub(crate) fn set_up(&mut self, folios: &[*mut folio]) {
        let address = self.flags_address();

        self.folios = folios;
        memory::fetch_or(address, AS_PINNED_WRITEBACK, Ordering::SeqCst);
    }

    fn flags_address(&self) -> usize {
        core::ptr::from_ref(&self.flags).expose_provenance()
    }
}

#[repr(C)]
pub(crate) struct folio {
    pub(crate) __bindgen_anon_1: folio_union,
    pub(crate) pfn: usize,
    /// Its tags in the page cache.
    tags: Atomic<usize>,
    lock: BitLock,
    /// Held by the I/O while PG_writeback is set, so that loom knows what a waiter waits for.
    io: BitLock,
    /// The lock of the lists that reclaim scans; each folio has its own.
    lruvec: Mutex<()>,
}

#[repr(C)]
pub(crate) struct folio_union {
    pub(crate) __bindgen_anon_1: folio_fields,
}

#[repr(C)]
pub(crate) struct folio_fields {
    flags: Atomic<usize>,
    pub(crate) mapping: *mut address_space,
    pub(crate) __bindgen_anon_2: folio_index,
}

#[repr(C)]
pub(crate) struct folio_index {
    pub(crate) index: usize,
}

/// Each page here is a folio of its own.
#[repr(C)]
pub(crate) struct page {
    _folio: folio,
}

impl folio {
    /// A folio of a mapping.
    pub(crate) fn new(pfn: usize, mapping: *mut address_space, index: usize) -> Self {
        Self {
            __bindgen_anon_1: folio_union {
                __bindgen_anon_1: folio_fields {
                    flags: Atomic::new(0),
                    mapping,
                    __bindgen_anon_2: folio_index { index },
                },
            },
            pfn,
            tags: Atomic::new(0),
            lock: BitLock::new(),
            io: BitLock::new(),
            lruvec: Mutex::new(()),
        }
    }

    fn flags_address(&self) -> usize {
        core::ptr::from_ref(&self.__bindgen_anon_1.__bindgen_anon_1.flags).expose_provenance()
    }

    fn flags(&self) -> u64 {
        memory::load(self.flags_address(), Ordering::Relaxed)
    }

    fn tags_address(&self) -> usize {
        core::ptr::from_ref(&self.tags).expose_provenance()
    }

    fn mapping(&self) -> *mut address_space {
        self.__bindgen_anon_1.__bindgen_anon_1.mapping
    }

    /// Sets a bit, fully ordered; returns whether it was set.
    fn test_and_set(&self, bit: u64) -> bool {
        memory::fetch_or(self.flags_address(), bit, Ordering::SeqCst) & bit != 0
    }

    /// Clears a bit, fully ordered; returns whether it was set.
    fn test_and_clear(&self, bit: u64) -> bool {
        memory::fetch_and(self.flags_address(), !bit, Ordering::SeqCst) & bit != 0
    }
}

/// A lock that is a bit: taken and given back by call.
struct BitLock {
    mutex: Mutex<()>,
    held: UnsafeCell<Option<MutexGuard<'static, ()>>>,
}

impl BitLock {
    fn new() -> Self {
        Self {
            mutex: Mutex::new(()),
            held: UnsafeCell::new(None),
        }
    }

    fn hold(&self, guard: MutexGuard<'_, ()>) {
        // SAFETY: The guard goes before the mutex, which is in the same structure: by `unlock()`,
        // or never.
        let guard =
            unsafe { core::mem::transmute::<MutexGuard<'_, ()>, MutexGuard<'static, ()>>(guard) };

        // SAFETY: Who holds the mutex has `held` for himself.
        unsafe { *self.held.get() = Some(guard) };
    }

    fn lock(&self) {
        self.hold(self.mutex.lock().expect("a panic ends the execution"));
    }

    fn try_lock(&self) -> bool {
        match self.mutex.try_lock() {
            Ok(guard) => {
                self.hold(guard);
                true
            }
            Err(_) => false,
        }
    }

    fn unlock(&self) {
        // SAFETY: The caller holds the mutex and so has `held` for himself.
        let guard = unsafe { (*self.held.get()).take() };

        drop(guard.expect("unlocked what is not locked"));
    }
}

/// The folio behind a pointer.
///
/// # Safety
///
/// It is valid for as long as the execution.
unsafe fn at<'a>(folio: *const folio) -> &'a folio {
    // SAFETY: By the caller's promise. What changes is in cells, or (`mapping`) under the lock.
    unsafe { &*folio }
}

// Folio lock and flags.

pub(crate) unsafe fn page_folio(page: *mut page) -> *mut folio {
    page.cast()
}

pub(crate) unsafe fn folio_pfn(folio: *const folio) -> usize {
    // SAFETY: The folio is valid.
    unsafe { at(folio) }.pfn
}

pub(crate) unsafe fn folio_nr_pages(_: *const folio) -> usize {
    1
}

pub(crate) unsafe fn folio_size(_: *const folio) -> usize {
    1 << PAGE_SHIFT
}

pub(crate) unsafe fn folio_pos(folio: *const folio) -> i64 {
    // SAFETY: The folio is valid.
    let index = unsafe { at(folio) }
        .__bindgen_anon_1
        .__bindgen_anon_1
        .__bindgen_anon_2
        .index;

    (index << PAGE_SHIFT) as i64
}

pub(crate) unsafe fn folio_test_anon(_: *const folio) -> bool {
    false
}

pub(crate) unsafe fn folio_test_swapbacked(_: *const folio) -> bool {
    false
}

pub(crate) unsafe fn folio_test_hugetlb(_: *const folio) -> bool {
    false
}

pub(crate) unsafe fn folio_test_large(_: *const folio) -> bool {
    false
}

pub(crate) unsafe fn folio_test_dirty(folio: *const folio) -> bool {
    // SAFETY: The folio is valid.
    unsafe { at(folio) }.flags() & PG_DIRTY != 0
}

pub(crate) unsafe fn folio_test_writeback(folio: *const folio) -> bool {
    // SAFETY: The folio is valid.
    unsafe { at(folio) }.flags() & PG_WRITEBACK != 0
}

pub(crate) unsafe fn folio_lock(folio: *mut folio) {
    // SAFETY: The folio is valid.
    unsafe { at(folio) }.lock.lock();
}

thread_local! {
    /// Locks that threads believe to hold, with [`Knockout::NoLock`].
    static BELIEVED: RefCell<Vec<(thread::ThreadId, *const folio)>> = RefCell::default();
}

/// Only admission takes the lock in this way.
pub(crate) unsafe fn folio_lock_killable(folio: *mut folio) -> c_int {
    if debug::is(Knockout::NoLock) {
        let held = (thread::current().id(), folio.cast_const());

        BELIEVED.with_borrow_mut(|believed| believed.push(held));
        return 0;
    }
    // SAFETY: The folio is valid.
    unsafe { folio_lock(folio) };
    0
}

#[no_mangle]
pub(crate) unsafe extern "C-unwind" fn folio_trylock(folio: *mut folio) -> bool {
    // SAFETY: The folio is valid.
    unsafe { at(folio) }.lock.try_lock()
}

#[no_mangle]
pub(crate) unsafe extern "C-unwind" fn folio_unlock(folio: *mut folio) {
    if debug::is(Knockout::NoLock) {
        let held = (thread::current().id(), folio.cast_const());
        let found = BELIEVED.with_borrow_mut(|believed| {
            let at = believed.iter().position(|b| *b == held);

            at.map(|at| believed.remove(at))
        });

        if found.is_some() {
            return;
        }
    }
    // SAFETY: The folio is valid.
    unsafe { at(folio) }.lock.unlock();
}

#[no_mangle]
unsafe extern "C-unwind" fn page_to_pfn(page: *const page) -> c_ulong {
    // SAFETY: The page is valid.
    unsafe { at(page.cast()) }.pfn
}

pub(crate) unsafe fn folio_wait_writeback(folio: *mut folio) {
    // SAFETY: The folio is valid.
    let folio = unsafe { at(folio) };

    while folio.flags() & PG_WRITEBACK != 0 {
        folio.io.lock();
        folio.io.unlock();
    }
}

/// Only admission waits in this way.
pub(crate) unsafe fn folio_wait_writeback_killable(folio: *mut folio) -> c_int {
    if !debug::is(Knockout::NoWait) {
        // SAFETY: The folio is valid.
        unsafe { folio_wait_writeback(folio) };
    }
    0
}

/// As `filemap_dirty_folio()`.
pub(crate) unsafe fn folio_mark_dirty(folio: *mut folio) -> bool {
    // SAFETY: The folio is valid.
    let folio = unsafe { at(folio) };

    if folio.test_and_set(PG_DIRTY) {
        return false;
    }
    if folio.mapping().is_null() {
        return true;
    }
    // SAFETY: The caller keeps the folio in its mapping.
    let _tags = unsafe { &(*folio.mapping()).i_pages }.lock();

    memory::fetch_or(folio.tags_address(), TAG_DIRTY, Ordering::Relaxed);
    true
}

/// Leaves the tag alone, so that others find the folio, and wait for its lock.
pub(crate) unsafe fn folio_clear_dirty_for_io(folio: *mut folio) -> bool {
    // SAFETY: The folio is valid, and stays in its mapping, because it is locked.
    unsafe {
        let was_dirty = at(folio).test_and_clear(PG_DIRTY);

        if was_dirty {
            account_cleaned(folio);
        }
        was_dirty
    }
}

/// As `pinwb_account_cleaned()`.
///
/// # Safety
///
/// The folio is locked, and in its mapping.
unsafe fn account_cleaned(folio: *mut folio) {
    // SAFETY: By the caller's promise.
    unsafe {
        let mapping = at(folio).mapping();

        if mapping_was_pinned(mapping) {
            __pinwb_account_cleaned(folio, &raw mut (*(*mapping).host).wb);
        }
    }
}

/// Is there a reason to write this folio? Asked without a lock.
pub(crate) unsafe fn folio_tagged_dirty(folio: *const folio) -> bool {
    // SAFETY: The folio is valid.
    memory::load(unsafe { at(folio) }.tags_address(), Ordering::Relaxed) & TAG_DIRTY != 0
}

/// As `__folio_start_writeback()`, which drops the tag of a clean folio.
pub(crate) unsafe fn folio_start_writeback(folio: *mut folio) {
    // SAFETY: The folio is valid.
    let folio = unsafe { at(folio) };

    folio.io.lock();
    // SAFETY: The folio is locked, and so stays in its mapping.
    let _tags = unsafe { &(*folio.mapping()).i_pages }.lock();

    assert!(!folio.test_and_set(PG_WRITEBACK), "already under writeback");
    if folio.flags() & PG_DIRTY == 0 {
        memory::fetch_and(folio.tags_address(), !TAG_DIRTY, Ordering::Relaxed);
    }
}

pub(crate) unsafe fn folio_end_writeback(folio: *mut folio) {
    // SAFETY: The folio is valid.
    let folio = unsafe { at(folio) };

    assert!(folio.test_and_clear(PG_WRITEBACK), "not under writeback");
    folio.io.unlock();
}

/// Takes a locked folio out of the page cache, as truncation and invalidation do.
pub(crate) unsafe fn filemap_remove_folio(folio: *mut folio) {
    // SAFETY: The folio is valid, and locked, which is what protects the field.
    unsafe {
        if at(folio).test_and_clear(PG_DIRTY) {
            account_cleaned(folio);
        }
        crate::writeback::removed(crate::mm::folio::Folio::from_raw(folio));
        memory::fetch_and(at(folio).tags_address(), !TAG_DIRTY, Ordering::Relaxed);
        (*folio).__bindgen_anon_1.__bindgen_anon_1.mapping = core::ptr::null_mut();
    }
}

// Reclaim.

/// As `folio_evictable()`, of a file.
fn folio_evictable(folio: &folio) -> bool {
    // SAFETY: The folio is valid, and so is its mapping.
    unsafe {
        !mapping_was_pinned(folio.mapping())
            || !crate::writeback::stays(crate::mm::folio::Folio::from_raw(folio))
    }
}

/// As `lru_add()` and `folio_make_unevictable()`, for one folio.
///
/// # Safety
///
/// The folio is valid, and the caller has isolated it.
pub(crate) unsafe fn folio_putback_lru(folio: *mut folio) {
    // SAFETY: By the caller's promise.
    let folio = unsafe { at(folio) };
    let _lruvec = folio.lruvec.lock();

    folio.test_and_clear(PG_UNEVICTABLE);
    if !folio_evictable(folio) {
        memory::fetch_or(folio.flags_address(), PG_UNEVICTABLE, Ordering::Relaxed);
        if !debug::is(Knockout::NoSecondLook) {
            loom::sync::atomic::fence(Ordering::SeqCst);
            if folio_evictable(folio) {
                folio.test_and_clear(PG_UNEVICTABLE);
            }
        }
    }
    folio.test_and_set(PG_LRU);
}

/// As the function of the same name, without the lists. Returns whether it was on one.
///
/// # Safety
///
/// The folio is valid.
pub(crate) unsafe fn folio_isolate_lru(folio: *mut folio) -> bool {
    // SAFETY: By the caller's promise.
    unsafe { at(folio) }.test_and_clear(PG_LRU)
}

/// As in `mm/vmscan.c`.
#[no_mangle]
unsafe extern "C-unwind" fn folio_rescue_unevictable(folio: *mut folio) {
    // SAFETY: The folio is valid.
    let folio = unsafe { at(folio) };
    let isolated_first = debug::is(Knockout::IsolateFirst);

    // As check_move_unevictable_folios() does.
    if isolated_first && !folio.test_and_clear(PG_LRU) {
        return;
    }
    let _lruvec = folio.lruvec.lock();
    let rescue = folio.flags() & PG_UNEVICTABLE != 0 && folio_evictable(folio);

    if rescue && (isolated_first || folio.test_and_clear(PG_LRU)) {
        folio.test_and_clear(PG_UNEVICTABLE);
        folio.test_and_set(PG_LRU);
    } else if isolated_first {
        folio.test_and_set(PG_LRU);
    }
}

/// As `folio_batch_move_lru()` with one of the functions that do nothing to an unevictable folio.
///
/// # Safety
///
/// The folio is valid.
pub(crate) unsafe fn folio_batch_move_lru(folio: *mut folio) {
    // SAFETY: By the caller's promise.
    let folio = unsafe { at(folio) };

    if !folio.test_and_clear(PG_LRU) {
        return;
    }
    let _lruvec = folio.lruvec.lock();
    let unevictable = folio.flags() & PG_UNEVICTABLE != 0;

    if !debug::is(Knockout::NoRecheck) && unevictable && folio_evictable(folio) {
        folio.test_and_clear(PG_UNEVICTABLE);
    }
    folio.test_and_set(PG_LRU);
}

/// Is it on the list of what can't be reclaimed?
///
/// # Safety
///
/// The folio is valid.
pub(crate) unsafe fn folio_is_culled(folio: *const folio) -> bool {
    // SAFETY: By the caller's promise.
    let flags = unsafe { at(folio) }.flags();

    assert!(flags & PG_LRU != 0, "lru: a folio is on no list");
    flags & PG_UNEVICTABLE != 0
}

// The page cache and memory management.

pub(crate) const BATCH: usize = 4;

pub(crate) struct folio_batch {
    pub(crate) folios: [*mut folio; BATCH],
}

impl Default for folio_batch {
    fn default() -> Self {
        Self {
            folios: [core::ptr::null_mut(); BATCH],
        }
    }
}

/// Finds all folios that were ever in the mapping; the caller looks again under the lock.
pub(crate) unsafe fn filemap_get_folios(
    mapping: *mut address_space,
    start: &mut c_ulong,
    _end: c_ulong,
    batch: &mut folio_batch,
) -> c_uint {
    // SAFETY: The mapping is valid, and its list does not change.
    let folios = unsafe { &*(*mapping).folios };
    let rest = &folios[*start..];
    let found = rest.len().min(BATCH);

    batch.folios[..found].copy_from_slice(&rest[..found]);
    *start += found;
    found as c_uint
}

pub(crate) unsafe fn folio_batch_release(_: *mut folio_batch) {}

/// One process with one mapping of one file, from address 0 on.
pub(crate) struct mm_struct {
    pub(crate) mapping: *mut address_space,
}

pub(crate) unsafe fn pinwb_vma_is_opted_in(mm: *mut mm_struct, _: c_ulong, _: bool) -> bool {
    // SAFETY: Both are valid.
    unsafe { mapping_pinned_writeback((*mm).mapping) }
}

/// As `->page_mkwrite()`: with the folio locked, if it is still there, dirties it.
pub(crate) unsafe fn pinwb_fault_for_write(mm: *mut mm_struct, address: c_ulong, _: bool) -> c_int {
    // SAFETY: The structures are valid; the folio is locked while its mapping is looked at.
    unsafe {
        let folio = (&*(*(*mm).mapping).folios)[address >> PAGE_SHIFT];

        folio_lock(folio);
        if !(*folio).__bindgen_anon_1.__bindgen_anon_1.mapping.is_null() {
            folio_mark_dirty(folio);
        }
        folio_unlock(folio);
    }
    0
}

pub(crate) unsafe fn mapping_can_writeback(_: *mut address_space) -> bool {
    true
}

pub(crate) unsafe fn pinwb_folio_is_counted(_: *const folio) -> bool {
    true
}

/// Without NR_DIRTIED and WB_DIRTIED.
pub(crate) unsafe fn pinwb_redirty_folio(folio: *mut folio) {
    // SAFETY: The folio is valid, and the caller keeps it in its mapping.
    unsafe {
        folio_mark_dirty(folio);
        pinwb_account_exempt(folio);
    }
}

// What the C functions call of Rust, as `ffi.rs` has it.

#[no_mangle]
unsafe extern "C-unwind" fn __pinwb_keep_dirty(folio: *mut folio) -> bool {
    // SAFETY: The folio is valid.
    crate::writeback::keep_dirty(unsafe { crate::mm::folio::Folio::from_raw(folio) })
}

#[no_mangle]
unsafe extern "C-unwind" fn __pinwb_mapping_has_pins(mapping: *mut address_space) -> bool {
    let mapping = core::ptr::NonNull::new(mapping).expect("a mapping");

    // SAFETY: The mapping is valid.
    crate::writeback::has_pins(unsafe { crate::mapping::Mapping::from_raw(mapping) })
}

#[no_mangle]
unsafe extern "C-unwind" fn pinwb_set_exempt(folio: *const folio) -> u64 {
    // SAFETY: The folio is valid.
    crate::writeback::set_exempt(unsafe { crate::mm::folio::Folio::from_raw(folio) })
}

#[no_mangle]
unsafe extern "C-unwind" fn pinwb_clear_exempt(folio: *const folio) -> u64 {
    // SAFETY: The folio is valid.
    crate::writeback::clear_exempt(unsafe { crate::mm::folio::Folio::from_raw(folio) })
}

#[no_mangle]
extern "C-unwind" fn pinwb_knockout_exempt() -> bool {
    debug::no_exempt()
}

/// All threads are of one process.
#[no_mangle]
pub(crate) unsafe extern "C-unwind" fn pinwb_owner() -> u32 {
    OWNER
}

pub(crate) type atomic64_t = u64;

#[repr(C)]
pub(crate) struct pinwb_leaf {
    pub(crate) first_pfn: c_ulong,
    pub(crate) entries: *mut atomic64_t,
}

// The functions that build.rs cuts out of the kernel's files.
extern "C-unwind" {
    pub(crate) fn mapping_clear_pinned_writeback(mapping: *mut address_space);
    pub(crate) fn mapping_pinned_writeback(mapping: *const address_space) -> bool;
    pub(crate) fn mapping_was_pinned(mapping: *const address_space) -> bool;
    pub(crate) fn mapping_set_was_pinned(mapping: *mut address_space);
    pub(crate) fn pinwb_keep_dirty(folio: *mut folio, mapping: *mut address_space) -> bool;
    pub(crate) fn pinwb_mapping_has_pins(mapping: *mut address_space) -> bool;
    pub(crate) fn pinwb_count_one(
        entry: *mut atomic64_t,
        exempt: u64,
        owner: u64,
        set: &mut u64,
    ) -> bool;
    pub(crate) fn pinwb_forget_one(
        entry: *mut atomic64_t,
        last: &mut bool,
        cleared: &mut u64,
    ) -> bool;
    pub(crate) fn pinwb_account_exempt(folio: *mut folio);
    pub(crate) fn pinwb_unpinned(folio: *mut folio, left_node: bool);
    fn __pinwb_account_cleaned(folio: *mut folio, wb: *mut bdi_writeback);
    pub(crate) fn pinwb_admit_ready(
        pages: *mut *mut page,
        nr_pages: c_ulong,
        mapping: *mut address_space,
        leaf: *const pinwb_leaf,
    ) -> c_ulong;
    pub(crate) fn pinwb_forget_ready(
        pages: *mut *mut page,
        nr_pages: c_ulong,
        leaf: *const pinwb_leaf,
    ) -> c_ulong;
}
