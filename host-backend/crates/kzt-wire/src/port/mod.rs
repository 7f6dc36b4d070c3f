// SPDX-License-Identifier: GPL-2.0-or-later
//! What travels on a guest's virtio-serial ports: a byte stream cut into frames with a session
//! number and a checksum, described byte by byte in `docs/protocol.md`.
//!
//! The stream has no beginning and no end: QEMU keeps the host's socket open when the agent dies,
//! and a new agent starts in the middle of whatever the old one was sending. Sessions make the
//! beginning: the agent draws a random number that is not 0, repeats its HELLO every
//! [`HELLO_INTERVAL`] until it is welcomed, and both sides then number their DATA frames. Whatever
//! is not the next frame of the session ends the session, never the connection.
//!
//! Pages of any process in the guest are what the frames carry, both ways: a page may hold bytes that
//! are a whole HELLO and requests after it, or a WELCOME and replies, which count as soon as something
//! gets out of step. A HELLO is therefore good only with the **nonce** of its connection, which the
//! host draws and tells in a RESET, a WELCOME only with the number that the agent has drawn for its
//! HELLO: no process in the guest knows them.
//!
//! A receiver is fed from a caller's buffer of at least [`MAX_FRAME`] bytes:
//!
//! ```text
//! loop {
//!     let step = receiver.next(&buffer[taken..filled]);
//!     taken += step.taken;
//!     match step.event { Some(event) => …, None => break }   // None: needs more bytes
//! }
//! ```
//!
//! When bytes are left over and nothing has arrived for [`STALL`] ([`AGENT_STALL`] for an agent),
//! its `stalled` is called, once for each such silence.

mod agent;
mod frame;
mod host;
mod reports;
mod sender;

pub use crate::framing::{Counters, HELLO_INTERVAL, STALL, Step};
pub use agent::{AgentEvent, AgentReceiver};
pub use frame::{Damage, Frame, Header, Hello, Kind, Welcome};
pub use frame::{HEADER_LENGTH, MAX_FRAME, MAX_PAYLOAD, MAX_REPORT, MIN_FRAME};
pub use host::{HostEvent, HostReceiver};
pub use reports::ReportReceiver;
pub use sender::{HELLO_LENGTH, RESET_LENGTH, Sender, WELCOME_LENGTH, hello, reset, welcome};

use std::time::Duration;

/// What [`STALL`] is on the agent's side, where it costs a session: longer than a busy host is
/// silent in the middle of a frame.
pub const AGENT_STALL: Duration = Duration::from_secs(2);
