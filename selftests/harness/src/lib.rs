// SPDX-License-Identifier: GPL-2.0

//! The QEMU harness of pinwb.
//!
//! A *group* of tests is one boot of the kernel under test: a read-only root image made from the
//! host's own binaries, test disks that the guest sees twice (once through the page cache of a
//! filesystem, once raw), and one command. What the command prints comes back over virtio-serial
//! ports, what the kernel prints over the serial console; both decide whether the group passed.

pub mod bench;
pub mod cache;
pub mod check;
pub mod demo;
pub mod job;
pub mod kselftests;
pub mod matrix;
pub mod place;
pub mod programs;
pub mod qemu;
pub mod report;
pub mod rootfs;
pub mod samples;
pub mod scan;
pub mod session;
pub mod sets;
pub mod stress;
pub mod tap;
pub mod uml;
pub mod unused;
pub mod xfstests;
