//! Asserts the contract of [`Transport`] from both sides: what the engine asks, and what the transport answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use sw_engine::{
    Error, Token,
    seam::{Attach, Fence, Io, IoDone, IoKind, Regions, Submit, Transport, TransportCaps, Wait, Wake},
};
use sw_mem::RegionId;

/// Panics with the evidence at the first broken rule. For tests.
pub struct Checked<T> {
    inner: T,
    caps: TransportCaps,
    open: BTreeMap<u64, Io>,
    attached: BTreeSet<RegionId>,
    quiet: bool,
}

impl<T: Transport> Checked<T> {
    /// Around `inner`, which has nothing in flight.
    pub fn new(inner: T) -> Self {
        let caps = inner.caps();
        Self { inner, caps, open: BTreeMap::new(), attached: BTreeSet::new(), quiet: false }
    }

    /// I/Os taken that have no end yet.
    pub fn in_flight(&self) -> usize {
        self.open.len()
    }

    fn check_io(&self, io: &Io) {
        let pieces = io.segments();
        assert!(!self.quiet, "submit after a quiet fence: {io:?}");
        assert!(!self.open.contains_key(&io.token.raw()), "token {:?} is in flight already", io.token);
        assert!(usize::from(io.segment_count) <= usize::from(self.caps.segments_max), "too many pieces: {io:?}");
        let sum: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
        assert_eq!(sum, u64::from(io.len), "pieces do not add up: {io:?}");
        assert!(io.len <= self.caps.io_bytes_max, "longer than io_bytes_max: {io:?}");
        match io.kind {
            IoKind::Read | IoKind::Write => {
                assert!(io.len > 0 && pieces.iter().all(|piece| piece.len > 0), "an empty piece: {io:?}");
            }
            IoKind::FlushData | IoKind::FlushAll => assert_eq!(io.len, 0, "a flush with bytes: {io:?}"),
        }
        for piece in pieces {
            let reach = if piece.device().is_some() { self.caps.device } else { self.caps.host };
            assert!(reach.is_ok(), "memory that the transport cannot reach: {io:?}");
            let known = self.caps.regions == Regions::Any || self.attached.contains(&piece.region);
            assert!(known, "memory that was not attached: {io:?}");
        }
    }

    fn check_ends(&mut self, ends: &[IoDone]) {
        for done in ends {
            let io = self.open.remove(&done.token.raw());
            let io = io.unwrap_or_else(|| panic!("an end for {:?}, which is not in flight", done.token));
            assert!(!done.result.is_ok_and(|bytes| bytes > io.len), "{done:?} claims more than {io:?}");
        }
    }
}

impl<T: Transport> Transport for Checked<T> {
    fn caps(&self) -> TransportCaps {
        self.inner.caps()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        let told = self.inner.attach(hint);
        match (hint, &told) {
            (Attach::Region(region), Ok(())) => drop(self.attached.insert(region.id())),
            (Attach::RegionGone(region), _) => {
                let held = |io: &Io| io.segments().iter().any(|piece| piece.region == region);
                let taken = self.caps.regions == Regions::Attached && self.open.values().any(held);
                assert!(!taken, "{region:?} is taken away from I/Os in flight");
                self.attached.remove(&region);
            }
            _ => {}
        }
        told
    }

    fn submit(&mut self, io: &Io) -> Submit {
        self.check_io(io);
        let taken = self.inner.submit(io);
        if taken == Submit::Accepted {
            self.open.insert(io.token.raw(), *io);
            assert!(self.open.len() <= self.caps.queue_depth as usize, "more in flight than the queue is deep");
        }
        taken
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.inner.ring()
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let (before, room) = (out.len(), out.capacity());
        let polled = self.inner.poll(wait, out);
        assert_eq!(out.capacity(), room, "poll grew its output");
        let fresh = out.get(before..).unwrap_or_default().to_vec();
        if let Ok(counted) = polled {
            assert_eq!(counted, fresh.len(), "poll counted wrongly");
        }
        self.check_ends(&fresh);
        polled
    }

    fn cancel(&mut self, token: Token) {
        self.inner.cancel(token);
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        let before = out.len();
        let fence = self.inner.fence(timeout, out);
        let fresh = out.get(before..).unwrap_or_default().to_vec();
        self.check_ends(&fresh);
        if fence == Fence::Quiet {
            self.quiet = true;
            self.open.clear();
        }
        fence
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }
}
