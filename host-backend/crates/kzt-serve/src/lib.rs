// SPDX-License-Identifier: GPL-2.0-or-later
//! Serves the page store to its clients.
//!
//! A client is known by the sockets it comes in on, and by nothing it says. Each socket has a
//! listener thread and a thread per connection; none of them knows another client's pool. The
//! threads share the store and nothing else, and whatever a peer sends ends at worst its own
//! connection.

mod channel;
mod client;
mod connection;
mod control;
mod device;
mod error;
mod histogram;
mod intake;
mod interrupt;
mod listener;
mod logging;
mod negotiation;
mod nonce;
mod port;
mod relay;
mod server;
mod stopwatch;
mod tmem;
mod transmission;
mod vhost;

pub use client::ClientStats;
pub use control::Report;
pub use error::ServeError;
pub use histogram::Latency;
pub use kzt_wire::port::Counters as PortCounters;
pub use server::{Server, ServerConfig, Sockets};
