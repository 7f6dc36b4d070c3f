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
use crate::flight::{Flight, Times, Unexpected};
use crate::inbox::{Arrival, Inbox};
use crate::log::{Level, Log};
use crate::outbox::Outbox;
use crate::port::Outlet;
use crate::report::Figures;
use crate::requests::Requests;

/// How often to look whether somebody has opened the host's side: the port tells nobody.
const ABSENT_INTERVAL: Duration = Duration::from_millis(50);
/// The kernel needs a moment to notice that its connection is gone.
const ATTACH_INTERVAL: Duration = Duration::from_millis(10);
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
    inbox: Inbox,
    outbox: Outbox,
    negotiation: Negotiation,
    flight: Flight,
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
    /// The kernel is to take the connection.
    Attaching {
        sender: Sender,
        device: Device,
        again: Instant,
    },
    /// Requests and replies are passed on.
    Relaying(Relay),
}

struct Negotiation {
    handshake: ClientHandshake,
    reply: [u8; MIN_REPLY_INPUT],
    length: usize,
}

struct Relay {
    sender: Sender,
    socket: OwnedFd,
    requests: Requests,
    /// When to look for the rest of a request.
    pause: Option<Instant>,
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
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            negotiation: Negotiation::new(),
            flight: Flight::new(),
            sent: Sent::default(),
            times: Times::default(),
            phase: Phase::Absent {
                look: Instant::now(),
            },
        })
    }

    /// Runs until something fails that is not the host's doing.
    pub(crate) fn run(&mut self) -> Result<Infallible, Errno> {
        loop {
            self.wait()?;
            if let Err(loss) = self.step() {
                self.lose(&loss)?;
            }
            self.report()?;
        }
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Result<(), Errno> {
        let now = Instant::now();
        let mut port = PollFlags::empty();
        port.set(PollFlags::IN, self.inbox.has_room());
        port.set(PollFlags::OUT, self.outbox.is_ready());
        let mut deadline = now + Duration::from_secs(1);
        let report = self.control.as_ref().map_or(deadline, Control::next);
        let mut socket = None;
        match &self.phase {
            Phase::Absent { look } => deadline = *look,
            Phase::Greeting { again, .. } | Phase::Attaching { again, .. } => deadline = *again,
            Phase::Negotiating { .. } => {}
            Phase::Relaying(relay) => {
                let mut wanted = PollFlags::empty();
                wanted.set(PollFlags::OUT, !self.inbox.payload().is_empty());
                match relay.pause {
                    Some(pause) => deadline = pause,
                    None => wanted.set(PollFlags::IN, !self.outbox.is_ready()),
                }
                if !wanted.is_empty() {
                    socket = Some((&relay.socket, wanted));
                }
            }
        }
        let timeout = Timespec::try_from(deadline.min(report).saturating_duration_since(now))
            .map_err(|_| Errno::INVAL)?;
        let absent = matches!(self.phase, Phase::Absent { .. });
        let ready = match (absent, socket) {
            (true, _) => event::poll(&mut [], Some(&timeout)),
            (false, None) => event::poll(&mut [PollFd::new(&self.port, port)], Some(&timeout)),
            (false, Some((socket, wanted))) => {
                let mut both = [PollFd::new(&self.port, port), PollFd::new(socket, wanted)];
                event::poll(&mut both, Some(&timeout))
            }
        };
        match ready {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Does all that can be done without waiting.
    fn step(&mut self) -> Result<(), Loss> {
        let now = Instant::now();
        if is_hung_up(&self.port).map_err(Loss::Port)? {
            return match &mut self.phase {
                Phase::Absent { look } => {
                    *look = now + ABSENT_INTERVAL;
                    Ok(())
                }
                _ => Err(Loss::HangUp),
            };
        }
        if matches!(self.phase, Phase::Absent { .. }) {
            self.greet().map_err(Loss::Port)?;
        }
        self.inbox.fill(&self.port).map_err(Loss::Port)?;
        self.arrivals(now)?;
        self.timers(now)?;
        self.collect(now)?;
        self.send()
    }

    /// Begins with a new session.
    fn greet(&mut self) -> Result<(), Errno> {
        let session = random_session()?;
        self.receiver.begin(session);
        self.phase = Phase::Greeting {
            session,
            again: Instant::now(),
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
            Phase::Relaying(relay) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                match net::send(&relay.socket, payload, flags) {
                    Ok(count) => {
                        let delivered = payload.get(..count).unwrap_or_default();
                        self.flight
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
                    let room = self.outbox.room();
                    let place = room.get_mut(..bytes.len()).ok_or(Loss::Stream)?;
                    place.copy_from_slice(&bytes);
                    self.outbox.add(bytes.len());
                    self.outbox.close(sender, bytes.len());
                }
                Some(ClientStep::Ready(device)) => {
                    self.phase = Phase::Attaching {
                        sender: *sender,
                        device,
                        again: now,
                    };
                }
            }
        }
        Ok(())
    }

    fn timers(&mut self, now: Instant) -> Result<(), Loss> {
        match &mut self.phase {
            Phase::Greeting { session, again } if *again <= now => {
                *again = now + HELLO_INTERVAL;
                if !self.outbox.is_ready() {
                    let limits = Hello {
                        max_frame: MAX_FRAME,
                        flags: 0,
                    };
                    self.outbox.put(&hello(*session, &limits));
                }
                Ok(())
            }
            Phase::Negotiating { limit, .. } if *limit <= now => Err(Loss::Slow),
            Phase::Attaching { again, .. } if *again <= now => {
                *again = now + ATTACH_INTERVAL;
                self.attach()
            }
            _ => Ok(()),
        }
    }

    /// Gives the kernel a connection. It takes none, and says nothing of that, before it has noticed
    /// that the one before is gone: our end then hangs up with the last descriptor of its end.
    fn attach(&mut self) -> Result<(), Loss> {
        let Phase::Attaching { sender, device, .. } = &self.phase else {
            return Ok(());
        };
        let (socket, kernel) = socket_pair().map_err(Loss::Kernel)?;
        self.device
            .attach(*device, kernel.as_fd())
            .map_err(Loss::Kernel)?;
        drop(kernel);
        if is_hung_up(&socket).map_err(Loss::Kernel)? {
            return Ok(());
        }
        let sender = *sender;
        self.log.line(
            Level::Notice,
            format_args!("session {:#x}: relaying", sender.session()),
        );
        self.flight = Flight::new();
        self.phase = Phase::Relaying(Relay {
            sender,
            socket,
            requests: Requests::default(),
            pause: None,
        });
        Ok(())
    }

    /// Takes requests from the kernel until a frame is full or ends with a request.
    fn collect(&mut self, now: Instant) -> Result<(), Loss> {
        let Phase::Relaying(relay) = &mut self.phase else {
            return Ok(());
        };
        if self.outbox.is_ready() || relay.pause.is_some_and(|pause| now < pause) {
            return Ok(());
        }
        relay.pause = None;
        while !self.outbox.room().is_empty() {
            match net::recv(&relay.socket, self.outbox.room(), RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(Loss::Socket),
                Ok((_, count)) => self.outbox.add(count),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Loss::Socket),
            }
        }
        let full = self.outbox.room().is_empty();
        let payload = self.outbox.payload();
        if payload.is_empty() {
            return Ok(());
        }
        let span = relay
            .requests
            .follow(payload, &mut self.flight, now)
            .map_err(|Unexpected| Loss::Stream)?;
        if span.whole || full {
            relay.requests.cut(span.sendable);
            self.outbox.close(&mut relay.sender, span.sendable);
        } else if !self.options.gather.is_zero() {
            relay.pause = Some(now + self.options.gather);
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Loss> {
        while self.outbox.is_ready() {
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

    fn report(&mut self) -> Result<(), Errno> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        let now = Instant::now();
        control.step(now, || Figures {
            received: self.receiver.counters(),
            frames_sent: self.sent.frames,
            bytes_sent: self.sent.bytes,
            bytes_received: self.sent.to_kernel,
            times: self.times,
            waiting: self.flight.oldest(now),
        })
    }

    /// Gives the session up, and with it the kernel's connection.
    fn lose(&mut self, loss: &Loss) -> Result<(), Errno> {
        self.log
            .line(Level::Error, format_args!("session lost: {loss}"));
        // What is in flight now waits on, unseen from here, until the kernel sends it again.
        self.times.longest = self.times.longest.max(self.flight.oldest(Instant::now()));
        self.flight = Flight::new();
        self.outlet.abandon()?;
        self.outbox.clear(MAX_FRAME);
        if matches!(loss, Loss::HangUp) {
            self.inbox.clear();
            self.phase = Phase::Absent {
                look: Instant::now() + ABSENT_INTERVAL,
            };
            return Ok(());
        }
        self.inbox.drop_payload();
        self.greet()
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

fn is_hung_up(file: &OwnedFd) -> Result<bool, Errno> {
    let mut poll = [PollFd::new(file, PollFlags::empty())];
    event::poll(&mut poll, Some(&Timespec::default()))?;
    let [file] = poll;
    Ok(file.revents().contains(PollFlags::HUP))
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
