// SPDX-License-Identifier: GPL-2.0-or-later
//! The kernel's network block device, which takes a socket end and speaks NBD on it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use kzt_wire::nbd::{BLOCK_SIZE, Device};
use rustix::io::Errno;

use crate::netlink::{Message, Netlink};

/// A day. Until then the kernel holds requests for a relay that is away, rather than failing them.
const DEAD_CONNECTION_SECONDS: u64 = 24 * 60 * 60;

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

const MAX_SECTORS_KB: &str = "/sys/block/nbd0/queue/max_sectors_kb";
const SCHEDULER: &str = "/sys/block/nbd0/queue/scheduler";

mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const RECONFIGURE: u8 = 3;
}

mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const SOCK_ITEM: u16 = 1;
    pub(super) const SOCK_FD: u16 = 1;
}

/// `/dev/nbd0`.
pub(crate) struct BlockDevice {
    netlink: Netlink,
    timeout: u64,
    /// It has a connection or had one; it is not given up while it may be swapped to.
    configured: bool,
}

impl BlockDevice {
    /// `timeout`: seconds until the kernel gives up a connection on which a request is not answered,
    /// and sends all that is unanswered anew on the next one.
    /// `max_write`: longest write that the kernel may send.
    pub(crate) fn open(timeout: u64, max_write: usize) -> io::Result<Self> {
        let netlink = Netlink::open(FAMILY, VERSION)?;
        let wanted = (max_write >> 10).to_string();
        // To write these waits until no request is in flight, for ever if they wait for this process:
        // that is for the first agent only, before anybody uses the device.
        if fs::read_to_string(MAX_SECTORS_KB)?.trim_end() != wanted {
            fs::write(MAX_SECTORS_KB, wanted)?;
        }
        // With a scheduler a request that was sent in part, as a signal came in between, goes on with
        // another tag than its header has told, and its reply is taken for somebody else's.
        if !fs::read_to_string(SCHEDULER)?.contains("[none]") {
            fs::write(SCHEDULER, "none")?;
        }
        Ok(Self {
            netlink,
            timeout,
            configured: false,
        })
    }

    /// Whether it is known to have had a connection: then another one replaces that.
    pub(crate) const fn is_configured(&self) -> bool {
        self.configured
    }

    /// Gives the kernel a connection on which the transmission phase has begun. It takes none, and
    /// nothing is said of that, while it does not know that the one before is gone, or if it turns out
    /// to be configured.
    pub(crate) fn attach(&mut self, device: Device, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        if !self.configured {
            let mut message = connection(socket);
            message.u64(attribute::SIZE_BYTES, device.size);
            message.u64(attribute::BLOCK_SIZE_BYTES, BLOCK_SIZE.into());
            message.u64(attribute::SERVER_FLAGS, device.flags.into());
            message.u64(attribute::TIMEOUT, self.timeout);
            message.u64(attribute::DEAD_CONN_TIMEOUT, DEAD_CONNECTION_SECONDS);
            return match self.netlink.request(command::CONNECT, message) {
                // Another agent's, before this one began.
                Err(Errno::BUSY) => {
                    self.configured = true;
                    Ok(())
                }
                result => {
                    self.configured = result.is_ok();
                    result
                }
            };
        }
        let result = self
            .netlink
            .request(command::RECONFIGURE, connection(socket));
        // It was only open, or has been taken apart since: all of its receivers have ended then.
        if result == Err(Errno::INVAL) {
            self.configured = false;
        }
        result
    }
}

fn connection(socket: BorrowedFd<'_>) -> Message {
    let descriptor = socket.as_raw_fd().unsigned_abs();
    let mut message = Message::new();
    message.u32(attribute::INDEX, 0);
    message.nested(attribute::SOCKETS, |sockets| {
        sockets.nested(attribute::SOCK_ITEM, |item| {
            item.u32(attribute::SOCK_FD, descriptor);
        });
    });
    message
}
