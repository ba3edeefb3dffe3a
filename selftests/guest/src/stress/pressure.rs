// SPDX-License-Identifier: GPL-2.0

//! What goes on in the background: a flusher that never rests, caches that are dropped, memory that is
//! compacted.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::fs::drop_caches;
use crate::numa;

const WRITEBACK: &str = "/proc/sys/vm/dirty_writeback_centisecs";
const EXPIRE: &str = "/proc/sys/vm/dirty_expire_centisecs";
/// What the kernel starts with.
const EXPIRE_DEFAULT: &str = "3000";
const PAUSE: Duration = Duration::from_millis(150);

fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot set {path}"))
}

/// Nothing writes back by itself, and the kernel doesn't log that caches are dropped.
pub fn quiet() -> Result<()> {
    set(WRITEBACK, "0")?;
    set(EXPIRE, EXPIRE_DEFAULT)?;
    set("/proc/sys/vm/drop_caches", "4")
}

/// Background activity until dropped.
pub struct Pressure {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pressure {
    /// Starts it.
    pub fn start() -> Result<Self> {
        set(EXPIRE, "2")?;
        set(WRITEBACK, "3")?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                thread::sleep(PAUSE);
                let _ = drop_caches();
                let _ = numa::compact();
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Pressure {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = quiet();
    }
}
