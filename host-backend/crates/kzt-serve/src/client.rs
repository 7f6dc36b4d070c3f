// SPDX-License-Identifier: GPL-2.0-or-later
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kzt_store::{Pool, PoolEntry, PoolStats, StoreError, Terms, Totals};

use kzt_wire::port::Counters;

use crate::connection::Peer;
use crate::control::Report;
use crate::histogram::{Histogram, Latency};
use crate::logging::ClientLog;
use crate::port::PortTotals;

/// Connections of a kind a client may have at once, those still in negotiation included.
const MAX_CONNECTIONS: usize = 16;

/// How soon a connection that was abandoned and is still there is abandoned again. It may be waiting
/// for others to leave, and looks as often whether it was abandoned.
const AGAIN: Duration = Duration::from_millis(20);

/// What a client's threads share.
pub(crate) struct Client {
    pub(crate) size: u64,
    /// The client as the store knows it.
    pub(crate) stored: Arc<kzt_store::Client>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) latency: Histograms,
    pub(crate) port: PortTotals,
    pub(crate) tmem: TmemPort,
    pub(crate) log: ClientLog,
    /// Held by the connection that serves the device's queues: two would not serve them in order.
    pub(crate) vhost: Mutex<()>,
    report: Mutex<Option<Report>>,
    connections: Mutex<Connections>,
    /// Signalled when a connection has left.
    changed: Condvar,
}

/// A client's tmem port.
#[derive(Default)]
pub(crate) struct TmemPort {
    /// What has been seen on it.
    pub(crate) totals: PortTotals,
    /// Held by the connection that is served: requests of two would have no order.
    pub(crate) seat: Mutex<()>,
}

/// Service times of the client's requests.
#[derive(Default)]
pub(crate) struct Histograms {
    pub(crate) put: Histogram,
    pub(crate) get: Histogram,
    pub(crate) flush: Histogram,
}

/// A client's figures.
#[derive(Clone, Debug)]
pub struct ClientStats {
    /// Size of the swap device in bytes.
    pub swap_bytes: u64,
    /// Connections for pages at the moment, those in negotiation included.
    pub connections: usize,
    /// What is settled for it.
    pub terms: Terms,
    /// What its cap and its reservation are of: bytes of its persistent pages and their index.
    pub charged: u64,
    /// Bytes of its ephemeral pages and their index.
    pub ephemeral: u64,
    /// What the device's pool holds and has done.
    pub pool: PoolStats,
    /// The pools that its guest has made.
    pub pools: Vec<PoolEntry>,
    /// Those that are gone included.
    pub totals: Totals,
    /// Service times of requests that store pages.
    pub put: Latency,
    /// Service times of requests that fetch pages.
    pub get: Latency,
    /// Service times of requests that drop pages.
    pub flush: Latency,
    /// What its relay ports have seen.
    pub port: Counters,
    /// What its tmem port has seen.
    pub tmem: Counters,
    /// The last report of its guest's agent.
    pub report: Option<Report>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It carries pages.
    Pages,
    /// It carries reports of the guest.
    Reports,
}

struct Connections {
    live: BTreeMap<u64, (Purpose, Arc<Peer>)>,
    next: u64,
    closed: bool,
}

/// A connection's place among its client's connections; dropping it gives the place up. From then
/// on nothing of the connection is applied.
pub(crate) struct Membership<'a> {
    client: &'a Client,
    number: u64,
    pub(crate) peer: Arc<Peer>,
}

impl Client {
    pub(crate) fn new(size: u64, stored: Arc<kzt_store::Client>) -> Result<Self, StoreError> {
        let live = BTreeMap::new();
        Ok(Self {
            size,
            pool: stored.device_pool()?,
            latency: Histograms::default(),
            port: PortTotals::default(),
            tmem: TmemPort::default(),
            log: ClientLog::new(stored.name()),
            stored,
            vhost: Mutex::default(),
            report: Mutex::default(),
            connections: Mutex::new(Connections {
                live,
                next: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn stats(&self) -> ClientStats {
        let mut stored = self.stored.stats();
        stored.pools.retain(|pool| pool.id.is_some());
        ClientStats {
            swap_bytes: self.size,
            connections: self.lock().number_of(Purpose::Pages),
            terms: stored.terms,
            charged: stored.persistent_bytes,
            ephemeral: stored.ephemeral_bytes,
            pool: self.pool.stats(),
            pools: stored.pools,
            totals: stored.totals,
            put: self.latency.put.latency(),
            get: self.latency.get.latency(),
            flush: self.latency.flush.latency(),
            port: self.port.get(),
            tmem: self.tmem.totals.get(),
            report: self.lock_report().clone(),
        }
    }

    pub(crate) fn set_report(&self, report: Report) {
        *self.lock_report() = Some(report);
    }

    /// Takes a new connection in; `None` when the client is being closed or has too many.
    pub(crate) fn admit(&self, purpose: Purpose, peer: Peer) -> Option<Membership<'_>> {
        let mut connections = self.lock();
        if connections.closed || connections.number_of(purpose) == MAX_CONNECTIONS {
            return None;
        }
        let peer = Arc::new(peer);
        let number = connections.next;
        connections.next += 1;
        let entry = (purpose, Arc::clone(&peer));
        connections.live.insert(number, entry);
        Some(Membership {
            client: self,
            number,
            peer,
        })
    }

    /// Lets every connection serve what has arrived and end; after `grace` they are cut off.
    /// Returns when the last one has left.
    pub(crate) fn close(&self, grace: Duration) {
        let start = Instant::now();
        let mut connections = self.lock();
        connections.closed = true;
        for (_, peer) in connections.live.values() {
            peer.drain();
        }
        while !connections.live.is_empty() {
            let mut pause = grace.saturating_sub(start.elapsed());
            if pause.is_zero() {
                for (_, peer) in connections.live.values() {
                    peer.abandon();
                }
                pause = AGAIN;
            }
            connections = self.wait(connections, pause);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_report(&self) -> MutexGuard<'_, Option<Report>> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        guard: MutexGuard<'a, Connections>,
        longest: Duration,
    ) -> MutexGuard<'a, Connections> {
        self.changed
            .wait_timeout(guard, longest)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl Connections {
    fn number_of(&self, purpose: Purpose) -> usize {
        let kinds = self.live.values().map(|(kind, _)| *kind);
        kinds.filter(|kind| *kind == purpose).count()
    }
}

impl<'a> Membership<'a> {
    pub(crate) const fn client(&self) -> &'a Client {
        self.client
    }

    /// Fences the past off: every other connection whose peer has hung up is abandoned, and gone
    /// when this returns. `false` when this connection was abandoned itself meanwhile.
    ///
    /// To be called with the request for the transmission phase received and not yet answered: a
    /// peer that gave an old connection up and repeats its requests on this one has not repeated
    /// any before the answer, so no old copy overtakes a repeated request. An old connection that
    /// is accepted only after this fence never gets past its own negotiation: sending the answer
    /// to a peer that has hung up fails.
    pub(crate) fn fence(&self) -> bool {
        let mut connections = self.client.lock();
        let stale: Vec<u64> = connections
            .live
            .iter()
            .filter(|(number, (_, peer))| **number != self.number && peer.hung_up())
            .map(|(number, _)| *number)
            .collect();
        loop {
            let mut left = stale
                .iter()
                .filter_map(|number| connections.live.get(number))
                .peekable();
            if left.peek().is_none() {
                return true;
            }
            left.for_each(|(_, peer)| peer.abandon());
            if self.peer.abandoned() {
                return false;
            }
            connections = self.client.wait(connections, AGAIN);
        }
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.client.lock().live.remove(&self.number);
        self.client.changed.notify_all();
    }
}
