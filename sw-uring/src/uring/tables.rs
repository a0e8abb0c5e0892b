//! What is registered with the ring: files by object, buffers by region.
//!
//! Registration is a hint: an I/O on something that is not in these tables works, it only costs the kernel more (a
//! descriptor lookup, pinning pages). Lookups are on the data path: no allocation, no lock.
// UNSAFETY: the kernel keeps the addresses that are registered.
#![expect(unsafe_code, reason = "registering buffers hands addresses to the kernel")]

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    os::fd::RawFd,
    ptr,
};

use io_uring::{Submitter, squeue, types};
use sw_engine::{Error, ErrorKind, Object, ObjectId, Verb, seam::MemorySegment};
use sw_mem::{DmaRegion, RegionId};

use crate::{fault, peer, sys};

use super::shape::Shape;

/// Bytes in one registered buffer at most (linux `io_uring/rsrc.c`, `io_buffer_validate`: 1 GiB). A larger region
/// takes several; the few I/Os that cross such a border go unregistered.
const BUFFER_BYTES_MAX: u64 = 1 << 30;

/// Ids are small consecutive numbers: one multiplication spreads them (Fibonacci hashing, Knuth 6.4).
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// A descriptor's place in the table of registered files.
#[derive(Clone, Copy)]
struct FileSlot {
    object: ObjectId,
    slot: u32,
}

/// A region's buffers.
struct Buffers {
    base: u64,
    len: u64,
    slots: Vec<u16>,
    /// The kernel has its pages: it must not be unmapped before it is taken out of the table.
    _region: DmaRegion,
}

/// Registered files and buffers of one ring.
pub struct Tables {
    /// By descriptor: descriptors are small numbers, so this is an array.
    files: Vec<Option<FileSlot>>,
    file_slots: Vec<u32>,
    buffers: IdMap<RegionId, Buffers>,
    buffer_slots: Vec<u16>,
    /// Whether the ring was made with room for buffers.
    takes_buffers: TakesBuffers,
}

/// Whether regions are registered at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TakesBuffers {
    Yes,
    /// The configuration wants none: hints about regions mean nothing.
    No,
}

impl Tables {
    /// Empty tables in the kernel with room for so many; fewer (none) where the kernel cannot.
    pub(super) fn new(submitter: &Submitter<'_>, files_max: u32, buffers_max: u16) -> Self {
        let files = if submitter.register_files_sparse(files_max).is_ok() { files_max } else { 0 };
        let buffers = if submitter.register_buffers_sparse(u32::from(buffers_max)).is_ok() { buffers_max } else { 0 };
        Self {
            files: Vec::new(),
            file_slots: (0..files).rev().collect(),
            buffers: IdMap::default(),
            buffer_slots: (0..buffers).rev().collect(),
            takes_buffers: if buffers_max == 0 { TakesBuffers::No } else { TakesBuffers::Yes },
        }
    }

    /// Without room for anything.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        let buffers = IdMap::default();
        let takes_buffers = TakesBuffers::No;
        Self { files: Vec::new(), file_slots: Vec::new(), buffers, buffer_slots: Vec::new(), takes_buffers }
    }

    /// The registered file of a descriptor, if its object is attached.
    #[inline]
    pub(super) fn file(&self, object: ObjectId, fd: RawFd) -> Option<u32> {
        let entry = self.files.get(usize::try_from(fd).ok()?)?.as_ref()?;
        (entry.object == object).then_some(entry.slot)
    }

    /// What an entry names to reach a descriptor: a registered file travels in the same field, told apart by the flag.
    #[inline]
    pub(crate) fn target(&self, object: ObjectId, fd: RawFd) -> (types::Fd, squeue::Flags) {
        match self.file(object, fd) {
            Some(slot) => (types::Fd(slot.cast_signed()), squeue::Flags::FIXED_FILE),
            None => (types::Fd(fd), squeue::Flags::empty()),
        }
    }

    /// The registered buffer that holds a whole segment, if its region is attached.
    #[inline]
    pub(crate) fn buffer(&self, segment: &MemorySegment) -> Option<u16> {
        if self.buffers.is_empty() {
            return None;
        }
        let buffers = self.buffers.get(&segment.region)?;
        let at = segment.place.host()?.raw().checked_sub(buffers.base)?;
        let last = at.checked_add(u64::from(segment.len).checked_sub(1)?)?;
        let (first_part, last_part) = (at / BUFFER_BYTES_MAX, last / BUFFER_BYTES_MAX);
        (first_part == last_part && last < buffers.len).then_some(())?;
        buffers.slots.get(usize::try_from(first_part).ok()?).copied()
    }

    /// Registers every descriptor of an object that the shape understands.
    pub(super) fn add_object<S: Shape>(&mut self, submitter: &Submitter<'_>, object: &Object) -> Result<(), Error> {
        for face in object.faces.iter().filter(|face| face.transport == S::NAME) {
            let fd = S::fd(face.handle);
            if self.file(object.id, fd).is_some() {
                continue;
            }
            let Ok(index) = usize::try_from(fd) else { continue };
            if index >= self.files.len() {
                self.files.resize(index + 1, None);
            }
            // A descriptor number that is back in use: the old object is gone, whether or not we were told.
            if let Some(old) = self.files.get_mut(index).and_then(Option::take) {
                self.release_file(submitter, old.slot);
            }
            let slot = self.file_slots.pop().ok_or_else(|| {
                Error::new(ErrorKind::ResourceLimit, Verb::Register)
                    .at(object.name.clone())
                    .detail("the table of registered files is full")
                    .remedy("close objects or raise files_max")
            })?;
            if let Err(refused) = submitter.register_files_update(slot, &[fd]) {
                self.file_slots.push(slot);
                return Err(fault::error(sys::code(&refused), Verb::Register, object.name.clone()));
            }
            if let Some(entry) = self.files.get_mut(index) {
                *entry = Some(FileSlot { object: object.id, slot });
            }
        }
        Ok(())
    }

    /// Takes an object's descriptors out.
    pub(super) fn remove_object(&mut self, submitter: &Submitter<'_>, object: ObjectId) {
        for index in 0..self.files.len() {
            let ours = self.files.get(index).copied().flatten().filter(|entry| entry.object == object);
            if let (Some(entry), Some(place)) = (ours, self.files.get_mut(index)) {
                *place = None;
                self.release_file(submitter, entry.slot);
            }
        }
    }

    fn release_file(&mut self, submitter: &Submitter<'_>, slot: u32) {
        // On an error the kernel still holds the file: the slot is lost rather than used twice.
        if submitter.register_files_update(slot, &[-1]).is_ok() {
            self.file_slots.push(slot);
        }
    }

    /// Registers (pins) a region of host memory that can be pinned.
    pub(super) fn add_region(&mut self, submitter: &Submitter<'_>, region: &DmaRegion) -> Result<(), Error> {
        let Some(base) = region.base().host().map(sw_mem::HostVa::raw) else { return Ok(()) };
        // The kernel pins no peer memory for long (`EFAULT`); I/Os into it go unregistered.
        let no_use = self.takes_buffers == TakesBuffers::No || peer::is_peer(region.id());
        if no_use || self.buffers.contains_key(&region.id()) {
            return Ok(());
        }
        let len = region.len().0;
        let mut slots = Vec::new();
        let mut at = 0;
        while at < len {
            let part = (len - at).min(BUFFER_BYTES_MAX);
            let result = match self.buffer_slots.pop() {
                None => Err((None, libc::ENOSPC)),
                Some(slot) => {
                    update_buffer(submitter, slot, base + at, part).map(|()| slot).map_err(|e| (Some(slot), e))
                }
            };
            match result {
                Ok(slot) => slots.push(slot),
                Err((spare, errno)) => {
                    self.buffer_slots.extend(spare);
                    slots.into_iter().for_each(|slot| self.release_buffer(submitter, slot));
                    return Err(region_error(errno, region));
                }
            }
            at += part;
        }
        self.buffers.insert(region.id(), Buffers { base, len, slots, _region: region.clone() });
        Ok(())
    }

    /// Takes a region out; the kernel unpins it when the last I/O into it has ended.
    pub(super) fn remove_region(&mut self, submitter: &Submitter<'_>, region: RegionId) {
        if let Some(buffers) = self.buffers.remove(&region) {
            buffers.slots.iter().for_each(|slot| self.release_buffer(submitter, *slot));
        }
    }

    fn release_buffer(&mut self, submitter: &Submitter<'_>, slot: u16) {
        if update_buffer(submitter, slot, 0, 0).is_ok() {
            self.buffer_slots.push(slot);
        }
    }

    /// Files and regions that are registered now.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.files.iter().flatten().count(), self.buffers.len())
    }
}

fn update_buffer(submitter: &Submitter<'_>, slot: u16, base: u64, len: u64) -> Result<(), i32> {
    let part =
        libc::iovec { iov_base: ptr::with_exposed_provenance_mut(sw_mem::index(base)), iov_len: sw_mem::index(len) };
    // SAFETY: the range lies in a region whose handle the table keeps until the buffer is taken out again (or in none:
    // the empty entry that takes one out). The kernel copies the entry during the call.
    let done = unsafe { submitter.register_buffers_update(u32::from(slot), &[part], None) };
    done.map_err(|refused| sys::code(&refused))
}

fn region_error(errno: i32, region: &DmaRegion) -> Error {
    let error = |kind| Error::new(kind, Verb::Register).at(format!("{region:?}")).with_code(errno);
    match errno {
        libc::ENOMEM | libc::EPERM | libc::EAGAIN => error(ErrorKind::ResourceLimit)
            .detail(format!("the limit of locked memory does not allow {} more", region.len()))
            .remedy("raise RLIMIT_MEMLOCK (ulimit -l) or grant CAP_IPC_LOCK; I/O works unregistered meanwhile"),
        libc::ENOSPC => error(ErrorKind::ResourceLimit)
            .detail("the table of registered buffers is full")
            .remedy("register fewer regions or raise regions_max"),
        _ => error(fault::classify(errno).0).detail("the kernel refuses to pin the region"),
    }
}

#[cfg(test)]
mod tests {
    use sw_mem::{Buffer, ByteLen, HostVa, Place};

    use super::*;

    #[test]
    fn a_large_region_is_found_by_its_parts_and_never_across_their_border() {
        // Only the numbers matter here: nothing is registered or touched.
        let region = Buffer::allocate(ByteLen(4096)).unwrap().region().clone();
        let (base, len) = (0x7000_0000_0000, 2 * BUFFER_BYTES_MAX + 4096);
        let mut tables = Tables::none();
        tables.buffers.insert(region.id(), Buffers { base, len, slots: vec![7, 3, 9], _region: region.clone() });
        let find = |at: u64, len: u32| {
            let place = Place::Host(HostVa::new(base.wrapping_add(at)));
            tables.buffer(&MemorySegment { place, len, region: region.id() })
        };
        assert_eq!(find(0, 4096), Some(7));
        assert_eq!(find(BUFFER_BYTES_MAX - 4096, 4096), Some(7));
        assert_eq!(find(BUFFER_BYTES_MAX - 4096, 4097), None, "across a border");
        assert_eq!(find(BUFFER_BYTES_MAX, 4096), Some(3));
        assert_eq!(find(2 * BUFFER_BYTES_MAX, 4096), Some(9));
        assert_eq!(find(2 * BUFFER_BYTES_MAX, 4097), None, "past the end");
        assert_eq!(find(0u64.wrapping_sub(1), 4096), None, "before the start");
        assert_eq!(find(0, 0), None, "nothing");
    }
}
