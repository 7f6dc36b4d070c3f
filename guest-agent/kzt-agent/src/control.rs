// SPDX-License-Identifier: GPL-2.0-or-later
//! The control port, which reports go to.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kzt_wire::port::{HEADER_LENGTH, MAX_REPORT, Sender};
use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::report::{Figures, Reporter};

/// How often a report is made.
const INTERVAL: Duration = Duration::from_secs(1);
/// One page of memory for each write, which is always there.
const CHUNK: usize = 4096;

/// Sends a report each second, and drops those that nobody takes.
pub(crate) struct Control {
    port: OwnedFd,
    sender: Sender,
    reporter: Reporter,
    frame: Box<[u8]>,
    length: usize,
    sent: usize,
    next: Instant,
}

impl Control {
    /// `session`: a random number that is not 0.
    pub(crate) fn new(port: OwnedFd, session: u64) -> Self {
        Self {
            port,
            sender: Sender::new(session),
            reporter: Reporter::open(),
            frame: vec![0; HEADER_LENGTH + MAX_REPORT].into_boxed_slice(),
            length: 0,
            sent: 0,
            next: Instant::now(),
        }
    }

    /// When there is something to do again.
    pub(crate) const fn next(&self) -> Instant {
        self.next
    }

    /// Makes a report if it is time to; `figures` are those of now.
    pub(crate) fn step(
        &mut self,
        now: Instant,
        figures: impl FnOnce() -> Figures,
    ) -> Result<(), Errno> {
        if now < self.next {
            return Ok(());
        }
        self.next = now + INTERVAL;
        let mut port = [PollFd::new(&self.port, PollFlags::OUT)];
        event::poll(&mut port, Some(&Timespec::default()))?;
        let [port] = port;
        if port.revents().contains(PollFlags::HUP) {
            (self.length, self.sent) = (0, 0);
            return Ok(());
        }
        if self.sent == self.length {
            self.compose(&figures())?;
        }
        while self.sent < self.length {
            let rest = self.frame.get(self.sent..self.length).unwrap_or_default();
            match rustix::io::write(&self.port, rest.get(..CHUNK).unwrap_or(rest)) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn compose(&mut self, figures: &Figures) -> Result<(), Errno> {
        let report = self.reporter.write(figures)?;
        let header = self.sender.stats(report);
        let bytes = header.iter().chain(report);
        for (place, byte) in self.frame.iter_mut().zip(bytes) {
            *place = *byte;
        }
        (self.length, self.sent) = (HEADER_LENGTH + report.len(), 0);
        Ok(())
    }
}
