// SPDX-License-Identifier: GPL-2.0-or-later
use std::fmt;

use crate::framing::{self, Head, field, join};

/// Bytes of a frame before its payload.
pub const HEADER_LENGTH: usize = 32;
/// Longest frame: virtio-console moves no more than that in one write.
pub const MAX_FRAME: usize = 32 << 10;
/// Longest payload of a frame.
pub const MAX_PAYLOAD: usize = MAX_FRAME - HEADER_LENGTH;
/// The longest frame a peer takes is at least this.
pub const MIN_FRAME: usize = 4 << 10;
/// Longest payload of a STATS frame.
pub const MAX_REPORT: usize = 16 << 10;

/// A frame's first bytes.
const MAGIC: [u8; 4] = *b"KZTP";
const VERSION: u8 = 1;

/// Bytes of a HELLO's payload, and of a WELCOME's.
pub(super) const GREETING: usize = 16;
/// Bytes of a RESET's payload.
pub(super) const NONCE: usize = size_of::<u64>();

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Agent to host: a session begins.
    Hello = 1,
    /// Host to agent: the session of a HELLO has begun.
    Welcome = 2,
    /// Bytes of the NBD stream, either way.
    Data = 3,
    /// Agent to host, on the control port: a report in JSON.
    Stats = 4,
    /// Host to agent: there is no session, say HELLO with this nonce.
    Reset = 5,
}

impl Kind {
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Hello),
            2 => Some(Self::Welcome),
            3 => Some(Self::Data),
            4 => Some(Self::Stats),
            5 => Some(Self::Reset),
            _ => None,
        }
    }

    /// Whether a payload of `length` bytes can be one of this kind.
    const fn permits(self, length: usize) -> bool {
        match self {
            Self::Hello | Self::Welcome => length == GREETING,
            Self::Data => length > 0 && length <= MAX_PAYLOAD,
            Self::Stats => length <= MAX_REPORT,
            Self::Reset => length == NONCE,
        }
    }
}

/// A frame's header. The checksum is not among the fields: [`Frame::parse`] has compared it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// The session it belongs to; 0 for none.
    pub session: u64,
    /// DATA and STATS: the number of such frames before it in its direction and session. Else 0.
    pub sequence: u32,
    /// Bytes of the payload.
    pub length: u32,
}

/// A whole frame whose checksum holds.
pub type Frame<'a> = framing::Frame<'a, Header>;

/// Why bytes are not the frame that has to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// They do not start like a frame: another magic, version or kind, or a field that has to be 0.
    Head,
    /// The length is impossible for the frame's kind.
    Length(u32),
    /// The checksum does not match.
    Checksum,
    /// A frame between this one and the one before it is missing.
    Sequence {
        /// The number that had to follow.
        expected: u32,
        /// The frame's number.
        found: u32,
    },
    /// A frame of this kind has no place here.
    Kind(Kind),
    /// The frame belongs to another session.
    Session(u64),
    /// Nothing has arrived for [`STALL`](super::STALL) in the middle of a frame.
    Stall,
}

impl Head for Header {
    type Damage = Damage;
    type Bytes = [u8; HEADER_LENGTH];

    const MAGIC: [u8; 4] = MAGIC;
    const NO_HEAD: Damage = Damage::Head;
    const WRONG_CHECKSUM: Damage = Damage::Checksum;

    fn decode(bytes: &[u8]) -> Result<(Self, u32), Damage> {
        let [.., version, kind, r0, r1] = field::<8>(bytes, 0);
        let reserved = (r0, r1, field(bytes, 28));
        if version != VERSION || reserved != (0, 0, [0; 4]) {
            return Err(Damage::Head);
        }
        let kind = Kind::from_number(kind).ok_or(Damage::Head)?;
        let length = u32::from_le_bytes(field(bytes, 20));
        if !kind.permits(length as usize) {
            return Err(Damage::Length(length));
        }
        let header = Self {
            kind,
            session: u64::from_le_bytes(field(bytes, 8)),
            sequence: u32::from_le_bytes(field(bytes, 16)),
            length,
        };
        Ok((header, u32::from_le_bytes(field(bytes, 24))))
    }

    fn payload_length(&self) -> usize {
        self.length as usize
    }

    fn with_checksum(&self, checksum: u32) -> [u8; HEADER_LENGTH] {
        let [m0, m1, m2, m3] = MAGIC;
        let start = [m0, m1, m2, m3, VERSION, self.kind as u8, 0, 0];
        let numbers = u64::from(self.sequence) | u64::from(self.length) << 32;
        let rest = [self.session, numbers, checksum.into()].map(u64::to_le_bytes);
        join(start, join::<8, 16, 24>(rest[0], join(rest[1], rest[2])))
    }
}

/// Payload of a HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Longest frame the agent takes, in bytes: [`MIN_FRAME`] to [`MAX_FRAME`].
    pub max_frame: usize,
    /// Nothing is defined yet: 0, and ignored.
    pub flags: u32,
    /// The connection's nonce, which proves that the HELLO is one; 0 while the agent does not know it.
    pub nonce: u64,
}

/// Payload of a WELCOME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Longest frame the host takes, in bytes: [`MIN_FRAME`] to [`MAX_FRAME`].
    pub max_frame: usize,
    /// Nothing is defined yet: 0, and ignored.
    pub flags: u32,
    /// Size of the swap device in bytes.
    pub swap_bytes: u64,
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; GREETING] {
        greeting(self.max_frame, self.flags, self.nonce)
    }

    /// A limit that makes no sense is taken as the nearest that does.
    pub(super) fn decode(payload: &[u8]) -> Self {
        Self {
            max_frame: (u32::from_le_bytes(field(payload, 0)) as usize).clamp(MIN_FRAME, MAX_FRAME),
            flags: u32::from_le_bytes(field(payload, 4)),
            nonce: u64::from_le_bytes(field(payload, 8)),
        }
    }
}

impl Welcome {
    pub(super) fn encode(&self) -> [u8; GREETING] {
        greeting(self.max_frame, self.flags, self.swap_bytes)
    }

    /// As [`Hello::decode`].
    pub(super) fn decode(payload: &[u8]) -> Self {
        let Hello {
            max_frame, flags, ..
        } = Hello::decode(payload);
        Self {
            max_frame,
            flags,
            swap_bytes: u64::from_le_bytes(field(payload, 8)),
        }
    }
}

fn greeting(max_frame: usize, flags: u32, last: u64) -> [u8; GREETING] {
    let max_frame = u32::try_from(max_frame).unwrap_or(u32::MAX);
    let limits: [u8; 8] = join(max_frame.to_le_bytes(), flags.to_le_bytes());
    join(limits, last.to_le_bytes())
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("bytes that are no frame"),
            Self::Length(length) => write!(f, "impossible frame length {length}"),
            Self::Checksum => f.write_str("a frame's checksum does not match"),
            Self::Sequence { expected, found } => {
                write!(f, "frame {found} where {expected} had to follow")
            }
            Self::Kind(kind) => write!(f, "a {kind:?} frame out of place"),
            Self::Session(session) => write!(f, "a frame of another session, {session:#x}"),
            Self::Stall => f.write_str("nothing more in the middle of a frame"),
        }
    }
}

impl std::error::Error for Damage {}
