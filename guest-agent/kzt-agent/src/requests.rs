// SPDX-License-Identifier: GPL-2.0-or-later
//! Where requests end in the stream that the kernel sends.

use std::time::Instant;

use kzt_wire::nbd::{HEADER_LENGTH, Request};

use crate::flight::{Flight, Unexpected};

/// Follows the requests in a stream that is cut into payloads.
///
/// The kernel sends a request's header and each of its pages by itself; a frame for each would cost
/// many times what one costs for all. So a payload is sent when it ends where a request does.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Where in the current payload the first request begins that was not looked at yet. Beyond
    /// its end while the rest of a write is on its way.
    next: usize,
}

/// What a payload holds so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Bytes in front of a header that is not there as a whole.
    pub(crate) sendable: usize,
    /// Whether the payload ends with a request's last byte.
    pub(crate) whole: bool,
}

impl Requests {
    /// Looks at what has come to the current payload, and tells `flight` of new requests.
    ///
    /// # Errors
    /// [`Unexpected`] if this is no stream of requests.
    pub(crate) fn follow(
        &mut self,
        payload: &[u8],
        flight: &mut Flight,
        now: Instant,
    ) -> Result<Span, Unexpected> {
        while let Some(rest) = payload.get(self.next..).filter(|rest| !rest.is_empty()) {
            let Some(request) = Request::decode(rest).map_err(|_| Unexpected)? else {
                break;
            };
            flight.depart(&request, now)?;
            self.next += HEADER_LENGTH + request.payload() as usize;
        }
        Ok(Span {
            sendable: self.next.min(payload.len()),
            whole: self.next == payload.len(),
        })
    }

    /// The first `sent` bytes of the payload are sent: what follows begins the next one.
    pub(crate) fn cut(&mut self, sent: usize) {
        self.next = self.next.saturating_sub(sent);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(write: bool, cookie: u64, length: u32) -> Vec<u8> {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, u8::from(write)]);
        bytes.extend(cookie.to_be_bytes());
        bytes.extend((cookie * 4096).to_be_bytes());
        bytes.extend(length.to_be_bytes());
        if write {
            bytes.extend(vec![0x5a; length as usize]);
        }
        bytes
    }

    #[test]
    fn bytes_that_are_no_request_are_noticed() {
        let (mut requests, mut flight) = (Requests::default(), Flight::new());
        let found = requests.follow(&[0; 28], &mut flight, Instant::now());
        assert_eq!(found, Err(Unexpected));
    }

    proptest! {
        /// However the kernel's bytes arrive: payloads join to the same stream, none splits a
        /// header, and one that is not full ends with a request.
        #[test]
        fn payloads_end_where_requests_do(
            sizes in proptest::collection::vec((any::<bool>(), 1_u32..12_000), 1..30),
            pieces in proptest::collection::vec(1_usize..5000, 1..60),
            room in 4096_usize..9000,
        ) {
            let mut stream = Vec::new();
            let mut headers = Vec::new();
            for (cookie, (write, length)) in sizes.iter().enumerate() {
                headers.push(stream.len());
                stream.extend(request(*write, cookie as u64, *length));
            }
            let (mut requests, mut flight) = (Requests::default(), Flight::new());
            let (mut payload, mut sent) = (Vec::new(), Vec::new());
            let mut rest = stream.as_slice();
            for piece in pieces.iter().cycle() {
                let count = (*piece).min(rest.len()).min(room - payload.len());
                payload.extend(&rest[..count]);
                rest = &rest[count..];
                let span = requests.follow(&payload, &mut flight, Instant::now()).unwrap();
                let full = payload.len() == room;
                if span.whole || full {
                    let end = sent.len() + span.sendable;
                    prop_assert!(headers.iter().all(|at| end <= *at || end >= at + HEADER_LENGTH));
                    prop_assert!(full || end == stream.len() || headers.contains(&end));
                    sent.extend(payload.drain(..span.sendable));
                    requests.cut(span.sendable);
                }
                if rest.is_empty() && payload.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(sent, stream);
        }
    }
}
