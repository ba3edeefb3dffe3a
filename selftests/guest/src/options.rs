// SPDX-License-Identifier: GPL-2.0

//! Options that every command shares.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::disk;

/// The filesystem under test and the disk that it is on.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The filesystem under test
    #[arg(long, default_value = "ext4")]
    pub fs: String,
    /// Options for every mkfs
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub mkfs_opts: String,
    /// Options for every mount
    #[arg(long, default_value = "")]
    pub mount_opts: String,
    /// The test disk; found by its serial number, pinwb-disk0, by default
    #[arg(long)]
    pub disk: Option<PathBuf>,
    /// A second, read-only device over the same storage; by default that with serial number pinwb-view0
    #[arg(long)]
    pub view: Option<PathBuf>,
    /// A directory for mount points and images; a tmpfs is mounted on it
    #[arg(long, default_value = "/tmp/pinwb-test")]
    pub work: PathBuf,
    /// Size of the filesystem in MiB
    #[arg(long, default_value_t = 300)]
    pub size_mib: u64,
    /// All time limits are multiplied by this
    #[arg(long, default_value_t = 1)]
    pub timeout_scale: u32,
}

impl Options {
    /// The test disk, if there is one.
    pub fn disk_path(&self) -> Option<PathBuf> {
        self.disk.clone().or_else(|| disk::by_serial("pinwb-disk0"))
    }

    /// The second device over it.
    pub fn view_path(&self) -> Option<PathBuf> {
        self.view.clone().or_else(|| disk::by_serial("pinwb-view0"))
    }

    /// The same options for a child.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| {
            let mut argument = OsString::from(name);
            argument.push("=");
            argument.push(value);
            arguments.push(argument);
        };
        add("--fs", self.fs.clone().into());
        add("--mkfs-opts", self.mkfs_opts.clone().into());
        add("--mount-opts", self.mount_opts.clone().into());
        add("--work", self.work.clone().into());
        add("--size-mib", self.size_mib.to_string().into());
        add("--timeout-scale", self.timeout_scale.to_string().into());
        if let Some(disk) = &self.disk {
            add("--disk", disk.clone().into());
        }
        if let Some(view) = &self.view {
            add("--view", view.clone().into());
        }
        arguments
    }
}
