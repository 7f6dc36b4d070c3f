// SPDX-License-Identifier: GPL-2.0-or-later
use super::frame::{GREETING, HEADER_LENGTH, Header, Hello, Kind, NONCE, Welcome};
use crate::framing::{Head as _, join};

/// Bytes of a HELLO.
pub const HELLO_LENGTH: usize = HEADER_LENGTH + GREETING;
/// Bytes of a WELCOME.
pub const WELCOME_LENGTH: usize = HEADER_LENGTH + GREETING;
/// Bytes of a RESET.
pub const RESET_LENGTH: usize = HEADER_LENGTH + NONCE;

/// Numbers the frames of one direction of a session.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    session: u64,
    sequence: u32,
}

impl Sender {
    /// Begins with frame 0.
    #[must_use]
    pub const fn new(session: u64) -> Self {
        Self {
            session,
            sequence: 0,
        }
    }

    /// The session.
    #[must_use]
    pub const fn session(&self) -> u64 {
        self.session
    }

    /// The header to send in front of `payload`: 1 to [`MAX_PAYLOAD`](super::MAX_PAYLOAD) bytes of
    /// the NBD stream.
    pub fn data(&mut self, payload: &[u8]) -> [u8; HEADER_LENGTH] {
        self.next(Kind::Data, payload)
    }

    /// The header to send in front of `report`: at most [`MAX_REPORT`](super::MAX_REPORT) bytes.
    pub fn stats(&mut self, report: &[u8]) -> [u8; HEADER_LENGTH] {
        self.next(Kind::Stats, report)
    }

    fn next(&mut self, kind: Kind, payload: &[u8]) -> [u8; HEADER_LENGTH] {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        head(kind, self.session, sequence, payload)
    }
}

/// A whole HELLO.
#[must_use]
pub fn hello(session: u64, hello: &Hello) -> [u8; HELLO_LENGTH] {
    let payload = hello.encode();
    join(head(Kind::Hello, session, 0, &payload), payload)
}

/// A whole WELCOME.
#[must_use]
pub fn welcome(session: u64, welcome: &Welcome) -> [u8; WELCOME_LENGTH] {
    let payload = welcome.encode();
    join(head(Kind::Welcome, session, 0, &payload), payload)
}

/// A whole RESET: the connection's nonce, for the HELLO that is to follow.
#[must_use]
pub fn reset(nonce: u64) -> [u8; RESET_LENGTH] {
    let payload = nonce.to_le_bytes();
    join(head(Kind::Reset, 0, 0, &payload), payload)
}

fn head(kind: Kind, session: u64, sequence: u32, payload: &[u8]) -> [u8; HEADER_LENGTH] {
    let header = Header {
        kind,
        session,
        sequence,
        // A payload that long is a mistake of the caller's, which no receiver lets pass.
        length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
    };
    header.sealed(payload)
}
