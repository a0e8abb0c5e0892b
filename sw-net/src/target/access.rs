//! How namespaces are reached by each port, and who was told.
//!
//! Each namespace is a group of its own, with its NSID for a number. Base 2.1, 8.1.1 "Asymmetric Namespace Access Reporting".

use std::sync::{Mutex, MutexGuard, PoisonError};

use sw_nvme::{
    status::{Status, sct},
    wire::{
        ana::{Access, GROUP_BYTES, HEADER_BYTES},
        feature::async_events,
        log,
    },
};

/// Statuses of a command that comes by a port that does not reach its namespace.
const PERSISTENT_LOSS: Status = Status::new(sct::PATH, 0x01);
const INACCESSIBLE: Status = Status::new(sct::PATH, 0x02);
const TRANSITION: Status = Status::new(sct::PATH, 0x03);
/// DW0 of the event: a notice (2) that asymmetric access changed (3), with its log page.
pub(super) const CHANGED: u32 = 2 | 3 << 8 | (log::id::ANA as u32) << 16;
/// ANATT in seconds: what Linux's target says too.
pub(super) const TRANSITION_S: u8 = 10;

/// See the module documentation. Nothing in it: it is not told of.
#[derive(Default)]
pub(super) struct Table(Mutex<Vec<Port>>);

/// A port.
struct Port {
    changes: u64,
    /// Of each namespace.
    states: Vec<Access>,
}

/// What a controller was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// All changes up to that number.
    Changes(u64),
    /// That there are more; it has not looked yet.
    Event,
}

impl Table {
    /// Of so many ports and namespaces.
    pub(super) fn new(ports: usize, namespaces: usize) -> Self {
        let port = || Port { changes: 0, states: vec![Access::Optimized; namespaces] };
        Self(Mutex::new((0..ports).map(|_| port()).collect()))
    }

    fn ports(&self) -> MutexGuard<'_, Vec<Port>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is told of at all.
    pub(super) fn is_told(&self) -> bool {
        !self.ports().is_empty()
    }

    /// Changes how a namespace is reached by a port; one that is not there changes nothing.
    pub(super) fn set(&self, port: usize, nsid: u32, access: Access) {
        let mut ports = self.ports();
        let Some(port) = ports.get_mut(port) else { return };
        let state = sw_mem::index(nsid.into()).checked_sub(1).and_then(|index| port.states.get_mut(index));
        if let Some(state) = state.filter(|state| **state != access) {
            *state = access;
            port.changes += 1;
        }
    }

    /// Changes of a port so far.
    pub(super) fn changes(&self, port: usize) -> u64 {
        self.ports().get(port).map_or(0, |port| port.changes)
    }

    /// Whether a command for a namespace may come by a port.
    pub(super) fn check(&self, port: usize, nsid: u32) -> Result<(), Status> {
        let ports = self.ports();
        let states = ports.get(port).map(|port| port.states.as_slice()).unwrap_or_default();
        // What is for all namespaces is for those that are reached.
        match sw_mem::index(nsid.into()).checked_sub(1).and_then(|index| states.get(index)) {
            None | Some(Access::Optimized | Access::NonOptimized) => Ok(()),
            Some(Access::Inaccessible) => Err(INACCESSIBLE),
            Some(Access::PersistentLoss) => Err(PERSISTENT_LOSS),
            Some(Access::Change) => Err(TRANSITION),
        }
    }

    /// The log page as a port has it; without the namespaces of the groups (RGO), or with them.
    pub(super) fn page(&self, port: usize, with: Namespaces) -> Vec<u8> {
        let ports = self.ports();
        let Some(port) = ports.get(port) else { return Vec::new() };
        let mut page = vec![0; HEADER_BYTES];
        let count = u16::try_from(port.states.len()).unwrap_or(u16::MAX);
        page.splice(..10, port.changes.to_le_bytes().into_iter().chain(count.to_le_bytes()));
        for (nsid, access) in (1u32..).zip(&port.states) {
            let mut group = [0; GROUP_BYTES];
            group[..4].copy_from_slice(&nsid.to_le_bytes());
            group[8..16].copy_from_slice(&port.changes.to_le_bytes());
            group[16] = access.bits();
            if with == Namespaces::Listed {
                group[4] = 1;
            }
            page.extend(group);
            if with == Namespaces::Listed {
                page.extend(nsid.to_le_bytes());
            }
        }
        page
    }

    /// Whether a controller with that configuration of events is to be told of changes now.
    pub(super) fn has_event(&self, port: usize, event_config: u32, told: Told) -> bool {
        event_config & async_events::ANA_CHANGE != 0
            && matches!(told, Told::Changes(before) if before < self.changes(port))
    }
}

/// What stands with a group in the log page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Namespaces {
    /// RGO.
    Left,
    /// Its namespace.
    Listed,
}
