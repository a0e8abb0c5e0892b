//! What a controller says of itself and of its namespaces, as its association found it.

use std::time::Duration;

use sw_nvme::{
    directory::in_handle,
    namespace::Namespace,
    paths::Standing,
    resets::Life,
    tcp::{association::LettingGo, pdu::Digests},
    wire::{
        ana::Groups,
        identify::IdentifyController,
        regs::{Cap, Version},
    },
};

use crate::{directory::split, tls::Protection};

/// What a controller said when its association was made, and of its namespaces since.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Counts the associations of this controller from 1.
    pub association: u64,
    /// Identify Controller.
    pub info: IdentifyController,
    /// CAP.
    pub cap: Cap,
    /// VS.
    pub version: Version,
    /// CNTLID of the association.
    pub id: u16,
    /// How others are asked to reset this controller, in this association; `None`: it does not say.
    pub life: Option<Life>,
    /// I/O queues that we may have.
    pub queues: u16,
    /// Commands of one I/O queue at a time.
    pub depth: u16,
    /// Bytes of a write that go in its capsule at most.
    pub capsule_data_bytes: u32,
    /// How long the controller may take to end all commands once it has noticed that its host is gone (CQT).
    pub quiesce: Duration,
    /// Digests that both ends use.
    pub digests: Digests,
    /// How the bytes of all connections are protected.
    pub protection: Protection,
    /// The active namespaces, and those that were there in this association.
    pub namespaces: Box<[Namespace]>,
    /// The numbers of the latter.
    pub absent: Box<[u32]>,
    /// How groups of namespaces are reached by this controller; `None`: it does not tell (CMIC), or what it tells was never understood.
    pub access: Option<Groups>,
    /// Which look at the namespaces and their access this is, over all associations, from 1.
    pub revision: u64,
}

impl Facts {
    /// The namespace of a number.
    pub fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.nsid == nsid)
    }

    /// The namespace of a handle: that of its number, if it is the one that the handle was made for.
    pub(crate) fn namespace_of(&self, handle: u64) -> Option<&Namespace> {
        let (_, nsid, asked) = split(handle);
        self.namespaces.iter().find(|found| found.nsid == nsid && in_handle(found.generation) == asked)
    }

    /// How a namespace stands by this controller while its association is up.
    pub fn standing_of(&self, namespace: &Namespace) -> Standing {
        if self.absent.contains(&namespace.nsid) {
            return Standing::Absent;
        }
        match self.access.as_ref().map(|groups| groups.of(namespace.info.ana_group)) {
            // Commands find out: one that does not reach it says so.
            None if self.info.tells_access() => Standing::Works,
            Some(None) if self.access.as_ref().is_some_and(Groups::is_cut) => Standing::Works,
            None => Standing::of(None),
            // It may be told yet.
            Some(None) => Standing::Later,
            Some(told) => Standing::of(told),
        }
    }

    /// How long after a loss the controller may still carry out commands, where KATO is `keep_alive`.
    pub(crate) fn letting_go(&self, keep_alive: Duration) -> Duration {
        LettingGo::of(&self.info, keep_alive, self.quiesce).span()
    }
}
