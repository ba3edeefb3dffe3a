// SPDX-License-Identifier: GPL-2.0

//! Stand-in for `kernel::error`.

use crate::alloc::AllocError;

/// An error number, negative as in C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(i32);

/// As the kernel's.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// The error numbers that occur.
pub mod code {
    use super::Error;

    /// Interrupted by a fatal signal.
    pub const EINTR: Error = Error(-4);
    /// Try again.
    pub const EAGAIN: Error = Error(-11);
    /// Out of memory.
    pub const ENOMEM: Error = Error(-12);
    /// Bad address.
    pub const EFAULT: Error = Error(-14);
    /// Busy.
    pub const EBUSY: Error = Error(-16);
}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Self {
        code::ENOMEM
    }
}

/// What a C function returned, as a [`Result`].
pub fn to_result(number: i32) -> Result {
    if number < 0 {
        return Err(Error(number));
    }
    Ok(())
}
