// SPDX-License-Identifier: GPL-2.0

//! What the host tells the guest to do.
//!
//! The job travels as JSON on a small read-only disk of its own. A kernel command line is too
//! short for it and would need quoting; a virtio-serial port would need a handshake.

use serde::{Deserialize, Serialize};

/// Serial of the disk that carries the job.
pub const JOB_SERIAL: &str = "pinwb-job";
/// Name of the virtio-serial port for the command's standard output.
pub const PORT_OUT: &str = "pinwb.out";
/// Name of the virtio-serial port for the command's standard error.
pub const PORT_ERR: &str = "pinwb.err";
/// Name of the virtio-serial port for [`Event`]s to the host and [`SYSRQ`] requests from it.
pub const PORT_CTL: &str = "pinwb.ctl";
/// Request on [`PORT_CTL`]: `sysrq <key>`, one per line.
pub const SYSRQ: &str = "sysrq ";
/// Serial of a read-only disk with the kernel, for guests that restart.
pub const KERNEL_SERIAL: &str = "pinwb-kernel";
/// Number of test disks that a guest has if nothing else is asked for. Disk `i` has serial `pinwb-disk<i>`, its raw view `pinwb-view<i>`.
pub const DISKS: usize = 2;
/// The most test disks that a guest may have.
pub const MAX_DISKS: usize = 4;

/// One command for the guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Job {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, String)>,
    /// Make this filesystem on disk 0 and mount it on `/mnt` first.
    pub mount: Option<Mount>,
    /// Run on the serial console instead of the ports.
    pub interactive: bool,
    /// Unix time on the host, in seconds: the guest kernel may have no clock driver.
    pub time: i64,
}

/// A filesystem on disk 0.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    /// Type, as in `mkfs.<type>`.
    pub fs: String,
    /// Options of mkfs, separated by blanks.
    pub mkfs: String,
    /// Mount options, separated by commas.
    pub options: String,
}

/// What the guest tells the host on [`PORT_CTL`], one JSON object per line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The command is about to start.
    Ready,
    /// The guest could not be set up.
    Error(String),
    /// The command ended with this status.
    Exit(i32),
    /// The command was killed by this signal.
    Signal(i32),
}
