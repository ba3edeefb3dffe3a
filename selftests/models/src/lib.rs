// SPDX-License-Identifier: GPL-2.0

//! What the model programs share: their options, how they report, and the small part of the kernel
//! crate that is the same in all of them.
//!
//! `Documentation/models.rst` says what is modelled, and what is not.

pub mod alloc;
pub mod error;
pub mod report;
