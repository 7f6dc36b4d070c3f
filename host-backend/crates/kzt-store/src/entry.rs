// SPDX-License-Identifier: GPL-2.0-or-later
//! The 8-byte entry that every slot of the index holds. docs/arena.md has the bits.

use crate::PAGE_SIZE;
use crate::layout::{HEADER, MAX_MEMORY};

/// Blocks of the spill file are multiples of this.
const GRAIN: u64 = 16;

/// Bits that tell what an entry is; offsets are multiples of 16 and leave them free.
const TAG_BITS: u32 = 3;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
/// What an entry that leads to a part of the index says lies below its check.
const LINK_BITS: u32 = 40;
const LINK_MASK: u64 = (1 << LINK_BITS) - 1;
const LEVEL_MASK: u64 = 0b111;
const FRAME_MASK: u64 = LINK_MASK & !0xfff;
/// Bits of a node's entry that are neither tag, level, frame nor check.
const NODE_UNUSED: u64 = 0xfc0;
/// Bits of a shared page's entry that are neither tag, record nor check.
const SHARED_UNUSED: u64 = 0x38;

const _: () = assert!(MAX_MEMORY <= 1 << LINK_BITS);

const TAG_BLOCK: u64 = 1;
const TAG_PATTERN: u64 = 2;
const TAG_NODE: u64 = 3;
const TAG_OBJECT: u64 = 4;
const TAG_TRIE: u64 = 5;
const TAG_POISON: u64 = 6;
const TAG_SHARED: u64 = 7;
/// Two kinds of entries share the last tag; the next bit tells them apart.
const TAG_SPILLED: u64 = 0xf;
const SPILLED_SHIFT: u32 = 4;
const LEN_SHIFT: u32 = SPILLED_SHIFT + 36;
const LEN_MASK: u64 = 0x1fff;
const SPILLED_CHECK_SHIFT: u32 = LEN_SHIFT + 13;

/// Levels a radix tree can have: 9 bits each, for 32-bit indices.
pub(crate) const MAX_LEVEL: u32 = 4;

/// What a slot of the index holds. Offsets are bytes from the arena's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Empty,
    /// A page in a block.
    Block(u64),
    /// A page that is one 32-bit word, repeated.
    Pattern(u32),
    /// A radix node of that level; level 1 holds pages.
    Node {
        frame: u64,
        level: u32,
    },
    /// An object's record.
    Object(u64),
    /// A node of an object directory.
    Trie(u64),
    /// A page whose block has other users: they share a record.
    Shared(u64),
    /// A page in a block of the spill file.
    Spilled(Spilled),
    /// Something that recovery found damaged: every page below answers with an error.
    Poison,
}

impl Entry {
    /// The word that says it in the slot at `at`. What has no block behind it that names its slot
    /// carries a check over the slot instead: a changed or misplaced word is no entry.
    pub(crate) fn encode(self, at: u64) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Block(offset) => offset | TAG_BLOCK,
            Self::Pattern(word) => {
                let entry = u64::from(word) << TAG_BITS | TAG_PATTERN;
                entry | pattern_check(at, word)
            }
            Self::Node { frame, level } => {
                link(at, frame | u64::from(level) << TAG_BITS | TAG_NODE)
            }
            Self::Object(offset) => link(at, offset | TAG_OBJECT),
            Self::Trie(offset) => link(at, offset | TAG_TRIE),
            Self::Shared(record) => link(at, record | TAG_SHARED),
            Self::Spilled(Spilled {
                position,
                len,
                check,
            }) => {
                (position / GRAIN) << SPILLED_SHIFT
                    | (len as u64) << LEN_SHIFT
                    | u64::from(check) << SPILLED_CHECK_SHIFT
                    | TAG_SPILLED
            }
            Self::Poison => TAG_POISON,
        }
    }

    /// Reads the word of the slot at `at`. One that no entry has there is damage.
    pub(crate) fn decode(bits: u64, at: u64) -> Self {
        let offset = bits & LINK_MASK & !TAG_MASK;
        let linked = link(at, bits & LINK_MASK) == bits;
        if bits & TAG_SPILLED == TAG_SPILLED {
            return Spilled::decode(bits).map_or(Self::Poison, Self::Spilled);
        }
        match bits & TAG_MASK {
            0 if bits == 0 => Self::Empty,
            TAG_BLOCK => Self::Block(bits & !TAG_MASK),
            TAG_PATTERN => {
                let entry = Self::Pattern((bits >> TAG_BITS) as u32);
                if entry.encode(at) == bits {
                    entry
                } else {
                    Self::Poison
                }
            }
            TAG_NODE if linked && bits & NODE_UNUSED == 0 => {
                let level = (bits >> TAG_BITS & LEVEL_MASK) as u32;
                if !(1..=MAX_LEVEL).contains(&level) {
                    return Self::Poison;
                }
                Self::Node {
                    frame: bits & FRAME_MASK,
                    level,
                }
            }
            TAG_OBJECT if linked => Self::Object(offset),
            TAG_TRIE if linked => Self::Trie(offset),
            TAG_SHARED if linked && bits & SHARED_UNUSED == 0 => Self::Shared(offset),
            _ => Self::Poison,
        }
    }
}

/// Where in the spill file a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spilled {
    /// Of its block, header first.
    pub(crate) position: u64,
    /// Bytes of payload.
    pub(crate) len: usize,
    /// Lowest bits of the block's checksum: a disk that has lost a write has an older block there,
    /// which may be sound and of the same page.
    check: u16,
}

impl Spilled {
    /// Positions are below this.
    pub(crate) const MAX_POSITION: u64 = GRAIN << 36;

    pub(crate) fn new(position: u64, len: usize, checksum: u32) -> Self {
        let check = (checksum & (u32::MAX >> (SPILLED_CHECK_SHIFT - 32))) as u16;
        Self {
            position,
            len,
            check,
        }
    }

    fn decode(bits: u64) -> Option<Self> {
        let len = (bits >> LEN_SHIFT & LEN_MASK) as usize;
        (1..=PAGE_SIZE).contains(&len).then_some(Self {
            position: (bits >> SPILLED_SHIFT) * GRAIN % Self::MAX_POSITION,
            len,
            check: (bits >> SPILLED_CHECK_SHIFT) as u16,
        })
    }

    /// Bytes that the block takes in the file.
    pub(crate) fn size(self) -> usize {
        Self::size_of(self.len)
    }

    /// Bytes that a block with such a payload takes.
    pub(crate) fn size_of(len: usize) -> usize {
        (HEADER + len).next_multiple_of(GRAIN as usize)
    }

    /// Whether a block with that checksum can be the one.
    pub(crate) fn agrees(self, checksum: u32) -> bool {
        self == Self::new(self.position, self.len, checksum)
    }
}

/// Adds the check to an entry that leads to a part of the index: 24 bits over the slot and what
/// is below. The product's upper bits change with any one bit of either.
fn link(at: u64, entry: u64) -> u64 {
    /// Odd, and without long runs of like bits.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let check = (entry ^ (at / 8) << (u64::BITS - 37)).wrapping_mul(FACTOR);
    entry | check & !LINK_MASK
}

/// The word at `at` that says in which frame a raw page is. It is no entry: no slot has one.
pub(crate) fn frame_link(frame: u64, at: u64) -> u64 {
    link(at, frame)
}

/// Reads such a word; `None` if it is damaged.
pub(crate) fn frame(bits: u64, at: u64) -> Option<u64> {
    let frame = bits & FRAME_MASK;
    (frame_link(frame, at) == bits).then_some(frame)
}

/// What guards a same-filled page: 29 bits over its word and its slot.
fn pattern_check(at: u64, word: u32) -> u64 {
    const SHIFT: u32 = TAG_BITS + u32::BITS;
    u64::from(crc32c::crc32c_append(word, &at.to_ne_bytes()) >> TAG_BITS) << SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x12_3456_7898;

    #[test]
    fn entries_survive_encoding() {
        let entries = [
            Entry::Empty,
            Entry::Block(0x1_2345_6780),
            Entry::Pattern(u32::MAX),
            Entry::Node {
                frame: 0xff_ffff_f000,
                level: MAX_LEVEL,
            },
            Entry::Object(64),
            Entry::Trie(128),
            Entry::Shared(0xff_ffff_ffc0),
            Entry::Spilled(Spilled::new(
                Spilled::MAX_POSITION - 16,
                PAGE_SIZE,
                u32::MAX,
            )),
            Entry::Spilled(Spilled::new(4096, 1, 0)),
            Entry::Poison,
        ];
        for entry in entries {
            assert_eq!(Entry::decode(entry.encode(AT), AT), entry);
        }
    }

    #[test]
    fn what_no_entry_can_be_is_poison() {
        let node = |frame: u64, level: u64| link(AT, frame | level << TAG_BITS | TAG_NODE);
        let spilled = |len: u64| len << LEN_SHIFT | TAG_SPILLED;
        for bits in [
            7,
            8,
            14,
            node(0, 0),
            node(0x1000, 5),
            node(0x1040, 1),
            spilled(0),
            spilled(4097),
        ] {
            assert_eq!(Entry::decode(bits, AT), Entry::Poison, "{bits:#x}");
        }
    }

    /// But for a page in a block, which names its slot itself, in the arena or the spill file.
    #[test]
    fn no_flipped_bit_and_no_other_slot_goes_unnoticed() {
        let frame = 0x5_a5a5_a000;
        for entry in [
            Entry::Pattern(0x5a5a_5a5a),
            Entry::Node { frame, level: 1 },
            Entry::Node { frame, level: 4 },
            Entry::Object(0x1_2345_6780),
            Entry::Trie(0xff_ffff_ff80),
            Entry::Shared(0xff_ffff_ffc0),
        ] {
            let bits = entry.encode(AT);
            for bit in 0..u64::BITS {
                let found = Entry::decode(bits ^ 1 << bit, AT);
                assert!(
                    matches!(found, Entry::Poison | Entry::Block(_) | Entry::Spilled(_)),
                    "{entry:?}, bit {bit}: {found:?}"
                );
            }
            for bit in 3..LINK_BITS {
                let found = Entry::decode(bits, AT ^ 1 << bit);
                assert_eq!(found, Entry::Poison, "{entry:?}, slot's bit {bit}");
            }
        }
    }
}
