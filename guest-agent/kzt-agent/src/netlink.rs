// SPDX-License-Identifier: GPL-2.0-or-later
//! Generic netlink, as much as it takes to ask one family for something and hear whether it did.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socket_with,
};

const MAX_MESSAGE: usize = 512;
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NESTED: u16 = 1 << 15;

const CONTROLLER: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// A connection to one family of the kernel's.
pub(crate) struct Netlink {
    socket: OwnedFd,
    family: u16,
    version: u8,
    sequence: u32,
}

/// A request's attributes.
pub(crate) struct Message {
    bytes: [u8; MAX_MESSAGE],
    length: usize,
}

impl Netlink {
    /// Raises `NOENT` if the kernel has no such family: its module is missing.
    pub(crate) fn open(name: &str, version: u8) -> Result<Self, Errno> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )?;
        net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        let mut controller = Self {
            socket,
            family: CONTROLLER,
            version: 1,
            sequence: 0,
        };
        let mut message = Message::new();
        message.attribute(CTRL_ATTR_FAMILY_NAME, |value| {
            value.extend(name.as_bytes());
            value.extend(&[0]);
        });
        let family = controller.ask(CTRL_CMD_GETFAMILY, message)?;
        Ok(Self {
            family: family.ok_or(Errno::NOENT)?,
            version,
            ..controller
        })
    }

    /// Has the family do something; the error is the kernel's.
    pub(crate) fn request(&mut self, command: u8, message: Message) -> Result<(), Errno> {
        self.ask(command, message).map(drop)
    }

    /// Sends a request and reads up to its acknowledgement. Returns the family id among what the
    /// kernel said before, if there was one.
    fn ask(&mut self, command: u8, mut message: Message) -> Result<Option<u16>, Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(message.length).unwrap_or(u32::MAX);
        let header = length
            .to_ne_bytes()
            .into_iter()
            .chain(self.family.to_ne_bytes())
            .chain((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes())
            .chain(self.sequence.to_ne_bytes())
            .chain([0; 4])
            .chain([command, self.version, 0, 0]);
        for (place, byte) in message.bytes.iter_mut().zip(header) {
            *place = byte;
        }
        let bytes = message.bytes.get(..message.length).ok_or(Errno::MSGSIZE)?;
        net::send(&self.socket, bytes, SendFlags::empty())?;
        let mut found = None;
        loop {
            let mut buffer = [0; 4096];
            let (_, received) = net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = buffer.get(..received).unwrap_or_default();
            while let Some(length) = field(rest, 0).map(u32::from_ne_bytes) {
                let one = rest.get(..length as usize).ok_or(Errno::BADMSG)?;
                let kind = u16::from_ne_bytes(field(one, 4).ok_or(Errno::BADMSG)?);
                let sequence = u32::from_ne_bytes(field(one, 8).ok_or(Errno::BADMSG)?);
                if kind == NLMSG_ERROR && sequence == self.sequence {
                    let error = i32::from_ne_bytes(field(one, HEADER).ok_or(Errno::BADMSG)?);
                    return match error {
                        0 => Ok(found),
                        error => Err(Errno::from_raw_os_error(-error)),
                    };
                }
                found = found.or_else(|| family_id(one));
                rest = rest.get(padded(one.len())..).unwrap_or_default();
            }
        }
    }
}

impl Message {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; MAX_MESSAGE],
            length: HEADER + GENERIC_HEADER,
        }
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, |attribute| attribute.extend(&value.to_ne_bytes()));
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, |attribute| attribute.extend(&value.to_ne_bytes()));
    }

    /// An attribute that consists of others.
    pub(crate) fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, content);
    }

    fn attribute(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.length;
        self.extend(&[0; ATTRIBUTE_HEADER]);
        content(self);
        let length = u16::try_from(self.length - start).unwrap_or(u16::MAX);
        let header = length.to_ne_bytes().into_iter().chain(kind.to_ne_bytes());
        let place = self.bytes.iter_mut().skip(start);
        for (place, byte) in place.zip(header) {
            *place = byte;
        }
        self.length = padded(self.length);
    }

    /// A message that outgrows its place is refused when it is sent.
    fn extend(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
        }
        self.length = end;
    }
}

const fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn family_id(message: &[u8]) -> Option<u16> {
    let mut rest = message.get(HEADER + GENERIC_HEADER..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(field(rest, 0)?));
        let kind = u16::from_ne_bytes(field(rest, 2)?);
        if kind == CTRL_ATTR_FAMILY_ID {
            return field(rest, ATTRIBUTE_HEADER).map(u16::from_ne_bytes);
        }
        rest = rest.get(padded(length.max(ATTRIBUTE_HEADER))..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_its_own_controller() {
        let netlink = Netlink::open("nlctrl", 2).unwrap();
        assert_eq!(netlink.family, CONTROLLER);
    }

    #[test]
    fn a_family_that_is_not_there_is_told() {
        assert_eq!(Netlink::open("kzt-none", 1).err(), Some(Errno::NOENT));
    }

    #[test]
    fn attributes_nest_and_are_padded() {
        let mut message = Message::new();
        message.nested(7, |list| list.nested(1, |item| item.u32(1, 0x0102_0304)));
        let attributes = &message.bytes[HEADER + GENERIC_HEADER..message.length];
        let words: Vec<u16> = attributes
            .chunks(2)
            .map(|word| u16::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words[..6], [16, 7 | NESTED, 12, 1 | NESTED, 8, 1]);
        assert_eq!(attributes.len(), 16);
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        let mut netlink = Netlink::open("nlctrl", 2).unwrap();
        let mut message = Message::new();
        for _ in 0..MAX_MESSAGE {
            message.u64(1, 1);
        }
        assert_eq!(netlink.request(3, message), Err(Errno::MSGSIZE));
    }
}
