// SPDX-License-Identifier: GPL-2.0-or-later
use super::frame::{Damage, Frame, Header, Hello, Kind};
use super::{Counters, Step};
use crate::framing;

/// The host's receiving end of a relay port.
///
/// Outside a session it searches for a HELLO, through any bytes. Inside one, another HELLO begins
/// another session, wherever it is found, if it has the connection's nonce.
#[derive(Debug)]
pub struct HostReceiver {
    nonce: u64,
    session: Option<Session>,
    counters: Counters,
}

#[derive(Debug)]
struct Session {
    number: u64,
    /// Sequence number that follows.
    next: u32,
}

/// What the port says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent<'a> {
    /// A session begins: to be welcomed. What belonged to another one is void, whether half
    /// received or not sent yet.
    Hello {
        /// Its number.
        session: u64,
        /// What the agent told of itself.
        hello: Hello,
    },
    /// The next bytes of the session's NBD stream.
    Data(&'a [u8]),
    /// A HELLO without the nonce. There is no session now; whoever sent it is to be told the nonce
    /// by a RESET.
    Stranger,
    /// The session is over: the agent is to be sent a RESET.
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

    /// Takes the next event off the front of `input`. An input of
    /// [`MAX_FRAME`](super::MAX_FRAME) bytes always makes progress.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Step<HostEvent<'a>> {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            let Some(session) = &mut self.session else {
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
            let Header { kind, sequence, .. } = frame.header;
            let ours = frame.header.session == session.number;
            let event = match kind {
                // Sent again before the WELCOME got there.
                Kind::Hello if ours && Hello::decode(frame.payload).nonce == self.nonce => None,
                Kind::Hello => Some(self.hello(&frame)),
                _ if !ours => {
                    self.counters.ignored += 1;
                    None
                }
                Kind::Data if sequence == session.next => {
                    session.next = sequence.wrapping_add(1);
                    self.counters.frames += 1;
                    Some(HostEvent::Data(frame.payload))
                }
                Kind::Data => {
                    let (expected, found) = (session.next, sequence);
                    return self.lose(taken, Damage::Sequence { expected, found });
                }
                Kind::Welcome | Kind::Stats | Kind::Reset => {
                    return self.lose(taken, Damage::Kind(kind));
                }
            };
            taken += frame.size();
            if event.is_some() {
                return Step { taken, event };
            }
        }
    }

    /// Nothing has arrived for [`STALL`](super::STALL) while `input` was left over: if it holds
    /// HELLOs, they were written by agents that came after the one whose frame this is, and the
    /// last one counts.
    ///
    /// A page's content that looks like a HELLO does not know the nonce: it costs its own guest a
    /// session, no more.
    pub fn stalled(&mut self, input: &[u8]) -> Step<HostEvent<'static>> {
        let last = framing::last(input, is_hello);
        let Some((taken, hello)) = last else {
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
        let (session, hello) = (frame.header.session, Hello::decode(frame.payload));
        self.session = None;
        if hello.nonce != self.nonce {
            return HostEvent::Stranger;
        }
        self.session = Some(Session {
            number: session,
            next: 0,
        });
        self.counters.sessions += 1;
        HostEvent::Hello { session, hello }
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
    matches!(header.kind, Kind::Hello)
}
