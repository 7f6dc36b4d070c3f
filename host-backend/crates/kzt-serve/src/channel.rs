// SPDX-License-Identifier: GPL-2.0-or-later
use std::time::Instant;

use crate::connection::{End, Patience, Peer};
use crate::stopwatch::Measure;

/// What an NBD byte stream travels on: a socket as it is, or the frames of a guest's port.
pub(crate) trait Channel {
    /// What the latency of its requests means.
    const MEASURE: Measure;

    /// Waits for bytes of the stream; 0 at its end, [`End::Timeout`] at the deadline.
    fn receive(&mut self, buffer: &mut [u8], deadline: Option<Instant>) -> Result<usize, End>;

    /// Sends all of `bytes`.
    fn send(&mut self, bytes: &[u8], deadline: Option<Instant>) -> Result<(), End>;
}

/// The socket as it is.
pub(crate) struct Stream<'a> {
    peer: &'a Peer,
    patience: Patience,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(peer: &'a Peer) -> Self {
        let patience = Patience::default();
        Self { peer, patience }
    }
}

impl Channel for Stream<'_> {
    const MEASURE: Measure = Measure::Service;

    fn receive(&mut self, buffer: &mut [u8], deadline: Option<Instant>) -> Result<usize, End> {
        self.peer.receive(buffer, deadline, &mut self.patience)
    }

    fn send(&mut self, bytes: &[u8], deadline: Option<Instant>) -> Result<(), End> {
        self.peer.send(bytes, deadline)
    }
}
