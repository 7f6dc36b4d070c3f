// SPDX-License-Identifier: GPL-2.0-or-later
//! A transcendent-memory page store in one shared-memory file that survives its process.
//!
//! [`Store`] opens the arena, [`Pool`] has the operations: put, get, flush, by handle (object,
//! index). Pages are compressed by the calling thread with its [`Context`].
//!
//! The index in the arena is the truth; everything on the heap is rebuilt from it. The heap is
//! bounded: 28 bytes for each 4 KiB of `memory`, 12 for each 64 KiB, and at most 1 MiB for
//! tables and pools; another 32 for each 4 KiB where a client's pages may share memory; while
//! recovering, another bit for each 4 KiB, and 8 bytes where pages do; while a client is saved, 2
//! MiB for each of its persistent pools. With a spill file it is 12 bytes for each 256 KiB of that,
//! and 700 KiB for what is on the way there. Each [`Context`] adds 136 KiB, and what zstd's
//! contexts take where that codec is used.

#![allow(
    clippy::cast_possible_truncation,
    reason = "64 bits only, and the layout bounds what is narrowed: frame numbers have 28 bits"
)]

// The arena is mapped whole, and an offset is a `usize` as good as a `u64`.
#[cfg(not(target_pointer_width = "64"))]
compile_error!("kzt-store needs a 64-bit address space");

mod arena;
mod block;
mod client;
mod codec;
mod compact;
mod control;
#[cfg(feature = "crash-points")]
pub mod crash_points;
mod dedup;
mod directory;
mod entry;
mod error;
mod frames;
mod header;
mod layout;
mod limits;
mod lz4;
mod lzo;
mod ours;
mod owner;
mod pam;
#[cfg(test)]
mod pam_tests;
mod pool;
#[cfg(test)]
mod prefixes;
mod put;
mod radix;
mod raw;
mod reclaim;
mod recover;
mod runs;
mod save;
mod shared;
mod space;
mod spill;
mod store;
mod sync;
mod table;
mod tier;
pub mod tmem;
mod xvmalloc;
mod zbud;
mod zsmalloc;

use std::sync::PoisonError;

use crate::sync::{Mutex, MutexGuard};

pub use client::{Client, ClientStats, PoolEntry, Terms, Totals};
pub use codec::{Codec, Context, UnknownCodec, same_filled};
pub use dedup::{Dedup, DomainName, UnknownDedup};
pub use error::{GetError, OpenError, Overcommitted, PutError, SaveError, StoreError, UpdateError};
pub use frames::Upkeep;
pub use pam::{Allocator, UnknownAllocator};
pub use pool::{Pool, PoolStats};
pub use reclaim::Evictions;
pub use save::{Handle, Invalid, Save};
pub use spill::{SpillConfig, SpillUsage};
pub use store::{Config, Origin, Recovery, Store, Usage};
pub use table::{Kind, Uuid};
pub use zbud::ZbudUsage;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// A page's content.
pub type Page = [u8; PAGE_SIZE];

/// Names an object of a pool: 192 bits, of the client's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u64; 3]);

/// Locks a mutex. Nothing in this crate panics while it holds one; should that ever happen, the
/// others go on with what is there.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
