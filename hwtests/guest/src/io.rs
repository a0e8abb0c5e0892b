//! One I/O on a transport, driven to its end.

use std::time::Duration;

use sw_engine::seam::{Io, IoDone, IoKind, MAX_SEGMENTS, MemorySegment, Submit, Transport, Wait};
use sw_engine::{Fault, Object, Token};
use sw_mem::{Buffer, ByteLen, DmaSpan, HostVa, Place, RegionId};

use crate::registry::{Stop, fail};

/// Longest that one I/O may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// `len` bytes of a span from `at`, as an I/O names memory.
///
/// # Errors
/// A failure if they are not inside.
pub fn piece(span: &DmaSpan, at: u64, len: u32) -> Result<MemorySegment, Stop> {
    match span.place().checked_add(ByteLen(at)) {
        Some(place) if at + u64::from(len) <= span.len().0 => {
            Ok(MemorySegment { place, len, region: span.region().id() })
        }
        _ => fail(format!("{at}+{len} is outside {span:?}")),
    }
}

/// An I/O on the first face of an object; a flush without a piece.
pub fn io(kind: IoKind, object: &Object, offset: u64, piece: Option<MemorySegment>) -> Result<Io, Stop> {
    let Some(face) = object.faces.first() else { return fail("the object has no face") };
    let nowhere = MemorySegment { place: Place::Host(HostVa::new(0)), len: 0, region: RegionId(0) };
    Ok(Io {
        token: Token::from_raw(7 << 32),
        kind,
        object: object.id,
        handle: face.handle,
        offset,
        len: piece.map_or(0, |piece| piece.len),
        segment_count: u8::from(piece.is_some()),
        segments: [piece.unwrap_or(nowhere); MAX_SEGMENTS],
    })
}

/// Runs one I/O to its end.
///
/// # Errors
/// A failure if there is none; what the transport says is the value.
pub fn run(transport: &mut dyn Transport, io: &Io) -> Result<Result<u32, Fault>, Stop> {
    if transport.submit(io) != Submit::Accepted {
        return fail("an idle transport takes no I/O");
    }
    let mut ended: Vec<IoDone> = Vec::with_capacity(1);
    for _ in 0..100 {
        transport.poll(Wait::For { timeout: PATIENCE, min: 1 }, &mut ended)?;
        if let Some(done) = ended.pop() {
            return Ok(done.result);
        }
    }
    fail(format!("no end of {:?} at {}", io.kind, io.offset))
}

/// Page-aligned memory of the process, all `fill`.
///
/// # Errors
/// A failure where there is none.
pub fn memory(len: u64, fill: u8) -> Result<DmaSpan, Stop> {
    let mut buffer = Buffer::allocate(ByteLen(len))?;
    buffer.as_mut_slice().fill(fill);
    Ok(buffer.into_span())
}

/// The bytes of a span.
///
/// # Errors
/// A failure if the CPU cannot read them.
pub fn bytes(span: &DmaSpan, at: u64, len: usize) -> Result<Vec<u8>, Stop> {
    let mut out = vec![0; len];
    span.read(at, &mut out)?;
    Ok(out)
}
