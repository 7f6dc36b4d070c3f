// SPDX-License-Identifier: GPL-2.0-or-later
//! What came from the port and is not done with.

use std::os::fd::OwnedFd;
use std::time::Instant;

use kzt_wire::port::{AgentEvent, AgentReceiver, MAX_FRAME, Step};
use rustix::io::Errno;

/// Two frames: one is delivered while the next one arrives.
const SIZE: usize = 2 * MAX_FRAME;
const PAGE: usize = 4096;

/// Bytes between the port and their receiver.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes at the front that are a frame's payload, checked and not delivered yet.
    payload: usize,
    /// When the port last had something.
    heard: Instant,
}

/// An event without its payload, which lies in the inbox.
pub(crate) enum Arrival {
    Event(AgentEvent<'static>),
    Data,
    Nothing,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; SIZE].into_boxed_slice(),
            start: 0,
            end: 0,
            payload: 0,
            heard: Instant::now(),
        }
    }

    pub(crate) const fn has_room(&self) -> bool {
        self.end - self.start < SIZE
    }

    pub(crate) fn payload(&self) -> &[u8] {
        let end = self.start + self.payload;
        self.bytes.get(self.start..end).unwrap_or_default()
    }

    /// The first `count` bytes of the payload are delivered.
    pub(crate) fn delivered(&mut self, count: usize) {
        let count = count.min(self.payload);
        self.payload -= count;
        self.start += count;
    }

    /// Leaves out the payload that waits: its session is over.
    pub(crate) fn drop_payload(&mut self) {
        self.delivered(self.payload);
    }

    pub(crate) fn clear(&mut self) {
        (self.start, self.end, self.payload) = (0, 0, 0);
    }

    /// Reads what the port has, while there is room.
    pub(crate) fn fill(&mut self, port: &OwnedFd, now: Instant) -> Result<(), Errno> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while let Some(room) = self
            .bytes
            .get_mut(self.end..)
            .filter(|room| !room.is_empty())
        {
            match rustix::io::read(port, room) {
                // The host's side is closed, which poll tells, too.
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(count) => {
                    self.end += count;
                    self.heard = now;
                    // The port's buffers hold a page: one that is not full was probably the last.
                    if count < PAGE {
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the receiver makes of the bytes; nothing while a payload waits.
    pub(crate) fn next(&mut self, receiver: &mut AgentReceiver) -> Arrival {
        if self.payload > 0 {
            return Arrival::Nothing;
        }
        let input = self.bytes.get(self.start..self.end).unwrap_or_default();
        let step = receiver.next(input);
        match step.event {
            Some(AgentEvent::Data(data)) => {
                // A payload is the end of its frame.
                let length = data.len();
                self.start += step.taken - length;
                self.payload = length;
                Arrival::Data
            }
            Some(AgentEvent::Nonce(nonce)) => self.arrived(step.taken, AgentEvent::Nonce(nonce)),
            Some(AgentEvent::Welcome(welcome)) => {
                self.arrived(step.taken, AgentEvent::Welcome(welcome))
            }
            Some(AgentEvent::Lost(damage)) => self.arrived(step.taken, AgentEvent::Lost(damage)),
            None => {
                self.start += step.taken;
                Arrival::Nothing
            }
        }
    }

    fn arrived(&mut self, taken: usize, event: AgentEvent<'static>) -> Arrival {
        self.start += taken;
        Arrival::Event(event)
    }

    /// Tells the receiver if the rest of a frame has not come for too long.
    pub(crate) fn check(
        &mut self,
        receiver: &mut AgentReceiver,
        now: Instant,
    ) -> Option<AgentEvent<'static>> {
        if self.payload > 0 || now < self.heard + kzt_wire::port::AGENT_STALL {
            return None;
        }
        self.heard = now;
        let input = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Step { taken, event } = receiver.stalled(input);
        self.start += taken;
        event
    }
}
