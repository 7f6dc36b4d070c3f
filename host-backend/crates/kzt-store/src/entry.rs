// SPDX-License-Identifier: GPL-2.0-or-later
//! The 8-byte entry that every slot of the index holds. docs/arena.md has the bits.

/// Bits that tell what an entry is; offsets are multiples of 16 and leave them free.
const TAG_BITS: u32 = 3;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
const CHECK_SHIFT: u32 = TAG_BITS + u32::BITS;
const LEVEL_MASK: u64 = 0b111;
const FRAME_MASK: u64 = !0xfff;

const TAG_BLOCK: u64 = 1;
const TAG_PATTERN: u64 = 2;
const TAG_NODE: u64 = 3;
const TAG_OBJECT: u64 = 4;
const TAG_TRIE: u64 = 5;
const TAG_POISON: u64 = 6;

/// Levels a radix tree can have: 9 bits each, for 32-bit indices.
pub(crate) const MAX_LEVEL: u32 = 4;

/// What a slot of the index holds. Offsets are bytes from the arena's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Empty,
    /// A page in a block.
    Block(u64),
    /// A page that is one 32-bit word, repeated.
    Pattern {
        word: u32,
        /// [`pattern_check`] of the word and the slot it is in.
        check: u32,
    },
    /// A radix node of that level; level 1 holds pages.
    Node {
        frame: u64,
        level: u32,
    },
    /// An object's record.
    Object(u64),
    /// A node of an object directory.
    Trie(u64),
    /// Something that recovery found damaged: every page below answers with an error.
    Poison,
}

impl Entry {
    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Block(offset) => offset | TAG_BLOCK,
            Self::Pattern { word, check } => {
                u64::from(check) << CHECK_SHIFT | u64::from(word) << TAG_BITS | TAG_PATTERN
            }
            Self::Node { frame, level } => frame | u64::from(level) << TAG_BITS | TAG_NODE,
            Self::Object(offset) => offset | TAG_OBJECT,
            Self::Trie(offset) => offset | TAG_TRIE,
            Self::Poison => TAG_POISON,
        }
    }

    /// Reads an entry. Bits that no entry has are damage.
    pub(crate) fn decode(bits: u64) -> Self {
        let offset = bits & !TAG_MASK;
        match bits & TAG_MASK {
            0 if bits == 0 => Self::Empty,
            TAG_BLOCK => Self::Block(offset),
            TAG_PATTERN => Self::Pattern {
                word: (bits >> TAG_BITS) as u32,
                check: (bits >> CHECK_SHIFT) as u32,
            },
            TAG_NODE => {
                let level = (bits >> TAG_BITS & LEVEL_MASK) as u32;
                let frame = bits & FRAME_MASK;
                if !(1..=MAX_LEVEL).contains(&level) || frame | bits & 0x3f != bits {
                    return Self::Poison;
                }
                Self::Node { frame, level }
            }
            TAG_OBJECT => Self::Object(offset),
            TAG_TRIE => Self::Trie(offset),
            _ => Self::Poison,
        }
    }
}

/// What guards a same-filled page, which has no block with a checksum: 29 bits over its word and
/// its slot.
pub(crate) fn pattern_check(slot: u64, word: u32) -> u32 {
    crc32c::crc32c_append(word, &slot.to_ne_bytes()) >> TAG_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_encoding_and_everything_else_is_poison() {
        let entries = [
            Entry::Empty,
            Entry::Block(0x1_2345_6780),
            Entry::Pattern {
                word: u32::MAX,
                check: pattern_check(8, u32::MAX),
            },
            Entry::Node {
                frame: 0xff_ffff_f000,
                level: MAX_LEVEL,
            },
            Entry::Object(64),
            Entry::Trie(128),
            Entry::Poison,
        ];
        for entry in entries {
            assert_eq!(Entry::decode(entry.encode()), entry);
        }
        for bits in [
            7,
            8,
            14,
            TAG_NODE,
            0x1000 | 5 << 3 | TAG_NODE,
            0x1040 | 1 << 3 | TAG_NODE,
        ] {
            assert_eq!(Entry::decode(bits), Entry::Poison, "{bits:#x}");
        }
    }
}
