// SPDX-License-Identifier: GPL-2.0

//! The kernel's log since a point in time.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Follows /dev/kmsg from the moment it was opened.
pub struct Kmsg {
    file: Option<File>,
}

impl Kmsg {
    /// Starts with the next message. Without /dev/kmsg there are none.
    pub fn follow() -> Self {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file));
        Self { file: file.ok() }
    }

    /// The messages since the last call, without their prefixes.
    pub fn messages(&mut self) -> Vec<String> {
        let mut messages = Vec::new();
        let Some(file) = &mut self.file else {
            return messages;
        };
        let mut record = [0; 8192];
        loop {
            match file.read(&mut record) {
                Ok(0) => return messages,
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    if let Some((_, message)) = text.split_once(';') {
                        messages.push(message.lines().next().unwrap_or("").to_owned());
                    }
                }
                // A reader that was overtaken goes on with the oldest message that is left.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => return messages,
            }
        }
    }

    /// Waits up to `seconds` for a message that contains `text`.
    pub fn wait_for(&mut self, text: &str, seconds: u64) -> Option<String> {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
        loop {
            if let Some(message) = self.messages().into_iter().find(|m| m.contains(text)) {
                return Some(message);
            }
            if std::time::Instant::now() >= end {
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// Lets the harness pass over messages that a test provokes, until dropped.
pub struct Permit(());

/// `pattern` is a regular expression for lines of the log.
pub fn permit(pattern: &str) -> Permit {
    expect(pattern);
    Permit(())
}

impl Drop for Permit {
    fn drop(&mut self) {
        write(EXPECT_END);
    }
}

const SPLATS: &[&str] = &[
    "BUG: ",
    "WARNING: ",
    "Oops: ",
    "kernel BUG at",
    "general protection fault",
    "KASAN:",
    "UBSAN:",
    "blocked for more than",
    "soft lockup",
    "rcu_preempt detected stalls",
    "rust_kernel: panicked",
    "EXT4-fs error",
    "bad page state",
];

const EXPECT: &str = "pinwb-expect: ";
const EXPECT_END: &str = "pinwb-expect-end";

fn write(line: &str) {
    // A file of its own for each line: the kernel limits the rate for each.
    if let Ok(mut file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = file.write_all(line.as_bytes());
    }
}

/// Permits messages that contain `text`, for the rest of the test, to whoever reads the log: the runner,
/// and the harness on the console. To the harness it is a regular expression, so it has no characters
/// that mean something else there.
pub fn expect(text: &str) {
    write(&format!("{EXPECT}{text}"));
}

/// What must not be in the log of a test: `messages` are all that it caused. Ends its permits.
pub fn splats(messages: Vec<String>) -> Vec<String> {
    let permits: Vec<String> = messages
        .iter()
        .filter_map(|message| Some(message.split_once(EXPECT)?.1.to_owned()))
        .collect();
    if !permits.is_empty() {
        write(EXPECT_END);
    }
    messages
        .into_iter()
        .filter(|message| is_splat(message) && !message.contains(EXPECT))
        .filter(|message| !permits.iter().any(|permit| message.contains(permit)))
        .collect()
}

/// True if the message is one that a sound kernel never logs. Of data races the harness judges: it knows
/// which of them are ours.
fn is_splat(message: &str) -> bool {
    !message.contains("BUG: KCSAN: data-race") && SPLATS.iter().any(|splat| message.contains(splat))
}
