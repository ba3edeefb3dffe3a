// SPDX-License-Identifier: GPL-2.0

//! Knock-outs and delays for the tests.
//!
//! A safety test proves something only if it fails when the step that it tests is left out. Each
//! switch here leaves one step out; each delay holds a race window open. Without
//! CONFIG_PINWB_DEBUG they are constants and the compiler drops them.

#[cfg(CONFIG_PINWB_DEBUG)]
mod switches {
    use kernel::{
        bindings,
        debugfs::ScopedDir,
        mm::folio::Folio,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };

    /// Declares the switches, on if not 0: a static each, a function that reads it, and their debugfs
    /// files.
    macro_rules! switches {
        ($($(#[$doc:meta])* $name:ident: $file:literal => $switch:ident;)*) => {
            $(
                static $switch: Atomic<u32> = Atomic::new(0);

                $(#[$doc])*
                pub(crate) fn $name() -> bool {
                    $switch.load(Relaxed) != 0
                }
            )*

            pub(crate) fn knockout_files(dir: &ScopedDir<'_, '_>) {
                $(dir.read_write_file($file, &$switch);)*
            }
        };
    }

    /// Declares the delays in milliseconds, like the switches.
    macro_rules! delays {
        ($($(#[$doc:meta])* $name:ident: $file:literal => $millis:ident;)*) => {
            $(
                static $millis: Atomic<u32> = Atomic::new(0);

                $(#[$doc])*
                pub(crate) fn $name() {
                    let millis = $millis.load(Relaxed);

                    if millis != 0 {
                        fsleep(Delta::from_millis(millis.into()));
                    }
                }
            )*

            pub(crate) fn delay_files(dir: &ScopedDir<'_, '_>) {
                $(dir.read_write_file($file, &$millis);)*
            }
        };
    }

    switches! {
        /// Write the live page instead of a copy.
        no_copy: c"no_copy" => NO_COPY;
        /// Let writeback clean pinned folios.
        no_keep_dirty: c"no_keep_dirty" => NO_KEEP_DIRTY;
        /// Keep folios dirty, but only after they were copied.
        late_keep_dirty: c"late_keep_dirty" => LATE_KEEP_DIRTY;
        /// Count pins and let the driver start at once.
        no_admission: c"no_admission" => NO_ADMISSION;
        /// Let filesystems skip dirty blocks without a place on disk.
        no_hole_alloc: c"no_hole_alloc" => NO_HOLE_ALLOC;
        /// Let filesystems write to shared blocks in place.
        no_cow: c"no_cow" => NO_COW;
        /// Let filesystems free and share blocks that writeback is about to write to.
        no_exclusion: c"no_exclusion" => NO_EXCLUSION;
        /// Let filesystems drop what they find no blocks for.
        no_keep_unmapped: c"no_keep_unmapped" => NO_KEEP_UNMAPPED;
        /// Let blocks pass for written although their extent could not be converted.
        no_unwritten_again: c"no_unwritten_again" => NO_UNWRITTEN_AGAIN;
        /// Let bytes past the end of the file through to the disk.
        no_eof_zero: c"no_eof_zero" => NO_EOF_ZERO;
        /// Write pinned folios without moving the inode's times.
        no_touch: c"no_touch" => NO_TOUCH;
        /// Let pinned folios count against the dirty limits.
        no_exempt: c"no_exempt" => NO_EXEMPT;
        /// Go on comparing with what was written before the last fsync, or could not be written.
        keep_hashes: c"keep_hashes" => KEEP_HASHES;
        /// Let frozen filesystems be written to.
        no_freeze: c"no_freeze" => NO_FREEZE;
        /// Leave pinned folios on the lists that reclaim scans.
        no_cull: c"no_cull" => NO_CULL;
        /// Let writeback wait until nobody pins the folio.
        wait_for_pin: c"wait_for_pin" => WAIT_FOR_PIN;
        /// Take references that nobody accounts for as pins, as it was once proposed.
        guess_pins: c"guess_pins" => GUESS_PINS;
        /// Treat every file as if it had been pinned before.
        always_sticky: c"always_sticky" => ALWAYS_STICKY;
    }

    /// The heuristic that this subsystem was built to replace, in place of counting.
    pub(crate) fn guess_pinned(folio: &Folio) -> bool {
        // SAFETY: The folio is valid.
        guess_pins() && unsafe { bindings::pinwb_guess_pinned(folio.as_raw()) }
    }

    delays! {
        /// Between get_user_pages() and admission.
        delay_admission: c"admit_ms" => ADMIT_MS;
        /// Between keep-dirty and the copy.
        delay_bounce: c"bounce_ms" => BOUNCE_MS;
    }
}

#[cfg(not(CONFIG_PINWB_DEBUG))]
mod switches {
    use kernel::mm::folio::Folio;

    pub(crate) const fn no_copy() -> bool {
        false
    }

    pub(crate) const fn no_keep_dirty() -> bool {
        false
    }

    pub(crate) const fn late_keep_dirty() -> bool {
        false
    }

    pub(crate) const fn no_admission() -> bool {
        false
    }

    pub(crate) const fn no_eof_zero() -> bool {
        false
    }

    pub(crate) const fn no_exempt() -> bool {
        false
    }

    pub(crate) const fn keep_hashes() -> bool {
        false
    }

    pub(crate) const fn no_cull() -> bool {
        false
    }

    pub(crate) const fn wait_for_pin() -> bool {
        false
    }

    #[inline(always)]
    pub(crate) fn guess_pinned(_folio: &Folio) -> bool {
        false
    }

    pub(crate) const fn delay_admission() {}

    pub(crate) const fn delay_bounce() {}
}

pub(crate) use switches::*;
