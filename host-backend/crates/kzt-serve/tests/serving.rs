// SPDX-License-Identifier: GPL-2.0-or-later
//! What clients of a server can and cannot do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use common::{ENOSPC, FLUSH, Lab, NO_HOLE, READ, TRIM, WRITE, WRITE_ZEROES, ended, noise};
use kzt_serve::ServeError;
use kzt_store::Codec;
use proptest::prelude::*;

const EIO: u32 = 5;
const EINVAL: u32 = 22;

#[test]
fn clients_never_see_each_others_pages() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    lab.add("b", 1 << 20);
    let (mut a, mut b) = (lab.nbd("a"), lab.nbd("b"));
    assert_eq!(a.write(0, &[b'a'; 4096]), 0);
    assert_eq!(b.read(0, 4096).unwrap(), [0; 4096]);
    assert_eq!(b.write(0, &[b'b'; 4096]), 0);
    assert_eq!(a.read(0, 4096).unwrap(), [b'a'; 4096]);
    assert_eq!(b.call(TRIM, 0, 0, 1 << 20, &[]), 0);
    assert_eq!(a.read(0, 4096).unwrap(), [b'a'; 4096]);
}

#[test]
fn a_socket_gives_no_way_to_name_another_pool() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    lab.add("b", 1 << 20);
    for name in ["b", "b/swap", "/b", "../b"] {
        let mut stream = lab.connect("a");
        let mut option = vec![0, 0, 0, 3];
        option.extend(b"IHAVEOPT");
        option.extend(1u32.to_be_bytes());
        option.extend((name.len() as u32).to_be_bytes());
        option.extend(name.as_bytes());
        stream.write_all(&option).unwrap();
        let mut answer = Vec::new();
        // The greeting, and then nothing but the end.
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), 18, "{name}");
    }
}

/// A request of the model test, in terms that make neighbours meet often.
#[derive(Clone, Debug)]
enum Op {
    Write(u64, u32, u8),
    Zeroes(u64, u32, bool),
    Trim(u64, u32),
    Read(u64, u32),
}

const SIZE: u32 = 64 << 10;

fn op() -> impl Strategy<Value = Op> {
    let aligned = (0u64..16, 1u32..5).prop_map(|(page, pages)| (page * 4096, pages * 4096));
    let ragged = (0..u64::from(SIZE), 1u32..9000);
    let range = prop_oneof![aligned, ragged]
        .prop_map(|(offset, length)| (offset, length.min(SIZE - offset as u32)));
    (range, any::<u8>(), 0..4).prop_map(|((offset, length), byte, kind)| match kind {
        0 => Op::Write(offset, length, byte),
        1 => Op::Zeroes(offset, length, byte > 127),
        2 => Op::Trim(offset, length),
        _ => Op::Read(offset, length),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_device_is_an_array_of_bytes(ops in prop::collection::vec(op(), 1..60)) {
        let lab = Lab::new(64 << 20);
        lab.add("a", SIZE.into());
        let mut nbd = lab.nbd("a");
        let mut model = vec![0u8; SIZE as usize];
        for op in ops {
            match op {
                Op::Write(offset, length, byte) => {
                    let data: Vec<u8> = (0..length).map(|at| byte.wrapping_add(at as u8)).collect();
                    model[offset as usize..][..length as usize].copy_from_slice(&data);
                    prop_assert_eq!(nbd.write(offset, &data), 0);
                }
                Op::Zeroes(offset, length, keep) => {
                    model[offset as usize..][..length as usize].fill(0);
                    let flags = if keep { NO_HOLE } else { 0 };
                    prop_assert_eq!(nbd.call(WRITE_ZEROES, flags, offset, length, &[]), 0);
                }
                Op::Trim(offset, length) => {
                    // Whole pages only; no more than that is promised to anybody.
                    let (first, end) = (offset.div_ceil(4096), (offset + u64::from(length)) / 4096);
                    for page in first..end {
                        model[page as usize * 4096..][..4096].fill(0);
                    }
                    prop_assert_eq!(nbd.call(TRIM, 0, offset, length, &[]), 0);
                }
                Op::Read(offset, length) => {
                    let data = nbd.read(offset, length as usize).unwrap();
                    prop_assert!(data == model[offset as usize..][..length as usize]);
                }
            }
        }
        prop_assert!(nbd.read(0, SIZE as usize).unwrap() == model);
    }
}

#[test]
fn requests_larger_than_any_buffer_pass_through() {
    let lab = Lab::new(128 << 20);
    lab.add("a", 64 << 20);
    let mut nbd = lab.nbd("a");
    let data: Vec<u8> = (0..32 << 20).map(|at: u32| (at / 1000) as u8).collect();
    assert_eq!(nbd.write(100, &data), 0);
    assert!(nbd.read(100, data.len()).unwrap() == data);
}

/// A client that negotiated structured replies.
fn structured(lab: &Lab) -> UnixStream {
    let mut stream = lab.connect("a");
    let mut options = vec![0, 0, 0, 3];
    for number in [8u32, 1] {
        options.extend(b"IHAVEOPT");
        options.extend(number.to_be_bytes());
        options.extend(0u32.to_be_bytes());
    }
    stream.write_all(&options).unwrap();
    // Greeting, the option's acknowledgement, the export's size and flags.
    stream.read_exact(&mut [0; 18 + 20 + 10]).unwrap();
    stream
}

/// A chunk's flags, kind and payload.
fn chunk(stream: &mut UnixStream) -> (u16, u16, Vec<u8>) {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..4], 0x668e_33ef_u32.to_be_bytes());
    let mut payload = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
    stream.read_exact(&mut payload).unwrap();
    let field = |at: usize| u16::from_be_bytes(head[at..at + 2].try_into().unwrap());
    (field(4), field(6), payload)
}

#[test]
fn long_reads_come_in_chunks_unless_asked_not_to() {
    const DF: u16 = 4;
    const MIB: u32 = 1 << 20;
    let lab = Lab::new(64 << 20);
    lab.add("a", 8 << 20);
    let data: Vec<u8> = (0..2 * MIB).map(|at| (at / 999) as u8).collect();
    assert_eq!(lab.nbd("a").write(0, &data), 0);
    let mut stream = structured(&lab);

    let from = 77;
    stream
        .write_all(&common::request(READ, 0, 1, from, MIB))
        .unwrap();
    let mut at = from;
    loop {
        let (flags, kind, payload) = chunk(&mut stream);
        let (offset, part) = payload.split_at(8);
        assert_eq!((kind, offset), (1, &at.to_be_bytes()[..]));
        assert!(part == &data[at as usize..][..part.len()]);
        at += part.len() as u64;
        if flags == 1 {
            break;
        }
    }
    assert_eq!(at, from + u64::from(MIB));

    // 64 KiB anywhere have to be possible.
    for from in [0, MIB - 100, MIB / 4 - 4096] {
        stream
            .write_all(&common::request(READ, DF, 1, from.into(), 64 << 10))
            .unwrap();
        let (flags, kind, payload) = chunk(&mut stream);
        assert_eq!((flags, kind), (1, 1));
        assert!(payload[8..] == data[from as usize..][..64 << 10]);
    }
    stream
        .write_all(&common::request(READ, DF, 1, 0, MIB))
        .unwrap();
    assert_eq!(chunk(&mut stream), (1, 0x8001, vec![0, 0, 0, 75, 0, 0]));
}

#[test]
fn an_error_concerns_its_request_only() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.nbd("a");
    assert_eq!(nbd.write(1 << 20, &[1; 4096]), ENOSPC);
    assert_eq!(nbd.read(1 << 20, 1), Err(EINVAL));
    assert_eq!(nbd.call(99, 0, 0, 0, &[]), EINVAL);
    assert_eq!(nbd.call(FLUSH, 0, 0, 0, &[]), 0);
    assert_eq!(nbd.read(0, 4096).unwrap(), [0; 4096]);
}

#[test]
fn a_request_of_no_bytes_changes_nothing() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.nbd("a");
    for offset in [0, 1, 4096, 5000, 1 << 20] {
        assert_eq!(nbd.write(offset, &[]), 0);
        for flags in [0, NO_HOLE] {
            assert_eq!(nbd.call(WRITE_ZEROES, flags, offset, 0, &[]), 0);
        }
        assert_eq!(nbd.call(TRIM, 0, offset, 0, &[]), 0);
        assert_eq!(lab.server.client_stats("a").unwrap().pool.pages, 0);
    }
}

#[test]
fn a_full_store_refuses_and_keeps_what_it_has() {
    let lab = Lab::with_codec(16 << 20, Codec::None);
    lab.add("a", 1 << 30);
    let mut nbd = lab.nbd("a");
    let stored = (0u64..1 << 18)
        .take_while(|page| nbd.write(page * 4096, &noise(*page)) == 0)
        .count();
    assert!(stored > 1000, "{stored} pages in 16 MiB");
    assert_eq!(nbd.write(1 << 29, &noise(1)), ENOSPC);
    for page in 0..stored as u64 {
        assert!(nbd.read(page * 4096, 4096).unwrap() == noise(page));
    }
    // What is dropped makes room again.
    assert_eq!(nbd.call(TRIM, 0, 0, 1 << 20, &[]), 0);
    assert_eq!(nbd.write(1 << 29, &noise(1)), 0);
}

#[test]
fn a_damaged_page_is_an_error_and_never_data() {
    let lab = Lab::with_codec(64 << 20, Codec::None);
    lab.add("a", 1 << 20);
    let mut nbd = lab.nbd("a");
    assert_eq!(nbd.write(0, &noise(1)), 0);
    assert_eq!(nbd.write(4096, &noise(2)), 0);
    let arena = File::options()
        .read(true)
        .write(true)
        .open(lab.folder.path().join("arena"));
    let arena = arena.unwrap();
    let mut content = vec![0; arena.metadata().unwrap().len() as usize];
    arena.read_exact_at(&mut content, 0).unwrap();
    let place = content
        .windows(64)
        .position(|window| *window == noise(1)[..64])
        .unwrap();
    arena
        .write_all_at(&[!noise(1)[10]], place as u64 + 10)
        .unwrap();

    assert_eq!(nbd.read(0, 4096), Err(EIO));
    assert_eq!(nbd.read(0, 8192), Err(EIO));
    assert_eq!(nbd.write(10, &[7]), EIO);
    assert!(nbd.read(4096, 4096).unwrap() == noise(2));
    assert!(lab.server.client_stats("a").unwrap().pool.crc_errors >= 3);
    // A whole page needs nothing of the old one.
    assert_eq!(nbd.write(0, &noise(3)), 0);
    assert!(nbd.read(0, 4096).unwrap() == noise(3));
}

#[test]
fn a_broken_stream_ends_its_connection_and_no_other() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut good = lab.nbd("a");
    let mut bad = lab.nbd("a");
    bad.stream.write_all(&[0xff; 28]).unwrap();
    assert!(bad.ended());
    let mut worse = lab.nbd("a");
    worse.send(WRITE, 0, 0, u32::MAX, &[]);
    assert!(worse.ended());
    assert_eq!(good.write(0, &[1; 4096]), 0);
    lab.settle("a", 1);
}

#[test]
fn connections_beyond_the_limit_are_closed_at_once() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut kept: Vec<_> = (0..16).map(|_| lab.nbd("a")).collect();
    let mut refused = lab.connect("a");
    assert!(ended(&mut refused));
    drop(kept.pop());
    lab.settle("a", 15);
    assert_eq!(lab.nbd("a").write(0, &[1; 4096]), 0);
}

#[test]
fn a_half_open_negotiation_is_given_up() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut silent = lab.connect("a");
    silent.read_exact(&mut [0; 18]).unwrap();
    assert!(ended(&mut silent));
}

#[test]
fn a_client_that_reads_no_replies_blocks_nobody_else() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut deaf = lab.nbd("a");
    for _ in 0..64 {
        deaf.send(READ, 0, 0, 1 << 20, &[]);
    }
    let mut other = lab.nbd("a");
    assert_eq!(other.write(0, &[1; 4096]), 0);
    lab.server.shutdown(Duration::ZERO);
    assert!(other.ended());
}

#[test]
fn removing_a_client_closes_its_connections_and_destroys_its_pool() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.nbd("a");
    assert_eq!(nbd.write(0, &[1; 4096]), 0);
    lab.server.remove_client("a").unwrap();
    assert!(nbd.ended());
    assert!(!lab.socket("a").exists());
    assert!(lab.server.client_stats("a").is_none());
    assert!(lab.server.pools().is_empty());
    assert!(matches!(
        lab.server.remove_client("a"),
        Err(ServeError::NoClient(_))
    ));
    lab.add("a", 1 << 20);
    assert_eq!(lab.nbd("a").read(0, 4096).unwrap(), [0; 4096]);
}

#[test]
fn a_name_is_free_no_sooner_than_its_pool_is_gone() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    for _ in 0..50 {
        thread::scope(|scope| {
            scope.spawn(|| lab.server.remove_client("a").unwrap());
            while lab.try_add("a", 1 << 20, "a").is_err() {
                thread::yield_now();
            }
        });
        assert_eq!(lab.nbd("a").write(0, &[1; 4096]), 0);
    }
}

#[test]
fn a_pool_left_behind_can_be_removed_without_being_served() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    assert_eq!(lab.nbd("a").write(0, &[1; 4096]), 0);
    let lab = lab.reopen();
    assert!(lab.server.clients().is_empty());
    assert_eq!(lab.server.pools(), ["a"]);
    lab.server.remove_client("a").unwrap();
    assert!(lab.server.pools().is_empty());
}

#[test]
fn shutdown_answers_what_has_arrived_and_keeps_the_pages() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.nbd("a");
    for page in 0..32 {
        nbd.send(WRITE, 0, page * 4096, 4096, &noise(page));
    }
    lab.server.shutdown(Duration::from_secs(60));
    for cookie in 1..=32 {
        assert_eq!(nbd.reply(), (0, cookie));
    }
    assert!(nbd.ended());
    assert!(!lab.socket("a").exists());
    let refused = lab.try_add("b", 1 << 20, "b");
    assert!(matches!(refused, Err(ServeError::ShutDown)));

    let lab = lab.reopen();
    lab.add("a", 1 << 20);
    let mut nbd = lab.nbd("a");
    for page in 0..32 {
        assert!(nbd.read(page * 4096, 4096).unwrap() == noise(page));
    }
}

#[test]
fn sockets_are_private_and_replace_only_stale_ones() {
    let lab = Lab::new(64 << 20);
    // Left behind by a server that was killed.
    drop(UnixListener::bind(lab.socket("a")).unwrap());
    lab.add("a", 1 << 20);
    assert_eq!(
        fs::metadata(lab.socket("a")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(lab.nbd("a").size, 1 << 20);

    let long = "x".repeat(200);
    let add = |name, socket| lab.try_add(name, 1 << 20, socket);
    assert!(matches!(add("b", "a"), Err(ServeError::InUse(_))));
    fs::write(lab.socket("file"), "precious").unwrap();
    assert!(matches!(add("b", "file"), Err(ServeError::NotASocket(_))));
    assert!(matches!(
        add("b", "missing/b"),
        Err(ServeError::Socket { .. })
    ));
    assert!(matches!(add("b", &long), Err(ServeError::Socket { .. })));
    assert!(matches!(add("a", "c"), Err(ServeError::Exists(_))));
    assert_eq!(lab.server.pools(), ["a"]);
}

#[test]
fn a_swap_device_is_whole_pages() {
    let lab = Lab::new(64 << 20);
    for size in [0, 4095, 4097, (1 << 44) + 4096, u64::MAX] {
        let refused = lab.try_add("a", size, "a");
        assert!(matches!(refused, Err(ServeError::SwapSize(_))), "{size}");
    }
    lab.add("a", 1 << 44);
    let mut nbd = lab.nbd("a");
    assert_eq!(nbd.write((1 << 44) - 1, &[9]), 0);
    assert_eq!(nbd.read((1 << 44) - 4096, 4096).unwrap()[4095], 9);
    assert_eq!(nbd.call(TRIM, 0, (1 << 44) - 4096, 4096, &[]), 0);
    assert_eq!(nbd.read((1 << 44) - 1, 1).unwrap(), [0]);
}

#[test]
fn requests_are_counted_and_timed() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 20);
    let mut nbd = lab.nbd("a");
    assert_eq!(nbd.write(0, &[1; 8192]), 0);
    assert_eq!(nbd.call(WRITE_ZEROES, NO_HOLE, 8192, 4096, &[]), 0);
    nbd.read(0, 4096).unwrap();
    assert_eq!(nbd.call(TRIM, 0, 0, 4096, &[]), 0);
    // The reply goes out before the last request is recorded.
    nbd.read(0, 1).unwrap();
    let stats = lab.server.client_stats("a").unwrap();
    assert_eq!((stats.put.count, stats.flush.count), (2, 1));
    assert!(stats.get.count >= 1 && stats.get.p50 <= stats.get.p999);
    assert_eq!((stats.pool.puts, stats.pool.pages), (3, 2));
    assert_eq!((stats.connections, stats.swap_bytes), (1, 1 << 20));
}
