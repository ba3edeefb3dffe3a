// SPDX-License-Identifier: GPL-2.0

//! What can't be pinned for writing is refused as ever, with a message.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{bail, Context as _, Result};

use super::common::{expect_refused, Pinned, KIB, MIB};
use crate::context::{self, Context};
use crate::device::Kind;
use crate::diag;
use crate::kmsg::Kmsg;
use crate::layer::Layer;
use crate::ledger::Stats;
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::tap::{skip, Skip, Test};
use crate::uring;

/// The test that runs if the kernel was started with `pinwb=off`, alone.
pub const OFF: &str = "refuse.off";

pub const TESTS: &[Test] = &[
    Test::new(OFF, off),
    Test::new("refuse.data_journal", not_supported)
        .only("ext4")
        .made("", "data=journal"),
    Test::new("refuse.nodatacow", not_supported)
        .only("btrfs")
        .made("", "nodatacow"),
    Test::new("refuse.journal_flag", journal_flag)
        .only("ext4")
        .once(),
    Test::new("refuse.fscrypt", fscrypt)
        .only("ext4")
        .made("-O encrypt", ""),
    Test::new("refuse.verity", verity)
        .only("ext4")
        .made("-O verity", ""),
    Test::new("refuse.swapon", swapon).only("ext4 xfs"),
    Test::new("refuse.shmem_still_works", shmem).on(Layer::None),
];

fn mapped(context: &Context) -> Result<(File, Mapping)> {
    let file = context.sparse("file", 256 * KIB)?;
    let map = Mapping::shared(&file, 0, 256 << 10)?;
    Ok((file, map))
}

/// Both devices are refused; RDMA only if there is any.
fn expect_both_refused(map: &Mapping) -> Result<()> {
    expect_refused(Kind::Uring, map)?;
    match expect_refused(Kind::Verbs, map) {
        Err(error) if error.chain().any(|cause| cause.is::<Skip>()) => {
            diag!("RDMA: {error:#}");
            Ok(())
        }
        result => result,
    }
}

fn off(context: &Context) -> Result<()> {
    let (_file, map) = mapped(context)?;
    expect_both_refused(&map)
}

fn expect_message(kmsg: &mut Kmsg) -> Result<()> {
    match kmsg.wait_for("pinwb: refused", 3) {
        Some(message) => diag!("kernel: {message}"),
        None => bail!("refused without a message in the kernel's log"),
    }
    Ok(())
}

fn not_supported(context: &Context) -> Result<()> {
    let mut kmsg = Kmsg::follow();
    let refusals = Stats::read()?.get("refusals");
    let (_file, map) = mapped(context)?;
    expect_both_refused(&map)?;
    expect_message(&mut kmsg)?;
    if Stats::read()?.get("refusals") <= refusals {
        bail!("the refusal was not counted");
    }
    Ok(())
}

const FS_JOURNAL_DATA_FL: libc::c_long = 0x4000;

fn set_journal_flag(file: &File) -> io::Result<()> {
    let mut flags: libc::c_long = 0;
    // SAFETY: both requests take a pointer to a long.
    unsafe {
        if libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) != 0 {
            return Err(io::Error::last_os_error());
        }
        flags |= FS_JOURNAL_DATA_FL;
        if libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &flags) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// `chattr +j` fails while there are pins, and after it there are none.
fn journal_flag(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", MIB)?;
    match set_journal_flag(&pinned.file) {
        Ok(()) => bail!("a pinned file could be switched to data=journal"),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return skip("no journal");
        }
        Err(error) => diag!("chattr +j with pins: {error}"),
    }
    pinned.write(1)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 1)?;
    let Pinned {
        device, map, file, ..
    } = pinned;
    device.unpin()?;
    set_journal_flag(&file).context("chattr +j without pins")?;
    expect_refused(Kind::Uring, &map)
}

#[repr(C)]
struct AddKey {
    kind: u32,
    reserved: u32,
    identifier: [u8; 32],
    raw_size: u32,
    key_id: u32,
    reserved_tail: [u32; 8],
    raw: [u8; 64],
}

#[repr(C)]
struct PolicyV2 {
    version: u8,
    contents_mode: u8,
    filenames_mode: u8,
    flags: u8,
    log2_data_unit_size: u8,
    reserved: [u8; 3],
    identifier: [u8; 16],
}

fn encrypt(directory: &File) -> io::Result<()> {
    const FS_IOC_ADD_ENCRYPTION_KEY: libc::c_ulong = 0xc050_6617;
    const FS_IOC_SET_ENCRYPTION_POLICY: libc::c_ulong = 0x800c_6613;
    let mut key = AddKey {
        // FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER
        kind: 2,
        reserved: 0,
        identifier: [0; 32],
        raw_size: 64,
        key_id: 0,
        reserved_tail: [0; 8],
        raw: std::array::from_fn(|index| index as u8),
    };
    // SAFETY: the kernel reads and writes the structure, whose key follows it directly.
    if unsafe {
        libc::ioctl(
            directory.as_raw_fd(),
            FS_IOC_ADD_ENCRYPTION_KEY as _,
            &mut key,
        )
    } != 0
    {
        return Err(io::Error::last_os_error());
    }
    let mut policy = PolicyV2 {
        version: 2,
        // AES-256-XTS and AES-256-CBC-CTS
        contents_mode: 1,
        filenames_mode: 4,
        // Names are padded to 32 bytes.
        flags: 3,
        log2_data_unit_size: 0,
        reserved: [0; 3],
        identifier: [0; 16],
    };
    policy.identifier.copy_from_slice(&key.identifier[..16]);
    // SAFETY: the kernel reads the policy; its version says how long it is.
    if unsafe {
        libc::ioctl(
            directory.as_raw_fd(),
            FS_IOC_SET_ENCRYPTION_POLICY as _,
            &policy,
        )
    } != 0
    {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn fscrypt(context: &Context) -> Result<()> {
    let path = context.path("encrypted");
    fs::create_dir(&path)?;
    if let Err(error) = encrypt(&File::open(&path)?) {
        return skip(format!("no fscrypt: {error}"));
    }
    let file = match context::create(&path.join("file")) {
        // The policy is set, but a cipher is missing.
        Err(error) if crate::device::errno(&error) == Some(libc::ENOPKG) => {
            return skip(format!("no fscrypt: {error:#}"));
        }
        file => file?,
    };
    file.set_len(256 * KIB)?;
    let map = Mapping::shared(&file, 0, 256 << 10)?;
    let mut kmsg = Kmsg::follow();
    expect_both_refused(&map)?;
    expect_message(&mut kmsg)
}

#[repr(C)]
struct EnableVerity {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved1: u32,
    signature: u64,
    reserved2: [u64; 11],
}

fn enable_verity(file: &File) -> io::Result<()> {
    const FS_IOC_ENABLE_VERITY: libc::c_ulong = 0x4080_6685;
    let argument = EnableVerity {
        version: 1,
        // SHA-256
        hash_algorithm: 1,
        // The smallest, so that no block size of the filesystem is smaller.
        block_size: 1024,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved1: 0,
        signature: 0,
        reserved2: [0; 11],
    };
    // SAFETY: the kernel reads the structure.
    match unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY as _, &argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A file can't be made read-only for ever under a device that writes to it.
fn verity(context: &Context) -> Result<()> {
    context.written("probe", 8 * KIB, Stamp::fresh(), 4096)?;
    if let Err(error) = enable_verity(&File::open(context.path("probe"))?) {
        return skip(format!("no fs-verity: {error}"));
    }
    let Pinned {
        device, map, file, ..
    } = Pinned::sparse(context, Kind::Uring, "file", 256 * KIB)?;
    // A file that is open for writing is refused in any case.
    drop((map, file));
    let file = File::open(context.path("file"))?;
    match enable_verity(&file) {
        Ok(()) => bail!("fs-verity could be enabled on a pinned file"),
        Err(error) => diag!("enabling fs-verity with pins: {error}"),
    }
    device.unpin()?;
    enable_verity(&file).context("enabling fs-verity without pins")
}

fn shmem(_context: &Context) -> Result<()> {
    let file = uring::memory_file(c"pinned")?;
    file.set_len(MIB)?;
    let mut pinned = Pinned::new(Kind::Uring, file, Stamp::fresh())?;
    pinned.write(1)?;
    let expected = pinned.stamp.round(1).bytes(0, MIB as usize);
    if pinned.map.load(0, MIB as usize) != expected {
        bail!("the device's data is not in the mapping");
    }
    if let Ok(stats) = Stats::read() {
        if stats.get("pins") != 0 {
            bail!("the ledger counts {} pins of shmem", stats.get("pins"));
        }
    }
    pinned.device.unpin()
}

/// A file in the format of mkswap(8).
fn swap_file(context: &Context, name: &str, len: u64) -> Result<File> {
    const PAGE: u64 = 4 * KIB;
    let file = context.written(name, len, Stamp::fresh(), MIB as usize)?;
    let mut header = vec![0; PAGE as usize];
    // Version and number of the last page.
    header[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&((len / PAGE - 1) as u32).to_le_bytes());
    header[PAGE as usize - 10..].copy_from_slice(b"SWAPSPACE2");
    file.write_all_at(&header, 0)?;
    file.sync_all()?;
    Ok(file)
}

/// Swap space can't be pinned, and what is pinned can't be swap space.
fn swapon(context: &Context) -> Result<()> {
    const LEN: u64 = 4 * MIB;
    let file = swap_file(context, "file", LEN)?;
    let path = CString::new(context.path("file").as_os_str().as_encoded_bytes())?;
    let call = |call: unsafe fn(&CString) -> libc::c_int| {
        // SAFETY: both calls take a C string.
        match unsafe { call(&path) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: by the caller's promise.
    let on = || call(|path| unsafe { libc::swapon(path.as_ptr(), 0) });
    // SAFETY: as above.
    let off = || call(|path| unsafe { libc::swapoff(path.as_ptr()) });

    let pinned = Pinned::new(Kind::Uring, file, Stamp::fresh())?;
    let mut log = Kmsg::follow();
    match on() {
        Ok(()) => {
            off()?;
            bail!("swapping to a file with pins");
        }
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) => return Err(error).context("refused, but not with EBUSY"),
    }
    if log.wait_for("can't be swap space", 5).is_none() {
        bail!("nothing in the log");
    }
    // It can still be pinned once more.
    Kind::Uring.attach(&pinned.map, 0..LEN)?.unpin()?;
    let Pinned { device, map, .. } = pinned;
    device.unpin()?;
    on().context("swapon without pins")?;
    let refused = expect_refused(Kind::Uring, &map);
    off().context("swapoff")?;
    refused
}
