// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests that are on their way, every byte of them: until its reply has reached the kernel, a
//! request can be sent again.

use std::time::{Duration, Instant};

use kzt_wire::nbd::{Command, HEADER_LENGTH, Request};

/// Bytes of requests without a reply; when they are here, no more are taken from the kernel.
const SIZE: usize = 512 << 10;
/// Longest write that the kernel may send: several have to fit.
pub(crate) const MAX_WRITE: usize = 128 << 10;
/// Twice what nbd ever has in flight on one connection.
const MAX_REQUESTS: usize = 256;
const REPLY_HEADER: usize = 16;
const REPLY_MAGIC: [u8; 4] = 0x6744_6698_u32.to_be_bytes();

/// The requests of one connection of the kernel's that have no reply, and how far the reply is that
/// is being given.
///
/// Positions count all bytes that the kernel has ever sent; a byte is kept at its position modulo
/// [`SIZE`], from `start` to `end`.
pub(crate) struct Ledger {
    bytes: Box<[u8]>,
    /// The oldest request without a reply.
    start: u64,
    /// What the host has not been sent yet.
    unsent: u64,
    /// The first request that was not looked at yet: beyond `end` while the rest of a write is on
    /// its way.
    next: u64,
    end: u64,
    requests: Requests,
    reply: Reply,
    /// Bytes of the host's next reply that the kernel has already, and whether it is still to be
    /// seen that this is the reply.
    repeated: usize,
    check: bool,
}

/// A queue, in the order in which they were sent.
struct Requests {
    places: [Pending; MAX_REQUESTS],
    first: usize,
    count: usize,
}

#[derive(Clone, Copy)]
struct Pending {
    cookie: u64,
    start: u64,
    /// Where the next request begins.
    end: u64,
    /// Bytes that come with a reply of success.
    data: usize,
    at: Instant,
    answered: bool,
}

/// The reply that the kernel is being given.
#[derive(Default)]
struct Reply {
    header: [u8; REPLY_HEADER],
    length: usize,
    /// Bytes of a read's data that are still to come, and whose they are.
    data: usize,
    cookie: u64,
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

/// Bytes that can't be: no request, a reply to none, or one too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unexpected;

impl Ledger {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; SIZE].into_boxed_slice(),
            start: 0,
            unsent: 0,
            next: 0,
            end: 0,
            requests: Requests {
                places: [Pending {
                    cookie: 0,
                    start: 0,
                    end: 0,
                    data: 0,
                    at: Instant::now(),
                    answered: true,
                }; MAX_REQUESTS],
                first: 0,
                count: 0,
            },
            reply: Reply::default(),
            repeated: 0,
            check: false,
        }
    }

    /// Forgets everything: the kernel will send it anew, on another connection.
    pub(crate) fn clear(&mut self) {
        (self.start, self.unsent, self.next, self.end) = (0, 0, 0, 0);
        self.requests.count = 0;
        self.reply = Reply::default();
        (self.repeated, self.check) = (0, false);
    }

    /// Where the kernel's next bytes go; empty while too much has no reply.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let free = SIZE - length(self.start, self.end);
        let at = place(self.end);
        self.bytes
            .get_mut(at..SIZE.min(at + free))
            .unwrap_or_default()
    }

    /// The kernel's next `count` bytes are in [`room`](Self::room).
    pub(crate) fn add(&mut self, count: usize, now: Instant) -> Result<(), Unexpected> {
        self.end += count as u64;
        while self.next < self.end {
            let mut header = [0; HEADER_LENGTH];
            let known = header.len().min(length(self.next, self.end));
            let header = header.get_mut(..known).unwrap_or_default();
            self.copy(self.next, header);
            let Some(request) = Request::decode(header).map_err(|_| Unexpected)? else {
                break;
            };
            let payload = request.payload() as usize;
            if payload > MAX_WRITE {
                return Err(Unexpected);
            }
            let end = self.next + (HEADER_LENGTH + payload) as u64;
            self.requests.push(Pending {
                cookie: request.cookie,
                start: self.next,
                end,
                data: match request.command {
                    Command::Read => request.length as usize,
                    _ => 0,
                },
                at: now,
                answered: false,
            })?;
            self.next = end;
        }
        Ok(())
    }

    /// How many bytes to send now, `limit` at most; 0 while the last request is not there as a
    /// whole.
    ///
    /// The kernel sends a request's header and each of its pages by itself; a frame for each would
    /// cost many times what one costs for all.
    pub(crate) fn sendable(&self, limit: usize) -> usize {
        let unsent = length(self.unsent, self.end);
        if self.next == self.end || unsent >= limit {
            unsent.min(limit)
        } else {
            0
        }
    }

    /// Copies the next bytes to be sent to `payload`, as many as it holds: they are sent.
    pub(crate) fn take(&mut self, payload: &mut [u8]) {
        self.copy(self.unsent, payload);
        self.unsent += payload.len() as u64;
    }

    /// Whether there is something that the host has not been sent.
    pub(crate) const fn has_unsent(&self) -> bool {
        self.unsent < self.end
    }

    /// Takes back what was sent and has no reply, to be sent to another session of the host's.
    ///
    /// `false` if that can't be done: replies came out of turn, or a header was cut in two.
    pub(crate) fn rewind(&mut self) -> bool {
        let given = match self.requests.oldest() {
            _ if self.reply.length > 0 => return false,
            Some(oldest) if self.reply.data > 0 && self.reply.cookie == oldest.cookie => {
                REPLY_HEADER + oldest.data - self.reply.data
            }
            _ if self.reply.data > 0 => return false,
            _ => 0,
        };
        if self.requests.iter().any(|request| request.answered) {
            return false;
        }
        self.unsent = self.start;
        (self.repeated, self.check) = (given, given > 0);
        true
    }

    /// How many bytes at the front of the host's stream the kernel was given before the session
    /// changed: they are the same again, as nobody who swaps writes to what is being read.
    pub(crate) fn repeated(&mut self, stream: &[u8]) -> Result<usize, Unexpected> {
        if std::mem::take(&mut self.check) {
            let cookie = self.reply.cookie.to_be_bytes();
            let success = REPLY_MAGIC.iter().chain(&[0; 4]).chain(&cookie);
            // The first reply of a session begins in one piece.
            if !success.eq(stream.iter().take(REPLY_HEADER)) {
                return Err(Unexpected);
            }
        }
        let count = self.repeated.min(stream.len());
        self.repeated -= count;
        Ok(count)
    }

    /// How long the oldest request has been waiting.
    pub(crate) fn waiting(&self, now: Instant) -> Duration {
        let oldest = self.requests.oldest();
        oldest.map_or(Duration::ZERO, |oldest| now - oldest.at)
    }

    /// Follows the stream of replies that the kernel is given.
    pub(crate) fn follow(
        &mut self,
        mut stream: &[u8],
        now: Instant,
        times: &mut Times,
    ) -> Result<(), Unexpected> {
        while !stream.is_empty() {
            if self.reply.data > 0 {
                let data = self.reply.data.min(stream.len());
                self.reply.data -= data;
                stream = stream.get(data..).unwrap_or_default();
                if self.reply.data == 0 {
                    self.answer(self.reply.cookie, now, times)?;
                }
                continue;
            }
            let reply = &mut self.reply;
            for (place, byte) in reply.header.iter_mut().skip(reply.length).zip(stream) {
                *place = *byte;
            }
            let taken = stream.len().min(REPLY_HEADER - reply.length);
            reply.length += taken;
            stream = stream.get(taken..).unwrap_or_default();
            if reply.length == REPLY_HEADER {
                reply.length = 0;
                self.header(now, times)?;
            }
        }
        Ok(())
    }

    fn header(&mut self, now: Instant, times: &mut Times) -> Result<(), Unexpected> {
        let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = self.reply.header;
        let cookie = u64::from_be_bytes(cookie);
        let unsent = self.unsent;
        let request = self.requests.find(cookie).ok_or(Unexpected)?;
        if [m0, m1, m2, m3] != REPLY_MAGIC || request.end > unsent {
            return Err(Unexpected);
        }
        let failed = [e0, e1, e2, e3] != [0; 4];
        times.errors += u64::from(failed);
        if failed || request.data == 0 {
            return self.answer(cookie, now, times);
        }
        self.reply.data = request.data;
        self.reply.cookie = cookie;
        Ok(())
    }

    /// The kernel has the whole reply.
    fn answer(&mut self, cookie: u64, now: Instant, times: &mut Times) -> Result<(), Unexpected> {
        let request = self.requests.find(cookie).ok_or(Unexpected)?;
        request.answered = true;
        let took = now - request.at;
        times.replies += 1;
        times.total += took;
        times.longest = times.longest.max(took);
        self.requests.drop_answered();
        self.start = self
            .requests
            .oldest()
            .map_or(self.next, |oldest| oldest.start);
        Ok(())
    }

    fn copy(&self, from: u64, to: &mut [u8]) {
        let (second, first) = self.bytes.split_at(place(from));
        let (head, tail) = to.split_at_mut(first.len().min(to.len()));
        for (to, from) in [(head, first), (tail, second)] {
            if let Some(from) = from.get(..to.len()) {
                to.copy_from_slice(from);
            }
        }
    }
}

impl Requests {
    fn push(&mut self, request: Pending) -> Result<(), Unexpected> {
        if self.count == MAX_REQUESTS {
            return Err(Unexpected);
        }
        let at = (self.first + self.count) % MAX_REQUESTS;
        *self.places.get_mut(at).ok_or(Unexpected)? = request;
        self.count += 1;
        Ok(())
    }

    fn iter(&self) -> impl Iterator<Item = &Pending> {
        let (second, first) = self.places.split_at(self.first);
        first.iter().chain(second).take(self.count)
    }

    fn oldest(&self) -> Option<&Pending> {
        self.iter().next()
    }

    fn find(&mut self, cookie: u64) -> Option<&mut Pending> {
        let (second, first) = self.places.split_at_mut(self.first);
        let mut pending = first.iter_mut().chain(second).take(self.count);
        pending.find(|request| request.cookie == cookie && !request.answered)
    }

    fn drop_answered(&mut self) {
        while self.oldest().is_some_and(|oldest| oldest.answered) {
            self.first = (self.first + 1) % MAX_REQUESTS;
            self.count -= 1;
        }
    }
}

fn length(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(SIZE)
}

fn place(position: u64) -> usize {
    usize::try_from(position % SIZE as u64).unwrap_or(0)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
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
            bytes.extend((0..length).map(|at| (at % 251) as u8 ^ cookie as u8));
        }
        bytes
    }

    fn reply(cookie: u64, error: u32, data: usize) -> Vec<u8> {
        let mut bytes = REPLY_MAGIC.to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(std::iter::repeat_n(cookie as u8, data));
        bytes
    }

    /// Puts as much as there is room for.
    fn put(ledger: &mut Ledger, bytes: &[u8]) -> usize {
        let room = ledger.room();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        ledger.add(count, Instant::now()).unwrap();
        count
    }

    fn take(ledger: &mut Ledger, limit: usize) -> Vec<u8> {
        let mut payload = vec![0; ledger.sendable(limit)];
        ledger.take(&mut payload);
        payload
    }

    fn follow(ledger: &mut Ledger, stream: &[u8]) -> Result<Times, Unexpected> {
        let mut times = Times::default();
        ledger
            .follow(stream, Instant::now(), &mut times)
            .map(|()| times)
    }

    #[test]
    fn bytes_that_are_no_request_are_noticed() {
        let mut ledger = Ledger::new();
        assert_eq!(ledger.add(28, Instant::now()), Err(Unexpected));
    }

    #[test]
    fn a_write_that_would_not_fit_is_noticed() {
        let mut ledger = Ledger::new();
        let header = &request(true, 1, MAX_WRITE as u32 + 1)[..28];
        ledger.room()[..28].copy_from_slice(header);
        assert_eq!(ledger.add(28, Instant::now()), Err(Unexpected));
    }

    #[test]
    fn a_reply_to_nothing_is_noticed() {
        let mut ledger = Ledger::new();
        put(&mut ledger, &request(true, 7, 4096));
        take(&mut ledger, 1 << 20);
        assert_eq!(follow(&mut ledger, &reply(8, 0, 0)), Err(Unexpected));
    }

    #[test]
    fn a_reply_before_its_request_was_sent_is_noticed() {
        let mut ledger = Ledger::new();
        put(&mut ledger, &request(true, 7, 4096));
        ledger.take(&mut [0; 100]);
        assert_eq!(follow(&mut ledger, &reply(7, 0, 0)), Err(Unexpected));
    }

    #[test]
    fn a_request_too_many_is_noticed() {
        let mut ledger = Ledger::new();
        for cookie in 0..MAX_REQUESTS as u64 {
            put(&mut ledger, &request(false, cookie, 4096));
        }
        let one_more = request(false, 1 << 40, 4096);
        ledger.room()[..28].copy_from_slice(&one_more);
        assert_eq!(ledger.add(28, Instant::now()), Err(Unexpected));
    }

    #[test]
    fn replies_out_of_turn_cannot_be_taken_back() {
        let mut ledger = Ledger::new();
        for cookie in [1, 2, 3] {
            put(&mut ledger, &request(false, cookie, 4096));
        }
        take(&mut ledger, 1 << 20);
        follow(&mut ledger, &reply(2, 0, 4096)).unwrap();
        assert!(!ledger.rewind());
        follow(&mut ledger, &reply(1, 0, 4096)).unwrap();
        assert!(ledger.rewind());
        assert_eq!(take(&mut ledger, 1 << 20), request(false, 3, 4096));
    }

    #[test]
    fn another_reply_than_the_one_begun_is_noticed() {
        let mut ledger = Ledger::new();
        for cookie in [1, 2] {
            put(&mut ledger, &request(false, cookie, 4096));
        }
        take(&mut ledger, 1 << 20);
        follow(&mut ledger, &reply(1, 0, 4096)[..500]).unwrap();
        assert!(ledger.rewind());
        assert_eq!(ledger.repeated(&reply(2, 0, 4096)), Err(Unexpected));
    }

    proptest! {
        /// A server that answers in order and is lost again and again, at any byte behind the first
        /// reply's header: the kernel is given each reply once and whole, and the host of each
        /// session has every request without one.
        #[test]
        fn a_lost_session_is_not_seen(
            sizes in proptest::collection::vec((any::<bool>(), 1_u32..9000, any::<bool>()), 1..60),
            losses in proptest::collection::vec(REPLY_HEADER..30_000, 1..12),
            pieces in proptest::collection::vec(1_usize..7000, 1..20),
            limit in 4096_usize..9000,
        ) {
            let requests: Vec<u8> = (0..)
                .zip(&sizes)
                .flat_map(|(cookie, (write, length, _))| request(*write, cookie, *length))
                .collect();
            let answer = |cookie: u64, (write, length, fails): &(bool, u32, bool)| {
                let data = if *write || *fails { 0 } else { *length as usize };
                reply(cookie, u32::from(*fails) * 5, data)
            };
            let replies: Vec<u8> = (0..).zip(&sizes).flat_map(|(at, size)| answer(at, size)).collect();
            let (mut ledger, mut times) = (Ledger::new(), Times::default());
            let (mut put_so_far, mut given) = (0, Vec::<u8>::new());
            let mut piece = pieces.iter().cycle();
            for loss in losses.iter().chain([&usize::MAX]) {
                let (mut host, mut answered, mut sent) = (Vec::new(), 0, 0);
                let mut stream = Vec::new();
                loop {
                    let rest = &requests[put_so_far..];
                    put_so_far += put(&mut ledger, &rest[..rest.len().min(*piece.next().unwrap())]);
                    let frame = take(&mut ledger, limit);
                    host.extend(frame);
                    // The host answers what it has as a whole.
                    while let Ok(Some(request)) = Request::decode(&host[answered..]) {
                        let end = answered + HEADER_LENGTH + request.payload() as usize;
                        if end > host.len() {
                            break;
                        }
                        answered = end;
                        stream.extend(answer(request.cookie, &sizes[request.cookie as usize]));
                    }
                    let mut next = &stream[sent..stream.len().min(sent + piece.next().unwrap() + 16)];
                    next = &next[..next.len().min(loss.saturating_sub(sent))];
                    sent += next.len();
                    if !next.is_empty() {
                        next = &next[ledger.repeated(next).unwrap()..];
                        given.extend(next);
                        ledger.follow(next, Instant::now(), &mut times).unwrap();
                    }
                    let idle = put_so_far == requests.len() && sent == stream.len();
                    if sent >= *loss || (idle && !ledger.has_unsent()) {
                        break;
                    }
                }
                if !ledger.rewind() {
                    // A header cut in two.
                    prop_assert!(ledger.reply.length > 0);
                    return Ok(());
                }
            }
            prop_assert_eq!(times.replies, sizes.len() as u64);
            prop_assert_eq!(given, replies);
        }
    }
}
