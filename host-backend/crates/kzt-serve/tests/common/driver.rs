// SPDX-License-Identifier: GPL-2.0-or-later
//! A vhost-user frontend and a guest's driver in one, built from bytes: it can say what no
//! well-behaved one would.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;

pub const EVENT_IDX: u64 = 1 << 29;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
/// What a driver negotiates unless a test says otherwise.
pub const USUAL: u64 = VERSION_1 | EVENT_IDX | PROTOCOL_FEATURES | 1 << 28 | 1 << 12;

pub const NEXT: u16 = 1;
pub const WRITABLE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// The guest's memory: one region that begins here for the guest, there for QEMU.
pub const GUEST: u64 = 0x10_0000;
pub const QEMU: u64 = 0x7f00_0000_0000;
pub const MEMORY: u64 = 16 << 20;
/// Each queue has so much of it, from the start on; data lies above.
const QUEUE: u64 = 0x1_0000;
pub const DATA: u64 = GUEST + (1 << 20);
/// Entries of a queue.
pub const SIZE: u16 = 256;

pub struct Driver {
    pub socket: UnixStream,
    pub memory: GuestMemoryMmap,
    pub file: File,
    queues: Vec<Queue>,
}

struct Queue {
    kick: OwnedFd,
    call: OwnedFd,
    available: u16,
    used: u16,
}

impl Driver {
    /// Connects; nothing has been said yet.
    pub fn connect(socket: &Path) -> Self {
        Self::with_memory(socket, memfd(MEMORY, SealFlags::SHRINK))
    }

    /// Connects with memory that another driver had before.
    pub fn with_memory(socket: &Path, file: File) -> Self {
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let region = MmapRegion::from_file(offset, MEMORY as usize).unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(GUEST)).unwrap();
        Self {
            socket: UnixStream::connect(socket).unwrap(),
            memory: GuestMemoryMmap::from_regions(vec![region]).unwrap(),
            file,
            queues: Vec::new(),
        }
    }

    /// Connects and sets up so many queues, as QEMU does.
    pub fn ready(socket: &Path, queues: u16) -> Self {
        let mut driver = Self::connect(socket);
        driver.negotiate(USUAL);
        driver.share();
        for index in 0..queues {
            driver.start(index, 0);
            driver.enable(index, true);
        }
        driver
    }

    pub fn negotiate(&mut self, features: u64) {
        self.say(SET_OWNER, &[]);
        self.say(SET_FEATURES, &features.to_le_bytes());
        if features & PROTOCOL_FEATURES != 0 {
            let protocol: u64 = 1 | 1 << 3 | 1 << 9;
            self.say(SET_PROTOCOL_FEATURES, &protocol.to_le_bytes());
        }
    }

    /// Shares the memory.
    pub fn share(&mut self) {
        let file = self.file.try_clone().unwrap();
        self.share_as(&file, &[(GUEST, MEMORY, QEMU, 0)]);
    }

    /// Shares regions of a file, as (guest's address, size, QEMU's address, offset in the file).
    pub fn share_as(&mut self, file: &File, regions: &[(u64, u64, u64, u64)]) {
        let files = vec![file.as_fd(); regions.len()];
        self.say_with(SET_MEM_TABLE, &table(regions), &files);
    }

    /// Sets a queue up, to begin at an index, and starts it.
    pub fn start(&mut self, index: u16, base: u16) {
        self.shape(index, base);
        let kick = self.queues[usize::from(index)].kick.try_clone().unwrap();
        self.ring_by(SET_VRING_KICK, index, &[kick.as_fd()]);
    }

    /// Tells one of a queue's bells.
    pub fn ring_by(&mut self, code: u32, index: u16, bells: &[BorrowedFd<'_>]) {
        self.say_with(code, &u64::from(index).to_le_bytes(), bells);
    }

    /// Sets a queue up, all but its kick, which starts it.
    pub fn shape(&mut self, index: u16, base: u16) {
        self.say(SET_VRING_NUM, &state(index, SIZE.into()));
        self.say(SET_VRING_BASE, &state(index, base.into()));
        let place = QEMU + u64::from(index) * QUEUE;
        self.say(
            SET_VRING_ADDR,
            &addresses(index, [place, place + 0x8000, place + 0x4000]),
        );
        while self.queues.len() <= index.into() {
            self.queues.push(Queue {
                kick: bell(),
                call: bell(),
                available: 0,
                used: 0,
            });
        }
        let queue = &mut self.queues[usize::from(index)];
        queue.available = base;
        queue.used = base;
        let call = queue.call.try_clone().unwrap();
        self.ring_by(SET_VRING_CALL, index, &[call.as_fd()]);
    }

    pub fn enable(&mut self, index: u16, on: bool) {
        self.say(SET_VRING_ENABLE, &state(index, on.into()));
    }

    pub fn say(&mut self, code: u32, payload: &[u8]) {
        self.say_with(code, payload, &[]);
    }

    pub fn say_with(&mut self, code: u32, payload: &[u8], files: &[BorrowedFd<'_>]) {
        // A server that has hung up already is for the test to notice.
        let _ = self.send(&message(code, payload), files);
    }

    pub fn send(&mut self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)));
        }
        let bytes = [IoSlice::new(bytes)];
        sendmsg(&self.socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL)
    }

    /// Asks for an answer and returns its payload.
    pub fn ask(&mut self, code: u32, payload: &[u8]) -> Vec<u8> {
        self.say(code, payload);
        let mut header = [0; 12];
        self.socket.read_exact(&mut header).unwrap();
        assert_eq!(header[..4], code.to_le_bytes());
        let length = u32::from_le_bytes(header[8..].try_into().unwrap());
        let mut answer = vec![0; length as usize];
        self.socket.read_exact(&mut answer).unwrap();
        answer
    }

    /// Returns once all that was said before has been taken in. Only for what is well said.
    pub fn settle(&mut self) {
        self.ask(GET_FEATURES, &[]);
    }

    /// Whether the server has hung up, without waiting.
    pub fn ended(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.socket, &mut [0_u8; 1][..], flags) {
            Ok((length, _)) => length == 0,
            Err(error) => error != rustix::io::Errno::AGAIN,
        }
    }

    /// Waits for the server to hang up; panics if it seems never to do so.
    pub fn wait_for_the_end(&self) {
        let ended = (0..60_000).any(|_| {
            thread::sleep(Duration::from_millis(1));
            self.ended()
        });
        assert!(ended, "the connection lasts");
    }

    pub fn put<const N: usize>(&self, address: u64, bytes: [u8; N]) {
        self.memory
            .write_slice(&bytes, GuestAddress(address))
            .unwrap();
    }

    pub fn fill(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn half(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.bytes(address, 2).try_into().unwrap())
    }

    /// A descriptor in a queue's table.
    pub fn descriptor(&self, queue: u16, slot: u16, descriptor: [u8; 16]) {
        self.put(table_of(queue) + 16 * u64::from(slot), descriptor);
    }

    /// Links descriptors of queue 0, from its first one on: (address, length, flags but [`NEXT`]).
    pub fn link(&self, chain: &[(u64, u32, u16)]) {
        for (slot, &(address, length, flags)) in (0..).zip(chain) {
            let next = usize::from(slot) + 1 < chain.len();
            let flags = if next { flags | NEXT } else { flags };
            let next = if next { slot + 1 } else { 0 };
            self.descriptor(0, slot, descriptor(address, length, flags, next));
        }
    }

    /// Makes the chain that begins with a descriptor available, without a kick.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let ring = available_of(queue);
        let available = &mut self.queues[usize::from(queue)].available;
        let slot = u64::from(*available % SIZE);
        *available = available.wrapping_add(1);
        let index = *available;
        self.put(ring + 4 + 2 * slot, head.to_le_bytes());
        self.set_available(queue, index);
    }

    /// Sets a queue's available index.
    pub fn set_available(&self, queue: u16, index: u16) {
        self.put(available_of(queue) + 2, index.to_le_bytes());
    }

    /// Goes on at an index that all is used up to.
    pub fn resume(&mut self, queue: u16, index: u16) {
        let queue = &mut self.queues[usize::from(queue)];
        queue.available = index;
        queue.used = index;
    }

    pub fn kick(&self, queue: u16) {
        rustix::io::write(&self.queues[usize::from(queue)].kick, &1_u64.to_ne_bytes()).unwrap();
    }

    /// How often the guest was interrupted since this was asked last; waits for the first time.
    pub fn calls(&self, queue: u16) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.queues[usize::from(queue)].call, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    /// Sleeps until the next chain has been used, as a guest does that has nothing else to do.
    pub fn rest(&self, queue: u16) {
        let Queue { call, used, .. } = &self.queues[usize::from(queue)];
        // `used_event`: not before that. The server must not look there before it has used a chain
        // that is not seen here.
        self.put(
            available_of(queue) + 4 + 2 * u64::from(SIZE),
            used.to_le_bytes(),
        );
        fence(Ordering::SeqCst);
        while self.used(queue) == *used {
            poll(&mut [PollFd::new(call, PollFlags::IN)], None).unwrap();
            rustix::io::read(call, &mut [0; 8]).unwrap();
        }
    }

    pub fn used(&self, queue: u16) -> u16 {
        self.half(used_of(queue) + 2)
    }

    /// The next chain that has been used, by its head.
    pub fn poll_used(&mut self, queue: u16) -> Option<u16> {
        let seen = self.queues[usize::from(queue)].used;
        if self.used(queue) == seen {
            return None;
        }
        self.queues[usize::from(queue)].used = seen.wrapping_add(1);
        Some(self.half(used_of(queue) + 4 + 8 * u64::from(seen % SIZE)))
    }

    /// Waits for the next chain to be used: its head and the bytes written; `None` if the server
    /// hangs up instead.
    pub fn next_used(&mut self, queue: u16) -> Option<(u32, u32)> {
        let seen = self.queues[usize::from(queue)].used;
        while self.used(queue) == seen {
            if self.ended() {
                return None;
            }
            thread::sleep(Duration::from_micros(50));
        }
        self.queues[usize::from(queue)].used = seen.wrapping_add(1);
        let entry = self.bytes(used_of(queue) + 4 + 8 * u64::from(seen % SIZE), 8);
        let [id, length] =
            [0, 4].map(|at| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap()));
        Some((id, length))
    }

    /// Writes a request of one data buffer into three descriptors from `slot` on. Its status lies at
    /// the end of the page that the header is in.
    pub fn request(&self, queue: u16, slot: u16, kind: u32, sector: u64, data: (u64, u32)) {
        let header = header_of(queue, slot);
        self.put(header, request_header(kind, sector));
        self.put(status_of(queue, slot), [0xff]);
        let writable = if matches!(kind, IN | GET_ID) {
            WRITABLE
        } else {
            0
        };
        self.descriptor(queue, slot, descriptor(header, 16, NEXT, slot + 1));
        self.descriptor(
            queue,
            slot + 1,
            descriptor(data.0, data.1, NEXT | writable, slot + 2),
        );
        self.descriptor(queue, slot + 2, descriptor(header + 16, 1, WRITABLE, 0));
    }

    /// Makes a request and the driver's kick for it.
    pub fn submit(&mut self, queue: u16, slot: u16, kind: u32, sector: u64, data: (u64, u32)) {
        self.request(queue, slot, kind, sector, data);
        self.offer(queue, slot);
        self.kick(queue);
    }

    /// Carries a request out on queue 0 and returns its status; `None` if the server hangs up.
    pub fn call(&mut self, kind: u32, sector: u64, data: (u64, u32)) -> Option<u8> {
        self.submit(0, 0, kind, sector, data);
        let (head, _) = self.next_used(0)?;
        assert_eq!(head, 0);
        Some(self.bytes(status_of(0, 0), 1)[0])
    }

    /// Stores bytes at a byte offset of the disk.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Option<u8> {
        self.fill(DATA, bytes);
        self.call(OUT, offset / 512, (DATA, bytes.len() as u32))
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Option<Vec<u8>> {
        let status = self.call(IN, offset / 512, (DATA, length))?;
        assert_eq!(status, OK);
        Some(self.bytes(DATA, length as usize))
    }
}

pub fn memfd(size: u64, seals: SealFlags) -> File {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, size).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

pub fn message(code: u32, payload: &[u8]) -> Vec<u8> {
    [code, 1, payload.len() as u32]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(payload.iter().copied())
        .collect()
}

/// An eventfd that nobody has rung.
pub fn bell() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// Regions as for [`Driver::share_as`].
pub fn table(regions: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let mut table = (regions.len() as u64).to_le_bytes().to_vec();
    for &(guest, size, user, offset) in regions {
        for word in [guest, size, user, offset] {
            table.extend(word.to_le_bytes());
        }
    }
    table
}

pub fn state(index: u16, number: u32) -> [u8; 8] {
    (u64::from(number) << 32 | u64::from(index)).to_le_bytes()
}

/// A queue's descriptors, used ring and available ring in QEMU's memory.
pub fn addresses(index: u16, [descriptors, used, available]: [u64; 3]) -> Vec<u8> {
    let mut payload = u64::from(index).to_le_bytes().to_vec();
    for address in [descriptors, used, available, 0] {
        payload.extend(address.to_le_bytes());
    }
    payload
}

pub fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let words = u128::from(address)
        | u128::from(length) << 64
        | u128::from(flags) << 96
        | u128::from(next) << 112;
    words.to_le_bytes()
}

pub fn request_header(kind: u32, sector: u64) -> [u8; 16] {
    (u128::from(sector) << 64 | u128::from(kind)).to_le_bytes()
}

/// A range of a discarding or zeroing request.
pub fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    (u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96).to_le_bytes()
}

pub fn table_of(queue: u16) -> u64 {
    GUEST + u64::from(queue) * QUEUE
}

pub fn available_of(queue: u16) -> u64 {
    table_of(queue) + 0x4000
}

pub fn used_of(queue: u16) -> u64 {
    table_of(queue) + 0x8000
}

/// Where the header of the request in a slot lies; its status comes after it.
pub fn header_of(queue: u16, slot: u16) -> u64 {
    table_of(queue) + 0xa000 + 32 * u64::from(slot)
}

pub fn status_of(queue: u16, slot: u16) -> u64 {
    header_of(queue, slot) + 16
}
