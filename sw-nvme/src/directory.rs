//! The controllers of an engine, by the index that handles carry.

use std::sync::{Arc, PoisonError, RwLock};

use sw_engine::{Error, ErrorKind, Face, Landing, Verb};

use crate::{bus::Bus, controller::Controller, namespace::Namespace, transport::NVME};

/// Controllers that one directory has an index for, those that were taken out included.
pub const CONTROLLERS_MAX: usize = 256;

/// Controllers behind a bus.
pub type Directory<B> = Indexed<Controller<B>>;

/// Something with a name in the operator's words.
pub trait Named {
    /// The name.
    fn name(&self) -> &str;
}

impl<B: Bus> Named for Controller<B> {
    fn name(&self) -> &str {
        self.name()
    }
}

/// Controllers of one kind, shared by all lanes of an engine. The index of a controller that was taken out stays empty: handles of its
/// namespaces must not reach another one.
pub struct Indexed<C>(RwLock<Vec<Option<Arc<C>>>>);

impl<C> Default for Indexed<C> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<C: Named> Indexed<C> {
    /// Adds an opened controller and gives its index.
    ///
    /// # Errors
    /// `ResourceLimit` past [`CONTROLLERS_MAX`].
    pub fn add(&self, controller: Arc<C>) -> Result<u32, Error> {
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

    /// Takes a controller out for good. Lanes that have a queue pair of it let go of it when they see that it is no longer
    /// up; from others it is gone at once: their I/Os end with `NoDevice`.
    pub fn take_out(&self, index: u32) -> Option<Arc<C>> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.get_mut(sw_mem::index(u64::from(index)))?.take()
    }

    /// The controller of an index.
    pub fn get(&self, index: u32) -> Option<Arc<C>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(sw_mem::index(u64::from(index)))?.clone()
    }

    /// How many indexes are given out: those of controllers that were taken out, too.
    pub fn count(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// All controllers that are in it, by index.
    pub fn all(&self) -> Vec<Arc<C>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().flatten().cloned().collect()
    }
}

/// Bits of a handle above those of the NSID: the index of the controller, then the generation of the namespace.
const INDEX_BITS: u32 = 8;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const _: () = assert!(CONTROLLERS_MAX == 1 << INDEX_BITS, "an index has its bits in a handle");
/// Generations are told apart by so many bits.
const GENERATION_MASK: u64 = (1 << (32 - INDEX_BITS)) - 1;

/// The handle of a namespace that is as it was when its controller (index 0 to 255) was opened.
pub const fn handle(controller: u32, nsid: u32) -> u64 {
    (controller as u64 & INDEX_MASK) << 32 | nsid as u64
}

/// The handle of a namespace as it is: I/Os with it fail once the namespace is another one or has another format.
const fn handle_of(controller: u32, nsid: u32, generation: u32) -> u64 {
    (generation as u64 & GENERATION_MASK) << (32 + INDEX_BITS) | handle(controller, nsid)
}

/// Controller index and NSID of a handle.
#[inline]
pub const fn split(handle: u64) -> (u64, u32) {
    (handle >> 32 & INDEX_MASK, (handle & 0xFFFF_FFFF) as u32)
}

/// The generation in a handle.
#[inline]
pub const fn generation(handle: u64) -> u32 {
    (handle >> (32 + INDEX_BITS)) as u32
}

/// A namespace's generation as a handle carries it.
pub const fn in_handle(generation: u32) -> u32 {
    (generation as u64 & GENERATION_MASK) as u32
}

/// The face of an object that is a namespace of controller `index`.
///
/// # Errors
/// `Unsupported` with the reason for a namespace that cannot be used.
pub fn face(index: u32, namespace: &Namespace) -> Result<Face, Error> {
    if let Some(unusable) = namespace.unusable {
        return Err(Error::new(ErrorKind::Unsupported, Verb::Open)
            .detail(format!("namespace {} cannot be used: {unusable}", namespace.nsid))
            .remedy("format it without metadata, or leave it to the kernel driver"));
    }
    Ok(Face {
        transport: NVME,
        handle: handle_of(index, namespace.nsid, namespace.generation),
        granularity: namespace.granularity(),
        write_unit: 1,
        landing: Landing::Dma,
        because: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_come_apart_again() {
        for (controller, nsid, number) in [(0, 1, 0), (255, 0xFFFF_FFFE, 0xFF_FFFF), (3, 7, 0x100_0001)] {
            let handle = handle_of(controller, nsid, number);
            assert_eq!((split(handle), generation(handle)), ((u64::from(controller), nsid), in_handle(number)));
        }
        assert_eq!(handle(3, 7), handle_of(3, 7, 0));
    }
}
