// SPDX-License-Identifier: GPL-2.0-or-later
//! A real server in a scratch folder, and a client that can be as rude as a test needs.
#![allow(
    dead_code,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "each test takes what it needs and fails by panicking"
)]

pub mod agent;
pub mod driver;
pub mod scene;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use kzt_serve::{ServeError, Server, ServerConfig, Sockets};
use kzt_store::{Codec, Dedup, Terms};
use tempfile::TempDir;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const NO_HOLE: u16 = 2;
pub const ENOSPC: u32 = 28;

/// A server whose arena and sockets live as long as this does.
pub struct Lab {
    pub server: Server,
    pub memory: u64,
    pub codec: Codec,
    pub folder: TempDir,
}

impl Lab {
    pub fn new(memory: u64) -> Self {
        Self::with_codec(memory, Codec::Lzo)
    }

    pub fn with_codec(memory: u64, codec: Codec) -> Self {
        // Where arenas belong: a tmpfs.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        Self::open(folder, memory, codec)
    }

    /// The same arena under a new server.
    pub fn reopen(self) -> Self {
        let Self {
            server,
            memory,
            codec,
            folder,
        } = self;
        drop(server);
        Self::open(folder, memory, codec)
    }

    fn open(folder: TempDir, memory: u64, codec: Codec) -> Self {
        let arena = folder.path().join("arena");
        let (server, _) = Server::open(&ServerConfig {
            codec,
            ..ServerConfig::new(arena, memory)
        })
        .unwrap();
        Self {
            server,
            memory,
            codec,
            folder,
        }
    }

    pub fn socket(&self, client: &str) -> PathBuf {
        self.folder.path().join(client)
    }

    pub fn add(&self, client: &str, swap: u64) {
        self.try_add(client, swap, client).unwrap();
    }

    /// `socket` is the NBD socket's name, and the other sockets' name has an ending added.
    pub fn try_add(&self, client: &str, swap: u64, socket: &str) -> Result<(), ServeError> {
        let [nbd, relay, vhost, tmem, ctl] =
            ["", ".relay", ".vhost", ".tmem", ".ctl"].map(|end| format!("{socket}{end}"));
        let sockets = Sockets {
            nbd: &self.socket(&nbd),
            relay: &self.socket(&relay),
            vhost: &self.socket(&vhost),
            tmem: &self.socket(&tmem),
            ctl: &self.socket(&ctl),
        };
        self.server
            .add_client(client, swap, &Dedup::Off, Terms::default(), sockets)
    }

    pub fn connect(&self, client: &str) -> UnixStream {
        UnixStream::connect(self.socket(client)).unwrap()
    }

    pub fn nbd(&self, client: &str) -> Nbd {
        Nbd::negotiate(self.connect(client))
    }

    /// Waits until the client has exactly so many connections.
    pub fn settle(&self, client: &str, connections: usize) {
        while self.server.client_stats(client).unwrap().connections != connections {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A client that uses simple replies. Its methods panic on anything but the reply they expect.
pub struct Nbd<S = UnixStream> {
    pub stream: S,
    pub size: u64,
    cookie: u64,
}

/// Client flags and `NBD_OPT_EXPORT_NAME` for the default export.
pub fn blind_negotiation() -> Vec<u8> {
    let mut out = vec![0, 0, 0, 3];
    out.extend(b"IHAVEOPT");
    out.extend(1u32.to_be_bytes());
    out.extend(0u32.to_be_bytes());
    out
}

pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(length.to_be_bytes());
    out
}

impl<S: Read + Write> Nbd<S> {
    pub fn negotiate(mut stream: S) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        stream.write_all(&blind_negotiation()).unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        let size = u64::from_be_bytes(export[..8].try_into().unwrap());
        Self {
            stream,
            size,
            cookie: 0,
        }
    }

    pub fn send(&mut self, command: u16, flags: u16, offset: u64, length: u32, payload: &[u8]) {
        self.cookie += 1;
        let mut out = request(command, flags, self.cookie, offset, length);
        out.extend(payload);
        self.stream.write_all(&out).unwrap();
    }

    /// The next reply's error and cookie.
    pub fn reply(&mut self) -> (u32, u64) {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        (error, u64::from_be_bytes(reply[8..].try_into().unwrap()))
    }

    /// Sends a request and returns its reply's error.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> u32 {
        self.send(command, flags, offset, length, data);
        let (error, cookie) = self.reply();
        assert_eq!(cookie, self.cookie);
        error
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.call(WRITE, 0, offset, data.len() as u32, data)
    }

    pub fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, u32> {
        match self.call(READ, 0, offset, length as u32, &[]) {
            0 => {
                let mut data = vec![0; length];
                self.stream.read_exact(&mut data).unwrap();
                Ok(data)
            }
            error => Err(error),
        }
    }
}

impl Nbd {
    /// Whether the server has closed the connection; waits until it has, or sends something.
    pub fn ended(&mut self) -> bool {
        ended(&mut self.stream)
    }
}

/// Whether the server has closed the connection; waits until it has, or sends something.
pub fn ended(stream: &mut UnixStream) -> bool {
    // Closing with bytes unread shows as a reset.
    stream.read(&mut [0]).map_or(true, |length| length == 0)
}

/// A page that no codec can shrink.
pub fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..4096).map(|_| next()).collect()
}
