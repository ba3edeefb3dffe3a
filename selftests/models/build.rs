// SPDX-License-Identifier: GPL-2.0

//! Compiles those functions of the kernel's C that are part of the protocol.
//!
//! They are cut out of the files that the kernel builds, by name, and put behind `src/loom/kernel.h`,
//! which has the macros that they use.

use std::env;
use std::fs;
use std::path::Path;

const GLUE: &str = "../../rust/pinwb/glue.c";
const HEADER: &str = "../../fs-hooks/include/linux/pinwb.h";
const STAND_IN: &str = "src/loom/kernel.h";

const FUNCTIONS: &[(&str, &[&str])] = &[
    (
        HEADER,
        &[
            "mapping_clear_pinned_writeback",
            "mapping_pinned_writeback",
            "mapping_was_pinned",
            "mapping_set_was_pinned",
            "pinwb_keep_dirty",
            "pinwb_mapping_has_pins",
        ],
    ),
    (
        GLUE,
        &[
            "pinwb_leaf_entry",
            "pinwb_count_one",
            "pinwb_forget_one",
            "pinwb_rescue",
            "pinwb_run_flush",
            "pinwb_run_add",
            "pinwb_folio_ready",
            "pinwb_lock_ready",
            "pinwb_admit_ready",
            "pinwb_forget_ready",
            "pinwb_account",
            "pinwb_account_exempt",
            "pinwb_unpinned",
            "__pinwb_account_cleaned",
        ],
    ),
];

/// The first definition of a function at the margin, to its closing brace.
fn cut<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let call = format!("{name}(");
    let mut at = 0;

    for line in text.split_inclusive('\n') {
        let starts_here = line.starts_with(|c: char| c.is_ascii_alphabetic())
            && line
                .split_whitespace()
                .any(|word| word.trim_start_matches('*').starts_with(&call));

        if starts_here {
            let rest = &text[at..];
            let end = rest.find("\n}\n")? + 3;

            // A prototype has a semicolon before any brace.
            if rest.find('{')? < rest.find(';')? {
                return Some(&rest[..end]);
            }
        }
        at += line.len();
    }
    None
}

fn main() {
    println!("cargo:rerun-if-changed={STAND_IN}");
    let stand_in = fs::canonicalize(STAND_IN).expect(STAND_IN);
    let mut source = format!("#include \"{}\"\n", stand_in.display());

    for (file, names) in FUNCTIONS {
        println!("cargo:rerun-if-changed={file}");
        let text = fs::read_to_string(file).expect(file);

        for name in *names {
            let body = cut(&text, name).unwrap_or_else(|| panic!("{file} has no {name}()"));
            source.push_str(body);
            source.push('\n');
        }
    }

    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let path = Path::new(&out).join("protocol.c");
    fs::write(&path, source).expect("write the cut-out functions");
    cc::Build::new()
        .file(&path)
        // An assertion of a model unwinds through these functions.
        .flag("-fexceptions")
        .warnings(true)
        .warnings_into_errors(true)
        .compile("pinwb_protocol");
}
