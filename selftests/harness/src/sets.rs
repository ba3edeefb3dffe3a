// SPDX-License-Identifier: GPL-2.0

//! The ways to make and mount filesystems that the guest's tests run with.

/// One way, and one guest.
#[derive(Debug)]
pub struct OptionSet {
    /// Of the group; begins with that of the filesystem.
    pub name: &'static str,
    /// As mount(2) knows it.
    pub fs: &'static str,
    /// Options of mkfs.
    pub mkfs: &'static str,
    /// Mount options.
    pub mount: &'static str,
    /// Runs all tests, also those to which the options make no difference. One set of each filesystem.
    pub all_tests: bool,
    /// Is part of `make check`, not only of `make matrix`.
    pub in_check: bool,
}

const fn set(
    fs: &'static str,
    name: &'static str,
    mkfs: &'static str,
    mount: &'static str,
) -> OptionSet {
    OptionSet {
        name,
        fs,
        mkfs,
        mount,
        all_tests: false,
        in_check: false,
    }
}

impl OptionSet {
    const fn in_check(self) -> Self {
        Self {
            in_check: true,
            ..self
        }
    }

    const fn all_tests(self) -> Self {
        Self {
            all_tests: true,
            ..self
        }
    }

    /// What the guest's test program is called with.
    pub fn arguments(&self) -> String {
        let mut arguments = format!("run --fs {} --mkfs-opts '{}'", self.fs, self.mkfs);
        if !self.mount.is_empty() {
            arguments.push_str(&format!(" --mount-opts '{}'", self.mount));
        }
        if !self.all_tests {
            arguments.push_str(" --dependent");
        }
        arguments
    }
}

/// Not here: data=journal, encryption and DAX, which are refused; see the guest's `refuse` tests.
pub const SETS: &[OptionSet] = &[
    set("ext4", "ext4-4k", "-b 4096", "").in_check().all_tests(),
    set("ext4", "ext4-1k", "-b 1024", "").in_check(),
    set("ext4", "ext4-2k", "-b 2048", ""),
    set("ext4", "ext4-nodelalloc", "-b 4096", "nodelalloc"),
    set("ext4", "ext4-1k-nodelalloc", "-b 1024", "nodelalloc"),
    set("ext4", "ext4-data-writeback", "-b 4096", "data=writeback"),
    set("ext4", "ext4-dioread-lock", "-b 4096", "dioread_lock"),
    set("ext4", "ext4-bigalloc", "-b 4096 -O bigalloc -C 16384", ""),
    set("ext4", "ext4-no-journal", "-b 4096 -O ^has_journal", ""),
    set("ext4", "ext4-no-extents", "-b 4096 -O ^extent,^64bit", ""),
    set("ext4", "ext4-quota", "-b 4096 -O quota,project", "prjquota"),
    set("ext4", "ext4-no-checksums", "-b 4096 -O ^metadata_csum", ""),
    set("ext4", "ext4-inline-data", "-b 4096 -O inline_data", ""),
    set("xfs", "xfs-4k", "-b size=4096", "")
        .in_check()
        .all_tests(),
    set("xfs", "xfs-1k", "-b size=1024", "").in_check(),
    set("xfs", "xfs-no-reflink", "-m reflink=0", ""),
    set("xfs", "xfs-rmapbt", "-m rmapbt=1", ""),
    set("xfs", "xfs-extsize", "-d extszinherit=4", ""),
    set("xfs", "xfs-cowextsize", "-d cowextsize=4", ""),
    set("xfs", "xfs-quota", "", "uquota,pquota"),
    set("btrfs", "btrfs", "", "").in_check().all_tests(),
    set("btrfs", "btrfs-compress", "", "compress-force=zstd"),
    set("btrfs", "btrfs-no-holes-no", "-O ^no-holes", ""),
    set("btrfs", "btrfs-nodatasum", "", "nodatasum"),
    set("btrfs", "btrfs-notreelog", "", "notreelog"),
    set("btrfs", "btrfs-mixed", "-M", ""),
    set("btrfs", "btrfs-quota", "-R quota", ""),
    set("btrfs", "btrfs-flushoncommit", "", "flushoncommit"),
];

/// The boot parameters that the tests of all sets need: a disk with protection information, and two memory
/// nodes to move pages between.
pub const APPEND: &str = "scsi_debug.dif=1 scsi_debug.dix=1 scsi_debug.dev_size_mb=24 numa=fake=2";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_arguments() {
        let mut names: Vec<&str> = SETS.iter().map(|s| s.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), SETS.len());
        assert!(SETS.iter().all(|s| s.name.starts_with(s.fs)));
        let arguments = |name| SETS.iter().find(|s| s.name == name).unwrap().arguments();
        assert_eq!(arguments("ext4-4k"), "run --fs ext4 --mkfs-opts '-b 4096'");
        assert_eq!(
            arguments("ext4-nodelalloc"),
            "run --fs ext4 --mkfs-opts '-b 4096' --mount-opts 'nodelalloc' --dependent"
        );
    }
}
