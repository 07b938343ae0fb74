//! Guest memory: the regions that QEMU shares, and addresses in them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A region as vhost-user describes it. All numbers are bytes.
#[derive(Clone, Copy)]
pub struct RegionInfo {
    pub guest_address: u64,
    pub size: u64,
    /// Where the region is in QEMU's own address space: ring addresses are given so.
    pub qemu_address: u64,
    pub file_offset: u64,
}

struct Region {
    info: RegionInfo,
    /// The mapping: it starts at the file's beginning, `file_offset` bytes before the region.
    mapping: *mut u8,
    mapping_size: usize,
}

impl Region {
    fn map(info: RegionInfo, file: &OwnedFd) -> io::Result<Self> {
        let total = info
            .file_offset
            .checked_add(info.size)
            .and_then(|n| usize::try_from(n).ok());
        let mapping_size = total.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping of a descriptor that QEMU gave us for this.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapping_size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            info,
            mapping: address.cast(),
            mapping_size,
        })
    }

    fn at(&self, start: u64, address: u64, size: u64) -> Option<*mut u8> {
        let offset = address.checked_sub(start)?;
        if offset.checked_add(size)? > self.info.size {
            return None;
        }
        // SAFETY: file_offset + offset + size lies in the mapping, which `map` made that long.
        Some(unsafe { self.mapping.add((self.info.file_offset + offset) as usize) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and pointers into it never outlive one event of the loop.
        unsafe { libc::munmap(self.mapping.cast(), self.mapping_size) };
    }
}

/// All regions. Pointers that it gives are valid until the table changes.
#[derive(Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    /// Takes the place of every region before. The descriptors may be closed afterwards.
    pub fn replace(&mut self, regions: &[(RegionInfo, OwnedFd)]) -> io::Result<()> {
        let mapped: io::Result<Vec<Region>> = regions.iter().map(|(info, file)| Region::map(*info, file)).collect();
        self.regions = mapped?;
        Ok(())
    }

    pub fn add(&mut self, info: RegionInfo, file: &OwnedFd) -> io::Result<()> {
        self.regions.push(Region::map(info, file)?);
        Ok(())
    }

    pub fn remove(&mut self, guest_address: u64) {
        self.regions.retain(|r| r.info.guest_address != guest_address);
    }

    /// `size` bytes at a guest address; `None` when they are not in one region.
    pub fn guest(&self, address: u64, size: u64) -> Option<*mut u8> {
        self.regions
            .iter()
            .find_map(|r| r.at(r.info.guest_address, address, size))
    }

    /// `size` bytes at an address of QEMU's.
    pub fn qemu(&self, address: u64, size: u64) -> Option<*mut u8> {
        self.regions
            .iter()
            .find_map(|r| r.at(r.info.qemu_address, address, size))
    }
}
