// SPDX-License-Identifier: GPL-2.0-or-later
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kzt_wire::nbd::Violation;
use kzt_wire::port::Damage;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use crate::channel::{Channel, Stream};
use crate::client::Membership;
use crate::interrupt::Interruptible;
use crate::vhost::Malformed;

/// Looks for bytes before a thread goes to sleep.
const LOOKS: u32 = 10;
/// A yield that takes longer has let somebody run who has much to do.
const LONG_YIELD: Duration = Duration::from_micros(100);
/// Waits without a look after such a yield.
const ABSTINENCE: u32 = 50;

/// When to look for bytes again rather than sleep until they come.
///
/// A busy client sends again within microseconds, and being woken costs as much as a page: looking
/// makes small reads half as fast again. Where others want the processor it is the other way
/// round: a thread that yields comes after them, one that is woken goes first.
#[derive(Default)]
pub(crate) struct Patience {
    looks: u32,
    abstinence: u32,
}

impl Patience {
    /// Whether to look again.
    pub(crate) fn look(&self) -> bool {
        self.abstinence == 0 && self.looks < LOOKS
    }

    /// Lets others run before the next look.
    pub(crate) fn wait(&mut self) {
        self.looks += 1;
        let before = Instant::now();
        thread::yield_now();
        if before.elapsed() > LONG_YIELD {
            self.abstinence = ABSTINENCE;
        }
    }

    /// A look has found something.
    pub(crate) fn renew(&mut self) {
        self.looks = 0;
        self.abstinence = self.abstinence.saturating_sub(1);
    }
}

/// A connection's socket, with what other threads may do to it.
pub(crate) struct Peer {
    socket: UnixStream,
    abandoned: AtomicBool,
    /// The connection's thread, where it may come to wait for more than the socket.
    pub(crate) thread: Interruptible,
}

/// Why a connection ended other than by the client's leave.
#[derive(Debug)]
pub(crate) enum End {
    /// The peer broke the protocol.
    Violation(Violation),
    /// The peer hung up in the middle of a message.
    Truncated,
    /// The negotiation took too long.
    Timeout,
    /// The connection was fenced off or cut off.
    Abandoned,
    /// Somebody on a port begins another session.
    NewSession,
    /// What arrived on a port was not what had to follow in its session.
    Lost(Damage),
    /// A page could not be read after its reply had begun.
    DamagedPage,
    /// Another connection to a device that takes one at a time.
    Occupied,
    /// A frontend's message was not understood or refused.
    Frontend(vhost::vhost_user::Error),
    /// A driver has made available what is no request.
    Malformed(Malformed),
    /// The socket failed.
    Io(io::Error),
}

impl Peer {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            abandoned: AtomicBool::new(false),
            thread: Interruptible::default(),
        }
    }

    /// Whether the peer can't send any more: it has closed the socket or its sending side.
    pub(crate) fn hung_up(&self) -> bool {
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        let mut ask = [PollFd::new(&self.socket, gone)];
        // A signal interrupts even a poll that does not wait. One that fails tells nothing; then
        // the connection is not trusted to be alive.
        retry_on_intr(|| poll(&mut ask, Some(&Timespec::default()))).is_err()
            || ask.iter().any(|asked| asked.revents().intersects(gone))
    }

    pub(crate) const fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Receives no more than has arrived; its thread serves that and ends.
    pub(crate) fn drain(&self) {
        // Fails when the peer has closed already: the thread ends by itself then.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
    }

    /// Ends the connection at the next request, whatever has arrived. To be called again for as
    /// long as its thread is there: it may have been about to wait for its peer.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        // Wakes its thread. Fails when the peer has closed already, which wakes it as well.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        self.thread.interrupt();
    }

    pub(crate) fn abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Waits for bytes; 0 at the stream's end, [`End::Timeout`] at the deadline.
    pub(crate) fn receive(
        &self,
        buffer: &mut [u8],
        deadline: Option<Instant>,
        patience: &mut Patience,
    ) -> Result<usize, End> {
        loop {
            let looking = patience.look();
            let flags = if looking || deadline.is_some() {
                RecvFlags::DONTWAIT
            } else {
                RecvFlags::empty()
            };
            match rustix::net::recv(&self.socket, &mut *buffer, flags) {
                Ok((length, _)) => {
                    patience.renew();
                    return Ok(length);
                }
                Err(rustix::io::Errno::AGAIN) if looking => patience.wait(),
                Err(rustix::io::Errno::AGAIN) => self.wait_for(PollFlags::IN, deadline)?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(End::Io(error.into())),
            }
        }
    }

    /// Sends all of `bytes`, or fails with [`End::Timeout`] at the deadline.
    pub(crate) fn send(&self, mut bytes: &[u8], deadline: Option<Instant>) -> Result<(), End> {
        let flags = match deadline {
            Some(_) => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            None => SendFlags::NOSIGNAL,
        };
        while !bytes.is_empty() {
            match rustix::net::send(&self.socket, bytes, flags) {
                Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
                Err(rustix::io::Errno::AGAIN) => self.wait_for(PollFlags::OUT, deadline)?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(End::Io(error.into())),
            }
        }
        Ok(())
    }

    /// Waits until the socket is ready; it may turn out not to be.
    fn wait_for(&self, what: PollFlags, deadline: Option<Instant>) -> Result<(), End> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&self.socket, what)], timeout.as_ref()) {
            Ok(0) => Err(End::Timeout),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(End::Io(error.into())),
        }
    }
}

/// Serves one connection from its greeting to its end.
pub(crate) fn serve(membership: &Membership<'_>) -> Result<(), End> {
    nbd(membership, &mut Stream::new(&membership.peer))
}

/// Serves one NBD stream from its greeting to its end.
pub(crate) fn nbd(membership: &Membership<'_>, channel: &mut impl Channel) -> Result<(), End> {
    match crate::negotiation::negotiate(membership, channel)? {
        Some(negotiated) => crate::transmission::transmit(membership, channel, negotiated),
        None => Ok(()),
    }
}

impl From<Violation> for End {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<Malformed> for End {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(violation) => violation.fmt(f),
            Self::Truncated => f.write_str("the peer hung up in the middle of a message"),
            Self::Timeout => f.write_str("negotiation took too long"),
            Self::Abandoned => f.write_str("cut off"),
            Self::NewSession => f.write_str("another session begins"),
            Self::Lost(damage) => damage.fmt(f),
            Self::DamagedPage => f.write_str("a stored page is damaged"),
            Self::Occupied => f.write_str("another connection is served"),
            Self::Frontend(error) => error.fmt(f),
            Self::Malformed(malformed) => malformed.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}
