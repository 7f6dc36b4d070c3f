// SPDX-License-Identifier: GPL-2.0-or-later
//! The loop that moves bytes between the kernel's tmem device and the port.
//!
//! The kernel makes the frames and understands them; this knows bytes. Nothing in it waits but
//! `poll`, and neither direction waits for the other one: the host may have to be rid of replies
//! before it takes requests.

use std::convert::Infallible;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use kzt_wire::port::Counters;
use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::ioctl::{self, NoArg};

use crate::args::Writing;
use crate::control::Control;
use crate::log::{Level, Log};
use crate::port::{ABSENT_INTERVAL, Outlet, is_absent};
use crate::report::Figures;

/// The device of the kernel's module.
pub(crate) const DEVICE: &str = "/dev/kztmem";
/// `KZTMEM_RESET`, as the module has it: another session is to begin.
const RESET: ioctl::Opcode = ioctl::opcode::none(b'Z', 1);

/// Bytes under way in one direction: as many as the port moves at once.
const LANE: usize = kzt_wire::port::MAX_FRAME;

/// Everything the loop works on.
pub(crate) struct Bridge<'a> {
    log: &'a Log,
    port: OwnedFd,
    kernel: OwnedFd,
    outlet: Outlet,
    control: Option<Control>,
    /// From the kernel to the port, whose front the outlet may have sent already.
    requests: Lane,
    /// From the port to the kernel.
    replies: Lane,
    /// When to look whether somebody has opened the host's side: the port tells nobody. Until then
    /// it is not even polled, for it would say so at once, again and again.
    absent: Option<Instant>,
    sent: u64,
    received: u64,
    sessions: u64,
}

struct Lane {
    buffer: Box<[u8]>,
    filled: Range<usize>,
}

impl<'a> Bridge<'a> {
    /// Opens the kernel's device. That begins a session, and has the kernel let this process, and
    /// no other, take memory from its reserves.
    pub(crate) fn open(
        writing: Writing,
        log: &'a Log,
        port: OwnedFd,
        control: Option<Control>,
    ) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let kernel = fs::open(DEVICE, flags, Mode::empty())?;
        Self::new(writing, log, port, kernel, control)
    }

    fn new(
        writing: Writing,
        log: &'a Log,
        port: OwnedFd,
        kernel: OwnedFd,
        control: Option<Control>,
    ) -> Result<Self, Errno> {
        Ok(Self {
            log,
            port,
            kernel,
            outlet: Outlet::new(writing)?,
            control,
            requests: Lane::new(),
            replies: Lane::new(),
            absent: Some(Instant::now()),
            sent: 0,
            received: 0,
            sessions: 1,
        })
    }

    /// Runs until something fails that is not the host's doing.
    pub(crate) fn run(&mut self) -> Result<Infallible, Errno> {
        self.log.line(Level::Notice, format_args!("bridging"));
        let mut now = Instant::now();
        loop {
            let port = self.wait(now)?;
            now = Instant::now();
            self.turn(port, now)?;
            self.report(now)?;
        }
    }

    /// Waits until there is something to do; what `poll` has said of the port.
    fn wait(&self, now: Instant) -> Result<PollFlags, Errno> {
        let second = now + Duration::from_secs(1);
        let deadline = self.control.as_ref().map_or(second, Control::next);
        let deadline = deadline.min(self.absent.unwrap_or(second));
        let timeout = Timespec::try_from(deadline.saturating_duration_since(now))
            .map_err(|_| Errno::INVAL)?;
        let (mut port, mut kernel) = (PollFlags::empty(), PollFlags::empty());
        port.set(PollFlags::OUT, !self.requests.is_empty());
        port.set(PollFlags::IN, self.replies.is_empty());
        kernel.set(PollFlags::IN, self.requests.is_empty());
        kernel.set(PollFlags::OUT, !self.replies.is_empty());
        let mut both = [
            PollFd::new(&self.port, port),
            PollFd::new(&self.kernel, kernel),
        ];
        let asked: &mut [PollFd<'_>] = match self.absent {
            Some(_) => &mut [],
            None => &mut both,
        };
        match event::poll(asked, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let [port, _] = both;
        Ok(port.revents())
    }

    /// Does all that can be done without waiting.
    fn turn(&mut self, port: PollFlags, now: Instant) -> Result<(), Errno> {
        if self.absent.is_some_and(|look| now < look) {
            return Ok(());
        }
        if self.absent.is_some() {
            if is_absent(&self.port)? {
                self.absent = Some(now + ABSENT_INTERVAL);
                return Ok(());
            }
            self.absent = None;
        } else if port.contains(PollFlags::HUP) {
            return self.hang_up(now);
        }
        self.send()?;
        self.receive()
    }

    /// Passes on the kernel's requests, as far as the port takes them.
    fn send(&mut self) -> Result<(), Errno> {
        loop {
            if self.requests.is_empty() && !self.requests.fill(&self.kernel)? {
                return Ok(());
            }
            let bytes = self.requests.bytes();
            match self.outlet.send(&self.port, bytes) {
                Ok(false) => {}
                Ok(true) => {
                    self.sent += bytes.len() as u64;
                    self.requests.clear();
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Passes on the host's replies.
    fn receive(&mut self) -> Result<(), Errno> {
        loop {
            if self.replies.is_empty() && !self.replies.fill(&self.port)? {
                return Ok(());
            }
            match io::write(&self.kernel, self.replies.bytes()) {
                Ok(count) => {
                    self.received += count as u64;
                    self.replies.take(count);
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The host's side was closed: what was under way is void, and the kernel has to say again what
    /// was not answered.
    fn hang_up(&mut self, now: Instant) -> Result<(), Errno> {
        self.log
            .line(Level::Error, format_args!("the host's side was closed"));
        self.outlet.abandon()?;
        self.requests.clear();
        self.replies.clear();
        self.absent = Some(now + ABSENT_INTERVAL);
        self.sessions += 1;
        // SAFETY: that number stands for no argument.
        let reset = unsafe { NoArg::<RESET>::new() };
        // SAFETY: the file is the module's, which touches no memory of ours for it.
        unsafe { ioctl::ioctl(&self.kernel, reset) }
    }

    fn report(&mut self, now: Instant) -> Result<(), Errno> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        control.step(now, || Figures {
            received: Counters {
                sessions: self.sessions,
                ..Counters::default()
            },
            bytes_sent: self.sent,
            bytes_received: self.received,
            ..Figures::default()
        })
    }
}

impl Lane {
    fn new() -> Self {
        Self {
            buffer: vec![0; LANE].into_boxed_slice(),
            filled: 0..0,
        }
    }

    fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.filled.clone()).unwrap_or_default()
    }

    /// Takes in, to an empty lane, as much as there is; whether there was anything.
    fn fill(&mut self, file: &OwnedFd) -> Result<bool, Errno> {
        self.filled = 0..0;
        while let Some(room @ [_, ..]) = self.buffer.get_mut(self.filled.end..) {
            match io::read(file, room) {
                // A port that nobody is at: `poll` says so.
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(count) => self.filled.end += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(!self.is_empty())
    }

    fn take(&mut self, count: usize) {
        self.filled.start += count;
    }

    fn clear(&mut self) {
        self.filled = 0..0;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    /// A pair whose second end is the bridge's.
    fn pair() -> (UnixStream, OwnedFd) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (theirs, ours.into())
    }

    /// Bytes that tell where they stand.
    fn stream(seed: u64, length: u64) -> Vec<u8> {
        let byte = |at: u64| ((at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        (0..length).map(byte).collect()
    }

    /// Both directions at once, the host reading nothing before all of its bytes are taken: neither
    /// direction may wait for the other one.
    fn carries_both_ways(writing: Writing) {
        let ((mut host, port), (kernel_side, kernel)) = (pair(), pair());
        let length = 3_000_000;
        let (requests, replies) = (stream(1, length), stream(2, length));
        thread::scope(|scope| {
            scope.spawn(|| {
                let log = Log::open();
                let mut bridge = Bridge::new(writing, &log, port, kernel, None).unwrap();
                // Ends when its ends are closed: by an error of either.
                let _ = bridge.run();
            });
            scope.spawn(|| {
                let mut kernel = &kernel_side;
                kernel.write_all(&requests).unwrap();
            });
            let reader = scope.spawn(|| {
                let mut kernel = &kernel_side;
                let mut found = vec![0; replies.len()];
                kernel.read_exact(&mut found).unwrap();
                found
            });
            host.write_all(&replies).unwrap();
            assert!(reader.join().unwrap() == replies);
            let mut found = vec![0; requests.len()];
            host.read_exact(&mut found).unwrap();
            assert!(found == requests);
            drop(host);
        });
    }

    #[test]
    fn bytes_are_carried_both_ways_by_splice() {
        carries_both_ways(Writing::Splice);
    }

    #[test]
    fn bytes_are_carried_both_ways_by_writes() {
        carries_both_ways(Writing::Chunks(4096));
    }
}
