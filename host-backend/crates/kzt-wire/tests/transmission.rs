// SPDX-License-Identifier: GPL-2.0-or-later
//! The request decoder: however the stream is cut, the same requests come out.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use kzt_wire::nbd::{
    BLOCK_SIZE, Command, Decoder, Errno, Event, MAX_PAYLOAD, MIN_INPUT, Request, Session,
    Violation, flags, reply,
};
use proptest::prelude::*;

const SESSION: Session = Session {
    size: 1 << 30,
    structured_replies: true,
    base_allocation: true,
};

/// A request as a client sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    flags: u16,
    number: u16,
    cookie: u64,
    offset: u64,
    length: u32,
    payload: Vec<u8>,
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
        out.extend(self.flags.to_be_bytes());
        out.extend(self.number.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        out.extend(self.length.to_be_bytes());
        out.extend(&self.payload);
        out
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let length = prop_oneof![Just(0), Just(4096), 1u32..300, 1u32..20_000];
    (any::<u16>(), 0u16..10, any::<u64>(), any::<u64>(), length).prop_map(
        |(flags, number, cookie, offset, length)| {
            let carried = if number == 1 { length } else { 0 };
            let payload = (0..carried).map(|at| (at ^ cookie as u32) as u8).collect();
            Sent {
                flags,
                number,
                cookie,
                offset,
                length,
                payload,
            }
        },
    )
}

/// Feeds `stream` through a buffer of `MIN_INPUT` bytes in pieces of the given sizes and puts the
/// parts of writes together again.
fn decode(stream: &[u8], cuts: &[usize]) -> Result<Vec<(Request, Vec<u8>)>, Violation> {
    let mut decoder = Decoder::default();
    let (mut buffer, mut requests) = (Vec::new(), Vec::new());
    let mut payload = Vec::new();
    let mut rest = stream;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let room = MIN_INPUT - buffer.len();
        assert!(room > 0, "a full buffer holds an event");
        let (head, tail) = rest.split_at(room.min(rest.len()).min(*cuts.next().unwrap()));
        buffer.extend(head);
        rest = tail;
        while let Some((event, taken)) = decoder.next(&buffer)? {
            match event {
                Event::Request(request) => requests.push((request, Vec::new())),
                Event::Write {
                    request,
                    start,
                    data,
                    last,
                } => {
                    assert_eq!(start, payload.len());
                    payload.extend(data);
                    let end = request.offset.wrapping_add(payload.len() as u64);
                    assert!(last || end % u64::from(BLOCK_SIZE) == 0);
                    if last {
                        requests.push((request, std::mem::take(&mut payload)));
                    }
                }
            }
            buffer.drain(..taken);
        }
    }
    Ok(requests)
}

proptest! {
    #[test]
    fn any_cutting_of_the_stream_gives_the_requests_sent(
        sent in prop::collection::vec(sent(), 1..12),
        cuts in prop::collection::vec(1usize..5000, 1..8),
    ) {
        let stream = sent.iter().flat_map(Sent::bytes).collect::<Vec<_>>();
        let decoded = decode(&stream, &cuts).unwrap();
        prop_assert_eq!(decoded.len(), sent.len());
        for ((request, payload), sent) in decoded.iter().zip(&sent) {
            prop_assert_eq!(request.cookie, sent.cookie);
            prop_assert_eq!(request.flags, sent.flags);
            prop_assert_eq!((request.offset, request.length), (sent.offset, sent.length));
            prop_assert_eq!(payload, &sent.payload);
        }
    }

    #[test]
    fn any_bytes_are_requests_or_a_violation(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        plausible in any::<bool>(),
    ) {
        let mut stream = bytes;
        if plausible && stream.len() >= 8 {
            stream[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
            stream[6..8].copy_from_slice(&[0, 1]);
        }
        let _ = decode(&stream, &[stream.len().max(1)]);
    }

    #[test]
    fn a_request_that_passes_its_check_lies_within_the_device(sent in sent()) {
        let request = Request::decode(&sent.bytes()).unwrap().unwrap();
        if request.check(&SESSION).is_ok() && request.command != Command::Flush
            && request.command != Command::Disconnect
        {
            let end = u128::from(request.offset) + u128::from(request.length);
            prop_assert!(end <= u128::from(SESSION.size));
        }
    }
}

fn request(number: u16, flags: u16, offset: u64, length: u32) -> Request {
    let sent = Sent {
        flags,
        number,
        cookie: 9,
        offset,
        length,
        payload: Vec::new(),
    };
    Request::decode(&sent.bytes()).unwrap().unwrap()
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

#[test]
fn beyond_the_end_is_no_space_for_writes_and_invalid_otherwise() {
    let end = SESSION.size;
    for (number, error) in [
        (READ, Errno::Invalid),
        (TRIM, Errno::Invalid),
        (BLOCK_STATUS, Errno::Invalid),
        (WRITE, Errno::NoSpace),
        (WRITE_ZEROES, Errno::NoSpace),
    ] {
        assert_eq!(request(number, 0, end - 512, 512).check(&SESSION), Ok(()));
        assert_eq!(
            request(number, 0, end - 511, 512).check(&SESSION),
            Err(error)
        );
        assert_eq!(
            request(number, 0, u64::MAX, 512).check(&SESSION),
            Err(error)
        );
    }
}

#[test]
fn flags_are_for_their_commands_only() {
    for (number, own) in [
        (READ, flags::DF),
        (WRITE, 0),
        (FLUSH, 0),
        (TRIM, 0),
        (WRITE_ZEROES, flags::NO_HOLE | flags::FAST_ZERO),
        (BLOCK_STATUS, flags::REQ_ONE),
    ] {
        for bit in 0..16 {
            let flag = 1 << bit;
            let expected = if flag & (own | flags::FUA) == 0 {
                Err(Errno::Invalid)
            } else {
                Ok(())
            };
            assert_eq!(request(number, flag, 0, 512).check(&SESSION), expected);
        }
    }
}

#[test]
fn what_was_not_negotiated_is_invalid() {
    let plain = Session {
        structured_replies: false,
        base_allocation: false,
        ..SESSION
    };
    assert_eq!(
        request(READ, flags::DF, 0, 1).check(&plain),
        Err(Errno::Invalid)
    );
    assert_eq!(
        request(BLOCK_STATUS, 0, 0, 1).check(&plain),
        Err(Errno::Invalid)
    );
    assert_eq!(request(8, 0, 0, 1).check(&SESSION), Err(Errno::Invalid));
}

#[test]
fn payloads_have_a_limit() {
    assert_eq!(request(READ, 0, 0, MAX_PAYLOAD).check(&SESSION), Ok(()));
    assert_eq!(
        request(READ, 0, 0, MAX_PAYLOAD + 1).check(&SESSION),
        Err(Errno::Overflow)
    );
    assert_eq!(request(TRIM, 0, 0, MAX_PAYLOAD + 1).check(&SESSION), Ok(()));
    let long = Sent {
        flags: 0,
        number: WRITE,
        cookie: 0,
        offset: 0,
        length: MAX_PAYLOAD + 1,
        payload: Vec::new(),
    };
    assert_eq!(
        Request::decode(&long.bytes()),
        Err(Violation::PayloadLength(MAX_PAYLOAD + 1))
    );
}

#[test]
fn a_bad_magic_is_told_before_the_header_is_complete() {
    assert_eq!(Request::decode(&[0; 4]), Err(Violation::RequestMagic(0)));
    assert_eq!(Request::decode(&[0; 3]), Ok(None));
}

#[test]
fn simple_replies_byte_by_byte() {
    let plain = Session {
        structured_replies: false,
        base_allocation: false,
        ..SESSION
    };
    let mut out = Vec::new();
    reply::bare(&mut out, &plain, &request(READ, 0, 0, 1), Err(Errno::Io));
    assert_eq!(
        out,
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9]
    );
    out.clear();
    reply::bare(&mut out, &SESSION, &request(WRITE, 0, 0, 1), Ok(()));
    assert_eq!(
        out,
        [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]
    );
}

#[test]
fn structured_replies_byte_by_byte() {
    let read = request(READ, 0, 0, 4);
    let mut out = Vec::new();
    reply::bare(&mut out, &SESSION, &read, Err(Errno::Overflow));
    assert_eq!(
        out,
        [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 6, // head
            0, 0, 0, 75, 0, 0
        ]
    );
    out.clear();
    reply::data_chunk(&mut out, &read, true, 0x1_0000, 4);
    assert_eq!(
        out,
        [
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 12, // head
            0, 0, 0, 0, 0, 1, 0, 0
        ]
    );
}

#[test]
fn block_status_merges_neighbours_and_stops_at_its_limit() {
    let asked = request(BLOCK_STATUS, 0, 0, 1 << 20);
    let mut out = vec![0xaa];
    let mut status = reply::BlockStatus::begin(&mut out, &asked, 2);
    assert!(status.push(&mut out, 4096, true));
    assert!(status.push(&mut out, 4096, true));
    assert!(status.push(&mut out, 4096, false));
    assert!(!status.push(&mut out, 4096, true));
    status.finish(&mut out);
    assert_eq!(
        out,
        [
            0xaa, // what was there before stays
            0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 20, // head
            0, 0, 0, 1, // context
            0, 0, 0x20, 0, 0, 0, 0, 0, // 8192 bytes of data
            0, 0, 0x10, 0, 0, 0, 0, 3 // 4096 bytes of hole
        ]
    );
}
