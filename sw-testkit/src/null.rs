//! A transport that completes at once and moves nothing: what is left is the engine's own cost.

use std::{sync::Arc, time::Duration};

use sw_engine::{
    Error, Face, Granularity, Landing, Object, ObjectId, Residency, Token, TransportName, Version,
    seam::{Attach, Fence, Io, IoDone, Regions, Submit, Transport, TransportCaps, Wait, Wake},
};

/// Its name in routes.
pub const NAME: TransportName = "null";

/// Completes every I/O in full at the next poll after a ring. Memory and objects are never touched.
#[derive(Debug)]
pub struct NullTransport {
    caps: TransportCaps,
    /// A place for each I/O that fits the queue, the oldest first; no places once it was fenced.
    ends: Box<[IoDone]>,
    /// Places in use.
    taken: usize,
    /// Of those, how many were handed over.
    rung: usize,
}

/// In a place that is not in use.
const NOTHING: IoDone = IoDone { token: Token::from_raw(u64::MAX), result: Ok(0), aside: 0 };

impl NullTransport {
    /// With a queue of `queue_depth` I/Os of at most `io_bytes_max` bytes (a power of two).
    pub fn new(queue_depth: u32, io_bytes_max: u32) -> Self {
        let (host, device, regions) = (Ok(()), Ok(()), Regions::Any);
        let caps = TransportCaps { name: NAME, queue_depth, io_bytes_max, segments_max: 3, host, device, regions };
        Self { caps, ends: vec![NOTHING; queue_depth as usize].into(), taken: 0, rung: 0 }
    }

    /// The same, which asks to be told of memory or not. It never looks whether it was.
    #[must_use]
    pub fn with_regions(mut self, regions: Regions) -> Self {
        self.caps.regions = regions;
        self
    }

    /// An object of `len` bytes for it, with one face of this granularity.
    pub fn object(len: u64, granularity: Granularity) -> Arc<Object> {
        // One face, so no other write can share a unit with one of its own.
        let face =
            Face { transport: NAME, handle: 0, granularity, write_unit: 1, landing: Landing::Dma, because: None };
        Arc::new(Object {
            id: Object::next_id(),
            name: Arc::from("null:"),
            len,
            version: Version::default(),
            faces: vec![face],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        })
    }

    /// Gives the oldest `most` ends, as far as there is room, and says how many.
    fn give(&mut self, most: usize, out: &mut Vec<IoDone>) -> usize {
        let count = most.min(out.capacity() - out.len());
        out.extend_from_slice(self.ends.get(..count).unwrap_or_default());
        if count < self.taken {
            self.ends.copy_within(count..self.taken, 0);
        }
        self.taken -= count;
        self.rung = self.rung.saturating_sub(count);
        count
    }

    /// Its object has this id nowhere; given for callers that build an [`Io`] by hand.
    pub const OBJECT: ObjectId = ObjectId(0);
}

impl Transport for NullTransport {
    fn caps(&self) -> TransportCaps {
        self.caps
    }

    fn attach(&mut self, _hint: Attach<'_>) -> Result<(), Error> {
        Ok(())
    }

    #[inline]
    fn submit(&mut self, io: &Io) -> Submit {
        let Some(place) = self.ends.get_mut(self.taken) else { return Submit::Full };
        *place = IoDone { token: io.token, result: Ok(io.len), aside: 0 };
        self.taken += 1;
        Submit::Accepted
    }

    #[inline]
    fn ring(&mut self) -> Result<(), Error> {
        self.rung = self.taken;
        Ok(())
    }

    #[inline]
    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        if wait != Wait::No {
            self.rung = self.taken;
        }
        // Nothing ends later by itself, so a wait has nothing to wait for.
        Ok(self.give(self.rung, out))
    }

    fn cancel(&mut self, _token: Token) {}

    fn fence(&mut self, _timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        self.give(self.taken, out);
        (self.ends, self.taken, self.rung) = (Box::default(), 0, 0);
        Fence::Quiet
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWait)
    }
}

struct NoWait;

impl Wake for NoWait {
    fn wake(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use sw_engine::seam::{IoKind, MAX_SEGMENTS, MemorySegment};
    use sw_mem::{HostVa, Place, RegionId};

    fn io(raw: u64) -> Io {
        let piece = MemorySegment { place: Place::Host(HostVa::new(4096)), len: 512, region: RegionId(0) };
        Io {
            token: Token::from_raw(raw),
            kind: IoKind::Read,
            object: NullTransport::OBJECT,
            handle: 0,
            offset: 0,
            len: 512,
            segment_count: 1,
            segments: [piece; MAX_SEGMENTS],
        }
    }

    #[test]
    fn ends_come_once_in_order_and_only_after_a_ring() {
        let mut null = NullTransport::new(2, 1 << 20);
        let mut out = Vec::with_capacity(8);
        assert_eq!(
            [null.submit(&io(1)), null.submit(&io(2)), null.submit(&io(3))],
            [Submit::Accepted, Submit::Accepted, Submit::Full]
        );
        assert_eq!(null.poll(Wait::No, &mut out).unwrap(), 0);
        null.ring().unwrap();
        assert_eq!(null.poll(Wait::No, &mut out).unwrap(), 2);
        assert_eq!(out.iter().map(|done| done.token.raw()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(null.poll(Wait::No, &mut out).unwrap(), 0);
        // Room for one: the other one comes later.
        out = Vec::with_capacity(1);
        (5..7).for_each(|raw| assert_eq!(null.submit(&io(raw)), Submit::Accepted));
        null.ring().unwrap();
        for raw in [5, 6] {
            out.clear();
            assert_eq!(null.poll(Wait::No, &mut out).unwrap(), 1);
            assert_eq!(out.iter().map(|done| done.token.raw()).collect::<Vec<_>>(), [raw]);
        }
        assert_eq!(null.fence(Duration::ZERO, &mut out), Fence::Quiet);
        assert_eq!(null.submit(&io(4)), Submit::Full);
    }
}
