// SPDX-License-Identifier: GPL-2.0

//! Memory pools: allocation that cannot fail in the I/O path.
//!
//! A pool asks an ordinary allocator first, and falls back to a reserve that was set aside when the
//! pool was created. Whoever may sleep waits until somebody else gives an element back. Such a wait
//! ends as long as what was taken from the pool comes back without the help of whoever waits.
//!
//! C header: [`include/linux/mempool.h`](srctree/include/linux/mempool.h)

use crate::{
    alloc::Flags,
    bindings,
    error::{
        code::ENOMEM,
        to_result,
        Error,
        Result, //
    },
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    types::Opaque, //
};
use core::ptr::NonNull;

/// Creates the initializer of a `struct mempool`.
///
/// # Safety
///
/// `alloc` and `free` must be a pair that works with `data`, callable from any context as far as
/// the flags given to `alloc` permit, for as long as the pool lives.
unsafe fn init_pool(
    min_nr: usize,
    alloc: bindings::mempool_alloc_t,
    free: bindings::mempool_free_t,
    data: *mut c_void,
) -> impl PinInit<Opaque<bindings::mempool>, Error> {
    Opaque::try_ffi_init(move |slot: *mut bindings::mempool| {
        let min_nr = c_int::try_from(min_nr)?;

        // `mempool_init_node()` counts `curr_nr` up from what it finds.
        //
        // SAFETY: `slot` is valid for writes, and all zeroes is a valid `struct mempool`.
        unsafe { slot.write_bytes(0, 1) };

        // SAFETY: `slot` is pinned memory; the caller promises that the functions and their data
        // belong together. On error nothing is left in `slot` that needs to be freed.
        to_result(unsafe { bindings::mempool_init_noprof(slot, min_nr, alloc, free, data) })
    })
}

/// A pool of order-0 pages.
///
/// # Invariants
///
/// `pool` is an initialized `struct mempool` whose elements are order-0 pages in the kernel's
/// direct mapping, and every element that was handed out is owned by whoever got it.
///
/// # Examples
///
/// ```
/// use kernel::mm::mempool::PagePool;
///
/// let pool = KBox::pin_init(PagePool::new(4), GFP_KERNEL)?;
/// let mut pages = [core::ptr::null_mut(); 3];
///
/// pool.alloc_bulk(&mut pages)?;
/// assert!(pages.iter().all(|page| !page.is_null()));
///
/// // SAFETY: The pages came from this pool and nobody else knows of them.
/// unsafe { pool.free_bulk(&mut pages) };
/// assert!(pool.is_saturated());
/// # Ok::<(), Error>(())
/// ```
#[pin_data(PinnedDrop)]
pub struct PagePool {
    #[pin]
    pool: Opaque<bindings::mempool>,
    min_nr: usize,
}

// SAFETY: A mempool has its own lock and no thread affinity.
unsafe impl Send for PagePool {}

// SAFETY: A mempool has its own lock.
unsafe impl Sync for PagePool {}

impl PagePool {
    /// Creates a pool with `min_nr` pages set aside. May sleep.
    pub fn new(min_nr: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // SAFETY: The two functions are a pair; their data is the order.
            pool <- unsafe {
                init_pool(
                    min_nr,
                    Some(bindings::mempool_alloc_pages),
                    Some(bindings::mempool_free_pages),
                    core::ptr::null_mut(),
                )
            },
            min_nr,
        })
    }

    /// Creates a pool with `min_nr` pages set aside that has nothing else: it behaves as if the
    /// page allocator were empty whenever it is asked. For tests of what happens then.
    #[cfg(CONFIG_KUNIT)]
    pub fn new_reserve_only(min_nr: usize) -> impl PinInit<Self, Error> {
        /// Allocates for the reserve only.
        ///
        /// # Safety
        ///
        /// The same as for `mempool_alloc_pages()`.
        unsafe extern "C" fn alloc_reserve(gfp: bindings::gfp_t, data: *mut c_void) -> *mut c_void {
            // What mempool_alloc() and mempool_alloc_bulk() add and mempool_init() does not.
            if gfp & (1 << bindings::___GFP_NORETRY_BIT) != 0 {
                return core::ptr::null_mut();
            }
            // SAFETY: The same as for the caller.
            unsafe { bindings::mempool_alloc_pages(gfp, data) }
        }

        try_pin_init!(Self {
            // SAFETY: The two functions are a pair; their data is the order.
            pool <- unsafe {
                init_pool(
                    min_nr,
                    Some(alloc_reserve),
                    Some(bindings::mempool_free_pages),
                    core::ptr::null_mut(),
                )
            },
            min_nr,
        })
    }

    /// Fills `pages` with newly allocated pages, whose content is undefined.
    ///
    /// Either all are there on return, or there is an error and `pages` is unchanged. Nothing is
    /// taken out of the reserve before all that is missing can be taken at once, so callers never
    /// wait for each other while each holds a part of the reserve.
    ///
    /// The C function allocates with `GFP_KERNEL`; where reclaim must not start I/O or enter a
    /// filesystem, the caller narrows that with [`NoIo`].
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if `pages` is longer than the reserve: such a request might wait for ever.
    ///
    /// # Context
    ///
    /// May sleep, without a limit.
    pub fn alloc_bulk(&self, pages: &mut [*mut bindings::page]) -> Result {
        if pages.len() > self.min_nr {
            return Err(EINVAL);
        }

        pages.fill(core::ptr::null_mut());

        // SAFETY: The pool is initialized by the type invariants, and the array has room for
        // `pages.len()` elements. CAST: The length is at most `min_nr`, which is an `int`.
        to_result(unsafe {
            bindings::mempool_alloc_bulk_noprof(
                self.pool.get(),
                pages.as_mut_ptr().cast(),
                pages.len() as u32,
            )
        })
    }

    /// Gives pages back, to the reserve as long as it is not full.
    ///
    /// # Context
    ///
    /// Any, also with interrupts off.
    ///
    /// # Safety
    ///
    /// The pages must have come from this pool, and nobody may use them any more. The content of
    /// the slice is undefined afterwards.
    pub unsafe fn free_bulk(&self, pages: &mut [*mut bindings::page]) {
        // SAFETY: The pool is initialized by the type invariants; the caller promises that the
        // elements are the pool's. CAST: No more than `u32::MAX` pages can come from a pool.
        let kept = unsafe {
            bindings::mempool_free_bulk(
                self.pool.get(),
                pages.as_mut_ptr().cast(),
                pages.len() as u32,
            )
        };

        for page in &pages[kept as usize..] {
            // SAFETY: The pool did not take this order-0 page, so it is still owned by the caller,
            // who gives it up.
            unsafe { bindings::__free_pages(*page, 0) };
        }
    }

    /// Returns whether the reserve is full.
    pub fn is_saturated(&self) -> bool {
        // SAFETY: The pool is initialized by the type invariants.
        unsafe { bindings::mempool_is_saturated(self.pool.get()) }
    }
}

#[pinned_drop]
impl PinnedDrop for PagePool {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The pool is initialized by the type invariants, and nobody can use it any more.
        // Pages that are still out belong to others and are not touched by this.
        unsafe { bindings::mempool_exit(self.pool.get()) };
    }
}

/// A pool of uninitialized memory for values of type `T`, from `kmalloc()`.
///
/// # Invariants
///
/// `pool` is an initialized `struct mempool` whose elements are `kmalloc()` allocations of the size
/// of `T`, and every element that was handed out is owned by whoever got it.
///
/// # Examples
///
/// ```
/// use kernel::mm::mempool::KmallocPool;
///
/// let pool = KBox::pin_init(KmallocPool::<[u64; 64]>::new(2), GFP_KERNEL)?;
/// let element = pool.alloc(GFP_KERNEL)?;
///
/// // SAFETY: The element came from this pool and nobody else knows of it.
/// unsafe { pool.free(element) };
/// assert!(pool.is_saturated());
/// # Ok::<(), Error>(())
/// ```
#[pin_data(PinnedDrop)]
pub struct KmallocPool<T> {
    #[pin]
    pool: Opaque<bindings::mempool>,
    _elements: core::marker::PhantomData<*mut T>,
}

// SAFETY: A mempool has its own lock and no thread affinity, and holds no values of `T`.
unsafe impl<T> Send for KmallocPool<T> {}

// SAFETY: A mempool has its own lock, and holds no values of `T`.
unsafe impl<T> Sync for KmallocPool<T> {}

impl<T> KmallocPool<T> {
    /// Creates a pool with `min_nr` elements set aside. May sleep.
    pub fn new(min_nr: usize) -> impl PinInit<Self, Error> {
        // `kmalloc()` aligns to this whatever the size.
        const { assert!(align_of::<T>() <= bindings::ARCH_KMALLOC_MINALIGN) };
        const { assert!(size_of::<T>() != 0) };

        try_pin_init!(Self {
            // SAFETY: The two functions are a pair; their data is the size.
            pool <- unsafe {
                init_pool(
                    min_nr,
                    Some(bindings::mempool_kmalloc),
                    Some(bindings::mempool_kfree),
                    core::ptr::without_provenance_mut(size_of::<T>()),
                )
            },
            _elements: core::marker::PhantomData,
        })
    }

    /// Allocates uninitialized memory for one `T`.
    ///
    /// `flags` must not ask for zeroed memory. With flags that permit direct reclaim this sleeps
    /// until there is memory, and does not fail.
    pub fn alloc(&self, flags: Flags) -> Result<NonNull<T>> {
        // SAFETY: The pool is initialized by the type invariants.
        let element = unsafe { bindings::mempool_alloc_noprof(self.pool.get(), flags.as_raw()) };

        NonNull::new(element.cast()).ok_or(ENOMEM)
    }

    /// Gives memory back, to the reserve unless that is full. Nothing is dropped.
    ///
    /// # Context
    ///
    /// Any, also with interrupts off.
    ///
    /// # Safety
    ///
    /// `element` must have come from this pool, and nobody may use it any more.
    pub unsafe fn free(&self, element: NonNull<T>) {
        // SAFETY: The pool is initialized by the type invariants, and the caller promises that the
        // element is the pool's.
        unsafe { bindings::mempool_free(element.as_ptr().cast(), self.pool.get()) };
    }

    /// Returns whether the reserve is full.
    pub fn is_saturated(&self) -> bool {
        // SAFETY: The pool is initialized by the type invariants.
        unsafe { bindings::mempool_is_saturated(self.pool.get()) }
    }
}

#[pinned_drop]
impl<T> PinnedDrop for KmallocPool<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The pool is initialized by the type invariants, and nobody can use it any more.
        // Elements that are still out belong to others and are not touched by this.
        unsafe { bindings::mempool_exit(self.pool.get()) };
    }
}

/// A scope in which allocations of this task neither start I/O nor enter a filesystem.
///
/// Every allocation in the scope behaves as if it were made with `GFP_NOIO`.
///
/// # Invariants
///
/// `flags` is what `memalloc_noio_save()` returned in this task.
///
/// # Examples
///
/// ```
/// use kernel::mm::mempool::NoIo;
///
/// let scope = NoIo::enter();
/// let value = KBox::new(1, GFP_KERNEL)?;
/// drop(scope);
/// # Ok::<(), Error>(())
/// ```
#[must_use = "the scope ends immediately when the guard is unused"]
pub struct NoIo {
    flags: u32,
    // The flag is one of the current task.
    _not_send: crate::types::NotThreadSafe,
}

impl NoIo {
    /// Enters the scope. Scopes nest; the guard that was created last is to be dropped first.
    pub fn enter() -> Self {
        // INVARIANT: `flags` is what the function returns.
        Self {
            // SAFETY: Has no requirements.
            flags: unsafe { bindings::memalloc_noio_save() },
            _not_send: crate::types::NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the flags are those that this task saved.
        unsafe { bindings::memalloc_noio_restore(self.flags) };
    }
}
