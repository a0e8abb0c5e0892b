//! Fences that outlive their controllers: subsystems that are opened again while what an earlier controller of this process sent to them may
//! still be carried out.
//!
//! ```text
//!   Controller: a write is in doubt, or the association is given up ──► hold ─► (address, until when) ─► held ──► the next Controller
//! ```
//!
//! Bounded: what is over is forgotten with the next note.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sw_engine::Time;

use crate::{clock::now, controller::Address};

static HELD: Mutex<BTreeMap<Address, Time>> = Mutex::new(BTreeMap::new());

/// Those that are not over.
fn table() -> MutexGuard<'static, BTreeMap<Address, Time>> {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let now = now();
    held.retain(|_, safe| *safe > now);
    held
}

/// Notes that no write to a subsystem is safe before `safe`.
pub(crate) fn hold(address: &Address, safe: Time) {
    let mut held = table();
    let until = held.entry(address.clone()).or_insert(safe);
    *until = safe.max(*until);
}

/// Until when no write to a subsystem is safe, of what was noted.
pub(crate) fn held(address: &Address) -> Option<Time> {
    table().get(address).copied()
}
