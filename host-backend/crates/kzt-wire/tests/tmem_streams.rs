// SPDX-License-Identifier: GPL-2.0-or-later
//! The tmem port's stream as it really comes: cut anywhere, damaged, begun by nobody, broken off in
//! the middle, and with frames for content. `PROPTEST_CASES` makes the search longer.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Line, Receiver, harm};
use kzt_wire::tmem::{
    Frame, Header, Hello, HostEvent, HostReceiver, MAX_FRAME, MAX_PAGES, PAGE, Reply, Request, op,
    reset,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const NONCE: u64 = 0x5eed;
/// Sessions that no content names.
const FIRST: u64 = 1 << 40;
const SECOND: u64 = FIRST + 1;

/// What a host was told, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Session(u64),
    Request(u32, Vec<u8>),
    Stranger,
    Lost,
}

impl Receiver for HostReceiver {
    type Told = Told;
    const BUFFER: usize = MAX_FRAME;

    fn step(&mut self, input: &[u8]) -> (usize, Option<Told>) {
        let step = self.next(input);
        (step.taken, step.event.map(told))
    }

    fn silence(&mut self, input: &[u8]) -> (usize, Option<Told>) {
        let step = self.stalled(input);
        (step.taken, step.event.map(told))
    }
}

fn line() -> Line<HostReceiver> {
    Line::new(HostReceiver::new(NONCE))
}

impl Line<HostReceiver> {
    /// What the last session has brought; `None` when it is over.
    fn session(&self) -> Option<(u64, &[Told])> {
        let begun = |told: &Told| !matches!(told, Told::Request(..));
        let at = self.told.iter().rposition(begun)?;
        match &self.told[at] {
            Told::Session(number) => Some((*number, &self.told[at + 1..])),
            _ => None,
        }
    }
}

fn told(event: HostEvent<'_>) -> Told {
    match event {
        HostEvent::Hello(hello) => Told::Session(hello.session),
        HostEvent::Request(frame) => Told::Request(frame.header.tag, frame.payload.to_vec()),
        HostEvent::Version(_) | HostEvent::Stranger => Told::Stranger,
        HostEvent::Lost(_) => Told::Lost,
    }
}

fn hello(session: u64, nonce: u64) -> Vec<u8> {
    let hello = Hello {
        session,
        tag: 0,
        fresh: false,
        version: 1,
        max_pages: MAX_PAGES,
        max_frame: 1 << 20,
        nonce,
    };
    hello.frame().to_vec()
}

fn put(session: u64, tag: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        op: op::PUT_PAGE,
        session,
        tag,
        count: u32::try_from(payload.len() / PAGE).unwrap(),
        ..Header::default()
    };
    [&header.encode(payload)[..], payload].concat()
}

/// A whole session as the guest sends it.
fn session(number: u64, payloads: &[Vec<u8>]) -> Vec<u8> {
    let puts = (0..).zip(payloads);
    let puts = puts.flat_map(|(tag, payload)| put(number, tag, payload));
    hello(number, NONCE).into_iter().chain(puts).collect()
}

fn wanted(number: u64, payloads: &[Vec<u8>]) -> Vec<Told> {
    let requests = (0..).zip(payloads.iter().cloned());
    let requests = requests.map(|(tag, payload)| Told::Request(tag, payload));
    [Told::Session(number)]
        .into_iter()
        .chain(requests)
        .collect()
}

/// Payloads as guests can make them: bytes of any kind, and whole frames, but for the nonce.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let other = any::<u64>().prop_filter("the nonce", |nonce| *nonce != NONCE);
    prop_oneof![
        4 => vec(any::<u8>(), 0..300),
        1 => (1usize..=64, any::<u8>()).prop_map(|(pages, byte)| vec![byte; pages * PAGE]),
        1 => Just(b"KZTMKZTMKZTM".to_vec()),
        1 => (1u64..5, other).prop_map(|(number, nonce)| {
            [hello(number, nonce), put(number, 0, b"evil"), hello(number, nonce)].concat()
        }),
        1 => any::<u64>().prop_map(|nonce| reset(nonce).to_vec()),
    ]
}

fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(payload(), 0..5)
}

/// Headers of all kinds, most of them of no use.
fn header() -> impl Strategy<Value = Header> {
    let ops = prop_oneof![0u16..12, Just(op::HELLO), Just(op::RESET), any::<u16>()];
    let numbers = prop_oneof![0u32..70, any::<u32>(), Just(u32::MAX)];
    let places = (any::<i32>(), any::<[u64; 3]>(), numbers.clone(), numbers);
    (ops, 0u16..5, any::<u32>(), places).prop_map(|(op, flags, tag, places)| {
        let (pool, object, index, count) = places;
        Header {
            op,
            flags,
            session: FIRST,
            tag,
            pool,
            object,
            index,
            count,
            length: 0,
        }
    })
}

proptest! {
    #[test]
    fn any_cutting_of_a_stream_says_the_same(
        first in payloads(), second in payloads(), cuts in vec(1usize..5000, 1..20)
    ) {
        let mut line = line();
        let stream = [session(FIRST, &first), session(SECOND, &second)].concat();
        line.feed_cut(&stream, &cuts);
        let wanted = [wanted(FIRST, &first), wanted(SECOND, &second)].concat();
        prop_assert_eq!(&line.told, &wanted);
    }

    #[test]
    fn garbage_in_front_is_passed_over(
        garbage in vec(any::<u8>(), 0..3000), half in payload(), sent in payloads()
    ) {
        let mut line = line();
        line.feed(&[garbage, half[half.len() / 2..].to_vec()].concat());
        line.feed(&session(FIRST, &sent));
        line.silence();
        prop_assert_eq!(line.session(), Some((FIRST, &wanted(FIRST, &sent)[1..])));
    }

    #[test]
    fn what_is_passed_on_of_a_damaged_stream_is_of_its_session(
        sent in payloads(), harms in vec(harm(payload()), 1..4), next in payloads()
    ) {
        let mut stream = session(FIRST, &sent);
        for harm in &harms {
            harm.apply(&mut stream);
        }
        let mut line = line();
        line.feed(&stream);
        line.silence();
        // Requests that got through are such as were sent, in their order.
        let mut left = sent.iter().zip(0..);
        for told in &line.told {
            if let Told::Request(tag, payload) = told {
                prop_assert!(left.any(|(sent, number)| (payload, *tag) == (sent, number)));
            }
        }
        // And the guest's next session is found behind it.
        line.feed(&session(SECOND, &next));
        line.silence();
        let end = line.session();
        if end.is_none_or(|(number, _)| number != SECOND) {
            // The HELLO came while a frame was missing its end: it is repeated.
            line.silence();
            line.feed(&session(SECOND, &next));
            line.silence();
        }
        prop_assert_eq!(line.session(), Some((SECOND, &wanted(SECOND, &next)[1..])));
    }

    #[test]
    fn a_guest_that_died_in_mid_frame_is_followed_by_another(
        sent in payloads(), at in any::<Index>(), next in payloads(), repeats in 2usize..4
    ) {
        let stream = session(FIRST, &sent);
        let mut line = line();
        line.feed(&stream[..at.index(stream.len() + 1)]);
        line.silence();
        // Once may be too few: what the old frame misses may be bytes that a HELLO begins with.
        for _ in 0..repeats {
            line.feed(&hello(SECOND, NONCE));
            line.silence();
        }
        prop_assert_eq!(line.session(), Some((SECOND, &[][..])));
        line.feed(&session(SECOND, &next)[hello(0, 0).len()..]);
        prop_assert_eq!(line.session(), Some((SECOND, &wanted(SECOND, &next)[1..])));
    }

    #[test]
    fn no_content_begins_a_session_or_asks_for_anything(
        sent in vec(payload(), 1..5), at in any::<Index>(), cuts in vec(1usize..5000, 1..20)
    ) {
        let stream = session(FIRST, &sent);
        let mut line = line();
        line.feed(&hello(FIRST, NONCE));
        // Lost somewhere: what follows is searched, content and all.
        line.feed(b"?");
        line.feed_cut(&stream[hello(0, 0).len()..][at.index(200).min(stream.len() - 88)..], &cuts);
        line.silence();
        line.silence();
        let begun = line.told.iter().skip(2);
        prop_assert!(begun.clone().all(|told| *told == Told::Stranger), "{:?}", line.told);
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..5000), magic in any::<bool>()) {
        let bytes = if magic { [&b"KZTM"[..], &bytes].concat() } else { bytes };
        let mut line = line();
        line.feed(&hello(FIRST, NONCE));
        line.feed(&bytes);
        line.silence();
        prop_assert_eq!(line.receiver.counters().sessions, 1);
    }

    #[test]
    fn any_header_is_a_request_or_refused(
        header in header(), length in prop_oneof![Just(0usize), Just(PAGE), 0usize..20_000], most in 0u32..70
    ) {
        let payload = vec![1; length];
        let bytes = [&header.encode(&payload)[..], &payload].concat();
        let frame = Frame::parse(&bytes).unwrap().unwrap();
        let run = match Request::decode(&frame, most) {
            Ok(Request::Put { run, pages }) => {
                prop_assert_eq!(pages.len(), run.count as usize * PAGE);
                prop_assert!(run.count <= MAX_PAGES);
                run
            }
            Ok(Request::Get { run }) => {
                prop_assert!(run.count <= most);
                let mut out = Vec::new();
                let mut reply = Reply::begin(&mut out, &frame.header, run.count);
                (0..run.count).for_each(|_| reply.page(|_| 1));
                reply.finish();
                prop_assert_eq!(out.len(), Reply::longest(run.count));
                prop_assert!(Frame::parse(&out).unwrap().is_some());
                run
            }
            Ok(Request::Flush { run }) => run,
            _ => return Ok(()),
        };
        prop_assert!(run.count > 0);
        prop_assert!(run.index.checked_add(run.count - 1).is_some());
    }
}
