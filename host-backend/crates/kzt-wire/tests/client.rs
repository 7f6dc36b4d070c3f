// SPDX-License-Identifier: GPL-2.0-or-later
//! The client's handshake, against the server's.

use kzt_wire::nbd::{ClientHandshake, ClientStep, Device, Handshake, Progress, Refusal};
use proptest::prelude::*;

const SIZE: u64 = 512 << 20;

/// Both ends, with the server's bytes arriving in pieces of `piece` bytes.
fn negotiate(piece: usize) -> Option<(Device, Progress)> {
    let mut to_client = Vec::new();
    let mut server = Handshake::begin(SIZE, &mut to_client);
    let mut client = ClientHandshake::default();
    let (mut input, mut sent) = (Vec::new(), Vec::new());
    let mut agreed = Progress::More;
    loop {
        assert!(
            !to_client.is_empty(),
            "the server has said all, and nothing is agreed"
        );
        input.extend(to_client.drain(..piece.min(to_client.len())));
        loop {
            let (taken, step) = client.advance(&input).ok()?;
            input.drain(..taken);
            match step {
                Some(ClientStep::Send(bytes)) => sent.extend(bytes),
                Some(ClientStep::Ready(device)) => {
                    assert!(input.is_empty() && to_client.is_empty());
                    return Some((device, agreed));
                }
                None => break,
            }
        }
        let (taken, progress) = server.advance(&sent, &mut to_client).ok()?;
        sent.drain(..taken);
        if progress != Progress::More {
            agreed = progress;
        }
    }
}

#[test]
fn the_two_handshakes_agree() {
    for piece in [1, 7, 4096] {
        let (device, server) = negotiate(piece).unwrap();
        assert_eq!(device.size, SIZE);
        assert_eq!(device.flags & 1, 1, "HAS_FLAGS");
        let Progress::Transmission(session) = server else {
            panic!("the server ended with {server:?}");
        };
        assert!(
            !session.structured_replies,
            "the kernel knows simple replies only"
        );
    }
}

#[test]
fn a_refusal_is_told() {
    let mut client = ClientHandshake::default();
    let mut greeting = Vec::new();
    let _ = Handshake::begin(SIZE, &mut greeting);
    client.advance(&greeting).unwrap();
    let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    for field in [7_u32, (1 << 31) + 6, 0] {
        reply.extend(field.to_be_bytes());
    }
    assert_eq!(client.advance(&reply), Err(Refusal::Option((1 << 31) + 6)));
}

proptest! {
    #[test]
    fn any_bytes_are_borne(
        greeted in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..2048),
    ) {
        let mut client = ClientHandshake::default();
        let mut input = Vec::new();
        if greeted {
            let _ = Handshake::begin(SIZE, &mut input);
            let (taken, _) = client.advance(&input).unwrap();
            input.drain(..taken);
        }
        input.extend(bytes);
        if let Ok((taken, _)) = client.advance(&input) {
            prop_assert!(taken <= input.len());
        }
    }
}
