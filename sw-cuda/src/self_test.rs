//! Does a device really move bytes? Write, read back, compare, guard bytes intact.
//!
//! The fact "self-test passed" is the last of the four (see [`ProbeReport`](crate::ProbeReport)): a driver that loads, has
//! all symbols and answers success has still not shown that a byte arrives.

use std::time::Duration;

use sw_engine::seam::{CopyDirection, CopyDone, CopyEngine, CopyJob, SlabPin};
use sw_engine::{ErrorKind, Token};
use sw_mem::{Buffer, ByteLen, DmaSpan, HostVa, index};

use crate::buffer::DeviceBuffer;
use crate::context::Context;
use crate::copy_engine::{CopyEngineConfig, CudaCopyEngine};
use crate::error::CudaError;
use crate::wait;

/// Lengths in bytes, with odd ones and one of a slab.
const LENGTHS: [u32; 6] = [1, 511, 4096, 4097, 65_537, 1 << 20];
/// Untouched bytes before and behind each test range.
const GUARD: u64 = 256;
const GUARD_BYTE: u8 = 0xa5;
/// Host and device memory that the test needs: the longest length with its guards.
const ROOM: u64 = (1 << 20) + 2 * GUARD;
/// How long one copy may take: a thousand times what the slowest link needs.
const COPY_TIMEOUT: Duration = Duration::from_secs(5);
const CALL: &str = "copy self-test";

/// What a passed self-test covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfTest {
    /// Round trips compared.
    pub cases: u32,
    /// Bytes compared, guards included.
    pub bytes: u64,
}

impl SelfTest {
    /// Runs it, in memory of its own. *Blocking*: milliseconds; at most 5 s for each copy.
    ///
    /// # Errors
    /// `ChecksumMismatch` if a byte is not what was written or a guard was touched; `DeadlineExceeded`; the driver's.
    pub fn run(context: &Context) -> Result<Self, CudaError> {
        let mut bench = Bench::new(context, ROOM)?;
        let mut passed = Self { cases: 0, bytes: 0 };
        for (case, len) in LENGTHS.into_iter().enumerate() {
            bench.round_trip(case as u64, len)?;
            passed.cases += 1;
            passed.bytes += u64::from(len) + 2 * GUARD;
        }
        Ok(passed)
    }
}

/// Device memory, and pinned host memory to look at it.
pub(crate) struct Bench {
    engine: CudaCopyEngine,
    /// Of `host`, which goes after it.
    _pin: Box<dyn SlabPin>,
    /// The first half is the source, the second the destination.
    host: DmaSpan,
    pub(crate) device: DeviceBuffer,
    room: u64,
    ordinal: u16,
    serial: u64,
}

impl Bench {
    /// With `room` bytes of device memory.
    pub(crate) fn new(context: &Context, room: u64) -> Result<Self, CudaError> {
        let ordinal = context.device().ordinal();
        let mut engine = CudaCopyEngine::new(context, CopyEngineConfig { queue_depth: 2, ..Default::default() })?;
        let host = Buffer::allocate(ByteLen(2 * room))
            .map_err(|_| CudaError::ours(ErrorKind::ResourceLimit, CALL, Some(ordinal), "free host memory"))?
            .into_span();
        let device = DeviceBuffer::allocate(context, ByteLen(room))?;
        let pin = engine.pin_slabs(host.region())?;
        Ok(Self { engine, _pin: pin, host, device, room, ordinal, serial: 0 })
    }

    /// Puts `bytes` to the start of the device memory; at most its room.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), CudaError> {
        let len = u32::try_from(bytes.len()).map_err(|_| refused(ErrorKind::TooLarge, self.ordinal))?;
        self.touch(|host| host.write(0, bytes))?;
        self.copy(CopyDirection::ToDevice, 0, 0, len)
    }

    /// The first bytes of the device memory; at most its room.
    pub(crate) fn get(&mut self, bytes: &mut [u8]) -> Result<(), CudaError> {
        let len = u32::try_from(bytes.len()).map_err(|_| refused(ErrorKind::TooLarge, self.ordinal))?;
        self.copy(CopyDirection::FromDevice, self.room, 0, len)?;
        let room = self.room;
        self.touch(|host| host.read(room, bytes))
    }

    /// Guards and all to the device, then the pattern over the middle, then everything back.
    fn round_trip(&mut self, case: u64, len: u32) -> Result<(), CudaError> {
        let whole =
            u32::try_from(u64::from(len) + 2 * GUARD).map_err(|_| refused(ErrorKind::TooLarge, self.ordinal))?;
        let source = pattern(case, len);
        self.touch(|host| host.fill(0, u64::from(whole), GUARD_BYTE))?;
        self.copy(CopyDirection::ToDevice, 0, 0, whole)?;
        self.touch(|host| host.write(0, &source))?;
        self.copy(CopyDirection::ToDevice, 0, GUARD, len)?;
        self.touch(|host| host.fill(ROOM, u64::from(whole), !GUARD_BYTE))?;
        self.copy(CopyDirection::FromDevice, ROOM, 0, whole)?;
        let mut back = vec![0; whole as usize];
        self.touch(|host| host.read(ROOM, &mut back))?;
        let guard = index(GUARD);
        let (front, rest) = back.split_at(guard.min(back.len()));
        let (middle, behind) = rest.split_at(source.len().min(rest.len()));
        let guards_whole = front.iter().chain(behind).all(|byte| *byte == GUARD_BYTE);
        if guards_whole && middle == source {
            return Ok(());
        }
        let remedy =
            "do not use this device: bytes written to it come back different; look into the kernel log for Xid";
        Err(CudaError::ours(ErrorKind::ChecksumMismatch, CALL, Some(self.ordinal), remedy))
    }

    fn touch(&self, f: impl FnOnce(&DmaSpan) -> Result<(), sw_mem::MemError>) -> Result<(), CudaError> {
        f(&self.host).map_err(|_| refused(ErrorKind::OutOfRange, self.ordinal))
    }

    /// One copy between byte `host_at` of the host span and byte `device_at` of the device buffer, waited for.
    fn copy(&mut self, direction: CopyDirection, host_at: u64, device_at: u64, len: u32) -> Result<(), CudaError> {
        let out_of_range = || refused(ErrorKind::OutOfRange, self.ordinal);
        let base = self.host.place().host().ok_or_else(out_of_range)?;
        let host: HostVa = base.checked_add(ByteLen(host_at)).ok_or_else(out_of_range)?;
        let device = self.device.base().checked_add(ByteLen(device_at)).ok_or_else(out_of_range)?;
        self.serial += 1;
        let job = CopyJob { token: Token::from_raw(self.serial), direction, host, device, len };
        let ordinal = self.ordinal;
        let refused_with = |fault: sw_engine::Fault| match u32::try_from(fault.code) {
            Ok(0) | Err(_) => refused(fault.kind, ordinal),
            Ok(code) => CudaError::new(code, String::new(), CALL, Some(ordinal)),
        };
        self.engine.submit(&job).map_err(refused_with)?;
        self.engine.ring().map_err(refused_with)?;
        let mut done: Vec<CopyDone> = Vec::with_capacity(1);
        let engine = &mut self.engine;
        let ended = wait::until(COPY_TIMEOUT, || engine.poll(&mut done).map(|told| told > 0)).map_err(refused_with)?;
        match done.first() {
            Some(end) if end.token == job.token => end.result.map_err(refused_with),
            Some(_) => Err(refused(ErrorKind::Protocol, self.ordinal)),
            None => {
                debug_assert!(!ended, "an ended copy was told");
                Err(refused(ErrorKind::DeadlineExceeded, self.ordinal))
            }
        }
    }
}

fn refused(kind: ErrorKind, ordinal: u16) -> CudaError {
    CudaError::ours(kind, CALL, Some(ordinal), "")
}

/// Bytes that differ between cases and between neighbours (a multiplicative hash of the position).
fn pattern(case: u64, len: u32) -> Vec<u8> {
    (0..u64::from(len))
        .map(|at| {
            let mixed = (at ^ (case << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed.to_be_bytes()[0]
        })
        .collect()
}
