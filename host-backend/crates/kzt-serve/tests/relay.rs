// SPDX-License-Identifier: GPL-2.0-or-later
//! The swap device behind a virtio-serial port: sessions come and go, the connection stays.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::Duration;

use common::agent::{Agent, Event, HELLO, relay};
use common::{Lab, NO_HOLE, READ, TRIM, WRITE, WRITE_ZEROES, blind_negotiation, noise, request};
use kzt_wire::port::{self, Sender};
use proptest::prelude::*;

const OLD: [u8; 4096] = [1; 4096];
const NEW: [u8; 4096] = [2; 4096];

#[test]
fn a_port_and_a_socket_are_the_same_device() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut agent = Agent::new(lab.port("a"));
    assert_eq!(agent.begin(1).swap_bytes, 1 << 20);
    let mut relay = common::Nbd::negotiate(agent);
    let mut nbd = lab.nbd("a");
    assert_eq!((relay.size, nbd.size), (1 << 20, 1 << 20));
    let data: Vec<u8> = (0..64).flat_map(noise).collect();
    assert_eq!(relay.write(0, &data), 0);
    assert!(nbd.read(0, data.len()).unwrap() == data);
    assert!(relay.read(0, data.len()).unwrap() == data);
    assert_eq!(relay.call(TRIM, 0, 0, 4096, &[]), 0);
    assert_eq!(nbd.read(0, 4096).unwrap(), [0; 4096]);

    // Recorded once the replies are sent: the last one's reply is proof for those before.
    relay.read(0, 1).unwrap();
    let stats = lab.server.client_stats("a").unwrap();
    assert_eq!((stats.put.count, stats.flush.count), (1, 1));
    assert!(stats.get.count >= 2);
    assert_eq!(stats.connections, 2);
    assert_eq!((stats.port.sessions, stats.port.damaged), (1, 0));
    assert!(stats.port.frames >= 64 * 4096 / port::MAX_PAYLOAD as u64);
}

#[test]
fn requests_and_replies_fit_frames_of_any_size() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 8 << 20);
    for (session, longest) in [(1, 1000), (2, 4064), (3, port::MAX_PAYLOAD)] {
        let mut agent = Agent::new(lab.port("a"));
        agent.longest = longest;
        agent.begin(session);
        let mut relay = common::Nbd::negotiate(agent);
        let data: Vec<u8> = (0..512).flat_map(|page| noise(page + session)).collect();
        assert_eq!(relay.write(4096, &data), 0);
        assert!(relay.read(4096, data.len()).unwrap() == data);
        assert_eq!(relay.write(100, &data[..5000]), 0);
        assert!(relay.read(100, 5000).unwrap() == data[..5000]);
    }
}

#[test]
fn no_frame_is_longer_than_the_agent_takes() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut agent = Agent::new(lab.port("a"));
    agent.begin_with(1, port::MIN_FRAME);
    let mut asked = blind_negotiation();
    asked.extend(request(READ, 0, 1, 0, 100_000));
    agent.write_all(&asked).unwrap();
    let mut got = 0;
    while got < 18 + 10 + 16 + 100_000 {
        let Event::Data(data) = agent.event() else {
            panic!("no data")
        };
        assert!(data.len() <= port::MIN_FRAME - port::HEADER_LENGTH);
        got += data.len();
    }
}

#[test]
fn a_new_agent_is_served_whatever_the_old_one_left_behind() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut old = lab.relay("a", 1);
    assert_eq!(old.write(0, &[OLD, OLD].concat()), 0);
    let mut port = old.stream.port;
    let mut session = 2;
    // The stream of two pages' write, and everywhere in it the agent dies.
    let places = (0..8300)
        .step_by(397)
        .chain([1, 31, 32, 33, 59, 60, 61, 92]);
    for cut in places {
        let mut dying = relay(port, session);
        dying.stream.longest = 3000;
        let mut stream = request(WRITE, 0, 7, 0, 8192);
        stream.extend([NEW, NEW].concat());
        let stream = dying.stream.frames(&stream);
        dying.stream.port.write_all(&stream[..cut]).unwrap();
        port = dying.stream.port;

        let mut next = relay(port, session + 1);
        let pages = next.read(0, 8192).unwrap();
        for page in pages.chunks(4096) {
            assert!(page == OLD || page == NEW, "half a page after {cut} bytes");
        }
        assert_eq!(next.write(0, &[OLD, OLD].concat()), 0);
        assert!(next.read(0, 8192).unwrap() == [OLD, OLD].concat());
        port = next.stream.port;
        session += 2;
    }
}

#[test]
fn replies_of_an_old_session_never_reach_a_new_one() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 4 << 20);
    let mut old = lab.relay("a", 1);
    let data: Vec<u8> = (0..64).flat_map(noise).collect();
    assert_eq!(old.write(0, &data), 0);
    for _ in 0..8 {
        old.send(READ, 0, 0, data.len() as u32, &[]);
    }
    // Nothing of that is read; the new agent finds it on the port.
    let mut new = relay(old.stream.port, 2);
    assert_eq!(new.read(8192, 4096).unwrap(), noise(2));
}

#[test]
fn a_damaged_frame_ends_its_session_and_is_not_applied() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.relay("a", 1);
    assert_eq!(nbd.write(0, &OLD), 0);
    let mut write = request(WRITE, 0, 7, 0, 4096);
    write.extend(NEW);
    let mut frames = nbd.stream.frames(&write);
    frames[2000] ^= 4;
    nbd.stream.port.write_all(&frames).unwrap();
    nbd.stream.await_reset();
    let mut next = relay(nbd.stream.port, 2);
    assert!(next.read(0, 4096).unwrap() == OLD);
    assert_eq!(lab.server.client_stats("a").unwrap().port.damaged, 1);
}

#[test]
fn nonsense_inside_a_session_ends_the_session_only() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.relay("a", 1);
    nbd.stream.write_all(&[0xff; 28]).unwrap();
    nbd.stream.await_reset();
    nbd.stream.begin(2);
    let mut nbd = common::Nbd::negotiate(nbd.stream);
    assert_eq!(nbd.write(0, &OLD), 0);
    // Leaving the device is not the end of the port either.
    nbd.send(common::DISCONNECT, 0, 0, 0, &[]);
    nbd.stream.begin(3);
    let mut nbd = common::Nbd::negotiate(nbd.stream);
    assert!(nbd.read(0, 4096).unwrap() == OLD);
}

#[test]
fn frames_of_other_sessions_are_counted_and_ignored() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.relay("a", 1);
    let mut foreign = request(WRITE, 0, 7, 0, 4096);
    foreign.extend(NEW);
    let head = Sender::new(99).data(&foreign);
    nbd.stream.port.write_all(&head).unwrap();
    nbd.stream.port.write_all(&foreign).unwrap();
    assert_eq!(nbd.read(0, 4096).unwrap(), [0; 4096]);
    // Counted by the time the port is waited for again.
    nbd.read(0, 4096).unwrap();
    assert_eq!(lab.server.client_stats("a").unwrap().port.ignored, 1);
}

#[test]
fn pages_may_look_like_frames() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.relay("a", 1);
    let look_alikes = [
        port::hello(666, &HELLO).repeat(102),
        port::hello(1, &HELLO).repeat(102),
        port::reset(666).repeat(102),
    ];
    for (index, look_alike) in look_alikes.into_iter().enumerate() {
        let mut page = look_alike;
        page.resize(4096, 0);
        assert_eq!(nbd.write(index as u64 * 4096, &page), 0);
        assert_eq!(nbd.read(index as u64 * 4096, 4096).unwrap(), page);
    }
    assert_eq!(lab.server.client_stats("a").unwrap().port.sessions, 1);
}

/// What a program puts into its page to write to another one's: a session that begins, a request in
/// it, and the beginning of a frame that takes up what follows.
fn forged(hello: &[u8], session: u64) -> Vec<u8> {
    let mut stream = blind_negotiation();
    stream.extend(request(WRITE, 0, 7, 0, 512));
    stream.extend(&NEW[..512]);
    let mut sender = Sender::new(session);
    let head = sender.data(&stream);
    [hello, &head, &stream, &sender.data(&[0; 9000])].concat()
}

#[test]
fn a_page_of_forged_frames_costs_a_session_at_worst() {
    // A HELLO from before there was a nonce.
    #[rustfmt::skip]
    const WITHOUT: [u8; 40] = [
        0x4b, 0x5a, 0x54, 0x50, 0x01, 0x01, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x73, 0x04, 0xad, 0x25, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ];
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut port = lab.port("a");
    let mut session = 100;
    let guesses: [fn(u64) -> u64; 4] = [|_| 0, |_| 1, |nonce| !nonce, |nonce| nonce ^ 1];
    for guess in guesses {
        let mut nbd = relay(port, session);
        assert_eq!(nbd.write(0, &OLD), 0);
        let hello = port::Hello {
            nonce: guess(nbd.stream.nonce),
            ..HELLO
        };
        let evil = forged(&port::hello(666, &hello), 666);
        let mut page = [forged(&WITHOUT, 1), evil].concat().repeat(2);
        page.resize(4096, 0);
        let frames = [request(WRITE, 0, 7, 8192, 4096), page].concat();
        let frames = nbd.stream.frames(&frames);
        // Paused in the middle of the frame, and long enough for the host to look into it.
        let (now, later) = frames.split_at(frames.len() - 1);
        nbd.stream.port.write_all(now).unwrap();
        assert!(matches!(nbd.stream.event(), Event::Lost(_)));
        nbd.stream.port.write_all(later).unwrap();
        let mut next = relay(nbd.stream.port, session + 1);
        assert!(next.read(0, 4096).unwrap() == OLD, "written by a page");
        assert!(next.read(8192, 4096).unwrap() == [0; 4096]);
        port = next.stream.port;
        session += 2;
    }
    assert_eq!(lab.server.client_stats("a").unwrap().port.sessions, 8);
}

#[test]
fn every_connection_has_a_nonce_of_its_own() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let nonce = |session| lab.relay("a", session).stream.nonce;
    let mut nonces: Vec<u64> = (1..=10).map(nonce).collect();
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), 10);
    assert!(!nonces.contains(&0));
}

#[test]
fn a_flood_of_garbage_leaves_the_port_ready() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut other = lab.nbd("a");
    let mut agent = Agent::new(lab.port("a"));
    // A guest's root may know the nonce.
    agent.begin(1);
    let hello = port::Hello {
        nonce: agent.nonce,
        ..HELLO
    };
    // Beginnings of all kinds among it.
    let mut garbage: Vec<u8> = (0..256).flat_map(noise).collect();
    for at in (0..garbage.len() - 64).step_by(777) {
        garbage[at..at + 4].copy_from_slice(b"KZTP");
    }
    for at in (5000..garbage.len() - 64).step_by(20_000) {
        let hello = port::hello(at as u64, &hello);
        garbage[at..at + hello.len()].copy_from_slice(&hello);
    }
    // A guest that floods its port need not read it.
    let mut drain = agent.port.try_clone().unwrap();
    let drained = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while matches!(drain.read(&mut buffer), Ok(length) if length > 0 && buffer[..length] != [7])
        {
        }
    });
    for _ in 0..32 {
        agent.port.write_all(&garbage).unwrap();
    }
    assert_eq!(other.write(0, &OLD), 0);
    agent.port.shutdown(std::net::Shutdown::Write).unwrap();
    drained.join().unwrap();
    lab.settle("a", 1);
    let mut next = lab.relay("a", 1);
    assert!(next.read(0, 4096).unwrap() == OLD);
    let seen = lab.server.client_stats("a").unwrap().port;
    assert!(seen.sessions > 32 && seen.damaged > 32 && seen.skipped > 16 << 20);
}

/// What a hostile agent may send, which knows the nonce or does not.
#[derive(Clone, Debug)]
enum Piece {
    Hello { session: u64, proven: bool },
    Bytes(Vec<u8>),
}

/// Frames of sessions that exist or don't, with NBD or without, and what is no frame.
fn piece() -> impl Strategy<Value = Piece> {
    let frame = |session: u64, skipped: usize, payload: &[u8]| {
        let mut sender = Sender::new(session);
        for _ in 0..skipped {
            sender.data(payload);
        }
        [&sender.data(payload)[..], payload].concat()
    };
    let session = 0u64..3;
    let nbd = (0u16..9, 0u16..32, 0u64..1 << 21, 0u32..1 << 16)
        .prop_map(|(command, flags, offset, length)| request(command, flags, 1, offset, length));
    prop_oneof![
        (session.clone(), any::<bool>())
            .prop_map(|(session, proven)| Piece::Hello { session, proven }),
        session.clone().prop_map(move |number| Piece::Bytes(frame(
            number,
            0,
            &blind_negotiation()
        ))),
        (session.clone(), 0usize..4, nbd)
            .prop_map(move |(number, skipped, nbd)| Piece::Bytes(frame(number, skipped, &nbd))),
        (
            session,
            0usize..3,
            prop::collection::vec(any::<u8>(), 1..200)
        )
            .prop_map(move |(number, skipped, bytes)| Piece::Bytes(frame(number, skipped, &bytes))),
        prop::collection::vec(any::<u8>(), 1..200).prop_map(Piece::Bytes),
        Just(Piece::Bytes(port::reset(666).to_vec())),
        Just(Piece::Bytes(frame(1, 0, &[7; 9000])[..100].to_vec())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn whatever_an_agent_sends_the_next_one_is_served(
        pieces in prop::collection::vec(piece(), 0..20)
    ) {
        let lab = Lab::new(64 << 20);
        lab.add("a", 1 << 20);
        let mut agent = Agent::new(lab.port("a"));
        agent.begin(1 << 40);
        for piece in pieces {
            let bytes = match piece {
                Piece::Hello { session, proven } => {
                    let nonce = if proven { agent.nonce } else { 0 };
                    port::hello(session, &port::Hello { nonce, ..HELLO }).to_vec()
                }
                Piece::Bytes(bytes) => bytes,
            };
            agent.port.write_all(&bytes).unwrap();
        }
        agent.begin(1 << 41);
        let mut next = common::Nbd::negotiate(agent);
        prop_assert_eq!(next.write(0, &NEW), 0);
        prop_assert!(next.read(0, 4096).unwrap() == NEW);
    }
}

#[test]
fn a_guest_that_reads_nothing_stops_being_read() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut deaf = lab.relay("a", 1);
    let reads: Vec<u8> = (0..1000)
        .flat_map(|cookie| request(READ, 0, cookie, 0, 1 << 20))
        .collect();
    let mut port = deaf.stream.port.try_clone().unwrap();
    port.set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut taken = 0;
    // A gigabyte of replies for each frame: the host can't have them in memory, so it stops.
    let error = loop {
        assert!(taken < 64 << 20, "the host takes any number of requests");
        let frame = deaf.stream.frames(&reads);
        match port.write_all(&frame) {
            Ok(()) => taken += frame.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(lab.nbd("a").write(0, &OLD), 0);
    lab.server.shutdown(Duration::ZERO);
}

#[test]
fn a_delayed_old_write_never_overtakes_a_newer_one() {
    let lab = Lab::new(256 << 20);
    lab.add("a", 4 << 30);
    let mut old = lab.relay("a", 1);
    // Keeps the session busy for a good while, and then writes the first page.
    let mut slow: Vec<u8> = (0..4)
        .flat_map(|cookie| request(WRITE_ZEROES, NO_HOLE, cookie, 1 << 30, 2 << 30))
        .collect();
    slow.extend(request(WRITE, 0, 9, 0, 4096));
    slow.extend(OLD);
    old.stream.write_all(&slow).unwrap();
    // QEMU's connection breaks, and the agent says HELLO on the next one.
    drop(old);
    let mut new = lab.relay("a", 2);
    assert_eq!(new.write(0, &NEW), 0);
    lab.settle("a", 1);
    assert!(
        new.read(0, 4096).unwrap() == NEW,
        "the old write came after the new one"
    );
}

#[test]
fn an_agent_that_has_not_noticed_a_reconnection_is_told() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.relay("a", 1);
    assert_eq!(nbd.write(0, &OLD), 0);
    nbd.stream.port = lab.port("a");
    nbd.stream.await_reset();
    let mut nbd = relay(nbd.stream.port, 2);
    assert!(nbd.read(0, 4096).unwrap() == OLD);
}

#[test]
fn reports_are_kept_until_the_next() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut ctl = std::os::unix::net::UnixStream::connect(lab.socket("a.ctl")).unwrap();
    let report = |sender: &mut Sender, text: &[u8]| [&sender.stats(text)[..], text].concat();
    let content = || lab.server.client_stats("a").unwrap().report;
    assert!(content().is_none());
    let mut sender = Sender::new(5);
    let mut stream = report(&mut sender, b"{\"a\": 1}");
    stream.extend(noise(1));
    stream.extend(report(&mut sender, b"{\"a\": 2}"));
    // The agent dies in the middle of one, and the next begins.
    stream.extend(&report(&mut sender, &[b' '; 16 << 10])[..1000]);
    ctl.write_all(&stream).unwrap();
    let wait_for = |wanted: (u64, u32, &[u8])| {
        while content()
            .is_none_or(|last| (last.session, last.sequence, &last.content[..]) != wanted)
        {
            thread::sleep(Duration::from_millis(1));
        }
    };
    wait_for((5, 1, b"{\"a\": 2}"));
    ctl.write_all(&report(&mut Sender::new(6), b"{\"a\": 3}"))
        .unwrap();
    wait_for((6, 0, b"{\"a\": 3}"));
    assert_eq!(lab.server.client_stats("a").unwrap().connections, 0);
    lab.server.remove_client("a").unwrap();
    assert!(common::ended(&mut ctl));
}
