// SPDX-License-Identifier: GPL-2.0-or-later
//! An agent killed at random bytes of its stream, again and again: no page is ever wrong.
//!
//! With the feature `no-session-check`, which feeds a new session's bytes to the old one's engine,
//! this test has to fail.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::agent::Agent;
use common::{Lab, WRITE, blind_negotiation, request};

const PAGES: u64 = 64;
const KILLS: u64 = 60;

/// A generator of numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// A write of pages that all hold one number.
#[derive(Clone, Copy, Debug)]
struct Put {
    first: u64,
    count: u64,
    version: u64,
}

impl Put {
    fn request(&self) -> Vec<u8> {
        let mut out = request(
            WRITE,
            0,
            self.version,
            self.first * 4096,
            self.count as u32 * 4096,
        );
        for page in self.first..self.first + self.count {
            out.extend(content(page, self.version));
        }
        out
    }
}

fn content(page: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; 4096];
    }
    let word = (page << 32 | version).to_le_bytes();
    word.repeat(4096 / 8)
}

/// The kernel's side: what was answered, and what has to be sent again.
struct Guest {
    dice: Dice,
    versions: u64,
    /// By page: the version last answered.
    answered: Vec<u64>,
    flying: Vec<Put>,
}

impl Guest {
    /// More requests, on pages that none in flight is about.
    fn submit(&mut self) {
        for _ in 0..=self.dice.roll(6) {
            let first = self.dice.roll(PAGES);
            let count = 1 + self.dice.roll(16.min(PAGES - first));
            let busy = |put: &Put| put.first < first + count && first < put.first + put.count;
            if !self.flying.iter().any(busy) {
                self.versions += 1;
                let version = self.versions;
                self.flying.push(Put {
                    first,
                    count,
                    version,
                });
            }
        }
    }

    /// A reply has come.
    fn answer(&mut self, version: u64) {
        let at = self.flying.iter().position(|put| put.version == version);
        let put = self.flying.swap_remove(at.unwrap());
        for page in put.first..put.first + put.count {
            self.answered[page as usize] = version;
        }
    }

    /// Every page is what was last answered or, of a write in flight, what it is to become.
    fn check(&self, lab: &Lab) {
        let device = lab.nbd("a").read(0, PAGES as usize * 4096).unwrap();
        for (page, found) in (0..).zip(device.chunks(4096)) {
            let touches = |put: &&Put| put.first <= page && page < put.first + put.count;
            let flying = self.flying.iter().filter(touches).map(|put| put.version);
            let mut possible = flying.chain([self.answered[page as usize]]);
            assert!(
                possible.any(|version| found == content(page, version)),
                "page {page} is wrong: {:?}…",
                &found[..32]
            );
        }
    }
}

/// Negotiates without waiting for the greeting, as nothing forbids an agent to.
fn negotiate(agent: &mut Agent) {
    agent.write_all(&blind_negotiation()).unwrap();
    agent.read_exact(&mut [0; 18 + 10]).unwrap();
}

fn reply(agent: &mut Agent) -> u64 {
    let mut reply = [0; 16];
    agent.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    u64::from_be_bytes(reply[8..].try_into().unwrap())
}

#[test]
fn an_agent_killed_at_random_bytes_costs_no_page() {
    let lab = Lab::new(64 << 20);
    lab.add("a", PAGES * 4096);
    let mut guest = Guest {
        dice: Dice(0x9e37_79b9_7f4a_7c15),
        versions: 0,
        answered: vec![0; PAGES as usize],
        flying: Vec::new(),
    };
    let mut port: UnixStream = lab.port("a");
    for session in 1..=KILLS {
        let mut agent = Agent::new(port);
        agent.longest = [500, 4064, 32_736][guest.dice.roll(3) as usize];
        agent.begin(session);
        negotiate(&mut agent);
        // What the last agent left unanswered, and what has come up since.
        guest.submit();
        let requests: Vec<u8> = guest.flying.iter().flat_map(Put::request).collect();
        let stream = agent.frames(&requests);
        let cut = guest.dice.roll(stream.len() as u64 + 1) as usize;
        agent.port.write_all(&stream[..cut]).unwrap();
        // Some of the replies still get through to the kernel.
        let whole = agent.longest + 32;
        let mut arrived = cut / whole * agent.longest;
        for put in guest.flying.clone() {
            let length = put.request().len();
            if length > arrived || guest.dice.roll(4) == 0 {
                break;
            }
            arrived -= length;
            guest.answer(reply(&mut agent));
        }
        port = agent.port;
        if session % 10 == 0 {
            guest.check(&lab);
        }
    }
    // The last agent lives.
    let mut agent = Agent::new(port);
    agent.begin(KILLS + 1);
    negotiate(&mut agent);
    let requests: Vec<u8> = guest.flying.iter().flat_map(Put::request).collect();
    agent.write_all(&requests).unwrap();
    while !guest.flying.is_empty() {
        guest.answer(reply(&mut agent));
    }
    guest.check(&lab);
    assert_eq!(
        lab.server.client_stats("a").unwrap().port.sessions,
        KILLS + 1
    );
}
