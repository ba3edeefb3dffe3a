// SPDX-License-Identifier: GPL-2.0

//! Admission, writeback, truncation and release of a file's folios.
//!
//! A pin that is never dropped is part of most of these: somebody who waited for it would be a
//! deadlock, which loom reports (I3).

use super::join;
use crate::debug::Knockout;
use crate::memory::Weakness;
use crate::models::{Break, Scenario, Without};
use crate::prelude::EFAULT;
use crate::world::{Shared, World, NEW, OLD};

const fn step(knockout: Knockout, name: &'static str, says: &'static [&'static str]) -> Break {
    Break {
        without: Without::Step(knockout),
        name,
        says,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "protocol: a pin arrives while writeback runs",
        run: pin_under_writeback,
        breaks: &[
            step(
                Knockout::NoAdmission,
                "without admission",
                &["I1", "I2", "I4"],
            ),
            step(
                Knockout::LateCount,
                "counted after admission",
                &["I1", "I2", "I4"],
            ),
            step(
                Knockout::NoLock,
                "without the folio lock",
                &["I1", "I2", "I4"],
            ),
            step(Knockout::NoWait, "without waiting for writeback", &["I2"]),
            step(Knockout::NoKeepDirty, "without keep-dirty", &["I1", "I4"]),
        ],
        preemptions: None,
    },
    Scenario {
        name: "protocol: the first pin of a file arrives while writeback runs",
        run: first_pin_under_writeback,
        breaks: &[step(
            Knockout::NoAdmission,
            "without admission",
            &["I1", "I2", "I4"],
        )],
        preemptions: None,
    },
    Scenario {
        name: "protocol: a second fsync while the I/O of the first is in flight",
        run: two_fsyncs,
        breaks: &[
            step(Knockout::NoKeepDirty, "without keep-dirty", &["I1", "I4"]),
            step(
                Knockout::LateKeepDirty,
                "with keep-dirty after the copy",
                &["I4"],
            ),
            step(Knockout::NoCopy, "without the copy", &["I2"]),
            step(Knockout::WaitForPin, "waiting for the pin", &["I3"]),
        ],
        preemptions: None,
    },
    Scenario {
        name: "protocol: a pinned folio is dirty for whoever locks it",
        run: never_clean,
        breaks: &[
            step(Knockout::NoKeepDirty, "without keep-dirty", &["I1"]),
            step(
                Knockout::LateKeepDirty,
                "with keep-dirty after the copy",
                &["I1"],
            ),
            step(
                Knockout::NoExempt,
                "counted against the dirty limits",
                &["I5"],
            ),
        ],
        preemptions: None,
    },
    Scenario {
        name: "protocol: the last unpin races with keep-dirty",
        run: last_unpin,
        breaks: &[
            Break {
                without: Without::Memory(Weakness::Orderings),
                name: "without release and acquire of the count",
                says: &["I2", "I4"],
            },
            Break {
                without: Without::Memory(Weakness::CompareExchange),
                name: "with entries that are not atomic",
                says: &["I5", "I7"],
            },
        ],
        preemptions: None,
    },
    Scenario {
        name: "protocol: a direct write takes the page before the pin is admitted",
        run: invalidated,
        breaks: &[step(
            Knockout::NoAdmission,
            "without admission",
            &["I1", "orphan"],
        )],
        preemptions: None,
    },
    Scenario {
        name: "protocol: truncation, a pin and writeback",
        run: truncated,
        breaks: &[],
        preemptions: None,
    },
    Scenario {
        name: "protocol: two drivers pin and unpin two pages, one by the loops in C",
        run: two_drivers,
        breaks: &[Break {
            without: Without::Memory(Weakness::CompareExchange),
            name: "with counts that are not atomic",
            says: &["I7", "WARN_ON"],
        }],
        preemptions: None,
    },
    Scenario {
        name: "protocol: the loop in C admits while writeback runs",
        run: ready_under_writeback,
        breaks: &[
            step(Knockout::NoKeepDirty, "without keep-dirty", &["I1", "I4"]),
            step(Knockout::NoCopy, "without the copy", &["I2"]),
        ],
        preemptions: None,
    },
    Scenario {
        name: "protocol: a pin of two pages fails at the second",
        run: fails_halfway,
        breaks: &[],
        preemptions: None,
    },
    Scenario {
        name: "protocol: a file that was pinned is opted out while a pin is admitted",
        run: opted_out_again,
        breaks: &[step(
            Knockout::LateCount,
            "counted after admission",
            &["opted out"],
        )],
        preemptions: None,
    },
    Scenario {
        name: "protocol: a file is opted out while its first pin is admitted",
        run: opted_out,
        breaks: &[step(
            Knockout::LateCount,
            "counted after admission",
            &["opted out"],
        )],
        preemptions: None,
    },
];

/// Pins the first page, has a device write, and syncs.
fn pin_write_sync(world: &World) {
    assert!(world.pin(), "nobody truncates");
    world.check_dirty(0);
    world.dma(0, NEW);
    world.fsync(0);
    world.check_disk(0, NEW);
    world.check_dirty(0);
}

fn pin_under_writeback() {
    let world = World::pinned_before(1);

    world.store(0);
    let writeback = world.spawn(|world| world.write(0));
    pin_write_sync(&world);
    join(writeback);
    world.check_count(0, 1);
}

fn first_pin_under_writeback() {
    let world = World::never_pinned(1);

    world.store(0);
    let writeback = world.spawn(|world| world.write(0));
    pin_write_sync(&world);
    join(writeback);
    world.check_count(0, 1);
}

fn two_fsyncs() {
    let world = World::pinned_before(1);

    assert!(world.pin());
    let first = world.spawn(|world| {
        world.fsync(0);
        world.check_disk(0, OLD);
    });
    world.dma(0, NEW);
    world.fsync(0);
    world.check_disk(0, NEW);
    join(first);
}

fn never_clean() {
    let world = World::pinned_before(1);

    assert!(world.pin());
    let sync = world.spawn(|world| world.fsync(0));
    world.check_dirty(0);
    join(sync);
    world.check_dirty(0);
    world.check_count(0, 1);
}

fn last_unpin() {
    let world = World::pinned_before(1);

    assert!(world.pin());
    let writeback = world.spawn(|world| world.write(0));
    // As io_uring: what it leaves behind is not made dirty.
    world.dma(0, NEW);
    world.unpin();
    join(writeback);

    world.check_count(0, 0);
    world.fsync(0);
    world.check_disk(0, NEW);
}

fn invalidated() {
    let world = World::pinned_before(1);
    let direct = world.spawn(|world| world.invalidate(0));

    if world.pin() {
        assert!(world.check_dirty(0), "the device writes to an orphan");
        join(direct);
        assert!(world.check_dirty(0), "the device writes to an orphan");
        world.check_count(0, 1);
    } else {
        join(direct);
        world.check_count(0, 0);
    }
}

fn truncated() {
    let world = World::pinned_before(1);

    world.store(0);
    let truncate = world.spawn(|world| world.truncate(0));
    let writeback = world.spawn(|world| world.write(0));

    let pinned = world.pin();
    if pinned {
        world.check_dirty(0);
        world.dma(0, NEW);
    }
    join(truncate);
    join(writeback);
    world.check_count(0, u64::from(pinned));
    if pinned {
        world.unpin();
    }
    world.check_count(0, 0);
}

fn two_drivers() {
    let world = World::pinned_before(2);

    world.store(0);
    world.store(1);
    let other = world.spawn(|world| {
        assert!(world.pin());
        world.unpin();
    });
    assert!(world.pin());
    join(other);
    for page in 0..2 {
        world.check_dirty(page);
        world.check_count(page, 1);
    }
    world.unpin();
    for page in 0..2 {
        world.check_count(page, 0);
    }
}

fn ready_under_writeback() {
    let world = World::pinned_before(2);

    world.store(0);
    world.store(1);
    let writeback = world.spawn(|world| world.write(1));
    // Dirty does not say that nothing is under I/O.
    world.store(1);
    assert!(world.pin(), "nobody truncates");
    world.check_dirty(1);
    world.dma(1, NEW);
    world.fsync(1);
    world.check_disk(1, NEW);
    join(writeback);
    world.check_count(1, 1);
}

fn fails_halfway() {
    let world = World::pinned_before(2);

    world.store(0);
    world.store(1);
    let truncate = world.spawn(|world| world.truncate(1));
    let pins = u64::from(world.pin());

    join(truncate);
    world.check_count(0, pins);
    world.check_count(1, pins);
}

fn opted_out() {
    opt_out_and_pin(&World::never_pinned(1));
}

fn opted_out_again() {
    opt_out_and_pin(&World::pinned_before(1));
}

fn opt_out_and_pin(world: &Shared) {
    world.store(0);
    let verity = world.spawn(|world| world.opt_out());

    match world.try_pin() {
        Ok(()) => assert!(!join(verity), "pinned, and opted out"),
        Err(EFAULT) => {
            join(verity);
            world.check_count(0, 0);
        }
        Err(error) => panic!("pin failed: {error:?}"),
    }
}
