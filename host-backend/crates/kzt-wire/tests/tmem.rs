// SPDX-License-Identifier: GPL-2.0-or-later
//! The tmem protocol's frames, byte by byte, and what the host makes of each kind. The vectors are
//! those of `tests/vectors/tmem.txt`, which other languages' tests read as well.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;

use kzt_wire::tmem::{
    Damage, Frame, HEADER_LENGTH, Header, Hello, HostEvent, HostReceiver, MAX_FRAME, MAX_PAGES,
    MAX_PAYLOAD, PAGE, Refusal, Reply, Request, Run, flags, op, reply, reset,
};

const SESSION: u64 = 0x1122_3344_5566_7788;
const NONCE: u64 = 0xa0a1_a2a3_a4a5_a6a7;
const HELLO: Hello = Hello {
    session: SESSION,
    tag: 2,
    fresh: true,
    version: 1,
    max_pages: MAX_PAGES,
    max_frame: 262_464,
    nonce: NONCE,
};

struct Vector {
    header: Header,
    payload: Vec<u8>,
    head: Vec<u8>,
}

impl Vector {
    fn bytes(&self) -> Vec<u8> {
        [&self.head[..], &self.payload].concat()
    }
}

fn vectors() -> BTreeMap<String, Vector> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../tests/vectors/tmem.txt"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(vector).collect()
}

fn vector(line: &str) -> (String, Vector) {
    let fields: Vec<&str> = line.split(' ').collect();
    let unsigned = |at: usize| {
        let field: &str = fields[at];
        let hex = field.strip_prefix("0x");
        hex.map_or_else(|| field.parse(), |hex| u64::from_str_radix(hex, 16))
            .unwrap()
    };
    let header = Header {
        op: unsigned(1).try_into().unwrap(),
        flags: unsigned(2).try_into().unwrap(),
        session: unsigned(3),
        tag: unsigned(4).try_into().unwrap(),
        pool: fields[5].parse().unwrap(),
        object: [6, 7, 8].map(unsigned),
        index: unsigned(9).try_into().unwrap(),
        count: unsigned(10).try_into().unwrap(),
        length: unsigned(11).try_into().unwrap(),
    };
    let payload = fields[12].split('+').flat_map(|part| {
        let (once, times) = part.split_once('*').unwrap_or((part, "1"));
        hex(once).repeat(times.parse().unwrap())
    });
    let vector = Vector {
        header,
        payload: payload.collect(),
        head: hex(fields[13]),
    };
    (fields[0].to_owned(), vector)
}

fn hex(digits: &str) -> Vec<u8> {
    let pairs = digits.strip_prefix('-').unwrap_or(digits).as_bytes();
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.chunks(2).map(byte).collect()
}

/// Bytes that outlive the events that borrow from them.
fn lasting(bytes: impl Into<Vec<u8>>) -> &'static [u8] {
    bytes.into().leak()
}

fn hello(hello: &Hello) -> &'static [u8] {
    lasting(hello.frame())
}

/// A frame of the session.
fn frame(header: Header, payload: &[u8]) -> &'static [u8] {
    let header = Header {
        session: SESSION,
        ..header
    };
    lasting([&header.encode(payload)[..], payload].concat())
}

fn request(op: u16, index: u32, count: u32, payload: usize) -> &'static [u8] {
    let header = Header {
        op,
        index,
        count,
        ..Header::default()
    };
    frame(header, &vec![7; payload])
}

/// A host in a session that has begun.
fn host() -> HostReceiver {
    let mut host = HostReceiver::new(NONCE);
    let step = host.next(hello(&HELLO));
    assert_eq!(step.event, Some(HostEvent::Hello(HELLO)));
    host
}

#[test]
fn every_vector_is_read_and_made_as_it_is() {
    let vectors = vectors();
    assert!(vectors.len() > 30);
    for (name, vector) in vectors {
        let bytes = vector.bytes();
        let frame = Frame::parse(&bytes).unwrap().unwrap();
        assert_eq!(frame.header, vector.header, "{name}");
        assert_eq!(frame.payload, vector.payload, "{name}");
        assert_eq!(frame.size(), bytes.len(), "{name}");
        let made = vector.header.encode(&vector.payload);
        assert_eq!(made[..], vector.head, "{name}");
    }
}

#[test]
fn beginnings_of_sessions_have_the_vectors_bytes() {
    let vectors = vectors();
    assert_eq!(reset(NONCE)[..], vectors["reset"].bytes());
    assert_eq!(HELLO.frame()[..], vectors["hello-fresh"].bytes());
    assert_eq!(HELLO.answer(0)[..], vectors["welcome"].bytes());
    let stranger = Hello {
        nonce: 0,
        tag: 1,
        ..HELLO
    };
    assert_eq!(stranger.frame()[..], vectors["hello-without-nonce"].bytes());
    let other = Hello {
        session: SESSION + 1,
        tag: 4,
        fresh: false,
        version: 2,
        ..HELLO
    };
    assert_eq!(other.frame()[..], vectors["hello-version-2"].bytes());
    assert_eq!(other.answer(-93)[..], vectors["version-refused"].bytes());
    let small = Hello {
        tag: 3,
        version: 1,
        max_pages: 16,
        max_frame: 65664,
        ..other
    };
    assert_eq!(small.frame()[..], vectors["hello-small"].bytes());
    assert_eq!(small.pages(), 16);
}

#[test]
fn replies_have_the_vectors_bytes() {
    let vectors = vectors();
    for (asked, status) in [
        ("new-pool", 0),
        ("flush-page", 1),
        ("flush-object", 1),
        ("destroy-pool", 1),
        ("get-malformed", -22),
        ("no-such-operation", -38),
        ("control", -1),
    ] {
        let request = vectors
            .get(asked)
            .unwrap_or_else(|| &vectors["new-pool-persistent"]);
        let mut out = Vec::new();
        reply(&mut out, &request.header, status);
        assert_eq!(out, vectors[&format!("{asked}-reply")].bytes(), "{asked}");
    }
    // One after the other in the same buffer.
    let mut out = Vec::new();
    let mut put = Reply::begin(&mut out, &vectors["put-two"].header, 2);
    put.status(1);
    put.status(-12);
    put.finish();
    let found = &vectors["get-three-reply"].payload[12..];
    let mut get = Reply::begin(&mut out, &vectors["get-three"].header, 3);
    for (status, from) in [(1, 0), (0, PAGE), (1, PAGE)] {
        get.page(|page| {
            page.copy_from_slice(&found[from..from + PAGE]);
            status
        });
    }
    get.finish();
    let wanted = ["put-two-reply", "get-three-reply"].map(|name| vectors[name].bytes());
    assert_eq!(out, wanted.concat());
}

#[test]
fn requests_are_what_the_vectors_ask_for() {
    let vectors = vectors();
    let decode = |name: &str| {
        let bytes = vectors[name].bytes().leak();
        Request::decode(&Frame::parse(bytes).unwrap().unwrap(), MAX_PAGES)
    };
    let swap = [1, 0x0102_0304_0506_0708, 0];
    let inode = [0xfedc_ba98_7654_3210, 42, 0];
    let run = |pool, object, index, count| Run {
        pool,
        object,
        index,
        count,
    };
    assert_eq!(
        decode("new-pool-ephemeral"),
        Ok(Request::NewPool {
            flags: 1 << 24,
            uuid: [0x1111_2222_3333_4444, 0x5555_6666_7777_8888]
        })
    );
    assert_eq!(decode("destroy-pool"), Ok(Request::DestroyPool { pool: 1 }));
    let run_of = |name| match decode(name) {
        Ok(Request::Put { run, pages }) if pages.len() == run.count as usize * PAGE => run,
        Ok(Request::Get { run } | Request::Flush { run }) => run,
        other => panic!("{other:?}"),
    };
    assert_eq!(run_of("put-two"), run(1, inode, 0xffff_fffe, 2));
    assert_eq!(run_of("put-64"), run(0, swap, 4096, 64));
    assert_eq!(run_of("get-three"), run(0, swap, 7, 3));
    assert_eq!(run_of("flush-page"), run(0, swap, 7, 1));
    assert_eq!(run_of("flush-run"), run(0, swap, 0, u32::MAX));
    assert_eq!(
        decode("flush-object"),
        Ok(Request::FlushObject {
            pool: 1,
            object: inode
        })
    );
    assert_eq!(decode("get-malformed"), Err(Refusal::Malformed));
    assert_eq!(decode("no-such-operation"), Err(Refusal::Operation(3)));
    assert_eq!(decode("control"), Err(Refusal::Operation(0)));
}

#[test]
fn requests_whose_numbers_do_not_go_together_are_malformed() {
    for (op, index, count, payload) in [
        (op::PUT_PAGE, 0, 0, 0),
        (op::PUT_PAGE, 0, 1, 0),
        (op::PUT_PAGE, 0, 1, PAGE - 1),
        (op::PUT_PAGE, 0, 2, PAGE),
        (op::PUT_PAGE, 0, 65, 64 * PAGE),
        (op::PUT_PAGE, u32::MAX, 2, 2 * PAGE),
        (op::GET_PAGE, 0, 0, 0),
        (op::GET_PAGE, 0, 17, 0),
        (op::GET_PAGE, 0, u32::MAX, 0),
        (op::GET_PAGE, u32::MAX, 2, 0),
        (op::GET_PAGE, 0, 1, 1),
        (op::FLUSH_PAGE, 0, 0, 0),
        (op::FLUSH_PAGE, 0, 1, PAGE),
        (op::FLUSH_OBJECT, 0, 0, 1),
        (op::NEW_POOL, 1, 0, 1),
        (op::DESTROY_POOL, 1, 0, 1),
    ] {
        let bytes = request(op, index, count, payload);
        let frame = Frame::parse(bytes).unwrap().unwrap();
        let refused = Request::decode(&frame, 16);
        assert_eq!(
            refused,
            Err(Refusal::Malformed),
            "{op} {index} {count} {payload}"
        );
    }
    let header = Header {
        op: op::GET_PAGE,
        flags: flags::FRESH,
        count: 1,
        ..Header::default()
    };
    let bytes = frame(header, &[]);
    let refused = Request::decode(&Frame::parse(bytes).unwrap().unwrap(), 16);
    assert_eq!(refused, Err(Refusal::Malformed));
}

#[test]
fn a_run_of_flushes_ends_where_indices_do() {
    for (index, count, capped) in [
        (0, u32::MAX, u32::MAX),
        (1, u32::MAX, u32::MAX),
        (2, u32::MAX, u32::MAX - 1),
        (u32::MAX, 5, 1),
    ] {
        let bytes = request(op::FLUSH_PAGE, index, count, 0);
        let frame = Frame::parse(bytes).unwrap().unwrap();
        let Ok(Request::Flush { run }) = Request::decode(&frame, 1) else {
            panic!("{frame:?}");
        };
        assert_eq!((run.index, run.count), (index, capped));
    }
}

#[test]
fn the_longest_frame_is_the_documented_one() {
    assert_eq!(MAX_FRAME, 262_464);
    assert_eq!(Reply::longest(MAX_PAGES), MAX_FRAME);
}

#[test]
fn limits_that_make_no_sense_are_taken_as_the_nearest_that_do() {
    for (max_pages, max_frame, pages) in [
        (0, 0, 1),
        (64, 0, 1),
        (64, 64 + 4100, 1),
        (64, 64 + 2 * 4100 - 1, 1),
        (64, 64 + 2 * 4100, 2),
        (5, u32::MAX, 5),
        (u32::MAX, u32::MAX, 64),
    ] {
        let hello = Hello {
            max_pages,
            max_frame,
            ..HELLO
        };
        assert_eq!(hello.pages(), pages, "{max_pages} {max_frame}");
    }
}

#[test]
fn a_host_takes_requests_of_its_session_and_ignores_other_sessions() {
    let mut host = host();
    let get = request(op::GET_PAGE, 0, 1, 0);
    let mut foreign = Header {
        op: op::GET_PAGE,
        session: 9,
        ..Header::default()
    }
    .encode(&[])
    .to_vec();
    // A HELLO that was repeated before the WELCOME arrived.
    foreign.extend(HELLO.frame());
    let input = [&foreign[..], get].concat();
    let step = host.next(&input);
    assert_eq!(step.taken, input.len());
    assert!(
        matches!(step.event, Some(HostEvent::Request(frame)) if frame.header.op == op::GET_PAGE)
    );
    let counters = host.counters();
    assert_eq!((counters.sessions, counters.frames), (1, 1));
    assert_eq!(counters.ignored, 1);
}

#[test]
fn another_hello_begins_another_session() {
    let mut host = host();
    let next = Hello {
        session: SESSION + 1,
        ..HELLO
    };
    let event = host.next(hello(&next)).event;
    assert_eq!(event, Some(HostEvent::Hello(next)));
    assert_eq!(host.session(), Some(SESSION + 1));
    // The old one is void.
    assert_eq!(host.next(request(op::GET_PAGE, 0, 1, 0)).event, None);
}

#[test]
fn a_hello_without_the_nonce_begins_no_session() {
    let stranger = Hello {
        session: 666,
        nonce: 0,
        ..HELLO
    };
    let mut idle = HostReceiver::new(NONCE);
    for mut host in [idle, host()] {
        let step = host.next(hello(&stranger));
        assert_eq!(step.event, Some(HostEvent::Stranger));
        assert_eq!(step.taken, stranger.frame().len());
        assert_eq!(host.session(), None);
    }
    idle = HostReceiver::new(NONCE);
    let unknown = Hello {
        version: 2,
        ..HELLO
    };
    let event = idle.next(hello(&unknown)).event;
    assert_eq!(event, Some(HostEvent::Version(unknown)));
    assert_eq!(idle.session(), None);
}

#[test]
fn the_last_hello_within_a_broken_frame_counts_if_it_has_the_nonce() {
    let next = Hello {
        session: 8,
        ..HELLO
    };
    let evil = Hello {
        session: 666,
        nonce: 0x6666,
        ..HELLO
    };
    // A page with a HELLO and what is to be stored by it.
    let mut page = [&evil.frame()[..], request(op::DESTROY_POOL, 0, 0, 0)].concat();
    page.resize(PAGE, 0);
    let broken = &frame(
        Header {
            op: op::PUT_PAGE,
            count: 2,
            ..Header::default()
        },
        &page.repeat(2),
    )[..HEADER_LENGTH + PAGE];

    let mut host = host();
    let input = [broken, &next.frame(), &next.frame()].concat();
    assert_eq!(host.next(&input).taken, 0);
    let step = host.stalled(&input);
    assert_eq!(step.event, Some(HostEvent::Hello(next)));
    assert_eq!(step.taken, input.len());

    let mut host = self::host();
    let step = host.stalled(broken);
    assert_eq!(step.event, Some(HostEvent::Stranger));
    assert_eq!(host.next(&broken[step.taken..]).event, None);
    assert_eq!(host.session(), None);
}

#[test]
fn every_bit_counts() {
    let whole = request(op::PUT_PAGE, 0, 1, PAGE);
    let bits = (0..HEADER_LENGTH).chain([HEADER_LENGTH, HEADER_LENGTH + PAGE / 2, whole.len() - 1]);
    for (at, bit) in bits.flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << bit;
        let event = host().next(&bytes).event;
        assert!(
            matches!(event, None | Some(HostEvent::Lost(_))),
            "byte {at} bit {bit}: {event:?}"
        );
    }
}

#[test]
fn what_is_out_of_place_ends_a_session() {
    let out_of_place = |op, flags| Header {
        op,
        flags,
        ..Header::default()
    };
    for (header, payload) in [
        (out_of_place(op::RESET, 0), 8),
        (out_of_place(op::HELLO, 0), 23),
        (out_of_place(op::HELLO, flags::REPLY), 24),
        (out_of_place(op::GET_PAGE, flags::REPLY), 4),
    ] {
        let event = host().next(frame(header, &vec![0; payload])).event;
        let lost = HostEvent::Lost(Damage::Place(header.op));
        assert_eq!(event, Some(lost));
    }
    let mut long = request(op::PUT_PAGE, 0, 1, PAGE).to_vec();
    long[56..60].copy_from_slice(&u32::try_from(MAX_PAYLOAD + 1).unwrap().to_le_bytes());
    let event = host().next(&long).event;
    assert!(matches!(event, Some(HostEvent::Lost(Damage::Length(_)))));
}
