// SPDX-License-Identifier: GPL-2.0-or-later
//! The 8-byte entry that every slot of the index holds. docs/arena.md has the bits.

/// Bits that tell what an entry is; offsets are multiples of 16 and leave them free.
const TAG_BITS: u32 = 3;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
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
    /// A same-filled page whose word survives the loss of its upper bits.
    Pattern(u64),
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
    /// The entry of a same-filled page, if its word can be had back from 61 bits.
    pub(crate) fn pattern(word: u64) -> Option<Self> {
        let entry = Self::Pattern(word);
        (Self::decode(entry.encode()) == entry).then_some(entry)
    }

    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Block(offset) => offset | TAG_BLOCK,
            Self::Pattern(word) => word << TAG_BITS | TAG_PATTERN,
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
            TAG_PATTERN => {
                // Sign-extending keeps patterns like all-ones inline.
                let sign = if bits >> 63 == 0 {
                    0
                } else {
                    !(u64::MAX >> TAG_BITS)
                };
                Self::Pattern(bits >> TAG_BITS | sign)
            }
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
