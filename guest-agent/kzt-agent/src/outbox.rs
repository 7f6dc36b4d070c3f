// SPDX-License-Identifier: GPL-2.0-or-later
//! The frame that is on its way to the port.

use kzt_wire::port::{HEADER_LENGTH, MAX_FRAME, Sender};

/// One frame, filled from the back of its header on.
pub(crate) struct Outbox {
    bytes: Box<[u8]>,
    /// Longest frame the host takes.
    limit: usize,
    /// Bytes of the payload.
    filled: usize,
    /// Length of the frame that is to be sent; 0 while it is being filled.
    ready: usize,
    /// Bytes of the payload behind those in the frame: the next one's.
    carried: usize,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; MAX_FRAME].into_boxed_slice(),
            limit: MAX_FRAME,
            filled: 0,
            ready: 0,
            carried: 0,
        }
    }

    pub(crate) fn clear(&mut self, limit: usize) {
        self.limit = limit.min(MAX_FRAME);
        (self.filled, self.ready, self.carried) = (0, 0, 0);
    }

    /// A frame waits to be sent.
    pub(crate) const fn is_ready(&self) -> bool {
        self.ready > 0
    }

    /// The frame to be sent.
    pub(crate) fn frame(&self) -> &[u8] {
        self.bytes.get(..self.ready).unwrap_or_default()
    }

    pub(crate) fn payload(&self) -> &[u8] {
        let end = HEADER_LENGTH + self.filled;
        self.bytes.get(HEADER_LENGTH..end).unwrap_or_default()
    }

    /// Where more payload goes; empty when the frame is full.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let start = HEADER_LENGTH + self.filled;
        self.bytes.get_mut(start..self.limit).unwrap_or_default()
    }

    pub(crate) fn add(&mut self, count: usize) {
        self.filled += count;
    }

    /// Makes a frame of the first `count` bytes of the payload.
    pub(crate) fn close(&mut self, sender: &mut Sender, count: usize) {
        let count = count.min(self.filled);
        let payload = self.payload().get(..count).unwrap_or_default();
        let header = sender.data(payload);
        if let Some(place) = self.bytes.first_chunk_mut() {
            *place = header;
        }
        self.ready = HEADER_LENGTH + count;
        self.carried = self.filled - count;
    }

    /// Puts a whole frame in place.
    pub(crate) fn put(&mut self, frame: &[u8]) {
        if let Some(place) = self.bytes.get_mut(..frame.len()) {
            place.copy_from_slice(frame);
            self.ready = frame.len();
            self.carried = 0;
        }
    }

    /// The frame is sent: what was left over begins the next one.
    pub(crate) fn sent(&mut self) {
        let start = self.ready;
        self.bytes
            .copy_within(start..start + self.carried, HEADER_LENGTH);
        (self.filled, self.ready, self.carried) = (self.carried, 0, 0);
    }
}
