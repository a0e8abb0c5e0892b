//! Several controllers of one subsystem: which of them an I/O goes by, which namespaces of theirs are the same, and when writes are safe.
//!
//! ```text
//!   what each controller says ─► Lineage ─► generation   the same by every controller for the same namespace
//!   association, Access, lane ─► Standing ─► choose ─► this one · any of those that may come · wait · never
//!   a write in doubt by one ────► Fences ─► no write by any, until that one has provably let go
//! ```
//!
//! Nothing here does I/O or knows the time.

use std::collections::{BTreeMap, VecDeque};

use sw_engine::Time;

use crate::{
    namespace::Namespace,
    resets::{Errand, Errands, Life, Verdict},
    wire::ana::Access,
};

/// Paths of one address at most.
pub const PATHS_MAX: usize = 16;
/// Namespaces that a lineage remembers: further ones are other ones each time that they are looked at.
const LINEAGE_MAX: usize = 4096;
/// Lives of controllers that are known to be over; of those before, doubt that is told later counts by time again.
const PROVEN_MAX: usize = 256;

/// How a namespace stands by one path, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Never again: the controller will not come back, or it is a persistent loss.
    Never,
    /// The controller has another namespace of that number, or never had one: nothing of it is the one that was opened.
    Another,
    /// The controller has it not any more, and may have it again: what goes there is refused.
    Absent,
    /// Not now: inaccessible, changing, or not told yet.
    Later,
    /// The association is being made: what is put there goes with it.
    Coming,
    /// It works, and so does something better perhaps: non-optimized, or it failed a moment ago.
    Works,
    /// Optimized.
    Best,
}

impl Standing {
    /// Of a namespace that a controller whose association is up tells `access` of; `None`: it tells nothing of that kind.
    pub const fn of(access: Option<Access>) -> Self {
        match access {
            None | Some(Access::Optimized) => Self::Best,
            Some(Access::NonOptimized) => Self::Works,
            Some(Access::Inaccessible | Access::Change) => Self::Later,
            Some(Access::PersistentLoss) => Self::Never,
        }
    }
}

/// What becomes of an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It goes by the path of that place.
    By(usize),
    /// It waits: no path is there, and one may come.
    Wait,
    /// No path comes, and this is the best that any has.
    Never(Standing),
}

/// How I/Os are spread over paths that stand equally well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// By that with the fewest commands of the lane under way; in turn where there are as few by several.
    #[default]
    All,
    /// By the first one.
    First,
}

/// Chooses among paths, of each its standing and the commands that the lane has under way by it. `turn` counts the choices of the lane.
pub fn choose(paths: impl Iterator<Item = (Standing, usize)> + Clone, spread: Spread, turn: usize) -> Choice {
    let Some(best) = paths.clone().map(|(standing, _)| standing).max() else { return Choice::Never(Standing::Never) };
    match best {
        Standing::Never | Standing::Another => return Choice::Never(best),
        Standing::Later => return Choice::Wait,
        Standing::Absent | Standing::Coming | Standing::Works | Standing::Best => {}
    }
    let good = paths.enumerate().filter(|(_, (standing, _))| *standing == best);
    let found = match spread {
        Spread::First => good.clone().next(),
        Spread::All => {
            let fewest = good.clone().map(|(_, (_, busy))| busy).min().unwrap_or(0);
            let free = good.filter(|(_, (_, busy))| *busy == fewest);
            let turn = turn.checked_rem(free.clone().count()).unwrap_or(0);
            free.clone().nth(turn)
        }
    };
    found.map_or(Choice::Wait, |(place, _)| Choice::By(place))
}

/// Which namespaces are the same, by whichever controller of a subsystem, and in whichever association, they are seen.
#[derive(Debug, Default)]
pub struct Lineage {
    seen: Vec<Seen>,
    /// The last generation that was given out.
    last: u32,
}

#[derive(Debug)]
struct Seen {
    serial: String,
    namespace: Namespace,
}

impl Lineage {
    /// Gives a namespace, of a subsystem with that serial number, its generation: that of the one that it goes on from, or one that none
    /// had. A namespace of a subsystem with another serial number is another one, whatever its own name: what was opened for writing was
    /// opened by that number.
    pub fn name(&mut self, namespace: &mut Namespace, serial: &str) {
        let same = |seen: &&mut Seen| {
            seen.namespace.nsid == namespace.nsid && seen.serial == serial && namespace.continues(&seen.namespace)
        };
        if let Some(seen) = self.seen.iter_mut().find(same) {
            namespace.generation = seen.namespace.generation;
            // One that is known by its name may have grown.
            seen.namespace = namespace.clone();
            return;
        }
        let is_full = self.seen.len() >= LINEAGE_MAX;
        namespace.generation = if is_full || self.seen.iter().any(|seen| seen.namespace.nsid == namespace.nsid) {
            self.last = self.last.wrapping_add(1);
            self.last
        } else {
            0
        };
        if !is_full {
            self.seen.push(Seen { serial: serial.to_owned(), namespace: namespace.clone() });
        }
    }
}

/// Who may still carry something out: a controller of the subsystem, as its host counts them, in one of its associations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The controller.
    pub controller: u64,
    /// Its association.
    pub association: u64,
}

/// Of one holder.
#[derive(Debug)]
struct Fence {
    safe: Time,
    /// As its controller names itself; `None`: it does not.
    life: Option<Life>,
    /// Whoever asks another controller about it now, and whoever did.
    asks: Option<Holder>,
    asked: Vec<Holder>,
}

/// When writes to a subsystem are safe, with what each of its controllers may still carry out.
#[derive(Debug, Default)]
pub struct Fences {
    of: BTreeMap<Holder, Fence>,
    /// Holders that have let go of everything before their time, the last one at the end.
    proven: VecDeque<Holder>,
    proofs: u64,
    doubts: u64,
    /// Writes that are under way though whoever asked for them was told that their outcome is unknown.
    awaited: u64,
}

impl Fences {
    /// How often a fence was raised so far: as long as this stays the same, what was safe is.
    pub fn doubts(&self) -> u64 {
        self.doubts
    }

    /// A holder may carry out what is in doubt, and has let go of it by `safe`; not one of which it is [proven](Self::settle) that it does
    /// not. `life` is how others ask about it.
    pub fn raise(&mut self, holder: Holder, safe: Time, life: Option<&Life>) {
        if self.proven.contains(&holder) {
            return;
        }
        let fence = self.of.entry(holder).or_insert_with(|| Fence {
            safe: Time::ZERO,
            life: life.cloned(),
            asks: None,
            asked: Vec::new(),
        });
        if fence.safe < safe {
            fence.safe = safe;
            self.doubts += 1;
        }
    }

    /// A holder that an association is to ask its controller about, if there is one: nobody else asks about it meanwhile, and this
    /// association never again. The answer is [settled](Self::settle).
    pub fn claim(&mut self, errands: &Errands, now: Time) -> Option<Errand> {
        let errand = self.claimable(errands, now)?;
        let fence = self.of.get_mut(&errand.of)?;
        fence.asks = Some(errands.by());
        fence.asked.push(errands.by());
        Some(errand)
    }

    /// What would be claimed.
    pub fn claimable(&self, errands: &Errands, now: Time) -> Option<Errand> {
        let by = errands.by();
        self.of.iter().find_map(|(of, fence)| {
            let is_free = fence.asks.is_none() && !fence.asked.contains(&by);
            let life = fence.life.as_ref().filter(|life| errands.may_ask(life))?;
            let errand = Errand { of: *of, instance: life.instance, until: fence.safe };
            (*of != by && is_free && now < fence.safe).then_some(errand)
        })
    }

    /// What asking came to: a holder that provably carries nothing out any more has no fence, now and later. Anything else leaves it as it is.
    pub fn settle(&mut self, errand: &Errand, verdict: Verdict) {
        match verdict {
            Verdict::Open => {}
            Verdict::Failed => {
                if let Some(fence) = self.of.get_mut(&errand.of) {
                    fence.asks = None;
                }
            }
            Verdict::Done => {
                self.of.remove(&errand.of);
                if self.proven.len() >= PROVEN_MAX {
                    self.proven.pop_front();
                }
                self.proven.push_back(errand.of);
                self.proofs += 1;
            }
        }
    }

    /// How often a fence was over before its time, as another controller told.
    pub fn proofs(&self) -> u64 {
        self.proofs
    }

    /// A write goes on though its end was told, as unknown: no other one is sent before it has [ended](Self::answered), or it is in doubt.
    pub fn awaits(&mut self) {
        self.awaited += 1;
        self.doubts += 1;
    }

    /// One of those has ended.
    pub fn answered(&mut self) {
        self.awaited = self.awaited.saturating_sub(1);
    }

    /// Whether a write may be sent now, by whichever controller.
    pub fn is_safe(&mut self, now: Time) -> bool {
        self.of.retain(|_, fence| now < fence.safe);
        self.of.is_empty() && self.awaited == 0
    }

    /// Until when no write is sent, if there is a fence: the end of time while a write goes on whose end was told.
    pub fn fence(&self) -> Option<Time> {
        if self.awaited > 0 { Some(Time(u64::MAX)) } else { self.of.values().map(|fence| fence.safe).max() }
    }
}

#[cfg(test)]
#[path = "paths_tests.rs"]
mod tests;
