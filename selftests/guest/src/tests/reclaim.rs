// SPDX-License-Identifier: GPL-2.0

//! Pinned pages can't be reclaimed, and reclaim does not look at them: they are unevictable, as mlocked ones
//! are, until the last pin goes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context as _, Result};

use super::common::{Flush, Pinned, Sysctl, MIB};
use crate::beside::beside;
use crate::context::Context;
use crate::device::Kind;
use crate::diag;
use crate::fs as filesystem;
use crate::ledger;
use crate::map::{Mapping, PAGE};
use crate::pagemap::{PageFlags, UNEVICTABLE};
use crate::tap::{expect_eq, skip, Invariant, Test};

use Invariant::{I4, I5};

pub const TESTS: &[Test] = &[
    Test::new("reclaim.hidden_uring", |c| hidden(c, Kind::Uring))
        .proves(&[I4, I5])
        .without("no_cull"),
    Test::new("reclaim.hidden_verbs", |c| hidden(c, Kind::Verbs)).proves(&[I4, I5]),
    Test::new("reclaim.generations", generations).proves(&[I4, I5]),
    Test::new("reclaim.mlocked", mlocked).proves(&[I5]),
    Test::new("reclaim.truncated", truncated).proves(&[I5]),
    Test::new("reclaim.rescued", rescued).proves(&[I5]),
];

const LEN: u64 = 4 * MIB;
const PAGES: usize = LEN as usize / PAGE;

/// Reclaims what is mapped, as far as it can be, and puts the rest where it belongs.
fn page_out(map: &Mapping) -> Result<()> {
    map.advise(libc::MADV_PAGEOUT)?;
    // Some are on their way to a list still.
    filesystem::drop_caches()
}

/// Fails unless so many of the pages are hidden from reclaim.
fn expect_hidden(flags: &PageFlags, map: &Mapping, pages: usize, when: &str) -> Result<()> {
    let hidden = flags.count(map, 0..map.len(), UNEVICTABLE)?;
    ensure!(
        hidden == pages,
        "{when}: {hidden} pages are unevictable, not {pages}"
    );
    Ok(())
}

/// Fails unless reclaim gets all of the pages once they are clean.
fn expect_reclaimed(map: &Mapping, flags: &PageFlags, when: &str) -> Result<()> {
    page_out(map)?;
    let (mapped, cached) = (flags.mapped(map)?, map.cached()?);
    ensure!(
        (mapped, cached) == (0, 0),
        "{when}: {mapped} pages are still mapped, {cached} in memory"
    );
    Ok(())
}

/// Reclaim leaves pinned pages mapped, puts them away, and gets them when they are like others again.
fn hidden(context: &Context, kind: Kind) -> Result<()> {
    let flags = PageFlags::open()?;
    let mut pinned = Pinned::sparse(context, kind, "file", LEN)?;
    pinned.write(1)?;
    page_out(&pinned.map)?;
    expect_eq("pages mapped", flags.mapped(&pinned.map)?, PAGES)?;
    expect_hidden(&flags, &pinned.map, PAGES, "looked at")?;

    for (round, flush) in (2..).zip(Flush::ALL) {
        pinned.write(round)?;
        flush.call(&pinned.file, &pinned.map)?;
        pinned.expect_on_disk(context, round)?;
    }
    expect_hidden(&flags, &pinned.map, PAGES, "written")?;

    let second = kind.attach(&pinned.map, 0..LEN / 2)?;
    second.unpin()?;
    expect_hidden(&flags, &pinned.map, PAGES, "with one pin less")?;

    let Pinned {
        device, map, file, ..
    } = pinned;
    device.unpin()?;
    ledger::wait_until_empty(10)?;
    expect_hidden(&flags, &map, 0, "unpinned")?;
    file.sync_all()?;
    expect_reclaimed(&map, &flags, "unpinned and clean")
}

/// The same where reclaim goes by generations.
fn generations(context: &Context) -> Result<()> {
    const SWITCH: &str = "/sys/kernel/mm/lru_gen/enabled";
    if !Path::new(SWITCH).exists() {
        return skip("the kernel has no CONFIG_LRU_GEN");
    }
    let _generations = Sysctl::set(SWITCH, "y")?;
    hidden(context, Kind::Uring)
}

/// A page that is both pinned and mlocked is hidden until it is neither.
fn mlocked(context: &Context) -> Result<()> {
    let flags = PageFlags::open()?;
    for pinned_longer in [false, true] {
        let pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
        page_out(&pinned.map)?;
        pinned.map.lock().context("mlock")?;
        expect_hidden(&flags, &pinned.map, PAGES, "pinned and mlocked")?;
        let Pinned {
            device, map, file, ..
        } = pinned;
        if pinned_longer {
            map.unlock().context("munlock")?;
            // Some are on their way still.
            filesystem::drop_caches()?;
            expect_hidden(&flags, &map, PAGES, "no longer mlocked")?;
            device.unpin()?;
        } else {
            device.unpin()?;
            expect_hidden(&flags, &map, PAGES, "no longer pinned")?;
            map.unlock().context("munlock")?;
            filesystem::drop_caches()?;
        }
        expect_hidden(&flags, &map, 0, "neither pinned nor mlocked")?;
        file.sync_all()?;
        expect_reclaimed(&map, &flags, "neither pinned nor mlocked, and clean")?;
    }
    Ok(())
}

/// A page that has left its file goes back to the allocator as others do.
fn truncated(context: &Context) -> Result<()> {
    let flags = PageFlags::open()?;
    let pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    page_out(&pinned.map)?;
    let frames = flags.frames(&pinned.map, 0..pinned.map.len())?;
    pinned.file.set_len(0)?;
    pinned.device.unpin()?;
    ledger::wait_until_empty(10)?;
    for frame in frames {
        let found = flags.of_frame(frame)?;
        ensure!(
            found & UNEVICTABLE == 0,
            "page frame {frame:#x} is unevictable without its file: flags {found:#x}"
        );
    }
    Ok(())
}

/// However the last unpin and reclaim meet, no page is left behind.
fn rescued(context: &Context) -> Result<()> {
    const LEN: u64 = MIB;
    const TIME: Duration = Duration::from_secs(2);
    let flags = PageFlags::open()?;
    let file = context.sparse("file", LEN)?;
    let map = Mapping::shared(&file, 0, LEN as usize)?;
    let end = Instant::now() + TIME;
    let mut rounds = 0;
    while Instant::now() < end {
        let device = Kind::Uring.attach(&map, 0..LEN)?;
        // Half of them are put away by then, and are isolated once more.
        if rounds % 2 == 1 {
            page_out(&map)?;
        }
        let reclaim = || map.advise(libc::MADV_PAGEOUT).map_err(Into::into);
        beside(|_| reclaim(), || device.unpin())?;
        ledger::wait_until_empty(10)?;
        // Without another look, which would find them.
        filesystem::drop_caches()?;
        expect_hidden(&flags, &map, 0, &format!("round {rounds}"))?;
        rounds += 1;
    }
    diag!("{rounds} rounds");
    ensure!(rounds > 1, "too few rounds");
    file.sync_all()?;
    expect_reclaimed(&map, &flags, "in the end")
}
