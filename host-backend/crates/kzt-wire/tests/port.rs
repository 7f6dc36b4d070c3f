// SPDX-License-Identifier: GPL-2.0-or-later
//! The frames of a guest's ports, byte by byte, and what receivers make of each kind.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use kzt_wire::port::{
    self, AgentEvent, AgentReceiver, Damage, HEADER_LENGTH, Hello, HostEvent, HostReceiver, Kind,
    MAX_FRAME, MIN_FRAME, ReportReceiver, Sender, Welcome,
};

const SESSION: u64 = 0x1122_3344_5566_7788;
const NONCE: u64 = 0xa0a1_a2a3_a4a5_a6a7;
const HELLO: Hello = Hello {
    max_frame: MAX_FRAME,
    flags: 0,
    nonce: NONCE,
};
const WELCOME: Welcome = Welcome {
    max_frame: MAX_FRAME,
    flags: 0,
    swap_bytes: 1 << 30,
};

/// Bytes that outlive the events that borrow from them.
fn lasting(bytes: impl Into<Vec<u8>>) -> &'static [u8] {
    bytes.into().leak()
}

/// A frame with its checksum set right, whatever else it holds.
fn frame(kind: u8, session: u64, sequence: u32, payload: &[u8]) -> &'static [u8] {
    let mut out = b"KZTP".to_vec();
    out.extend([1, kind, 0, 0]);
    out.extend(session.to_le_bytes());
    out.extend(sequence.to_le_bytes());
    out.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    out.extend([0; 8]);
    out.extend(payload);
    let checksum = crc32c::crc32c(&out);
    out[24..28].copy_from_slice(&checksum.to_le_bytes());
    lasting(out)
}

fn data(sender: &mut Sender, payload: &[u8]) -> &'static [u8] {
    lasting([&sender.data(payload)[..], payload].concat())
}

fn hello(session: u64) -> &'static [u8] {
    lasting(port::hello(session, &HELLO))
}

/// A HELLO of somebody who does not know the nonce.
fn guessed(session: u64, nonce: u64) -> &'static [u8] {
    lasting(port::hello(session, &Hello { nonce, ..HELLO }))
}

fn welcome(session: u64) -> &'static [u8] {
    lasting(port::welcome(session, &WELCOME))
}

fn reset() -> &'static [u8] {
    lasting(port::reset(NONCE))
}

/// A host in a session that has begun.
fn host() -> HostReceiver {
    let mut host = HostReceiver::new(NONCE);
    let step = host.next(hello(SESSION));
    assert_eq!(step.taken, HEADER_LENGTH + 16);
    let session = SESSION;
    assert_eq!(
        step.event,
        Some(HostEvent::Hello {
            session,
            hello: HELLO
        })
    );
    host
}

/// An agent in a session that has begun.
fn agent() -> AgentReceiver {
    let mut agent = AgentReceiver::default();
    agent.begin(SESSION);
    let step = agent.next(welcome(SESSION));
    assert_eq!(step.event, Some(AgentEvent::Welcome(WELCOME)));
    agent
}

#[test]
fn frames_have_the_documented_bytes() {
    let nonce = NONCE.to_le_bytes();
    let payload = [&[0, 128, 0, 0, 0, 0, 0, 0], &nonce[..]].concat();
    assert_eq!(hello(SESSION), frame(1, SESSION, 0, &payload));
    let payload = [0, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0];
    assert_eq!(welcome(SESSION), frame(2, SESSION, 0, &payload));
    assert_eq!(reset(), frame(5, 0, 0, &nonce));
    let mut sender = Sender::new(SESSION);
    assert_eq!(data(&mut sender, b"page"), frame(3, SESSION, 0, b"page"));
    assert_eq!(data(&mut sender, b"page"), frame(3, SESSION, 1, b"page"));
    assert_eq!(sender.stats(b"{}")[..], frame(4, SESSION, 2, b"{}")[..32]);
}

#[test]
fn the_documented_frames_are_these() {
    #[rustfmt::skip]
    let bytes = [
        0x4b, 0x5a, 0x54, 0x50, 0x01, 0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x42, 0xf8, 0x88, 0xb2, 0x00, 0x00, 0x00, 0x00,
        0xa7, 0xa6, 0xa5, 0xa4, 0xa3, 0xa2, 0xa1, 0xa0,
    ];
    assert_eq!(reset(), bytes);
    #[rustfmt::skip]
    let bytes = [
        0x4b, 0x5a, 0x54, 0x50, 0x01, 0x01, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x71, 0xb1, 0xdc, 0xd9, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xa7, 0xa6, 0xa5, 0xa4, 0xa3, 0xa2, 0xa1, 0xa0,
    ];
    assert_eq!(hello(1), bytes);
}

#[test]
fn limits_that_make_no_sense_are_taken_as_the_nearest_that_do() {
    for (said, taken) in [(0u32, MIN_FRAME), (5000, 5000), (u32::MAX, MAX_FRAME)] {
        let payload = [&said.to_le_bytes()[..], &[0; 4], &NONCE.to_le_bytes()].concat();
        let event = HostReceiver::new(NONCE)
            .next(frame(1, 7, 0, &payload))
            .event;
        assert!(
            matches!(event, Some(HostEvent::Hello { hello, .. }) if hello.max_frame == taken),
            "{event:?}"
        );
    }
}

#[test]
fn a_host_takes_data_of_its_session_in_order_and_ignores_other_sessions() {
    let (mut host, mut sender) = (host(), Sender::new(SESSION));
    let mut input = data(&mut Sender::new(9), b"old").to_vec();
    // A HELLO that was repeated before the WELCOME arrived.
    input.extend(hello(SESSION));
    input.extend(data(&mut sender, b"one"));
    let step = host.next(&input);
    assert_eq!(
        (step.taken, step.event),
        (input.len(), Some(HostEvent::Data(b"one")))
    );
    assert_eq!(host.counters().ignored, 1);

    sender.data(b"lost");
    let step = host.next(data(&mut sender, b"three"));
    let (expected, found) = (1, 2);
    let damage = Damage::Sequence { expected, found };
    assert_eq!((step.taken, step.event), (0, Some(HostEvent::Lost(damage))));
    assert_eq!(host.counters().damaged, 1);
}

#[test]
fn another_hello_begins_another_session() {
    let mut host = host();
    let session = SESSION + 1;
    let event = host.next(hello(session)).event;
    assert!(matches!(event, Some(HostEvent::Hello { session: found, .. }) if found == session));
    // The old one is void.
    assert_eq!(host.next(data(&mut Sender::new(SESSION), b"x")).event, None);
    let event = host.next(data(&mut Sender::new(session), b"x")).event;
    assert_eq!(event, Some(HostEvent::Data(b"x")));
    assert_eq!(host.counters().sessions, 2);
}

#[test]
fn a_hello_without_the_nonce_begins_no_session() {
    for mut host in [HostReceiver::new(NONCE), host()] {
        // Its own session's number does not help whoever does not know the nonce.
        for session in [SESSION, 666] {
            let stranger = guessed(session, 0);
            let step = host.next(stranger);
            assert_eq!(step.event, Some(HostEvent::Stranger));
            assert_eq!(step.taken, stranger.len());
            assert_eq!(host.next(data(&mut Sender::new(session), b"x")).event, None);
        }
        let event = host.next(hello(8)).event;
        assert!(matches!(event, Some(HostEvent::Hello { session: 8, .. })));
    }
}

#[test]
fn a_page_of_forged_frames_begins_no_session_when_its_frame_breaks_off() {
    // The kind of HELLO that had no nonce is none.
    let without = frame(1, 666, 0, &[0, 128, 0, 0, 0, 0, 0, 0]);
    let write = data(&mut Sender::new(666), b"a request to write");
    for guess in [0, 1, SESSION, NONCE ^ 1, !NONCE] {
        let forged = [without, write, guessed(666, guess), write, without, write].concat();
        let broken = &frame(3, SESSION, 0, &forged.repeat(20))[..5000];
        let mut host = host();
        assert_eq!(host.next(broken).event, None);
        let step = host.stalled(broken);
        assert_eq!(step.event, Some(HostEvent::Stranger));
        // Neither what is left of the frame nor its rest is anybody's.
        let mut rest = lasting([&broken[step.taken..], &forged].concat());
        loop {
            let step = host.next(rest);
            rest = &rest[step.taken..];
            match step.event {
                None => break,
                event => assert_eq!(event, Some(HostEvent::Stranger)),
            }
        }
        assert_eq!((host.counters().sessions, host.counters().frames), (1, 0));
    }
}

#[test]
fn the_last_hello_within_a_broken_frame_counts_if_it_has_the_nonce() {
    let mut host = host();
    // A page that goes on, after its HELLO, like a frame that would swallow all that follows.
    let swallowing = &frame(3, 666, 0, &vec![0; 20_000])[..100];
    let page = [guessed(666, 0), swallowing].concat();
    let broken = &frame(3, SESSION, 0, &page.repeat(50))[..32 + page.len()];
    let input = [broken, hello(8), hello(8)].concat();
    assert_eq!(host.next(&input).taken, 0);
    let step = host.stalled(&input);
    assert!(matches!(
        step.event,
        Some(HostEvent::Hello { session: 8, .. })
    ));
    assert_eq!(step.taken, input.len());
    assert_eq!(
        host.counters().skipped,
        (input.len() - port::HELLO_LENGTH) as u64
    );
}

#[test]
fn every_header_byte_counts() {
    let whole = frame(3, SESSION, 0, b"page");
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1 << bit;
            let event = host().next(&bytes).event;
            assert!(
                matches!(event, None | Some(HostEvent::Lost(_))),
                "byte {at} bit {bit}: {event:?}"
            );
            let event = agent().next(&bytes).event;
            assert!(
                matches!(event, None | Some(AgentEvent::Lost(_))),
                "byte {at} bit {bit}: {event:?}"
            );
        }
    }
}

#[test]
fn kinds_out_of_place_end_a_session() {
    for (kind, length) in [(2, 16), (4, 3), (5, 8)] {
        let event = host().next(frame(kind, SESSION, 0, &vec![0; length])).event;
        assert!(
            matches!(event, Some(HostEvent::Lost(Damage::Kind(_)))),
            "{event:?}"
        );
    }
    for (kind, length) in [(1, 16), (2, 16), (4, 3), (5, 8)] {
        let event = agent()
            .next(frame(kind, SESSION, 0, &vec![0; length]))
            .event;
        assert!(
            matches!(event, Some(AgentEvent::Lost(Damage::Kind(_)))),
            "{event:?}"
        );
    }
    for (kind, length) in [(0, 8), (6, 8), (1, 8), (1, 17), (2, 17), (3, 0), (5, 0)] {
        let event = host().next(frame(kind, SESSION, 0, &vec![0; length])).event;
        assert!(
            matches!(event, Some(HostEvent::Lost(_))),
            "{kind} {length}: {event:?}"
        );
    }
}

#[test]
fn an_agent_finds_its_welcome_in_what_is_left_of_older_sessions() {
    let mut agent = AgentReceiver::default();
    let old = welcome(SESSION - 1);
    assert_eq!(agent.next(old).taken, 0);
    agent.begin(SESSION);
    let mut input = old[7..].to_vec();
    input.extend(old);
    input.extend(reset());
    input.extend(welcome(SESSION));
    let step = agent.next(&input);
    assert_eq!(step.event, Some(AgentEvent::Nonce(NONCE)));
    input.drain(..step.taken);
    let step = agent.next(&input);
    assert_eq!(step.event, Some(AgentEvent::Welcome(WELCOME)));
    assert_eq!(step.taken, input.len());
    let event = agent.next(frame(3, SESSION, 0, b"x")).event;
    assert_eq!(event, Some(AgentEvent::Data(b"x")));
}

#[test]
fn pages_that_an_agent_finds_begin_no_session() {
    // What the guest had stored, and reads while one agent dies and another one begins.
    let forged = |session| {
        let write = data(&mut Sender::new(session), b"a reply");
        [lasting(port::reset(666)), welcome(session), write].concat()
    };
    let page: Vec<u8> = [0, 1, SESSION - 1, SESSION + 1, u64::MAX]
        .into_iter()
        .flat_map(forged)
        .collect();
    let mut agent = agent();
    let broken = &frame(3, SESSION, 0, &page.repeat(2))[..page.len()];
    assert_eq!(agent.next(broken).taken, 0);
    assert_eq!(
        agent.stalled(broken).event,
        Some(AgentEvent::Lost(Damage::Stall))
    );
    let drawn = 0x99aa_bbcc_ddee_ff00;
    agent.begin(drawn);
    let mut input = lasting([broken, reset(), welcome(drawn)].concat());
    let mut events = Vec::new();
    loop {
        let step = agent.next(input);
        input = &input[step.taken..];
        match step.event {
            Some(AgentEvent::Nonce(nonce)) => events.push(nonce),
            event => {
                assert_eq!(event, Some(AgentEvent::Welcome(WELCOME)));
                break;
            }
        }
    }
    // The host's own word is the last one: a HELLO with another nonce would be answered by it.
    assert_eq!(events.pop(), Some(NONCE));
    assert_eq!(events, [666; 5]);
    assert!(input.is_empty());
}

#[test]
fn an_agent_gives_a_session_up_for_anything_foreign() {
    let foreign = frame(3, 9, 0, b"x");
    assert_eq!(
        agent().next(foreign).event,
        Some(AgentEvent::Lost(Damage::Session(9)))
    );
    assert_eq!(
        agent().next(reset()).event,
        Some(AgentEvent::Lost(Damage::Kind(Kind::Reset)))
    );
    let mut agent = agent();
    assert_eq!(agent.stalled(&[]).event, None);
    assert_eq!(
        agent.stalled(b"KZTP").event,
        Some(AgentEvent::Lost(Damage::Stall))
    );
    // The WELCOME of the next session may be in what was left.
    agent.begin(SESSION + 1);
    let input = [b"KZTP", welcome(SESSION + 1)].concat();
    assert_eq!(agent.next(&input).event, Some(AgentEvent::Welcome(WELCOME)));
}

#[test]
fn reports_are_found_one_by_one() {
    let mut reports = ReportReceiver::default();
    let mut input = frame(4, 1, 5, b"{1}").to_vec();
    let half = input.len() - 2;
    input.truncate(half);
    input.extend(frame(4, 2, 0, b"{2}"));
    input.extend(frame(4, 2, 1, b"{3}"));
    // The half report has swallowed the start of the next one.
    let step = reports.next(&input);
    assert_eq!(step.event.unwrap().payload, b"{2}");
    assert_eq!(
        reports.next(&input[step.taken..]).event.unwrap().payload,
        b"{3}"
    );
    let counters = reports.counters();
    assert_eq!((counters.sessions, counters.frames), (1, 2));
    assert_eq!(counters.skipped, half as u64);
}

#[test]
fn a_report_is_found_within_one_that_never_ends() {
    let mut reports = ReportReceiver::default();
    let mut input = frame(4, 1, 5, &[b'x'; 9000])[..500].to_vec();
    assert_eq!(reports.next(&input).event, None);
    assert_eq!(reports.stalled(&input).taken, 0);
    input.extend(frame(4, 2, 0, b"{2}"));
    assert_eq!(reports.next(&input).taken, 0);
    let step = reports.stalled(&input);
    assert_eq!(
        (step.taken, step.event.unwrap().payload),
        (input.len(), &b"{2}"[..])
    );
}
