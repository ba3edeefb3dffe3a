// SPDX-License-Identifier: GPL-2.0

//! Something goes on in a thread of its own while something else is done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{bail, Result};

/// Calls `work` in a thread, and `body` beside it; once that has returned, the flag that `work` was given
/// becomes true, and it is waited for. Returns what the two gave. If both fail, `body` says why.
pub fn beside<W: Send, T>(
    work: impl FnOnce(&AtomicBool) -> Result<W> + Send,
    body: impl FnOnce() -> Result<T>,
) -> Result<(T, W)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| work(&stop));
        let done = body();
        stop.store(true, Ordering::Release);
        match worker.join() {
            Ok(worked) => Ok((done?, worked?)),
            Err(_) => bail!("the thread beside it panicked"),
        }
    })
}

/// Calls `step` again and again while `body` runs. Returns what `body` gave, and how often that was.
pub fn beside_steps<T>(
    mut step: impl FnMut() -> Result<()> + Send,
    body: impl FnOnce() -> Result<T>,
) -> Result<(T, u32)> {
    let steps = |stop: &AtomicBool| {
        let mut times = 0;
        while !stop.load(Ordering::Acquire) {
            step()?;
            times += 1;
        }
        Ok(times)
    };
    beside(steps, body)
}
