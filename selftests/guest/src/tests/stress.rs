// SPDX-License-Identifier: GPL-2.0

//! A short slice of the random histories, and proof that they find what they should.

use std::time::Duration;

use anyhow::{bail, Context as _, Result};

use crate::context::Context;
use crate::diag;
use crate::ledger::Switch;
use crate::stress::{self, Plan};
use crate::tap::Test;

pub const TESTS: &[Test] = &[
    Test::new("stress.short", short).timeout(400),
    Test::new("stress.knockout", knockout).timeout(400),
    Test::new("stress.direct_write_past_eof", |c| {
        found(c, &[DIRECT_PAST_PINNED, DIRECT_PAST_STORED])
    }),
    Test::new("stress.zero_range_over_eof", |c| {
        found(c, &[ZERO_OVER_EOF, ZERO_OVER_PINNED_EOF])
    }),
    Test::new("stress.zero_range_in_pinned_folio", |c| {
        found(c, &[ZERO_IN_PINNED])
    }),
];

/// A device has written past EOF, and an O_DIRECT write beyond that grows the file: zeroes in between.
const DIRECT_PAST_PINNED: &str = r#"
{"seed":0,"round":0,"worker":0,"files":1,"pressure":false}
{"file":0,"op":"map","random":true}
{"file":0,"op":"truncate","len":72427}
{"file":0,"op":"pin","slot":2,"at":69632,"len":4096}
{"file":0,"op":"dma","slot":2,"at":69632,"len":4096,"data":1023305}
{"file":0,"op":"write_direct","at":73728,"len":4096,"data":2506584}
"#;

/// The same with a store and without a pin.
const DIRECT_PAST_STORED: &str = r#"
{"seed":0,"round":0,"worker":0,"files":1,"pressure":false}
{"file":0,"op":"allocate","at":28668,"len":2107,"keep_size":false}
{"file":0,"op":"map","random":false}
{"file":0,"op":"store","at":29559,"len":3353,"data":970}
{"file":0,"op":"write_direct","at":40960,"len":45056,"data":655136}
"#;

/// Zero range from the middle of a page to the middle of another, in a large folio that can't be dropped:
/// what is beside it stays.
const ZERO_IN_PINNED: &str = r#"
{"seed":0,"round":0,"worker":0,"files":1,"pressure":false}
{"file":0,"op":"write","at":38,"len":57344,"data":107888}
{"file":0,"op":"map","random":true}
{"file":0,"op":"pin","slot":1,"at":0,"len":4096}
{"file":0,"op":"zero","at":22528,"len":4096,"keep_size":true}
"#;

/// Zero range over an EOF inside a written block grows the file: what is written afterwards stays.
const ZERO_OVER_EOF: &str = r#"
{"seed":0,"round":0,"worker":0,"files":1,"pressure":false}
{"file":0,"op":"write","at":176916,"len":618,"data":1402051}
{"file":0,"op":"sync","how":"fsync"}
{"file":0,"op":"zero","at":143360,"len":49152,"keep_size":false}
{"file":0,"op":"write","at":161792,"len":53248,"data":175892}
"#;

/// The same in a page that stays in the file, because it is covered in part, and is pinned.
const ZERO_OVER_PINNED_EOF: &str = r#"
{"seed":0,"round":0,"worker":0,"files":1,"pressure":false}
{"file":0,"op":"map","random":false}
{"file":0,"op":"write","at":0,"len":5119,"data":77}
{"file":0,"op":"sync","how":"fsync"}
{"file":0,"op":"pin","slot":3,"at":4096,"len":4096}
{"file":0,"op":"zero","at":2048,"len":4096,"keep_size":false}
{"file":0,"op":"dma","slot":3,"at":4096,"len":4096,"data":2678495}
"#;

/// Histories that failed once.
fn found(context: &Context, histories: &[&str]) -> Result<()> {
    let mut failed = 0;
    for history in histories {
        if !stress::replay_text(context, history)? {
            failed += 1;
        }
    }
    crate::tap::expect_eq("histories that fail", failed, 0)
}

const FIXED: u64 = 20_260_714;

/// A seed that is always the same, and one that never is.
fn short(context: &Context) -> Result<()> {
    for seed in [FIXED, stress::seed_of_clock()] {
        let plan = Plan {
            seed,
            round: 0,
            time: Duration::from_secs(12),
            ops: 3000,
            workers: 2,
            without: Vec::new(),
        };
        let outcome = stress::run(context, &plan)?;
        diag!("{}", stress::verdict(&plan, &outcome));
        if let Some(failure) = &outcome.failure {
            stress::report_failure(context, failure)?;
            bail!("seed {seed}: {}", failure.mismatch);
        }
    }
    Ok(())
}

const SOON: u64 = 2000;
const SHORT: usize = 8;

/// Without keep-dirty, data is lost soon, and what is left of the history says how.
fn knockout(context: &Context) -> Result<()> {
    let _switch = Switch::knock_out("no_keep_dirty")?;
    let plan = Plan {
        seed: FIXED,
        round: 0,
        time: Duration::ZERO,
        ops: SOON,
        workers: 1,
        // A direct write drops a clean page in spite of the pin, which would be found first.
        without: vec!["write_direct".to_owned()],
    };
    let outcome = stress::run(context, &plan)?;
    let failure = outcome
        .failure
        .with_context(|| format!("all is well after {SOON} operations: the test can't fail"))?;
    let shrunk = stress::report_failure(context, &failure)?
        .context("the history does not fail when it is done again")?;
    if shrunk.mismatch.kind != stress::Kind::Disk {
        bail!("not a loss on the disk: {}", shrunk.mismatch);
    }
    if shrunk.steps.len() > SHORT {
        bail!("{} steps are left, not {SHORT} or less", shrunk.steps.len());
    }
    Ok(())
}
