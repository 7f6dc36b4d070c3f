// SPDX-License-Identifier: GPL-2.0-or-later
//! Compaction: the blocks of runs that are mostly empty move to fuller ones, and whole runs come free.

use crate::entry::Entry;
use crate::layout::Location;
use crate::pam::Need;
use crate::space::{Held, Space};

impl Space {
    /// Empties a few runs; how many. Takes no lock for longer than a block's move, and leaves alone
    /// what is in use at the moment.
    pub(crate) fn compact(&self, need: Need) -> u32 {
        let _watch = self.frames.watch();
        self.pam.compact(need, &|from, to| {
            self.with_owner(from, |page| {
                let target = to()?;
                let location = Location {
                    place: target.place,
                    ..page.location
                };
                self.copy_block(from, page.location, target);
                self.arena.store(target.offset, location.encode());
                page.replace(Entry::Block(target.offset), Held::block(location));
                Some(())
            })
            .flatten()
            .is_some()
        })
    }
}
