// SPDX-License-Identifier: GPL-2.0-or-later
//! What threads share and wait for each other with: std's, or with the feature `shuttle` that crate's,
//! whose scheduler then says which thread goes on at each of them (`tests/schedules.rs`).
//!
//! Words of the arena are std's atomics in any case: [`point`] stands beside their loads and stores.

#[cfg(not(feature = "shuttle"))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

pub(crate) mod atomic {
    #[cfg(not(feature = "shuttle"))]
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};

    #[cfg(feature = "shuttle")]
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};
}

/// Another thread may go on here.
#[cfg(feature = "shuttle")]
pub(crate) fn point() {
    // Any access to any word of shuttle's is one; unlike a yield it says nothing about who should.
    atomic::AtomicBool::new(false).load(std::sync::atomic::Ordering::Relaxed);
}
