//! The subsystems behind TCP of an engine, and the faces of their namespaces. Indexes and handles are those of `sw-nvme`.

use sw_engine::{Error, Face, Granularity, Landing, Reason};
use sw_nvme::{
    directory::{self, Indexed, Named},
    namespace::Namespace,
};

use crate::{paths::Paths, transport::Wire};

/// Subsystems behind TCP with the paths to each, by the index that handles carry.
pub type Directory = Indexed<Paths>;

impl Named for Paths {
    fn name(&self) -> &str {
        self.name()
    }
}

/// The face of an object that is a namespace by paths `index`, whose bytes [land](Paths::landing) like that.
///
/// # Errors
/// `Unsupported` with the reason for a namespace that cannot be used.
pub fn face(
    wire: Wire,
    index: u32,
    namespace: &Namespace,
    (landing, because): (Landing, Option<Reason>),
) -> Result<Face, Error> {
    let face = directory::face(index, namespace).map_err(|error| error.remedy("format it without metadata"))?;
    // Any address: a processor copies, or a NIC, which takes any too.
    let granularity = Granularity { memory: 1, ..face.granularity };
    Ok(Face { transport: wire.transport(), granularity, landing, because, ..face })
}

/// Index, NSID and generation of a handle.
pub(crate) fn split(handle: u64) -> (usize, u32, u32) {
    let (index, nsid) = directory::split(handle);
    (sw_mem::index(index), nsid, directory::generation(handle))
}
