// SPDX-License-Identifier: GPL-2.0-or-later
//! Replies of the transmission phase, appended to a caller's buffer.

use super::constants::{BASE_ALLOCATION_ID, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use super::{Command, Errno, Request, Session};

/// Bytes of a simple reply before its data.
pub const SIMPLE_LENGTH: usize = 16;
/// Bytes of a structured chunk before its payload.
pub const CHUNK_LENGTH: usize = 20;
/// Bytes of a data chunk before the data: the chunk's header and an offset.
pub const DATA_LENGTH: usize = CHUNK_LENGTH + 8;
/// Bytes of a block status reply before its extents: the chunk's header and the context.
pub const STATUS_LENGTH: usize = CHUNK_LENGTH + 4;
/// Bytes of one extent.
pub const EXTENT_LENGTH: u32 = 8;
/// The most bytes of a reply that carries no data: an error chunk.
pub const LONGEST_BARE: usize = CHUNK_LENGTH + 6;

/// A whole reply without data: success of a command that has none, or any command's failure.
pub fn bare(out: &mut Vec<u8>, session: &Session, request: &Request, result: Result<(), Errno>) {
    let structured = session.structured_replies
        && matches!(request.command, Command::Read | Command::BlockStatus);
    match result {
        Err(error) if structured => {
            chunk_header(out, request.cookie, chunk::DONE, chunk::ERROR, 6);
            out.extend(error.code().to_be_bytes());
            out.extend(0u16.to_be_bytes()); // no message
        }
        Ok(()) if structured => chunk_header(out, request.cookie, chunk::DONE, chunk::NONE, 0),
        Err(error) => simple(out, request.cookie, error.code()),
        Ok(()) => simple(out, request.cookie, 0),
    }
}

/// The head of a read's data in a session without structured replies: the whole read's data
/// follows, and nothing can take it back.
pub fn simple_data(out: &mut Vec<u8>, request: &Request) {
    simple(out, request.cookie, 0);
}

/// The head of a chunk of a read's data: `length` bytes from `offset` on follow.
pub fn data_chunk(out: &mut Vec<u8>, request: &Request, last: bool, offset: u64, length: u32) {
    let flags = if last { chunk::DONE } else { 0 };
    chunk_header(out, request.cookie, flags, chunk::OFFSET_DATA, length + 8);
    out.extend(offset.to_be_bytes());
}

fn simple(out: &mut Vec<u8>, cookie: u64, error: u32) {
    out.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
}

fn chunk_header(out: &mut Vec<u8>, cookie: u64, flags: u16, kind: u16, length: u32) {
    out.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(length.to_be_bytes());
}

/// A block status reply under construction: extents in order, neighbours of a kind merged.
#[derive(Debug)]
pub struct BlockStatus {
    cookie: u64,
    limit: u32,
    extents: u32,
    /// The extent that may still grow: its length and whether it is stored.
    open: Option<(u32, bool)>,
}

impl BlockStatus {
    /// Starts a reply of at most `limit` extents, at least one.
    pub fn begin(out: &mut Vec<u8>, request: &Request, limit: u32) -> Self {
        // The length is only known at the end: `finish` writes the head again.
        out.resize(out.len() + STATUS_LENGTH, 0);
        Self {
            cookie: request.cookie,
            limit,
            extents: 0,
            open: None,
        }
    }

    /// Appends an extent; `false` when the reply is full and the extent was left out.
    pub fn push(&mut self, out: &mut Vec<u8>, length: u32, stored: bool) -> bool {
        match &mut self.open {
            Some((open, kind)) if *kind == stored => *open += length,
            _ if self.extents == self.limit => return false,
            open => {
                let ended = open.replace((length, stored));
                self.extents += 1;
                if let Some(ended) = ended {
                    extent(out, ended);
                }
            }
        }
        true
    }

    /// Ends the reply.
    pub fn finish(self, out: &mut Vec<u8>) {
        if let Some(open) = self.open {
            extent(out, open);
        }
        let tail = out.len();
        let head = tail - (self.extents * EXTENT_LENGTH) as usize - STATUS_LENGTH;
        // Encoded at the end, then moved to where it belongs.
        let length = self.extents * EXTENT_LENGTH + 4;
        chunk_header(out, self.cookie, chunk::DONE, chunk::BLOCK_STATUS, length);
        out.extend(BASE_ALLOCATION_ID.to_be_bytes());
        out.copy_within(tail.., head);
        out.truncate(tail);
    }
}

/// `stored` is the allocation context's "data"; what is not is a hole that reads as zeroes.
fn extent(out: &mut Vec<u8>, (length, stored): (u32, bool)) {
    const HOLE_AND_ZERO: u32 = 0b11;
    out.extend(length.to_be_bytes());
    out.extend((if stored { 0 } else { HOLE_AND_ZERO }).to_be_bytes());
}
