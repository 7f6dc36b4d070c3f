// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests that are on their way: how long each takes, and where replies end.

use std::time::{Duration, Instant};

use kzt_wire::nbd::{Command, Request};

/// Twice what nbd ever has in flight on one connection.
const MAX_REQUESTS: usize = 256;
const REPLY_HEADER: usize = 16;
const REPLY_MAGIC: [u8; 4] = 0x6744_6698_u32.to_be_bytes();

/// The requests of one session without a reply.
pub(crate) struct Flight {
    requests: [Option<Departed>; MAX_REQUESTS],
    /// A reply's header, as far as it has come.
    header: [u8; REPLY_HEADER],
    length: usize,
    /// Bytes of a read's data that are still to come.
    data: usize,
}

#[derive(Clone, Copy)]
struct Departed {
    cookie: u64,
    /// Bytes that come with a reply of success.
    data: usize,
    at: Instant,
}

/// What requests took, from the moment they were read from the kernel until their reply was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) replies: u64,
    pub(crate) total: Duration,
    pub(crate) longest: Duration,
    /// Replies that told of an error.
    pub(crate) errors: u64,
}

/// A reply to no request, or a request too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unexpected;

impl Flight {
    pub(crate) const fn new() -> Self {
        Self {
            requests: [None; MAX_REQUESTS],
            header: [0; REPLY_HEADER],
            length: 0,
            data: 0,
        }
    }

    /// A request was read from the kernel.
    pub(crate) fn depart(&mut self, request: &Request, at: Instant) -> Result<(), Unexpected> {
        let free = self.requests.iter_mut().find(|place| place.is_none());
        *free.ok_or(Unexpected)? = Some(Departed {
            cookie: request.cookie,
            data: match request.command {
                Command::Read => request.length as usize,
                _ => 0,
            },
            at,
        });
        Ok(())
    }

    /// How long the oldest request has been waiting.
    pub(crate) fn oldest(&self, now: Instant) -> Duration {
        let ages = self.requests.iter().flatten().map(|sent| now - sent.at);
        ages.max().unwrap_or_default()
    }

    /// Follows the stream of replies.
    pub(crate) fn follow(
        &mut self,
        mut stream: &[u8],
        now: Instant,
        times: &mut Times,
    ) -> Result<(), Unexpected> {
        while !stream.is_empty() {
            let data = self.data.min(stream.len());
            self.data -= data;
            stream = stream.get(data..).unwrap_or_default();
            for (place, byte) in self.header.iter_mut().skip(self.length).zip(stream) {
                *place = *byte;
            }
            let taken = stream.len().min(REPLY_HEADER - self.length);
            self.length += taken;
            stream = stream.get(taken..).unwrap_or_default();
            if self.length == REPLY_HEADER {
                self.length = 0;
                self.reply(now, times)?;
            }
        }
        Ok(())
    }

    fn reply(&mut self, now: Instant, times: &mut Times) -> Result<(), Unexpected> {
        let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = self.header;
        let cookie = u64::from_be_bytes(cookie);
        let mut places = self.requests.iter_mut();
        let place = places.find(|place| place.is_some_and(|sent| sent.cookie == cookie));
        let sent = place.and_then(Option::take).ok_or(Unexpected)?;
        if [m0, m1, m2, m3] != REPLY_MAGIC {
            return Err(Unexpected);
        }
        if [e0, e1, e2, e3] == [0; 4] {
            self.data = sent.data;
        } else {
            times.errors += 1;
        }
        let took = now - sent.at;
        times.replies += 1;
        times.total += took;
        times.longest = times.longest.max(took);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(command: Command, cookie: u64, length: u32) -> Request {
        Request {
            flags: 0,
            command,
            cookie,
            offset: 0,
            length,
        }
    }

    fn reply(cookie: u64, error: u32, data: usize) -> Vec<u8> {
        let mut bytes = REPLY_MAGIC.to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(vec![0xa5; data]);
        bytes
    }

    #[test]
    fn a_reply_to_nothing_is_noticed() {
        let mut flight = Flight::new();
        let (now, mut times) = (Instant::now(), Times::default());
        flight
            .depart(&request(Command::Write, 7, 4096), now)
            .unwrap();
        assert_eq!(
            flight.follow(&reply(8, 0, 0), now, &mut times),
            Err(Unexpected)
        );
    }

    #[test]
    fn a_request_too_many_is_noticed() {
        let mut flight = Flight::new();
        let now = Instant::now();
        for cookie in 0..MAX_REQUESTS as u64 {
            let request = request(Command::Read, cookie, 4096);
            flight.depart(&request, now).unwrap();
        }
        let request = request(Command::Read, 1 << 40, 4096);
        assert_eq!(flight.depart(&request, now), Err(Unexpected));
    }

    proptest! {
        /// Whatever the order of replies and the cuts in their stream, each finds its request.
        #[test]
        fn replies_are_followed_through_any_cuts(
            requests in proptest::collection::vec((any::<bool>(), 1_u32..20_000, any::<bool>()), 1..40),
            cuts in proptest::collection::vec(1_usize..9000, 1..50),
        ) {
            let (now, mut times) = (Instant::now(), Times::default());
            let mut flight = Flight::new();
            let mut stream = Vec::new();
            for (cookie, (read, length, fails)) in requests.iter().enumerate() {
                let command = if *read { Command::Read } else { Command::Write };
                flight.depart(&request(command, cookie as u64, *length), now).unwrap();
                let data = if *read && !fails { *length as usize } else { 0 };
                // The last request is answered first.
                stream.splice(0..0, reply(cookie as u64, u32::from(*fails) * 5, data));
            }
            let mut rest = stream.as_slice();
            for cut in cuts.iter().cycle() {
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                flight.follow(head, now, &mut times).unwrap();
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(times.replies, requests.len() as u64);
            prop_assert_eq!(times.errors, requests.iter().filter(|(_, _, fails)| *fails).count() as u64);
            prop_assert_eq!(flight.data, 0);
            prop_assert!(flight.requests.iter().all(Option::is_none));
        }
    }
}
