// SPDX-License-Identifier: GPL-2.0-or-later
//! What a client's pages may take of the memory.
//!
//! Persistent pages and their index are charged to their client, to the byte: never more than its
//! cap. What clients have reserved and not used yet is kept free of the others' persistent pages.
//! Ephemeral pages are free, as they may be taken back at any moment; who has most of them for its
//! weight is the first to lose some.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::error::Overcommitted;
use crate::lock;
use crate::sync::atomic::{AtomicU32, AtomicU64};
use crate::sync::{Mutex, MutexGuard};

/// Size classes waste a part of their frames, and a page needs whole runs: of what is reserved, this
/// part more is kept free.
const SLACK: u64 = 8;

/// What concerns all clients together, in bytes.
pub(crate) struct Ledger {
    /// Most that can be reserved.
    limit: u64,
    reserved: Mutex<u64>,
    /// What is reserved and not used.
    unused: AtomicU64,
    /// Ephemeral pages and their index.
    ephemeral: AtomicU64,
}

impl Ledger {
    /// For so many bytes of frames.
    pub(crate) fn of(bytes: u64) -> Self {
        Self {
            limit: bytes / (SLACK + 1) * SLACK,
            reserved: Mutex::default(),
            unused: AtomicU64::default(),
            ephemeral: AtomicU64::default(),
        }
    }

    /// Whether there is anything that may be evicted.
    pub(crate) fn has_ephemeral(&self) -> bool {
        self.ephemeral.load(Relaxed) > 0
    }
}

/// A client's account.
pub(crate) struct Charge {
    ledger: Arc<Ledger>,
    persistent: Mutex<Persistent>,
    ephemeral: AtomicU64,
    weight: AtomicU32,
}

/// The lasting part of it.
struct Persistent {
    bytes: u64,
    /// `u64::MAX`: none.
    cap: u64,
    reservation: u64,
}

impl Persistent {
    fn unused(&self) -> u64 {
        self.reservation.saturating_sub(self.bytes)
    }
}

impl Charge {
    pub(crate) fn new(ledger: &Arc<Ledger>) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            persistent: Mutex::new(Persistent {
                bytes: 0,
                cap: u64::MAX,
                reservation: 0,
            }),
            ephemeral: AtomicU64::default(),
            weight: AtomicU32::new(1),
        }
    }

    /// Settles the client's limits anew.
    pub(crate) fn settle(
        &self,
        weight: u32,
        cap: Option<u64>,
        reservation: u64,
    ) -> Result<(), Overcommitted> {
        let mut total = lock(&self.ledger.reserved);
        let mut persistent = self.persistent();
        let others = *total - persistent.reservation;
        if others.saturating_add(reservation) > self.ledger.limit {
            return Err(Overcommitted {
                most: self.ledger.limit,
            });
        }
        *total = others + reservation;
        self.change(&mut persistent, |persistent| {
            persistent.cap = cap.unwrap_or(u64::MAX);
            persistent.reservation = reservation;
        });
        self.weight.store(weight, Relaxed);
        Ok(())
    }

    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    pub(crate) fn cap(&self) -> Option<u64> {
        Some(self.persistent().cap).filter(|cap| *cap != u64::MAX)
    }

    pub(crate) fn reservation(&self) -> u64 {
        self.persistent().reservation
    }

    /// Bytes of persistent pages and their index.
    pub(crate) fn persistent_bytes(&self) -> u64 {
        self.persistent().bytes
    }

    /// Bytes of ephemeral pages and their index.
    pub(crate) fn ephemeral_bytes(&self) -> u64 {
        self.ephemeral.load(Relaxed)
    }

    /// Charges bytes that the client is about to use, unless that were more than its cap.
    pub(crate) fn admit(&self, bytes: u64) -> bool {
        let mut persistent = self.persistent();
        let fits = persistent.bytes.saturating_add(bytes) <= persistent.cap;
        if fits {
            self.change(&mut persistent, |persistent| persistent.bytes += bytes);
        }
        fits
    }

    /// Charges `now` for what has been charged as `before`.
    pub(crate) fn correct_persistent(&self, before: u64, now: u64) {
        self.change(&mut self.persistent(), |persistent| {
            persistent.bytes = persistent.bytes.wrapping_sub(before).wrapping_add(now);
        });
    }

    /// The same for ephemeral pages.
    pub(crate) fn correct_ephemeral(&self, before: u64, now: u64) {
        for sum in [&self.ephemeral, &self.ledger.ephemeral] {
            sum.fetch_add(now.wrapping_sub(before), Relaxed);
        }
    }

    /// Bytes that are to be kept free for other clients.
    pub(crate) fn kept_for_others(&self) -> u64 {
        let all = self.ledger.unused.load(Relaxed);
        // Mostly nobody has reserved anything.
        if all == 0 {
            return 0;
        }
        let others = all.saturating_sub(self.persistent().unused());
        others + others / SLACK
    }

    /// Which of two clients has more ephemeral pages for its weight: more of them and less of that
    /// is greater.
    pub(crate) fn compare_shares(&self, other: &Self) -> Ordering {
        let share =
            |one: &Self, two: &Self| u128::from(one.ephemeral_bytes()) * u128::from(two.weight());
        share(self, other).cmp(&share(other, self))
    }

    fn persistent(&self) -> MutexGuard<'_, Persistent> {
        lock(&self.persistent)
    }

    /// Keeps the sum of what is reserved and unused in step.
    fn change(&self, persistent: &mut Persistent, f: impl FnOnce(&mut Persistent)) {
        let before = persistent.unused();
        f(persistent);
        let now = persistent.unused();
        if now != before {
            let unused = &self.ledger.unused;
            unused.fetch_add(now.wrapping_sub(before), Relaxed);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // Nothing can be refused to a client that wants nothing.
        let _ = self.settle(1, None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(ephemeral: u64, weight: u32) -> Charge {
        let charge = Charge::new(&Arc::new(Ledger::of(0)));
        charge.settle(weight, None, 0).unwrap();
        charge.correct_ephemeral(0, ephemeral);
        charge
    }

    /// The ancestor's test was the wrong way round.
    #[test]
    fn who_has_more_for_its_weight_is_over_its_share() {
        for (more, less) in [
            (holding(900, 1), holding(100, 1)),
            (holding(300, 1), holding(500, 2)),
            (holding(1, 0), holding(1 << 60, u32::MAX)),
        ] {
            assert_eq!(more.compare_shares(&less), Ordering::Greater);
            assert_eq!(less.compare_shares(&more), Ordering::Less);
        }
        let (one, two) = (holding(300, 3), holding(100, 1));
        assert_eq!(one.compare_shares(&two), Ordering::Equal);
    }

    #[test]
    fn what_is_reserved_is_kept_until_it_is_used() {
        let ledger = Arc::new(Ledger::of(9000));
        let (one, two) = (Charge::new(&ledger), Charge::new(&ledger));
        one.settle(1, None, 4000).unwrap();
        assert_eq!(two.settle(1, None, 4001), Err(Overcommitted { most: 8000 }));
        two.settle(1, Some(100), 800).unwrap();
        assert_eq!((one.kept_for_others(), two.kept_for_others()), (900, 4500));
        one.correct_persistent(0, 3200);
        assert_eq!((one.kept_for_others(), two.kept_for_others()), (900, 900));
        one.correct_persistent(3200, 5000);
        assert_eq!(two.kept_for_others(), 0);
        one.correct_persistent(5000, 0);
        assert_eq!(two.kept_for_others(), 4500);
        drop(one);
        assert_eq!(two.kept_for_others(), 0);
        two.settle(1, None, 8000).unwrap();
    }

    #[test]
    fn no_more_is_admitted_than_the_cap() {
        let charge = Charge::new(&Arc::new(Ledger::of(0)));
        charge.settle(1, Some(1000), 0).unwrap();
        assert!(charge.admit(1000));
        assert!(!charge.admit(1));
        charge.correct_persistent(400, 0);
        assert!(charge.admit(400));
        charge.settle(1, Some(10), 0).unwrap();
        assert!(!charge.admit(0), "nothing more while it has too much");
    }
}
