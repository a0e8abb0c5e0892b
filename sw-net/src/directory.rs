//! The controllers of an engine, by the index that handles carry, and the handles.

use std::sync::{Arc, PoisonError, RwLock};

use sw_engine::{Error, ErrorKind, Face, Granularity, Landing, Verb};
use sw_nvme::namespace::Namespace;

use crate::{controller::Controller, transport::NVME_TCP};

/// Controllers that one directory has an index for, those that were taken out included.
pub const CONTROLLERS_MAX: usize = 256;

/// The controllers of an engine, by the index that handles carry. Shared by all lanes.
#[derive(Default)]
pub struct Directory(RwLock<Vec<Option<Arc<Controller>>>>);

impl Directory {
    /// Adds a controller and gives its index.
    ///
    /// # Errors
    /// `ResourceLimit` past [`CONTROLLERS_MAX`].
    pub fn add(&self, controller: Arc<Controller>) -> Result<u32, Error> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= CONTROLLERS_MAX {
            return Err(Error::new(ErrorKind::ResourceLimit, Verb::Open)
                .at(controller.name())
                .detail(format!("{CONTROLLERS_MAX} controllers were opened already"))
                .remedy("make another engine"));
        }
        all.push(Some(controller));
        // At most 256.
        Ok(u32::try_from(all.len() - 1).unwrap_or(0))
    }

    /// Takes a controller out for good. Lanes let go of it when they see that it is gone.
    pub fn take_out(&self, index: u32) -> Option<Arc<Controller>> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.get_mut(sw_mem::index(u64::from(index)))?.take()
    }

    pub(crate) fn get(&self, index: usize) -> Option<Arc<Controller>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(index)?.clone()
    }
}

/// The face of an object that is a namespace of controller `index`.
///
/// # Errors
/// `Unsupported` with the reason for a namespace that cannot be used.
pub fn face(index: u32, namespace: &Namespace) -> Result<Face, Error> {
    if let Some(unusable) = namespace.unusable {
        return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
            .detail(format!("namespace {} cannot be used: {unusable}", namespace.nsid))
            .remedy("format it without metadata"));
    }
    Ok(Face {
        transport: NVME_TCP,
        handle: u64::from(in_handle(namespace.generation)) << 40
            | u64::from(index & 0xFF) << 32
            | u64::from(namespace.nsid),
        // Any address: the kernel copies.
        granularity: Granularity { block: namespace.block_bytes(), memory: 1 },
        write_unit: 1,
        landing: Landing::KernelCopy,
        because: None,
    })
}

/// A generation as a handle carries it: 24 bits, above the 8 of the index.
pub(crate) fn in_handle(generation: u32) -> u32 {
    generation & 0xFF_FFFF
}

/// Index, NSID and generation of a handle.
pub(crate) fn split(handle: u64) -> (usize, u32, u32) {
    let low = |word: u64| u32::try_from(word & 0xFFFF_FFFF).unwrap_or(0);
    (sw_mem::index(handle >> 32 & 0xFF), low(handle), in_handle(low(handle >> 40)))
}
