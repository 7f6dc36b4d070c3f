// SPDX-License-Identifier: GPL-2.0-or-later
//! Serves the page store to its clients.
//!
//! A client is known by the socket it comes in on, and by nothing it says. Each has a listener
//! thread and a thread per connection; none of them knows another client's pool. The threads share
//! the store and nothing else, and whatever a peer sends ends at worst its own connection.

mod client;
mod connection;
mod device;
mod error;
mod histogram;
mod listener;
mod logging;
mod negotiation;
mod server;
mod transmission;

pub use client::ClientStats;
pub use error::ServeError;
pub use histogram::Latency;
pub use server::{Server, ServerConfig};
