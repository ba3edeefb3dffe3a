// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of bounce.
//!
//! On real folios and real bios, but with pools of their own, and with a predicate in the ledger's
//! place, so that a test says itself which folios are pinned.

use crate::bounce::{
    bounce,
    prepare,
    unbounce,
    Pools, //
};
use kernel::{
    bindings,
    block::bio::{
        Bio,
        Flag,
        Table, //
    },
    error::to_result,
    mm::folio::Folio,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        Completion, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    workqueue::{
        self,
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};

use core::ptr::NonNull;

/// The byte at an offset of test memory; neighbours, pages and folios differ.
fn pattern(seed: usize, offset: usize) -> u8 {
    (offset ^ (offset >> 8).wrapping_mul(7) ^ seed.wrapping_mul(31)) as u8
}

/// Memory of one or more folios, filled with the pattern of `seed`.
pub(crate) struct Memory {
    page: *mut bindings::page,
    order: u32,
    split: bool,
}

impl Memory {
    fn alloc(order: u32, gfp: u32, seed: usize) -> Result<Self> {
        // SAFETY: May be called from any context that may sleep.
        let page = unsafe { bindings::alloc_pages(bindings::GFP_KERNEL | gfp, order) };
        if page.is_null() {
            return Err(ENOMEM);
        }

        let this = Self {
            page,
            order,
            split: false,
        };
        this.fill(seed);
        Ok(this)
    }

    /// One folio of `1 << order` pages, which is number `index` of its file.
    pub(crate) fn folio(order: u32, index: usize) -> Result<Self> {
        let this = Self::alloc(order, 1 << bindings::___GFP_COMP_BIT, index)?;

        // SAFETY: Nobody else knows the folio.
        unsafe { set_index(this.page, index) };
        Ok(this)
    }

    /// `1 << order` folios of a page each that are neighbours in memory and in the file.
    fn neighbours(order: u32, index: usize) -> Result<Self> {
        let mut this = Self::alloc(order, 0, index)?;

        // SAFETY: The pages are not compound, and ours.
        unsafe { bindings::split_page(this.page, order) };
        this.split = true;
        for nr in 0..1usize << order {
            // SAFETY: Nobody else knows the pages.
            unsafe { set_index(this.page(nr), index + nr) };
        }
        Ok(this)
    }

    fn len(&self) -> usize {
        PAGE_SIZE << self.order
    }

    pub(crate) fn page(&self, nr: usize) -> *mut bindings::page {
        // SAFETY: In bounds of the allocation.
        unsafe { self.page.add(nr) }
    }

    fn bytes(&self) -> *mut u8 {
        // SAFETY: The page is valid, and has an address: it came without `__GFP_HIGHMEM`.
        unsafe { kernel::block::bio::BioVec::new(self.page, 0, 0).virt() }
    }

    pub(crate) fn fill(&self, seed: usize) {
        for offset in 0..self.len() {
            // SAFETY: In bounds of the allocation.
            unsafe { self.bytes().add(offset).write(pattern(seed, offset)) };
        }
    }

    fn is_filled(&self, seed: usize) -> bool {
        // SAFETY: In bounds of the allocation.
        (0..self.len()).all(|o| unsafe { self.bytes().add(o).read() } == pattern(seed, o))
    }

    /// The PFN of page `nr`.
    fn pfn(&self, nr: usize) -> usize {
        // SAFETY: The page is valid.
        unsafe { Folio::of_page(self.page) }.pfn() + nr
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.split {
            for nr in 0..1usize << self.order {
                // SAFETY: After the split each page is an allocation of its own.
                unsafe { bindings::__free_pages(self.page(nr), 0) };
            }
        } else {
            // SAFETY: The page came from `alloc_pages()` with this order.
            unsafe { bindings::__free_pages(self.page, self.order) };
        }
    }
}

/// # Safety
///
/// `page` must be the head page of a folio that nobody else knows.
unsafe fn set_index(page: *mut bindings::page, index: usize) {
    let folio: *mut bindings::folio = page.cast();

    // SAFETY: As the caller promises.
    unsafe {
        (*folio)
            .__bindgen_anon_1
            .__bindgen_anon_1
            .__bindgen_anon_2
            .index = index
    };
}

/// A bio without a device.
struct TestBio(*mut bindings::bio);

impl TestBio {
    fn new(nr_vecs: u16) -> Result<Self> {
        // SAFETY: May be called from any context that may sleep.
        let bio = unsafe { bindings::bio_kmalloc(nr_vecs, bindings::GFP_KERNEL) };
        if bio.is_null() {
            return Err(ENOMEM);
        }

        // SAFETY: `bio_kmalloc()` made room for the table behind the bio.
        unsafe {
            bindings::bio_init(
                bio,
                core::ptr::null_mut(),
                bio.add(1).cast(),
                nr_vecs,
                bindings::req_op_REQ_OP_WRITE,
            )
        };
        Ok(Self(bio))
    }

    /// Adds `len` bytes from offset `start` of the memory.
    fn add(&self, memory: &Memory, start: usize, len: usize) -> Result {
        // SAFETY: In bounds of the memory, which outlives the bio in all tests.
        let added = unsafe {
            bindings::bio_add_page(
                self.0,
                memory.page(start / PAGE_SIZE),
                len as u32,
                (start % PAGE_SIZE) as u32,
            )
        };
        to_result(if added as usize == len { 0 } else { -1 })
    }

    fn bio(&self) -> &Bio {
        // SAFETY: The bio is initialized, ours, and never submitted.
        unsafe { Bio::from_raw(self.0) }
    }
}

impl Drop for TestBio {
    fn drop(&mut self) {
        // SAFETY: The bio came from `bio_kmalloc()` and is not in use.
        unsafe {
            bindings::bio_uninit(self.0);
            bindings::kfree(self.0.cast());
        }
    }
}

// SAFETY: A bio has no thread affinity.
unsafe impl Send for TestBio {}
// SAFETY: The tests use a bio from one task at a time.
unsafe impl Sync for TestBio {}

/// What a driver would send to the device.
fn contents(bio: &Bio) -> Result<KVec<u8>> {
    let mut bytes = KVec::with_capacity(bio.size(), GFP_KERNEL)?;

    for segment in bio.segments() {
        // SAFETY: The tests' memory and bounce pages have an address, and are not freed or written
        // to at the moment.
        let segment =
            unsafe { core::slice::from_raw_parts(segment.virt(), segment.len() as usize) };
        bytes.extend_from_slice(segment, GFP_KERNEL)?;
    }
    Ok(bytes)
}

fn pools() -> Result<Pin<KBox<Pools>>> {
    KBox::pin_init(Pools::new_reserve_only(), GFP_KERNEL)
}

/// Bounces with the given pools, far from the end of the file.
fn bounce_simply(pools: &Pools, bio: &Bio, pinned: impl FnMut(&Folio) -> bool) -> Result<usize> {
    bounce(
        || Some(NonNull::from(pools)),
        bio,
        || i64::MAX,
        pinned,
        || (),
        |_, _, _, _| (),
        |_| (),
    )
}

/// Unbounces, and says whether all is as it was before.
fn unbounce_restores(pools: &Pools, bio: &Bio, table: Table) -> bool {
    // SAFETY: The bio was bounced by the test, or not at all, and its I/O is not even begun.
    unsafe { unbounce(bio) };
    bio.table() == table && !bio.is_flagged(Flag::BOUNCED) && pools.is_saturated()
}

/// Bounces one bio again and again, from work items, each time as if the device took a millisecond.
#[pin_data]
struct Load {
    bio: TestBio,
    pools: Arc<LoadPools>,
    left: Atomic<u32>,
    #[pin]
    submit: Work<Load, 1>,
    #[pin]
    complete: Work<Load, 2>,
}

/// What the loads of the test share.
#[pin_data]
struct LoadPools {
    #[pin]
    pools: Pools,
    memory: Memory,
    running: Atomic<u32>,
    errors: Atomic<u32>,
    in_flight: Atomic<u32>,
    most_in_flight: Atomic<u32>,
    #[pin]
    done: Completion,
}

// SAFETY: Nothing in it has thread affinity.
unsafe impl Send for LoadPools {}
// SAFETY: The memory is only read while the loads run; the rest is synchronized.
unsafe impl Sync for LoadPools {}

impl_has_work! {
    impl HasWork<Self, 1> for Load { self.submit }
    impl HasWork<Self, 2> for Load { self.complete }
}

impl WorkItem<1> for Load {
    type Pointer = Arc<Load>;

    fn run(this: Arc<Load>) {
        let shared = &this.pools;
        let bio = this.bio.bio();

        if bounce_simply(&shared.pools, bio, |_| true) != Ok(bio.size()) {
            shared.errors.add(1, Relaxed);
        }

        let now = shared.in_flight.fetch_add(1, Full) + 1;
        if now > shared.most_in_flight.load(Relaxed) {
            shared.most_in_flight.store(now, Relaxed);
        }
        let _ = workqueue::system_long().enqueue::<_, 2>(this);
    }
}

impl WorkItem<2> for Load {
    type Pointer = Arc<Load>;

    fn run(this: Arc<Load>) {
        fsleep(Delta::from_millis(1));

        let bio = this.bio.bio();
        // SAFETY: The mapping is valid until unbounce.
        let first = unsafe { *bio.vecs()[0].virt() };
        if first != pattern(0, 0) {
            this.pools.errors.add(1, Relaxed);
        }

        this.pools.in_flight.fetch_sub(1, Full);
        // SAFETY: The other work item bounced it; as I/O goes, it has ended.
        unsafe { unbounce(bio) };

        if this.left.fetch_sub(1, Full) > 1 {
            let _ = workqueue::system_long().enqueue::<_, 1>(this);
        } else if this.pools.running.fetch_sub(1, Full) == 1 {
            this.pools.done.complete_all();
        }
    }
}

#[kunit_tests(pinwb_bounce)]
mod tests {
    use super::*;

    /// A bio of which nothing is pinned is left alone, and costs nothing: there need not even be
    /// pools.
    #[test]
    fn nothing_pinned() -> Result {
        let memory = Memory::folio(0, 0)?;
        let bio = TestBio::new(1)?;
        bio.add(&memory, 0, PAGE_SIZE)?;
        let table = bio.bio().table();

        let copied = bounce(
            || panic!("took memory"),
            bio.bio(),
            || i64::MAX,
            |_| false,
            || panic!("waited"),
            |_, _, _, _| panic!("copied"),
            |_| panic!("copied"),
        )?;

        assert!(copied == 0);
        assert!(bio.bio().table() == table);
        assert!(!bio.bio().is_flagged(Flag::BOUNCED));
        Ok(())
    }

    /// The second pin finds the pools of the first.
    #[test]
    fn prepare_twice() -> Result {
        prepare()?;
        prepare()
    }

    /// What the bio shows is what the folio was, whatever the device writes later.
    #[test]
    fn private_snapshot() -> Result {
        let pools = pools()?;
        let memory = Memory::folio(0, 3)?;
        let bio = TestBio::new(4)?;
        bio.add(&memory, 0, PAGE_SIZE)?;
        let table = bio.bio().table();

        assert!(bounce_simply(&pools, bio.bio(), |_| true)? == PAGE_SIZE);
        assert!(bio.bio().is_flagged(Flag::BOUNCED));
        assert!(bio.bio().table() != table);

        memory.fill(1000);
        let bytes = contents(bio.bio())?;
        assert!(bytes.len() == PAGE_SIZE);
        assert!((0..PAGE_SIZE).all(|o| bytes[o] == pattern(3, o)));

        // And the other way round.
        // SAFETY: The bounce page is ours until unbounce.
        unsafe { bio.bio().vecs()[0].virt().write_bytes(0xee, PAGE_SIZE) };
        assert!(memory.is_filled(1000));

        assert!(unbounce_restores(&pools, bio.bio(), table));
        Ok(())
    }

    /// One bvec over all pages of a large folio, from the middle of its first page on.
    #[test]
    fn multi_page_bvec() -> Result {
        let pools = pools()?;
        let memory = Memory::folio(4, 16)?;
        let bio = TestBio::new(1)?;
        let start = 1024;
        let len = 16 * PAGE_SIZE - 3 * 1024;
        bio.add(&memory, start, len)?;
        let table = bio.bio().table();
        let before = contents(bio.bio())?;

        assert!(bio.bio().vecs().len() == 1);
        assert!(bounce_simply(&pools, bio.bio(), |_| true)? == len);

        // Packed: one entry for each page that the bytes fill.
        assert!(bio.bio().vecs().len() == len.div_ceil(PAGE_SIZE));
        assert!(bio.bio().vecs().iter().all(|vec| vec.offset() == 0));
        memory.fill(1000);
        assert!(contents(bio.bio())?[..] == before[..]);

        assert!(unbounce_restores(&pools, bio.bio(), table));
        Ok(())
    }

    /// A bvec that starts after the page that it names.
    #[test]
    fn offset_beyond_first_page() -> Result {
        let pools = pools()?;
        let memory = Memory::folio(2, 4)?;
        let bio = TestBio::new(1)?;
        // SAFETY: In bounds of the folio.
        let added = unsafe { bindings::bio_add_page(bio.0, memory.page(0), 2048, 2 * 4096 + 1024) };
        assert!(added == 2048);
        let table = bio.bio().table();
        let before = contents(bio.bio())?;

        assert!(bounce_simply(&pools, bio.bio(), |folio| folio.pfn() == memory.pfn(0))? == 2048);
        assert!(contents(bio.bio())?[..] == before[..]);
        assert!(unbounce_restores(&pools, bio.bio(), table));
        Ok(())
    }

    /// Blocks of 1 KiB: parts of folios, of which every other one is pinned.
    #[test]
    fn partial_pages_mixed() -> Result {
        let pools = pools()?;
        let bio = TestBio::new(16)?;
        let mut memory = KVec::new();
        for nr in 0..8 {
            memory.push(Memory::folio(0, nr)?, GFP_KERNEL)?;
        }
        for (nr, memory) in memory.iter().enumerate() {
            bio.add(memory, 1024 * (nr % 3), 1024 * (1 + nr % 2))?;
        }
        let table = bio.bio().table();
        let before = contents(bio.bio())?;

        // 1, 3, 5 and 7 with 2 KiB each.
        let pinned = |folio: &Folio| folio.index() % 2 == 1;
        assert!(bounce_simply(&pools, bio.bio(), pinned)? == 8 * 1024);

        assert!(contents(bio.bio())?[..] == before[..]);
        for (nr, memory) in memory.iter().enumerate() {
            // Nothing of a pinned folio is left, and all of the others.
            let shown = bio.bio().vecs().iter().any(|vec| vec.page() == memory.page);
            assert!(shown == (nr % 2 == 0));
        }

        // The device writes to what is pinned, and only to that.
        for (nr, memory) in memory.iter().enumerate() {
            if nr % 2 == 1 {
                memory.fill(1000);
            }
        }
        assert!(contents(bio.bio())?[..] == before[..]);
        assert!(unbounce_restores(&pools, bio.bio(), table));
        Ok(())
    }

    /// One bvec over several folios, pinned and not.
    #[test]
    fn bvec_of_many_folios() -> Result {
        let pools = pools()?;
        let memory = Memory::neighbours(3, 0)?;
        let bio = TestBio::new(1)?;
        bio.add(&memory, 512, 8 * PAGE_SIZE - 1024)?;
        let table = bio.bio().table();
        let before = contents(bio.bio())?;
        assert!(bio.bio().vecs().len() == 1);

        // Pages 2, 3 and 7, the last one without its last 512 bytes.
        let pinned = |folio: &Folio| [2, 3, 7].contains(&folio.index());
        assert!(bounce_simply(&pools, bio.bio(), pinned)? == 3 * PAGE_SIZE - 512);

        // 0 and 1; 2; 3; 4 to 6; 7.
        let vecs = bio.bio().vecs();
        assert!(vecs.len() == 5);
        assert!(vecs[0].page() == memory.page(0));
        assert!(vecs[0].len() as usize == 2 * PAGE_SIZE - 512);
        assert!(vecs[3].page() == memory.page(4));
        assert!(vecs[3].len() as usize == 3 * PAGE_SIZE);
        assert!(contents(bio.bio())?[..] == before[..]);
        assert!(unbounce_restores(&pools, bio.bio(), table));
        Ok(())
    }

    /// What is beyond the end of the file is zero in the copy, and what it was in the folio; and a
    /// folio that has such bytes is copied also when its pin is gone.
    #[test]
    fn end_of_file() -> Result {
        let pools = pools()?;
        let memory = Memory::folio(1, 2)?;
        let bio = TestBio::new(1)?;
        bio.add(&memory, 0, 2 * PAGE_SIZE)?;
        let table = bio.bio().table();
        let inside = PAGE_SIZE + 100;
        let i_size = (2 * PAGE_SIZE + inside) as i64;

        let copied = bounce(
            || Some(NonNull::from(&*pools)),
            bio.bio(),
            || i_size,
            |_| false,
            || (),
            |_, _, _, _| (),
            |_| (),
        )?;
        assert!(copied == 2 * PAGE_SIZE);

        let bytes = contents(bio.bio())?;
        assert!((0..inside).all(|o| bytes[o] == pattern(2, o)));
        assert!(bytes[inside..].iter().all(|byte| *byte == 0));
        assert!(memory.is_filled(2));
        assert!(unbounce_restores(&pools, bio.bio(), table));

        // The end of the file is the end of the folio: nothing to do.
        let i_size = (4 * PAGE_SIZE) as i64;
        let copied = bounce(
            || panic!("took memory"),
            bio.bio(),
            || i_size,
            |_| false,
            || (),
            |_, _, _, _| (),
            |_| (),
        )?;
        assert!(copied == 0);
        Ok(())
    }

    /// The file grows while the bio waits for memory: what the device wrote there is not wiped.
    #[test]
    fn file_grows_before_the_copy() -> Result {
        let pools = pools()?;
        let memory = Memory::folio(0, 0)?;
        let bio = TestBio::new(1)?;
        bio.add(&memory, 0, PAGE_SIZE)?;
        let table = bio.bio().table();
        let i_size = Atomic::new(100i64);

        bounce(
            || Some(NonNull::from(&*pools)),
            bio.bio(),
            || i_size.load(Relaxed),
            |_| true,
            || i_size.store(3000, Relaxed),
            |_, _, _, _| (),
            |_| (),
        )?;

        let bytes = contents(bio.bio())?;
        assert!((0..3000).all(|o| bytes[o] == pattern(0, o)));
        assert!(bytes[3000..].iter().all(|byte| *byte == 0));
        assert!(unbounce_restores(&pools, bio.bio(), table));
        Ok(())
    }

    /// The largest bio, all of it pinned.
    #[test]
    fn largest_bio() -> Result {
        let pools = pools()?;
        let memory = Memory::folio(8, 0)?;
        let bio = TestBio::new(1)?;
        bio.add(&memory, 0, memory.len())?;
        let table = bio.bio().table();

        assert!(bounce_simply(&pools, bio.bio(), |_| true)? == 256 * PAGE_SIZE);
        assert!(!pools.is_saturated());
        memory.fill(1000);
        let bytes = contents(bio.bio())?;
        assert!((0..memory.len()).all(|o| bytes[o] == pattern(0, o)));
        assert!(unbounce_restores(&pools, bio.bio(), table));
        Ok(())
    }

    /// A larger one was put together before there were pins, and is left alone.
    #[test]
    fn larger_bio() -> Result {
        let memory = Memory::folio(9, 0)?;
        let bio = TestBio::new(1)?;
        bio.add(&memory, 0, memory.len())?;
        let table = bio.bio().table();

        let copied = bounce(
            || panic!("took memory"),
            bio.bio(),
            || i64::MAX,
            |_| true,
            || (),
            |_, _, _, _| (),
            |_| (),
        )?;
        assert!(copied == 0);
        assert!(bio.bio().table() == table);
        Ok(())
    }

    /// A bio that would need more bvecs than drivers cope with is copied as a whole.
    #[test]
    fn too_many_pieces() -> Result {
        let pools = pools()?;
        let memory = Memory::neighbours(6, 0)?;
        let bio = TestBio::new(200)?;
        for nr in 0..200 {
            // The end of one folio and the start of the next.
            bio.add(&memory, (1 + nr % 63) * PAGE_SIZE - 512, 1024)?;
        }
        let table = bio.bio().table();
        let before = contents(bio.bio())?;
        assert!(bio.bio().vecs().len() == 200);

        let pinned = |folio: &Folio| folio.index() % 2 == 1;
        assert!(bounce_simply(&pools, bio.bio(), pinned)? == 200 * 1024);
        assert!(bio.bio().vecs().len() == 50);
        assert!(contents(bio.bio())?[..] == before[..]);
        assert!(unbounce_restores(&pools, bio.bio(), table));
        Ok(())
    }

    /// The end_io of the bio of a split test.
    ///
    /// # Safety
    ///
    /// As for any `bi_end_io`; `bi_private` is that of [`split_in_any_order`].
    unsafe extern "C" fn end_split(bio: *mut bindings::bio) {
        // SAFETY: The I/O has ended, and the test that owns the bio waits.
        let bio = unsafe { Bio::from_raw(bio) };

        // SAFETY: As above; `bounce()` set the flag.
        unsafe {
            unbounce(bio);
            *(*bio.as_raw()).bi_private.cast::<u32>() += 1;
        }
    }

    /// Parts that are split off share the table and end in any order; the bio itself ends last.
    #[test]
    fn split_in_any_order() -> Result {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let pools = pools()?;
            let memory = Memory::folio(3, 0)?;
            let bio = TestBio::new(1)?;
            let mut ended = 0u32;
            bio.add(&memory, 0, memory.len())?;
            let table = bio.bio().table();
            let before = contents(bio.bio())?;

            assert!(bounce_simply(&pools, bio.bio(), |_| true)? == memory.len());
            memory.fill(1000);
            // SAFETY: The bio is ours; `ended` outlives it.
            unsafe {
                (*bio.0).bi_end_io = Some(end_split);
                (*bio.0).bi_private = (&raw mut ended).cast();
            }

            let mut parts = [bio.0; 3];
            let mut seen = KVec::new();
            for part in &mut parts[..2] {
                // As the block layer does for a device that takes three blocks of 512 bytes at
                // most: not at the end of a page.
                //
                // SAFETY: The bio has more sectors than that.
                let split = unsafe {
                    bindings::bio_split(
                        bio.0,
                        3,
                        bindings::GFP_KERNEL,
                        &raw mut bindings::fs_bio_set,
                    )
                };
                let split = kernel::error::from_err_ptr(split)?;

                // SAFETY: Both bios are valid.
                unsafe { bindings::bio_chain(split, bio.0) };
                *part = split;
            }
            for part in parts {
                // SAFETY: The test owns them all, and none has ended.
                let part = unsafe { Bio::from_raw(part) };

                // A clone never has the flag.
                assert!(part.is_flagged(Flag::BOUNCED) == (part.as_raw() == bio.0));
                seen.extend_from_slice(&contents(part)?, GFP_KERNEL)?;
            }
            assert!(seen[..] == before[..]);

            for (nr, index) in order.into_iter().enumerate() {
                assert!(ended == 0);
                assert!(!pools.is_saturated());
                // SAFETY: The part has not ended yet. It is freed with this, unless it is the bio
                // itself.
                unsafe { bindings::bio_endio(parts[index]) };
                assert!(ended == u32::from(nr == 2));
            }

            assert!(bio.bio().table() == table);
            assert!(!bio.bio().is_flagged(Flag::BOUNCED));
            assert!(pools.is_saturated());
        }
        Ok(())
    }

    /// A clone reads the copies, does not have the flag, and leaves all in place when it goes.
    #[test]
    fn clone_shares_the_copies() -> Result {
        let pools = pools()?;
        let memory = Memory::folio(1, 0)?;
        let bio = TestBio::new(1)?;
        bio.add(&memory, 0, memory.len())?;
        let table = bio.bio().table();
        let before = contents(bio.bio())?;

        bounce_simply(&pools, bio.bio(), |_| true)?;
        memory.fill(1000);

        let clone = TestBio::new(0)?;
        // SAFETY: Both bios are valid; the clone goes first.
        to_result(unsafe {
            bindings::bio_uninit(clone.0);
            bindings::bio_init_clone(core::ptr::null_mut(), clone.0, bio.0, bindings::GFP_KERNEL)
        })?;
        assert!(!clone.bio().is_flagged(Flag::BOUNCED));
        assert!(contents(clone.bio())?[..] == before[..]);

        // SAFETY: Not bounced itself, so this does nothing.
        unsafe { unbounce(clone.bio()) };
        drop(clone);
        assert!(contents(bio.bio())?[..] == before[..]);
        assert!(unbounce_restores(&pools, bio.bio(), table));
        Ok(())
    }

    /// No memory but the reserve, and four times as many bios as it can serve: all make progress,
    /// never more than two at a time, and nothing is lost.
    #[test]
    fn exhaustion_makes_progress() -> Result {
        const LOADS: u32 = 8;
        const ROUNDS: u32 = 5;

        let memory = Memory::folio(8, 0)?;
        let shared = Arc::pin_init(
            try_pin_init!(LoadPools {
                pools <- Pools::new_reserve_only(),
                memory,
                running: Atomic::new(LOADS),
                errors: Atomic::new(0),
                in_flight: Atomic::new(0),
                most_in_flight: Atomic::new(0),
                done <- Completion::new(),
            }? Error),
            GFP_KERNEL,
        )?;
        let mut loads = KVec::new();

        for _ in 0..LOADS {
            let bio = TestBio::new(1)?;
            bio.add(&shared.memory, 0, shared.memory.len())?;

            let pools = shared.clone();
            let load = Arc::pin_init(
                pin_init!(Load {
                    bio,
                    pools,
                    left: Atomic::new(ROUNDS),
                    submit <- new_work!("pinwb_bounce::submit"),
                    complete <- new_work!("pinwb_bounce::complete"),
                }),
                GFP_KERNEL,
            )?;
            loads.push(load, GFP_KERNEL)?;
        }
        for load in &loads {
            let _ = workqueue::system_long().enqueue::<_, 1>(load.clone());
        }

        shared.done.wait_for_completion();
        assert!(shared.errors.load(Relaxed) == 0);
        assert!(shared.in_flight.load(Relaxed) == 0);
        assert!((1..=2).contains(&shared.most_in_flight.load(Relaxed)));
        assert!(shared.pools.is_saturated());
        Ok(())
    }
}
