// SPDX-License-Identifier: GPL-2.0-or-later
//! Blocks: a header, and a payload right behind it or, if that is a raw page, in a frame of its own.

use crate::dedup::Payload;
use crate::layout::{CHECK, HEADER, Location, place};
use crate::pam::Block;
use crate::space::Space;

impl Space {
    /// Where the payload is of a block that is in use.
    pub(crate) fn payload(&self, offset: u64, place: u32) -> u64 {
        if place == place::RAW {
            self.pam.raw().page(offset)
        } else {
            offset + HEADER as u64
        }
    }

    /// Writes a page into a block, which nothing refers to yet and whose location comes last.
    pub(crate) fn write_block(&self, block: Block, payload: Payload<'_>) {
        self.arena.store(block.offset + CHECK, payload.check);
        let to = self.payload(block.offset, block.place);
        self.arena.write(to, payload.bytes);
    }

    /// Copies a block out, header and payload one behind the other; `out` has room for both, in whole words.
    pub(crate) fn read_block(&self, offset: u64, location: Location, out: &mut [u8]) {
        let len = location.len.next_multiple_of(8);
        if let Some((header, rest)) = out.split_at_mut_checked(HEADER) {
            self.arena.read(offset, header);
            let from = self.payload(offset, location.place);
            self.arena
                .read(from, rest.get_mut(..len).unwrap_or_default());
        }
    }

    /// Whether a block has that header and payload, one behind the other.
    pub(crate) fn is_block(&self, offset: u64, location: Location, bytes: &[u8]) -> bool {
        bytes
            .split_at_checked(HEADER)
            .is_some_and(|(header, rest)| {
                let payload = rest.get(..location.len);
                self.arena.holds(offset, header)
                    && payload.is_some_and(|bytes| {
                        let at = self.payload(offset, location.place);
                        self.arena.holds(at, bytes)
                    })
            })
    }

    /// Copies a block to where nothing refers to yet, but for what says where it is. A raw page stays.
    pub(crate) fn copy_block(&self, from: u64, location: Location, to: Block) {
        let behind = if to.place == place::RAW {
            0
        } else {
            location.len
        };
        let bytes = HEADER - CHECK as usize + behind;
        self.arena.copy(from + CHECK, to.offset + CHECK, bytes);
    }
}
