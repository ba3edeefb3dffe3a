// SPDX-License-Identifier: GPL-2.0

//! Bounce: what a bio shows of a pinned folio is a private copy.
//!
//! A device may write to a pinned folio at any time, also while the block layer computes a checksum
//! or RAID parity over it, and between that and the transfer. So every byte of a pinned folio that
//! a writeback bio carries is copied once, just before the bio is submitted, and everything below
//! sees only the copy.
//!
//! # Why the table of the bio is swapped
//!
//! [`__pinwb_bounce_bio`] gives the bio another table of bvecs, of which some point at copies;
//! [`__pinwb_unbounce_bio`] gives it its own table back, from which the filesystem finds the folios
//! whose writeback has ended. The old table is remembered in the header of the new one, which is
//! found from the bio by `container_of`; `BIO_BOUNCED` says that there is one.
//!
//! - A second bio with the copies, in the manner of `blk-crypto-fallback.c`, would need its own
//!   cgroup association, write hint, ioprio, encryption context and, on btrfs, the private wrapper
//!   that its bios are embedded in. Swapping keeps all of it, as the bio stays what it is.
//! - To intercept `->bi_end_io` would hide the swap from the filesystem, but btrfs sets it again on
//!   its way to the device, and a bio has no free pointer to keep the original in. So filesystems
//!   call unbounce first thing in their completion handler.
//! - The bios that drivers and stacking drivers split off or clone share the table of this bio.
//!   They may end in any order, but all before the completion handler of this bio runs, by the
//!   chain of `__bi_remaining` or by the stacking driver's own count. They never have
//!   `BIO_BOUNCED`.
//!
//! # What is copied
//!
//! All that the bio carries of a folio that has a writable long-term pin, and of a folio that
//! reaches beyond the end of the file. The filesystem zeroes the tail of the last folio, but not
//! that of a pinned one, in which i_size may have grown meanwhile; the pin may be gone by now, and
//! the tail must not reach the disk. It is zeroed in the copy, never in the folio.
//!
//! Each folio is looked up once, and the answer is remembered: the ledger may change between two
//! looks. A folio that is found unpinned stays as good as unpinned until its I/O has ended, because
//! it is under writeback, for the end of which admission waits. A folio whose pin is gone meanwhile
//! is copied for nothing.
//!
//! Nothing is copied of a bio with more than PINWB_BIO_MAX_PAGES. `pinwb_bio_over()`, by which
//! `pinwb_bio_full()` decides, and `pinwb_bio_room()` keep bios below that as soon as the mapping is
//! flagged, which is when its first pin is admitted:
//!
//! 1. Writeback puts a large bio together. The mapping has no pins.
//! 2. A pin of one of the folios is counted. Admission gets the folio lock, flags the mapping, and
//!    waits for the end of this writeback.
//! 3. Writeback is about to submit the bio, finds the flag, and comes here. The ledger says that
//!    the folio is pinned, but the device will not write to it before the bio ends.
//!
//! A folio that is already admitted is not in such a bio: writeback, which has it locked when it
//! adds it, sees the flag then, and submits what it has before it adds more.
//!
//! The end of the file is looked up again just before the copy. If it grew after that, whoever let
//! it grow made the folio dirty after keep-dirty did, or relies on keep-dirty, so that another
//! writeback follows. If it shrank, truncate waits for this writeback, and zeroes the folio's tail.
//!
//! The bytes keep their order and their number, so `bi_iter` is right for either table. Copies are
//! packed: a bounce page takes the next copied bytes of the bio, from whichever folio. Ranges of
//! folios in writeback are multiples of the filesystem's block size, so of the logical block size.
//! A piece of a bounce page is thus a multiple of the smaller of that and of the page size, as is
//! its offset: an integrity interval or an encryption data unit that is not larger than a page is
//! never cut in two. (Intervals that are larger than a page are put together by the integrity code
//! from any pieces. Data units that are larger than a page are not, see `bio_split_io_at()`, and
//! whoever opts an inode in must not have them.)
//!
//! # Memory
//!
//! Pools, because writeback is how memory gets free. Nothing exists before the first pin
//! ([`prepare`]). A bio takes a table first, and then all its pages in one
//! [`PagePool::alloc_bulk`], so the order of the two is the same for everyone and nobody waits with
//! a part of the page reserve. The wait ends: what is out of the page reserve belongs to bios whose
//! pages are complete, which are submitted next, and whose completion gives them back before it
//! does anything else, in whatever context it runs, without a lock, a transaction, or memory. In
//! particular it does not need the folio locks or the journal handle that the waiting writeback may
//! hold. A bio that waits in the plug of the waiting task is sent off when the task goes to sleep.
//! (What remains is the limit of all global pools of the I/O path: a loop device over a pinned
//! file, if there is no memory at all outside the pool.)
//!
//! `mempool_alloc_bulk()` allocates with GFP_KERNEL; the scope around it takes I/O and filesystems
//! out of reclaim.

use crate::{
    bounced::{
        FileId,
        BOUNCED, //
    },
    unchanged, //
};
use kernel::{
    bindings,
    block::bio::{
        self,
        Bio,
        BioVec,
        Flag,
        FolioRange,
        Table, //
    },
    container_of,
    mm::{
        folio::Folio,
        mempool::{
            KmallocPool,
            NoIo,
            PagePool, //
        }, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full, //
        },
        barrier::smp_rmb, //
    }, //
};

use core::{
    cell::Cell,
    mem::MaybeUninit,
    ptr::NonNull, //
};

/// The most pages that a bio of a mapping with pins carries; `pinwb_bio_over()` sees to it.
const BIO_MAX_PAGES: usize = bindings::PINWB_BIO_MAX_PAGES as usize;

/// Pages in the reserve: the largest bio can always be served, and a second one while the first is
/// under way, so that the device need not idle while bytes are copied. More than these two bios
/// are in flight whenever the page allocator has anything to give, which is asked first.
const RESERVE_PAGES: usize = 2 * BIO_MAX_PAGES;

/// Tables in the reserve: one for each bio that the reserve of pages can serve.
const RESERVE_TABLES: usize = 2;

/// The most ranges that the bvecs of a bio fall into when cut at folio boundaries.
///
/// A bvec that touches n folios has n - 2 whole ones, of at least a page each, between its ends. So
/// there are at most two ranges for each bvec, and one for each page.
const MAX_RANGES: usize = 2 * bio::MAX_VECS + BIO_MAX_PAGES;

/// Warns once if the condition holds, and returns it.
macro_rules! warn_once {
    ($cond:expr) => {{
        let cond = $cond;
        if cond {
            kernel::do_once_lite! {
                kernel::warn_on!(true);
            }
        }
        cond
    }};
}

/// The table of a bounced bio.
///
/// # Invariants
///
/// While the bio is bounced: `bio` has `vecs` as its table; `old` is its own table; the first
/// `nr_pages` of `pages` came from the page pool of `pools`, where the table came from.
struct BounceTable {
    old: Table,
    bio: *mut bindings::bio,
    pools: NonNull<Pools>,
    nr_pages: usize,
    pages: [MaybeUninit<*mut bindings::page>; BIO_MAX_PAGES],
    vecs: [MaybeUninit<BioVec>; bio::MAX_VECS],
}

/// Where copies live.
#[pin_data]
pub(crate) struct Pools {
    #[pin]
    pages: PagePool,
    #[pin]
    tables: KmallocPool<BounceTable>,
}

impl Pools {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            pages <- PagePool::new(RESERVE_PAGES),
            tables <- KmallocPool::new(RESERVE_TABLES),
        })
    }

    /// Pools that behave as if there were no memory but the reserve, for tests.
    #[cfg(CONFIG_PINWB_KUNIT_TEST)]
    pub(crate) fn new_reserve_only() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            pages <- PagePool::new_reserve_only(RESERVE_PAGES),
            tables <- KmallocPool::new(RESERVE_TABLES),
        })
    }

    /// Returns whether all that was taken has come back.
    #[cfg(CONFIG_PINWB_KUNIT_TEST)]
    pub(crate) fn is_saturated(&self) -> bool {
        self.pages.is_saturated() && self.tables.is_saturated()
    }
}

/// The pools of the running system; null until the first pin. Never freed.
static POOLS: Atomic<*mut Pools> = Atomic::new(core::ptr::null_mut());

/// Makes sure that there are pools. To be called before the first pin of a mapping is counted.
///
/// # Errors
///
/// [`ENOMEM`]; the next call tries again.
///
/// # Context
///
/// Process context, may sleep (`GFP_KERNEL`).
pub(crate) fn prepare() -> Result {
    if pools().is_some() {
        return Ok(());
    }

    let new = KBox::pin_init(Pools::new(), GFP_KERNEL)?;
    // SAFETY: The pools are not moved: either they stay where they are for ever, or they are
    // pinned again to be dropped.
    let new = KBox::into_raw(unsafe { Pin::into_inner_unchecked(new) });

    if POOLS.cmpxchg(core::ptr::null_mut(), new, Full).is_err() {
        // Somebody else was faster, which is as good.
        //
        // SAFETY: The pointer came from `into_raw()` above, and nobody else has seen it.
        drop(Pin::from(unsafe { KBox::from_raw(new) }));
    }
    Ok(())
}

/// Returns the pools, if there was ever a pin.
fn pools() -> Option<&'static Pools> {
    // SAFETY: What is not null came from `prepare()`, is initialized and never freed.
    unsafe { POOLS.load(Acquire).as_ref() }
}

/// Which ranges of a bio are to be copied.
struct Plan {
    /// One bit for each range, in the order of the bio.
    copy: [u64; MAX_RANGES.div_ceil(64)],
    /// Copy all, and never mind the bits.
    all: bool,
    /// Bytes to be copied.
    bytes: usize,
}

impl Plan {
    /// Asks `needs_copy` once for each range of the bio.
    ///
    /// Drivers have to cope with `BIO_MAX_VECS` bvecs, not with more. A bio in which small pinned
    /// and unpinned ranges take turns could end up with more, as a range adds an entry for itself
    /// and another one where its copy crosses from one bounce page to the next. Such a bio is
    /// copied as a whole, which gives one entry a page: at most [`BIO_MAX_PAGES`], which is no
    /// more.
    fn new(bio: &Bio, mut needs_copy: impl FnMut(&Folio) -> bool) -> Self {
        const { assert!(BIO_MAX_PAGES <= bio::MAX_VECS) };

        let mut plan = Self {
            copy: [0; MAX_RANGES.div_ceil(64)],
            all: false,
            bytes: 0,
        };
        let mut layout = Layout::default();

        for_each_range(bio, |nr, vec, range| {
            let copy = needs_copy(range.folio);

            match plan.copy.get_mut(nr / 64) {
                Some(word) => *word |= u64::from(copy) << (nr % 64),
                None => plan.all = true,
            }
            layout.add(vec, range, copy, |_, _| (), |_| Ok(()))
        })
        // Nothing in here fails.
        .ok();

        plan.bytes = layout.copied;
        if plan.bytes != 0 && (plan.all || layout.vecs > bio::MAX_VECS) {
            plan.all = true;
            plan.bytes = bio.size();
        }
        plan
    }

    fn copies(&self, nr: usize) -> bool {
        self.all || self.copy[nr / 64] & (1 << (nr % 64)) != 0
    }
}

/// Calls `f` with the number of the range, the number of the bvec that it is in, and the range, for
/// each range of the bio's own table. Stops at the first error.
fn for_each_range(bio: &Bio, mut f: impl FnMut(usize, usize, &FolioRange<'_>) -> Result) -> Result {
    let mut nr = 0;

    for (index, vec) in bio.vecs().iter().enumerate() {
        // SAFETY: The bio is a page cache write that is not submitted yet: its folios are under
        // writeback, which keeps them from being freed or split until the bio ends.
        for range in unsafe { vec.folios() } {
            f(nr, index, &range)?;
            nr += 1;
        }
    }
    Ok(())
}

/// What the last entry of a table was made from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// There is none.
    Nothing,
    /// A part of the old table's entry with this number.
    Kept(usize),
    /// Copied bytes.
    Copied,
}

/// Lays ranges out as entries of a table. Both the dry run that counts and the one that copies go
/// through this, so they cannot disagree.
struct Layout {
    /// Entries so far.
    vecs: usize,
    /// Bytes copied so far: where in the bounce pages the next copied byte goes.
    copied: usize,
    last: Last,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            vecs: 0,
            copied: 0,
            last: Last::Nothing,
        }
    }
}

/// A piece of a range whose copy fits in what is left of a bounce page.
struct Piece {
    /// Offset of the source within the range, in bytes.
    start: usize,
    /// Offset of the copy within all bounce pages, in bytes.
    dest: usize,
    /// Bytes.
    len: usize,
    /// The number of the entry that the copy belongs to.
    vec: usize,
    /// Whether that entry begins here.
    begins: bool,
}

impl Layout {
    /// Adds the next range, a part of the old entry number `vec`.
    ///
    /// `keep` is told the number of the entry that a range that is not copied belongs to, and
    /// whether it begins there; `copy` is called for each piece of one that is.
    fn add(
        &mut self,
        vec: usize,
        range: &FolioRange<'_>,
        copied: bool,
        keep: impl FnOnce(usize, bool),
        mut copy: impl FnMut(Piece) -> Result,
    ) -> Result {
        let len = range.vec.len() as usize;

        if !copied {
            // Adjacent in memory as well as in the bio.
            let begins = self.last != Last::Kept(vec);

            self.vecs += usize::from(begins);
            self.last = Last::Kept(vec);
            keep(self.vecs - 1, begins);
            return Ok(());
        }

        let mut start = 0;
        while start < len {
            let in_page = self.copied % PAGE_SIZE;
            let n = usize::min(len - start, PAGE_SIZE - in_page);
            let begins = self.last != Last::Copied || in_page == 0;

            self.vecs += usize::from(begins);
            self.last = Last::Copied;
            copy(Piece {
                start,
                dest: self.copied,
                len: n,
                vec: self.vecs - 1,
                begins,
            })?;
            self.copied += n;
            start += n;
        }
        Ok(())
    }
}

/// A table with its pages, which go back to the pools unless the bio takes them over.
///
/// # Invariants
///
/// `table` came from `pools`, its fields up to and including the first `nr_pages` of `pages` are
/// initialized, and these pages came from `pools`. Nobody else knows of any of it.
struct Copies<'a> {
    table: NonNull<BounceTable>,
    pools: &'a Pools,
}

impl<'a> Copies<'a> {
    /// Takes a table and `nr_pages` pages. Sleeps until there are.
    fn new(pools: &'a Pools, bio: &Bio, nr_pages: usize) -> Result<Self> {
        let _scope = NoIo::enter();
        let table = pools.tables.alloc(GFP_KERNEL)?;

        // SAFETY: The table is memory for a `BounceTable`; the fields are written, not assigned to.
        unsafe {
            (&raw mut (*table.as_ptr()).old).write(bio.table());
            (&raw mut (*table.as_ptr()).bio).write(bio.as_raw());
            (&raw mut (*table.as_ptr()).pools).write(NonNull::from(pools));
            (&raw mut (*table.as_ptr()).nr_pages).write(0);
        }

        // INVARIANT: The table came from `pools`, has the header set, and has no pages yet.
        let mut this = Self { table, pools };
        let this_table = this.table();

        for page in &mut this_table.pages[..nr_pages] {
            page.write(core::ptr::null_mut());
        }
        // INVARIANT: That many entries are initialized. If this fails there is nothing to free.
        pools.pages.alloc_bulk(this_table.pages_mut(nr_pages))?;
        this_table.nr_pages = nr_pages;
        Ok(this)
    }

    fn table(&mut self) -> &mut BounceTable {
        // SAFETY: By the type invariants the table is valid and only we know of it; what may be
        // uninitialized is `MaybeUninit`.
        unsafe { self.table.as_mut() }
    }

    /// Gives the table to the bio.
    ///
    /// # Safety
    ///
    /// The first `nr_vecs` entries of the table are initialized, and have as many bytes in sum as
    /// the bio's own. There is no reference to the bio's own table.
    unsafe fn install(self, bio: &Bio, nr_vecs: usize) {
        let table = self.table;
        core::mem::forget(self);

        // SAFETY: The table is valid.
        let vecs = unsafe { NonNull::new_unchecked((&raw mut (*table.as_ptr()).vecs).cast()) };
        // No room for more entries: nobody adds to a bio that is complete.
        // CAST: At most `bio::MAX_VECS`.
        let len = nr_vecs as u16;

        // SAFETY: The table lives until `unbounce()`; the rest is promised by the caller. The flag
        // is true now.
        unsafe {
            bio.swap_table(Table {
                vecs,
                len,
                capacity: len,
            });
            bio.set_flag(Flag::BOUNCED);
        }
    }
}

impl Drop for Copies<'_> {
    fn drop(&mut self) {
        let pools = self.pools;
        let table = self.table();
        let nr_pages = table.nr_pages;

        // SAFETY: By the type invariants the pages and the table came from these pools, and nobody
        // else knows of them.
        unsafe {
            pools.pages.free_bulk(table.pages_mut(nr_pages));
            pools.tables.free(self.table);
        }
    }
}

impl BounceTable {
    /// Returns the first `nr` pages, which must be initialized.
    fn pages_mut(&mut self, nr: usize) -> &mut [*mut bindings::page] {
        let pages: *mut [MaybeUninit<*mut bindings::page>] = &raw mut self.pages[..nr];

        // SAFETY: The caller has initialized them; the layout of `MaybeUninit` is that of its
        // content. The lifetime is that of the borrow of `self`.
        unsafe { &mut *(pages as *mut [*mut bindings::page]) }
    }
}

/// Copies a piece of a folio into a bounce page. Bytes from position `i_size` of the file on become
/// zeroes.
fn copy_piece(dest: BioVec, range: &FolioRange<'_>, piece: &Piece, i_size: i64) -> Result {
    // Both are sizes of memory, or positions in a file that there is memory for.
    let pos = range.folio.pos() + (range.start + piece.start) as i64;
    // CAST: Not negative, and not larger than `piece.len`.
    let valid = (i_size - pos).clamp(0, piece.len as i64) as usize;

    // SAFETY: Neither page cache folios nor the pool's pages are in high memory (CONFIG_PINWB
    // depends on 64BIT). The range has at least `start + len` bytes, and the rest of the bounce
    // page has `len`, which nobody else uses. The source may be written to meanwhile, by a device
    // or through a page table; the copy is made by C (or assembly) code that has no opinion on its
    // content.
    let residue = unsafe {
        let to = dest.virt();
        let from = range.vec.virt().add(piece.start);
        // The length is an `unsigned int` on some architectures and a `size_t` on others.
        #[allow(clippy::useless_conversion)]
        let residue = bindings::copy_mc_to_kernel(to.cast(), from.cast(), valid.try_into()?);

        to.add(valid).write_bytes(0, piece.len - valid);
        residue
    };

    if residue != 0 {
        let bad = (range.start + piece.start + valid - residue) / PAGE_SIZE;

        // SAFETY: The function may be called for any valid PFN, from any context.
        unsafe { bindings::memory_failure_queue(range.folio.pfn() + bad, 0) };
        return Err(EIO);
    }
    Ok(())
}

/// Diverts ranges of a bio to copies, and returns the number of bytes that were copied.
///
/// `needs_copy` is asked once for each range of a folio; ranges of folios that reach beyond
/// `i_size` are copied anyway. `before_copy` is called once if there is anything to copy, `copied`
/// for each piece of a folio with its offset in the folio, its copy, and whether it is inside the
/// file, and then `after_copy` for each range that was copied, before the bio gets its new table.
///
/// On error the bio is unchanged.
pub(crate) fn bounce(
    pools: impl FnOnce() -> Option<NonNull<Pools>>,
    bio: &Bio,
    i_size: impl Fn() -> i64,
    mut needs_copy: impl FnMut(&Folio) -> bool,
    before_copy: impl FnOnce(),
    mut copied: impl FnMut(&Folio, usize, &BioVec, bool),
    mut after_copy: impl FnMut(&Folio),
) -> Result<usize> {
    if warn_once!(
        !bio.is_write()
            || bio.is_flagged(Flag::CLONED)
            || bio.is_flagged(Flag::BOUNCED)
            || !bio.is_at_start()
            || bio.vecs().len() > bio::MAX_VECS
            || bio
                .vecs()
                .iter()
                .map(|vec| vec.len() as usize)
                .sum::<usize>()
                != bio.size()
    ) {
        return Err(EIO);
    }

    // Only possible if the mapping got its first pin while the bio was put together, see the top.
    if bio.size() > BIO_MAX_PAGES * PAGE_SIZE {
        return Ok(0);
    }

    let end = i_size();
    let plan = Plan::new(bio, |folio| {
        folio.pos().saturating_add(folio.size() as i64) > end || needs_copy(folio)
    });
    if plan.bytes == 0 {
        return Ok(0);
    }

    let pools = pools();
    if warn_once!(pools.is_none()) {
        return Err(EIO);
    }
    // SAFETY: Whoever passes the pools in keeps them until the bio is unbounced.
    let pools = unsafe { pools.ok_or(EIO)?.as_ref() };

    before_copy();

    let mut copies = Copies::new(pools, bio, plan.bytes.div_ceil(PAGE_SIZE))?;
    let BounceTable { pages, vecs, .. } = copies.table();
    // For the two closures below, which write to the table in turn.
    let vecs = Cell::from_mut(&mut vecs[..]).as_slice_of_cells();
    let put = |index: usize, begins: bool, new: BioVec| {
        let new = if begins {
            new
        } else {
            // SAFETY: The entry began with an earlier call.
            unsafe { vecs[index].get().assume_init() }.extended(new.len())
        };
        vecs[index].set(MaybeUninit::new(new));
    };
    let end = i_size();
    let mut layout = Layout::default();

    for_each_range(bio, |nr, vec, range| {
        layout.add(
            vec,
            range,
            plan.copies(nr),
            |index, begins| put(index, begins, range.vec),
            |piece| {
                // SAFETY: As many pages are initialized as the dry run said that there are bytes
                // for, and this run makes the same pieces.
                let page = unsafe { pages[piece.dest / PAGE_SIZE].assume_init() };
                // CAST: Both are at most PAGE_SIZE.
                let dest = BioVec::new(page, (piece.dest % PAGE_SIZE) as u32, piece.len as u32);

                copy_piece(dest, range, &piece, end)?;
                let offset = range.start + piece.start;
                // Sizes of memory, and positions in a file that there is memory for.
                let inside = range.folio.pos() + (offset + piece.len) as i64 <= end;

                copied(range.folio, offset, &dest, inside);
                put(piece.vec, piece.begins, dest);
                Ok(())
            },
        )
    })?;

    for_each_range(bio, |nr, _, range| {
        if plan.copies(nr) {
            after_copy(range.folio);
        }
        Ok(())
    })?;

    // SAFETY: All entries up to `layout.vecs` were written, from all ranges of the bio. The
    // iteration over the old table is over.
    unsafe { copies.install(bio, layout.vecs) };
    Ok(plan.bytes)
}

/// Gives a bio its own table back, and the copies to the pools.
///
/// # Safety
///
/// If the bio has `BIO_BOUNCED`, then [`bounce`] set it, and nobody uses the copies any more. There
/// is no reference to the bio's table.
pub(crate) unsafe fn unbounce(bio: &Bio) {
    if !bio.is_flagged(Flag::BOUNCED) {
        return;
    }

    let vecs: *mut [MaybeUninit<BioVec>; bio::MAX_VECS] = bio.table().vecs.as_ptr().cast();
    // SAFETY: The bio is bounced, so its table is the field of a `BounceTable`.
    let table = unsafe { container_of!(vecs, BounceTable, vecs) };
    // SAFETY: As above.
    let (old, owner, pools) = unsafe { ((*table).old, (*table).bio, (*table).pools) };

    // A clone that inherited the flag. The copies are not its to free.
    if warn_once!(owner != bio.as_raw()) {
        return;
    }

    // SAFETY: `old` is the table that the bio had before; the caller says that there are no
    // references to the one that it has. The flag is no longer true.
    unsafe {
        bio.swap_table(old);
        bio.clear_flag(Flag::BOUNCED);
    }

    // INVARIANT: By the invariants of `BounceTable`; it is no longer known to the bio.
    drop(Copies {
        // SAFETY: The table is not null.
        table: unsafe { NonNull::new_unchecked(table) },
        // SAFETY: The pools live at least as long as what was taken from them.
        pools: unsafe { pools.as_ref() },
    });
}

/// See `pinwb_bounce_bio()`.
///
/// # Safety
///
/// `bio` must be a complete page cache write that is not submitted yet, and that nobody else uses;
/// all its folios are under writeback. `inode` must be the inode that it writes. Process context.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_bounce_bio(
    bio: *mut bindings::bio,
    inode: *mut bindings::inode,
) -> kernel::ffi::c_int {
    if crate::debug::no_copy() {
        return 0;
    }

    // ORDERING: Our caller found the mapping flagged, without ordering. The flag is set after
    // `prepare()`, and this lets us find the pools.
    smp_rmb();

    // SAFETY: As the caller promises.
    let bio = unsafe { Bio::from_raw(bio) };
    let hashed = unchanged::are_taken_of(bio);
    let mut late_keep_dirty = crate::writeback::late_keep_dirty();
    let result = bounce(
        || pools().map(NonNull::from),
        bio,
        || match crate::debug::no_eof_zero() {
            true => i64::MAX,
            // SAFETY: The folios under writeback keep the inode.
            false => unsafe { bindings::i_size_read(inode) },
        },
        crate::writeback::is_pinned,
        crate::debug::delay_bounce,
        |folio, offset, copy, inside| {
            if hashed {
                unchanged::written(folio, offset, copy, inside);
            }
        },
        |folio| {
            if !hashed {
                unchanged::written_unseen(folio);
            }
            late_keep_dirty(folio);
        },
    );

    match result {
        Ok(0) => 0,
        Ok(bytes) => {
            crate::stats::bounced(1, bytes as u64);
            // SAFETY: The folios under writeback keep the inode.
            let file = unsafe { bindings::pinwb_file_id(inode) };
            BOUNCED.add(FileId::new(file), bytes as u64);
            // SAFETY: As the caller promises.
            unsafe { crate::trace::bounce(inode, bio.as_raw(), bytes) };
            0
        }
        Err(_) => EIO.to_errno(),
    }
}

/// See `pinwb_unbounce_bio()`.
///
/// # Safety
///
/// `bio` must be a bio whose I/O has ended, and that nobody else uses. If it has `BIO_BOUNCED`,
/// then [`__pinwb_bounce_bio`] set it. Any context.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_unbounce_bio(bio: *mut bindings::bio) {
    // SAFETY: As the caller promises.
    unsafe { unbounce(Bio::from_raw(bio)) };
}
