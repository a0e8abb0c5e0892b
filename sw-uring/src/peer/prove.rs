//! Whether an object and a peer memory reach each other: told by the PCI tree, proven by a read, explained after a refusal.
// UNSAFETY: reads into memory by address.
#![expect(unsafe_code, reason = "a read names memory by address")]

use std::{
    ffi::c_void,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use sw_engine::{Error, ErrorKind, Fault, Landing, Object, PciAddress, Reason, Verb};
use sw_mem::{ByteLen, DmaSpan};

use super::{
    PeerMemory,
    topology::{self, Doubt, Verdict},
};
use crate::{
    fault,
    file::{open_file, open_namespace},
    passthrough::node::OpenNamespace,
    sys,
    sysfs::Machine,
};

/// Guard bytes on both sides of the block that a self-test reads: a page, so that a transfer that is a page off is seen.
const GUARD: u64 = 4096;
/// Largest unit that a self-test reads: a block of 64 KiB.
const UNIT_MAX: u64 = 64 << 10;
/// Memory that a [`self_test`] needs, in bytes.
pub const SELF_TEST_BYTES: ByteLen = ByteLen(UNIT_MAX + 2 * GUARD);
/// What memory holds before a read: each bit is once set and once clear, so that every byte is seen to be written.
const POISONS: [u8; 2] = [0xA5, 0x5A];
/// Reads of an object that somebody else writes meanwhile.
const TRIES: u32 = 3;

/// What a self-test did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Bytes that the drive wrote into the device's memory, all compared.
    pub bytes: u64,
}

/// What the PCI tree says of an object and memory of the device at `provider`. Nothing is tried. *Blocking*: reads sysfs.
///
/// # Errors
/// `ApiMisuse` for an object of another store.
pub fn reach(object: &Object, provider: PciAddress) -> Result<Verdict, Error> {
    let machine = Machine::this();
    let device = match open_namespace(object).map(OpenNamespace::device) {
        Some(None) => return Ok(Verdict::Unproven(Doubt::NoDevice)),
        Some(Some(device)) => device,
        None => {
            let device = open_file(object)?.device();
            device.map_err(|errno| fault::error(errno, Verb::Plan, object.name.clone()))?
        }
    };
    Ok(reach_of(&machine, provider, device))
}

/// What the PCI tree says of a block device by its number.
pub(crate) fn reach_of(machine: &Machine, provider: PciAddress, device: u64) -> Verdict {
    topology::verdict(machine, provider, &topology::below(machine, device))
}

/// Whether bytes between an object and memory of a device may go in place: what the tree refuses is not tried, and the rest
/// is shown by a [`self_test`] in `scratch`. For the planner ([`sw_engine::MemoryFacts::in_place`]). An object that has nothing to be shown
/// with (no direct face, no bytes) is not refused here: its other faces say why.
///
/// *Blocking*: reads sysfs and a block of the object.
///
/// # Errors
/// The tree's reason; `P2P_REFUSED` or `SELF_TEST_FAILED` of the test, whose error is logged.
pub fn prove(object: &Object, scratch: &PeerMemory) -> Result<(), Reason> {
    if !object.faces.iter().any(|face| face.landing == Landing::Dma) || object.len == 0 {
        return Ok(());
    }
    match reach(object, scratch.provider()) {
        Ok(Verdict::Refused(reason)) => return Err(reason),
        Ok(Verdict::Across { .. } | Verdict::HostBridge { .. } | Verdict::Unproven(_)) => {}
        Err(_) => return Err(Reason::SelfTestFailed),
    }
    match self_test(object, scratch) {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "peer memory is not used directly");
            Err(error.reasons().first().copied().unwrap_or(Reason::SelfTestFailed))
        }
    }
}

/// Reads the first block of an object into `scratch`, past the page cache, and compares it with
/// what the page cache shows; bytes before and after must stay as they were. Reads only: that the way back works too is
/// shown by the first write, whose error [`explain`] puts into words.
///
/// *Blocking*: a few reads. Nobody else uses `scratch` meanwhile, of which [`SELF_TEST_BYTES`] are enough for any object.
///
/// # Errors
/// `Unsupported` with `P2P_REFUSED` if the kernel refuses the read; `ChecksumMismatch` with `SELF_TEST_FAILED` if other
/// bytes arrived, or arrived elsewhere; `Unsupported` with the face's reason if the object has no direct face;
/// `ShortData` for an empty object, which proves nothing; `OutOfRange` for scratch memory that is too short.
pub fn self_test(object: &Object, scratch: &PeerMemory) -> Result<Proof, Error> {
    let place = || format!("{} into memory of {}", object.name, scratch.provider());
    let error = |kind| Error::new(kind, Verb::Plan).at(place());
    let Some(face) = object.faces.iter().find(|face| face.landing == Landing::Dma) else {
        let reasons = object.faces.iter().filter_map(|face| face.because).collect();
        return Err(error(ErrorKind::Unsupported).detail("the object has no direct way").with_reasons(reasons));
    };
    let block = u64::from(face.granularity.block.max(face.granularity.memory)).max(GUARD);
    if block > UNIT_MAX || object.len == 0 {
        return Err(error(ErrorKind::ShortData).detail(format!("{} bytes cannot be tested", object.len)));
    }
    let (whole, ways) = (block + 2 * GUARD, Ways::of(object)?);
    let span = scratch.span(0, ByteLen(whole))?;
    for _ in 0..TRIES {
        match compare(&ways, &span, block) {
            Ok(Compared::Equal(bytes)) => return Ok(Proof { bytes }),
            Ok(Compared::Different) => {}
            Err(errno) => return Err(refusal(errno, error(ErrorKind::Unsupported))),
        }
    }
    Err(error(ErrorKind::ChecksumMismatch)
        .detail("other bytes arrived than the object holds, or they arrived elsewhere")
        .with_reasons(vec![Reason::SelfTestFailed])
        .remedy("do not use this route on this machine; look for firmware and kernel updates of bridge and drive"))
}

/// How to read the start of an object: directly, and in another way to compare with.
enum Ways<'a> {
    /// Past the page cache, and through it.
    File(BorrowedFd<'a>, BorrowedFd<'a>),
    /// By a command into the peer's memory, and by one into ordinary memory.
    Namespace(&'a OpenNamespace),
}

impl<'a> Ways<'a> {
    fn of(object: &'a Object) -> Result<Self, Error> {
        if let Some(namespace) = open_namespace(object) {
            return Ok(Self::Namespace(namespace));
        }
        let file = open_file(object)?;
        let gone = || Error::new(ErrorKind::Unsupported, Verb::Plan).at(object.name.clone()).detail("no direct way");
        Ok(Self::File(file.direct().ok_or_else(gone)?, file.buffered()))
    }

    /// Fills `to` as far as the object goes.
    fn expected(&self, to: &mut [u8]) -> Result<usize, i32> {
        match self {
            Self::File(_, buffered) => sys::pread(*buffered, to, 0),
            Self::Namespace(namespace) => {
                let bytes = u32::try_from(to.len()).map_err(|_| libc::EINVAL)?;
                let address = to.as_mut_ptr().expose_provenance() as u64;
                // SAFETY: the slice is borrowed mutably until the call returns.
                unsafe { namespace.read_first(address, bytes) }
            }
        }
    }

    /// Reads `len` bytes to byte `at` of peer memory.
    fn direct(&self, to: &DmaSpan, at: u64, len: u64) -> Result<usize, i32> {
        let inside = at.checked_add(len).is_some_and(|end| end <= to.len().0);
        let place = to.place().host().and_then(|va| va.checked_add(ByteLen(at))).filter(|_| inside);
        let address = place.ok_or(libc::EINVAL)?.raw();
        match self {
            Self::File(direct, _) => {
                let base: *mut c_void = ptr::with_exposed_provenance_mut(sw_mem::index(address));
                // SAFETY: the range was checked to lie in the span, which keeps its memory mapped; nobody has a reference
                // into peer memory.
                let done = unsafe { libc::pread(direct.as_raw_fd(), base, sw_mem::index(len), 0) };
                usize::try_from(done).map_err(|_| sys::errno())
            }
            Self::Namespace(namespace) => {
                let bytes = u32::try_from(len).map_err(|_| libc::EINVAL)?;
                // SAFETY: as for the file.
                unsafe { namespace.read_first(address, bytes) }
            }
        }
    }
}

enum Compared {
    Equal(u64),
    Different,
}

/// One round for each poison. The errno is that of the direct read.
fn compare(ways: &Ways<'_>, span: &DmaSpan, block: u64) -> Result<Compared, i32> {
    let (len, guard) = (sw_mem::index(block), sw_mem::index(GUARD));
    let mut want = vec![0; len];
    let filled = ways.expected(&mut want)?;
    let mut got = vec![0; len + 2 * guard];
    for poison in POISONS {
        span.fill(0, block + 2 * GUARD, poison).map_err(|_| libc::EINVAL)?;
        let read = ways.direct(span, GUARD, block)?;
        span.read(0, &mut got).map_err(|_| libc::EINVAL)?;
        let (before, rest) = got.split_at(guard);
        let (data, after) = rest.split_at(len);
        let intact = |guard: &[u8]| guard.iter().all(|byte| *byte == poison);
        if read != filled || data.get(..filled) != want.get(..filled) || !intact(before) || !intact(after) {
            return Ok(Compared::Different);
        }
    }
    Ok(Compared::Equal(filled as u64))
}

/// Whether `errno` is one by which kernels refuse peer-to-peer memory.
///
/// `EREMOTEIO`: the drive's queue takes no such pages (`mm/gup.c`, `try_grab_folio`), or, in kernels before 6.17, the
/// device may not reach them. `EINVAL`: the same since (`block/blk-mq-dma.c`, `BLK_STS_INVAL`). `EFAULT`: pinning for long.
fn is_refusal(errno: i32) -> bool {
    matches!(errno, libc::EREMOTEIO | libc::EINVAL | libc::EFAULT | libc::EOPNOTSUPP)
}

/// A fault of an I/O into peer memory: the engine keeps to the face's granularity and to mapped memory, so what means
/// misuse for ordinary memory means here that the kernel does not let the two devices meet.
pub(crate) fn as_refusal(fault: Fault) -> Fault {
    if is_refusal(fault.code) { Fault::new(ErrorKind::Unsupported, fault.code) } else { fault }
}

fn refusal(errno: i32, error: Error) -> Error {
    let error = error.with_code(errno);
    if is_refusal(errno) {
        return error
            .detail("the kernel refuses peer-to-peer DMA between them")
            .with_reasons(vec![Reason::P2pRefused])
            .remedy("see the kernel log; put both devices below one PCI switch, or let the bytes be staged");
    }
    error.detail("reading the object failed")
}

/// Puts a failed I/O between an object and memory of the device at `provider` into words: what the PCI tree says of the two, if the kernel's
/// code is one of a refusal. Any other error comes back unchanged.
pub fn explain(error: Error, object: &Object, provider: PciAddress) -> Error {
    if error.kind() != ErrorKind::Unsupported || !is_refusal(error.code()) {
        return error;
    }
    let reason = match reach(object, provider) {
        Ok(Verdict::Refused(reason)) => reason,
        _ => Reason::P2pRefused,
    };
    let range = error.location().range;
    let told = Error::new(ErrorKind::Unsupported, error.verb())
        .at(format!("{} with memory of {provider}", object.name))
        .with_code(error.code())
        .detail("the kernel refuses peer-to-peer DMA between them")
        .with_reasons(vec![reason])
        .remedy(reason.text());
    let told = match error.outcome() {
        Some(outcome) => told.with_outcome(outcome),
        None => told,
    };
    let told = match range {
        Some((offset, len)) => told.in_range(offset, len),
        None => told,
    };
    told.caused_by(error)
}
