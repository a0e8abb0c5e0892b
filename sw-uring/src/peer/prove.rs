//! Whether an object and a peer memory reach each other: told by the PCI tree, proven by a read, explained after a
//! refusal.
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
    relay::{self, Relay},
    topology::{self, Below, Doubt, Verdict},
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
/// Blocks of a file that are looked at for one that is not all zeros.
const LOOKS: u32 = 8;

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
    Ok(topology::verdict(&machine, provider, &below(&machine, object)?.devices))
}

/// What is below an object.
struct Under {
    devices: Below,
    /// Whether it is one drive even where sysfs has no name for it: commands go to one namespace.
    is_one: bool,
}

fn below(machine: &Machine, object: &Object) -> Result<Under, Error> {
    let device = match open_namespace(object).map(OpenNamespace::device) {
        Some(None) => return Ok(Under { devices: Below::Unknown(Doubt::NoDevice), is_one: true }),
        Some(Some(device)) => device,
        None => {
            let device = open_file(object)?.device();
            device.map_err(|errno| fault::error(errno, Verb::Plan, object.name.clone()))?
        }
    };
    Ok(Under { devices: topology::below(machine, device), is_one: false })
}

/// What the PCI tree says of a block device by its number.
pub(crate) fn reach_of(machine: &Machine, provider: PciAddress, device: u64) -> Verdict {
    topology::verdict(machine, provider, &topology::below(machine, device))
}

/// What [`prove`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For the planner: [`sw_engine::MemoryFacts::in_place`].
    pub in_place: Result<(), Reason>,
    /// Until when.
    pub lasts: Lasts,
}

/// How long an [`Answer`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// As long as the object is open: a read showed it, or the tree or the kernel refuses the two.
    WhileOpen,
    /// For what is about to be moved: nothing could be shown yet, or something failed that may not fail again.
    ForNow,
    /// The scratch memory is gone, with its device or its driver: map it anew and ask again.
    MemoryGone,
}

impl Answer {
    fn lasting(in_place: Result<(), Reason>) -> Self {
        Self { in_place, lasts: Lasts::WhileOpen }
    }

    fn for_now(in_place: Result<(), Reason>) -> Self {
        Self { in_place, lasts: Lasts::ForNow }
    }

    /// Of an object that has nothing yet to be shown with: across a switch the bytes go in place all the same, and any other
    /// way waits for a proof.
    fn unshown(tree: Verdict) -> Self {
        let trusted = matches!(tree, Verdict::Across { .. });
        Self::for_now(if trusted { Ok(()) } else { Err(Reason::SelfTestFailed) })
    }

    fn of(tested: &Tested, tree: Verdict) -> Self {
        match tested {
            Tested::Equal(_) => Self::lasting(Ok(())),
            // A route that brought other bytes is not tried again.
            Tested::Different => Self::lasting(Err(Reason::SelfTestFailed)),
            Tested::Nothing => Self::unshown(tree),
            Tested::Gone => Self { in_place: Err(Reason::SelfTestFailed), lasts: Lasts::MemoryGone },
            Tested::Errno(errno) if is_refusal(*errno) => Self::lasting(Err(Reason::P2pRefused)),
            Tested::Errno(_) => Self::for_now(Err(Reason::SelfTestFailed)),
        }
    }
}

/// Whether bytes between an object and memory of a device may go in place: what the tree refuses is not tried, and the rest
/// is shown by a [`self_test`] in `scratch`. An object without a direct face is not refused here: its other faces say why.
/// Of several drives below one object one block shows nothing for the others; they go in place only across switches.
///
/// *Blocking*: reads sysfs and a few blocks of the object. What went wrong is logged.
pub fn prove(object: &Object, scratch: &PeerMemory) -> Answer {
    if !object.faces.iter().any(|face| face.landing == Landing::Dma) {
        return Answer::lasting(Ok(()));
    }
    let machine = Machine::this();
    let Ok(below) = below(&machine, object) else { return Answer::for_now(Err(Reason::SelfTestFailed)) };
    let tree = topology::verdict(&machine, scratch.provider(), &below.devices);
    match tree {
        Verdict::Refused(Reason::NoPeerPages) => return Answer::for_now(Err(Reason::NoPeerPages)),
        Verdict::Refused(reason) => return Answer::lasting(Err(reason)),
        Verdict::Across { .. } | Verdict::HostBridge { .. } | Verdict::Unproven(_) => {}
    }
    let warn = |error: &Error| tracing::warn!(%error, "peer memory is not used directly");
    let place = || format!("{} into memory of {}", object.name, scratch.provider());
    if !below.is_one && !topology::one_block_shows(&below.devices, tree) {
        warn(
            &Error::new(ErrorKind::Unsupported, Verb::Plan)
                .at(place())
                .detail("there are several drives, or nobody can tell"),
        );
        return Answer::lasting(Err(Reason::SelfTestFailed));
    }
    let tested = match test(object, scratch) {
        Ok(tested) => tested,
        Err(error) => {
            warn(&error);
            return Answer::lasting(Err(error.reasons().first().copied().unwrap_or(Reason::SelfTestFailed)));
        }
    };
    let answer = Answer::of(&tested, tree);
    if answer.in_place.is_err()
        && let Err(error) = told(tested, &place())
    {
        warn(&error);
    }
    answer
}

/// Reads a block of an object into `scratch`, past the page cache, and compares it with what the page cache shows; bytes
/// before and after must stay as they were. Of a file it is a block that has data: a hole is filled by the kernel, and shows
/// nothing. Reads only: that the way back works too is shown by the first write, whose error [`explain`] puts into words.
///
/// *Blocking*: a few reads. Nobody else uses `scratch` meanwhile, of which [`SELF_TEST_BYTES`] are enough for any object.
/// Should its device be gone, that is an error and no signal.
///
/// # Errors
/// `Unsupported` with `P2P_REFUSED` if the kernel refuses the read; `ChecksumMismatch` with `SELF_TEST_FAILED` if other
/// bytes arrived, or arrived elsewhere; `Unsupported` with the face's reason if the object has no direct face;
/// `ShortData` for an object without data, which proves nothing; `NoDevice` if the scratch memory is gone; `OutOfRange` if
/// it is too short.
pub fn self_test(object: &Object, scratch: &PeerMemory) -> Result<Proof, Error> {
    told(test(object, scratch)?, &format!("{} into memory of {}", object.name, scratch.provider()))
}

/// What a test came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tested {
    /// So many bytes arrived as they are.
    Equal(u64),
    /// Other bytes arrived, or they arrived elsewhere.
    Different,
    /// There is no block to test with.
    Nothing,
    /// The scratch memory is not there any more.
    Gone,
    /// The read, or what it is compared with, failed.
    Errno(i32),
}

fn told(tested: Tested, place: &str) -> Result<Proof, Error> {
    let error = |kind| Error::new(kind, Verb::Plan).at(place.to_owned());
    Err(match tested {
        Tested::Equal(bytes) => return Ok(Proof { bytes }),
        Tested::Different => error(ErrorKind::ChecksumMismatch)
            .detail("other bytes arrived than the object holds, or they arrived elsewhere")
            .with_reasons(vec![Reason::SelfTestFailed])
            .remedy("do not use this route on this machine; look for firmware and kernel updates of bridge and drive"),
        Tested::Nothing => error(ErrorKind::ShortData).detail("the object has no data to test with"),
        Tested::Gone => error(ErrorKind::NoDevice).detail("the memory is gone, with its device or its driver"),
        Tested::Errno(errno) => refusal(errno, error(ErrorKind::Unsupported)),
    })
}

fn test(object: &Object, scratch: &PeerMemory) -> Result<Tested, Error> {
    let error = |kind| Error::new(kind, Verb::Plan).at(object.name.clone());
    let Some(face) = object.faces.iter().find(|face| face.landing == Landing::Dma) else {
        let reasons = object.faces.iter().filter_map(|face| face.because).collect();
        return Err(error(ErrorKind::Unsupported).detail("the object has no direct way").with_reasons(reasons));
    };
    let block = u64::from(face.granularity.block.max(face.granularity.memory)).max(GUARD);
    if block > UNIT_MAX {
        return Err(error(ErrorKind::Unsupported).detail(format!("blocks of {block} bytes cannot be tested")));
    }
    let (ways, span) = (Ways::of(object)?, scratch.span(0, ByteLen(block + 2 * GUARD))?);
    Ok(tries(&ways, &span, block).unwrap_or_else(Tested::Errno))
}

fn tries(ways: &Ways<'_>, span: &DmaSpan, block: u64) -> Result<Tested, i32> {
    let Some(at) = ways.telling(block)? else { return Ok(Tested::Nothing) };
    for _ in 0..TRIES {
        match compare(ways, span, at, block)? {
            Tested::Different => {}
            other => return Ok(other),
        }
    }
    Ok(Tested::Different)
}

/// How to read an object: directly, and in another way to compare with.
enum Ways<'a> {
    /// Past the page cache, and through it.
    File { direct: BorrowedFd<'a>, buffered: BorrowedFd<'a>, zeros: Zeros },
    /// By a command into the peer's memory, and by one into ordinary memory.
    Namespace(&'a OpenNamespace),
}

/// Who writes zeros that are read past the page cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    /// The drive, as everything else.
    Drive,
    /// Perhaps the kernel, into what nobody wrote: a file, a thin volume.
    Anyone,
}

impl<'a> Ways<'a> {
    fn of(object: &'a Object) -> Result<Self, Error> {
        if let Some(namespace) = open_namespace(object) {
            return Ok(Self::Namespace(namespace));
        }
        let file = open_file(object)?;
        let gone = || Error::new(ErrorKind::Unsupported, Verb::Plan).at(object.name.clone()).detail("no direct way");
        let direct = file.direct().ok_or_else(gone)?;
        let disk = file.block_device().map_err(|errno| fault::error(errno, Verb::Plan, object.name.clone()))?;
        let drive = disk.is_some_and(|device| topology::is_drive(&Machine::this(), device));
        let zeros = if drive { Zeros::Drive } else { Zeros::Anyone };
        Ok(Self::File { direct, buffered: file.buffered(), zeros })
    }

    /// Where a block is that shows something if it arrives.
    fn telling(&self, block: u64) -> Result<Option<u64>, i32> {
        let Self::File { buffered, zeros, .. } = self else { return Ok(Some(0)) };
        let (mut from, mut bytes) = (0u64, vec![0; sw_mem::index(block)]);
        for _ in 0..LOOKS {
            let Some(data) = sys::next_data(*buffered, signed(from)?)? else { return Ok(None) };
            let at = data - data % block;
            let filled = sys::pread(*buffered, &mut bytes, signed(at)?)?;
            let tells = bytes.get(..filled).is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0));
            if tells || (filled > 0 && *zeros == Zeros::Drive) {
                return Ok(Some(at));
            }
            from = at.checked_add(block).ok_or(libc::EOVERFLOW)?;
        }
        Ok(None)
    }

    /// Fills `to` from byte `from`, as far as the object goes.
    fn expected(&self, from: u64, to: &mut [u8]) -> Result<usize, i32> {
        match self {
            Self::File { buffered, .. } => sys::pread(*buffered, to, signed(from)?),
            Self::Namespace(namespace) => {
                let bytes = u32::try_from(to.len()).map_err(|_| libc::EINVAL)?;
                let address = to.as_mut_ptr().expose_provenance() as u64;
                // SAFETY: the slice is borrowed mutably until the call returns.
                unsafe { namespace.read_first(address, bytes) }
            }
        }
    }

    /// Reads `len` bytes from byte `from` to byte `at` of peer memory.
    fn direct(&self, from: u64, to: &DmaSpan, at: u64, len: u64) -> Result<usize, i32> {
        let address = relay::address(to, at, len)?;
        match self {
            Self::File { direct, .. } => {
                let base: *mut c_void = ptr::with_exposed_provenance_mut(sw_mem::index(address));
                let from = signed(from)?;
                // SAFETY: the range was checked to lie in the span, which keeps its memory mapped; nobody has a reference
                // into peer memory.
                let read = || unsafe { libc::pread(direct.as_raw_fd(), base, sw_mem::index(len), from) };
                usize::try_from(sys::uninterrupted(read)?).map_err(|_| libc::EIO)
            }
            Self::Namespace(namespace) => {
                let bytes = u32::try_from(len).map_err(|_| libc::EINVAL)?;
                // SAFETY: as for the file.
                unsafe { namespace.read_first(address, bytes) }
            }
        }
    }
}

fn signed(offset: u64) -> Result<i64, i32> {
    i64::try_from(offset).map_err(|_| libc::EOVERFLOW)
}

/// One round for each poison. An errno is that of a read of the object.
fn compare(ways: &Ways<'_>, span: &DmaSpan, at: u64, block: u64) -> Result<Tested, i32> {
    let (len, guard) = (sw_mem::index(block), sw_mem::index(GUARD));
    let mut want = vec![0; len];
    let filled = ways.expected(at, &mut want)?;
    let (mut got, mut relay) = (vec![0; len + 2 * guard], Relay::new()?);
    for poison in POISONS {
        if relay.fill(span, 0, block + 2 * GUARD, poison).is_err() {
            return Ok(Tested::Gone);
        }
        let read = ways.direct(at, span, GUARD, block);
        // The device may have gone meanwhile, which is no answer of the kernel about the two.
        if relay.read(span, 0, &mut got).is_err() {
            return Ok(Tested::Gone);
        }
        let read = read?;
        let (before, rest) = got.split_at(guard);
        let (data, after) = rest.split_at(len);
        let intact = |guard: &[u8]| guard.iter().all(|byte| *byte == poison);
        if read != filled || data.get(..filled) != want.get(..filled) || !intact(before) || !intact(after) {
            return Ok(Tested::Different);
        }
    }
    Ok(if filled == 0 { Tested::Nothing } else { Tested::Equal(filled as u64) })
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

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::{fd::AsFd, unix::fs::FileExt},
    };

    use sw_testkit::scratch::Scratch;

    use super::*;

    const BLOCK: u64 = 4096;

    /// A test whose direct way is the page cache, into memory of this process.
    fn tested(file: &File, zeros: Zeros) -> Tested {
        let ways = Ways::File { direct: file.as_fd(), buffered: file.as_fd(), zeros };
        let memory = sw_mem::Buffer::allocate(SELF_TEST_BYTES).unwrap().into_span();
        tries(&ways, &memory, BLOCK).unwrap()
    }

    fn file(folder: &Scratch, len: u64) -> File {
        let path = folder.root().join("file");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn holes_and_zeros_of_a_file_show_nothing_and_the_first_data_does() {
        let folder = Scratch::new(std::env::temp_dir().to_str().unwrap(), "prove");
        let file = file(&folder, 100 * BLOCK);
        assert_eq!(tested(&file, Zeros::Anyone), Tested::Nothing, "a hole");
        file.write_all_at(&vec![0; 2 * sw_mem::index(BLOCK)], 0).unwrap();
        assert_eq!(tested(&file, Zeros::Anyone), Tested::Nothing, "zeros");
        assert_eq!(tested(&file, Zeros::Drive), Tested::Equal(BLOCK), "zeros that a drive wrote");
        file.write_all_at(b"data", 3 * BLOCK + 5).unwrap();
        assert_eq!(tested(&file, Zeros::Anyone), Tested::Equal(BLOCK));
        let ways = Ways::File { direct: file.as_fd(), buffered: file.as_fd(), zeros: Zeros::Anyone };
        assert_eq!(ways.telling(BLOCK), Ok(Some(3 * BLOCK)));
        let empty = self::file(&folder, 0);
        assert_eq!(tested(&empty, Zeros::Drive), Tested::Nothing, "empty");
    }

    #[test]
    fn other_bytes_are_seen_and_memory_that_is_gone_is_no_signal() {
        let folder = Scratch::new(std::env::temp_dir().to_str().unwrap(), "prove-other");
        let right = file(&folder, 0);
        right.write_all_at(&vec![7; sw_mem::index(BLOCK)], 0).unwrap();
        let wrong = File::options().read(true).write(true).create_new(true).open(folder.root().join("wrong")).unwrap();
        wrong.write_all_at(&vec![8; sw_mem::index(BLOCK)], 0).unwrap();
        let ways = Ways::File { direct: wrong.as_fd(), buffered: right.as_fd(), zeros: Zeros::Anyone };
        let memory = sw_mem::Buffer::allocate(SELF_TEST_BYTES).unwrap().into_span();
        assert_eq!(tries(&ways, &memory, BLOCK), Ok(Tested::Different));
        assert_eq!(tries(&ways, &relay::tests::half_there(), BLOCK), Ok(Tested::Gone));
    }

    #[test]
    fn only_what_cannot_change_lasts() {
        let (across, bridge) = (Verdict::Across { hops: 4 }, Verdict::HostBridge { hops: 6 });
        let answer = |tested, tree| {
            let Answer { in_place, lasts } = Answer::of(&tested, tree);
            (in_place, lasts)
        };
        let failed = Err(Reason::SelfTestFailed);
        assert_eq!(answer(Tested::Equal(4096), bridge), (Ok(()), Lasts::WhileOpen));
        assert_eq!(answer(Tested::Different, across), (failed, Lasts::WhileOpen));
        assert_eq!(answer(Tested::Errno(libc::EREMOTEIO), across), (Err(Reason::P2pRefused), Lasts::WhileOpen));
        for errno in [libc::EIO, libc::EINTR, libc::EMFILE] {
            assert_eq!(answer(Tested::Errno(errno), across), (failed, Lasts::ForNow));
        }
        assert_eq!(answer(Tested::Gone, across), (failed, Lasts::MemoryGone));
        assert_eq!(answer(Tested::Nothing, across), (Ok(()), Lasts::ForNow));
        assert_eq!(answer(Tested::Nothing, bridge), (failed, Lasts::ForNow));
    }
}
