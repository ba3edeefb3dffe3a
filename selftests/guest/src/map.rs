// SPDX-License-Identifier: GPL-2.0

//! Shared file mappings and aligned anonymous memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// Bytes in a page of the only architecture that the guests have.
pub const PAGE: usize = 4096;

/// A mapping that is removed when dropped. Devices and other threads write to it at any time, so its
/// bytes are only ever copied, never borrowed.
pub struct Mapping {
    address: *mut u8,
    len: usize,
}

// SAFETY: the type gives out copies of the bytes and an address; it holds no reference to them.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent copies race in their contents only, which the tests expect.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: i32, flags: i32, offset: u64, len: usize) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no existing mapping is touched.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset as libc::off_t,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            address: address.cast(),
            len,
        })
    }

    /// Maps `len` bytes of `file` from byte `offset` on, shared and writable.
    pub fn shared(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        Self::new(file.as_raw_fd(), libc::MAP_SHARED, offset, len)
    }

    /// Anonymous memory, page aligned as O_DIRECT wants it.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        Self::new(-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0, len)
    }

    /// Where the mapping starts.
    pub fn address(&self) -> usize {
        self.address as usize
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No fault-around and no readahead: each page that is touched gets a folio of its own.
    pub fn advise_random(&self) {
        let _ = self.advise(libc::MADV_RANDOM);
    }

    /// madvise(2) of the whole mapping.
    pub fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is the mapping itself, and no caller's advice drops its contents.
        match unsafe { libc::madvise(self.address.cast(), self.len, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// mlock(2) of the whole mapping.
    pub fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping itself; its contents stay.
        match unsafe { libc::mlock(self.address.cast(), self.len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// munlock(2) of the whole mapping.
    pub fn unlock(&self) -> io::Result<()> {
        // SAFETY: as for lock().
        match unsafe { libc::munlock(self.address.cast(), self.len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// How many pages are in memory, mapped or not: mincore(2).
    pub fn cached(&self) -> io::Result<usize> {
        let mut pages = vec![0; self.len.div_ceil(PAGE)];
        // SAFETY: there is a byte for each page of the range, which is the mapping itself.
        match unsafe { libc::mincore(self.address.cast(), self.len, pages.as_mut_ptr()) } {
            0 => Ok(pages.iter().filter(|page| **page & 1 != 0).count()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Moves the mapping to another address by mremap(2).
    pub fn relocate(&mut self) -> io::Result<()> {
        let room = Self::anonymous(self.len)?;
        // SAFETY: what is mapped at the new address is `room`, which goes; nothing borrows from either.
        let moved = unsafe {
            libc::mremap(
                self.address.cast(),
                self.len,
                self.len,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                room.address.cast::<libc::c_void>(),
            )
        };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.address = moved.cast();
        // The address is this mapping's now.
        std::mem::forget(room);
        Ok(())
    }

    /// A store by the CPU.
    pub fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: the range is inside the mapping; `bytes` is private memory, so they don't overlap.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.add(offset), bytes.len());
        }
    }

    /// A copy of what the CPU sees.
    pub fn load(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.load_into(offset, &mut bytes);
        bytes
    }

    /// As [`Mapping::load`], into a buffer that exists already.
    pub fn load_into(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: the range is inside the mapping; `bytes` is private memory, so they don't overlap.
        unsafe {
            ptr::copy_nonoverlapping(self.address.add(offset), bytes.as_mut_ptr(), bytes.len());
        }
    }

    /// pread(2) of `len` bytes of `file` from byte `at` on, to the start of the mapping.
    pub fn read_from(&self, file: &File, len: usize, at: u64) -> io::Result<usize> {
        assert!(len <= self.len);
        // SAFETY: the range is inside the mapping, whose bytes nothing borrows.
        let read = unsafe { libc::pread(file.as_raw_fd(), self.address.cast(), len, at as i64) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// pwrite(2) of the first `len` bytes of the mapping to byte `at` of `file`.
    pub fn write_to(&self, file: &File, len: usize, at: u64) -> io::Result<usize> {
        assert!(len <= self.len);
        // SAFETY: the range is inside the mapping.
        let written =
            unsafe { libc::pwrite(file.as_raw_fd(), self.address.cast(), len, at as i64) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Reads one byte of each page, so that all are mapped.
    pub fn touch(&self) {
        for offset in (0..self.len).step_by(PAGE) {
            // SAFETY: inside the mapping.
            unsafe { self.address.add(offset).read_volatile() };
        }
    }

    /// msync(MS_SYNC) of the whole mapping.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping itself.
        match unsafe { libc::msync(self.address.cast(), self.len, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing borrows from it.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}
