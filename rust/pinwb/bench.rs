// SPDX-License-Identifier: GPL-2.0

//! The ledger's part in the benchmark of `bench.c`: loops over PFNs, on a ledger of its own.

use crate::{
    ledger::Ledger,
    radix::KernelMemory, //
};
use kernel::{
    error::from_result,
    prelude::*, //
};

static BENCH: Ledger<KernelMemory> = Ledger::new(KernelMemory);

/// # Safety
///
/// `pfns` must be an array of `nr` for `'a`.
unsafe fn slice<'a>(pfns: *const c_ulong, nr: c_ulong) -> &'a [usize] {
    // SAFETY: By the caller's promise.
    unsafe { core::slice::from_raw_parts(pfns, nr) }
}

/// Counts one pin more of each of the pages, or one less if `pins` is negative.
///
/// # Safety
///
/// `pfns` must be an array of `nr`.
#[export]
pub(crate) unsafe extern "C" fn pinwb_bench_ledger_add(
    pfns: *const c_ulong,
    nr: c_ulong,
    pins: c_int,
) -> c_int {
    // SAFETY: By the caller's promise.
    let pfns = unsafe { slice(pfns, nr) };

    from_result(|| {
        if pins > 0 {
            pfns.iter().try_for_each(|&pfn| BENCH.add(pfn, 1, 0))?;
        } else {
            for &pfn in pfns {
                BENCH.sub(pfn, 1);
            }
        }
        Ok(0)
    })
}

/// Returns how many of the pages have pins.
///
/// # Safety
///
/// `pfns` must be an array of `nr`.
#[export]
pub(crate) unsafe extern "C" fn pinwb_bench_ledger_lookup(
    pfns: *const c_ulong,
    nr: c_ulong,
) -> c_ulong {
    // SAFETY: By the caller's promise.
    let pfns = unsafe { slice(pfns, nr) };

    pfns.iter()
        .filter(|&&pfn| BENCH.get(pfn).count() != 0)
        .count()
}

/// Returns the bytes of the leaves that exist.
#[export]
pub(crate) extern "C" fn pinwb_bench_ledger_bytes() -> c_ulong {
    BENCH.leaves() * core::mem::size_of::<crate::radix::Leaf>()
}
