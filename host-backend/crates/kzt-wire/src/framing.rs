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

/// A frame's header, as one of the protocols has it.
pub trait Head: Sized {
    /// Why bytes are no frame.
    type Damage;
    /// Its bytes.
    type Bytes: AsRef<[u8]>;

    /// A frame's first bytes.
    const MAGIC: [u8; 4];
    /// How many bytes it has.
    const LENGTH: usize = size_of::<Self::Bytes>();
    /// The bytes do not start like a frame.
    const NO_HEAD: Self::Damage;
    /// The checksum is another one.
    const WRONG_CHECKSUM: Self::Damage;

    /// Reads a header and its checksum from [`Self::LENGTH`] bytes that begin with [`Self::MAGIC`].
    ///
    /// # Errors
    /// The damage that shows already.
    fn decode(bytes: &[u8]) -> Result<(Self, u32), Self::Damage>;

    /// Bytes of the payload behind it.
    fn payload_length(&self) -> usize;

    /// Its bytes, with that in the checksum's place.
    fn with_checksum(&self, checksum: u32) -> Self::Bytes;

    /// The checksum of the whole frame.
    #[must_use]
    fn checksum(&self, payload: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(self.with_checksum(0).as_ref()), payload)
    }

    /// Its bytes in front of that payload.
    #[must_use]
    fn sealed(&self, payload: &[u8]) -> Self::Bytes {
        self.with_checksum(self.checksum(payload))
    }
}

/// A whole frame whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a, H> {
    /// The header.
    pub header: H,
    /// The payload.
    pub payload: &'a [u8],
}

/// Reads a header and its checksum, which is not compared; `None` when `input` is too short.
fn head<H: Head>(input: &[u8]) -> Result<Option<(H, u32)>, H::Damage> {
    if !H::MAGIC
        .iter()
        .zip(input)
        .all(|(wanted, byte)| wanted == byte)
    {
        return Err(H::NO_HEAD);
    }
    input.get(..H::LENGTH).map(H::decode).transpose()
}

impl<'a, H: Head> Frame<'a, H> {
    /// Reads the frame at the front of `input`; `None` when it is not there as a whole.
    ///
    /// # Errors
    /// The damage when that is no frame, whatever follows.
    pub fn parse(input: &'a [u8]) -> Result<Option<Self>, H::Damage> {
        let Some((header, checksum)) = head::<H>(input)? else {
            return Ok(None);
        };
        let payload = input.get(H::LENGTH..).unwrap_or_default();
        let Some(payload) = payload.get(..header.payload_length()) else {
            return Ok(None);
        };
        if header.checksum(payload) != checksum {
            return Err(H::WRONG_CHECKSUM);
        }
        Ok(Some(Self { header, payload }))
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub const fn size(&self) -> usize {
        H::LENGTH + self.payload.len()
    }
}

/// Finds the first whole frame in `input` whose header is `wanted` and whose checksum holds.
///
/// Returns how many bytes come before it; without one, how many can be no part of one whatever
/// follows.
pub(crate) fn first<H: Head>(
    input: &[u8],
    wanted: impl Fn(&H) -> bool,
) -> (usize, Option<Frame<'_, H>>) {
    let [initial, ..] = H::MAGIC;
    let mut at = 0;
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let Some(skipped) = rest.iter().position(|byte| *byte == initial) else {
            return (input.len(), None);
        };
        at += skipped;
        let candidate = input.get(at..).unwrap_or_default();
        let possible = match head::<H>(candidate) {
            Ok(Some((header, _))) => wanted(&header),
            Ok(None) => true,
            Err(_) => false,
        };
        if possible {
            match Frame::parse(candidate) {
                Ok(Some(frame)) => return (at, Some(frame)),
                Ok(None) => return (at, None),
                Err(_) => {}
            }
        }
        at += 1;
    }
}

/// Finds the last such frame, and where it ends.
pub(crate) fn last<H: Head>(
    input: &[u8],
    wanted: impl Fn(&H) -> bool,
) -> Option<(usize, Frame<'_, H>)> {
    let mut end = 0;
    let mut last = None;
    while let (skipped, Some(frame)) = first::<H>(input.get(end..).unwrap_or_default(), &wanted) {
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
