// SPDX-License-Identifier: GPL-2.0-or-later
//! The arena's header: what a file is, and how it becomes an arena.

use std::path::Path;
use std::{fs, io};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::arena::{Arena, ArenaFile};
use crate::error::OpenError;
use crate::layout::{self, EXTENT, header};
use crate::store::Origin;

/// What the file is, before anything of it is mapped.
pub(crate) fn inspect(file: &ArenaFile, path: &Path, boot: [u64; 2]) -> Result<Origin, OpenError> {
    let foreign = || OpenError::NotAnArena { path: path.into() };
    if file.len == 0 {
        return Ok(Origin::New);
    }
    if !(EXTENT..=layout::MAX_MEMORY).contains(&file.len) {
        return Err(foreign());
    }
    let mut bytes = vec![0; EXTENT as usize];
    file.read_start(&mut bytes)
        .map_err(OpenError::io(path, "read"))?;
    let word = |offset: u64| {
        let chunk = bytes.get(offset as usize..).and_then(<[u8]>::first_chunk);
        u64::from_ne_bytes(chunk.copied().unwrap_or_default())
    };
    let (magic, version) = (word(header::MAGIC), word(header::VERSION));
    if magic == 0 {
        // Its creator died before there was an arena; but then there is nothing else in it.
        let ours = header::VERSION as usize..header::MEMORY as usize;
        let mut rest = (0..).zip(&bytes).filter(|(at, _)| !ours.contains(at));
        let begun = version <= layout::VERSION.into()
            && rest.all(|(_, byte)| *byte == 0)
            && !file.has_data(EXTENT).map_err(OpenError::io(path, "seek"))?;
        return begun.then_some(Origin::New).ok_or_else(foreign);
    }
    if magic != layout::MAGIC {
        return Err(foreign());
    }
    if version != u64::from(layout::VERSION) {
        return Err(u32::try_from(version).map_or_else(
            |_| foreign(),
            |found| OpenError::Version {
                path: path.into(),
                found,
                expected: layout::VERSION,
            },
        ));
    }
    let checked = bytes
        .get(header::VERSION as usize..header::CHECK as usize)
        .unwrap_or_default();
    if word(header::CHECK) != u64::from(crc32c::crc32c(checked)) {
        return Err(foreign());
    }
    let same_boot = [word(header::BOOT_ID), word(header::BOOT_ID + 8)] == boot;
    Ok(if same_boot {
        Origin::Recovered
    } else {
        Origin::Reboot
    })
}

/// Writes a new arena's header. The magic comes last: it makes it an arena.
pub(crate) fn format(arena: &Arena, boot: [u64; 2]) -> io::Result<()> {
    let mut key = [0_u8; 24];
    // 256 bytes or less come in one piece.
    getrandom(&mut key, GetRandomFlags::empty())?;
    let mut words = Vec::with_capacity((header::CHECK - header::VERSION) as usize);
    words.extend(u64::from(layout::VERSION).to_ne_bytes());
    words.extend(boot.into_iter().flat_map(u64::to_ne_bytes));
    words.extend(key);
    arena.write(header::VERSION, &words);
    arena.store(header::CHECK, u64::from(crc32c::crc32c(&words)));
    arena.store(header::MAGIC, layout::MAGIC);
    Ok(())
}

/// The host's boot id: tmpfs content does not outlive it.
pub(crate) fn boot_id() -> io::Result<[u64; 2]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = u128::from_str_radix(&text.trim().replace('-', ""), 16).map_err(io::Error::other)?;
    Ok([(id >> 64) as u64, id as u64])
}
