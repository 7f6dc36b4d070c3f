// SPDX-License-Identifier: GPL-2.0-or-later
use std::fmt;

use super::constants::{
    EXPORT_NAME, IHAVEOPT, MAX_OPTION_LENGTH, NBDMAGIC, OPTION_REPLY_MAGIC, handshake_flag, info,
    option, option_reply,
};
use super::handshake::GREETING_LENGTH;
use super::reader::Reader;

/// Bytes of the client's one message: its flags, and `GO` with the device's name.
pub const OPENING_LENGTH: usize = 30;

/// Largest reply to an option that a client waits for.
const MAX_REPLY: u32 = 1024;
/// Smallest buffer in which a client's handshake always makes progress.
pub const MIN_REPLY_INPUT: usize = 20 + MAX_REPLY as usize;

const FLAGS: u16 = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;

/// The client's side of a fixed newstyle handshake: it asks for the one device and nothing else.
#[derive(Debug, Default)]
pub struct ClientHandshake {
    greeted: bool,
    device: Option<Device>,
}

/// What the server tells of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Bytes.
    pub size: u64,
    /// Transmission flags, as the protocol has them.
    pub flags: u16,
}

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// Send this, and go on.
    Send([u8; OPENING_LENGTH]),
    /// The transmission phase has begun.
    Ready(Device),
}

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server does not speak fixed newstyle.
    Greeting,
    /// What came is no reply to the option.
    Reply,
    /// The server refuses, by this kind of reply.
    Option(u32),
}

impl ClientHandshake {
    /// Takes the next message off the front of `input`. Returns the number of bytes taken, and what
    /// to do, if anything yet.
    ///
    /// # Errors
    /// [`Refusal`] when there will be no transmission phase.
    pub fn advance(&mut self, input: &[u8]) -> Result<(usize, Option<ClientStep>), Refusal> {
        if self.greeted {
            return self.replies(input);
        }
        if input.len() < GREETING_LENGTH {
            return Ok((0, None));
        }
        let mut reader = Reader(input);
        let known = reader.u64() == Some(NBDMAGIC) && reader.u64() == Some(IHAVEOPT);
        let flags = reader.u16().unwrap_or(0);
        if !known || flags & FLAGS != FLAGS {
            return Err(Refusal::Greeting);
        }
        self.greeted = true;
        Ok((GREETING_LENGTH, Some(ClientStep::Send(opening()))))
    }

    fn replies(&mut self, input: &[u8]) -> Result<(usize, Option<ClientStep>), Refusal> {
        let mut reader = Reader(input);
        let mut taken = 0;
        while let Some((kind, data)) = message(&mut reader)? {
            taken = input.len() - reader.0.len();
            match (kind, self.device) {
                (option_reply::INFO, _) => {
                    let mut data = Reader(data);
                    if data.u16() == Some(info::EXPORT) {
                        let (Some(size), Some(flags)) = (data.u64(), data.u16()) else {
                            return Err(Refusal::Reply);
                        };
                        self.device = Some(Device { size, flags });
                    }
                }
                (option_reply::ACK, Some(device)) => {
                    return Ok((taken, Some(ClientStep::Ready(device))));
                }
                (option_reply::ACK, None) => return Err(Refusal::Reply),
                (other, _) => return Err(Refusal::Option(other)),
            }
        }
        Ok((taken, None))
    }
}

/// One reply's kind and data; `None` when it is not there as a whole.
fn message<'a>(reader: &mut Reader<'a>) -> Result<Option<(u32, &'a [u8])>, Refusal> {
    const { assert!(MAX_REPLY <= MAX_OPTION_LENGTH) };
    let (Some(magic), Some(number), Some(kind), Some(length)) =
        (reader.u64(), reader.u32(), reader.u32(), reader.u32())
    else {
        return Ok(None);
    };
    if magic != OPTION_REPLY_MAGIC || number != option::GO || length > MAX_REPLY {
        return Err(Refusal::Reply);
    }
    Ok(reader.bytes(length).map(|data| (kind, data)))
}

fn opening() -> [u8; OPENING_LENGTH] {
    let name = u32::try_from(EXPORT_NAME.len()).unwrap_or(u32::MAX);
    let mut fields = u32::from(FLAGS)
        .to_be_bytes()
        .into_iter()
        .chain(IHAVEOPT.to_be_bytes())
        .chain(option::GO.to_be_bytes())
        .chain((4 + name + 2).to_be_bytes())
        .chain(name.to_be_bytes())
        .chain(EXPORT_NAME.bytes())
        .chain(0_u16.to_be_bytes());
    [(); OPENING_LENGTH].map(|()| fields.next().unwrap_or(0))
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Greeting => f.write_str("no NBD server of the newstyle kind"),
            Self::Reply => f.write_str("no answer to the option GO"),
            Self::Option(kind) => write!(f, "the server refuses, {kind:#x}"),
        }
    }
}

impl std::error::Error for Refusal {}
