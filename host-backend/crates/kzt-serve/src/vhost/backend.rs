// SPDX-License-Identifier: GPL-2.0-or-later
use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};

use super::chain::{Chain, Malformed};
use super::config::{self, FEATURES, MAX_QUEUES, PROTOCOL_FEATURES};
use super::eventfd::EventFd;
use super::memory::Memory;
use super::ring::{self, Ring, TURN};
use super::service::Service;
use crate::client::Membership;
use crate::connection::End;

/// A connection's device: what the frontend has set up, and its queues.
///
/// A message that does not fit is refused by an error, and that ends the connection.
pub(super) struct Backend<'a> {
    size: u64,
    features: u64,
    memory: Option<Memory>,
    rings: Vec<Ring>,
    service: Service<'a>,
    chain: Chain,
}

impl<'a> Backend<'a> {
    pub(super) fn new(membership: &'a Membership<'_>) -> Self {
        Self {
            size: membership.client().size,
            features: 0,
            memory: None,
            rings: Vec::new(),
            service: Service::new(membership),
            chain: Chain::default(),
        }
    }

    /// Gives each queue a turn; whether there was anything to do.
    pub(super) fn turn(&mut self) -> std::result::Result<bool, End> {
        let Some(memory) = &self.memory else {
            return Ok(false);
        };
        let (service, chain) = (&mut self.service, &mut self.chain);
        let mut busy = false;
        for ring in &mut self.rings {
            busy |= ring.serve(&memory.guest, service, chain, u16::MAX, TURN)?;
        }
        Ok(busy)
    }

    /// Serves what is available at this moment and nothing that comes later.
    pub(super) fn finish(&mut self) -> std::result::Result<(), End> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        let (service, chain) = (&mut self.service, &mut self.chain);
        for ring in &mut self.rings {
            let requests = ring.available(&memory.guest)?;
            ring.serve(&memory.guest, service, chain, requests, u64::MAX)?;
        }
        Ok(())
    }

    /// Asks every queue's driver to kick; `false` when there is something to do meanwhile.
    pub(super) fn rest(&mut self) -> std::result::Result<bool, Malformed> {
        let Some(memory) = &self.memory else {
            return Ok(true);
        };
        let mut idle = true;
        for ring in &mut self.rings {
            idle &= !ring.arm(&memory.guest)?;
        }
        Ok(idle)
    }

    /// After a rest: kicks are not needed while queues are looked at anyway.
    pub(super) fn wake(&mut self) -> std::result::Result<(), Malformed> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        self.rings
            .iter_mut()
            .try_for_each(|ring| ring.disarm(&memory.guest))
    }

    /// What the drivers kick.
    pub(super) fn kicks(&self) -> impl Iterator<Item = &EventFd> {
        self.rings.iter().filter_map(Ring::kick)
    }

    /// A queue, made when it is first spoken of.
    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        if index >= MAX_QUEUES.into() {
            return Err(refused("no such queue"));
        }
        let index = index as usize;
        while self.rings.len() <= index {
            let mut ring = Ring::new().map_err(|_| Error::BackendInternalError)?;
            ring.enable(!self.has(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()));
            self.rings.push(ring);
        }
        self.rings.get_mut(index).ok_or(Error::BackendInternalError)
    }

    /// A queue that is not in use.
    fn resting(&mut self, index: u32) -> Result<&mut Queue> {
        self.ring(index)?
            .shape()
            .ok_or_else(|| refused("a change to a queue in use"))
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

impl VhostUserBackendReqHandlerMut for Backend<'_> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.rings.clear();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.features = features;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let known = PROTOCOL_FEATURES.union(VhostUserProtocolFeatures::REPLY_ACK);
        if features & !known.bits() != 0 {
            return Err(Error::FeatureMismatch);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(MAX_QUEUES.into())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let memory = Memory::map(regions, files).map_err(Error::ReqHandlerError)?;
        let mut started = self.rings.iter().filter(|ring| ring.started());
        if !started.all(|ring| ring.fits(&memory.guest)) {
            return Err(refused("a queue in use is outside the new memory"));
        }
        self.memory = Some(memory);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| refused("a queue too long"))?;
        self.resting(index)?
            .try_set_size(size)
            .map_err(|_| refused("a queue too long, or whose length is no power of two"))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return Err(refused("a queue to be logged"));
        }
        let outside = || refused("a queue outside the guest's memory");
        let memory = self.memory.as_ref().ok_or_else(outside)?;
        let [Some(descriptor), Some(available), Some(used)] =
            [descriptor, available, used].map(|address| memory.translate(address))
        else {
            return Err(outside());
        };
        ring::place(self.resting(index)?, [descriptor, available, used])
            .ok_or_else(|| refused("a queue that is not aligned"))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| refused("an index beyond 16 bits"))?;
        self.resting(index)?.set_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.ring(index)?.stop();
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = fd.ok_or_else(|| refused("a queue to be polled"))?;
        let kick = EventFd::new(fd).map_err(Error::ReqHandlerError)?;
        let event_idx = self.has(1 << VIRTIO_RING_F_EVENT_IDX);
        self.resting(index.into())?;
        let ring = self.rings.get_mut(usize::from(index));
        let (Some(memory), Some(ring)) = (&self.memory, ring) else {
            return Err(refused("a queue without memory"));
        };
        ring.start(&memory.guest, kick, event_idx)
            .map_err(|malformed| refused(&malformed.to_string()))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = fd.map(EventFd::new).transpose();
        let call = call.map_err(Error::ReqHandlerError)?;
        self.ring(index.into())?.set_call(call);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        // Errors end the connection; nobody has to be told otherwise.
        self.ring(index.into()).map(|_| ())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enable(enable);
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // A frontend may know of fields that this device has not.
        let space = config::space(self.size);
        let rest = space.get(offset as usize..).unwrap_or_default();
        Ok(rest
            .iter()
            .copied()
            .chain(std::iter::repeat(0))
            .take(size as usize)
            .collect())
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        // Nothing in it can be written: what a guest tries changes nothing.
        Ok(())
    }

    // What follows was not offered.

    fn reset_device(&mut self) -> Result<()> {
        Err(unoffered())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(unoffered())
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(unoffered())
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(unoffered())
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(unoffered())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(unoffered())
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        Err(unoffered())
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(unoffered())
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(unoffered())
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(unoffered())
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(unoffered())
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(unoffered())
    }
}

fn refused(what: &str) -> Error {
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, what))
}

fn unoffered() -> Error {
    Error::InvalidOperation("not offered")
}
