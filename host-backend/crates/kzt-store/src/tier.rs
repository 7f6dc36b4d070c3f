// SPDX-License-Identifier: GPL-2.0-or-later
//! Which pages leave memory for the disk tier: the coldest, a run of frames at a time.
//!
//! A hand goes round over the runs, as a clock's: a run in which a page was got since the hand's last
//! visit loses its mark and stays, any other is written out with all its pages, so that its frames
//! come free. A put makes no mark: what is put is what a guest did not need, and new runs are where
//! the hand has just been. Pages are copied under their pool's lock, or that of the record they share,
//! written without any, and their entries swing only where nothing has changed meanwhile.

use crate::entry::Entry;
use crate::owner::Owned;
use crate::space::{Held, Space};
use crate::spill::{Batch, Written};

/// With less of the frames than this part free, pages are written ahead of need.
const AHEAD: u64 = 64;
/// Batches spent on making room in the file before one for memory is given up.
const ROUNDS: u32 = 8;

impl Space {
    /// Notes that the page whose payload is at `offset` was got.
    pub(crate) fn touch(&self, offset: u64) {
        if self.spill.is_some() {
            self.frames.at(offset).warm();
        }
    }

    /// Writes a batch of cold pages if memory is about to become short; whether it did.
    pub(crate) fn spill_ahead(&self) -> bool {
        self.spill.is_some() && self.frames.scarce(AHEAD) && self.spill()
    }

    /// Writes a batch of cold pages into the spill file; whether any left memory, through this call
    /// or through another one that it waited for.
    ///
    /// The caller holds no pool's lock, whose holder never waits for this: so the disk holds up
    /// only who needs memory now.
    pub(crate) fn spill(&self) -> bool {
        let Some(spill) = &self.spill else {
            return false;
        };
        let Some(mut batch) = spill.begin() else {
            return true;
        };
        if batch.is_pausing() {
            return false;
        }
        for _ in 0..ROUNDS {
            if batch.has_room() {
                self.gather(&mut batch);
                return batch.write(|page| self.swing(&page)) > 0;
            }
            batch.collect(|slot, hash, at| self.with_spilled(slot, hash, at, |_| ()).is_some());
            if batch.write(|page| self.swing(&page)) == 0 {
                break;
            }
        }
        false
    }

    /// Fills a batch with the pages of cold runs.
    fn gather(&self, batch: &mut Batch<'_>) {
        let count = self.frames.count();
        // The second time round no run is marked but by what is in use right now.
        for _ in 0..2 * u64::from(count) {
            let run = *batch.hand() % count;
            if batch.is_full() || !self.gather_run(run, batch) {
                break;
            }
            *batch.hand() = run + 1;
        }
    }

    /// Adds the pages of the run that begins with a frame, if one does and it is cold. `false`: the
    /// batch had no room for all of them; the next one goes on here.
    fn gather_run(&self, run: u32, batch: &mut Batch<'_>) -> bool {
        let _watch = self.frames.watch();
        let Some(frames) = self.pam.run(run) else {
            return true;
        };
        if self.frames.cool(run, frames) {
            return true;
        }
        let mut fits = true;
        self.pam.blocks(run, &mut |offset| {
            let add = |page: Owned<'_>| {
                // Pages that may vanish are cheaper to evict.
                page.is_ephemeral()
                    || batch.add(Entry::Block(offset), page.location, |block| {
                        block.fill(0);
                        self.read_block(offset, page.location, block);
                    })
            };
            // Whoever is busy keeps its page.
            fits &= self.with_owner(offset, add).unwrap_or(true);
            fits
        });
        fits
    }

    /// Has a page's entry lead to where it has been written, unless it changed meanwhile.
    fn swing(&self, page: &Written<'_>) -> bool {
        let slot = page.location.slot;
        let (entry, held) = (Entry::Spilled(page.new), Held::spilled(page.new));
        let swung = match page.old {
            Entry::Block(offset) => self.with_slot(slot, page.hash, |owned| {
                // Even in the same place it may be another page by now.
                let same =
                    owned.offset == offset && self.is_block(offset, page.location, page.block);
                if same {
                    // A record keeps its own for as long as it lives.
                    if !owned.is_shared() {
                        self.remove_hint(offset);
                    }
                    owned.replace(entry, held);
                }
                same
            }),
            Entry::Spilled(at) => self.with_spilled(slot, page.hash, at, |state| {
                self.publish(slot, page.old, entry);
                let freed = self.release(page.old);
                // A record's users hold what they did.
                if let Some(state) = state {
                    state.held += held;
                    state.held -= freed;
                }
                true
            }),
            _ => None,
        };
        swung.unwrap_or(false)
    }
}
