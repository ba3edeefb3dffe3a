// SPDX-License-Identifier: GPL-2.0

//! Stand-in for the kernel crate: what the ledger takes from it, on the host's atomics.

pub(crate) mod alloc {
    pub(crate) use pinwb_models::alloc::*;

    use core::mem::MaybeUninit;
    use flags::__GFP_ZERO;

    /// As the kernel's.
    pub(crate) struct KVBox<T>(Box<T>);

    impl<T> KVBox<T> {
        pub(crate) fn new_uninit(flags: Flags) -> Result<KVBox<MaybeUninit<T>>, AllocError> {
            let mut memory = Box::<T>::new_uninit();
            let byte = match flags.contains(__GFP_ZERO) {
                true => 0,
                false => 0xa5,
            };

            // SAFETY: The box owns as many bytes.
            unsafe { memory.as_mut_ptr().write_bytes(byte, 1) };
            Ok(KVBox(memory))
        }

        pub(crate) fn into_raw(this: Self) -> *mut T {
            Box::into_raw(this.0)
        }

        /// # Safety
        ///
        /// `raw` comes from [`Self::into_raw`].
        pub(crate) unsafe fn from_raw(raw: *mut T) -> Self {
            // SAFETY: By the caller's promise.
            Self(unsafe { Box::from_raw(raw) })
        }
    }
}

pub(crate) mod bindings {
    pub(crate) const PINWB_LEAF_ENTRIES: u32 = 512;
    pub(crate) const PINWB_IN_NODE: u64 = 1 << 32;
    pub(crate) const PINWB_IN_WB: u64 = 1 << 33;
    pub(crate) const PINWB_OWNER_SHIFT: u32 = 34;
    pub(crate) const PINWB_MAX_COUNT: u32 = u32::MAX;

    /// As the kernel's.
    #[allow(non_camel_case_types, reason = "as C has it")]
    pub(crate) struct pinwb_leaf {
        pub(crate) first_pfn: usize,
        pub(crate) entries: *mut u64,
    }
}

pub(crate) mod prelude {
    pub(crate) use super::alloc::{
        flags::{GFP_KERNEL, GFP_NOWAIT},
        KVBox,
    };
    pub(crate) use pinwb_models::error::{code::*, Result};
}

pub(crate) mod sync {
    pub(crate) mod atomic {
        use core::cell::UnsafeCell;
        use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};

        /// One thread runs a history: order plays no part.
        pub(crate) struct Relaxed;
        pub(crate) use Relaxed as Acquire;
        pub(crate) use Relaxed as Release;
        pub(crate) use Relaxed as Full;

        /// As the kernel's.
        #[repr(transparent)]
        pub(crate) struct Atomic<T>(UnsafeCell<T>);

        // SAFETY: The methods change the value atomically.
        unsafe impl<T> Sync for Atomic<T> {}
        // SAFETY: As above.
        unsafe impl<T> Send for Atomic<T> {}

        impl<T> Atomic<T> {
            pub(crate) const fn new(value: T) -> Self {
                Self(UnsafeCell::new(value))
            }

            pub(crate) const fn as_ptr(&self) -> *mut T {
                self.0.get()
            }
        }

        macro_rules! operations {
            ($([$($generic:tt)*] $type:ty => $atomic:ty;)*) => {
                $(
                    impl<$($generic)*> Atomic<$type> {
                        fn host(&self) -> &$atomic {
                            // SAFETY: The word is valid and aligned, and always atomic.
                            unsafe { <$atomic>::from_ptr(self.as_ptr()) }
                        }

                        pub(crate) fn load(&self, _: Relaxed) -> $type {
                            self.host().load(SeqCst)
                        }

                        pub(crate) fn cmpxchg(
                            &self,
                            old: $type,
                            new: $type,
                            _: Relaxed,
                        ) -> Result<$type, $type> {
                            self.host().compare_exchange(old, new, SeqCst, SeqCst)
                        }
                    }
                )*
            };
        }

        operations! {
            [] u64 => AtomicU64;
            [T] *mut T => AtomicPtr<T>;
        }

        impl Atomic<usize> {
            fn host(&self) -> &AtomicUsize {
                // SAFETY: The word is valid and aligned, and always atomic.
                unsafe { AtomicUsize::from_ptr(self.as_ptr()) }
            }

            pub(crate) fn load(&self, _: Relaxed) -> usize {
                self.host().load(SeqCst)
            }

            pub(crate) fn add(&self, n: usize, _: Relaxed) {
                self.host().fetch_add(n, SeqCst);
            }
        }
    }
}
