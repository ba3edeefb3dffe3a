// SPDX-License-Identifier: GPL-2.0

//! A filesystem for a command that is not a test of the list.

use std::fs::create_dir_all;
use std::path::Path;

use anyhow::Result;

use crate::context::Context;
use crate::fs as filesystem;
use crate::layer::Layer;
use crate::options::Options;

/// Makes and mounts a filesystem with further mkfs and mount options, has it used, unmounts and checks it.
pub fn on_new_filesystem<T>(
    options: &Options,
    layer: Layer,
    [mkfs, mount]: [&str; 2],
    body: impl FnOnce(&Context) -> Result<T>,
) -> Result<T> {
    let kind = filesystem::by_name(&options.fs)?;
    let device = layer.set_up(
        options.disk_path().as_deref(),
        options.view_path().as_deref(),
        options.size_mib << 20,
    )?;
    create_dir_all(&options.work)?;
    filesystem::mount(Path::new("tmpfs"), &options.work, "tmpfs", "")?;
    let result = (|| {
        let directory = options.work.join("mnt");
        create_dir_all(&directory)?;
        let mkfs: Vec<String> = format!("{} {mkfs}", options.mkfs_opts)
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        filesystem::run(&mut kind.mkfs(&device.path, device.size, &mkfs))?;
        let mount_options =
            filesystem::join_options(&[kind.mount_options(), &options.mount_opts, mount]);
        filesystem::mount(&device.path, &directory, kind.name(), &mount_options)?;
        let context = Context::new(
            kind,
            &options.work,
            Some((&device.path, &device.raw, device.size)),
            &mount_options,
        )?;
        let result = body(&context);
        match filesystem::unmount(&directory) {
            Ok(()) => {
                filesystem::run(&mut kind.check(&device.path))?;
            }
            Err(error) => {
                filesystem::detach(&directory);
                result?;
                return Err(error);
            }
        }
        result
    })();
    filesystem::detach(&options.work);
    result
}
