// SPDX-License-Identifier: GPL-2.0-or-later
use super::frame::{Damage, Frame, Header, flags, op};
use super::hello::{Hello, PAYLOAD, VERSION};
use super::{Counters, Step};
use crate::framing;

/// The host's receiving end of a tmem port.
///
/// Outside a session it searches for a HELLO, through any bytes. Inside one, another HELLO begins
/// another session, wherever it is found, if it has the connection's nonce.
#[derive(Debug)]
pub struct HostReceiver {
    nonce: u64,
    session: Option<u64>,
    counters: Counters,
}

/// What the port says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent<'a> {
    /// A session begins: to be welcomed. What belonged to another one is void, whether half
    /// received or not sent yet.
    Hello(Hello),
    /// A request of the session.
    Request(Frame<'a>),
    /// A HELLO of a version that is not spoken here. There is no session now.
    Version(Hello),
    /// A HELLO without the nonce. There is no session now; whoever sent it is to be told the nonce
    /// by a RESET.
    Stranger,
    /// The session is over: the guest is to be sent a RESET.
    Lost(Damage),
}

impl HostReceiver {
    /// Waits for a HELLO with that nonce: random, not 0, and another one for each connection.
    #[must_use]
    pub fn new(nonce: u64) -> Self {
        Self {
            nonce,
            session: None,
            counters: Counters::default(),
        }
    }

    /// What it has seen.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The session that goes on.
    #[must_use]
    pub const fn session(&self) -> Option<u64> {
        self.session
    }

    /// Takes the next event off the front of `input`. An input of
    /// [`MAX_FRAME`](super::MAX_FRAME) bytes always makes progress.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Step<HostEvent<'a>> {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            let Some(session) = self.session else {
                let (skipped, found) = framing::first(rest, is_hello);
                self.counters.skipped += skipped as u64;
                taken += skipped + found.as_ref().map_or(0, Frame::size);
                let event = found.map(|hello| self.hello(&hello));
                return Step { taken, event };
            };
            let frame = match Frame::parse(rest) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Step { taken, event: None },
                Err(damage) => return self.lose(taken, damage),
            };
            let Header { op, flags, .. } = frame.header;
            let ours = frame.header.session == session;
            let event = if is_hello(&frame.header) {
                // One of the session's own was sent again before the WELCOME got there.
                let nonce = Hello::decode(&frame.header, frame.payload).nonce;
                let known = ours && nonce == self.nonce;
                (!known).then(|| self.hello(&frame))
            } else if !ours {
                self.counters.ignored += 1;
                None
            } else if flags & flags::REPLY != 0 || matches!(op, op::HELLO | op::RESET) {
                return self.lose(taken, Damage::Place(op));
            } else {
                self.counters.frames += 1;
                Some(HostEvent::Request(frame))
            };
            taken += frame.size();
            if event.is_some() {
                return Step { taken, event };
            }
        }
    }

    /// Nothing has arrived for [`STALL`](super::STALL) while `input` was left over: if it holds
    /// HELLOs, they were written after the frame's sender had died, and the last one counts.
    ///
    /// A page's content that looks like a HELLO does not know the nonce: it costs its own guest a
    /// session, no more.
    pub fn stalled(&mut self, input: &[u8]) -> Step<HostEvent<'static>> {
        let Some((taken, hello)) = framing::last(input, is_hello) else {
            return Step {
                taken: 0,
                event: None,
            };
        };
        self.counters.skipped += (taken - hello.size()) as u64;
        let event = Some(self.hello(&hello));
        Step { taken, event }
    }

    fn hello(&mut self, frame: &Frame<'_>) -> HostEvent<'static> {
        let hello = Hello::decode(&frame.header, frame.payload);
        self.session = None;
        if hello.nonce != self.nonce {
            return HostEvent::Stranger;
        }
        if hello.version != VERSION {
            return HostEvent::Version(hello);
        }
        self.session = Some(hello.session);
        self.counters.sessions += 1;
        HostEvent::Hello(hello)
    }

    /// Ends the session. Nothing of the frame is taken: a HELLO may lie within it.
    fn lose(&mut self, taken: usize, damage: Damage) -> Step<HostEvent<'static>> {
        self.session = None;
        self.counters.damaged += 1;
        let event = Some(HostEvent::Lost(damage));
        Step { taken, event }
    }
}

const fn is_hello(header: &Header) -> bool {
    header.op == op::HELLO
        && header.flags & flags::REPLY == 0
        && header.session != 0
        && header.length as usize == PAYLOAD
}
