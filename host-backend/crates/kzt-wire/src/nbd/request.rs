// SPDX-License-Identifier: GPL-2.0-or-later
use super::constants::{MAX_PAYLOAD, REQUEST_MAGIC};
use super::reader::Reader;
use super::{Errno, Session, Violation};

/// Bytes of a request before its payload.
pub const HEADER_LENGTH: usize = 28;

/// Flags of a request.
pub mod flags {
    /// Reply when the data is as safe as the device makes it.
    pub const FUA: u16 = 1 << 0;
    /// Zeroes must stay allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The data of a structured reply comes in one chunk.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail rather than be as slow as a write.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send a byte range.
    Read,
    /// Store the payload.
    Write,
    /// The client is done; there is no reply.
    Disconnect,
    /// Make acknowledged writes safe.
    Flush,
    /// Forget a byte range.
    Trim,
    /// Zero a byte range.
    WriteZeroes,
    /// Tell which parts of a byte range are stored.
    BlockStatus,
    /// A number this server does not know.
    Unknown(u16),
}

impl Command {
    const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => Self::Unknown(number),
        }
    }

    /// Flags the command may carry. Known clients set FUA on any command.
    const fn permitted_flags(self, session: &Session) -> u16 {
        flags::FUA
            | match self {
                Self::Read if session.structured_replies => flags::DF,
                Self::WriteZeroes => flags::NO_HOLE | flags::FAST_ZERO,
                Self::BlockStatus => flags::REQ_ONE,
                _ => 0,
            }
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// See [`flags`].
    pub flags: u16,
    /// What is asked for.
    pub command: Command,
    /// Repeated in the reply.
    pub cookie: u64,
    /// First byte on the device.
    pub offset: u64,
    /// Bytes on the device.
    pub length: u32,
}

impl Request {
    /// Reads a header; `None` when `input` is too short.
    ///
    /// # Errors
    /// [`Violation`] when the stream can't be followed from here on.
    pub fn decode(input: &[u8]) -> Result<Option<Self>, Violation> {
        let mut reader = Reader(input);
        let Some(magic) = reader.u32() else {
            return Ok(None);
        };
        if magic != REQUEST_MAGIC {
            return Err(Violation::RequestMagic(magic));
        }
        let Some(request) = Self::fields(&mut reader) else {
            return Ok(None);
        };
        if request.payload() > MAX_PAYLOAD {
            return Err(Violation::PayloadLength(request.length));
        }
        Ok(Some(request))
    }

    fn fields(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            flags: reader.u16()?,
            command: Command::from_number(reader.u16()?),
            cookie: reader.u64()?,
            offset: reader.u64()?,
            length: reader.u32()?,
        })
    }

    /// Bytes that follow the header.
    #[must_use]
    pub const fn payload(&self) -> u32 {
        match self.command {
            Command::Write => self.length,
            _ => 0,
        }
    }

    /// Whether `flag` is set.
    #[must_use]
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Says whether the session allows the request.
    ///
    /// # Errors
    /// The error to reply with. On success `offset + length` lies within the device.
    pub fn check(&self, session: &Session) -> Result<(), Errno> {
        if self.flags & !self.command.permitted_flags(session) != 0 {
            return Err(Errno::Invalid);
        }
        let within = self
            .offset
            .checked_add(u64::from(self.length))
            .is_some_and(|end| end <= session.size);
        match self.command {
            Command::Unknown(_) => Err(Errno::Invalid),
            Command::BlockStatus if !session.base_allocation || self.length == 0 => {
                Err(Errno::Invalid)
            }
            Command::Flush | Command::Disconnect => Ok(()),
            Command::Write | Command::WriteZeroes if !within => Err(Errno::NoSpace),
            _ if !within => Err(Errno::Invalid),
            Command::Read if self.length > MAX_PAYLOAD => Err(Errno::Overflow),
            _ => Ok(()),
        }
    }
}
