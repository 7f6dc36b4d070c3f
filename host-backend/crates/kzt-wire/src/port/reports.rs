// SPDX-License-Identifier: GPL-2.0-or-later
use super::frame::{Frame, Header, Kind};
use super::{Counters, Step};
use crate::framing;

/// The host's receiving end of a control port.
///
/// Every report stands for itself: this searches for the next whole one, through any bytes.
#[derive(Debug, Default)]
pub struct ReportReceiver {
    session: Option<u64>,
    counters: Counters,
}

impl ReportReceiver {
    /// What it has seen; a session is as many reports as carry the same number.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes the next report off the front of `input`. An input of
    /// [`MAX_FRAME`](super::MAX_FRAME) bytes always makes progress.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Step<Frame<'a>> {
        self.take(input, 0)
    }

    /// Nothing has arrived for [`STALL`](super::STALL) while `input` was left over: a report within
    /// it was written by an agent that came after the one whose frame this is.
    pub fn stalled<'a>(&mut self, input: &'a [u8]) -> Step<Frame<'a>> {
        match framing::first(input.get(1..).unwrap_or_default(), is_report) {
            (_, Some(_)) => self.take(input, 1),
            _ => Step {
                taken: 0,
                event: None,
            },
        }
    }

    fn take<'a>(&mut self, input: &'a [u8], from: usize) -> Step<Frame<'a>> {
        let (skipped, event) = framing::first(input.get(from..).unwrap_or_default(), is_report);
        self.counters.skipped += (from + skipped) as u64;
        if let Some(frame) = &event {
            self.counters.frames += 1;
            if self.session.replace(frame.header.session) != Some(frame.header.session) {
                self.counters.sessions += 1;
            }
        }
        Step {
            taken: from + skipped + event.as_ref().map_or(0, Frame::size),
            event,
        }
    }
}

const fn is_report(header: &Header) -> bool {
    matches!(header.kind, Kind::Stats)
}
