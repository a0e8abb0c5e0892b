//! Registrations that do not keep their memory: they end with its last handle, before the memory goes.
//!
//! ```text
//!   region ── guest: Tenants ──► Slot ◄── Bound, the Mr of whoever registered
//!                                  └── the fabric's own Mr, taken out and ended by whichever comes first
//! ```
//!
//! The fabric's own `Mr` holds nothing of the region here, and is in no hand but the slot's: what a device may touch is over when the region's guests are
//! dropped, which `sw-mem` does before it lets go of the memory.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{Mr, Sge},
};
use sw_mem::{DmaRegion, Guest, GuestKey, RemoteAddr};

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

/// The fabric's own; `None` once it is over.
struct Slot(Mutex<Option<Box<dyn Mr>>>);

impl Slot {
    /// Ends it, or waits until another thread has.
    fn end(&self) {
        let mut mr = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mr) = mr.take() {
            mr.deregister();
        }
    }

    fn look<T>(&self, look: impl FnOnce(&dyn Mr) -> Option<T>) -> Option<T> {
        look(&**self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?)
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
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).iter().for_each(|slot| slot.end());
    }
}

struct Bound {
    slot: Arc<Slot>,
    len: u64,
}

/// Binds a registration that [keeps nothing](Keeps::Nothing) to its region.
pub(crate) fn bind(region: &DmaRegion, mr: Box<dyn Mr>) -> Result<Box<dyn Mr>, Error> {
    let len = mr.len();
    let slot = Arc::new(Slot(Mutex::new(Some(mr))));
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

    fn deregister(self: Box<Self>) {}
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.slot.end();
    }
}
