// SPDX-License-Identifier: GPL-2.0-or-later
//! What a put and a get cost in the store, next to the bare codec and to the host's zram.
//!
//! All engines get the same pages in the same order, and take turns within each repetition: what
//! else the machine does falls on all of them alike. A [`Corpus`] has the pages, [`run`] measures.

#![allow(
    clippy::cast_precision_loss,
    reason = "figures of time and size, not identities"
)]

mod corpus;
mod engine;
mod error;
mod plan;
mod raw;
mod round;
mod store;
mod zram;

pub use corpus::Corpus;
pub use error::Error;
pub use plan::{Memory, Plan, Report, Row, Times, run};
pub use round::Watch;
