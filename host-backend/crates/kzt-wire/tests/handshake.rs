// SPDX-License-Identifier: GPL-2.0-or-later
//! The handshake, byte by byte and against bytes that are none.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use kzt_wire::nbd::{
    GREETING_LENGTH, Handshake, MAX_OPTION_LENGTH, MAX_OPTIONS, Progress, Session, Violation,
};
use proptest::prelude::*;

const SIZE: u64 = 1 << 30;
const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;
const ACK: u32 = 1;
const ERR_UNSUP: u32 = (1 << 31) + 1;
const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_UNKNOWN: u32 = (1 << 31) + 6;
const FLAGS: [u8; 4] = [0, 0, 0, 3];
/// All the server has but DF, which takes structured replies.
const TRANSMISSION_FLAGS: u16 = 0x96d;
const SEND_DF: u16 = 0x80;

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"IHAVEOPT".to_vec();
    out.extend(number.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn string(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u32).to_be_bytes().to_vec();
    out.extend(text.as_bytes());
    out
}

fn go(name: &str, asked: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((asked.len() as u16).to_be_bytes());
    data.extend(asked.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

/// Replies as (option, kind, data).
type Replies = Vec<(u32, u32, Vec<u8>)>;

fn parse(mut bytes: &[u8]) -> Replies {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let field = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let end = 20 + field(16) as usize;
        replies.push((field(8), field(12), bytes[20..end].to_vec()));
        bytes = &bytes[end..];
    }
    replies
}

/// Sends client flags and options in one piece.
fn talk(options: &[Vec<u8>]) -> (Result<Progress, Violation>, Replies) {
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(SIZE, &mut out);
    let input = [FLAGS.to_vec(), options.concat()].concat();
    let outcome = handshake
        .advance(&input, &mut out)
        .map(|(_, progress)| progress);
    (outcome, parse(&out[GREETING_LENGTH..]))
}

#[test]
fn greeting() {
    let mut out = Vec::new();
    let _ = Handshake::begin(SIZE, &mut out);
    assert_eq!(out, b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn both_names_are_the_device_and_others_are_unknown() {
    let session = Session {
        size: SIZE,
        structured_replies: false,
        base_allocation: false,
    };
    for name in ["", "swap"] {
        let (progress, replies) = talk(&[option(GO, &go(name, &[]))]);
        assert_eq!(progress, Ok(Progress::Transmission(session)));
        let mut export = vec![0, 0];
        export.extend(SIZE.to_be_bytes());
        export.extend(TRANSMISSION_FLAGS.to_be_bytes());
        assert_eq!(replies, [(GO, 3, export), (GO, ACK, vec![])]);
    }
    for name in ["b", "/", "swap\0", "../b/nbd.sock"] {
        let (progress, replies) = talk(&[option(GO, &go(name, &[]))]);
        assert_eq!(progress, Ok(Progress::More));
        assert_eq!(replies[0].1, ERR_UNKNOWN);
    }
}

#[test]
fn info_answers_what_it_was_asked_and_stays_in_the_handshake() {
    let (progress, replies) = talk(&[option(INFO, &go("", &[3, 1, 3, 77]))]);
    assert_eq!(progress, Ok(Progress::More));
    let kinds: Vec<_> = replies
        .iter()
        .map(|reply| (reply.1, reply.2.get(..2)))
        .collect();
    assert_eq!(
        kinds,
        [
            (3, Some(&[0, 0][..])),
            (3, Some(&[0, 1][..])),
            (3, Some(&[0, 3][..])),
            (ACK, None)
        ]
    );
    assert_eq!(replies[1].2[2..], *b"swap");
    assert_eq!(replies[2].2[2..], [0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
}

#[test]
fn export_name_pads_only_for_clients_that_want_it() {
    for (flags, padding) in [([0, 0, 0, 3], 0), ([0, 0, 0, 1], 124)] {
        let mut out = Vec::new();
        let mut handshake = Handshake::begin(SIZE, &mut out);
        let input = [flags.to_vec(), option(EXPORT_NAME, b"swap")].concat();
        let (taken, progress) = handshake.advance(&input, &mut out).unwrap();
        assert_eq!(taken, input.len());
        assert!(matches!(progress, Progress::Transmission(_)));
        let mut expected = SIZE.to_be_bytes().to_vec();
        expected.extend(TRANSMISSION_FLAGS.to_be_bytes());
        expected.resize(10 + padding, 0);
        assert_eq!(out[GREETING_LENGTH..], expected);
    }
    let (outcome, _) = talk(&[option(EXPORT_NAME, b"other")]);
    assert_eq!(outcome, Err(Violation::UnknownExport));
}

#[test]
fn list_shows_one_export() {
    let (_, replies) = talk(&[option(LIST, b"")]);
    assert_eq!(replies, [(LIST, 2, string("swap")), (LIST, ACK, vec![])]);
}

#[test]
fn unknown_options_are_answered() {
    let (progress, replies) = talk(&[option(STARTTLS, b""), option(4711, b"xyz")]);
    assert_eq!(progress, Ok(Progress::More));
    assert_eq!((replies[0].0, replies[0].1), (STARTTLS, ERR_UNSUP));
    assert_eq!((replies[1].0, replies[1].1), (4711, ERR_UNSUP));
}

#[test]
fn block_status_takes_structured_replies_and_the_context() {
    let set = option(
        SET_META_CONTEXT,
        &contexts("", &["qemu:dirty-bitmap", "base:allocation"]),
    );
    let (_, replies) = talk(std::slice::from_ref(&set));
    assert_eq!(replies[0].1, ERR_INVALID);
    let start = option(GO, &go("", &[]));
    let (progress, replies) = talk(&[option(STRUCTURED_REPLY, b""), set.clone(), start.clone()]);
    let Ok(Progress::Transmission(session)) = progress else {
        panic!("{progress:?}")
    };
    assert!(session.structured_replies && session.base_allocation);
    let context = [&[0, 0, 0, 1][..], b"base:allocation"].concat();
    assert_eq!(replies[1], (SET_META_CONTEXT, 4, context));
    assert_eq!(replies[2], (SET_META_CONTEXT, ACK, vec![]));
    assert_eq!(
        replies[3].2[10..],
        (TRANSMISSION_FLAGS | SEND_DF).to_be_bytes()
    );
    // The latest request counts, even when it fails.
    for after in [
        contexts("", &[]),
        contexts("nowhere", &["base:allocation"]),
        vec![1],
    ] {
        let again = option(SET_META_CONTEXT, &after);
        let (progress, _) = talk(&[
            option(STRUCTURED_REPLY, b""),
            set.clone(),
            again,
            start.clone(),
        ]);
        let Ok(Progress::Transmission(session)) = progress else {
            panic!("{progress:?}")
        };
        assert!(!session.base_allocation);
    }
}

#[test]
fn contexts_are_listed_by_namespace() {
    for (queries, found) in [
        (&[][..], true),
        (&["base:"], true),
        (&["base:allocation"], true),
        (&["qemu:"], false),
    ] {
        let list = option(LIST_META_CONTEXT, &contexts("swap", queries));
        let (_, replies) = talk(&[option(STRUCTURED_REPLY, b""), list]);
        let named = found.then(|| [&[0; 4][..], b"base:allocation"].concat());
        let context = named.map(|context| (LIST_META_CONTEXT, 4, context));
        let ack = (LIST_META_CONTEXT, ACK, vec![]);
        let expected: Vec<_> = context.into_iter().chain([ack]).collect();
        assert_eq!(replies[1..], expected, "{queries:?}");
    }
}

#[test]
fn malformed_options_are_invalid_and_leave_the_handshake_alive() {
    let overlong = [&[0xff; 4][..], &[0; 2]].concat();
    let trailing = [go("", &[]), vec![0]].concat();
    for (number, data) in [
        (GO, vec![]),
        (GO, overlong.clone()),
        (INFO, trailing),
        (GO, [string(""), vec![0, 9]].concat()),
        (LIST, vec![0]),
        (STRUCTURED_REPLY, vec![0]),
        (SET_META_CONTEXT, overlong),
        (LIST_META_CONTEXT, [string(""), vec![0xff; 4]].concat()),
    ] {
        let (progress, replies) = talk(&[option(number, &data)]);
        assert_eq!(progress, Ok(Progress::More));
        assert_eq!((replies[0].0, replies[0].1), (number, ERR_INVALID));
    }
}

#[test]
fn abort_is_acknowledged() {
    let (progress, replies) = talk(&[option(ABORT, b"bye")]);
    assert_eq!(progress, Ok(Progress::Aborted));
    assert_eq!(replies, [(ABORT, ACK, vec![])]);
}

#[test]
fn floods_end_the_connection() {
    let many = vec![option(4711, b""); MAX_OPTIONS as usize];
    assert_eq!(talk(&many).0, Ok(Progress::More));
    let more = [many, vec![option(GO, &go("", &[]))]].concat();
    assert_eq!(talk(&more).0, Err(Violation::TooManyOptions));
    let mut long = option(4711, b"");
    long.splice(12..16, (MAX_OPTION_LENGTH + 1).to_be_bytes());
    assert_eq!(
        talk(&[long]).0,
        Err(Violation::OptionLength(MAX_OPTION_LENGTH + 1))
    );
}

#[test]
fn broken_streams_end_the_connection() {
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(SIZE, &mut out);
    assert_eq!(
        handshake.advance(&[0, 0, 0, 7], &mut out),
        Err(Violation::ClientFlags(7))
    );
    assert_eq!(
        talk(&[b"ihaveopt".to_vec()]).0,
        Err(Violation::OptionMagic(0x6968_6176_656f_7074))
    );
}

proptest! {
    #[test]
    fn any_cutting_of_the_stream_gives_the_same_replies(
        chosen in prop::collection::vec((0u32..12, prop::collection::vec(any::<u8>(), 0..12)), 0..9),
        step in 1usize..40,
    ) {
        let options: Vec<_> = chosen.iter().map(|(number, data)| option(*number, data)).collect();
        let mut input = [FLAGS.to_vec(), options.concat()].concat();
        input.extend(option(GO, &go("swap", &[3])));
        let mut whole = Vec::new();
        let expected = Handshake::begin(SIZE, &mut whole).advance(&input, &mut whole);

        let mut pieces = Vec::new();
        let mut handshake = Handshake::begin(SIZE, &mut pieces);
        let (mut at, mut end) = (0, 0);
        let outcome = loop {
            end = (end + step).min(input.len());
            match handshake.advance(&input[at..end], &mut pieces) {
                Ok((taken, Progress::More)) if end < input.len() => at += taken,
                Ok((taken, progress)) => break Ok((at + taken, progress)),
                Err(violation) => break Err(violation),
            }
        };
        prop_assert_eq!(outcome, expected);
        prop_assert_eq!(pieces, whole);
    }

    #[test]
    fn any_bytes_are_options_or_a_violation(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut out = Vec::new();
        let mut handshake = Handshake::begin(SIZE, &mut out);
        if let Ok((taken, _)) = handshake.advance(&bytes, &mut out) {
            prop_assert!(taken <= bytes.len());
        }
    }
}
