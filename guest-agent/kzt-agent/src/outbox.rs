// SPDX-License-Identifier: GPL-2.0-or-later
//! The frame that is on its way to the port.

use kzt_wire::port::{HEADER_LENGTH, MAX_FRAME, Sender};

/// One frame, or none.
pub(crate) struct Outbox {
    bytes: Box<[u8]>,
    /// Longest frame the host takes.
    limit: usize,
    /// Length of the frame; 0 if there is none.
    length: usize,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; MAX_FRAME].into_boxed_slice(),
            limit: MAX_FRAME,
            length: 0,
        }
    }

    pub(crate) fn clear(&mut self, limit: usize) {
        self.limit = limit.min(MAX_FRAME);
        self.length = 0;
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The frame to be sent.
    pub(crate) fn frame(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Longest payload.
    pub(crate) const fn longest(&self) -> usize {
        self.limit - HEADER_LENGTH
    }

    /// Makes a frame of `count` bytes, [`longest`](Self::longest) at most, that `fill` puts in
    /// place.
    pub(crate) fn data(&mut self, sender: &mut Sender, count: usize, fill: impl FnOnce(&mut [u8])) {
        let end = (HEADER_LENGTH + count).min(self.limit);
        if let Some(payload) = self.bytes.get_mut(HEADER_LENGTH..end) {
            fill(payload);
            let header = sender.data(payload);
            if let Some(place) = self.bytes.first_chunk_mut() {
                *place = header;
            }
            self.length = end;
        }
    }

    /// Puts a whole frame in place.
    pub(crate) fn put(&mut self, frame: &[u8]) {
        if let Some(place) = self.bytes.get_mut(..frame.len()) {
            place.copy_from_slice(frame);
            self.length = frame.len();
        }
    }

    pub(crate) const fn sent(&mut self) {
        self.length = 0;
    }
}
