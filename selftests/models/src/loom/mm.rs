// SPDX-License-Identifier: GPL-2.0

//! As `kernel::mm`.

#[path = "../../../../rust/kernel/mm/folio.rs"]
#[allow(dead_code, reason = "the models need a part of it")]
pub(crate) mod folio;
