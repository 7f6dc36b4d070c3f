// SPDX-License-Identifier: GPL-2.0-or-later
use super::frame::{HEADER_LENGTH, Header, MAX_FRAME, MAX_PAGES, PAGE, flags, op};
use crate::framing::{field, join};

/// Version of the protocol.
pub const VERSION: u32 = 1;
/// Bytes of a WELCOME, and of a HELLO.
pub const WELCOME_LENGTH: usize = HEADER_LENGTH + PAYLOAD;
/// Bytes of a RESET.
pub const RESET_LENGTH: usize = HEADER_LENGTH + NONCE;

/// Bytes of a HELLO's payload.
pub(super) const PAYLOAD: usize = 24;
const NONCE: usize = size_of::<u64>();

/// What a HELLO or a WELCOME tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The session.
    pub session: u64,
    /// The request's tag.
    pub tag: u32,
    /// Whether the guest has no pages in any pool.
    pub fresh: bool,
    /// The protocol's version.
    pub version: u32,
    /// Most pages of one request that the sender takes.
    pub max_pages: u32,
    /// Longest frame that it takes.
    pub max_frame: u32,
    /// The connection's nonce, which proves that the HELLO is one.
    pub nonce: u64,
}

impl Hello {
    /// What the HELLO with that header and payload tells.
    pub(super) fn decode(header: &Header, payload: &[u8]) -> Self {
        Self {
            session: header.session,
            tag: header.tag,
            fresh: header.flags & flags::FRESH != 0,
            version: u32::from_le_bytes(field(payload, 0)),
            max_pages: u32::from_le_bytes(field(payload, 4)),
            max_frame: u32::from_le_bytes(field(payload, 8)),
            nonce: u64::from_le_bytes(field(payload, 16)),
        }
    }

    /// How many pages the sender can be sent in one frame: 1 to [`MAX_PAGES`], for a limit that
    /// makes no sense is taken as the nearest that does.
    #[must_use]
    pub fn pages(&self) -> u32 {
        let payload = (self.max_frame as usize).saturating_sub(HEADER_LENGTH);
        let fitting = u32::try_from(payload / (size_of::<i32>() + PAGE)).unwrap_or(MAX_PAGES);
        self.max_pages.min(fitting).clamp(1, MAX_PAGES)
    }

    /// The HELLO as a frame.
    #[must_use]
    pub fn frame(&self) -> [u8; WELCOME_LENGTH] {
        let fresh = if self.fresh { flags::FRESH } else { 0 };
        self.with(fresh, 0)
    }

    /// The answer: [`MAX_PAGES`] and [`MAX_FRAME`] are the host's limits, `status` is 0 for a
    /// WELCOME.
    #[must_use]
    pub fn answer(&self, status: i32) -> [u8; WELCOME_LENGTH] {
        let limits = Self {
            version: VERSION,
            max_pages: MAX_PAGES,
            max_frame: u32::try_from(MAX_FRAME).unwrap_or(u32::MAX),
            ..*self
        };
        limits.with(flags::REPLY, status)
    }

    fn with(&self, flags: u16, status: i32) -> [u8; WELCOME_LENGTH] {
        let limits: [u8; 8] = join(self.version.to_le_bytes(), self.max_pages.to_le_bytes());
        let limits: [u8; 16] = join(limits, u64::from(self.max_frame).to_le_bytes());
        let payload: [u8; PAYLOAD] = join(limits, self.nonce.to_le_bytes());
        let header = Header {
            op: op::HELLO,
            flags,
            session: self.session,
            tag: self.tag,
            pool: status,
            ..Header::default()
        };
        join(header.encode(&payload), payload)
    }
}

/// A RESET: the connection's nonce, for the HELLO that is to follow.
#[must_use]
pub fn reset(nonce: u64) -> [u8; RESET_LENGTH] {
    let header = Header {
        op: op::RESET,
        ..Header::default()
    };
    let payload = nonce.to_le_bytes();
    join(header.encode(&payload), payload)
}
