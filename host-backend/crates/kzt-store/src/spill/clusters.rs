// SPDX-License-Identifier: GPL-2.0-or-later
//! Which clusters of the spill file hold how much. Private to the process and rebuilt by recovery,
//! like the arena's allocators.

// Indices are cluster numbers made here; what the arena's entries say is checked in `claim`.
#![expect(
    clippy::indexing_slicing,
    reason = "process-private table, indices made here"
)]

/// No cluster: the end of a list.
const NONE: u32 = u32::MAX;

/// A cluster is a *hole* (no blocks of the disk behind it), *dead* (blocks, but nothing that anybody needs),
/// taken (being written, or being punched), or it has live bytes.
#[derive(Clone, Copy)]
struct Cluster {
    /// Bytes that entries lead to, or that somebody is reading.
    live: u32,
    /// Nothing in it could be collected, and it has lost nothing since.
    stuck: bool,
    /// Hole or dead: the next of its kind.
    next: u32,
}

/// All clusters of a file.
pub(super) struct Clusters {
    table: Box<[Cluster]>,
    holes: u32,
    dead: u32,
    /// Clusters that are no holes: at most `limit` once the file has been within it.
    used: u32,
    dead_count: u32,
    limit: u32,
}

impl Clusters {
    /// All of `count` clusters are taken until `settle`; `limit` of them may be used.
    pub(super) fn new(count: u32, limit: u32) -> Self {
        let blank = Cluster {
            live: 0,
            stuck: false,
            next: NONE,
        };
        Self {
            table: vec![blank; count as usize].into(),
            holes: NONE,
            dead: NONE,
            used: count,
            dead_count: 0,
            limit,
        }
    }

    /// Recovery: counts bytes that an entry leads to; `false` if there is no such cluster.
    pub(super) fn claim(&mut self, cluster: u32, bytes: u32) -> bool {
        let known = self.table.get_mut(cluster as usize);
        known.is_some_and(|cluster| {
            // A damaged index may claim the same bytes twice.
            cluster.live = cluster.live.saturating_add(bytes);
            true
        })
    }

    /// Recovery: all has been claimed. Clusters from `written` on were never written.
    pub(super) fn settle(&mut self, written: u32) {
        // The lowest are taken first: the file stays short.
        for cluster in (0..self.table.len() as u32).rev() {
            if self.table[cluster as usize].live == 0 {
                self.retire(cluster, cluster >= written);
            }
        }
    }

    /// Takes a cluster to be written.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.free() == 0 {
            return None;
        }
        self.take_dead().or_else(|| {
            let hole = self.holes;
            (hole != NONE).then(|| {
                self.holes = self.table[hole as usize].next;
                self.used += 1;
                hole
            })
        })
    }

    /// Clusters that can be taken.
    pub(super) fn free(&self) -> u32 {
        self.limit.saturating_sub(self.used - self.dead_count)
    }

    /// Takes a dead cluster to be punched, if there are more than `keep`.
    pub(super) fn take_surplus(&mut self, keep: u32) -> Option<u32> {
        (self.dead_count > keep).then(|| self.take_dead()).flatten()
    }

    fn take_dead(&mut self) -> Option<u32> {
        let dead = self.dead;
        (dead != NONE).then(|| {
            self.dead = self.table[dead as usize].next;
            self.dead_count -= 1;
            dead
        })
    }

    /// What was taken has live bytes now.
    pub(super) fn fill(&mut self, cluster: u32, bytes: u32) {
        self.table[cluster as usize].live = bytes;
    }

    /// What was taken, or has lost its last live byte, is a hole or dead.
    pub(super) fn retire(&mut self, cluster: u32, hole: bool) {
        let head = if hole {
            self.used -= 1;
            &mut self.holes
        } else {
            self.dead_count += 1;
            &mut self.dead
        };
        self.table[cluster as usize] = Cluster {
            live: 0,
            stuck: false,
            next: std::mem::replace(head, cluster),
        };
    }

    /// Keeps live bytes of a cluster from being written over.
    pub(super) fn hold(&mut self, cluster: u32, bytes: u32) {
        self.table[cluster as usize].live += bytes;
    }

    /// Live bytes that nobody needs any more.
    pub(super) fn free_bytes(&mut self, cluster: u32, bytes: u32) {
        let record = &mut self.table[cluster as usize];
        debug_assert!(record.live >= bytes, "bytes are freed once");
        record.live = record.live.saturating_sub(bytes);
        record.stuck = false;
        if record.live == 0 {
            self.retire(cluster, false);
        }
    }

    /// The clusters that may be collected, with their live bytes: at most so many.
    fn collectable(&self, most: u32) -> impl Iterator<Item = (u32, u32)> {
        (0..)
            .zip(&self.table)
            .filter(move |(_, record)| (1..=most).contains(&record.live) && !record.stuck)
            .map(|(cluster, record)| (cluster, record.live))
    }

    /// Whether there is more than one cluster to be collected that has at most so many live bytes.
    /// What is left of a single one takes a cluster as before.
    pub(super) fn can_gain(&self, most: u32) -> bool {
        self.collectable(most).nth(1).is_some()
    }

    /// Of these the one with the fewest live bytes that is not `seen`.
    pub(super) fn emptiest(&self, most: u32, seen: &[u32]) -> Option<u32> {
        self.collectable(most)
            .filter(|(cluster, _)| !seen.contains(cluster))
            .min_by_key(|&(_, live)| live)
            .map(|(cluster, _)| cluster)
    }

    /// Nothing can be had from a cluster until it loses something of itself.
    pub(super) fn stick(&mut self, cluster: u32) {
        self.table[cluster as usize].stuck = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_dies_with_its_last_live_byte() {
        let mut clusters = Clusters::new(4, 4);
        clusters.settle(0);
        let taken = clusters.take().unwrap();
        assert_eq!(taken, 0, "the lowest first");
        clusters.fill(taken, 300);
        clusters.hold(taken, 100);
        clusters.free_bytes(taken, 300);
        assert_eq!(
            clusters.emptiest(100, &[]),
            Some(taken),
            "somebody reads it"
        );
        assert_eq!(clusters.take_surplus(0), None);
        clusters.free_bytes(taken, 100);
        assert_eq!(clusters.emptiest(100, &[]), None);
        assert_eq!(clusters.take_surplus(0), Some(taken));
        clusters.retire(taken, true);
        assert_eq!(clusters.free(), 4);
    }

    #[test]
    fn no_more_clusters_are_taken_than_the_limit_allows() {
        // The file is longer than it may be now.
        let mut clusters = Clusters::new(6, 4);
        assert!(clusters.claim(5, 10));
        assert!(!clusters.claim(6, 10));
        clusters.settle(6);
        let first = clusters.take().unwrap();
        clusters.fill(first, 1);
        assert_eq!(clusters.free(), 2);
        assert!(clusters.take().is_some());
        assert!(clusters.take().is_some());
        assert_eq!(clusters.take(), None);
        clusters.free_bytes(first, 1);
        assert_eq!(clusters.take(), Some(first));
    }

    #[test]
    fn a_stuck_cluster_is_left_alone_until_it_loses_something() {
        let mut clusters = Clusters::new(2, 2);
        clusters.settle(0);
        for live in [10, 20] {
            let cluster = clusters.take().unwrap();
            clusters.fill(cluster, live);
        }
        assert_eq!(clusters.emptiest(20, &[]), Some(0));
        assert_eq!(clusters.emptiest(20, &[0]), Some(1));
        clusters.stick(0);
        assert_eq!(clusters.emptiest(20, &[]), Some(1));
        clusters.free_bytes(0, 5);
        assert_eq!(clusters.emptiest(20, &[]), Some(0));
    }

    #[test]
    fn a_single_cluster_is_not_worth_collecting() {
        let mut clusters = Clusters::new(3, 3);
        clusters.settle(0);
        for live in [10, 20, 30] {
            let cluster = clusters.take().unwrap();
            clusters.fill(cluster, live);
        }
        assert!(!clusters.can_gain(19));
        assert!(clusters.can_gain(20));
        clusters.stick(0);
        assert!(!clusters.can_gain(20));
        assert!(clusters.can_gain(30));
    }
}
