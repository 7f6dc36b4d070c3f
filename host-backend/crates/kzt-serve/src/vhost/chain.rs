// SPDX-License-Identifier: GPL-2.0-or-later
use std::fmt;
use std::ops::Range;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::config::MAX_SEGMENTS;

/// A request's memory: its descriptors, copied out of the guest's memory once.
#[derive(Default)]
pub(super) struct Chain {
    segments: Vec<Segment>,
    /// How many of them come first and are for the device to read.
    readable: usize,
}

#[derive(Clone, Copy)]
struct Segment {
    address: GuestAddress,
    length: u32,
}

/// What a driver has made available and is no request. It ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// The available index is ahead of the queue's size.
    Index,
    /// The chain does not end: a loop, or it leaves its table or the guest's memory.
    Unfinished,
    /// More descriptors than the device said it takes.
    TooLong,
    /// One to be read comes after one to be written.
    Order,
    /// No room for a header or a status.
    Short,
    /// A buffer or the queue lies outside the guest's memory.
    OutsideMemory,
}

/// How a request went, as the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

/// A request's header and what comes with it.
pub(super) struct Request<'a> {
    pub(super) operation: u32,
    pub(super) sector: u64,
    /// What the driver has to say after the header.
    pub(super) input: Span<'a>,
    /// Room for what it wants to be told.
    pub(super) output: Span<'a>,
    status: GuestAddress,
}

/// Bytes of the guest's memory, taken one after the other.
pub(super) struct Span<'a> {
    memory: &'a GuestMemoryMmap,
    segments: &'a [Segment],
    /// Bytes taken off the first segment.
    taken: u32,
    left: u64,
}

impl Chain {
    /// Takes another chain.
    pub(super) fn load(
        &mut self,
        descriptors: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<(), Malformed> {
        self.segments.clear();
        self.readable = 0;
        // The iterator ends without a word at whatever it cannot follow.
        let mut finished = false;
        for descriptor in descriptors {
            if self.segments.len() == usize::from(MAX_SEGMENTS) + 2 {
                return Err(Malformed::TooLong);
            }
            if !descriptor.is_write_only() {
                if self.readable < self.segments.len() {
                    return Err(Malformed::Order);
                }
                self.readable += 1;
            }
            self.segments.push(Segment {
                address: descriptor.addr(),
                length: descriptor.len(),
            });
            finished = !descriptor.has_next();
        }
        finished.then_some(()).ok_or(Malformed::Unfinished)
    }

    /// The request that the chain is.
    pub(super) fn request<'a>(
        &'a self,
        memory: &'a GuestMemoryMmap,
    ) -> Result<Request<'a>, Malformed> {
        let (readable, writable) = self
            .segments
            .split_at_checked(self.readable)
            .unwrap_or_default();
        let mut input = Span::new(memory, readable);
        let mut output = Span::new(memory, writable);
        let last = writable.iter().rfind(|segment| segment.length > 0);
        let status = last.ok_or(Malformed::Short)?;
        let status = status
            .address
            .checked_add(u64::from(status.length) - 1)
            .ok_or(Malformed::OutsideMemory)?;
        output.left -= 1;
        let mut header = [0; 16];
        input.read(&mut header)?;
        let [operation, _, low, high] =
            [0, 4, 8, 12].map(|at| u32::from_le_bytes(field(&header, at)));
        Ok(Request {
            operation,
            sector: u64::from(high) << 32 | u64::from(low),
            input,
            output,
            status,
        })
    }
}

impl Request<'_> {
    /// Tells the driver how it went.
    pub(super) fn conclude(&self, status: Status) -> Result<(), Malformed> {
        let code = match status {
            Status::Ok => VIRTIO_BLK_S_OK,
            Status::IoError => VIRTIO_BLK_S_IOERR,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        let [code, ..] = code.to_le_bytes();
        self.output
            .memory
            .write_slice(&[code], self.status)
            .map_err(|_| Malformed::OutsideMemory)
    }
}

impl<'a> Span<'a> {
    fn new(memory: &'a GuestMemoryMmap, segments: &'a [Segment]) -> Self {
        Self {
            memory,
            segments,
            taken: 0,
            left: segments.iter().map(|each| u64::from(each.length)).sum(),
        }
    }

    /// Bytes not taken yet.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Copies the next bytes out of the guest's memory.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<(), Malformed> {
        let memory = self.memory;
        self.pass(buffer.len(), |address, range| {
            let part = buffer.get_mut(range).unwrap_or_default();
            memory
                .read_slice(part, address)
                .map_err(|_| Malformed::OutsideMemory)
        })
    }

    /// Copies bytes to the next ones of the guest's memory.
    pub(super) fn write(&mut self, buffer: &[u8]) -> Result<(), Malformed> {
        let memory = self.memory;
        self.pass(buffer.len(), |address, range| {
            let part = buffer.get(range).unwrap_or_default();
            memory
                .write_slice(part, address)
                .map_err(|_| Malformed::OutsideMemory)
        })
    }

    /// Takes `length` bytes; `each` is given the address of every piece and its place among them.
    fn pass(
        &mut self,
        length: usize,
        mut each: impl FnMut(GuestAddress, Range<usize>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        self.left = self
            .left
            .checked_sub(length as u64)
            .ok_or(Malformed::Short)?;
        let mut done = 0;
        while done < length {
            let [first, rest @ ..] = self.segments else {
                return Err(Malformed::Short);
            };
            let wanted = u32::try_from(length - done).unwrap_or(u32::MAX);
            let piece = wanted.min(first.length - self.taken);
            if piece == 0 {
                (self.segments, self.taken) = (rest, 0);
                continue;
            }
            let address = first
                .address
                .checked_add(self.taken.into())
                .ok_or(Malformed::OutsideMemory)?;
            self.taken += piece;
            let end = done + piece as usize;
            each(address, done..end)?;
            done = end;
        }
        Ok(())
    }
}

/// Four bytes of a structure, zeroes beyond its end.
pub(super) fn field(bytes: &[u8], at: usize) -> [u8; 4] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().unwrap_or_default()
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Index => "the available index is ahead of the queue",
            Self::Unfinished => "a descriptor chain does not end",
            Self::TooLong => "a descriptor chain is too long",
            Self::Order => "a readable descriptor follows a writable one",
            Self::Short => "a request has no room for its header, data or status",
            Self::OutsideMemory => "a descriptor points outside the guest's memory",
        })
    }
}
