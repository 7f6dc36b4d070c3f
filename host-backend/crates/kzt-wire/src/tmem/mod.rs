// SPDX-License-Identifier: GPL-2.0-or-later
//! The tmem protocol: what a guest's kernel asks of the store, in frames on a virtio-serial port
//! that are described byte by byte in `docs/protocol.md`.
//!
//! A request and its reply are a frame each. The stream around them is the one of
//! [`port`](crate::port): it begins anywhere and breaks off anywhere, so that sessions make the
//! beginning, and pages of any process in the guest are its content, so that a HELLO is good only with
//! the nonce of its connection. What is different is who speaks: the guest's kernel makes the frames.
//!
//! The host's [`HostReceiver`] is fed like those of [`port`](crate::port), from a buffer of at
//! least [`MAX_FRAME`] bytes. [`Request::decode`] says what a frame asks for, and [`Reply`] makes
//! the answer.

mod frame;
mod hello;
mod host;
mod reply;
mod request;

pub use crate::framing::{Counters, HELLO_INTERVAL, STALL, Step};
pub use frame::{Damage, Frame, Header, flags, op};
pub use frame::{HEADER_LENGTH, MAX_FRAME, MAX_PAGES, MAX_PAYLOAD, PAGE};
pub use hello::{Hello, RESET_LENGTH, VERSION, WELCOME_LENGTH, reset};
pub use host::{HostEvent, HostReceiver};
pub use reply::{Reply, reply};
pub use request::{Refusal, Request, Run};
