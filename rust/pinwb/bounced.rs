// SPDX-License-Identifier: GPL-2.0

//! How much of each file was bounced, for debugfs.
//!
//! A table of a fixed size, which files share: one that is new takes the place of the one of which
//! least was bounced, among a few. Nothing is decided by the numbers. So there is no lock, and what
//! is counted while a place changes hands may be lost, or count for the other file.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// Places that a file may have.
const WAYS: usize = 4;
/// A power of two.
const SETS: usize = 64;

/// What tells a file from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId(u64);

impl FileId {
    /// Of what `pinwb_file_id()` says.
    pub(crate) const fn new(id: u64) -> Self {
        // 0 is nobody.
        Self(if id == 0 { 1 } else { id })
    }
}

/// Of a file, or of none if `file` is 0.
struct Place {
    file: Atomic<u64>,
    bytes: Atomic<u64>,
}

impl Place {
    /// The one of a file, or one that is free.
    fn of(places: &[Self], file: u64) -> Option<&Self> {
        places.iter().find(|place| place.file.load(Relaxed) == file)
    }
}

/// Bytes by file.
pub(crate) struct Bounced {
    sets: [[Place; WAYS]; SETS],
}

impl Bounced {
    pub(crate) const fn new() -> Self {
        Self {
            sets: [const {
                [const {
                    Place {
                        file: Atomic::new(0),
                        bytes: Atomic::new(0),
                    }
                }; WAYS]
            }; SETS],
        }
    }

    /// The places that a file may have, and the one that it has.
    fn places(&self, FileId(file): FileId) -> (&[Place; WAYS], Option<&Place>) {
        // CAST: The upper bits of a product are the better ones.
        let places = &self.sets[(file >> 32) as usize % SETS];

        (places, Place::of(places, file))
    }

    /// Counts bytes of a file that were copied for writeback. Context: any.
    pub(crate) fn add(&self, file: FileId, bytes: u64) {
        let (places, place) = self.places(file);

        if let Some(place) = place {
            place.bytes.add(bytes, Relaxed);
            return;
        }
        let least = places.iter().min_by_key(|place| place.bytes.load(Relaxed));

        if let Some(place) = Place::of(places, 0).or(least) {
            place.bytes.store(bytes, Relaxed);
            place.file.store(file.0, Relaxed);
        }
    }

    /// Bytes of a file, since boot or since it last lost its place. Context: any.
    pub(crate) fn of(&self, file: FileId) -> u64 {
        let (_, place) = self.places(file);

        place.map_or(0, |place| place.bytes.load(Relaxed))
    }
}

/// The kernel's.
pub(crate) static BOUNCED: Bounced = Bounced::new();
