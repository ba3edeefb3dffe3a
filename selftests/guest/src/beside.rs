// SPDX-License-Identifier: GPL-2.0

//! Something goes on in a thread of its own while something else is done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{bail, Result};

/// Says stop when dropped, also by a panic: a scope waits for its threads in any case.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Calls `work` in a thread, and `body` beside it; once that has returned, the flag that `work` was given
/// becomes true, and it is waited for. Returns what the two gave. If both fail, `body` says why.
pub fn beside<W: Send, T>(
    work: impl FnOnce(&AtomicBool) -> Result<W> + Send,
    body: impl FnOnce() -> Result<T>,
) -> Result<(T, W)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| work(&stop));
        let stop = Stop(&stop);
        let done = body();
        drop(stop);
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

#[cfg(test)]
mod tests {
    use std::panic::{catch_unwind, AssertUnwindSafe};
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn gives_what_both_give() {
        let steps = AtomicU32::new(0);
        let step = || {
            steps.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        // However long it takes the thread to start.
        let some_steps = || {
            while steps.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            Ok("done")
        };
        let (done, times) = beside_steps(step, some_steps).unwrap();
        assert!(done == "done" && times > 0 && times == steps.load(Ordering::Relaxed));
    }

    #[test]
    fn stops_when_the_body_fails_or_panics() {
        let failed: Result<((), u32)> = beside_steps(|| Ok(()), || bail!("no"));
        assert_eq!(failed.unwrap_err().to_string(), "no");
        let run = || beside_steps(|| Ok(()), || -> Result<()> { panic!("no") });
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    }

    #[test]
    fn tells_of_what_went_wrong_beside() {
        let failed = beside(|_| -> Result<()> { bail!("no") }, || Ok(()));
        assert_eq!(failed.unwrap_err().to_string(), "no");
        let panicked = beside(|_| -> Result<()> { panic!("no") }, || Ok(()));
        assert!(panicked.unwrap_err().to_string().contains("panicked"));
    }
}
