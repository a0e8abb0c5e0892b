//! The controllers behind TCP of an engine, and the faces of their namespaces. Indexes and handles are those of `sw-nvme`.

use sw_engine::{Error, Face, Granularity, Landing, Reason};
use sw_nvme::{
    directory::{self, Indexed, Named},
    namespace::Namespace,
};

use crate::{controller::Controller, tls::Protection, transport::Wire};

/// Controllers behind TCP, by the index that handles carry.
pub type Directory = Indexed<Controller>;

impl Named for Controller {
    fn name(&self) -> &str {
        self.name()
    }
}

/// The face of an object that is a namespace of controller `index`, whose connections are protected like that.
///
/// # Errors
/// `Unsupported` with the reason for a namespace that cannot be used.
pub fn face(wire: Wire, index: u32, namespace: &Namespace, protection: Protection) -> Result<Face, Error> {
    let face = directory::face(index, namespace).map_err(|error| error.remedy("format it without metadata"))?;
    // Where a library has the bytes in between, the kernel's copy is not the last one.
    let (landing, because) = match protection {
        Protection::None | Protection::TlsKernel => (Landing::KernelCopy, None),
        Protection::TlsLibrary => (Landing::Staged, Some(Reason::TlsInUserSpace)),
    };
    Ok(Face {
        transport: wire.transport(),
        // Any address: the kernel copies, that of the emulation too.
        granularity: Granularity { memory: 1, ..face.granularity },
        landing,
        because,
        ..face
    })
}

/// Index, NSID and generation of a handle.
pub(crate) fn split(handle: u64) -> (usize, u32, u32) {
    let (index, nsid) = directory::split(handle);
    (sw_mem::index(index), nsid, directory::generation(handle))
}
