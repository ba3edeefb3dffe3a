// SPDX-License-Identifier: GPL-2.0

//! `<debugfs>/pinwb/`: what the tests and the curious read.
//!
//! - `stats`: one counter a line, name and value.
//! - `ledger`: one folio with pins a line: `major:minor inode index pages pfn count owner`, or
//!   `- - -` for the first three when the folio is in no file any more. `index` is in pages, `owner`
//!   the process that took the first of the pins.
//! - `files`: one file with pins a line: `major:minor inode folios pages pins owner bounced path`,
//!   with the bytes that were copied for writeback. The path is one from the root of the filesystem,
//!   or `-` if none is in memory.
//! - `knockout/`, `delay/`: see `debug.rs`.

use crate::{
    ledger::LEDGER,
    places::{
        self,
        place, //
    },
    stats, //
};
use kernel::{
    debugfs::{
        Scope,
        ScopedDir, //
    },
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    str::BStr, //
};

/// Creates the directory, which lives until the returned scope is dropped.
pub(crate) fn directory() -> impl PinInit<Scope<()>> {
    Scope::dir((), c"pinwb", |(), dir| {
        dir.read_callback_file(c"stats", &(), &show_stats);
        dir.read_callback_file(c"ledger", &(), &show_ledger);
        dir.read_callback_file(c"files", &(), &show_files);
        debug_files(dir);
    })
}

#[cfg(CONFIG_PINWB_DEBUG)]
fn debug_files(dir: &ScopedDir<'_, '_>) {
    crate::debug::knockout_files(&dir.dir(c"knockout"));
    crate::debug::delay_files(&dir.dir(c"delay"));
}

#[cfg(not(CONFIG_PINWB_DEBUG))]
fn debug_files(_dir: &ScopedDir<'_, '_>) {}

fn show_stats(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut pins = 0;
    let mut folios = 0u64;

    LEDGER
        .for_each(|_, entry| {
            pins += entry.count();
            folios += 1;
            Ok(())
        })
        .map_err(|_| fmt::Error)?;

    writeln!(f, "pins {pins}")?;
    writeln!(f, "folios {folios}")?;
    writeln!(f, "leaves {}", LEDGER.leaves())?;
    stats::all()
        .iter()
        .try_for_each(|(name, value)| writeln!(f, "{name} {value}"))
}

fn show_ledger(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    LEDGER
        .for_each(|pfn, entry| {
            let (place, in_file) = place(pfn);
            let (count, owner) = (entry.count(), entry.owner());

            if in_file {
                writeln!(
                    f,
                    "{}:{} {} {} {} {pfn} {count} {owner}",
                    place.major, place.minor, place.ino, place.index, place.nr_pages
                )
            } else {
                writeln!(f, "- - - {} {pfn} {count} {owner}", place.nr_pages)
            }
            .map_err(|_| ENOSPC)
        })
        .map_err(|_| fmt::Error)
}

fn show_files(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut buffer = KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL).map_err(|_| fmt::Error)?;
    let files = places::files().map_err(|_| fmt::Error)?;

    for file in files.values() {
        write!(
            f,
            "{}:{} {} {} {} {} {} {} ",
            file.first.major,
            file.first.minor,
            file.first.ino,
            file.folios,
            file.pages,
            file.pins,
            file.owner,
            file.bounced()
        )?;
        match file.path(&mut buffer) {
            Some(path) => f.write_fmt(fmt!("{}\n", BStr::from_bytes(path.to_bytes())))?,
            None => writeln!(f, "-")?,
        }
    }
    Ok(())
}
