// SPDX-License-Identifier: GPL-2.0-or-later
use std::fmt;

use crate::framing::{self, Head, field};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Most pages of one request.
pub const MAX_PAGES: u32 = 64;
/// Bytes of a frame before its payload.
pub const HEADER_LENGTH: usize = 64;
/// Longest payload: a status and a page for each of [`MAX_PAGES`].
pub const MAX_PAYLOAD: usize = MAX_PAGES as usize * (size_of::<i32>() + PAGE);
/// Longest frame.
pub const MAX_FRAME: usize = HEADER_LENGTH + MAX_PAYLOAD;

const MAGIC: [u8; 4] = *b"KZTM";
const WORDS: usize = HEADER_LENGTH / size_of::<u64>();

/// Numbers of the operations: those of the tmem ABI, and two of the protocol's own.
pub mod op {
    /// A pool is made.
    pub const NEW_POOL: u16 = 1;
    /// A pool goes with its pages.
    pub const DESTROY_POOL: u16 = 2;
    /// Pages are stored.
    pub const PUT_PAGE: u16 = 4;
    /// Pages are fetched.
    pub const GET_PAGE: u16 = 5;
    /// Pages are dropped.
    pub const FLUSH_PAGE: u16 = 6;
    /// An object's pages are dropped.
    pub const FLUSH_OBJECT: u16 = 7;
    /// A session begins; its reply is the WELCOME.
    pub const HELLO: u16 = 200;
    /// Host to guest: there is no session, say HELLO.
    pub const RESET: u16 = 201;
}

/// Bits of a header's `flags`.
pub mod flags {
    /// The frame answers another one.
    pub const REPLY: u16 = 1;
    /// In a HELLO: the guest knows of no persistent pool, as after a boot, and so of no pages.
    pub const FRESH: u16 = 2;
}

/// A frame's header. The checksum is not among the fields: [`Frame::parse`] has compared it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// What is asked for or answered.
    pub op: u16,
    /// [`flags`].
    pub flags: u16,
    /// The session it belongs to; 0 for none.
    pub session: u64,
    /// The guest's name for the request; its reply repeats it.
    pub tag: u32,
    /// A request's pool, a reply's status.
    pub pool: i32,
    /// The object.
    pub object: [u64; 3],
    /// The first page's index in the object.
    pub index: u32,
    /// How many pages.
    pub count: u32,
    /// Bytes of the payload.
    pub length: u32,
}

/// A whole frame whose checksum holds.
pub type Frame<'a> = framing::Frame<'a, Header>;

/// Why bytes are not the frame that has to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// They do not start like a frame.
    Head,
    /// The payload is longer than any can be.
    Length(u32),
    /// The checksum does not match.
    Checksum,
    /// What only the host sends, or a HELLO that is none.
    Place(u16),
}

impl Header {
    /// The header's bytes in front of `payload`, whose length and checksum go in.
    #[must_use]
    pub fn encode(&self, payload: &[u8]) -> [u8; HEADER_LENGTH] {
        let header = Self {
            // A payload that long is a mistake of the caller's, which no receiver lets pass.
            length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            ..*self
        };
        header.sealed(payload)
    }
}

impl Head for Header {
    type Damage = Damage;
    type Bytes = [u8; HEADER_LENGTH];

    const MAGIC: [u8; 4] = MAGIC;
    const NO_HEAD: Damage = Damage::Head;
    const WRONG_CHECKSUM: Damage = Damage::Checksum;

    fn decode(bytes: &[u8]) -> Result<(Self, u32), Damage> {
        let header = Self {
            op: u16::from_le_bytes(field(bytes, 4)),
            flags: u16::from_le_bytes(field(bytes, 6)),
            session: u64::from_le_bytes(field(bytes, 8)),
            tag: u32::from_le_bytes(field(bytes, 16)),
            pool: i32::from_le_bytes(field(bytes, 20)),
            object: [24, 32, 40].map(|at| u64::from_le_bytes(field(bytes, at))),
            index: u32::from_le_bytes(field(bytes, 48)),
            count: u32::from_le_bytes(field(bytes, 52)),
            length: u32::from_le_bytes(field(bytes, 56)),
        };
        if header.length as usize > MAX_PAYLOAD {
            return Err(Damage::Length(header.length));
        }
        Ok((header, u32::from_le_bytes(field(bytes, 60))))
    }

    fn payload_length(&self) -> usize {
        self.length as usize
    }

    fn with_checksum(&self, checksum: u32) -> [u8; HEADER_LENGTH] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let [o0, o1, o2] = self.object;
        let kind = u32::from(self.op) | u32::from(self.flags) << 16;
        let words: [u64; WORDS] = [
            pair(u32::from_le_bytes(MAGIC), kind),
            self.session,
            pair(self.tag, u32::from_le_bytes(self.pool.to_le_bytes())),
            o0,
            o1,
            o2,
            pair(self.index, self.count),
            pair(self.length, checksum),
        ];
        let mut bytes = [0; HEADER_LENGTH];
        for (place, word) in bytes.chunks_exact_mut(size_of::<u64>()).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("bytes that are no frame"),
            Self::Length(length) => write!(f, "impossible frame length {length}"),
            Self::Checksum => f.write_str("a frame's checksum does not match"),
            Self::Place(op) => write!(f, "a frame of operation {op} out of place"),
        }
    }
}

impl std::error::Error for Damage {}
