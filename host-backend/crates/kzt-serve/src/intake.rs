// SPDX-License-Identifier: GPL-2.0-or-later
use std::ops::Range;
use std::time::Instant;

use kzt_wire::port::STALL;

use crate::connection::{End, Patience, Peer};

/// What has been received from a port and not been taken yet.
pub(crate) struct Intake {
    buffer: Vec<u8>,
    rest: Range<usize>,
    /// Whether the silence that goes on has been told already.
    stall_told: bool,
    patience: Patience,
}

/// What came of waiting for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// More bytes.
    Bytes,
    /// Nothing for [`STALL`], while something is left over. Told once for each silence.
    Stalled,
    /// The peer has hung up.
    Ended,
}

impl Intake {
    /// Takes in up to `size` bytes: the port's longest frame at least, or as many frames as may
    /// come in one system call.
    pub(crate) fn new(size: usize) -> Self {
        Self {
            buffer: vec![0; size],
            rest: 0..0,
            stall_told: false,
            patience: Patience::default(),
        }
    }

    /// What is there.
    pub(crate) fn rest(&self) -> &[u8] {
        self.get(self.rest.clone())
    }

    /// Takes `length` bytes off the front of what is there. Returns the place of the last `tail` of
    /// them, good until the next [`fill`](Self::fill).
    pub(crate) fn take(&mut self, length: usize, tail: usize) -> Range<usize> {
        self.rest.start = self.rest.end.min(self.rest.start + length);
        self.rest.start.saturating_sub(tail)..self.rest.start
    }

    /// The bytes at a place.
    pub(crate) fn get(&self, place: Range<usize>) -> &[u8] {
        self.buffer.get(place).unwrap_or_default()
    }

    /// Waits for more than is there.
    pub(crate) fn fill(&mut self, peer: &Peer, deadline: Option<Instant>) -> Result<Filled, End> {
        self.buffer.copy_within(self.rest.clone(), 0);
        self.rest = 0..self.rest.len();
        let now = Instant::now();
        let stall = (!self.rest.is_empty() && !self.stall_told).then(|| now + STALL);
        // An early stall is none: the deadline comes first.
        let stall = stall.filter(|stall| deadline.is_none_or(|deadline| *stall < deadline));
        let room = self.buffer.get_mut(self.rest.end..).unwrap_or_default();
        match peer.receive(room, stall.or(deadline), &mut self.patience) {
            Ok(0) => Ok(Filled::Ended),
            Ok(received) => {
                self.rest.end += received;
                self.stall_told = false;
                Ok(Filled::Bytes)
            }
            Err(End::Timeout) if stall.is_some() => {
                self.stall_told = true;
                Ok(Filled::Stalled)
            }
            Err(end) => Err(end),
        }
    }
}
