//! Drives a transport as the engine does: within its limits, and counting every end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sw_engine::{
    Fault, Token,
    seam::{Attach, Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Regions, Submit, Transport, Wait},
};
use sw_mem::{HostVa, Place, RegionId};

use super::{Access, Bed, Target, arena::Arena, arena::Piece};
use crate::conformance::{CaseResult, End, fail, skip};

/// Time by the bed's clock in which any batch of a case must have ended. Far above what a slow disk needs.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// One wait inside a batch.
const STEP: Duration = Duration::from_millis(200);
/// Polls in one batch at most: bounds a transport that neither waits nor completes.
const POLLS_MAX: u32 = 2_000_000;

/// A transport with its object and the ends that it reported.
pub(super) struct Driver<'a> {
    pub(super) bed: &'a mut dyn Bed,
    pub(super) transport: Box<dyn Transport>,
    pub(super) target: Target,
    next: u64,
    /// Regions that the transport was told of.
    attached: BTreeSet<RegionId>,
    /// I/Os taken that have no end yet.
    pub(super) open: BTreeMap<u64, Io>,
    /// Ends by token.
    pub(super) ends: BTreeMap<u64, Result<u32, Fault>>,
}

impl<'a> Driver<'a> {
    /// A fresh transport and an object with `content`.
    pub(super) fn new(bed: &'a mut dyn Bed, content: &[u8]) -> Result<Self, End> {
        let target = bed.object(content)?;
        Self::at(bed, target)
    }

    /// A fresh transport for an object there is.
    pub(super) fn at(bed: &'a mut dyn Bed, target: Target) -> Result<Self, End> {
        let transport = bed.transport()?;
        let (name, face) = (transport.caps().name, target.face()?);
        if face.transport != name {
            return fail(format!("face {face:?} does not belong to transport {name}"));
        }
        Ok(Self {
            bed,
            transport,
            target,
            next: 1,
            attached: BTreeSet::new(),
            open: BTreeMap::new(),
            ends: BTreeMap::new(),
        })
    }

    /// Block and memory granularity of the face, in bytes.
    pub(super) fn granularity(&self) -> Result<(u32, u32), End> {
        let granularity = self.target.face()?.granularity;
        Ok((granularity.block, granularity.memory))
    }

    /// Passes a hint on. A transport that must be told of memory may not refuse to be told of that of a case.
    pub(super) fn hint(&mut self, hint: Attach<'_>) -> CaseResult {
        let told = self.transport.attach(hint);
        match (hint, told) {
            (Attach::Region(region), Ok(())) => drop(self.attached.insert(region.id())),
            (Attach::RegionGone(region), Ok(())) => drop(self.attached.remove(&region)),
            (Attach::Region(_) | Attach::RegionGone(_), Err(error)) if self.must_attach() => {
                return fail(format!("memory that the transport must know of was refused: {error}"));
            }
            (_, Ok(())) => {}
            (_, Err(error)) => println!("    hint refused, which is allowed: {error}"),
        }
        Ok(())
    }

    /// Whether I/Os may name attached memory only.
    pub(super) fn must_attach(&self) -> bool {
        self.transport.caps().regions == Regions::Attached
    }

    /// An I/O on pieces of `arena`, with a token that no other has. Attaches the arena where the transport asks for it.
    pub(super) fn io(&mut self, kind: IoKind, offset: u64, arena: &Arena, pieces: &[Piece]) -> Result<Io, End> {
        if kind == IoKind::Write && self.bed.access() == Access::ReadOnly {
            return skip("nothing is written in place here");
        }
        let segments: Vec<MemorySegment> =
            pieces.iter().map(|piece| arena.segment(*piece)).collect::<Result<_, _>>()?;
        if self.must_attach() && !self.attached.contains(&arena.region().id()) {
            self.hint(Attach::Region(arena.region()))?;
        }
        self.io_of(kind, offset, &segments)
    }

    /// As [`Driver::io`], but nothing is attached for it.
    pub(super) fn io_as_it_is(&mut self, kind: IoKind, offset: u64, arena: &Arena, piece: Piece) -> Result<Io, End> {
        let segment = arena.segment(piece)?;
        self.io_of(kind, offset, &[segment])
    }

    /// A flush.
    pub(super) fn flush(&mut self, kind: IoKind) -> Result<Io, End> {
        self.io_of(kind, 0, &[])
    }

    fn io_of(&mut self, kind: IoKind, offset: u64, pieces: &[MemorySegment]) -> Result<Io, End> {
        // The generation in the high half, as the slot table makes them.
        let token = Token::from_raw(self.next << 32 | (self.next & 0xFF));
        self.next += 1;
        let unused = MemorySegment { place: Place::Host(HostVa::new(0)), len: 0, region: RegionId(0) };
        let first = pieces.first().copied().unwrap_or(unused);
        let mut segments = [first; MAX_SEGMENTS];
        segments.iter_mut().zip(pieces).for_each(|(to, from)| *to = *from);
        Ok(Io {
            token,
            kind,
            object: self.target.object.id,
            handle: self.target.face()?.handle,
            offset,
            len: pieces.iter().map(|piece| piece.len).sum(),
            segment_count: u8::try_from(pieces.len()).unwrap_or(u8::MAX),
            segments,
        })
    }

    /// Submits one, within the depth. A transport that has no room although it is not that deep in work gets a ring and
    /// a poll, after which it must take it.
    pub(super) fn submit(&mut self, io: &Io) -> CaseResult {
        for _ in 0..POLLS_MAX {
            let before = self.open.len();
            if self.transport.submit(io) == Submit::Accepted {
                self.open.insert(io.token.raw(), *io);
                return Ok(());
            }
            if before == 0 {
                break;
            }
            self.ring()?;
            if self.poll(Wait::For { timeout: PATIENCE, min: 1 }, 64)? == 0 {
                break;
            }
        }
        let depth = self.transport.caps().queue_depth;
        fail(format!("Full for good with {} in flight of a stated depth of {depth}", self.open.len()))
    }

    /// Hands over what was submitted.
    pub(super) fn ring(&mut self) -> CaseResult {
        self.transport.ring().or_else(|error| fail(format!("ring: {error}")))
    }

    /// Polls once and books the ends.
    pub(super) fn poll(&mut self, wait: Wait, capacity: usize) -> Result<usize, End> {
        let mut out: Vec<IoDone> = Vec::with_capacity(capacity);
        let counted = match self.transport.poll(wait, &mut out) {
            Ok(counted) => counted,
            Err(error) => return fail(format!("poll: {error}")),
        };
        if counted != out.len() {
            return fail(format!("poll says {counted} and gave {}", out.len()));
        }
        self.book(&out)?;
        Ok(counted)
    }

    /// Each end must belong to an open I/O, once, and claim no more than was asked.
    pub(super) fn book(&mut self, out: &[IoDone]) -> CaseResult {
        for done in out {
            let raw = done.token.raw();
            let Some(io) = self.open.remove(&raw) else {
                let again = self.ends.contains_key(&raw);
                return fail(format!("token {raw:#x} ended {}", if again { "twice" } else { "but was never taken" }));
            };
            if done.result.is_ok_and(|bytes| bytes > io.len) {
                return fail(format!("{:?} claims {:?} bytes of {}", io.kind, done.result, io.len));
            }
            self.ends.insert(raw, done.result);
        }
        Ok(())
    }

    /// Submits all, never more than the depth at once, and waits until all have ended.
    pub(super) fn run(&mut self, ios: &[Io]) -> CaseResult {
        let depth = self.transport.caps().queue_depth as usize;
        let start = self.bed.now();
        let mut todo = ios.iter().peekable();
        for _ in 0..POLLS_MAX {
            while self.open.len() < depth
                && let Some(io) = todo.peek()
            {
                match self.transport.submit(io) {
                    Submit::Accepted => self.open.insert(io.token.raw(), **io),
                    Submit::Full if self.open.is_empty() => return fail("Full with nothing in flight"),
                    Submit::Full => break,
                };
                todo.next();
            }
            self.ring()?;
            if self.open.is_empty() && todo.peek().is_none() {
                return Ok(());
            }
            self.poll(Wait::For { timeout: STEP, min: 1 }, depth.clamp(1, 64))?;
            if self.bed.now().saturating_sub(start) > PATIENCE {
                break;
            }
        }
        fail(format!("{} I/Os did not end within {PATIENCE:?}: {:?}", self.open.len(), self.open.keys()))
    }

    /// Waits until nothing is in flight.
    pub(super) fn drain(&mut self) -> CaseResult {
        self.run(&[])
    }

    /// Runs one I/O and gives its result.
    pub(super) fn one(&mut self, io: Io) -> Result<Result<u32, Fault>, End> {
        self.run(&[io])?;
        match self.ends.get(&io.token.raw()) {
            Some(result) => Ok(*result),
            None => fail("an I/O ended without an end: a bug of the suite"),
        }
    }

    /// Runs one I/O to its full length, asking for the rest after short ends as the engine does.
    pub(super) fn whole(&mut self, kind: IoKind, offset: u64, arena: &Arena, piece: Piece) -> CaseResult {
        let mut done = 0;
        while done < piece.len {
            let rest = Piece { at: piece.at + u64::from(done), len: piece.len - done };
            let io = self.io(kind, offset + u64::from(done), arena, &[rest])?;
            match self.one(io)? {
                Ok(0) => return fail(format!("{kind:?} at {offset}+{done} moved nothing inside the object")),
                Ok(bytes) => done += bytes,
                Err(fault) => return fail(format!("{kind:?} at {offset}+{done}: {fault:?}")),
            }
        }
        Ok(())
    }
}
