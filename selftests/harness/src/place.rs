// SPDX-License-Identifier: GPL-2.0

//! The filesystem that a long run is about: on the command line of the harness, and of the guest's program.

use clap::Args;

/// A filesystem, and how it is made and mounted.
#[derive(Args, Debug, Clone, Hash)]
pub struct Place {
    /// Type of filesystem
    #[arg(long, value_name = "TYPE", default_value = "ext4")]
    pub fs: String,
    /// Options of mkfs
    #[arg(
        long,
        value_name = "OPTIONS",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub mkfs_opts: String,
    /// Mount options, separated by commas
    #[arg(long, value_name = "OPTIONS", default_value = "")]
    pub mount_opts: String,
}

impl Place {
    /// For `pinwb-test`.
    pub fn arguments(&self) -> [String; 3] {
        [
            format!("--fs={}", self.fs),
            format!("--mkfs-opts={}", self.mkfs_opts),
            format!("--mount-opts={}", self.mount_opts),
        ]
    }
}
