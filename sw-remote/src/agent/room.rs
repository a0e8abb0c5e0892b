//! Memory that an agent is lent: a segment of equal places. The bytes of callers are copied into it and out of it.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use sw_mem::{ByteLen, SharedSegment};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of a place, which is what one operation moves at most.
pub(super) const PLACE_BYTES: u32 = 1 << 20;
/// Places.
pub(super) const PLACES: u16 = 64;
/// Bytes that are copied at a time.
const PIECE_BYTES: usize = 64 << 10;

/// All places. Cloning shares it.
#[derive(Clone)]
pub(super) struct Room(Arc<Inner>);

struct Inner {
    segment: Mutex<Arc<SharedSegment>>,
    free: Mutex<Vec<u16>>,
    count: Arc<Semaphore>,
}

/// A place, until it is dropped.
pub(super) struct Slot {
    room: Room,
    number: u16,
    _permit: OwnedSemaphorePermit,
}

impl Room {
    pub(super) fn new() -> io::Result<Self> {
        let segment = Mutex::new(Arc::new(Self::segment_anew()?));
        let free = Mutex::new((0..PLACES).collect());
        Ok(Self(Arc::new(Inner { segment, free, count: Arc::new(Semaphore::new(usize::from(PLACES))) })))
    }

    fn segment_anew() -> io::Result<SharedSegment> {
        SharedSegment::create(ByteLen(u64::from(PLACES) * u64::from(PLACE_BYTES)))
    }

    /// What is lent now.
    pub(super) fn segment(&self) -> Arc<SharedSegment> {
        self.0.segment.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes other memory with the same bytes, so that whoever had the memory of before writes to what nobody reads any more.
    pub(super) fn renew(&self) -> io::Result<()> {
        let fresh = Arc::new(Self::segment_anew()?);
        let mut segment = self.0.segment.lock().unwrap_or_else(PoisonError::into_inner);
        let len = segment.region().len();
        let whole = |of: &SharedSegment| of.region().span(0, len).map_err(io::Error::other);
        whole(&fresh)?.copy_from(0, &whole(&segment)?, 0, len.0).map_err(io::Error::other)?;
        *segment = fresh;
        Ok(())
    }

    /// A place; waits until there is one.
    pub(super) async fn take(&self) -> Option<Slot> {
        let permit = self.0.count.clone().acquire_owned().await.ok()?;
        let number = self.0.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Slot { room: self.clone(), number, _permit: permit })
    }

    /// Writes what came by frames to byte `at` of the segment.
    pub(super) fn put(&self, at: u64, bytes: &[u8]) {
        // The state machine of the host looked whether it lies inside.
        if let Ok(span) = self.segment().region().span(at, ByteLen(bytes.len() as u64)) {
            let _ = span.write(0, bytes);
        }
    }

    /// The bytes of a range of the segment, for frames.
    pub(super) fn get(&self, at: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; sw_mem::index(u64::from(len))];
        if let Ok(span) = self.segment().region().span(at, ByteLen(u64::from(len))) {
            let _ = span.read(0, &mut bytes);
        }
        bytes
    }
}

impl Slot {
    /// Where it is in the segment.
    pub(super) fn at(&self) -> u64 {
        u64::from(self.number) * u64::from(PLACE_BYTES)
    }

    /// Gives its first `len` bytes to `each`, in order, in copies of a bounded size.
    pub(super) fn visit<E>(&self, len: u32, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut done = Ok(());
        let segment = self.room.segment();
        if let Ok(span) = segment.region().span(self.at(), ByteLen(u64::from(len))) {
            let _ = span.visit(0, u64::from(len), |bytes| {
                if done.is_ok() {
                    done = each(bytes);
                }
            });
        }
        done
    }

    /// Puts `len` bytes that `fill` gives into it.
    pub(super) fn fill(&self, len: u32, mut fill: impl FnMut(&mut [u8])) {
        let segment = self.room.segment();
        let Ok(span) = segment.region().span(self.at(), ByteLen(u64::from(len))) else { return };
        let (mut piece, mut at, len) = (vec![0; PIECE_BYTES], 0, u64::from(len));
        while at < len {
            let step = (len - at).min(PIECE_BYTES as u64);
            let Some(bytes) = piece.get_mut(..sw_mem::index(step)) else { return };
            fill(bytes);
            let _ = span.write(at, bytes);
            at += step;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.room.0.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
    }
}
