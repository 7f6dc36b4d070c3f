// SPDX-License-Identifier: GPL-2.0-or-later
//! Where things are in the arena: header, pool table, block headers. docs/arena.md is the
//! description byte by byte; it and this file change together, with [`VERSION`].

use crate::codec::Encoding;

/// Version of everything docs/arena.md describes.
pub(crate) const VERSION: u32 = 2;
/// First word of every arena.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"KZTARENA");

/// Bytes of a frame: what the allocator and the radix nodes are made of.
pub(crate) const FRAME: u64 = 4096;
/// Bytes of an extent: what the host gives and takes back.
pub(crate) const EXTENT: u64 = 64 * 1024;
/// Frames of an extent.
pub(crate) const EXTENT_FRAMES: u32 = (EXTENT / FRAME) as u32;

/// Smallest arena: the header's extent and some room.
pub(crate) const MIN_MEMORY: u64 = 1 << 20;
/// Largest arena: a block header has 37 bits for an 8-byte word's position.
pub(crate) const MAX_MEMORY: u64 = 1 << 40;

/// Header words, by their offset.
pub(crate) mod header {
    /// Written last: without it the arena is not one yet.
    pub(crate) const MAGIC: u64 = 0;
    pub(crate) const VERSION: u64 = 8;
    pub(crate) const BOOT_ID: u64 = 16;
    pub(crate) const KEY: u64 = 32;
    /// CRC-32C of the words from `VERSION` to here.
    pub(crate) const CHECK: u64 = 56;
    /// For the reader of a dump: the limit and the codec of the last opening.
    pub(crate) const MEMORY: u64 = 64;
    pub(crate) const CODEC: u64 = 72;
    pub(crate) const CODEC_BYTES: usize = 16;
}

/// A slot of the pool table, which fills the first extent behind the header's frame. What
/// describes the pool is there twice: `table.rs`.
pub(crate) mod pool {
    use super::{EXTENT, FRAME};

    /// Number of a slot, and of the pool in it.
    pub(crate) type Number = u16;

    /// Slots there are.
    pub(crate) const SLOTS: u64 = (EXTENT - FRAME) / SLOT_BYTES;
    /// Bytes of a client's name, padded with zeros.
    pub(crate) const NAME_BYTES: usize = 32;
    const SLOT_BYTES: u64 = 128;

    /// The word whose store creates or destroys the pool, and its copy.
    pub(crate) const STATE: u64 = 0;
    pub(crate) const STATE_COPY: u64 = 64;
    /// Entry of the pool's object directory.
    pub(crate) const ROOT: u64 = 8;
    /// The client's name and the pool's UUID, and their copy.
    pub(crate) const NAME: u64 = 16;
    pub(crate) const NAME_COPY: u64 = 80;
    /// Bytes of name and UUID.
    pub(crate) const IDENTITY_BYTES: usize = NAME_BYTES + 16;

    /// A slot that is being cleared: its pool is no more.
    pub(crate) const ENDED: u64 = u64::from_le_bytes(*b"KZTENDED");

    /// Offset of a slot.
    pub(crate) const fn slot(number: u64) -> u64 {
        FRAME + number * SLOT_BYTES
    }

    /// Number of the slot at an offset that [`slot`] has returned.
    pub(crate) const fn number(slot: u64) -> Number {
        ((slot - FRAME) / SLOT_BYTES) as Number
    }
}

/// An object's record: id, check, and the root of its radix tree.
pub(crate) mod object {
    pub(crate) const ID: u64 = 0;
    pub(crate) const CHECK: u64 = 24;
    pub(crate) const ROOT: u64 = 32;
    pub(crate) const BYTES: usize = 40;
}

/// What pages that share a block have between their entries and it.
pub(crate) mod record {
    /// The block's entry.
    pub(crate) const ENTRY: u64 = 0;
    /// Hash of the stored page, and check.
    pub(crate) const HASH: u64 = 8;
    /// Entries that lead here; recovery counts them.
    pub(crate) const USERS: u64 = 16;
    /// The trust domain: a word for its kind, then its name.
    pub(crate) const DOMAIN: u64 = 24;
    pub(crate) const DOMAIN_WORDS: usize = 5;
    /// Bytes of a domain's name, padded with zeros.
    pub(crate) const NAME_BYTES: usize = 32;
    pub(crate) const BYTES: usize = 64;

    /// Offsets of a record's words for its domain.
    pub(crate) fn domain(record: u64) -> impl Iterator<Item = u64> {
        (0..DOMAIN_WORDS as u64).map(move |word| record + DOMAIN + word * 8)
    }

    /// The word at `HASH`: the hash below, a check of it, the domain and the place above.
    pub(crate) fn hash_word(record: u64, hash: u32, domain: &[u64; DOMAIN_WORDS]) -> u64 {
        let start = crc32c::crc32c_append(hash, &record.to_ne_bytes());
        let check = domain.iter().fold(start, |check, word| {
            crc32c::crc32c_append(check, &word.to_ne_bytes())
        });
        u64::from(check) << u32::BITS | u64::from(hash)
    }
}

/// A node of an object directory: 16 entries.
pub(crate) mod trie {
    pub(crate) const ENTRIES: u64 = 16;
    pub(crate) const BYTES: usize = 128;
}

/// Bytes before a block's payload: the location word and the check word.
pub(crate) const HEADER: usize = 16;
/// Offset of the check word: CRC-32C below, the stored page's hash (0: none) above.
pub(crate) const CHECK: u64 = 8;

/// Where blocks have their places. Those of a run of a size class are numbered from 0; the other
/// allocators have numbers that no such run reaches.
pub(crate) mod place {
    /// A frame's first block; its last has the next number.
    pub(crate) const ZBUD: u32 = 512;
    /// A raw page's header: where the page is, a word beside it says.
    pub(crate) const RAW: u32 = 514;
    /// A run of chunks, in its first frame; further frames have the next numbers.
    pub(crate) const XVMALLOC: u32 = 515;
}

/// A frame of raw pages' headers. Behind them are as many words, which say where the pages are.
pub(crate) mod raw {
    use super::{FRAME, HEADER};

    /// Headers of a frame.
    pub(crate) const HEADERS: u64 = FRAME / (HEADER as u64 + WORD);
    const WORD: u64 = size_of::<u64>() as u64;

    /// Bytes that a raw page has besides what each block has.
    pub(crate) const BYTES: u64 = WORD;

    /// Offset of the word for a header.
    pub(crate) const fn frame_word(header: u64) -> u64 {
        let (number, frame) = (header % FRAME / HEADER as u64, header - header % FRAME);
        frame + HEADERS * HEADER as u64 + number * WORD
    }
}

/// The hash in a check word.
pub(crate) fn hash_of(check: u64) -> u32 {
    (check >> u32::BITS) as u32
}

/// A block's location word: encoding, length, place in its run, back-reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) encoding: Encoding,
    /// Bytes of payload.
    pub(crate) len: usize,
    /// Number of the block in its run.
    pub(crate) place: u32,
    /// Offset of the index slot that holds the block's entry.
    pub(crate) slot: u64,
}

impl Location {
    const LEN_SHIFT: u32 = 3;
    const PLACE_SHIFT: u32 = 16;
    const SLOT_SHIFT: u32 = 26;

    pub(crate) fn encode(self) -> u64 {
        self.encoding as u64
            | (self.len as u64) << Self::LEN_SHIFT
            | u64::from(self.place) << Self::PLACE_SHIFT
            | (self.slot / 8) << Self::SLOT_SHIFT
    }

    /// Reads a location word; `None` if no block can have it.
    pub(crate) fn decode(bits: u64) -> Option<Self> {
        let encoding = Encoding::from_bits(bits & 0x7)?;
        let len = (bits >> Self::LEN_SHIFT & 0x1fff) as usize;
        let place = (bits >> Self::PLACE_SHIFT & 0x3ff) as u32;
        let slot = (bits >> Self::SLOT_SHIFT & 0x1f_ffff_ffff) * 8;
        let location = Self {
            encoding,
            len,
            place,
            slot,
        };
        (encoding.admits(len) && location.encode() == bits).then_some(location)
    }

    /// CRC-32C of the payload and of how to read it: a wrong encoding is caught before a
    /// decoder sees the bytes. It leaves out where the block is, so that moving one is a copy.
    pub(crate) fn checksum(encoding: Encoding, payload: &[u8]) -> u32 {
        let start = encoding as u32 | (payload.len() as u32) << Self::LEN_SHIFT;
        crc32c::crc32c_append(start, payload)
    }
}
