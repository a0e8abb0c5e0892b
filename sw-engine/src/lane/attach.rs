//! Telling transports about memory: as a hint, or as the duty that [`Regions::Attached`] makes of it.
//!
//! ```text
//!   submit ─► does the target go over a transport that must be told? ─ no ─► nothing to do
//!                  │ yes: for each span
//!                  ▼
//!             its region is where its id says ─ yes ─► nothing to do
//!                  │ no
//!                  ▼
//!             anywhere in the table? free place? a region that no live operation has memory in gives way
//! ```
//!
//! A region stays attached until another one needs its place, its owner says that it is gone ([`Lane::attach`] with
//! [`Attach::RegionGone`]), or the transport runs out of something. So at most [`REGIONS_MAX`] regions per transport
//! outlive their last operation.

use sw_mem::{DmaRegion, DmaSpan, RegionId, SlabPool};

use super::{Lane, Queue, Stash};
use crate::{
    error::{Error, ErrorKind, Verb},
    op::{Op, Spans},
    seam::{Attach, Regions, TransportCaps},
};

/// Regions of callers that one transport has attached at a time: the bits of a word, so that "those in use" is one.
const REGIONS_MAX: usize = u64::BITS as usize;
/// No region has this id: they count from 1.
const NOBODY: RegionId = RegionId(0);

/// What a lane has attached to one transport for its operations.
#[derive(Debug)]
pub(super) struct Attached([RegionId; REGIONS_MAX]);

impl Attached {
    /// Empty, for a transport that must be told; `None` for others.
    pub(super) fn for_transport(caps: &TransportCaps) -> Option<Box<Self>> {
        (caps.regions == Regions::Attached).then(|| Box::new(Self([NOBODY; REGIONS_MAX])))
    }

    #[inline]
    fn home(id: RegionId) -> usize {
        // The remainder is below 64.
        usize::try_from(id.0 % REGIONS_MAX as u64).unwrap_or(0)
    }

    /// Whether it lies where it should: the one comparison of the common way.
    #[inline]
    fn is_home(&self, id: RegionId) -> bool {
        self.0[Self::home(id)] == id
    }

    fn find(&self, id: RegionId) -> Option<usize> {
        self.0.iter().position(|held| *held == id)
    }

    /// A place for a region: a free one, else one that is not in `used`; its own first.
    fn place_for(&self, id: RegionId, used: u64) -> Option<usize> {
        let home = Self::home(id);
        let mut places = (0..REGIONS_MAX).map(|step| (home + step) % REGIONS_MAX);
        let free = places.clone().find(|at| self.0[*at] == NOBODY);
        free.or_else(|| places.find(|at| used & 1 << at == 0))
    }

    /// The places of those regions that `spans` name.
    fn places_of(&self, spans: &Spans) -> u64 {
        spans.iter().filter_map(|span| self.find(span.region().id())).fold(0, |used, at| used | 1 << at)
    }
}

/// Which pools of slabs the transports that need not know of memory have heard of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    bounce: bool,
    staging: bool,
}

impl Told {
    /// Before the first chunk with a slab of a pool: the pool is registered, so that such chunks are cheap. A lane that needs
    /// no slab pays for none.
    #[inline(always)]
    pub(super) fn before(
        &mut self,
        stash: &Stash,
        queues: &mut [Queue],
        (bounce, staging): (&SlabPool, Option<&SlabPool>),
    ) {
        match (stash, staging) {
            (Stash::Bounce(_), _) if !self.bounce => {
                self.bounce = true;
                // A refusal (limit of locked memory) makes the chunks dearer, not wrong.
                let _ = tell(queues, Regions::Any, bounce);
            }
            (Stash::Staging(_), Some(staging)) if !self.staging => {
                self.staging = true;
                let _ = tell(queues, Regions::Any, staging);
            }
            _ => {}
        }
    }
}

/// Tells the transports that treat regions so of a pool's slabs; gives the last refusal.
#[cold]
fn tell(queues: &mut [Queue], regions: Regions, pool: &SlabPool) -> Result<(), Error> {
    let mut told = Ok(());
    for queue in queues.iter_mut().filter(|queue| queue.caps.regions == regions) {
        told = queue.transport.attach(Attach::Region(pool.region())).and(told);
    }
    told
}

impl Queue {
    /// Tells the transport about a region, in place of one outside `used` if there is no free place.
    fn attach(&mut self, region: &DmaRegion, used: u64) -> Result<(), Error> {
        let Some(table) = &mut self.attached else { return Ok(()) };
        let Some(at) = table.place_for(region.id(), used) else { return Err(no_place(self.caps.name)) };
        if table.0[at] != NOBODY {
            self.transport.attach(Attach::RegionGone(table.0[at]))?;
            table.0[at] = NOBODY;
        }
        let told = match self.transport.attach(Attach::Region(region)) {
            Err(error) if error.kind() == ErrorKind::ResourceLimit => {
                self.detach_all_but(used)?;
                self.transport.attach(Attach::Region(region))
            }
            told => told,
        };
        if let (Ok(()), Some(table)) = (&told, &mut self.attached) {
            table.0[at] = region.id();
        }
        told
    }

    fn detach_all_but(&mut self, used: u64) -> Result<(), Error> {
        let Some(table) = &mut self.attached else { return Ok(()) };
        for (at, held) in table.0.iter_mut().enumerate() {
            if *held != NOBODY && used & 1 << at == 0 {
                self.transport.attach(Attach::RegionGone(*held))?;
                *held = NOBODY;
            }
        }
        Ok(())
    }
}

impl Lane {
    /// Passes a hint to every transport. To one that must be told about memory, `Region` means what an operation on it
    /// would do, and `RegionGone` lets go of it.
    ///
    /// # Errors
    /// The first refusal; I/Os work without. `Busy` for `RegionGone` of a region in which a live operation has memory, where
    /// a transport must know it; that one keeps it.
    pub fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        (0..self.queues.len()).try_for_each(|index| match (hint, &self.queues[index].attached) {
            (Attach::Region(region), Some(_)) => self.attach_region(index, region),
            (Attach::RegionGone(id), Some(_)) => self.detach_region(index, id),
            _ => self.queues[index].transport.attach(hint),
        })
    }

    /// The duty of a new lane: transports that must be told about memory learn of its slabs, for good. Others learn of them
    /// when the first chunk takes one ([`Told`]), since their pages are paid for then.
    pub(super) fn attach_slabs_where_needed(&mut self) -> Result<(), Error> {
        let pools = [Some(&self.bounce), self.staging.as_ref()];
        pools.into_iter().flatten().try_for_each(|pool| tell(&mut self.queues, Regions::Attached, pool))
    }

    /// Attaches the memory of an operation, as far as its transports ask for it.
    ///
    /// # Errors
    /// What the transport says. `Busy` while operations hold all places; `TooLarge` if this operation alone needs more.
    #[inline(always)]
    pub(super) fn attach_memory(&mut self, op: &Op) -> Result<(), Error> {
        let queues = self.must_attach & op.target.direct();
        match &op.spans {
            _ if queues == 0 => Ok(()),
            Spans::One(span) if self.knows(queues, span.region().id()) => Ok(()),
            _ => self.attach_spans(op, queues),
        }
    }

    /// Whether the region lies where it should in the table of each of these queues.
    #[inline(always)]
    fn knows(&self, mut queues: u64, id: RegionId) -> bool {
        // No bit left is the number 64, which no queue has.
        while let Some(queue) = self.queues.get(queues.trailing_zeros() as usize) {
            if !queue.attached.as_ref().is_some_and(|table| table.is_home(id)) {
                return false;
            }
            queues &= queues - 1;
        }
        true
    }

    #[inline(never)]
    fn attach_spans(&mut self, op: &Op, mut queues: u64) -> Result<(), Error> {
        while queues != 0 {
            let index = queues.trailing_zeros() as usize;
            queues &= queues - 1;
            // One that broke fails the operation with its own fault.
            let broken = self.queues[index].broken.is_some();
            let missing = |span: &DmaSpan| {
                self.queues[index].attached.as_ref().is_some_and(|table| !table.is_home(span.region().id()))
            };
            if !broken && op.spans.iter().any(missing) {
                self.attach_missing(op, index)?;
            }
        }
        Ok(())
    }

    #[cold]
    fn attach_missing(&mut self, op: &Op, index: usize) -> Result<(), Error> {
        let mut used = None;
        for span in op.spans.iter() {
            let id = span.region().id();
            if self.queues[index].attached.as_ref().is_none_or(|table| table.find(id).is_some()) {
                continue;
            }
            let others = *used.get_or_insert_with(|| self.regions_in_use(index));
            let queue = &mut self.queues[index];
            let mine = queue.attached.as_ref().map_or(0, |table| table.places_of(&op.spans));
            if mine == u64::MAX {
                return Err(too_many(op));
            }
            queue.attach(span.region(), others | mine)?;
        }
        Ok(())
    }

    /// The places of the regions in which live operations have memory: a device may touch it, or will.
    fn regions_in_use(&self, index: usize) -> u64 {
        let Some(table) = &self.queues[index].attached else { return 0 };
        let ops = self.ops.live_tokens().filter(|(_, _, state)| !state.is_over());
        ops.filter_map(|(_, _, state)| state.op.as_ref()).fold(0, |used, op| used | table.places_of(&op.spans))
    }

    fn attach_region(&mut self, index: usize, region: &DmaRegion) -> Result<(), Error> {
        let known = self.queues[index].attached.as_ref().is_none_or(|table| table.find(region.id()).is_some());
        if known || self.is_slab(region.id()) {
            return Ok(());
        }
        let used = self.regions_in_use(index);
        self.queues[index].attach(region, used)
    }

    fn detach_region(&mut self, index: usize, id: RegionId) -> Result<(), Error> {
        let Some(at) = self.queues[index].attached.as_ref().and_then(|table| table.find(id)) else { return Ok(()) };
        if self.regions_in_use(index) & 1 << at != 0 {
            return Err(Error::new(ErrorKind::Busy, Verb::Register)
                .at(self.queues[index].caps.name)
                .detail("operations have memory in the region that is to be detached")
                .remedy("wait for their completions first"));
        }
        let queue = &mut self.queues[index];
        queue.transport.attach(Attach::RegionGone(id))?;
        if let Some(table) = &mut queue.attached {
            table.0[at] = NOBODY;
        }
        Ok(())
    }

    fn is_slab(&self, id: RegionId) -> bool {
        self.bounce.region().id() == id || self.staging.as_ref().is_some_and(|pool| pool.region().id() == id)
    }
}

fn no_place(transport: &'static str) -> Error {
    Error::new(ErrorKind::Busy, Verb::Register)
        .at(transport)
        .detail(format!("operations in flight hold all {REGIONS_MAX} regions that may be attached at a time"))
        .remedy("poll for completions, then try again; or use fewer, larger regions")
}

fn too_many(op: &Op) -> Error {
    Error::new(ErrorKind::TooLarge, op.verb)
        .at(op.target.object.name.clone())
        .detail(format!(
            "the operation has memory in more than {REGIONS_MAX} regions, which its transport must be told of"
        ))
        .remedy("split the operation, or use fewer, larger regions")
}
