// SPDX-License-Identifier: GPL-2.0-or-later
//! Sessions on a tmem port, with a guest that loses a flush.
//!
//! With the feature `no-session-check`, which lets ephemeral pools outlast their session, the guest
//! is given a page back that it has overwritten since, and the test has to fail.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::Lab;
use kzt_store::tmem::flags::VERSION_SHIFT;
use kzt_wire::tmem::{Frame, HEADER_LENGTH, Header, Hello, MAX_FRAME, MAX_PAGES, PAGE, op};

const MIB: u64 = 1 << 20;
const INODE: [u64; 3] = [1, 2, 0];

/// A guest at its port.
struct Guest {
    stream: UnixStream,
    session: u64,
    nonce: u64,
}

impl Guest {
    fn new(lab: &Lab) -> Self {
        let mut guest = Self {
            stream: lab.connect("a.tmem"),
            session: 0,
            nonce: 0,
        };
        let (header, payload) = guest.receive();
        assert_eq!(header.op, op::RESET);
        guest.nonce = u64::from_le_bytes(payload.try_into().unwrap());
        guest.begin();
        guest
    }

    fn begin(&mut self) {
        self.session += 1;
        let hello = Hello {
            session: self.session,
            tag: 0,
            fresh: false,
            version: 1,
            max_pages: MAX_PAGES,
            max_frame: MAX_FRAME.try_into().unwrap(),
            nonce: self.nonce,
        };
        self.stream.write_all(&hello.frame()).unwrap();
        loop {
            let (header, _) = self.receive();
            if (header.op, header.session) == (op::HELLO, self.session) {
                return;
            }
        }
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let mut bytes = vec![0; HEADER_LENGTH];
        self.stream.read_exact(&mut bytes).unwrap();
        let length = u32::from_le_bytes(bytes[56..60].try_into().unwrap()) as usize;
        bytes.resize(HEADER_LENGTH + length, 0);
        self.stream.read_exact(&mut bytes[HEADER_LENGTH..]).unwrap();
        let frame = Frame::parse(&bytes).unwrap().unwrap();
        (frame.header, frame.payload.to_vec())
    }

    fn request(&self, op: u16, pool: i32, payload: &[u8]) -> Vec<u8> {
        let header = Header {
            op,
            session: self.session,
            pool,
            object: INODE,
            count: 1,
            ..Header::default()
        };
        [&header.encode(payload)[..], payload].concat()
    }

    fn call(&mut self, request: &[u8]) -> (Header, Vec<u8>) {
        self.stream.write_all(request).unwrap();
        self.receive()
    }

    fn new_pool(&mut self) -> i32 {
        let header = Header {
            op: op::NEW_POOL,
            session: self.session,
            index: 1 << VERSION_SHIFT,
            ..Header::default()
        };
        self.call(&header.encode(&[])).0.pool
    }

    fn put(&mut self, pool: i32, page: &[u8]) {
        let put = self.request(op::PUT_PAGE, pool, page);
        assert_eq!(self.call(&put).1, 1i32.to_le_bytes());
    }

    fn get(&mut self, pool: i32) -> Option<Vec<u8>> {
        let get = self.request(op::GET_PAGE, pool, &[]);
        let (_, payload) = self.call(&get);
        (payload[..4] == 1i32.to_le_bytes()).then(|| payload[4..].to_vec())
    }
}

#[test]
fn no_page_comes_back_whose_flush_died_with_its_session() {
    let lab = Lab::new(8 * MIB);
    lab.add("a", MIB);
    let mut guest = Guest::new(&lab);
    let pool = guest.new_pool();
    guest.put(pool, &[1; PAGE]);
    // The page is written to, and its flush dies on the way, as when the agent is killed.
    let flush = guest.request(op::FLUSH_PAGE, pool, &[]);
    guest.stream.write_all(&flush[..HEADER_LENGTH - 1]).unwrap();
    guest.begin();
    // A guest that keeps to the rule has forgotten the pool. This one asks all the same.
    assert_eq!(guest.get(pool), None);
    assert_eq!(guest.new_pool(), pool);
    assert_eq!(guest.get(pool), None);
}

#[test]
fn every_connection_has_a_nonce_of_its_own() {
    let lab = Lab::new(8 * MIB);
    lab.add("a", MIB);
    let mut nonces: Vec<u64> = (0..20).map(|_| Guest::new(&lab).nonce).collect();
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), 20);
    assert!(!nonces.contains(&0));
}
