// SPDX-License-Identifier: GPL-2.0

//! Pinned folios on and off the lists that reclaim scans.

use super::join;
use crate::debug::Knockout;
use crate::models::{Break, Scenario, Without};
use crate::world::{Shared, World};

const STRANDED: &[&str] = &["left behind"];

const NO_SECOND_LOOK: Break = Break {
    without: Without::Step(Knockout::NoSecondLook),
    name: "without looking for pins once more",
    says: STRANDED,
};
const ISOLATE_FIRST: Break = Break {
    without: Without::Step(Knockout::IsolateFirst),
    name: "isolating before the lock",
    says: STRANDED,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "lru: the last pin goes while reclaim puts the folio away",
        run: scanned_once,
        breaks: &[NO_SECOND_LOOK, ISOLATE_FIRST],
        preemptions: None,
    },
    Scenario {
        name: "lru: the last pin is taken off in C while reclaim puts the folio away",
        run: scanned_once_in_c,
        breaks: &[NO_SECOND_LOOK, ISOLATE_FIRST],
        preemptions: None,
    },
    Scenario {
        name: "lru: the last pin goes while a folio that was put away is scanned",
        run: scanned_again,
        breaks: &[NO_SECOND_LOOK, ISOLATE_FIRST],
        preemptions: None,
    },
    Scenario {
        name: "lru: the last pin goes while a batch has a folio that was put away",
        run: in_a_batch,
        breaks: &[Break {
            without: Without::Step(Knockout::NoRecheck),
            name: "without looking for pins before PG_lru is set",
            says: STRANDED,
        }],
        preemptions: None,
    },
    Scenario {
        name: "lru: two pins go while reclaim puts the folio away",
        run: two_pins,
        breaks: &[NO_SECOND_LOOK, ISOLATE_FIRST],
        preemptions: None,
    },
];

/// A file of `pages` pages with a pin each, on their lists.
fn pinned(pages: usize) -> Shared {
    let world = World::pinned_before(pages);

    for page in 0..pages {
        world.put_on_lru(page);
    }
    assert!(world.pin());
    world
}

/// The pins of all pages go while something happens to the last page.
fn unpinned_beside(world: &Shared, happens: fn(&World, usize)) {
    let page = world.pages() - 1;
    let other = world.spawn(move |world| happens(world, page));

    world.unpin();
    join(other);
    world.check_count(page, 0);
    world.check_lru(page);
}

fn scanned_once() {
    unpinned_beside(&pinned(1), World::scan);
}

/// The first page of a range goes by Rust.
fn scanned_once_in_c() {
    unpinned_beside(&pinned(2), World::scan);
}

fn scanned_again() {
    let world = pinned(1);

    world.scan(0);
    unpinned_beside(&world, World::scan);
}

fn in_a_batch() {
    let world = pinned(1);

    world.scan(0);
    unpinned_beside(&world, World::activate);
}

fn two_pins() {
    let world = pinned(1);

    assert!(world.pin());
    let reclaim = world.spawn(|world| world.scan(0));
    let other = world.spawn(World::unpin);

    world.unpin();
    join(other);
    join(reclaim);
    world.check_count(0, 0);
    world.check_lru(0);
}
