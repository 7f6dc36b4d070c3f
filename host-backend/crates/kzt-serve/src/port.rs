// SPDX-License-Identifier: GPL-2.0-or-later
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use kzt_wire::port::{
    self, Counters, Damage, HEADER_LENGTH, Hello, HostEvent, HostReceiver, MAX_FRAME, Sender,
    Welcome,
};

use crate::channel::Channel;
use crate::client::Client;
use crate::connection::{End, Peer};
use crate::intake::{Filled, Intake};
use crate::nonce;
use crate::stopwatch::Measure;

/// Receive buffer of a port: as many frames as are under way arrive in one system call.
pub(crate) const INPUT: usize = 256 << 10;
const _: () = assert!(INPUT >= MAX_FRAME);

/// One session after another of an NBD stream, in the frames of a guest's port.
///
/// What belongs to a session ends with it: bytes not handed over yet are dropped here, a
/// half-received request and replies not sent yet with the caller's engine, which [`End`] unwinds.
pub(crate) struct Port<'a> {
    client: &'a Client,
    peer: &'a Peer,
    nonce: u64,
    receiver: HostReceiver,
    /// What of the receiver's counters the client has been told.
    told: Counters,
    intake: Intake,
    /// Where the session's bytes not handed over yet are.
    payload: Range<usize>,
    /// Who has said HELLO and has no answer yet.
    caller: Option<Caller>,
    sender: Sender,
    /// Longest payload the agent takes.
    longest: usize,
    /// The frame being sent.
    frame: Vec<u8>,
    ended: bool,
}

/// Who says HELLO.
enum Caller {
    /// An agent, to be welcomed to a session of that number.
    Agent(u64, Hello),
    /// An agent that does not know the nonce, to be told; or a page that looks like a HELLO.
    Stranger,
}

impl Caller {
    fn of(event: HostEvent<'_>) -> Option<Self> {
        match event {
            HostEvent::Hello { session, hello } => Some(Self::Agent(session, hello)),
            HostEvent::Stranger => Some(Self::Stranger),
            HostEvent::Data(_) | HostEvent::Lost(_) => None,
        }
    }
}

/// What comes next on a port.
enum Turn {
    /// Bytes of the session are at `payload`.
    Payload,
    /// There is a caller; the session before is over.
    Caller,
    /// The session is over.
    Lost(Damage),
}

impl<'a> Port<'a> {
    pub(crate) fn new(client: &'a Client, peer: &'a Peer) -> Result<Self, End> {
        let nonce = nonce::draw()?;
        Ok(Self {
            client,
            peer,
            nonce,
            receiver: HostReceiver::new(nonce),
            told: Counters::default(),
            intake: Intake::new(INPUT),
            payload: 0..0,
            caller: None,
            sender: Sender::new(0),
            longest: 0,
            frame: Vec::with_capacity(MAX_FRAME),
            ended: false,
        })
    }

    /// Whether the peer has hung up.
    pub(crate) const fn ended(&self) -> bool {
        self.ended
    }

    /// Tells the agent that it has no session, and the nonce for the next one.
    pub(crate) fn reset(&mut self) -> Result<(), End> {
        self.count();
        self.peer.send(&port::reset(self.nonce), None)
    }

    /// Waits for the next session and welcomes it; `false` when the peer has hung up.
    pub(crate) fn accept(&mut self) -> Result<bool, End> {
        loop {
            match self.look() {
                Some(Turn::Caller) => {
                    if self.answer()? {
                        return Ok(true);
                    }
                }
                Some(Turn::Lost(damage)) => return Err(End::Lost(damage)),
                None if !self.fill(None)? => return Ok(false),
                // Bytes of a session whose engine has ended are nobody's.
                Some(Turn::Payload) | None => {}
            }
        }
    }

    /// Welcomes the caller, or tells it the nonce; whether a session begins.
    fn answer(&mut self) -> Result<bool, End> {
        let Some(Caller::Agent(session, hello)) = self.caller.take() else {
            self.reset()?;
            return Ok(false);
        };
        self.count();
        self.sender = Sender::new(session);
        self.longest = hello.max_frame - HEADER_LENGTH;
        let welcome = Welcome {
            max_frame: MAX_FRAME,
            flags: 0,
            swap_bytes: self.client.size,
        };
        self.peer.send(&port::welcome(session, &welcome), None)?;
        Ok(true)
    }

    /// What the bytes that are there say; `None` when it takes more of them.
    fn look(&mut self) -> Option<Turn> {
        if self.caller.is_some() {
            return Some(Turn::Caller);
        }
        let step = self.receiver.next(self.intake.rest());
        let length = match step.event {
            Some(HostEvent::Data(data)) => data.len(),
            _ => 0,
        };
        self.caller = step.event.and_then(Caller::of);
        let turn = step.event.map(|event| match event {
            HostEvent::Data(_) => Turn::Payload,
            HostEvent::Hello { .. } | HostEvent::Stranger => Turn::Caller,
            HostEvent::Lost(damage) => Turn::Lost(damage),
        });
        self.payload = self.intake.take(step.taken, length);
        turn
    }

    /// Waits for more bytes; `false` when the peer has hung up.
    fn fill(&mut self, deadline: Option<Instant>) -> Result<bool, End> {
        self.count();
        match self.intake.fill(self.peer, deadline)? {
            Filled::Bytes => {}
            Filled::Stalled => {
                let step = self.receiver.stalled(self.intake.rest());
                self.caller = step.event.and_then(Caller::of);
                self.intake.take(step.taken, 0);
            }
            Filled::Ended => self.ended = true,
        }
        Ok(!self.ended)
    }

    /// Tells the client what has been seen since the last time.
    fn count(&mut self) {
        let seen = self.receiver.counters();
        self.client.port.add(&self.told, &seen);
        self.told = seen;
    }

    /// Copies to `buffer` as much of the session's bytes as it holds.
    fn hand_over(&mut self, buffer: &mut [u8]) -> usize {
        let from = self.intake.get(self.payload.clone());
        let length = from.len().min(buffer.len());
        if let (Some(from), Some(to)) = (from.get(..length), buffer.get_mut(..length)) {
            to.copy_from_slice(from);
        }
        self.payload.start += length;
        length
    }
}

impl Channel for Port<'_> {
    const MEASURE: Measure = Measure::Turnaround;

    /// Hands over the payload of as many frames as there are.
    fn receive(&mut self, buffer: &mut [u8], deadline: Option<Instant>) -> Result<usize, End> {
        let mut filled = 0;
        loop {
            filled += self.hand_over(buffer.get_mut(filled..).unwrap_or_default());
            if filled == buffer.len() {
                return Ok(filled);
            }
            match self.look() {
                // For the test that has to notice that the check is missing.
                Some(Turn::Caller) if cfg!(feature = "no-session-check") => {
                    self.answer()?;
                }
                Some(Turn::Caller) => return Err(End::NewSession),
                Some(Turn::Lost(damage)) => return Err(End::Lost(damage)),
                None if filled > 0 => return Ok(filled),
                None if !self.fill(deadline)? => return Ok(0),
                Some(Turn::Payload) | None => {}
            }
        }
    }

    /// A port is waited for without limit: a guest may be paused.
    fn send(&mut self, bytes: &[u8], _deadline: Option<Instant>) -> Result<(), End> {
        for payload in bytes.chunks(self.longest.max(1)) {
            self.frame.clear();
            self.frame.extend(self.sender.data(payload));
            self.frame.extend(payload);
            self.peer.send(&self.frame, None)?;
        }
        Ok(())
    }
}

/// What a client's ports of a kind have seen, all of them together.
#[derive(Default)]
pub(crate) struct PortTotals {
    sessions: AtomicU64,
    frames: AtomicU64,
    ignored: AtomicU64,
    damaged: AtomicU64,
    skipped: AtomicU64,
}

impl PortTotals {
    /// Adds what one receiver has counted between `before` and `now`.
    pub(crate) fn add(&self, before: &Counters, now: &Counters) {
        for (sum, before, now) in [
            (&self.sessions, before.sessions, now.sessions),
            (&self.frames, before.frames, now.frames),
            (&self.ignored, before.ignored, now.ignored),
            (&self.damaged, before.damaged, now.damaged),
            (&self.skipped, before.skipped, now.skipped),
        ] {
            if now != before {
                sum.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn get(&self) -> Counters {
        Counters {
            sessions: self.sessions.load(Ordering::Relaxed),
            frames: self.frames.load(Ordering::Relaxed),
            ignored: self.ignored.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
        }
    }
}
