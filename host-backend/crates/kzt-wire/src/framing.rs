// SPDX-License-Identifier: GPL-2.0-or-later
//! What the protocols of a guest's ports have in common: a byte stream without a beginning, in
//! which frames are searched for.

use std::time::Duration;

/// How often a guest that was not welcomed yet repeats its HELLO.
pub const HELLO_INTERVAL: Duration = Duration::from_millis(200);

/// A frame that stays incomplete for so long without a further byte may have lost its sender.
/// Shorter than [`HELLO_INTERVAL`], so that a new sender's HELLOs leave such a silence.
pub const STALL: Duration = Duration::from_millis(100);

/// What a receiver made of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<E> {
    /// Bytes that are done with, off the input's front.
    pub taken: usize,
    /// What they said; `None` when more input is needed.
    pub event: Option<E>,
}

/// What a receiver has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sessions begun.
    pub sessions: u64,
    /// Frames of the session, or reports, that were passed on.
    pub frames: u64,
    /// Whole frames that belonged to another session.
    pub ignored: u64,
    /// Frames that ended a session because they were not what had to follow.
    pub damaged: u64,
    /// Bytes passed over in search of a beginning.
    pub skipped: u64,
}

/// A frame of one of the protocols.
pub(crate) trait Framed<'a>: Sized {
    /// What it starts with.
    type Header;
    /// Why bytes are no frame.
    type Damage;

    /// A frame's first bytes.
    const MAGIC: [u8; 4];

    /// Reads a header, before its checksum can be compared; `None` when `input` is too short.
    fn head(input: &[u8]) -> Result<Option<Self::Header>, Self::Damage>;

    /// Reads the frame at the front of `input`; `None` when it is not there as a whole.
    fn parse(input: &'a [u8]) -> Result<Option<Self>, Self::Damage>;

    /// Bytes of the whole frame.
    fn size(&self) -> usize;
}

/// Finds the first whole frame in `input` whose header is `wanted` and whose checksum holds.
///
/// Returns how many bytes come before it; without one, how many can be no part of one whatever
/// follows.
pub(crate) fn first<'a, F: Framed<'a>>(
    input: &'a [u8],
    wanted: impl Fn(&F::Header) -> bool,
) -> (usize, Option<F>) {
    let [initial, ..] = F::MAGIC;
    let mut at = 0;
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let Some(skipped) = rest.iter().position(|byte| *byte == initial) else {
            return (input.len(), None);
        };
        at += skipped;
        let candidate = input.get(at..).unwrap_or_default();
        let possible = match F::head(candidate) {
            Ok(Some(header)) => wanted(&header),
            Ok(None) => true,
            Err(_) => false,
        };
        if possible {
            match F::parse(candidate) {
                Ok(Some(frame)) => return (at, Some(frame)),
                Ok(None) => return (at, None),
                Err(_) => {}
            }
        }
        at += 1;
    }
}

/// Finds the last such frame, and where it ends.
pub(crate) fn last<'a, F: Framed<'a>>(
    input: &'a [u8],
    wanted: impl Fn(&F::Header) -> bool,
) -> Option<(usize, F)> {
    let mut end = 0;
    let mut last = None;
    while let (skipped, Some(frame)) = first::<F>(input.get(end..).unwrap_or_default(), &wanted) {
        end += skipped + frame.size();
        last = Some((end, frame));
    }
    last
}

/// A field of bytes whose number was checked before.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
    field.copied().unwrap_or([0; N])
}

/// `head` and `tail` in a row.
pub(crate) fn join<const H: usize, const T: usize, const N: usize>(
    head: [u8; H],
    tail: [u8; T],
) -> [u8; N] {
    const { assert!(N == H + T) };
    let mut joined = [0; N];
    let (first, rest) = joined.split_at_mut(H);
    first.copy_from_slice(&head);
    rest.copy_from_slice(&tail);
    joined
}
