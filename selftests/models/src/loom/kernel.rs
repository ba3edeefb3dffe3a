// SPDX-License-Identifier: GPL-2.0

//! Stand-in for the kernel crate: what `rust/pinwb` and `rust/kernel/mm/folio.rs` take from it.

pub(crate) mod alloc {
    pub(crate) use pinwb_models::alloc::*;

    use crate::memory;
    use core::{alloc::Layout, mem::MaybeUninit};
    use flags::__GFP_ZERO;

    /// As the kernel's, for tables only.
    pub(crate) struct KVBox<T>(*mut T);

    impl<T> KVBox<T> {
        pub(crate) fn new_uninit(flags: Flags) -> Result<KVBox<MaybeUninit<T>>, AllocError> {
            let start = memory::table(Layout::new::<T>(), flags.contains(__GFP_ZERO));

            Ok(KVBox(start.cast()))
        }

        pub(crate) fn into_raw(this: Self) -> *mut T {
            core::mem::ManuallyDrop::new(this).0
        }

        /// # Safety
        ///
        /// `raw` comes from [`Self::into_raw`].
        pub(crate) unsafe fn from_raw(raw: *mut T) -> Self {
            Self(raw)
        }
    }

    impl<T> Drop for KVBox<T> {
        fn drop(&mut self) {
            memory::discard(self.0.cast());
        }
    }
}

pub(crate) mod error {
    pub(crate) use pinwb_models::error::*;
}

pub(crate) mod page {
    pub(crate) const PAGE_SHIFT: usize = 12;
    pub(crate) const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
}

pub(crate) mod prelude {
    pub(crate) use super::alloc::{
        flags::{GFP_KERNEL, GFP_NOWAIT},
        KVBox,
    };
    pub(crate) use super::error::{code::*, Error, Result};
    pub(crate) use crate::pr_err;

    /// As in the kernel, where it is `usize`.
    #[allow(non_camel_case_types)]
    pub(crate) type c_ulong = usize;
}

pub(crate) mod sync {
    pub(crate) mod atomic {
        use crate::memory;
        use core::cell::UnsafeCell;

        /// A word at the address where the kernel has it; see [`memory`].
        #[repr(transparent)]
        pub(crate) struct Atomic<T>(UnsafeCell<T>);

        // SAFETY: What is in the cell never changes; the value is with loom.
        unsafe impl<T> Send for Atomic<T> {}
        // SAFETY: As above.
        unsafe impl<T> Sync for Atomic<T> {}

        /// What an [`Atomic`] can hold.
        pub(crate) trait Word: Copy {
            const IS_POINTER: bool;

            fn word(self) -> u64;
            fn from_word(word: u64) -> Self;
        }

        impl Word for u64 {
            const IS_POINTER: bool = false;

            fn word(self) -> u64 {
                self
            }

            fn from_word(word: u64) -> Self {
                word
            }
        }

        impl Word for usize {
            const IS_POINTER: bool = false;

            fn word(self) -> u64 {
                self as u64
            }

            fn from_word(word: u64) -> Self {
                word as usize
            }
        }

        impl<T> Word for *mut T {
            const IS_POINTER: bool = true;

            fn word(self) -> u64 {
                self.expose_provenance() as u64
            }

            fn from_word(word: u64) -> Self {
                core::ptr::with_exposed_provenance_mut(word as usize)
            }
        }

        /// An ordering, as in the kernel a type. A load or store that the kernel crate does not
        /// offer with it is refused by loom.
        pub(crate) trait Ordering {
            const ORDER: loom::sync::atomic::Ordering;
        }

        macro_rules! orderings {
            ($($name:ident => $order:ident,)*) => {
                $(
                    pub(crate) struct $name;

                    impl Ordering for $name {
                        const ORDER: loom::sync::atomic::Ordering =
                            loom::sync::atomic::Ordering::$order;
                    }
                )*
            };
        }

        orderings! {
            Relaxed => Relaxed,
            Acquire => Acquire,
            Release => Release,
            Full => SeqCst,
        }

        impl<T: Word> Atomic<T> {
            fn address(&self) -> usize {
                self.0.get().expose_provenance()
            }

            pub(crate) fn load<O: Ordering>(&self, _: O) -> T {
                T::from_word(memory::load(self.address(), O::ORDER))
            }

            pub(crate) fn cmpxchg<O: Ordering>(&self, old: T, new: T, _: O) -> Result<T, T> {
                let (old, new) = (old.word(), new.word());

                memory::cmpxchg(self.address(), old, new, O::ORDER, T::IS_POINTER)
                    .map(T::from_word)
                    .map_err(T::from_word)
            }

            pub(crate) fn add<O: Ordering>(&self, n: T, _: O) {
                memory::fetch_add(self.address(), n.word(), O::ORDER);
            }

            /// As the kernel's, which returns the word's address. That is read volatile only.
            pub(crate) fn as_ptr(&self) -> Volatile<'_, T> {
                Volatile(self)
            }
        }

        impl<T> Atomic<T> {
            pub(crate) const fn new(value: T) -> Self {
                Self(UnsafeCell::new(value))
            }
        }

        /// The address of a word.
        pub(crate) struct Volatile<'a, T>(&'a Atomic<T>);

        impl<T: Word> Volatile<'_, T> {
            /// A load like READ_ONCE(): nothing but what depends on it comes after it.
            ///
            /// # Safety
            ///
            /// None is needed; the kernel's is a method of a raw pointer.
            pub(crate) unsafe fn read_volatile(self) -> T {
                T::from_word(match T::IS_POINTER {
                    true => memory::load_pointer(self.0.address()),
                    false => memory::load(self.0.address(), loom::sync::atomic::Ordering::Relaxed),
                })
            }
        }
    }
}

pub(crate) mod time {
    /// A time that nobody looks at.
    pub(crate) struct Delta;

    impl Delta {
        pub(crate) fn from_millis(_: i64) -> Self {
            Self
        }
    }

    pub(crate) mod delay {
        /// Only one knock-out sleeps.
        pub(crate) fn fsleep(_: super::Delta) {
            panic!("I3: sleeps until there is no pin");
        }
    }
}

pub(crate) mod types {
    use core::{cell::UnsafeCell, marker::PhantomData};

    /// As the kernel's.
    #[repr(transparent)]
    pub(crate) struct Opaque<T>(UnsafeCell<T>);

    impl<T> Opaque<T> {
        pub(crate) fn get(&self) -> *mut T {
            self.0.get()
        }
    }

    pub(crate) type NotThreadSafe = PhantomData<*mut ()>;

    #[allow(non_upper_case_globals)]
    pub(crate) const NotThreadSafe: NotThreadSafe = PhantomData;
}

/// A warning fails the model.
#[macro_export]
macro_rules! warn_on {
    ($condition:expr) => {{
        let condition: bool = $condition;

        assert!(!condition, "WARN_ON({})", stringify!($condition));
        condition
    }};
}

/// What the kernel says beside a warning.
#[macro_export]
macro_rules! pr_err {
    ($($text:tt)*) => {
        panic!($($text)*)
    };
}
