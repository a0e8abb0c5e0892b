//! The paths of a lane: of each subsystem the legs to it, what waits for one, and which stands how.
//!
//! ```text
//!   Io ─► Head ─► choose ─┬─► Leg ─► a connection
//!                         └─► waiting: no leg is connected that could take it ─► the first one that is, and can
//! ```

use std::{collections::VecDeque, sync::Arc, time::Duration};

use sw_engine::Time;
use sw_nvme::{
    paths::Standing,
    status::{Class, Status},
};

use super::Link;
use crate::{
    controller::{Controller, Ticket},
    directory::split,
    events::Stale,
    facts::Facts,
    paths::Paths,
};

/// A path that failed is taken again after so long at the latest, if nothing tells of it before.
pub(super) const CAUTION: Duration = Duration::from_secs(1);
/// Namespaces that a leg remembers as refused at most; of further ones it is asked once more.
const REFUSALS_MAX: usize = 1024;

/// A controller, as far as a lane got with it.
pub(super) enum Place {
    /// Not used yet, or lost.
    Unlinked,
    /// A connection was asked for.
    Asked(Arc<Ticket>),
    Linked(Box<Link>),
}

/// That a controller said of a namespace that it is not reached by it, or not there.
struct Refusal {
    nsid: u32,
    standing: Standing,
    /// Not before then, or before the facts are others.
    until: Time,
    revision: u64,
}

/// A path to a subsystem, of a lane.
pub(super) struct Leg {
    /// Whose it is, by the index of the lane's heads; and its number among the paths.
    pub(super) head: usize,
    number: usize,
    pub(super) place: Place,
    /// No connection is asked for before then: one was refused.
    pub(super) refused_until: Option<Time>,
    /// A command failed on its way through the controller: others first, until then.
    cautious_until: Option<Time>,
    refusals: Vec<Refusal>,
    facts: Option<Arc<Facts>>,
}

impl Leg {
    pub(super) fn new(head: usize, number: usize) -> Self {
        Self {
            head,
            number,
            place: Place::Unlinked,
            refused_until: None,
            cautious_until: None,
            refusals: Vec::new(),
            facts: None,
        }
    }

    /// Its number among the paths.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Works and commands that are with it.
    pub(super) fn busy(&self) -> usize {
        match &self.place {
            Place::Unlinked | Place::Asked(_) => 0,
            Place::Linked(link) => link.busy(),
        }
    }

    /// Whether it has a connection of an association that is up.
    pub(super) fn is_linked(&self) -> bool {
        matches!(&self.place, Place::Linked(link) if link.is_up())
    }

    /// How the namespace of a handle stands by its controller, whether there is a connection or not.
    pub(super) fn standing(&mut self, paths: &Paths, handle: u64, now: Time) -> Standing {
        let Some(controller) = paths.controller(self.number) else { return Standing::Later };
        if controller.is_gone() {
            return Standing::Never;
        }
        let facts = self.hear(controller);
        if !controller.is_up(facts) {
            return Standing::Coming;
        }
        let revision = facts.revision;
        let Some(namespace) = facts.namespace_of(handle) else { return Standing::Another };
        let told = facts.standing_of(namespace);
        self.cautious_until = self.cautious_until.filter(|until| now < *until);
        self.refusals.retain(|refusal| now < refusal.until && refusal.revision == revision);
        let nsid = split(handle).1;
        let refused = self.refusals.iter().find(|refusal| refusal.nsid == nsid);
        let most = match (refused, self.cautious_until) {
            (Some(refusal), _) => refusal.standing,
            (None, Some(_)) => Standing::Works,
            (None, None) => Standing::Best,
        };
        told.min(most)
    }

    /// What the controller said last.
    fn hear(&mut self, controller: &Controller) -> &Arc<Facts> {
        let known = self.facts.take().filter(|facts| facts.revision == controller.revision());
        self.facts.insert(known.unwrap_or_else(|| controller.facts()))
    }

    /// A command for the namespace of a handle ended with a status: the controller's access to it, or that it is not there, or that the command
    /// failed inside of the controller, is kept in mind.
    pub(super) fn heed(&mut self, handle: u64, status: Status, now: Time) {
        let Place::Linked(link) = &self.place else { return };
        let until = now.after(CAUTION);
        let (standing, stale) = match (status.class(), status.code()) {
            // Asymmetric access: persistent loss, inaccessible, transition.
            (Class::Path, 0x301..=0x303) => (Standing::Later, Stale { access: true, ..Stale::default() }),
            (Class::NamespaceGone, _) => (Standing::Absent, Stale { namespaces: true, ..Stale::default() }),
            (Class::Path, _) => {
                self.cautious_until = Some(until);
                return;
            }
            _ => return,
        };
        link.controller.distrust(stale);
        let (nsid, revision) = (split(handle).1, self.facts.as_ref().map_or(0, |facts| facts.revision));
        self.refusals.retain(|refusal| refusal.nsid != nsid);
        if self.refusals.len() < REFUSALS_MAX {
            self.refusals.push(Refusal { nsid, standing, until, revision });
        }
    }
}

/// A subsystem, of a lane: its legs lie one behind the other.
pub(super) struct Head {
    pub(super) paths: Arc<Paths>,
    pub(super) first: usize,
    pub(super) count: usize,
    /// Works that no leg can take now.
    pub(super) waiting: VecDeque<u32>,
    /// Choices so far.
    pub(super) turn: usize,
}
