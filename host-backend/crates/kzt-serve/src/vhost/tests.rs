// SPDX-License-Identifier: GPL-2.0-or-later
//! A fuzz target: chains as drivers make them, with something in them that is not.
use std::os::unix::net::UnixStream;

use kzt_store::{Config, Store};
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::Chain;
use super::eventfd::EventFd;
use super::ring::{Ring, place};
use super::service::Service;
use crate::client::{Client, Purpose};
use crate::connection::{End, Peer};

/// Two regions with a gap, the queue in the first.
const FIRST: u64 = 0x1000;
const SECOND: u64 = 0x6000;
const REGION: u64 = 0x4000;
const TABLE: u64 = FIRST;
const AVAILABLE: u64 = FIRST + 0x200;
const USED: u64 = FIRST + 0x300;
/// Where indirect tables and headers are put.
const LIST: u64 = FIRST + 0x400;
const HEADER: u64 = FIRST + 0x600;
const SIZE: u16 = 16;
const DEVICE: u64 = 16 * 4096;

/// Executions, each of one chain: more by `KZT_FUZZ_EXECUTIONS`.
fn executions() -> u64 {
    std::env::var("KZT_FUZZ_EXECUTIONS").map_or(100_000, |count| count.parse().unwrap())
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next() % count == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.next() % choices.len() as u64).unwrap()]
    }

    fn address(&mut self) -> u64 {
        let inside = self.next() % REGION;
        self.of(&[
            SECOND,
            SECOND,
            SECOND + inside,
            FIRST + inside,
            HEADER,
            LIST,
            TABLE,
            USED,
            FIRST + REGION - 16,
            FIRST + REGION,
            SECOND - 1,
            SECOND + REGION - 4096,
            0,
            u64::MAX,
            u64::MAX - 4095,
        ])
    }

    fn length(&mut self) -> u32 {
        self.of(&[
            4096,
            4096,
            512,
            16,
            0,
            1,
            15,
            17,
            20,
            8192,
            1 << 16,
            u32::MAX,
        ])
    }

    /// A request as drivers make it, until something in it is not.
    fn descriptors(&mut self, operation: u32) -> Vec<[u8; 16]> {
        let data = self.next() % 5;
        let writable = if matches!(operation, 0 | 8) { 2 } else { 0 };
        (0..data + 2)
            .map(|slot| {
                let (mut address, mut length, mut flags, mut next) = match slot {
                    0 => (HEADER, 16, 1, 1),
                    _ if slot == data + 1 => (HEADER + 16, 1, 2, 0),
                    _ => (SECOND + 512 * slot, 4096, 1 | writable, slot + 1),
                };
                if self.one_in(8) {
                    address = self.address();
                }
                if self.one_in(8) {
                    length = self.length();
                }
                if self.one_in(24) {
                    flags = self.next() % 8;
                }
                if self.one_in(24) {
                    next = self.next() % 18;
                }
                descriptor(address, length, flags, next)
            })
            .collect()
    }
}

fn descriptor(address: u64, length: u32, flags: u64, next: u64) -> [u8; 16] {
    let high = u64::from(length) | flags << 32 | next << 48;
    (u128::from(address) | u128::from(high) << 64).to_le_bytes()
}

/// Writes a chain that begins at descriptor 0.
fn write_chain(random: &mut Random, memory: &GuestMemoryMmap) {
    let operation = random.of(&[0, 1, 1, 1, 4, 8, 11, 13, 2, u32::MAX]);
    let sector = random.of(&[0, 8, 120, 127, 128, 1 << 40, u64::MAX]);
    let header = u128::from(sector) << 64 | u128::from(operation);
    memory
        .write_obj(header.to_le_bytes(), GuestAddress(HEADER))
        .unwrap();
    // What is discarded, if that is asked for.
    let range = u128::from(random.of(&[0, 8, 3, 128, u64::MAX]))
        | u128::from(random.of(&[8, 1, 0, 1 << 21, u32::MAX])) << 64
        | u128::from(random.of(&[0_u32, 0, 1, 2])) << 96;
    memory
        .write_obj(range.to_le_bytes(), GuestAddress(SECOND + 512))
        .unwrap();
    let chain = random.descriptors(operation);
    let indirect = random.one_in(4);
    let start = if indirect { LIST } else { TABLE };
    for (slot, descriptor) in chain.iter().enumerate() {
        let address = GuestAddress(start + 16 * slot as u64);
        memory.write_obj(*descriptor, address).unwrap();
    }
    if indirect {
        let mut length = 16 * u32::try_from(chain.len()).unwrap();
        if random.one_in(8) {
            length = random.length();
        }
        let list = descriptor(LIST, length, 4 | random.of(&[0, 0, 0, 1, 2]), 1);
        memory.write_obj(list, GuestAddress(TABLE)).unwrap();
    }
}

/// Whatever a chain is, it is used once, or refused and not used at all.
#[test]
fn any_chain_is_served_or_ends_the_connection() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let config = Config::new(folder.path().join("arena"), 8 << 20);
    let (store, _) = Store::open(&config).unwrap();
    let client = Client::new(DEVICE, store.client("a").unwrap()).unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let membership = client.admit(Purpose::Pages, Peer::new(socket)).unwrap();
    let mut service = Service::new(&membership);
    let mut chain = Chain::default();
    let regions = [FIRST, SECOND].map(|start| (GuestAddress(start), 0x4000));
    let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
    let places = [TABLE, AVAILABLE, USED].map(GuestAddress);
    let mut random = Random(0x5eed);
    let kick = EventFd::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap().into()).unwrap();
    let mut ring = Ring::new().unwrap();
    let queue = ring.shape().unwrap();
    queue.try_set_size(SIZE).unwrap();
    place(queue, places).unwrap();
    ring.start(&memory, kick, true).unwrap();
    ring.enable(true);
    let (mut served, mut offered) = (0_u64, 0_u16);
    for _ in 0..executions() {
        write_chain(&mut random, &memory);
        // Chains may write to the rings: what makes this one available comes last.
        let slot = AVAILABLE + 4 + 2 * u64::from(offered % SIZE);
        memory.write_obj(0_u16, GuestAddress(slot)).unwrap();
        offered = offered.wrapping_add(1);
        memory
            .write_obj(offered, GuestAddress(AVAILABLE + 2))
            .unwrap();
        match ring.serve(&memory, &mut service, &mut chain, 1, u64::MAX) {
            Ok(busy) => {
                assert!(busy);
                served += 1;
                let used: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
                assert_eq!(u64::from(used), served % (1 << 16));
            }
            Err(End::Malformed(_)) => {}
            Err(end) => panic!("{end}"),
        }
        assert!(client.pool.stats().pages <= DEVICE / 4096);
    }
    println!("{served} of {} served", executions()); // `--nocapture` shows it
    assert!(served > executions() / 10);
    assert!(served < executions() / 10 * 9);
    assert_eq!(client.pool.stats().crc_errors, 0);
}
