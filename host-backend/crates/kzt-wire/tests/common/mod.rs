// SPDX-License-Identifier: GPL-2.0-or-later
//! A receiver at the end of a line, and what may happen to the bytes on their way.

use proptest::prelude::*;
use proptest::sample::Index;

/// An end that is told something by the bytes that arrive.
pub(crate) trait Receiver {
    /// What it was told, owned.
    type Told;
    /// Bytes of the smallest buffer that it makes progress with.
    const BUFFER: usize;

    /// Bytes taken and what they said.
    fn step(&mut self, input: &[u8]) -> (usize, Option<Self::Told>);
    /// The same after a silence.
    fn silence(&mut self, input: &[u8]) -> (usize, Option<Self::Told>);
}

/// A receiver behind a buffer that is as small as it may be.
pub(crate) struct Line<R: Receiver> {
    pub(crate) receiver: R,
    pub(crate) buffer: Vec<u8>,
    pub(crate) told: Vec<R::Told>,
}

impl<R: Receiver> Line<R> {
    pub(crate) fn new(receiver: R) -> Self {
        Self {
            receiver,
            buffer: Vec::new(),
            told: Vec::new(),
        }
    }

    /// Bytes arrive, as many at a time as the buffer has room for.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = R::BUFFER - self.buffer.len();
            assert!(room > 0, "no progress with a full buffer");
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend(now);
            bytes = later;
            self.work();
        }
    }

    /// Bytes arrive in pieces of these lengths.
    pub(crate) fn feed_cut(&mut self, bytes: &[u8], cuts: &[usize]) {
        let mut rest = bytes;
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                return;
            }
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            self.feed(now);
            rest = later;
        }
    }

    fn work(&mut self) {
        let mut at = 0;
        loop {
            let (taken, told) = self.receiver.step(&self.buffer[at..]);
            at += taken;
            let Some(told) = told else { break };
            self.told.push(told);
        }
        self.buffer.drain(..at);
    }

    /// Nothing arrives for a while.
    pub(crate) fn silence(&mut self) {
        if !self.buffer.is_empty() {
            let (taken, told) = self.receiver.silence(&self.buffer);
            self.buffer.drain(..taken);
            self.told.extend(told);
            self.work();
        }
    }
}

/// Bytes changed, cut out or put in somewhere.
#[derive(Clone, Debug)]
pub(crate) enum Harm {
    Flip(Index, u8),
    Cut(Index, usize),
    Insert(Index, Vec<u8>),
}

/// Harm of all kinds; such payloads are what is put in.
pub(crate) fn harm(payload: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Harm> {
    prop_oneof![
        (any::<Index>(), 0u8..8).prop_map(|(at, bit)| Harm::Flip(at, bit)),
        (any::<Index>(), 1usize..100).prop_map(|(at, length)| Harm::Cut(at, length)),
        (any::<Index>(), payload).prop_map(|(at, bytes)| Harm::Insert(at, bytes)),
    ]
}

impl Harm {
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            // Nothing is left to harm.
            _ if bytes.is_empty() => {}
            Self::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Self::Cut(at, length) => {
                let at = at.index(bytes.len());
                bytes.drain(at..bytes.len().min(at + length));
            }
            Self::Insert(at, inserted) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, inserted.iter().copied());
            }
        }
    }
}
