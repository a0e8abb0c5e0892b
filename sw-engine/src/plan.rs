//! The planner: every candidate route with a verdict and a reason; the first accepted one wins.
//!
//! Capability first: fewer CPU copies per byte rank higher. Measurement second: among equals, and for a file that the
//! page cache holds, the measured rate decides. Never the name.

use core::cmp::Reverse;

use crate::{
    error::{Error, ErrorKind, Verb},
    object::{Face, Granularity, Object},
    path::{Landing, Reason, Route, TransportName},
    rate::{RateClass, RateTable},
    seam::TransportCaps,
};
use sw_mem::DeviceId;

/// How the bytes get from the transport to the caller's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The transport reaches the memory itself.
    Direct,
    /// Through a slab, then a copy.
    Staged,
}

/// What the planner must know of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFacts {
    /// Whose memory, `None` for what has an address of this process.
    pub device: Option<DeviceId>,
    /// Whether there is such memory. No route leads to what is not there.
    pub present: Verdict,
    /// Whether the devices that hold the object may read and write this memory in place: a fact of both. `Ok` for ordinary
    /// host memory, and where it is the transport alone that decides ([`TransportCaps::device`]).
    pub in_place: Verdict,
    /// Whether it may go while it is mapped, as memory of another device does: an access of ours is a signal then, where the
    /// kernel's copy is an error.
    pub may_go: bool,
    /// Whether a copy engine serves it, and if not, why. Meaningless for host memory.
    pub copy_engine: Verdict,
    /// Whether staging slabs are there.
    pub staging: Verdict,
}

impl MemoryFacts {
    /// Host memory on an engine with staging slabs.
    pub const HOST: MemoryFacts = MemoryFacts {
        device: None,
        present: Ok(()),
        in_place: Ok(()),
        may_go: false,
        copy_engine: Ok(()),
        staging: Ok(()),
    };
}

/// Part of a route that a policy names; `None` matches any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RouteMatch {
    /// The transport.
    pub transport: Option<TransportName>,
    /// The landing.
    pub landing: Option<Landing>,
}

impl RouteMatch {
    fn holds(&self, route: Route) -> bool {
        self.transport.is_none_or(|name| name == route.transport)
            && self.landing.is_none_or(|landing| landing == route.landing)
    }
}

/// Which routes the caller accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    /// The best there is.
    #[default]
    Any,
    /// That one if it is accepted, else the best there is; the reason says why not.
    Prefer(RouteMatch),
    /// That one for every byte; anything else is an error, ragged ends that must go another way included. A write must then
    /// be whole write units.
    Require(RouteMatch),
    /// That one for all whole blocks, of which there must be one. Other ways are open to the ragged ends of each part only: up
    /// to a block at each end of a read (4 KiB of a long one, if that is more), up to a write unit at each end of a write.
    RequireCore(RouteMatch),
}

/// A candidate's fate.
pub type Verdict = Result<(), Reason>;

/// A route that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The route.
    pub route: Route,
    /// Which of the object's faces.
    pub face: usize,
    /// How it reaches the memory.
    pub via: Via,
    /// Accepted, or why not.
    pub verdict: Verdict,
    /// Bytes per second, where it was measured.
    pub measured: Option<u64>,
}

/// One leg of a choice: everything that the data path needs, without a look at the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Index among the lane's transports.
    pub transport: u8,
    /// How it reaches memory.
    pub via: Via,
    /// Who writes the final bytes.
    pub landing: Landing,
    /// How often a CPU copies a byte between the face and what the transport is given: by the kernel, and by the transport behind it.
    pub copies: u8,
    /// Why nothing better.
    pub reason: Reason,
    /// What the face demands.
    pub granularity: Granularity,
    /// The face's handle.
    pub handle: u64,
}

/// The routes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// For the bulk.
    pub main: Leg,
    /// Where memory and offset are not congruent for `main`; `None` if the policy forbids it.
    pub unaligned: Option<Leg>,
    /// For the ragged ends of a write; `None` if the object takes whole blocks only.
    pub ends: Option<Leg>,
    /// Whether ragged ends may go another way than `main`.
    pub ends_may_bounce: bool,
    /// Whether some byte must go `main`'s way: an operation that is nothing but ends is refused.
    pub core_required: bool,
    /// Bytes, a power of two: `main` and `ends` never write into the same unit ([`Face::write_unit`]).
    pub write_unit: u32,
    /// The planned route.
    pub route: Route,
}

impl Leg {
    /// Who fills memory on its face.
    fn face_landing(&self) -> Landing {
        match self.copies {
            0 => Landing::Dma,
            1 => Landing::KernelCopy,
            _ => Landing::Staged,
        }
    }
}

impl Choice {
    /// Who fills memory on the face that bytes of that landing went over: what lands directly says it itself.
    pub(crate) fn face_landing(&self, landing: Landing) -> Landing {
        let legs = [Some(&self.main), self.unaligned.as_ref()].into_iter().flatten();
        match landing {
            Landing::Staged => {
                legs.filter(|leg| leg.via == Via::Staged).map(Leg::face_landing).next().unwrap_or(landing)
            }
            direct => direct,
        }
    }

    /// What the ends of a range must be multiples of to need no other way, in bytes: the write unit where a write has another
    /// way, else the block. A power of two.
    pub(crate) fn unit_of(&self, verb: Verb) -> u32 {
        let block = self.main.granularity.block;
        let shared = verb == Verb::Write && self.ends.is_some();
        if shared { self.write_unit.max(block) } else { block }
    }
}

/// What the planner found.
#[derive(Debug)]
pub struct Plan {
    /// Every candidate, the best first.
    pub candidates: Vec<Candidate>,
    /// What [`Candidate::face`] counts: the ways to the object that were looked at.
    pub faces: Vec<Face>,
    /// The choice, or why there is none.
    pub choice: Result<Choice, Error>,
}

/// Plans `verb` between `object` and memory with `facts`, over `transports` (in the lane's order).
pub fn plan(
    object: &Object,
    facts: &MemoryFacts,
    transports: &[TransportCaps],
    policy: &Policy,
    rates: &RateTable,
    verb: Verb,
) -> Plan {
    let planner = Planner { object, facts, transports, rates, verb };
    let mut candidates = planner.candidates();
    // Stable, so that faces keep the order in which the store gave them.
    candidates.sort_by_key(|candidate| planner.rank(candidate));
    let found = planner.choose(&mut candidates, policy);
    let choice = found.ok_or_else(|| refusal(object, policy, &candidates, verb));
    Plan { candidates, faces: object.faces.clone(), choice }
}

struct Planner<'a> {
    object: &'a Object,
    facts: &'a MemoryFacts,
    transports: &'a [TransportCaps],
    rates: &'a RateTable,
    verb: Verb,
}

impl Planner<'_> {
    fn candidates(&self) -> Vec<Candidate> {
        let mut all = Vec::with_capacity(self.object.faces.len() * 2);
        for (index, face) in self.object.faces.iter().enumerate() {
            for via in [Via::Direct, Via::Staged] {
                let landing = if via == Via::Direct { face.landing } else { Landing::Staged };
                let route = Route { transport: face.transport, landing };
                let verdict = self.verdict(face, via);
                let measured = self.rates.get(self.class(route, face.landing));
                all.push(Candidate { route, face: index, via, verdict, measured });
            }
        }
        all
    }

    fn class(&self, route: Route, face: Landing) -> RateClass {
        let Route { transport, landing } = route;
        RateClass { transport, landing, face, resident: self.resident(), device: self.object.device() }
    }

    fn resident(&self) -> bool {
        self.object.is_resident()
    }

    fn verdict(&self, face: &Face, via: Via) -> Verdict {
        self.facts.present?;
        let caps = self.transports.iter().find(|caps| caps.name == face.transport).ok_or(Reason::MemoryUnreachable)?;
        match via {
            Via::Direct => {
                if self.facts.device.is_some() { caps.device } else { caps.host }?;
                if face.landing == Landing::Dma { self.facts.in_place } else { Ok(()) }
            }
            Via::Staged => {
                // The slab is host memory.
                caps.host?;
                self.facts.staging?;
                if self.facts.device.is_some() { self.facts.copy_engine } else { Ok(()) }
            }
        }
    }

    /// Lower is better: the CPU's work per byte, then a resident file's cache before its device, then the measured rate.
    fn rank(&self, candidate: &Candidate) -> (bool, u8, Reverse<u64>, u8) {
        let buffered = self.buffered(candidate.face);
        let work = self.cpu_work(candidate);
        let cached = self.resident() && self.verb == Verb::Read;
        let class = match (cached, buffered) {
            // In the cache already: the copy is cheaper than the device, unless measurement says otherwise.
            (true, true) => u8::from(self.cache_is_slower(candidate)) * 4,
            (true, false) => work + 1,
            (false, _) => work,
        };
        (
            candidate.verdict.is_err(),
            class,
            Reverse(candidate.measured.unwrap_or(0)),
            u8::from(candidate.via == Via::Staged),
        )
    }

    /// What the CPU does for a byte, in copies. A read through a cache that does not have it is worth two: a page is found
    /// and entered before it is copied, which costs several times the copy (measured: `docs/paths.md`). Memory that may go is
    /// left to the kernel's copy.
    fn cpu_work(&self, candidate: &Candidate) -> u8 {
        let buffered = self.buffered(candidate.face);
        let through_cache = if self.verb == Verb::Read && !self.facts.may_go { 2 } else { 1 };
        let from_slab = candidate.via == Via::Staged && self.facts.device.is_none();
        u8::from(buffered) * through_cache + u8::from(from_slab)
    }

    /// Whether the cache was measured to be slower than the device: into slabs, if that is the only way to the memory.
    fn cache_is_slower(&self, cached: &Candidate) -> bool {
        let rate = |face, resident| {
            let in_place = cached.via == Via::Direct || self.facts.device.is_none();
            let landing = if in_place { face } else { Landing::Staged };
            self.rates.get(RateClass { resident, ..self.class(Route { landing, ..cached.route }, face) })
        };
        matches!((rate(Landing::KernelCopy, true), rate(Landing::Dma, false)), (Some(cache), Some(device)) if cache < device)
    }

    fn buffered(&self, face: usize) -> bool {
        self.object.faces.get(face).is_some_and(|face| face.landing == Landing::KernelCopy)
    }

    fn choose(&self, candidates: &mut [Candidate], policy: &Policy) -> Option<Choice> {
        let (demand, wish) = match policy {
            Policy::Any => (None, None),
            Policy::Prefer(wish) => (None, Some(*wish)),
            Policy::Require(demand) | Policy::RequireCore(demand) => (Some(*demand), None),
        };
        if let Some(demand) = demand {
            let excluded = |c: &&mut Candidate| c.verdict.is_ok() && !demand.holds(c.route);
            candidates.iter_mut().filter(excluded).for_each(|c| c.verdict = Err(Reason::PolicyExcludes));
        }
        let accepted = |c: &Candidate| c.verdict.is_ok();
        let wished = |c: &Candidate| accepted(c) && wish.is_some_and(|wish| wish.holds(c.route));
        let best = candidates.iter().position(wished).or_else(|| candidates.iter().position(accepted))?;
        let chosen = *candidates.get(best)?;
        let unwished = candidates.iter().position(accepted);
        let reason = match self.object.faces.get(chosen.face).and_then(|face| face.because) {
            // Whatever led to it: nobody can tell how its bytes go, and that is what must be told of them.
            Some(Reason::VendorDecides) => Reason::VendorDecides,
            _ if unwished == Some(best) => self.why_not_better(&chosen, candidates, wish),
            _ => Reason::Preferred,
        };
        let main = self.leg(&chosen, reason)?;
        let free = demand.is_none();
        let unaligned = candidates.iter().filter(|c| free && accepted(c)).find(|c| self.takes_any_address(c));
        let unaligned = unaligned.and_then(|c| self.leg(c, Reason::MemoryMisaligned));
        let ends = self.object.bytewise_face().and_then(|face| self.ends_leg(face));
        for (index, candidate) in candidates.iter_mut().enumerate() {
            if index != best && candidate.verdict.is_ok() {
                let passed_over = unwished.is_some_and(|first| first != best && index < best);
                let lower = || self.why_lower(candidate, &chosen);
                candidate.verdict = Err(if passed_over { Reason::PolicyExcludes } else { lower() });
            }
        }
        // Ends that go the demanded way are no exception to it.
        let ends_obey = demand.is_none_or(|demand| ends.is_some_and(|ends| demand.holds(self.route_of(&ends))));
        let write_unit = if main.granularity.block > 1 { self.object.whole_unit() } else { 1 };
        Some(Choice {
            main,
            unaligned,
            ends,
            ends_may_bounce: ends_obey || !matches!(policy, Policy::Require(_)),
            core_required: !ends_obey && matches!(policy, Policy::RequireCore(_)),
            write_unit,
            route: chosen.route,
        })
    }

    fn route_of(&self, leg: &Leg) -> Route {
        let transport = self.transports.get(usize::from(leg.transport)).map_or("none", |caps| caps.name);
        Route { transport, landing: leg.landing }
    }

    /// A slab takes any address, and so does the kernel's own copy.
    fn takes_any_address(&self, candidate: &Candidate) -> bool {
        let fine = self.object.faces.get(candidate.face).is_some_and(|face| face.granularity.memory == 1);
        candidate.via == Via::Staged || fine
    }

    fn ends_leg(&self, face: usize) -> Option<Leg> {
        let via = if self.facts.device.is_some() { Via::Staged } else { Via::Direct };
        let route = Route { transport: self.object.faces.get(face)?.transport, landing: Landing::KernelCopy };
        self.leg(&Candidate { route, face, via, verdict: Ok(()), measured: None }, Reason::RaggedEnds)
    }

    fn leg(&self, candidate: &Candidate, reason: Reason) -> Option<Leg> {
        let face = self.object.faces.get(candidate.face)?;
        let transport = self.transports.iter().position(|caps| caps.name == face.transport)?;
        Some(Leg {
            transport: u8::try_from(transport).ok()?,
            via: candidate.via,
            landing: if candidate.via == Via::Staged { Landing::Staged } else { face.landing },
            copies: face.landing.copies(),
            reason,
            granularity: face.granularity,
            handle: face.handle,
        })
    }

    /// Why the chosen route is not a better one: the reason of a refused wish, else of the best refused direct candidate.
    fn why_not_better(&self, chosen: &Candidate, candidates: &[Candidate], wish: Option<RouteMatch>) -> Reason {
        // A wish that no accepted route grants: its reason is what the caller asks for.
        let denied = wish.filter(|wish| !wish.holds(chosen.route));
        let denied =
            denied.and_then(|wish| candidates.iter().filter(|c| wish.holds(c.route)).find_map(|c| c.verdict.err()));
        if let Some(reason) = denied {
            return reason;
        }
        let face = self.object.faces.get(chosen.face);
        let stands_in = face.and_then(|face| face.because).unwrap_or(Reason::Best);
        if chosen.route.landing == Landing::Dma {
            return stands_in;
        }
        let mut direct = candidates.iter().filter(|c| c.route.landing == Landing::Dma);
        if let Some(reason) = direct.clone().find_map(|c| c.verdict.err()) {
            return reason;
        }
        if let Some(direct) = direct.next() {
            return self.why_lower(direct, chosen);
        }
        stands_in
    }

    fn why_lower(&self, candidate: &Candidate, chosen: &Candidate) -> Reason {
        let cached = self.resident() && self.buffered(chosen.face) && !self.buffered(candidate.face);
        match (cached, candidate.measured, chosen.measured) {
            (true, ..) => Reason::Resident,
            (false, Some(slow), Some(fast)) if slow < fast => Reason::MeasuredSlower,
            _ => Reason::RankedLower,
        }
    }
}

fn refusal(object: &Object, policy: &Policy, candidates: &[Candidate], verb: Verb) -> Error {
    let mut reasons: Vec<Reason> = candidates.iter().filter_map(|candidate| candidate.verdict.err()).collect();
    reasons.extend(object.faces.iter().filter_map(|face| face.because));
    reasons.sort_unstable();
    reasons.dedup();
    let (kind, remedy) = match policy {
        Policy::Any | Policy::Prefer(_) => (ErrorKind::Unsupported, "see `straightway plan` for what each route needs"),
        Policy::Require(_) | Policy::RequireCore(_) => {
            (ErrorKind::PolicyUnmet, "relax the policy, or mend the first reason; `straightway plan` explains each")
        }
    };
    Error::new(kind, verb)
        .at(object.name.clone())
        .detail("no route meets the policy")
        .remedy(remedy)
        .with_reasons(reasons)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
