//! Registrations that do not keep their memory: they end with its last handle, before the memory goes.
//!
//! ```text
//!   region ── guest: Tenants ──► Slot ◄── Bound, the Mr of whoever registered
//!                                  └── the fabric's own Mr, taken out and ended by whichever comes first
//! ```
//!
//! The fabric's own `Mr` holds nothing of the region here, and is in no hand but the slot's: what a device may touch is over when the region's guests are
//! dropped, which `sw-mem` does before it lets go of the memory. Where the fabric refuses to end it, the region gets a handle that is never dropped: then
//! its memory stays. Only behind its last handle nothing can be kept any more; what the kernel has registered it keeps pinned.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{Mr, Sge},
};
use sw_mem::{DmaRegion, Guest, GuestKey, RemoteAddr, WeakRegion};

use crate::emulated::Mapping;

/// Whether an `Mr` keeps the memory of its region.
#[derive(Clone)]
pub(crate) enum Keeps {
    /// It does.
    Memory(#[expect(dead_code, reason = "kept, not looked at")] DmaRegion),
    /// It is bound to the region.
    Nothing,
    /// What was mapped for it, of a descriptor.
    Mapping(#[expect(dead_code, reason = "kept, not looked at")] Arc<Mapping>),
}

/// One guest for each region, whoever registers it, however often.
fn key() -> GuestKey {
    static KEY: OnceLock<GuestKey> = OnceLock::new();
    *KEY.get_or_init(GuestKey::fresh)
}

struct Slot {
    /// The fabric's own; `None` once it is over.
    mr: Mutex<Option<Box<dyn Mr>>>,
    region: WeakRegion,
}

impl Slot {
    /// Ends it, or waits until another thread has.
    fn end(&self) -> Result<(), Error> {
        let mut mr = self.mr.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mr) = mr.take() else { return Ok(()) };
        mr.deregister().inspect_err(|_| {
            // For ever; without a handle left it is too late.
            self.region.upgrade().map(|region| Box::leak(Box::new(region)));
        })
    }

    fn look<T>(&self, look: impl FnOnce(&dyn Mr) -> Option<T>) -> Option<T> {
        look(&**self.mr.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?)
    }
}

/// What is registered of a region.
#[derive(Default)]
struct Tenants(Mutex<Vec<Arc<Slot>>>);

impl Tenants {
    fn admit(&self, slot: Arc<Slot>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended meanwhile leave their places.
        all.retain(|slot| slot.look(|_| Some(())).is_some());
        all.push(slot);
    }
}

impl Drop for Tenants {
    fn drop(&mut self) {
        for slot in self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            if let Err(error) = slot.end() {
                tracing::error!(%error, "memory goes while a device may reach it");
            }
        }
    }
}

struct Bound {
    slot: Arc<Slot>,
    len: u64,
}

/// Binds a registration that [keeps nothing](Keeps::Nothing) to its region.
pub(crate) fn bind(region: &DmaRegion, mr: Box<dyn Mr>) -> Result<Box<dyn Mr>, Error> {
    let len = mr.len();
    let slot = Arc::new(Slot { mr: Mutex::new(Some(mr)), region: region.downgrade() });
    let bound = Bound { slot: Arc::clone(&slot), len };
    region.bind(key(), || Ok::<_, Error>(Box::new(Tenants::default()) as Guest))?;
    match region.bound(key(), |tenants: &Tenants| tenants.admit(slot)) {
        Some(()) => Ok(Box::new(bound)),
        // Nobody unbinds it; if somebody did, what was registered ends here.
        None => Err(Error::new(ErrorKind::NotRegistered, Verb::Setup).at("mr").detail("the region lets go of it")),
    }
}

impl Mr for Bound {
    fn len(&self) -> u64 {
        self.len
    }

    fn sge(&self, at: u64, len: u32) -> Option<Sge> {
        self.slot.look(|mr| mr.sge(at, len))
    }

    fn remote(&self, at: u64) -> Option<RemoteAddr> {
        self.slot.look(|mr| mr.remote(at))
    }

    fn deregister(self: Box<Self>) -> Result<(), Error> {
        self.slot.end()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Its memory stays then.
        let _ = self.slot.end();
    }
}

#[cfg(test)]
mod tests {
    use sw_mem::{Buffer, ByteLen};

    use super::*;

    /// One whose device lets go of it, or refuses.
    struct Told(Result<(), ErrorKind>);

    impl Mr for Told {
        fn len(&self) -> u64 {
            4096
        }

        fn sge(&self, _: u64, _: u32) -> Option<Sge> {
            None
        }

        fn remote(&self, _: u64) -> Option<RemoteAddr> {
            None
        }

        fn deregister(self: Box<Self>) -> Result<(), Error> {
            self.0.map_err(|kind| Error::new(kind, Verb::Setup))
        }
    }

    #[test]
    fn memory_that_is_bound_and_not_let_go_of_stays() {
        for (told, stays) in [(Ok(()), false), (Err(ErrorKind::Io), true)] {
            let span = Buffer::allocate(ByteLen(4096)).unwrap().into_span();
            let region = span.region().downgrade();
            let mr = bind(span.region(), Box::new(Told(told))).unwrap();
            assert_eq!(mr.deregister().is_err(), stays);
            drop(span);
            assert_eq!(region.is_alive(), stays, "{told:?}");
        }
    }
}
