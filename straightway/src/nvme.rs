//! NVMe controllers that this process drives itself, and memory behind BARs.

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{CopyEngine, Entry, OpenMode, Transport, TransportCaps},
};
use sw_mem::{ByteLen, DmaRegion};

use crate::{
    builder::Config,
    clock::Clock,
    policy::{Destination, PciBar},
    uri::NvmeUri,
};

/// Nothing yet: the driver is not composed.
pub(crate) struct Nvme;

pub(crate) struct Peer;

fn not_composed(at: String) -> Error {
    Error::new(ErrorKind::Unsupported, Verb::Open)
        .at(at)
        .detail("the NVMe driver is not part of this build yet")
        .remedy("use the kernel's block device")
}

impl Nvme {
    pub(crate) fn find(_config: Config, _clock: Clock) -> Self {
        Self
    }

    pub(crate) fn open(
        &self,
        namespace: &NvmeUri,
        _mode: OpenMode,
    ) -> Result<std::sync::Arc<sw_engine::Object>, Error> {
        Err(not_composed(namespace.controller.to_string()))
    }

    pub(crate) fn stat(&self, namespace: &NvmeUri) -> Result<Entry, Error> {
        Err(not_composed(namespace.controller.to_string()))
    }

    pub(crate) fn peer(&self, bar: PciBar) -> Result<Peer, Error> {
        Err(not_composed(bar.address.to_string()))
    }

    pub(crate) fn caps(&self, _destination: Destination) -> Option<TransportCaps> {
        None
    }

    pub(crate) fn transport(&self) -> Result<Option<Box<dyn Transport>>, Error> {
        Ok(None)
    }
}

impl Peer {
    pub(crate) fn allocate(&self, _len: ByteLen) -> Result<DmaRegion, Error> {
        Err(not_composed("bar".into()))
    }

    pub(crate) fn copier(&self, _depth: u32) -> Result<Box<dyn CopyEngine>, Error> {
        Err(not_composed("bar".into()))
    }
}
