// SPDX-License-Identifier: GPL-2.0-or-later
use std::fs::File;
use std::io;

use rustix::fs::{SealFlags, fcntl_get_seals};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

/// Bytes a frontend may have mapped here: many guests of any sensible size fit into the address
/// space, and one that lies about its size does not fill it for the others.
const MAX_MAPPED: u64 = 1 << 40;

/// The guest's memory as its QEMU has shared it.
pub(super) struct Memory {
    pub(super) guest: GuestMemoryMmap,
    /// QEMU names queues by its own addresses: start, length and what the guest calls the start.
    translations: Vec<(u64, u64, u64)>,
}

impl Memory {
    /// Maps a table of regions.
    ///
    /// Only memory that cannot shrink is taken: touching a mapping whose file has been cut short
    /// would kill this process, and every client with it.
    pub(super) fn map(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> io::Result<Self> {
        let mut mapped = Vec::with_capacity(regions.len());
        let mut translations = Vec::with_capacity(regions.len());
        let mut total = 0_u64;
        for (region, file) in regions.iter().zip(files) {
            let (guest, size) = (region.guest_phys_addr, region.memory_size);
            let (user, offset) = (region.user_addr, region.mmap_offset);
            total = total.saturating_add(size);
            if total > MAX_MAPPED {
                return Err(invalid("more memory than a terabyte"));
            }
            let seals = fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
            if !seals.contains(SealFlags::SHRINK) {
                return Err(invalid(
                    "memory that is not a memfd sealed against shrinking",
                ));
            }
            if offset
                .checked_add(size)
                .is_none_or(|end| end > file.metadata().map_or(0, |metadata| metadata.len()))
            {
                return Err(invalid("a region beyond the end of its file"));
            }
            let size = usize::try_from(size).map_err(io::Error::other)?;
            let mapping = MmapRegion::from_file(FileOffset::new(file, offset), size)
                .map_err(io::Error::other)?;
            mapped.push(
                GuestRegionMmap::new(mapping, GuestAddress(guest))
                    .ok_or_else(|| invalid("a region beyond the end of the address space"))?,
            );
            translations.push((user, size as u64, guest));
        }
        mapped.sort_by_key(GuestRegionMmap::start_addr);
        Ok(Self {
            guest: GuestMemoryMmap::from_regions(mapped).map_err(io::Error::other)?,
            translations,
        })
    }

    /// The guest's address of what has an address in QEMU.
    pub(super) fn translate(&self, address: u64) -> Option<GuestAddress> {
        self.translations.iter().find_map(|&(user, size, guest)| {
            let offset = address.checked_sub(user)?;
            (offset < size).then_some(GuestAddress(guest + offset))
        })
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
