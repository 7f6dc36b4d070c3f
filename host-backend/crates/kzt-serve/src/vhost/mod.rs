// SPDX-License-Identifier: GPL-2.0-or-later
//! The swap device as a vhost-user block device: requests go from a virtio queue in the guest's
//! memory into the store.
//!
//! One thread serves a connection, its messages and all its queues in turn. So nothing here is
//! shared or locked, and a guest with many queues has no more of the host's processors than one
//! with a single queue.
//!
//! **Each queue is served in order, and a request is used only once the store has committed it.**
//! QEMU takes the used index as the point to resume from when a connection has broken: all that
//! was not used by then is offered again. Repeating a request is harmless, so nothing needs to be
//! written down for the case that this process is killed.
//!
//! The guest and its QEMU may change their memory at any moment. It is only ever reached by copies
//! in and out of it, and nothing is decided by a byte that is read again later.

mod backend;
mod chain;
mod config;
mod eventfd;
mod memory;
mod ring;
mod service;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::client::Membership;
use crate::connection::{End, Patience};
use backend::Backend;
pub(crate) use chain::Malformed;

/// Serves one connection from its first message until the frontend hangs up.
pub(crate) fn serve(membership: &Membership<'_>) -> Result<(), End> {
    // The frontend holds the eventfds, too, and can make them block.
    let attended = membership.peer.thread.during(|| attend(membership));
    attended.map_err(End::Io)?
}

fn attend(membership: &Membership<'_>) -> Result<(), End> {
    let client = membership.client();
    // What a former connection has begun must not overtake its own repetition on this one.
    if !membership.fence() {
        return Err(End::Abandoned);
    }
    let Ok(_seat) = client.vhost.try_lock() else {
        return Err(End::Occupied);
    };
    let peer = &membership.peer;
    // The library shares what it calls among threads. There is only this one, which never waits.
    let backend = Arc::new(Mutex::new(Backend::new(membership)));
    let lock = || backend.lock().unwrap_or_else(PoisonError::into_inner);
    let socket = peer.socket().try_clone().map_err(End::Io)?;
    let mut messages = BackendReqHandler::from_stream(socket, Arc::clone(&backend));
    let mut patience = Patience::default();
    loop {
        if peer.abandoned() {
            return Err(End::Abandoned);
        }
        let busy = lock().turn()?;
        if busy {
            patience.renew();
        } else if patience.look() {
            patience.wait();
            continue;
        }
        if !message_waits(&mut lock(), peer.socket(), busy)? {
            continue;
        }
        match messages.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected) => break,
            Err(error) => return Err(End::Frontend(error)),
        }
    }
    // The frontend has left, or is about to be left. What it has made available is served.
    lock().finish()
}

/// Whether a message has arrived; unless there is work, returns not before that or a queue's kick.
fn message_waits(backend: &mut Backend<'_>, socket: &UnixStream, busy: bool) -> Result<bool, End> {
    let rest = !busy && backend.rest()?;
    let mut asked = vec![PollFd::new(socket, PollFlags::IN)];
    if rest {
        asked.extend(backend.kicks().map(|kick| PollFd::new(kick, PollFlags::IN)));
    }
    let timeout = (!rest).then(Timespec::default);
    retry_on_intr(|| poll(&mut asked, timeout.as_ref())).map_err(|error| End::Io(error.into()))?;
    let message = asked
        .first()
        .is_some_and(|asked| !asked.revents().is_empty());
    if rest {
        backend.wake()?;
    }
    Ok(message)
}
