// SPDX-License-Identifier: GPL-2.0

//! Small cases, each a function that is one execution.

pub(crate) mod ledger;
pub(crate) mod lru;
pub(crate) mod protocol;
