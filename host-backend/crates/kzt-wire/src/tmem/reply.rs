// SPDX-License-Identifier: GPL-2.0-or-later
use super::frame::{HEADER_LENGTH, Header, PAGE, flags};

const STATUS: usize = size_of::<i32>();

/// Appends the reply to a request that has but one status.
pub fn reply(out: &mut Vec<u8>, request: &Header, status: i32) {
    out.extend(head(request, status).encode(&[]));
}

/// A reply with a status for each of its request's pages, and maybe pages, made at the end of a
/// buffer.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    header: Header,
    /// Where the frame begins.
    at: usize,
    /// Where the next status goes.
    status: usize,
}

impl<'a> Reply<'a> {
    /// Bytes of the longest reply for `count` pages.
    #[must_use]
    pub const fn longest(count: u32) -> usize {
        HEADER_LENGTH + count as usize * (STATUS + PAGE)
    }

    /// Begins the reply to a request of `count` pages.
    #[must_use]
    pub fn begin(out: &'a mut Vec<u8>, request: &Header, count: u32) -> Self {
        let at = out.len();
        let status = at + HEADER_LENGTH;
        out.resize(status + count as usize * STATUS, 0);
        Self {
            out,
            header: head(request, 0),
            at,
            status,
        }
    }

    /// Tells the next page's status.
    pub fn status(&mut self, status: i32) {
        if let Some(place) = self.out.get_mut(self.status..self.status + STATUS) {
            place.copy_from_slice(&status.to_le_bytes());
        }
        self.status += STATUS;
    }

    /// Tells the status of the next page, which `fetch` puts into the buffer if it is 1.
    pub fn page(&mut self, fetch: impl FnOnce(&mut [u8; PAGE]) -> i32) {
        let end = self.out.len();
        self.out.resize(end + PAGE, 0);
        let status = self.out.last_chunk_mut().map_or(0, fetch);
        if status != 1 {
            // Nothing that a failed fetch left there gets to the guest.
            self.out.truncate(end);
        }
        self.status(status);
    }

    /// Completes the frame.
    pub fn finish(self) {
        let (_, frame) = self.out.split_at_mut(self.at);
        if let Some((head, payload)) = frame.split_first_chunk_mut() {
            *head = self.header.encode(payload);
        }
    }
}

/// The header of a reply.
fn head(request: &Header, status: i32) -> Header {
    Header {
        flags: flags::REPLY,
        pool: status,
        ..*request
    }
}
