//! The paths of a lane: of each subsystem the legs to it, what waits for one, and which stands how.
//!
//! ```text
//!   Io ─► Head ─► choose ─┬─► Leg ─► Place: a connection, or works that wait for one
//!                         └─► waiting: no leg can be used now
//! ```

use std::{collections::VecDeque, sync::Arc, time::Duration};

use sw_engine::Time;
use sw_nvme::paths::Standing;

use super::Link;
use crate::{
    controller::{Controller, Facts, Ticket},
    paths::Paths,
};

/// A path that failed is taken again after so long at the latest, if nothing tells of it before.
pub(super) const CAUTION: Duration = Duration::from_secs(1);

/// A controller, as far as a lane got with it.
pub(super) enum Place {
    /// Not used yet, or lost: the next I/O asks for a connection.
    Unlinked,
    /// A connection was asked for: works wait.
    Asked(Arc<Ticket>, VecDeque<u32>),
    Linked(Box<Link>),
}

/// What the lane itself found of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// Its connection was lost or not made: others first, until there is one.
    Lost,
    /// A command failed on its way through the controller: others first, until then.
    Cautious(Time),
    /// The controller said of a namespace that it is not reached by it: not before then, or before the facts are others.
    Refused(Time, u64),
}

/// A path to a subsystem, of a lane.
pub(super) struct Leg {
    /// Whose it is, by the index of the lane's heads; and its number among the paths.
    pub(super) head: usize,
    number: usize,
    pub(super) place: Place,
    pub(super) mood: Mood,
    facts: Option<Arc<Facts>>,
}

impl Leg {
    pub(super) fn new(head: usize, number: usize) -> Self {
        Self { head, number, place: Place::Unlinked, mood: Mood::Well, facts: None }
    }

    /// Its number among the paths.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Works and commands that are with it.
    pub(super) fn busy(&self) -> usize {
        match &self.place {
            Place::Unlinked => 0,
            Place::Asked(_, waiting) => waiting.len(),
            Place::Linked(link) => link.busy(),
        }
    }

    /// How the namespace of a handle stands by it.
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
        match self.mood {
            Mood::Well => {}
            Mood::Lost => return told.min(Standing::Coming),
            Mood::Cautious(until) if now < until => return told.min(Standing::Works),
            Mood::Refused(until, then) if now < until && then == revision => return told.min(Standing::Later),
            Mood::Cautious(_) | Mood::Refused(..) => self.mood = Mood::Well,
        }
        told
    }

    /// What the controller said last.
    fn hear(&mut self, controller: &Controller) -> &Arc<Facts> {
        let known = self.facts.take().filter(|facts| facts.revision == controller.revision());
        self.facts.insert(known.unwrap_or_else(|| controller.facts()))
    }

    /// A command was refused by way of the controller's access to the namespace, or failed inside of it.
    pub(super) fn heed(&mut self, controller: &Controller, code: u16, now: Time) {
        let revision = self.facts.as_ref().map_or(0, |facts| facts.revision);
        self.mood = match code {
            // Asymmetric access: persistent loss, inaccessible, transition.
            0x301..=0x303 => {
                controller.distrust();
                Mood::Refused(now.after(CAUTION), revision)
            }
            _ => Mood::Cautious(now.after(CAUTION)),
        };
    }
}

/// A subsystem, of a lane: its legs lie one behind the other.
pub(super) struct Head {
    pub(super) paths: Arc<Paths>,
    pub(super) first: usize,
    pub(super) count: usize,
    /// Works that no leg can take now, and since when there are some.
    pub(super) waiting: VecDeque<u32>,
    pub(super) starved: Option<Time>,
    /// Choices so far.
    pub(super) turn: usize,
}
