// SPDX-License-Identifier: GPL-2.0-or-later
//! The loop that moves bytes between the kernel's block device and the port.
//!
//! Nothing in it waits but `poll`, and reading never depends on writing: replies are taken from the
//! port while requests don't get in, as the host may have to be rid of those first.

use std::convert::Infallible;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use kzt_wire::nbd::{ClientHandshake, ClientStep, Device, MIN_REPLY_INPUT, Refusal};
use kzt_wire::port::{
    AgentEvent, AgentReceiver, Damage, HELLO_INTERVAL, Hello, MAX_FRAME, Sender, hello,
};
use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::rand::{self, GetRandomFlags};

use crate::args::Options;
use crate::control::Control;
use crate::device::BlockDevice;
use crate::inbox::{Arrival, Inbox};
use crate::ledger::{Ledger, Times, Unexpected};
use crate::log::{Level, Log};
use crate::outbox::Outbox;
use crate::port::{ABSENT_INTERVAL, Outlet, is_absent, is_hung_up};
use crate::report::Figures;
use crate::rest::Rest;

/// What a host may take from WELCOME to the transmission phase.
const NEGOTIATION_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of requests that the kernel may have handed over and nobody taken: they are memory that is
/// gone just when there is none.
const KERNEL_SEND_BUFFER: usize = 64 << 10;

/// Everything the loop works on.
pub(crate) struct Pump<'a> {
    options: &'a Options,
    log: &'a Log,
    port: OwnedFd,
    control: Option<Control>,
    device: BlockDevice,
    outlet: Outlet,
    receiver: AgentReceiver,
    /// The last one that the port has told; 0 before that.
    nonce: u64,
    inbox: Inbox,
    outbox: Outbox,
    negotiation: Negotiation,
    /// The kernel's connection: it outlives the host's sessions.
    kernel: Option<Kernel>,
    ledger: Ledger,
    sent: Sent,
    times: Times,
    phase: Phase,
}

/// What has gone to the port, and to the kernel.
#[derive(Debug, Default)]
struct Sent {
    frames: u64,
    bytes: u64,
    to_kernel: u64,
}

enum Phase {
    /// Nobody has the host's side open. Until then the port is not even polled: it would say so at
    /// once, again and again.
    Absent { look: Instant },
    /// HELLO is said again and again.
    Greeting { session: u64, again: Instant },
    /// The session has begun, and NBD is negotiated in it.
    Negotiating { sender: Sender, limit: Instant },
    /// The kernel is to take the connection; another one than its first after a rest, during which
    /// nothing else is done.
    Attaching {
        sender: Sender,
        device: Device,
        rest: Option<Rest>,
    },
    /// Requests and replies are passed on.
    Relaying {
        sender: Sender,
        /// When to look for the rest of a request.
        pause: Option<Instant>,
    },
}

struct Kernel {
    socket: OwnedFd,
    device: Device,
}

/// What `poll` has said of port and kernel.
#[derive(Clone, Copy)]
struct Ready {
    port: PollFlags,
    kernel: PollFlags,
}

struct Negotiation {
    handshake: ClientHandshake,
    reply: [u8; MIN_REPLY_INPUT],
    length: usize,
}

/// Why a session is over.
#[derive(Debug)]
enum Loss {
    HangUp,
    Frame(Damage),
    Refusal(Refusal),
    Slow,
    Kernel(Errno),
    Socket,
    Stream,
    Port(Errno),
}

impl<'a> Pump<'a> {
    pub(crate) fn new(
        options: &'a Options,
        log: &'a Log,
        port: OwnedFd,
        control: Option<Control>,
        device: BlockDevice,
    ) -> Result<Self, Errno> {
        Ok(Self {
            options,
            log,
            port,
            control,
            device,
            outlet: Outlet::new(options.writing)?,
            receiver: AgentReceiver::default(),
            nonce: 0,
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            negotiation: Negotiation::new(),
            kernel: None,
            ledger: Ledger::new(),
            sent: Sent::default(),
            times: Times::default(),
            phase: Phase::Absent {
                look: Instant::now(),
            },
        })
    }

    /// Runs until something fails that is not the host's doing.
    pub(crate) fn run(&mut self) -> Result<Infallible, Errno> {
        // Reading the clock may cost more than a system call: once for each turn.
        let mut now = Instant::now();
        loop {
            let ready = self.wait(now)?;
            now = Instant::now();
            if let Err(loss) = self.step(ready, now) {
                self.lose(&loss, now)?;
            }
            self.report(now)?;
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self, now: Instant) -> Result<Ready, Errno> {
        let mut port = PollFlags::empty();
        port.set(PollFlags::IN, self.inbox.has_room());
        port.set(PollFlags::OUT, !self.outbox.is_empty());
        let mut kernel = PollFlags::empty();
        let mut deadline = now + Duration::from_secs(1);
        let report = self.control.as_ref().map_or(deadline, Control::next);
        match &self.phase {
            Phase::Absent { look } => deadline = *look,
            Phase::Greeting { again, .. } => deadline = *again,
            Phase::Attaching { rest, .. } => deadline = rest.as_ref().map_or(now, Rest::until),
            Phase::Negotiating { .. } => {}
            Phase::Relaying { pause, .. } => {
                kernel.set(PollFlags::OUT, !self.inbox.payload().is_empty());
                let more = self.outbox.is_empty() && !self.ledger.room().is_empty();
                match pause {
                    Some(pause) => deadline = *pause,
                    None => kernel.set(PollFlags::IN, more),
                }
            }
        }
        let timeout = Timespec::try_from(deadline.min(report).saturating_duration_since(now))
            .map_err(|_| Errno::INVAL)?;
        let alone = matches!(self.phase, Phase::Absent { .. } | Phase::Attaching { .. });
        let socket = self.kernel.as_ref().filter(|_| !kernel.is_empty());
        let port = PollFd::new(&self.port, port);
        let mut ready = Ready {
            port: PollFlags::empty(),
            kernel: PollFlags::empty(),
        };
        let polled = match (alone, socket) {
            (true, _) => event::poll(&mut [], Some(&timeout)),
            (false, None) => {
                let mut one = [port];
                let polled = event::poll(&mut one, Some(&timeout));
                let [port] = one;
                ready.port = port.revents();
                polled
            }
            (false, Some(Kernel { socket, .. })) => {
                let mut both = [port, PollFd::new(socket, kernel)];
                let polled = event::poll(&mut both, Some(&timeout));
                let [port, kernel] = both;
                (ready.port, ready.kernel) = (port.revents(), kernel.revents());
                polled
            }
        };
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(ready),
            Err(error) => Err(error),
        }
    }

    /// Does all that can be done without waiting.
    fn step(&mut self, ready: Ready, now: Instant) -> Result<(), Loss> {
        if let Phase::Absent { look } = &mut self.phase {
            if is_absent(&self.port).map_err(Loss::Port)? {
                *look = now + ABSENT_INTERVAL;
                return Ok(());
            }
            self.greet(now).map_err(Loss::Port)?;
        } else if ready.port.contains(PollFlags::HUP) {
            return Err(Loss::HangUp);
        }
        if ready.port.contains(PollFlags::IN) {
            self.inbox.fill(&self.port, now).map_err(Loss::Port)?;
        }
        self.arrivals(now)?;
        self.timers(now)?;
        self.requests(ready.kernel, now)
    }

    /// Begins with a new session.
    fn greet(&mut self, now: Instant) -> Result<(), Errno> {
        let session = random_session()?;
        self.receiver.begin(session);
        self.phase = Phase::Greeting {
            session,
            again: now,
        };
        Ok(())
    }

    /// Takes what has come from the port to whom it is for.
    fn arrivals(&mut self, now: Instant) -> Result<(), Loss> {
        loop {
            self.deliver(now)?;
            match self.inbox.next(&mut self.receiver) {
                Arrival::Nothing => break,
                Arrival::Data => {}
                Arrival::Event(event) => self.event(event, now)?,
            }
        }
        match self.inbox.check(&mut self.receiver, now) {
            Some(event) => self.event(event, now),
            None => Ok(()),
        }
    }

    fn event(&mut self, event: AgentEvent<'static>, now: Instant) -> Result<(), Loss> {
        match event {
            AgentEvent::Data(_) => Ok(()),
            AgentEvent::Lost(damage) => Err(Loss::Frame(damage)),
            AgentEvent::Nonce(nonce) => {
                let other = nonce != self.nonce;
                self.nonce = nonce;
                match &mut self.phase {
                    Phase::Greeting { again, .. } if other => *again = now,
                    _ => {}
                }
                Ok(())
            }
            AgentEvent::Welcome(welcome) => {
                if let Phase::Greeting { session, .. } = self.phase {
                    // A HELLO on its way would follow the session's first frame.
                    self.outlet.abandon().map_err(Loss::Port)?;
                    self.outbox.clear(welcome.max_frame);
                    self.negotiation = Negotiation::new();
                    self.phase = Phase::Negotiating {
                        sender: Sender::new(session),
                        limit: now + NEGOTIATION_LIMIT,
                    };
                }
                Ok(())
            }
        }
    }

    /// Passes on the payload that waits, as far as it goes.
    fn deliver(&mut self, now: Instant) -> Result<(), Loss> {
        let payload = self.inbox.payload();
        if payload.is_empty() {
            return Ok(());
        }
        match &mut self.phase {
            Phase::Relaying { .. } => {
                let Some(Kernel { socket, .. }) = &self.kernel else {
                    return Err(Loss::Socket);
                };
                let known = self
                    .ledger
                    .repeated(payload)
                    .map_err(|Unexpected| Loss::Stream)?;
                self.inbox.delivered(known);
                let payload = self.inbox.payload();
                if payload.is_empty() {
                    return Ok(());
                }
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                match net::send(socket, payload, flags) {
                    Ok(count) => {
                        let delivered = payload.get(..count).unwrap_or_default();
                        self.ledger
                            .follow(delivered, now, &mut self.times)
                            .map_err(|Unexpected| Loss::Stream)?;
                        self.inbox.delivered(count);
                        self.sent.to_kernel += count as u64;
                        Ok(())
                    }
                    Err(Errno::AGAIN | Errno::INTR) => Ok(()),
                    Err(_) => Err(Loss::Socket),
                }
            }
            Phase::Negotiating { .. } => {
                let count = self.negotiation.take(payload);
                self.inbox.delivered(count);
                self.negotiate(now)
            }
            // No reply without a request.
            _ => Err(Loss::Stream),
        }
    }

    fn negotiate(&mut self, now: Instant) -> Result<(), Loss> {
        while let Phase::Negotiating { sender, .. } = &mut self.phase {
            match self.negotiation.advance().map_err(Loss::Refusal)? {
                None => break,
                Some(ClientStep::Send(bytes)) => {
                    self.outbox.data(sender, bytes.len(), |payload| {
                        payload.copy_from_slice(&bytes);
                    });
                }
                Some(ClientStep::Ready(device)) => {
                    let sender = *sender;
                    self.resume(sender, device, now)?;
                }
            }
        }
        Ok(())
    }

    /// Goes on with the kernel's connection, or gives it a new one.
    fn resume(&mut self, sender: Sender, device: Device, now: Instant) -> Result<(), Loss> {
        let usable = match &self.kernel {
            Some(kernel) if kernel.device == device => {
                !is_hung_up(&kernel.socket).map_err(Loss::Kernel)?
            }
            _ => false,
        };
        if usable {
            self.relay(sender, "relaying again");
            return Ok(());
        }
        self.kernel = None;
        self.ledger.clear();
        self.phase = Phase::Attaching {
            sender,
            device,
            rest: self.device.is_configured().then(|| Rest::begin(now)),
        };
        Ok(())
    }

    fn relay(&mut self, sender: Sender, doing: &str) {
        self.log.line(
            Level::Notice,
            format_args!("session {:#x}: {doing}", sender.session()),
        );
        self.phase = Phase::Relaying {
            sender,
            pause: None,
        };
    }

    fn timers(&mut self, now: Instant) -> Result<(), Loss> {
        match &mut self.phase {
            Phase::Greeting { session, again } if *again <= now => {
                *again = now + HELLO_INTERVAL;
                if self.outbox.is_empty() {
                    let limits = Hello {
                        max_frame: MAX_FRAME,
                        flags: 0,
                        nonce: self.nonce,
                    };
                    self.outbox.put(&hello(*session, &limits));
                }
                Ok(())
            }
            Phase::Negotiating { limit, .. } if *limit <= now => Err(Loss::Slow),
            Phase::Attaching { rest, .. } => {
                if rest.as_mut().is_none_or(|rest| rest.step(now)) {
                    self.attach(now)
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }

    /// Gives the kernel a connection. Our end hangs up if it does not take it, with the last
    /// descriptor of its end, or has given it up at once: the receiver of the one before had not ended,
    /// which takes another rest.
    fn attach(&mut self, now: Instant) -> Result<(), Loss> {
        let Phase::Attaching {
            sender,
            device,
            rest,
        } = &mut self.phase
        else {
            return Ok(());
        };
        let (socket, kernel) = socket_pair().map_err(Loss::Kernel)?;
        self.device
            .attach(*device, kernel.as_fd())
            .map_err(Loss::Kernel)?;
        drop(kernel);
        if is_hung_up(&socket).map_err(Loss::Kernel)? {
            *rest = Some(Rest::begin(now));
            return Ok(());
        }
        let (sender, device) = (*sender, *device);
        self.kernel = Some(Kernel { socket, device });
        self.relay(sender, "relaying");
        Ok(())
    }

    /// Passes on the kernel's requests, as far as the port takes them.
    fn requests(&mut self, mut kernel: PollFlags, now: Instant) -> Result<(), Loss> {
        loop {
            self.send()?;
            if !self.outbox.is_empty() {
                return Ok(());
            }
            self.collect(kernel, now)?;
            if self.outbox.is_empty() {
                return Ok(());
            }
            kernel = PollFlags::empty();
        }
    }

    /// Takes requests from the kernel, and makes a frame once they are whole or fill it.
    fn collect(&mut self, ready: PollFlags, now: Instant) -> Result<(), Loss> {
        let (Phase::Relaying { sender, pause }, Some(kernel)) = (&mut self.phase, &self.kernel)
        else {
            return Ok(());
        };
        if pause.is_some_and(|pause| now < pause) {
            return Ok(());
        }
        let resumed = pause.take().is_some();
        if resumed || ready.intersects(PollFlags::IN | PollFlags::HUP) {
            loop {
                let room = self.ledger.room();
                let length = room.len();
                if length == 0 {
                    break;
                }
                match net::recv(&kernel.socket, room, RecvFlags::DONTWAIT) {
                    Ok((_, 0)) => return Err(Loss::Socket),
                    Ok((_, count)) => {
                        self.ledger
                            .add(count, now)
                            .map_err(|Unexpected| Loss::Stream)?;
                        if count < length {
                            break;
                        }
                    }
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => {}
                    Err(_) => return Err(Loss::Socket),
                }
            }
        }
        let count = self.ledger.sendable(self.outbox.longest());
        if count > 0 {
            self.outbox
                .data(sender, count, |payload| self.ledger.take(payload));
        } else if self.ledger.has_unsent() && !self.options.gather.is_zero() {
            *pause = Some(now + self.options.gather);
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Loss> {
        while !self.outbox.is_empty() {
            match self.outlet.send(&self.port, self.outbox.frame()) {
                Ok(false) => {}
                Ok(true) => {
                    self.sent.frames += 1;
                    self.sent.bytes += self.outbox.frame().len() as u64;
                    self.outbox.sent();
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(Loss::Port(error)),
            }
        }
        Ok(())
    }

    fn report(&mut self, now: Instant) -> Result<(), Errno> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        control.step(now, || Figures {
            received: self.receiver.counters(),
            frames_sent: self.sent.frames,
            bytes_sent: self.sent.bytes,
            bytes_received: self.sent.to_kernel,
            times: self.times,
            waiting: self.ledger.waiting(now),
        })
    }

    /// Gives the session up. The kernel's connection is kept if what is in flight on it can be sent
    /// again; else it is given up, too, and the kernel repeats it when its time is up.
    ///
    /// Fails if the port has been unplugged: no session will begin on it.
    fn lose(&mut self, loss: &Loss, now: Instant) -> Result<(), Errno> {
        self.log
            .line(Level::Error, format_args!("session lost: {loss}"));
        if matches!(loss, Loss::Port(Errno::NODEV)) {
            return Err(Errno::NODEV);
        }
        let theirs = matches!(loss, Loss::Socket | Loss::Stream | Loss::Kernel(_));
        if theirs || !self.ledger.rewind() {
            self.times.longest = self.times.longest.max(self.ledger.waiting(now));
            self.kernel = None;
            self.ledger.clear();
        }
        self.outlet.abandon()?;
        self.outbox.clear(MAX_FRAME);
        if matches!(loss, Loss::HangUp) {
            self.inbox.clear();
            self.phase = Phase::Absent {
                look: now + ABSENT_INTERVAL,
            };
            return Ok(());
        }
        self.inbox.drop_payload();
        self.greet(now)
    }
}

impl Negotiation {
    fn new() -> Self {
        Self {
            handshake: ClientHandshake::default(),
            reply: [0; MIN_REPLY_INPUT],
            length: 0,
        }
    }

    /// Takes what there is room for.
    fn take(&mut self, payload: &[u8]) -> usize {
        let room = self.reply.get_mut(self.length..).unwrap_or_default();
        let count = payload.len().min(room.len());
        for (place, byte) in room.iter_mut().zip(payload) {
            *place = *byte;
        }
        self.length += count;
        count
    }

    fn advance(&mut self) -> Result<Option<ClientStep>, Refusal> {
        let input = self.reply.get(..self.length).unwrap_or_default();
        let (taken, step) = self.handshake.advance(input)?;
        self.reply.copy_within(taken..self.length, 0);
        self.length -= taken;
        Ok(step)
    }
}

/// A number for a session: random, and not 0.
pub(crate) fn random_session() -> Result<u64, Errno> {
    let mut number = [0; 8];
    while number == [0; 8] {
        rand::getrandom(&mut number[..], GetRandomFlags::empty())?;
    }
    Ok(u64::from_ne_bytes(number))
}

/// Our end and the kernel's.
fn socket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, kernel) = net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_send_buffer_size(&kernel, KERNEL_SEND_BUFFER)?;
    Ok((ours, kernel))
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HangUp => f.write_str("the host's side was closed"),
            Self::Frame(damage) => write!(f, "{damage}"),
            Self::Refusal(refusal) => write!(f, "{refusal}"),
            Self::Slow => f.write_str("the host did not finish the negotiation"),
            Self::Kernel(error) => write!(f, "the kernel does not take a connection: {error}"),
            Self::Socket => f.write_str("the kernel has given its connection up"),
            Self::Stream => f.write_str("bytes that have no place in the stream"),
            Self::Port(error) => write!(f, "the port failed: {error}"),
        }
    }
}
