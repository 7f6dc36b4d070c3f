// SPDX-License-Identifier: GPL-2.0-or-later
//! The vhost-user block device, as a well-behaved frontend and driver see it.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::thread;
use std::time::Duration;

use common::driver::{
    DATA, DISCARD, Driver, FLUSH, GET_CONFIG, GET_FEATURES, GET_ID, GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM, GET_VRING_BASE, GUEST, IN, INDIRECT, IOERR, MEMORY, NEXT, OK, OUT, QEMU,
    SET_VRING_ENABLE, SIZE, UNSUPP, USUAL, VERSION_1, WRITABLE, WRITE_ZEROES, descriptor,
    header_of, message, range, request_header, state, status_of, used_of,
};
use common::{Lab, noise};

const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;

fn lab() -> Lab {
    let lab = Lab::new(64 * MIB);
    lab.add("a", 64 * MIB);
    lab
}

fn driver(lab: &Lab, queues: u16) -> Driver {
    Driver::ready(&lab.socket("a.vhost"), queues)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn it_says_what_it_is() {
    let lab = lab();
    let mut driver = Driver::connect(&lab.socket("a.vhost"));
    let features = driver.ask(GET_FEATURES, &[]);
    let features = u64::from_le_bytes(features.try_into().unwrap());
    assert_eq!(features & USUAL, USUAL);
    driver.negotiate(USUAL);
    let protocol = driver.ask(GET_PROTOCOL_FEATURES, &[]);
    assert_eq!(protocol, (1_u64 | 1 << 3 | 1 << 9).to_le_bytes());
    assert_eq!(driver.ask(GET_QUEUE_NUM, &[]), 16_u64.to_le_bytes());
    let mut question = vec![0; 12 + 60];
    question[4..8].copy_from_slice(&60_u32.to_le_bytes());
    let config = &driver.ask(GET_CONFIG, &question)[12..];
    assert_eq!(config.len(), 60);
    let capacity = u64::from(word(config, 4)) << 32 | u64::from(word(config, 0));
    assert_eq!(capacity, 64 * MIB / 512);
    assert_eq!(word(config, 12), 126);
    assert_eq!(word(config, 20), 4096);
    assert_eq!(word(config, 36), 1 << 21);
}

#[test]
fn what_is_written_is_there_for_every_frontend() {
    let lab = lab();
    let mut driver = driver(&lab, 1);
    let bytes: Vec<u8> = (0..8).flat_map(noise).collect();
    assert_eq!(driver.write(64 << 10, &bytes), Some(OK));
    let mut nbd = lab.nbd("a");
    assert_eq!(nbd.read(64 << 10, bytes.len()).unwrap(), bytes);
    assert_eq!(nbd.write(1 << 20, &bytes), 0);
    assert_eq!(driver.read(1 << 20, bytes.len() as u32).unwrap(), bytes);
    assert_eq!(driver.read(2 << 20, 4096).unwrap(), vec![0; PAGE]);
    let stats = lab.server.client_stats("a").unwrap();
    assert_eq!(stats.connections, 2);
    // One from each frontend: a histogram counts requests.
    assert_eq!((stats.put.count, stats.pool.puts), (2, 16));
    assert_eq!(stats.get.count, 3);
}

#[test]
fn parts_of_pages_leave_the_rest() {
    let lab = lab();
    let mut driver = driver(&lab, 1);
    let mut bytes = [noise(1), noise(2)].concat();
    assert_eq!(driver.write(0, &bytes), Some(OK));
    assert_eq!(driver.write(3584, &[7; 1024]), Some(OK));
    bytes[3584..4608].fill(7);
    assert_eq!(driver.read(0, 8192).unwrap(), bytes);
    assert_eq!(driver.read(3072, 2048).unwrap(), bytes[3072..5120]);
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let lab = lab();
    let mut driver = driver(&lab, 1);
    for page in 0..8 {
        assert_eq!(driver.write(page * 4096, &noise(page)), Some(OK));
    }
    let pages = |lab: &Lab| lab.server.client_stats("a").unwrap().pool.pages;
    assert_eq!(pages(&lab), 8);
    driver.fill(DATA, &[range(0, 8, 0), range(16, 8, 0)].concat());
    assert_eq!(driver.call(DISCARD, 0, (DATA, 32)), Some(OK));
    assert_eq!(pages(&lab), 6);
    assert_eq!(driver.read(0, 4096).unwrap(), vec![0; PAGE]);
    assert_eq!(driver.read(4096, 4096).unwrap(), noise(1));
    driver.fill(DATA, &range(8, 4, 1));
    assert_eq!(driver.call(WRITE_ZEROES, 0, (DATA, 16)), Some(OK));
    assert_eq!(driver.read(4096, 4096).unwrap()[2048..], noise(1)[2048..]);
    assert_eq!(driver.read(4096, 4096).unwrap()[..2048], vec![0; 2048]);
    driver.fill(DATA, &range(24, 8, 1));
    assert_eq!(driver.call(WRITE_ZEROES, 0, (DATA, 16)), Some(OK));
    assert_eq!(pages(&lab), 5);
    driver.fill(DATA, &range(32, 8, 0));
    assert_eq!(driver.call(WRITE_ZEROES, 0, (DATA, 16)), Some(OK));
    assert_eq!(pages(&lab), 5);
    assert_eq!(driver.read(16384, 4096).unwrap(), vec![0; PAGE]);
    // What the disk did not announce.
    driver.fill(DATA, &range(0, 8, 1));
    assert_eq!(driver.call(DISCARD, 0, (DATA, 16)), Some(UNSUPP));
    assert_eq!(driver.call(WRITE_ZEROES, 0, (DATA, 15)), Some(IOERR));
    driver.fill(DATA, &range(0, (1 << 21) + 8, 0));
    assert_eq!(driver.call(DISCARD, 0, (DATA, 16)), Some(IOERR));
    assert_eq!(driver.call(DISCARD, 0, (DATA, 65 * 16)), Some(IOERR));
}

#[test]
fn it_flushes_tells_its_serial_number_and_refuses_the_rest() {
    let lab = lab();
    let mut driver = driver(&lab, 1);
    assert_eq!(driver.call(FLUSH, 0, (DATA, 0)), Some(OK));
    assert_eq!(driver.call(GET_ID, 0, (DATA, 20)), Some(OK));
    assert_eq!(driver.bytes(DATA, 20), b"kztswap0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(driver.call(3, 0, (DATA, 512)), Some(UNSUPP));
    assert_eq!(driver.call(IN, 64 * MIB / 512, (DATA, 4096)), Some(IOERR));
    assert_eq!(driver.call(OUT, u64::MAX, (DATA, 4096)), Some(IOERR));
    assert_eq!(driver.call(OUT, 0, (DATA, 511)), Some(IOERR));
    assert_eq!(lab.server.client_stats("a").unwrap().pool.pages, 0);
}

#[test]
fn a_full_store_is_an_error_of_the_request() {
    let lab = Lab::new(4 * MIB);
    lab.add("a", 64 * MIB);
    let mut driver = driver(&lab, 1);
    let refused = (0..2048).find(|page| driver.write(page * 4096, &noise(*page)) == Some(IOERR));
    assert!(refused.is_some_and(|page| page > 256));
    assert_eq!(driver.read(0, 4096).unwrap(), noise(0));
}

#[test]
fn indirect_descriptors_carry_as_much_as_announced() {
    let lab = lab();
    let mut driver = driver(&lab, 1);
    let bytes: Vec<u8> = (0..126).flat_map(noise).collect();
    driver.fill(DATA, &bytes);
    let list = DATA + MIB;
    driver.put(header_of(0, 0), request_header(OUT, 0));
    driver.put(list, descriptor(header_of(0, 0), 16, NEXT, 1));
    for slot in 1..=126 {
        let data = DATA + u64::from(slot - 1) * 4096;
        let place = list + 16 * u64::from(slot);
        driver.put(place, descriptor(data, 4096, NEXT, slot + 1));
    }
    driver.put(list + 16 * 127, descriptor(status_of(0, 0), 1, WRITABLE, 0));
    driver.descriptor(0, 5, descriptor(list, 16 * 128, INDIRECT, 0));
    driver.offer(0, 5);
    driver.kick(0);
    assert_eq!(driver.next_used(0), Some((5, 1)));
    assert_eq!(driver.bytes(status_of(0, 0), 1), [OK]);
    assert_eq!(driver.read(0, 126 * 4096).unwrap(), bytes);
}

#[test]
fn a_guest_is_interrupted_when_it_asked_for_that() {
    let lab = lab();
    let mut driver = driver(&lab, 1);
    driver.settle();
    // One for the start, one for the new bell: the last server may have died before it rang.
    assert!(driver.calls(0) >= 1);
    for slot in 0..4_u16 {
        driver.request(0, 4 * slot, IN, 0, (DATA, 4096));
    }
    // `used_event`: not before the fourth.
    driver.put(
        common::driver::available_of(0) + 4 + 2 * u64::from(SIZE),
        3_u16.to_le_bytes(),
    );
    for slot in 0..4_u16 {
        driver.offer(0, 4 * slot);
        driver.kick(0);
        driver.next_used(0).unwrap();
    }
    assert_eq!(driver.calls(0), 1);
}

#[test]
fn queues_are_served_side_by_side() {
    let lab = lab();
    let mut driver = driver(&lab, 16);
    for queue in 0..16_u16 {
        let data = DATA + u64::from(queue) * 4096;
        driver.fill(data, &noise(queue.into()));
        driver.submit(queue, 0, OUT, u64::from(queue) * 8, (data, 4096));
    }
    for queue in 0..16_u16 {
        assert_eq!(driver.next_used(queue), Some((0, 1)));
        let page = u64::from(queue);
        assert_eq!(driver.read(page * 4096, 4096).unwrap(), noise(page));
        // Reading moved on in queue 0 only.
        assert_eq!(driver.bytes(status_of(queue, 0), 1), [OK]);
    }
}

#[test]
fn no_queue_keeps_another_waiting() {
    let lab = lab();
    let mut driver = Driver::connect(&lab.socket("a.vhost"));
    driver.negotiate(USUAL);
    driver.share();
    for queue in 0..2 {
        driver.start(queue, 0);
    }
    // Queue 1 has far more than a turn's work. The request of queue 0 stores the page that queue
    // 1's used index lies in: a picture of how far it was when queue 0 had its turn.
    driver.request(1, 0, OUT, 0, (DATA, 4096));
    for _ in 0..SIZE {
        driver.offer(1, 0);
    }
    driver.request(0, 0, OUT, 8, (used_of(1), 4096));
    driver.offer(0, 0);
    driver.settle();
    // Both in one piece: the second has arrived when the first is served.
    let both = [1, 0].map(|queue| message(SET_VRING_ENABLE, &state(queue, 1)));
    driver.send(&both.concat(), &[]).unwrap();
    assert_eq!(driver.next_used(0), Some((0, 1)));
    while driver.used(1) != SIZE {
        thread::sleep(Duration::from_millis(1));
    }
    let picture = lab.nbd("a").read(4096, 4096).unwrap();
    assert_eq!(picture[2..4], 64_u16.to_le_bytes());
}

#[test]
fn what_was_not_used_is_served_by_the_next_server() {
    let mut lab = lab();
    let mut driver = driver(&lab, 1);
    assert_eq!(driver.write(0, &noise(0)), Some(OK));
    lab = {
        let lab = lab.reopen();
        lab.add("a", 64 * MIB);
        lab
    };
    driver.wait_for_the_end();
    // The guest goes on meanwhile.
    driver.fill(DATA, &noise(1));
    driver.request(0, 3, OUT, 8, (DATA, 4096));
    driver.offer(0, 3);
    let mut next = Driver::with_memory(&lab.socket("a.vhost"), driver.file.try_clone().unwrap());
    next.negotiate(USUAL);
    next.share();
    let used = driver.used(0);
    assert_eq!(used, 1);
    next.start(0, used);
    next.enable(0, true);
    assert_eq!(next.next_used(0), Some((3, 1)));
    assert!(next.calls(0) >= 1);
    assert_eq!(
        lab.nbd("a").read(0, 8192).unwrap(),
        [noise(0), noise(1)].concat()
    );
}

#[test]
fn a_queue_stops_where_it_is_and_goes_on_from_there() {
    let lab = lab();
    let mut driver = driver(&lab, 1);
    assert_eq!(driver.write(0, &noise(0)), Some(OK));
    let base = driver.ask(GET_VRING_BASE, &state(0, 0));
    assert_eq!(base, state(0, 1));
    driver.submit(0, 0, IN, 0, (DATA, 4096));
    driver.settle();
    assert_eq!(driver.used(0), 1);
    driver.start(0, 1);
    driver.set_available(0, 2);
    assert_eq!(driver.next_used(0), Some((0, 4097)));
}

#[test]
fn memory_can_be_exchanged_under_a_queue_in_use() {
    let lab = lab();
    let mut driver = driver(&lab, 1);
    for page in 0..50 {
        assert_eq!(driver.write(page * 4096, &noise(page)), Some(OK));
        // The same memory in two pieces, and in one again.
        let file = driver.file.try_clone().unwrap();
        let half = MEMORY / 2;
        let halves = [
            (GUEST + half, half, QEMU + half, half),
            (GUEST, half, QEMU, 0),
        ];
        driver.share_as(&file, &halves);
        assert_eq!(driver.read(page * 4096, 4096).unwrap(), noise(page));
        driver.share();
    }
}

#[test]
fn without_protocol_features_a_queue_starts_by_itself() {
    let lab = lab();
    let mut driver = Driver::connect(&lab.socket("a.vhost"));
    driver.negotiate(VERSION_1);
    driver.share();
    driver.start(0, 0);
    assert_eq!(driver.write(0, &noise(0)), Some(OK));
    assert_eq!(driver.read(0, 4096).unwrap(), noise(0));
}

#[test]
fn one_connection_at_a_time() {
    let lab = lab();
    let mut first = driver(&lab, 1);
    assert_eq!(first.write(0, &noise(0)), Some(OK));
    let second = Driver::connect(&lab.socket("a.vhost"));
    second.wait_for_the_end();
    assert_eq!(first.read(0, 4096).unwrap(), noise(0));
    drop(first);
    let mut third = driver(&lab, 1);
    assert_eq!(third.read(0, 4096).unwrap(), noise(0));
}

#[test]
fn a_server_that_leaves_serves_what_is_available() {
    let lab = lab();
    let mut driver = driver(&lab, 1);
    driver.settle();
    for slot in 0..64_u16 {
        let data = DATA + u64::from(slot) * 4096;
        driver.fill(data, &noise(slot.into()));
        driver.request(0, 3 * slot, OUT, u64::from(slot) * 8, (data, 4096));
        driver.offer(0, 3 * slot);
    }
    // No kick: nobody looks before the server is told to leave.
    lab.server.shutdown(Duration::from_secs(10));
    assert_eq!(driver.used(0), 64);
    driver.wait_for_the_end();
}
