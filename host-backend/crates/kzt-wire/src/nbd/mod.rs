// SPDX-License-Identifier: GPL-2.0-or-later
//! NBD, the subset described byte by byte in `docs/protocol.md`.
//!
//! A connection is a [`Handshake`] that ends in a [`Session`], then a [`Decoder`] that cuts the
//! stream into events; [`reply`] encodes the answers. [`ClientHandshake`] is the other end's.

mod client;
mod constants;
mod decoder;
mod errno;
mod handshake;
mod reader;
pub mod reply;
mod request;
mod violation;

pub use client::{ClientHandshake, ClientStep, Device, MIN_REPLY_INPUT, OPENING_LENGTH, Refusal};
pub use constants::{BLOCK_SIZE, EXPORT_NAME, MAX_OPTION_LENGTH, MAX_OPTIONS, MAX_PAYLOAD};
pub use decoder::{Decoder, Event, MIN_INPUT};
pub use errno::Errno;
pub use handshake::{GREETING_LENGTH, Handshake, Progress, Session};
pub use request::{Command, HEADER_LENGTH, Request, flags};
pub use violation::Violation;
