// SPDX-License-Identifier: GPL-2.0-or-later
//! Raw pages: each fills a frame of its own, and its header is elsewhere, in a frame of headers.
//!
//! Beside each header there is a word in the arena that says which frame the page is in: for
//! recovery. This process has its own list of that, and believes it alone. A header can move, and
//! its page stays where it is.
//!
//! A frame of headers is taken when all others are full. So there are never more than all pages
//! need, and one that is being emptied.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::entry;
use crate::frames::{Frames, Use};
use crate::layout::pool::Number as PoolNumber;
use crate::layout::raw::{HEADERS, frame_word};
use crate::layout::{FRAME, HEADER, place};
use crate::pam::{Block, Need, Pam, Target};
use crate::runs::Runs;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicU32;
use crate::{PAGE_SIZE, lock};

/// Bytes of the only kind of block there is.
pub(crate) const BLOCK: usize = HEADER + PAGE_SIZE;

/// The allocator.
pub(crate) struct Raw {
    frames: Arc<Frames>,
    /// For each header of each frame of headers the frame of its page; 0: it is free. The frame's
    /// record has the list's number.
    lists: Box<[AtomicU32]>,
    state: Mutex<State>,
}

struct State {
    /// Frames of headers.
    headers: Runs,
    /// Numbers of the lists that no frame has.
    free: Vec<u32>,
}

fn frame_of(header: u64) -> u32 {
    (header / FRAME) as u32
}

/// A header's number in its frame.
fn number(header: u64) -> u64 {
    header % FRAME / HEADER as u64
}

impl Raw {
    pub(crate) fn new(frames: Arc<Frames>) -> Self {
        let lists = frames.count() / (HEADERS as u32 + 1) + 2;
        let pages = lists as usize * HEADERS as usize;
        Self {
            frames,
            lists: iter::repeat_with(AtomicU32::default).take(pages).collect(),
            state: Mutex::new(State {
                headers: Runs::NONE,
                free: (0..lists).rev().collect(),
            }),
        }
    }

    /// Pages there are.
    pub(crate) fn pages(&self) -> u64 {
        lock(&self.state).headers.used.into()
    }

    /// Offset of the page whose header is in a place; 0 if none is.
    pub(crate) fn page(&self, header: u64) -> u64 {
        let page = self.entry(header).map_or(0, |page| page.load(Relaxed));
        u64::from(page) * FRAME
    }

    /// A header's place in its frame's list; `None` if no header can be there.
    fn entry(&self, header: u64) -> Option<&AtomicU32> {
        let frame = self.frames.get(header)?;
        let list = frame.bitmap.load(Relaxed) as usize;
        let known = frame.usage() == Use::Headers && number(header) < HEADERS;
        let place = list * HEADERS as usize + number(header) as usize;
        known.then(|| self.lists.get(place)).flatten()
    }

    /// Gives a frame of headers its list.
    fn begin(&self, state: &mut State, frame: u32, list: u32) {
        self.frames.frame(frame).bitmap.store(list.into(), Relaxed);
        state.headers.count += 1;
    }

    /// Notes that a header is a page's.
    fn join(&self, state: &mut State, header: u64, page: u32) {
        if let Some(entry) = self.entry(header) {
            entry.store(page, Relaxed);
        }
        self.frames.frame(page).bitmap.store(header, Relaxed);
        let used = &self.frames.at(header).used;
        used.store(used.load(Relaxed) + 1, Relaxed);
        state.headers.used += 1;
    }

    fn is_full(&self, frame: u32) -> bool {
        u64::from(self.frames.frame(frame).used.load(Relaxed)) == HEADERS
    }

    /// Takes a header for a page from the first frame that has room.
    fn take(&self, state: &mut State, page: u32) -> Option<Block> {
        let frame = state.headers.with_room()?;
        let offset = headers(frame).find(|header| self.page(*header) == 0)?;
        let word = frame_word(offset);
        let link = entry::frame_link(u64::from(page) * FRAME, word);
        self.frames.arena().store(word, link);
        self.join(state, offset, page);
        if self.is_full(frame) {
            state.headers.filled(&self.frames, frame);
        }
        Some(Block {
            offset,
            place: place::RAW,
        })
    }

    /// Takes another header for the page whose header is in use.
    fn beside(&self, header: u64) -> Option<Block> {
        let mut state = lock(&self.state);
        match frame_of(self.page(header)) {
            0 => None,
            page => self.take(&mut state, page),
        }
    }
}

/// All headers of a frame.
fn headers(frame: u32) -> impl Iterator<Item = u64> {
    (0..HEADERS).map(move |number| u64::from(frame) * FRAME + number * HEADER as u64)
}

impl Pam for Raw {
    fn allocate(&self, _pool: PoolNumber, bytes: usize) -> Option<Block> {
        debug_assert_eq!(bytes, BLOCK);
        let page = self.frames.allocate(1, Use::Raw)?;
        let mut state = lock(&self.state);
        if state.headers.with_room().is_none() {
            let list = state.free.last().copied();
            let Some((list, frame)) = list.zip(self.frames.allocate(1, Use::Headers)) else {
                self.frames.free(page, 1);
                return None;
            };
            state.free.pop();
            self.begin(&mut state, frame, list);
            state.headers.open(&self.frames, frame);
        }
        self.take(&mut state, page)
    }

    fn free(&self, offset: u64) {
        let mut state = lock(&self.state);
        let page = self.entry(offset).map_or(0, |page| page.swap(0, Relaxed));
        debug_assert!(page != 0, "a block is freed once");
        if page == 0 {
            return;
        }
        // A page whose header has moved stays.
        if self.frames.frame(page).bitmap.load(Relaxed) == offset {
            self.frames.free(page, 1);
        }
        let frame = frame_of(offset);
        let full = self.is_full(frame);
        let record = self.frames.frame(frame);
        let used = record.used.load(Relaxed) - 1;
        record.used.store(used, Relaxed);
        state.headers.freed(&self.frames, frame, full, used == 0);
        if used == 0 {
            state.free.push(record.bitmap.load(Relaxed) as u32);
            self.frames.free(frame, 1);
        }
    }

    fn compact(&self, need: Need, move_to: &dyn Fn(u64, Target<'_>) -> bool) -> u32 {
        let isolated = lock(&self.state)
            .headers
            .isolate(&self.frames, HEADERS as u32, need);
        let Some(frame) = isolated else {
            return 0;
        };
        for header in headers(frame) {
            let target = || self.beside(header);
            if self.page(header) != 0 && !move_to(header, &target) {
                break;
            }
        }
        u32::from(lock(&self.state).headers.restore(&self.frames, frame))
    }

    fn run(&self, frame: u32) -> Option<u32> {
        (self.frames.frame(frame).usage() == Use::Raw).then_some(1)
    }

    fn blocks(&self, run: u32, f: &mut dyn FnMut(u64) -> bool) {
        let header = self.frames.frame(run).bitmap.load(Relaxed);
        // The page's header may be on its way.
        if self.run(run).is_some() && header != 0 {
            f(header);
        }
    }

    fn claim(
        &self,
        _pool: PoolNumber,
        block: Block,
        bytes: usize,
        present: &dyn Fn(u32) -> bool,
    ) -> bool {
        let header = block.offset;
        let aligned = header % HEADER as u64 == 0 && number(header) < HEADERS;
        let Some(record) = self.frames.get(header) else {
            return false;
        };
        if bytes != BLOCK || block.place != place::RAW || !aligned {
            return false;
        }
        let mut state = lock(&self.state);
        let frame = frame_of(header);
        let list = state.free.last().copied();
        let known = record.usage() == Use::Headers;
        let claimable = self.frames.is_claimable(frame, 1, present) && list.is_some();
        if !known && !claimable {
            return false;
        }
        // Now what the word says has content.
        let word = frame_word(header);
        let page = entry::frame(self.frames.arena().load(word), word).map(frame_of);
        let Some(page) = page.filter(|page| *page != frame) else {
            return false;
        };
        if !self.frames.claim(page, 1, Use::Raw, present) {
            return false;
        }
        if let (false, Some(list)) = (known, list) {
            self.frames.claim(frame, 1, Use::Headers, present);
            state.free.pop();
            self.begin(&mut state, frame, list);
        }
        self.join(&mut state, header, page);
        true
    }

    fn settle(&self) {
        let mut state = lock(&self.state);
        for frame in 0..self.frames.count() {
            let ours = self.frames.frame(frame).usage() == Use::Headers;
            if ours && !self.is_full(frame) {
                state.headers.open(&self.frames, frame);
            }
        }
    }
}
