// SPDX-License-Identifier: GPL-2.0-or-later
use super::constants::BLOCK_SIZE;
use super::request::HEADER_LENGTH;
use super::{Command, Request, Violation};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Smallest buffer that always makes progress: a header and the bytes up to the next block.
pub const MIN_INPUT: usize = HEADER_LENGTH + BLOCK_SIZE as usize;

/// What the stream says next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A request without payload.
    Request(Request),
    /// A part of a write. Parts of one write follow each other without gap and meet at block
    /// boundaries of the device; a write whose payload is there as a whole is a single part.
    Write {
        /// The whole write's header.
        request: Request,
        /// Where `data` starts inside the write, in bytes.
        start: usize,
        /// The payload's next bytes.
        data: &'a [u8],
        /// Whether these are the write's last bytes: it can be replied to.
        last: bool,
    },
}

/// Cuts the transmission phase's byte stream into events.
///
/// Holds at most one write's header: however long the write, the caller's buffer is all it takes.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The write whose payload is on its way, and how much of it has passed.
    write: Option<(Request, usize)>,
}

impl Decoder {
    /// Takes the next event off the front of `input`, with the number of bytes it took; `None` when
    /// more input is needed. An input of [`MIN_INPUT`] bytes always holds an event.
    ///
    /// # Errors
    /// [`Violation`] when the stream can't be followed from here on.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, Violation> {
        let Some((request, start)) = self.write else {
            let Some(request) = Request::decode(input)? else {
                return Ok(None);
            };
            if request.command != Command::Write {
                return Ok(Some((Event::Request(request), HEADER_LENGTH)));
            }
            let payload = input.get(HEADER_LENGTH..).unwrap_or_default();
            let part = self.part(request, 0, payload);
            return Ok(part.map(|(event, taken)| (event, HEADER_LENGTH + taken)));
        };
        Ok(self.part(request, start, input))
    }

    /// The longest part of a write that `input` holds.
    fn part<'a>(
        &mut self,
        request: Request,
        start: usize,
        input: &'a [u8],
    ) -> Option<(Event<'a>, usize)> {
        let rest = request.length as usize - start;
        let last = input.len() >= rest;
        let taken = if last {
            rest
        } else {
            // Up to the last block boundary. The offset is the client's and may be absurd: only
            // its place within a block matters here.
            let within = (request.offset.wrapping_add(start as u64) % BLOCK) as usize;
            let whole = (within + input.len()) / BLOCK_SIZE as usize * BLOCK_SIZE as usize;
            whole.checked_sub(within).filter(|taken| *taken > 0)?
        };
        let data = input.get(..taken)?;
        self.write = (!last).then_some((request, start + taken));
        Some((
            Event::Write {
                request,
                start,
                data,
                last,
            },
            taken,
        ))
    }
}
