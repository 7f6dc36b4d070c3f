// SPDX-License-Identifier: GPL-2.0-or-later
use std::mem::offset_of;

use kzt_store::PAGE_SIZE;
use vhost::vhost_user::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Queues of a device. Each takes two of the daemon's file descriptors.
pub(super) const MAX_QUEUES: u16 = 16;
/// Entries of a queue: QEMU's own limit.
pub(super) const MAX_QUEUE_SIZE: u16 = 1024;
/// Data segments of a request: what fits, with header and status, into the 128 entries of the
/// queue that QEMU makes by default.
pub(super) const MAX_SEGMENTS: u16 = 126;
/// Bytes that virtio-blk counts by.
pub(super) const SECTOR: u32 = 512;
/// Ranges of one request that discards or zeroes.
pub(super) const MAX_RANGES: u32 = 64;
/// Sectors of such a range: a gibibyte.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// What the device can do.
pub(super) const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_TOPOLOGY
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_MQ
    | 1 << VIRTIO_BLK_F_DISCARD
    | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What it understands of the protocol; the library adds `REPLY_ACK`.
pub(super) const PROTOCOL_FEATURES: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::MQ.union(VhostUserProtocolFeatures::CONFIG);

/// The configuration space of a device of so many bytes.
pub(super) fn space(bytes: u64) -> [u8; size_of::<virtio_blk_config>()] {
    const PAGE: u32 = 4096;
    const _: () = assert!(PAGE as usize == PAGE_SIZE);
    let mut space = [0; size_of::<virtio_blk_config>()];
    let mut set = |offset: usize, value: &[u8]| {
        if let Some(place) = space.get_mut(offset..offset + value.len()) {
            place.copy_from_slice(value);
        }
    };
    macro_rules! set {
        ($field:ident, $value:expr) => {
            set(offset_of!(virtio_blk_config, $field), &$value.to_le_bytes())
        };
    }
    set!(capacity, (bytes / u64::from(SECTOR)));
    set!(seg_max, u32::from(MAX_SEGMENTS));
    // A driver cannot even ask for less than a page.
    set!(blk_size, PAGE);
    set!(min_io_size, 1_u16);
    set!(opt_io_size, 1_u32);
    set!(num_queues, MAX_QUEUES);
    set!(max_discard_sectors, MAX_RANGE_SECTORS);
    set!(max_discard_seg, MAX_RANGES);
    set!(discard_sector_alignment, (PAGE / SECTOR));
    set!(max_write_zeroes_sectors, MAX_RANGE_SECTORS);
    set!(max_write_zeroes_seg, MAX_RANGES);
    set!(write_zeroes_may_unmap, 1_u8);
    space
}
