// SPDX-License-Identifier: GPL-2.0-or-later
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::chain::{Chain, Malformed};
use super::config::MAX_QUEUE_SIZE;
use super::eventfd::EventFd;
use super::service::Service;
use crate::connection::End;

/// Work, in pages, that a queue may have done before the next queue has its turn, and before a
/// message is looked for: a fraction of a millisecond.
pub(super) const TURN: u64 = 64;

/// A virtio queue with its two bells.
pub(super) struct Ring {
    queue: Queue,
    kick: Option<EventFd>,
    call: Option<EventFd>,
    enabled: bool,
}

impl Ring {
    pub(super) fn new() -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            queue: Queue::new(MAX_QUEUE_SIZE)?,
            kick: None,
            call: None,
            enabled: false,
        })
    }

    /// Whether the driver may use it; then it keeps its shape.
    pub(super) fn started(&self) -> bool {
        self.queue.ready()
    }

    /// What makes the queue's shape, for as long as it rests.
    pub(super) fn shape(&mut self) -> Option<&mut Queue> {
        (!self.started()).then_some(&mut self.queue)
    }

    pub(super) fn enable(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Whether it lies in the guest's memory, as it is now.
    pub(super) fn fits(&self, memory: &GuestMemoryMmap) -> bool {
        self.queue.is_valid(memory)
    }

    /// Begins to serve from where the used index says that the last server stopped.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        kick: EventFd,
        event_idx: bool,
    ) -> Result<(), Malformed> {
        self.queue.set_ready(true);
        if !self.fits(memory) {
            self.queue.set_ready(false);
            return Err(Malformed::OutsideMemory);
        }
        let used = self
            .queue
            .used_idx(memory, Ordering::Acquire)
            .map_err(outside)?;
        self.queue.set_next_used(used.0);
        self.queue.set_event_idx(event_idx);
        self.kick = Some(kick);
        self.ring();
        Ok(())
    }

    /// Stops serving; the index of the first request that was not served.
    pub(super) fn stop(&mut self) -> u16 {
        self.queue.set_ready(false);
        self.kick = None;
        self.call = None;
        self.queue.next_avail()
    }

    /// Has the driver called by another bell. The one who was to ring the last one may have died
    /// before that.
    pub(super) fn set_call(&mut self, call: Option<EventFd>) {
        self.call = call;
        self.ring();
    }

    pub(super) fn kick(&self) -> Option<&EventFd> {
        self.kick.as_ref().filter(|_| self.running())
    }

    fn running(&self) -> bool {
        self.started() && self.enabled
    }

    fn ring(&self) {
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    /// Serves what is available, no more than `requests`, until `work` is done. Whether there was
    /// any.
    pub(super) fn serve(
        &mut self,
        memory: &GuestMemoryMmap,
        service: &mut Service<'_>,
        chain: &mut Chain,
        requests: u16,
        work: u64,
    ) -> Result<bool, End> {
        if !self.running() {
            return Ok(false);
        }
        let (mut served, mut done) = (0, 0);
        while served < requests && done < work {
            let mut available = self.queue.iter(memory).map_err(|_| Malformed::Index)?;
            let Some(descriptors) = available.next() else {
                break;
            };
            let head = descriptors.head_index();
            chain.load(descriptors)?;
            let result = service.serve(chain.request(memory)?)?;
            self.queue
                .add_used(memory, head, result.written)
                .map_err(outside)?;
            served += 1;
            done += result.work;
        }
        if served > 0 && self.queue.needs_notification(memory).map_err(outside)? {
            self.ring();
        }
        Ok(served > 0)
    }

    /// Requests that are available.
    pub(super) fn available(&self, memory: &GuestMemoryMmap) -> Result<u16, Malformed> {
        let end = self
            .queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(outside)?;
        Ok(end.0.wrapping_sub(self.queue.next_avail()))
    }

    /// Asks to be kicked for the next request; whether there is one already.
    pub(super) fn arm(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Malformed> {
        if !self.running() {
            return Ok(false);
        }
        self.queue.enable_notification(memory).map_err(outside)
    }

    /// Asks not to be kicked for a while.
    pub(super) fn disarm(&mut self, memory: &GuestMemoryMmap) -> Result<(), Malformed> {
        if let Some(kick) = self.kick() {
            kick.clear();
            self.queue.disable_notification(memory).map_err(outside)?;
        }
        Ok(())
    }
}

/// Errors of a queue that was valid when it was started: it lies outside the guest's memory now.
fn outside(_: virtio_queue::Error) -> Malformed {
    Malformed::OutsideMemory
}

/// Sets a queue's places in the guest's memory; `None` if one is not aligned as it has to be.
pub(super) fn place(queue: &mut Queue, places: [GuestAddress; 3]) -> Option<()> {
    let [descriptors, available, used] = places;
    queue.try_set_desc_table_address(descriptors).ok()?;
    queue.try_set_avail_ring_address(available).ok()?;
    queue.try_set_used_ring_address(used).ok()
}
