// SPDX-License-Identifier: GPL-2.0-or-later
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kzt_store::{
    Config, Dedup, Evictions, OpenError, PAGE_SIZE, Recovery, Store, Terms, Usage, ZbudUsage,
};

use crate::ServeError;
use crate::client::{Client, ClientStats, Membership, Purpose};
use crate::connection::{self, End, Peer};
use crate::listener::Listener;
use crate::{control, relay, tmem, vhost};

/// Pauses between two rounds of the store's upkeep: after one that found work, and else.
const UPKEEP_BUSY: Duration = Duration::from_millis(5);
const UPKEEP_IDLE: Duration = Duration::from_millis(50);
/// Pause after a failed accept: out of descriptors, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Codecs keep their working memory on the heap: a connection's thread needs little.
const STACK: usize = 256 << 10;

/// What a server is made of.
pub type ServerConfig = Config;

/// Where a client's sockets are to be made.
#[derive(Clone, Copy, Debug)]
pub struct Sockets<'a> {
    /// Its swap device as an NBD server.
    pub nbd: &'a Path,
    /// The same device for an agent in the guest: NBD in the frames of a virtio-serial port.
    pub relay: &'a Path,
    /// The same device as a vhost-user block device, one connection at a time.
    pub vhost: &'a Path,
    /// The tmem operations of its guest's kernel, on another such port, one connection at a time.
    pub tmem: &'a Path,
    /// The agent's reports, on a third one.
    pub ctl: &'a Path,
}

/// A store with its clients' sockets.
///
/// Its methods may be called from any thread. Dropping it cuts every connection off; the pools stay
/// in the arena.
pub struct Server {
    store: Arc<Store>,
    services: Mutex<Services>,
    /// Held while clients come or go, whose sockets and pool must not meet a namesake's. Taken
    /// before `services`.
    changing: Mutex<()>,
}

struct Services {
    /// Absent once the server is shut down.
    housekeeper: Option<Housekeeper>,
    by_name: BTreeMap<String, Service>,
}

/// One client's sockets and threads.
struct Service {
    client: Arc<Client>,
    doors: Vec<Door>,
}

/// A socket and the thread that listens on it.
struct Door {
    listener: Arc<Listener>,
    /// Ends after the last of the socket's connections.
    thread: JoinHandle<()>,
}

/// What comes in on a socket, and who serves it.
#[derive(Clone, Copy)]
struct Trade {
    name: &'static str,
    purpose: Purpose,
    serve: fn(&Membership<'_>) -> Result<(), End>,
}

const NBD: Trade = Trade {
    name: "nbd",
    purpose: Purpose::Pages,
    serve: connection::serve,
};
const RELAY: Trade = Trade {
    name: "relay",
    purpose: Purpose::Pages,
    serve: relay::serve,
};
const VHOST: Trade = Trade {
    name: "vhost",
    purpose: Purpose::Pages,
    serve: vhost::serve,
};
const TMEM: Trade = Trade {
    name: "tmem",
    purpose: Purpose::Pages,
    serve: tmem::serve,
};
const CONTROL: Trade = Trade {
    name: "ctl",
    purpose: Purpose::Reports,
    serve: control::serve,
};

impl Server {
    /// Opens the store: creates its arena or recovers what it holds.
    ///
    /// # Errors
    /// [`OpenError`] when the arena can't be used.
    pub fn open(config: &ServerConfig) -> Result<(Self, Recovery), OpenError> {
        if cfg!(feature = "no-session-check") {
            log::warn!("this build does not keep a port's sessions apart: good for one test only");
        }
        let (store, recovery) = Store::open(config)?;
        let store = Arc::new(store);
        let housekeeper =
            Housekeeper::start(Arc::clone(&store)).map_err(|source| OpenError::Io {
                path: config.arena.clone(),
                what: "start a thread",
                source,
            })?;
        let services = Mutex::new(Services {
            housekeeper: Some(housekeeper),
            by_name: BTreeMap::new(),
        });
        let server = Self {
            store,
            services,
            changing: Mutex::new(()),
        };
        Ok((server, recovery))
    }

    /// Serves `name`'s swap device of `swap_bytes` bytes on new sockets. The pages its pool holds
    /// already are the device's contents; what comes may share memory as `dedup` says, within `terms`.
    ///
    /// # Errors
    /// [`ServeError`]; nothing has changed then, save that a pool may have been made.
    pub fn add_client(
        &self,
        name: &str,
        swap_bytes: u64,
        dedup: &Dedup,
        terms: Terms,
        sockets: Sockets<'_>,
    ) -> Result<(), ServeError> {
        let pages = swap_bytes / PAGE_SIZE as u64;
        if swap_bytes % PAGE_SIZE as u64 != 0 || pages == 0 || pages > 1 << 32 {
            return Err(ServeError::SwapSize(swap_bytes));
        }
        let _changing = self.changing();
        let mut services = self.lock();
        if services.housekeeper.is_none() {
            return Err(ServeError::ShutDown);
        }
        let Entry::Vacant(entry) = services.by_name.entry(name.to_owned()) else {
            return Err(ServeError::Exists(name.to_owned()));
        };
        // The sockets come first: a pool is made only for a client that can be served.
        let listeners = [
            (NBD, Listener::bind(sockets.nbd)?),
            (RELAY, Listener::bind(sockets.relay)?),
            (VHOST, Listener::bind(sockets.vhost)?),
            (TMEM, Listener::bind(sockets.tmem)?),
            (CONTROL, Listener::bind(sockets.ctl)?),
        ];
        let stored = self.store.client(name)?;
        stored.set_dedup(dedup);
        let client = Client::new(swap_bytes, Arc::clone(&stored))?;
        stored.settle(terms)?;
        let service = Service::start(name, client, listeners).inspect_err(|_| {
            // Nothing stays reserved for it, and that is never refused.
            let _ = stored.settle(Terms::default());
        })?;
        entry.insert(service);
        Ok(())
    }

    /// Settles anew what a client that is served may have. Pages that it has are not touched.
    ///
    /// # Errors
    /// [`ServeError::NoClient`], or [`ServeError::Overcommitted`]; nothing has changed then.
    pub fn settle(&self, name: &str, terms: Terms) -> Result<(), ServeError> {
        let _changing = self.changing();
        let client = self.client(name);
        let client = client.ok_or_else(|| ServeError::NoClient(name.to_owned()))?;
        Ok(client.stored.settle(terms)?)
    }

    /// Closes the client's connections and destroys its pools. A client that is not served but left
    /// a pool behind can be removed as well.
    ///
    /// # Errors
    /// [`ServeError::NoClient`] when there is neither.
    pub fn remove_client(&self, name: &str) -> Result<(), ServeError> {
        let _changing = self.changing();
        let service = self.lock().by_name.remove(name);
        match service {
            Some(service) => service.stop(Duration::ZERO),
            None if !self.store.clients().iter().any(|client| client == name) => {
                return Err(ServeError::NoClient(name.to_owned()));
            }
            None => {}
        }
        Ok(self.store.remove_client(name)?)
    }

    /// Names of the clients that are served.
    #[must_use]
    pub fn clients(&self) -> Vec<String> {
        self.lock().by_name.keys().cloned().collect()
    }

    /// Names of the clients that have a pool, served or not.
    #[must_use]
    pub fn pools(&self) -> Vec<String> {
        self.store.clients()
    }

    /// What the store takes of its memory.
    ///
    /// # Errors
    /// When the system can't tell the size of the arena's file.
    pub fn status(&self) -> io::Result<Usage> {
        self.store.usage()
    }

    /// What frames hold that two pages may share, as ephemeral ones do.
    #[must_use]
    pub fn zbud(&self) -> ZbudUsage {
        self.store.zbud()
    }

    /// What has been evicted since the store was opened.
    #[must_use]
    pub fn evictions(&self) -> Evictions {
        self.store.evictions()
    }

    /// Locks the arena in memory, now and as it grows.
    ///
    /// # Errors
    /// When the limit on locked memory is too low for it.
    pub fn pin(&self) -> io::Result<()> {
        self.store.pin()
    }

    /// A client's figures; `None` when it is not served.
    #[must_use]
    pub fn client_stats(&self, name: &str) -> Option<ClientStats> {
        self.client(name).map(|client| client.stats())
    }

    /// Stops serving: no new connections, and those that are there end once they have served what
    /// has arrived, or after `grace`. When it returns every thread has ended and every socket is
    /// unlinked; the pools stay. Calling it again does nothing.
    pub fn shutdown(&self, grace: Duration) {
        let _changing = self.changing();
        let mut services = self.lock();
        let stopping: Vec<Service> = std::mem::take(&mut services.by_name)
            .into_values()
            .collect();
        let housekeeper = services.housekeeper.take();
        drop(services);
        for service in &stopping {
            service.close_listeners();
        }
        thread::scope(|scope| {
            for service in stopping {
                scope.spawn(move || service.stop(grace));
            }
        });
        if let Some(housekeeper) = housekeeper {
            housekeeper.stop();
        }
    }

    fn client(&self, name: &str) -> Option<Arc<Client>> {
        let services = self.lock();
        let service = services.by_name.get(name)?;
        Some(Arc::clone(&service.client))
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

impl Service {
    fn start<const N: usize>(
        name: &str,
        client: Client,
        listeners: [(Trade, Listener); N],
    ) -> Result<Self, ServeError> {
        let mut service = Self {
            client: Arc::new(client),
            doors: Vec::with_capacity(N),
        };
        for (trade, listener) in listeners {
            let listener = Arc::new(listener);
            let started = thread::Builder::new()
                .name(format!("{} {name}", trade.name))
                .stack_size(STACK)
                .spawn({
                    let (client, listener) = (Arc::clone(&service.client), Arc::clone(&listener));
                    move || listen(&client, &listener, trade)
                });
            match started {
                Ok(thread) => service.doors.push(Door { listener, thread }),
                Err(error) => {
                    service.stop(Duration::ZERO);
                    return Err(ServeError::Thread(error));
                }
            }
        }
        Ok(service)
    }

    fn close_listeners(&self) {
        for door in &self.doors {
            door.listener.close();
        }
    }

    fn stop(self, grace: Duration) {
        self.close_listeners();
        self.client.close(grace);
        for door in self.doors {
            // A thread that panicked has ended, too.
            let _ = door.thread.join();
        }
    }
}

/// A listener's thread: a thread for each connection, all of them ended when it returns.
fn listen(client: &Client, listener: &Listener, trade: Trade) {
    thread::scope(|scope| {
        loop {
            let socket = match listener.accept() {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(error) => {
                    client.log.warn(format_args!("accept: {error}"));
                    thread::sleep(ACCEPT_RETRY);
                    continue;
                }
            };
            let Some(membership) = client.admit(trade.purpose, Peer::new(socket)) else {
                client.log.warn("connection refused: too many");
                continue;
            };
            let started = thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, move || {
                    if let Err(end) = (trade.serve)(&membership) {
                        let name = trade.name;
                        client
                            .log
                            .warn(format_args!("{name} connection closed: {end}"));
                    }
                });
            if let Err(error) = started {
                client.log.warn(format_args!("connection refused: {error}"));
            }
        }
    });
}

/// The thread that keeps the store in shape, off the page path.
struct Housekeeper {
    /// Dropping it ends the thread.
    running: Sender<()>,
    thread: JoinHandle<()>,
}

impl Housekeeper {
    fn start(store: Arc<Store>) -> io::Result<Self> {
        let (running, stopped) = mpsc::channel::<()>();
        let thread = thread::Builder::new()
            .name("upkeep".to_owned())
            .spawn(move || {
                let mut pause = UPKEEP_IDLE;
                while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    let idle = store.maintain().is_idle();
                    pause = if idle { UPKEEP_IDLE } else { UPKEEP_BUSY };
                }
            })?;
        Ok(Self { running, thread })
    }

    fn stop(self) {
        drop(self.running);
        let _ = self.thread.join();
    }
}
