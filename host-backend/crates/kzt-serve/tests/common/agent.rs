// SPDX-License-Identifier: GPL-2.0-or-later
//! An agent at the other end of a relay port, without a guest around it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kzt_wire::port::{
    self, AgentEvent, AgentReceiver, Damage, Hello, Kind, MAX_FRAME, Sender, Welcome,
};

use super::{Lab, Nbd};

/// What an agent says that does not know the nonce.
pub const HELLO: Hello = Hello {
    max_frame: MAX_FRAME,
    flags: 0,
    nonce: 0,
};

/// A server that says nothing for so long has lost its way: a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// One agent. Reading and writing is the NBD stream of its session, which panics when it is lost.
pub struct Agent {
    pub port: UnixStream,
    pub receiver: AgentReceiver,
    pub sender: Sender,
    /// The last one that the host has told.
    pub nonce: u64,
    /// Longest payload it puts into a frame.
    pub longest: usize,
    received: Vec<u8>,
    nbd: Vec<u8>,
}

impl Agent {
    /// An agent that has said nothing yet.
    pub fn new(port: UnixStream) -> Self {
        port.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            port,
            receiver: AgentReceiver::default(),
            sender: Sender::new(0),
            nonce: 0,
            longest: port::MAX_PAYLOAD,
            received: Vec::new(),
            nbd: Vec::new(),
        }
    }

    /// Begins a session and waits until it is welcomed.
    pub fn begin(&mut self, session: u64) -> Welcome {
        self.begin_with(session, MAX_FRAME)
    }

    /// The same, taking frames of that length at most.
    pub fn begin_with(&mut self, session: u64, max_frame: usize) -> Welcome {
        self.nbd.clear();
        self.receiver.begin(session);
        self.sender = Sender::new(session);
        loop {
            let hello = Hello {
                max_frame,
                nonce: self.nonce,
                ..HELLO
            };
            self.port.write_all(&port::hello(session, &hello)).unwrap();
            loop {
                match self.event() {
                    Event::Welcome(welcome) => return welcome,
                    Event::Nonce(nonce) if nonce == self.nonce => {}
                    Event::Nonce(nonce) => {
                        self.nonce = nonce;
                        break;
                    }
                    event => panic!("{event:?} before the welcome"),
                }
            }
        }
    }

    /// The next thing the host says.
    pub fn event(&mut self) -> Event {
        loop {
            let step = self.receiver.next(&self.received);
            let event = step.event.map(Event::from);
            self.received.drain(..step.taken);
            if let Some(event) = event {
                return event;
            }
            let mut piece = [0; 4096];
            let length = self.port.read(&mut piece);
            let length = length.unwrap_or_else(|error| panic!("the host says nothing: {error}"));
            assert!(length > 0, "the host has hung up");
            self.received.extend(&piece[..length]);
        }
    }

    /// The frames that carry `bytes`.
    pub fn frames(&mut self, bytes: &[u8]) -> Vec<u8> {
        let frame = |payload: &[u8]| [&self.sender.data(payload)[..], payload].concat();
        bytes.chunks(self.longest).flat_map(frame).collect()
    }

    /// Waits until the host says that there is no session.
    pub fn await_reset(&mut self) {
        while self.event() != Event::Lost(Damage::Kind(Kind::Reset)) {}
    }
}

/// An event that owns what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Nonce(u64),
    Welcome(Welcome),
    Data(Vec<u8>),
    Lost(Damage),
}

impl From<AgentEvent<'_>> for Event {
    fn from(event: AgentEvent<'_>) -> Self {
        match event {
            AgentEvent::Nonce(nonce) => Self::Nonce(nonce),
            AgentEvent::Welcome(welcome) => Self::Welcome(welcome),
            AgentEvent::Data(data) => Self::Data(data.to_vec()),
            AgentEvent::Lost(damage) => Self::Lost(damage),
        }
    }
}

impl Read for Agent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.nbd.is_empty() {
            match self.event() {
                Event::Data(data) => self.nbd.extend(data),
                event => panic!("{event:?} in the middle of a session"),
            }
        }
        let length = buffer.len().min(self.nbd.len());
        buffer[..length].copy_from_slice(&self.nbd[..length]);
        self.nbd.drain(..length);
        Ok(length)
    }
}

impl Write for Agent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let frames = self.frames(bytes);
        self.port.write_all(&frames)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lab {
    /// A connection such as QEMU makes it.
    pub fn port(&self, client: &str) -> UnixStream {
        UnixStream::connect(self.socket(&format!("{client}.relay"))).unwrap()
    }

    /// An agent with a device.
    pub fn relay(&self, client: &str, session: u64) -> Nbd<Agent> {
        relay(self.port(client), session)
    }
}

/// An agent with a device, on a port whose last agent has died.
pub fn relay(port: UnixStream, session: u64) -> Nbd<Agent> {
    let mut agent = Agent::new(port);
    agent.begin(session);
    Nbd::negotiate(agent)
}
