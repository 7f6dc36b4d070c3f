// SPDX-License-Identifier: GPL-2.0-or-later
use super::Violation;
use super::constants::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, BLOCK_SIZE, DESCRIPTION, EXPORT_NAME, IHAVEOPT,
    MAX_OPTION_LENGTH, MAX_OPTIONS, MAX_PAYLOAD, MIN_BLOCK_SIZE, NBDMAGIC, OPTION_REPLY_MAGIC,
    handshake_flag, info, option, option_reply, transmission_flag,
};
use super::reader::Reader;

/// Bytes the server sends first.
pub const GREETING_LENGTH: usize = 18;

/// What was agreed on: the terms of the transmission phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The device's size in bytes.
    pub size: u64,
    /// Reads are answered in chunks.
    pub structured_replies: bool,
    /// The client may ask for block status.
    pub base_allocation: bool,
}

/// Where a handshake stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The client has the floor.
    More,
    /// The transmission phase begins as soon as the replies so far are sent.
    Transmission(Session),
    /// The client has ended the handshake; the replies so far may still be sent.
    Aborted,
}

/// The server's side of a fixed newstyle handshake.
///
/// Replies go to a caller's buffer, which the limits on options bound; nothing counts as agreed
/// before the caller sends them.
#[derive(Debug)]
pub struct Handshake {
    session: Session,
    flags_seen: bool,
    no_zeroes: bool,
    options: u32,
}

impl Handshake {
    /// Starts a handshake for a device of `size` bytes; its greeting goes to `out`.
    #[must_use]
    pub fn begin(size: u64, out: &mut Vec<u8>) -> Self {
        out.extend(NBDMAGIC.to_be_bytes());
        out.extend(IHAVEOPT.to_be_bytes());
        out.extend((handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
        let session = Session {
            size,
            structured_replies: false,
            base_allocation: false,
        };
        Self {
            session,
            flags_seen: false,
            no_zeroes: false,
            options: 0,
        }
    }

    /// Takes as many whole messages as `input` holds off its front. Returns the number of bytes
    /// taken and where the handshake stands; replies are appended to `out`.
    ///
    /// # Errors
    /// [`Violation`] when the connection has to end.
    pub fn advance(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Progress), Violation> {
        let mut reader = Reader(input);
        let mut taken = 0;
        let mut progress = Progress::More;
        while progress == Progress::More {
            let Some(next) = self.message(&mut reader, out)? else {
                break;
            };
            progress = next;
            taken = input.len() - reader.0.len();
        }
        Ok((taken, progress))
    }

    /// One message; `None` when it is not there as a whole, and `reader` is then spent.
    fn message(
        &mut self,
        reader: &mut Reader<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<Progress>, Violation> {
        if !self.flags_seen {
            let Some(flags) = reader.u32() else {
                return Ok(None);
            };
            let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
            if flags & !known != 0 {
                return Err(Violation::ClientFlags(flags));
            }
            self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
            self.flags_seen = true;
            return Ok(Some(Progress::More));
        }
        let Some(magic) = reader.u64() else {
            return Ok(None);
        };
        if magic != IHAVEOPT {
            return Err(Violation::OptionMagic(magic));
        }
        let (Some(number), Some(length)) = (reader.u32(), reader.u32()) else {
            return Ok(None);
        };
        if length > MAX_OPTION_LENGTH {
            return Err(Violation::OptionLength(length));
        }
        let Some(data) = reader.bytes(length) else {
            return Ok(None);
        };
        if self.options == MAX_OPTIONS {
            return Err(Violation::TooManyOptions);
        }
        self.options += 1;
        self.option(number, data, out).map(Some)
    }

    fn option(
        &mut self,
        number: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Progress, Violation> {
        let mut replies = Replies {
            option: number,
            out,
        };
        match number {
            option::EXPORT_NAME => {
                if !is_export(data) {
                    return Err(Violation::UnknownExport);
                }
                self.export_name_reply(out);
                return Ok(Progress::Transmission(self.session));
            }
            option::ABORT => {
                replies.ack();
                return Ok(Progress::Aborted);
            }
            option::INFO | option::GO => {
                if self.info(data, &mut replies) && number == option::GO {
                    return Ok(Progress::Transmission(self.session));
                }
            }
            option::LIST if data.is_empty() => {
                let name = EXPORT_NAME.as_bytes();
                replies.send(option_reply::SERVER, &[&length_field(name.len()), name]);
                replies.ack();
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.session.structured_replies = true;
                replies.ack();
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(number == option::SET_META_CONTEXT, data, &mut replies);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                replies.error(option_reply::ERR_INVALID, "this option has no data");
            }
            _ => replies.error(option_reply::ERR_UNSUP, "unknown option"),
        }
        Ok(Progress::More)
    }

    const fn transmission_flags(&self) -> u16 {
        use transmission_flag as flag;
        let flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_TRIM
            | flag::SEND_WRITE_ZEROES
            | flag::SEND_FAST_ZERO
            | flag::CAN_MULTI_CONN;
        if self.session.structured_replies {
            flags | flag::SEND_DF
        } else {
            flags
        }
    }

    fn export_name_reply(&self, out: &mut Vec<u8>) {
        out.extend(self.session.size.to_be_bytes());
        out.extend(self.transmission_flags().to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`; whether the export was found.
    fn info(&self, data: &[u8], replies: &mut Replies<'_>) -> bool {
        let Some((name, asked)) = info_request(data) else {
            replies.error(option_reply::ERR_INVALID, "malformed request");
            return false;
        };
        if !is_export(name) {
            replies.error(option_reply::ERR_UNKNOWN, "no such export");
            return false;
        }
        let (size, flags) = (self.session.size, self.transmission_flags());
        replies.info(
            info::EXPORT,
            &[&size.to_be_bytes()[..], &flags.to_be_bytes()].concat(),
        );
        // A bit each, so that asking twice is answered once.
        if asked & (1 << info::NAME) != 0 {
            replies.info(info::NAME, EXPORT_NAME.as_bytes());
        }
        if asked & (1 << info::DESCRIPTION) != 0 {
            replies.info(info::DESCRIPTION, DESCRIPTION);
        }
        if asked & (1 << info::BLOCK_SIZE) != 0 {
            let sizes = [MIN_BLOCK_SIZE, BLOCK_SIZE, MAX_PAYLOAD].map(u32::to_be_bytes);
            replies.info(info::BLOCK_SIZE, sizes.as_flattened());
        }
        replies.ack();
        true
    }

    /// `NBD_OPT_SET_META_CONTEXT` (`set`) and `NBD_OPT_LIST_META_CONTEXT`.
    fn meta_context(&mut self, set: bool, data: &[u8], replies: &mut Replies<'_>) {
        if set {
            // Whatever comes of it, a new request drops what an earlier one agreed on.
            self.session.base_allocation = false;
        }
        let Some((name, found)) = context_request(data, set) else {
            return replies.error(option_reply::ERR_INVALID, "malformed request");
        };
        if !self.session.structured_replies {
            return replies.error(option_reply::ERR_INVALID, "structured replies come first");
        }
        if !is_export(name) {
            return replies.error(option_reply::ERR_UNKNOWN, "no such export");
        }
        if found {
            // A list gives no numbers: they are of what has been set.
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            replies.send(
                option_reply::META_CONTEXT,
                &[&id.to_be_bytes(), BASE_ALLOCATION],
            );
        }
        if set {
            self.session.base_allocation = found;
        }
        replies.ack();
    }
}

/// The client's only device goes by two names.
fn is_export(name: &[u8]) -> bool {
    name.is_empty() || name == EXPORT_NAME.as_bytes()
}

/// The export's name and a bit for each kind of information asked for, of those known here.
fn info_request(data: &[u8]) -> Option<(&[u8], u8)> {
    let mut reader = Reader(data);
    let name = reader.string()?;
    let count = reader.u16()?;
    let mut asked = 0;
    for _ in 0..count {
        let kind = reader.u16()?;
        asked |= 1u8.checked_shl(kind.into()).unwrap_or(0);
    }
    reader.is_empty().then_some((name, asked))
}

/// The export's name and whether the queries name the allocation context.
fn context_request(data: &[u8], set: bool) -> Option<(&[u8], bool)> {
    let mut reader = Reader(data);
    let name = reader.string()?;
    let count = reader.u32()?;
    // A list without queries asks for everything there is.
    let mut found = !set && count == 0;
    for _ in 0..count {
        let query = reader.string()?;
        found |= query == BASE_ALLOCATION || (!set && query == b"base:");
    }
    reader.is_empty().then_some((name, found))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "replies are a few dozen bytes long"
)]
const fn length_field(length: usize) -> [u8; 4] {
    (length as u32).to_be_bytes()
}

/// Replies to one option.
struct Replies<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    fn send(&mut self, kind: u32, data: &[&[u8]]) {
        let length: usize = data.iter().map(|part| part.len()).sum();
        self.out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend(self.option.to_be_bytes());
        self.out.extend(kind.to_be_bytes());
        self.out.extend(length_field(length));
        self.out.extend(data.iter().copied().flatten());
    }

    fn ack(&mut self) {
        self.send(option_reply::ACK, &[]);
    }

    fn error(&mut self, kind: u32, message: &str) {
        self.send(kind, &[message.as_bytes()]);
    }

    fn info(&mut self, kind: u16, data: &[u8]) {
        self.send(option_reply::INFO, &[&kind.to_be_bytes(), data]);
    }
}
