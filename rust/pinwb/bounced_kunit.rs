// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the table of bytes by file.

use crate::bounced::{
    Bounced,
    FileId, //
};
use kernel::prelude::*;

#[kunit_tests(pinwb_bounced)]
mod tests {
    use super::*;

    #[test]
    fn bytes_add_up_by_file() {
        static TABLE: Bounced = Bounced::new();
        let [one, other, third] = [1, 2, 3].map(|nth| FileId::new(nth << 32 | 1));

        TABLE.add(one, 3);
        TABLE.add(other, 5);
        TABLE.add(one, 4);
        assert_eq!(TABLE.of(one), 7);
        assert_eq!(TABLE.of(other), 5);
        assert_eq!(TABLE.of(third), 0);
    }

    /// Of more files than there are places, the last one always has one, and the largest keeps its.
    #[test]
    fn files_share_the_places() {
        static TABLE: Bounced = Bounced::new();
        let largest = FileId::new(1);
        let file = |nth: u64| FileId::new(nth << 32 | 2);

        TABLE.add(largest, 1 << 20);
        for nth in 1..=1000 {
            TABLE.add(file(nth), nth);
            assert_eq!(TABLE.of(file(nth)), nth);
        }
        assert_eq!(TABLE.of(largest), 1 << 20);
        let left = (1..=1000).filter(|nth| TABLE.of(file(*nth)) != 0).count();
        assert!(left < 256);
    }
}
