// SPDX-License-Identifier: GPL-2.0-or-later
use std::time::Instant;

use kzt_store::{PAGE_SIZE, Page};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::chain::{Malformed, Request, Status, field};
use super::config::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};
use crate::client::{Client, Membership};
use crate::connection::{End, Peer};
use crate::device::{Device, pages, strides};
use crate::histogram::Histogram;

/// The disk's serial number, the same for every client: its guest has no other such disk.
const SERIAL: &[u8] = b"kztswap0";
const _: () = assert!(SERIAL.len() <= VIRTIO_BLK_ID_BYTES as usize);

/// Bytes of a range to be discarded or zeroed: sector, number of sectors, flags.
const RANGE: usize = 16;

/// Carries out requests on a client's swap device.
pub(super) struct Service<'a> {
    client: &'a Client,
    peer: &'a Peer,
    device: Device<'a>,
    /// A page on its way into the guest's memory.
    outgoing: Vec<u8>,
}

/// What was done for a request.
pub(super) struct Done {
    /// Bytes written to its memory, for the used ring.
    pub(super) written: u32,
    /// What it counts for in a queue's turn: pages, and at least one.
    pub(super) work: u64,
}

impl<'a> Service<'a> {
    pub(super) fn new(membership: &'a Membership<'_>) -> Self {
        let client = membership.client();
        Self {
            client,
            peer: &membership.peer,
            device: Device::new(&client.pool),
            outgoing: Vec::with_capacity(PAGE_SIZE),
        }
    }

    /// Carries a request out, up to its status. Once this returns, what it wrote is committed.
    pub(super) fn serve(&mut self, mut request: Request<'_>) -> Result<Done, End> {
        if self.peer.abandoned() {
            return Err(End::Abandoned);
        }
        let begin = Instant::now();
        let room = request.output.left();
        let bytes = room.max(request.input.left());
        let (status, histogram) = match request.operation {
            VIRTIO_BLK_T_IN => (self.read(&mut request)?, Some(&self.client.latency.get)),
            VIRTIO_BLK_T_OUT => (self.write(&mut request)?, Some(&self.client.latency.put)),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                (self.ranges(&mut request)?, Some(&self.client.latency.flush))
            }
            // What was used is committed to the arena: there is nothing left to flush.
            VIRTIO_BLK_T_FLUSH => (Status::Ok, None),
            VIRTIO_BLK_T_GET_ID => (identify(&mut request)?, None),
            _ => (Status::Unsupported, None),
        };
        request.conclude(status)?;
        if let Some(histogram) = histogram {
            Histogram::record(histogram, begin.elapsed(), 1);
        }
        let written = room - request.output.left() + 1;
        Ok(Done {
            written: u32::try_from(written).unwrap_or(u32::MAX),
            work: bytes.div_ceil(PAGE_SIZE as u64).max(1),
        })
    }

    fn read(&mut self, request: &mut Request<'_>) -> Result<Status, End> {
        let length = request.output.left();
        let Some(offset) = self.place(request.sector, length) else {
            return Ok(Status::IoError);
        };
        for (index, within) in pages(offset, length) {
            let start = u64::from(index) * PAGE_SIZE as u64 + within.start as u64;
            let length = u32::try_from(within.len()).unwrap_or(0);
            self.outgoing.clear();
            if let Err(error) = self.device.read(start, length, &mut self.outgoing) {
                let log = &self.client.log;
                log.warn(format_args!("read at {start} failed: {error:?}"));
                return Ok(Status::IoError);
            }
            request.output.write(&self.outgoing)?;
        }
        Ok(Status::Ok)
    }

    fn write(&mut self, request: &mut Request<'_>) -> Result<Status, End> {
        let length = request.input.left();
        let Some(offset) = self.place(request.sector, length) else {
            return Ok(Status::IoError);
        };
        for (index, within) in pages(offset, length) {
            let start = u64::from(index) * PAGE_SIZE as u64 + within.start as u64;
            // The guest may write to the page while it is on its way: the codec sees this copy.
            let mut page: Page = [0; PAGE_SIZE];
            let part = page.get_mut(..within.len()).unwrap_or_default();
            request.input.read(part)?;
            if self.device.write(start, part).is_err() {
                return Ok(Status::IoError);
            }
        }
        Ok(Status::Ok)
    }

    fn ranges(&mut self, request: &mut Request<'_>) -> Result<Status, End> {
        let length = request.input.left();
        let count = length / RANGE as u64;
        if length % RANGE as u64 != 0 || count > MAX_RANGES.into() {
            return Ok(Status::IoError);
        }
        for _ in 0..count {
            let mut range = [0; RANGE];
            request.input.read(&mut range)?;
            let [low, high, sectors, flags] =
                [0, 4, 8, 12].map(|at| u32::from_le_bytes(field(&range, at)));
            let sector = u64::from(high) << 32 | u64::from(low);
            let discards = request.operation == VIRTIO_BLK_T_DISCARD;
            let known = if discards {
                0
            } else {
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
            };
            if flags & !known != 0 {
                return Ok(Status::Unsupported);
            }
            let length = u64::from(sectors) * u64::from(SECTOR);
            let place = self.place(sector, length);
            let Some(offset) = place.filter(|_| sectors <= MAX_RANGE_SECTORS) else {
                return Ok(Status::IoError);
            };
            for (offset, length) in strides(offset, length) {
                if self.peer.abandoned() {
                    return Err(End::Abandoned);
                }
                let done = if discards {
                    self.device.trim(offset, length);
                    Ok(())
                } else if flags == 0 {
                    self.device.write_zeroes(offset, length)
                } else {
                    self.device.punch(offset, length)
                };
                if done.is_err() {
                    return Ok(Status::IoError);
                }
            }
        }
        Ok(Status::Ok)
    }

    /// Where a range begins, in bytes, if it consists of sectors and lies on the device.
    fn place(&self, sector: u64, length: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR.into())?;
        let end = offset.checked_add(length)?;
        (length % u64::from(SECTOR) == 0 && end <= self.client.size).then_some(offset)
    }
}

fn identify(request: &mut Request<'_>) -> Result<Status, Malformed> {
    let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
    if let Some(start) = id.get_mut(..SERIAL.len()) {
        start.copy_from_slice(SERIAL);
    }
    let room = usize::try_from(request.output.left()).unwrap_or(usize::MAX);
    request
        .output
        .write(id.get(..room.min(id.len())).unwrap_or_default())?;
    Ok(Status::Ok)
}
