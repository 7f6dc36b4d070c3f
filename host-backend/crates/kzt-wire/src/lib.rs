// SPDX-License-Identifier: GPL-2.0-or-later
//! Framing of the protocols that carry pages between guests and the store.
//!
//! Bytes in, requests out: nothing here does I/O, keeps a clock, allocates for a request or knows
//! the store. Every byte is taken to be a hostile guest's: the code can refuse, never panic.

mod framing;
pub mod nbd;
pub mod port;
pub mod tmem;
