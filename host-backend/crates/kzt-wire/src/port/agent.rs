// SPDX-License-Identifier: GPL-2.0-or-later
use super::frame::{Damage, Frame, Header, Kind, Welcome};
use super::{Counters, Step};
use crate::framing::{self, field};

/// The agent's receiving end of a relay port.
///
/// Until its HELLO is answered it searches for that WELCOME, and for RESETs, through any bytes: those
/// of sessions before may still come, pages among them. From then on whatever does not belong to the
/// session ends it.
#[derive(Debug, Default)]
pub struct AgentReceiver {
    state: State,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// No HELLO was sent since the last session was lost.
    #[default]
    Idle,
    /// HELLO was sent.
    Waiting { session: u64 },
    Open {
        session: u64,
        /// Sequence number that follows.
        next: u32,
    },
}

/// What the port says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentEvent<'a> {
    /// HELLO is to be said with that nonce. A page that looks like a RESET may have said so: then the
    /// host answers the HELLO with its own one.
    Nonce(u64),
    /// The session has begun; the NBD stream follows.
    Welcome(Welcome),
    /// The next bytes of the session's NBD stream.
    Data(&'a [u8]),
    /// The session is over: a new one is to be begun.
    Lost(Damage),
}

impl AgentReceiver {
    /// Waits for the WELCOME to a HELLO with `session`: a number that is not 0, random and drawn for
    /// this HELLO, so that no page can hold its WELCOME.
    pub fn begin(&mut self, session: u64) {
        self.state = State::Waiting { session };
    }

    /// What it has seen.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes the next event off the front of `input`. An input of
    /// [`MAX_FRAME`](super::MAX_FRAME) bytes always makes progress, except after
    /// [`AgentEvent::Lost`]: then [`begin`](Self::begin) comes first.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Step<AgentEvent<'a>> {
        match self.state {
            State::Idle => Step {
                taken: 0,
                event: None,
            },
            State::Waiting { session } => self.search(input, session),
            State::Open { session, next } => match Frame::parse(input) {
                Ok(Some(frame)) => self.frame(&frame, session, next),
                Ok(None) => Step {
                    taken: 0,
                    event: None,
                },
                Err(damage) => self.lose(damage),
            },
        }
    }

    /// Nothing has arrived for a while, [`AGENT_STALL`](super::AGENT_STALL) at least, while `input`
    /// was left over: inside a session the rest of the frame is not coming any more.
    pub fn stalled(&mut self, input: &[u8]) -> Step<AgentEvent<'static>> {
        match self.state {
            State::Open { .. } if !input.is_empty() => self.lose(Damage::Stall),
            _ => Step {
                taken: 0,
                event: None,
            },
        }
    }

    fn search(&mut self, input: &[u8], session: u64) -> Step<AgentEvent<'static>> {
        let wanted = |header: &Header| match header.kind {
            Kind::Welcome => header.session == session,
            kind => kind == Kind::Reset,
        };
        let (skipped, found) = framing::first(input, wanted);
        self.counters.skipped += skipped as u64;
        let Some(frame) = found else {
            return Step {
                taken: skipped,
                event: None,
            };
        };
        let event = if frame.header.kind == Kind::Reset {
            AgentEvent::Nonce(u64::from_le_bytes(field(frame.payload, 0)))
        } else {
            self.counters.sessions += 1;
            self.state = State::Open { session, next: 0 };
            AgentEvent::Welcome(Welcome::decode(frame.payload))
        };
        Step {
            taken: skipped + frame.size(),
            event: Some(event),
        }
    }

    fn frame<'a>(&mut self, frame: &Frame<'a>, session: u64, next: u32) -> Step<AgentEvent<'a>> {
        let header = frame.header;
        match header.kind {
            Kind::Data if header.session == session && header.sequence == next => {
                let next = next.wrapping_add(1);
                self.state = State::Open { session, next };
                self.counters.frames += 1;
                Step {
                    taken: frame.size(),
                    event: Some(AgentEvent::Data(frame.payload)),
                }
            }
            Kind::Reset => self.lose(Damage::Kind(Kind::Reset)),
            _ if header.session != session => self.lose(Damage::Session(header.session)),
            Kind::Data => self.lose(Damage::Sequence {
                expected: next,
                found: header.sequence,
            }),
            kind => self.lose(Damage::Kind(kind)),
        }
    }

    /// Ends the session. Nothing of the frame is taken: the next WELCOME may lie within it, or it is
    /// the RESET with the nonce for the next HELLO.
    fn lose(&mut self, damage: Damage) -> Step<AgentEvent<'static>> {
        self.state = State::Idle;
        self.counters.damaged += 1;
        Step {
            taken: 0,
            event: Some(AgentEvent::Lost(damage)),
        }
    }
}
