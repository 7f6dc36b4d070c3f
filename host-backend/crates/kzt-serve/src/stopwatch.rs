// SPDX-License-Identifier: GPL-2.0-or-later
use std::mem;
use std::time::{Duration, Instant};

use kzt_wire::nbd::{Command, Request, flags};

use crate::client::Histograms;

/// What a request's latency is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// The work it takes: from the end of the request before it, or its arrival, until its reply
    /// lies in the send buffer.
    Service,
    /// From the arrival of its last byte until the socket has its reply.
    Turnaround,
}

/// Operations that have a histogram.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    Put,
    Get,
    Flush,
}

/// Times the requests of a stream, with no more than a clock read each.
pub(crate) struct Stopwatch<'a> {
    histograms: &'a Histograms,
    measure: Measure,
    /// When bytes last arrived or, for the service time, up to when time has been accounted for.
    since: Instant,
    /// Time spent on the request at hand. A write that arrives in parts is served in as many turns.
    spent: Duration,
    /// Requests done whose replies have not been sent.
    waiting: [u64; 3],
}

impl<'a> Stopwatch<'a> {
    pub(crate) fn new(histograms: &'a Histograms, measure: Measure) -> Self {
        Self {
            histograms,
            measure,
            since: Instant::now(),
            spent: Duration::ZERO,
            waiting: [0; 3],
        }
    }

    /// Bytes have arrived.
    pub(crate) fn arrived(&mut self) {
        self.since = Instant::now();
    }

    /// The request at hand has got as far as its bytes went.
    pub(crate) fn lap(&mut self) {
        if self.measure == Measure::Service {
            let now = Instant::now();
            self.spent += now - mem::replace(&mut self.since, now);
        }
    }

    /// The request's reply lies in the send buffer.
    pub(crate) fn done(&mut self, op: Option<Op>) {
        self.lap();
        let spent = mem::take(&mut self.spent);
        let Some(op) = op else { return };
        match self.measure {
            Measure::Service => self.histogram(op).record(spent, 1),
            Measure::Turnaround => {
                if let Some(waiting) = self.waiting.get_mut(op as usize) {
                    *waiting += 1;
                }
            }
        }
    }

    /// The socket has all replies.
    pub(crate) fn sent(&mut self) {
        if self.waiting == [0; 3] {
            return;
        }
        let elapsed = self.since.elapsed();
        for (op, count) in [Op::Put, Op::Get, Op::Flush].into_iter().zip(self.waiting) {
            if count > 0 {
                self.histogram(op).record(elapsed, count);
            }
        }
        self.waiting = [0; 3];
    }

    const fn histogram(&self, op: Op) -> &crate::histogram::Histogram {
        match op {
            Op::Put => &self.histograms.put,
            Op::Get => &self.histograms.get,
            Op::Flush => &self.histograms.flush,
        }
    }
}

impl Op {
    pub(crate) const fn of(request: &Request) -> Option<Self> {
        match request.command {
            Command::Read => Some(Self::Get),
            Command::Write => Some(Self::Put),
            Command::WriteZeroes if request.has(flags::NO_HOLE) => Some(Self::Put),
            Command::Trim | Command::WriteZeroes => Some(Self::Flush),
            _ => None,
        }
    }
}
