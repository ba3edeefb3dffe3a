// SPDX-License-Identifier: GPL-2.0

//! io_uring as the device: READ_FIXED writes to the pinned pages through the kernel's own addresses, past
//! page tables and page faults, as a device does.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use anyhow::{bail, Context, Result};
use io_uring::{opcode, types, IoUring};

use crate::device::Dma;
use crate::map::Mapping;
use crate::stamp::Stamp;

const DEPTH: u32 = 16;
const CHUNK: u64 = 256 << 10;

/// A ring with one registered buffer, and a memory file that the buffer is filled from.
pub struct Uring {
    ring: IoUring,
    source: File,
    address: usize,
    range: Range<u64>,
}

/// An anonymous file on shmem.
pub fn memory_file(name: &std::ffi::CStr) -> io::Result<File> {
    // SAFETY: `name` is a C string; the new descriptor belongs to nobody else.
    unsafe {
        match libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(File::from_raw_fd(fd)),
        }
    }
}

/// fsync(2) or fdatasync(2) by a ring.
pub fn fsync(file: &File, data_only: bool) -> io::Result<()> {
    let mut ring = IoUring::new(1)?;
    let flags = match data_only {
        true => types::FsyncFlags::DATASYNC,
        false => types::FsyncFlags::empty(),
    };
    let sync = opcode::Fsync::new(types::Fd(file.as_raw_fd()))
        .flags(flags)
        .build();
    // SAFETY: the request has no buffers, and `file` stays open until it is complete.
    unsafe { ring.submission().push(&sync) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map(|entry| entry.result());
    match result {
        Some(error) if error < 0 => Err(io::Error::from_raw_os_error(-error)),
        Some(_) => Ok(()),
        None => Err(io::Error::other("no completion")),
    }
}

impl Uring {
    /// Registers `range` of `map` as buffer 0 of a new ring.
    pub fn register(map: &Mapping, range: Range<u64>) -> Result<Self> {
        let mut uring = Self::new()?;
        uring
            .pin(map, range)
            .context("cannot register the buffer with the io_uring")?;
        Ok(uring)
    }

    /// A ring without a buffer.
    pub fn new() -> Result<Self> {
        Ok(Self {
            ring: IoUring::new(DEPTH).context("cannot set up an io_uring")?,
            source: memory_file(c"pinwb-source")?,
            address: 0,
            range: 0..0,
        })
    }

    /// Registers `range` of `map` as buffer 0, with one system call and nothing else.
    pub fn pin(&mut self, map: &Mapping, range: Range<u64>) -> io::Result<()> {
        assert!(range.end <= map.len() as u64);
        let address = map.address() + range.start as usize;
        let buffer = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: (range.end - range.start) as usize,
        };
        // SAFETY: the range is mapped. The pins that the ring takes outlive the mapping if need be, and
        // what the ring writes is never borrowed.
        unsafe { self.ring.submitter().register_buffers(&[buffer]) }?;
        (self.address, self.range) = (address, range);
        Ok(())
    }

    /// Drops the registration, with one system call and nothing else. The ring can register again.
    pub fn unpin(&self) -> io::Result<()> {
        self.ring.submitter().unregister_buffers()
    }

    /// Fills `range` from `source`, which may be at any offset of any file.
    pub fn read_from(&mut self, source: &File, from: u64, range: Range<u64>) -> Result<()> {
        assert!(self.range.start <= range.start && range.end <= self.range.end);
        let mut next = range.start;
        let mut in_flight = 0;
        while next < range.end || in_flight > 0 {
            while next < range.end && in_flight < DEPTH {
                let len = CHUNK.min(range.end - next) as u32;
                let address = self.address + (next - self.range.start) as usize;
                let read = opcode::ReadFixed::new(
                    types::Fd(source.as_raw_fd()),
                    address as *mut u8,
                    len,
                    0,
                )
                .offset(from + (next - range.start))
                .build()
                .user_data(u64::from(len));
                // SAFETY: the buffer is registered for as long as the ring lives, and `source` stays
                // open until all is complete.
                unsafe { self.ring.submission().push(&read) }.context("submission queue full")?;
                next += u64::from(len);
                in_flight += 1;
            }
            self.ring.submit_and_wait(1)?;
            for entry in self.ring.completion() {
                in_flight -= 1;
                match entry.result() {
                    error if error < 0 => {
                        return Err(io::Error::from_raw_os_error(-error)).context("READ_FIXED");
                    }
                    len if len as u64 == entry.user_data() => {}
                    len => bail!("READ_FIXED: {len} bytes of {}", entry.user_data()),
                }
            }
        }
        Ok(())
    }
}

/// A ring with room for several registered buffers, which come and go.
pub struct BufferTable {
    ring: IoUring,
}

impl BufferTable {
    /// A ring with `slots` places for buffers.
    pub fn new(slots: u32) -> Result<Self> {
        let ring = IoUring::new(DEPTH).context("cannot set up an io_uring")?;
        ring.submitter()
            .register_buffers_sparse(slots)
            .context("cannot register a table of buffers")?;
        Ok(Self { ring })
    }

    fn set(&self, slot: u32, address: usize, len: usize) -> io::Result<()> {
        let buffer = libc::iovec {
            iov_base: address as *mut libc::c_void,
            iov_len: len,
        };
        // SAFETY: the caller says that the range is mapped. The pins outlive the mapping if need be, and
        // what the ring writes is never borrowed.
        unsafe {
            self.ring
                .submitter()
                .register_buffers_update(slot, &[buffer], None)
        }
    }

    /// Registers `range` of `map` for writing, in an empty slot.
    pub fn pin(&self, slot: u32, map: &Mapping, range: Range<u64>) -> io::Result<()> {
        assert!(range.end <= map.len() as u64);
        let address = map.address() + range.start as usize;
        self.set(slot, address, (range.end - range.start) as usize)
    }

    /// Empties a slot.
    pub fn unpin(&self, slot: u32) -> io::Result<()> {
        self.set(slot, 0, 0)
    }

    /// Writes `len` bytes of `source` through a slot, to what was pinned at `address`.
    pub fn write(
        &mut self,
        slot: u32,
        address: usize,
        len: u32,
        source: &File,
        from: u64,
    ) -> Result<()> {
        let read = opcode::ReadFixed::new(
            types::Fd(source.as_raw_fd()),
            address as *mut u8,
            len,
            slot as u16,
        )
        .offset(from)
        .build();
        // SAFETY: the kernel writes to what it pinned, and to nothing if the slot is empty; `source` stays
        // open until the read is complete, which is waited for here.
        unsafe { self.ring.submission().push(&read) }.context("submission queue full")?;
        self.ring.submit_and_wait(1)?;
        match self.ring.completion().next().map(|entry| entry.result()) {
            Some(error) if error < 0 => {
                Err(io::Error::from_raw_os_error(-error)).context("READ_FIXED")
            }
            Some(done) if done as u32 == len => Ok(()),
            done => bail!("READ_FIXED: {done:?} bytes of {len}"),
        }
    }
}

impl Drop for BufferTable {
    fn drop(&mut self) {
        // Closing the ring alone releases the pins from a work queue, some time later.
        let _ = self.ring.submitter().unregister_buffers();
    }
}

impl Dma for Uring {
    fn write(&mut self, stamp: Stamp, range: Range<u64>) -> Result<()> {
        let bytes = stamp.bytes(range.start, (range.end - range.start) as usize);
        self.source.write_all_at(&bytes, range.start)?;
        let source = self.source.try_clone()?;
        self.read_from(&source, range.start, range)
    }

    fn unpin(self: Box<Self>) -> Result<()> {
        Uring::unpin(&self).context("cannot unregister the buffer")
    }
}
