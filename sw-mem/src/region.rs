//! Regions, spans and buffers: who may touch which bytes.
// UNSAFETY: the only place where a raw address becomes bytes. Everything else copies through here.
#![expect(unsafe_code, reason = "raw copies between checked ranges")]

use core::{any::Any, cell::Cell, fmt, marker::PhantomData};
use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    SpanReader,
    addr::{ByteLen, GpuVa, HostVa, index},
    host::{HostMapping, HugePages, MapError, PageBacking, Populate},
    keep::KeptMappings,
    shared::SharedSpan,
};

/// Bytes that [`DmaSpan::visit`] copies out at a time: half of a 32 KiB first-level cache, so that the copy stays in it.
const VISIT_BYTES: usize = 16 << 10;

/// Names a region for as long as the process lives; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u64);

/// An accelerator, by its ordinal among those the process sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u16);

impl DeviceId {
    /// Ordinals from here on name memory behind BARs of PCIe functions, in the order in which the process named them.
    pub const PEER_FIRST: u16 = 0x4000;
    /// Ordinals from here on name modelled devices; a backend for real ones never knows such an ordinal.
    pub const MODEL_FIRST: u16 = 0x8000;
}

/// Where bytes live, with the address that its own space uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Memory of this process.
    Host(HostVa),
    /// Memory of an accelerator; the CPU must not follow the address.
    Device(DeviceId, GpuVa),
}

impl Place {
    /// The place `len` bytes further, or `None` past the end of its space.
    pub fn checked_add(self, len: ByteLen) -> Option<Place> {
        Some(match self {
            Place::Host(va) => Place::Host(va.checked_add(len)?),
            Place::Device(device, va) => Place::Device(device, va.checked_add(len)?),
        })
    }

    /// The place `len` bytes further, for a `len` that is known to stay inside one region: it wraps otherwise.
    #[inline]
    #[must_use]
    pub fn advanced(self, len: ByteLen) -> Place {
        match self {
            Place::Host(va) => Place::Host(HostVa::new(va.raw().wrapping_add(len.0))),
            Place::Device(device, va) => Place::Device(device, GpuVa::new(va.raw().wrapping_add(len.0))),
        }
    }

    /// The raw address, for alignment arithmetic.
    #[inline]
    pub fn raw(self) -> u64 {
        match self {
            Place::Host(va) => va.raw(),
            Place::Device(_, va) => va.raw(),
        }
    }

    /// The process address, if the CPU may use one.
    pub fn host(self) -> Option<HostVa> {
        match self {
            Place::Host(va) => Some(va),
            Place::Device(..) => None,
        }
    }
}

/// Misuse of a span; nothing was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// A range past the end.
    #[error("range {at}+{len} lies outside memory of {have:?}")]
    OutOfRange {
        /// First byte asked for.
        at: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes there are.
        have: ByteLen,
    },
    /// Parts of an own mapping were asked for behind its owner's back.
    #[error("the memory has an owner with slices; share it to give out parts")]
    Owned,
    /// A part that overlaps one given out before.
    #[error("range {at}+{len} overlaps a part that was given out before")]
    InUse {
        /// First byte asked for, from the start of the shared range.
        at: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// The CPU was asked to touch device memory.
    #[error("memory of device {0:?} cannot be touched by the CPU; copy it through the device's own engine")]
    NotHost(DeviceId),
    /// A region that would wrap around its address space, or a null host address.
    #[error("region of {len:?} at {raw:#x} is not a range of its address space")]
    BadAddress {
        /// The address given.
        raw: u64,
        /// The length given.
        len: ByteLen,
    },
}

/// Memory that stays mapped while this handle or any span of it lives. Cloning shares it.
#[derive(Clone)]
pub struct DmaRegion(Arc<Inner>);

/// Names a region without keeping its memory: for whoever maps it for a device and must find it again while it is there.
#[derive(Clone, Debug)]
pub struct WeakRegion {
    id: RegionId,
    inner: Weak<Inner>,
}

impl WeakRegion {
    /// The region's name.
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// A handle, while the memory is there.
    pub fn upgrade(&self) -> Option<DmaRegion> {
        self.inner.upgrade().map(DmaRegion)
    }

    /// Whether the memory is there now.
    pub fn is_alive(&self) -> bool {
        self.inner.strong_count() > 0
    }
}

struct Inner {
    id: RegionId,
    base: Place,
    len: ByteLen,
    backing: Option<PageBacking>,
    /// Dropped before `keep`: a mapping of the memory for a device ends while the memory is still there.
    guests: Mutex<Vec<(GuestKey, Guest)>>,
    keep: Keep,
}

/// Who bound something to a region: one key per mapper (an IOMMU context, a NIC's protection domain).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestKey(u64);

impl GuestKey {
    /// A key that nobody else has.
    pub fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a device backend binds to a region: it is dropped when the last handle of the region goes, before the memory does.
pub type Guest = Box<dyn Any + Send + Sync>;

/// What keeps the range mapped.
enum Keep {
    Mapping(HostMapping),
    /// A mapping that goes to the store of kept ones when the last span is gone.
    Kept(Option<HostMapping>, KeptMappings),
    Foreign {
        _owner: Box<dyn Any + Send + Sync>,
    },
}

impl Drop for Keep {
    fn drop(&mut self) {
        if let Keep::Kept(mapping, store) = self
            && let Some(mapping) = mapping.take()
        {
            store.put(mapping);
        }
    }
}

impl Keep {
    fn mapping(&self) -> Option<&HostMapping> {
        match self {
            Keep::Mapping(mapping) => Some(mapping),
            Keep::Kept(mapping, _) => mapping.as_ref(),
            Keep::Foreign { .. } => None,
        }
    }
}

impl Inner {
    fn new(base: Place, len: ByteLen, backing: Option<PageBacking>, keep: Keep) -> Self {
        Self { id: next_id(), base, len, backing, guests: Mutex::default(), keep }
    }
}

fn next_id() -> RegionId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    RegionId(NEXT.fetch_add(1, Ordering::Relaxed))
}

impl DmaRegion {
    /// Takes memory that somebody else mapped or allocated; `owner` is dropped after the last span.
    ///
    /// # Errors
    /// [`MemError::BadAddress`] for a null host address or a range that wraps.
    ///
    /// # Safety
    /// The caller guarantees, while the returned region or a span of it lives:
    /// - `base..base+len` stays mapped (host) or allocated (device) and is not moved; dropping `owner` is what ends that;
    /// - for host memory, no `&` or `&mut` into the range is alive while an operation on it is in flight, and other
    ///   threads of the program touch it only between operations.
    pub unsafe fn from_foreign(base: Place, len: ByteLen, owner: Box<dyn Any + Send + Sync>) -> Result<Self, MemError> {
        let null = matches!(base, Place::Host(va) if va.raw() == 0);
        if null || len.0 == 0 || base.checked_add(len).is_none() {
            return Err(MemError::BadAddress { raw: base.raw(), len });
        }
        Ok(Self(Arc::new(Inner::new(base, len, None, Keep::Foreign { _owner: owner }))))
    }

    fn from_mapping(mapping: HostMapping, store: Option<&KeptMappings>) -> Self {
        let (base, len, backing) = (Place::Host(mapping.base()), mapping.len(), Some(mapping.backing()));
        let keep = match store {
            None => Keep::Mapping(mapping),
            Some(store) => Keep::Kept(Some(mapping), store.clone()),
        };
        Self(Arc::new(Inner::new(base, len, backing, keep)))
    }

    /// Memory of a modelled device: `base` means something to its model only. Nothing is mapped and nothing follows the
    /// address, and the CPU is refused as for any device memory.
    ///
    /// # Errors
    /// [`MemError::BadAddress`] for an empty range, one that wraps, or a device below [`DeviceId::MODEL_FIRST`].
    pub fn modelled(device: DeviceId, base: GpuVa, len: ByteLen) -> Result<Self, MemError> {
        let place = Place::Device(device, base);
        if device.0 < DeviceId::MODEL_FIRST || len.0 == 0 || place.checked_add(len).is_none() {
            return Err(MemError::BadAddress { raw: base.raw(), len });
        }
        let keep = Keep::Foreign { _owner: Box::new(()) };
        Ok(Self(Arc::new(Inner::new(place, len, None, keep))))
    }

    /// Its name.
    pub fn id(&self) -> RegionId {
        self.0.id
    }

    /// Its first byte.
    pub fn base(&self) -> Place {
        self.0.base
    }

    /// Its length in bytes, above zero.
    pub fn len(&self) -> ByteLen {
        self.0.len
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.0.len.0 == 0
    }

    /// Handles and spans that keep it mapped now, this one included. For reports and for whoever checks that memory was
    /// not let go too early; the number may be old when it is read while other threads clone or drop.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// A name for it that does not keep its memory.
    pub fn downgrade(&self) -> WeakRegion {
        WeakRegion { id: self.0.id, inner: Arc::downgrade(&self.0) }
    }

    /// What the pages are, where this crate made them.
    pub fn backing(&self) -> Option<PageBacking> {
        self.0.backing
    }

    /// A part of memory that is not one of this crate's mappings, as a range in bytes from its start.
    ///
    /// Spans may overlap: who reads or writes when is part of the contract of [`DmaRegion::from_foreign`].
    ///
    /// # Errors
    /// [`MemError::OutOfRange`]; [`MemError::Owned`] for a mapping of this crate, of which somebody may have slices:
    /// [`DmaSpan::share`] gives out parts of those.
    pub fn span(&self, at: u64, len: ByteLen) -> Result<DmaSpan, MemError> {
        check(at, len.0, self.0.len)?;
        if self.is_owned() { Err(MemError::Owned) } else { Ok(self.part(at, len.0)) }
    }

    /// Whether it is one of this crate's mappings: memory that has one owner at a time.
    pub fn is_owned(&self) -> bool {
        self.0.keep.mapping().is_some()
    }

    /// The caller has checked the range, and that it may be shared.
    pub(crate) fn part(&self, at: u64, len: u64) -> DmaSpan {
        DmaSpan { region: self.clone(), at, len, exclusive: false, one_thread: PhantomData }
    }

    /// Back to a buffer over `at..at+len`, if this is the last handle and the memory is one of our own mappings: nobody
    /// else can have a span of it then.
    ///
    /// # Errors
    /// The region itself, if others hold it, if it is foreign, or if the range is outside.
    pub fn reclaim(self, at: u64, len: ByteLen) -> Result<Buffer, DmaRegion> {
        let whole = self.0.len;
        // A weak handle may become one again at any time, as `Buffer::region` may be cloned: neither gives spans of an own
        // mapping.
        let alone = Arc::strong_count(&self.0) == 1 && self.is_owned();
        // What another thread did with a span happened before it let go of it.
        core::sync::atomic::fence(Ordering::Acquire);
        if !alone || check(at, len.0, whole).is_err() {
            return Err(self);
        }
        Ok(Buffer { span: DmaSpan { region: self, at, len: len.0, exclusive: true, one_thread: PhantomData } })
    }

    /// Binds what a mapper needs to end with the memory (an IOMMU mapping, a memory registration), unless it has bound
    /// something already; `make` runs under a lock, so two threads do not map twice. Control plane.
    ///
    /// # Errors
    /// What `make` says; nothing is bound then.
    pub fn bind<E>(&self, key: GuestKey, make: impl FnOnce() -> Result<Guest, E>) -> Result<(), E> {
        let mut guests = self.0.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if !guests.iter().any(|(other, _)| *other == key) {
            guests.push((key, make()?));
        }
        Ok(())
    }

    /// Looks at what a mapper bound; `None` if it bound nothing or something of another type. Control plane.
    pub fn bound<T: 'static, R>(&self, key: GuestKey, look: impl FnOnce(&T) -> R) -> Option<R> {
        let guests = self.0.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, guest) = guests.iter().find(|(other, _)| *other == key)?;
        guest.downcast_ref().map(look)
    }

    /// Ends what a mapper bound, before the memory goes. Nothing of the mapper may use it any more.
    pub fn unbind(&self, key: GuestKey) {
        drop(self.take_guest(key, |_| true));
    }

    /// As [`DmaRegion::unbind`], only if what is bound is a `T` of which `is_over` says so: looked at and taken under one
    /// lock, so that nobody ends what another thread has bound meanwhile. Whether it was ended.
    pub fn unbind_if<T: 'static>(&self, key: GuestKey, is_over: impl FnOnce(&T) -> bool) -> bool {
        self.take_guest(key, |guest| guest.downcast_ref().is_some_and(is_over)).is_some()
    }

    /// Takes a guest out for being dropped: not under the lock, because that may take the kernel long.
    fn take_guest(&self, key: GuestKey, is_over: impl FnOnce(&Guest) -> bool) -> Option<Guest> {
        let mut guests = self.0.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let at = guests.iter().position(|(other, _)| *other == key)?;
        is_over(&guests.get(at)?.1).then(|| guests.swap_remove(at).1)
    }

    /// Gives frames to a range now (host mappings of this crate only; others are left alone).
    ///
    /// # Errors
    /// The errno, as [`HostMapping::populate`].
    pub fn populate(&self, at: u64, len: ByteLen) -> Result<(), i32> {
        self.0.keep.mapping().map_or(Ok(()), |mapping| mapping.populate(at, len))
    }
}

impl fmt::Debug for DmaRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {} {:?}+{:?}", self.0.id.0, self.0.base, self.0.len)
    }
}

pub(crate) fn check(at: u64, len: u64, have: ByteLen) -> Result<(), MemError> {
    match at.checked_add(len) {
        Some(end) if end <= have.0 => Ok(()),
        _ => Err(MemError::OutOfRange { at, len, have }),
    }
}

/// A range of a region, given by value to whoever may let a device write it.
///
/// It has no slice view on purpose: bytes go in and out by copy. It is not `Clone`: one owner at a time. It is `Send` and
/// not `Sync`, because it writes through `&self`: two threads would race in safe code.
///
/// ```compile_fail,E0277
/// let span = sw_mem::Buffer::allocate(sw_mem::ByteLen(8)).unwrap().into_span();
/// std::thread::scope(|scope| scope.spawn(|| span.fill(0, 8, 1)).join().unwrap()).unwrap();
/// ```
pub struct DmaSpan {
    region: DmaRegion,
    at: u64,
    len: u64,
    /// Came from a [`Buffer`], so nobody else has a span of these bytes.
    exclusive: bool,
    one_thread: PhantomData<Cell<()>>,
}

impl DmaSpan {
    /// Its region.
    pub fn region(&self) -> &DmaRegion {
        &self.region
    }

    /// First byte, as an offset in the region.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Length in bytes.
    pub fn len(&self) -> ByteLen {
        ByteLen(self.len)
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where its first byte lives.
    #[inline]
    pub fn place(&self) -> Place {
        // In range since the span was made inside the region, so this does not wrap.
        self.region.0.base.advanced(ByteLen(self.at))
    }

    /// Cuts it in two at byte `at`; both parts keep the region alive.
    ///
    /// # Errors
    /// The span itself, if `at` is past its end.
    pub fn split_at(self, at: u64) -> Result<(DmaSpan, DmaSpan), DmaSpan> {
        if at > self.len {
            return Err(self);
        }
        let part = |from, len| DmaSpan { exclusive: self.exclusive, ..self.region.part(from, len) };
        Ok((part(self.at, at), part(self.at + at, self.len - at)))
    }

    /// Back to a buffer with slices, if it came from one; else unchanged.
    ///
    /// # Errors
    /// The span itself, if others may have spans of the same bytes.
    pub fn into_buffer(self) -> Result<Buffer, DmaSpan> {
        if self.exclusive { Ok(Buffer { span: self }) } else { Err(self) }
    }

    /// Shares it: parts of it can be given out one by one. [`SharedSpan::reclaim`] is the way back.
    pub fn share(self) -> SharedSpan {
        SharedSpan::new(self)
    }

    /// Lends it to any number of threads that read it.
    pub fn reader(&mut self) -> SpanReader<'_> {
        SpanReader::new(self)
    }

    fn host_ptr(&self, at: u64, len: u64) -> Result<*mut u8, MemError> {
        check(at, len, ByteLen(self.len))?;
        match self.place() {
            Place::Host(va) => Ok(core::ptr::with_exposed_provenance_mut(index(va.raw() + at))),
            Place::Device(device, _) => Err(MemError::NotHost(device)),
        }
    }

    /// Copies `from` into the span at byte `at`.
    ///
    /// # Errors
    /// [`MemError`]; nothing is copied then.
    pub fn write(&self, at: u64, from: &[u8]) -> Result<(), MemError> {
        let to = self.host_ptr(at, from.len() as u64)?;
        // SAFETY: `host_ptr` checked the range of the destination, which stays mapped while `self` lives; a Rust slice
        // never overlaps device memory by the contract of `from_foreign` and the exclusivity of `Buffer`.
        unsafe { crate::stream::copy(from.as_ptr(), to, from.len()) }
        Ok(())
    }

    /// Copies bytes from `at` into `to`.
    ///
    /// # Errors
    /// [`MemError`]; nothing is copied then.
    pub fn read(&self, at: u64, to: &mut [u8]) -> Result<(), MemError> {
        let from = self.host_ptr(at, to.len() as u64)?;
        // SAFETY: as in `write`, with the roles exchanged.
        unsafe { crate::stream::copy(from, to.as_mut_ptr(), to.len()) }
        Ok(())
    }

    /// Loads the 32-bit little-endian word at byte `at` once: for a phase or valid word that a device writes. Order against
    /// other accesses comes from [`crate::barrier`] alone.
    ///
    /// # Errors
    /// [`MemError`]; [`MemError::OutOfRange`] also for a word that is not aligned in the process.
    #[inline]
    pub fn load32(&self, at: u64) -> Result<u32, MemError> {
        let word = self.word(at)?;
        // SAFETY: `word` checked range and alignment; a volatile load of mapped memory may race with the device, which
        // writes the aligned word in one piece.
        Ok(u32::from_le(unsafe { word.read_volatile() }))
    }

    /// Stores the 32-bit little-endian word at byte `at` once: for a word that a device reads while it runs.
    ///
    /// # Errors
    /// As [`DmaSpan::load32`].
    #[inline]
    pub fn store32(&self, at: u64, value: u32) -> Result<(), MemError> {
        let word = self.word(at)?;
        // SAFETY: as in `load32`.
        unsafe { word.write_volatile(value.to_le()) }
        Ok(())
    }

    #[inline]
    fn word(&self, at: u64) -> Result<*mut u32, MemError> {
        let word: *mut u32 = self.host_ptr(at, 4)?.cast();
        if word.is_aligned() { Ok(word) } else { Err(MemError::OutOfRange { at, len: 4, have: ByteLen(self.len) }) }
    }

    /// Copies `len` bytes of `from` (at `from_at`) to `at` of this span. The ranges may overlap; long copies of ranges that
    /// do not go past the caches.
    ///
    /// # Errors
    /// [`MemError`]; nothing is copied then.
    pub fn copy_from(&self, at: u64, from: &DmaSpan, from_at: u64, len: u64) -> Result<(), MemError> {
        let source = from.host_ptr(from_at, len)?;
        let to = self.host_ptr(at, len)?;
        // It fits `usize` because it lies inside a mapping.
        let len = index(len);
        if source.addr().abs_diff(to.addr()) < len {
            // SAFETY: both ranges were checked and stay mapped while the spans live; `copy` allows overlap.
            unsafe { core::ptr::copy(source, to, len) }
        } else {
            // SAFETY: likewise, and the ranges do not overlap.
            unsafe { crate::stream::copy(source, to, len) }
        }
        Ok(())
    }

    /// Writes `byte` over `len` bytes from `at`.
    ///
    /// # Errors
    /// [`MemError`]; nothing is written then.
    pub fn fill(&self, at: u64, len: u64, byte: u8) -> Result<(), MemError> {
        let to = self.host_ptr(at, len)?;
        // SAFETY: as in `write`.
        unsafe { core::ptr::write_bytes(to, byte, index(len)) }
        Ok(())
    }

    /// Shows `len` bytes from `at` to `each`, in order, in pieces copied out of the span (at most 16 KiB each).
    ///
    /// This is how a checksum or a comparison reads device-writable memory without a reference into it.
    ///
    /// # Errors
    /// [`MemError`]; `each` is not called then.
    // Not inlined: its piece would make the frame of every caller as large, also where they have nothing to visit.
    #[inline(never)]
    pub fn visit(&self, at: u64, len: u64, mut each: impl FnMut(&[u8])) -> Result<(), MemError> {
        self.host_ptr(at, len)?;
        let mut piece = [0u8; VISIT_BYTES];
        let mut done = 0;
        while done < len {
            let now = usize::try_from(len - done).map_or(VISIT_BYTES, |left| left.min(VISIT_BYTES));
            self.read(at + done, &mut piece[..now])?;
            each(&piece[..now]);
            done += now as u64;
        }
        Ok(())
    }
}

impl fmt::Debug for DmaSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}[{}+{}]", self.region, self.at, self.len)
    }
}

/// Host memory that one owner holds: the only kind with slices.
///
/// [`Buffer::into_span`] gives it to an operation; [`DmaSpan::into_buffer`] brings it back with the result.
pub struct Buffer {
    span: DmaSpan,
}

// SAFETY: all that a shared buffer can do is to show its bytes: nothing writes through `&Buffer`, nobody else has a span of
// them, and its region refuses to make one ([`MemError::Owned`]). Its span is not `Sync` because it writes through `&self`;
// a buffer never shows its span.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Fresh zeroed memory of `len` bytes, page aligned, huge pages advised.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn allocate(len: ByteLen) -> Result<Self, MapError> {
        Self::allocate_with(len, 0, HugePages::Advise, Populate::Lazy)
    }

    /// Fresh zeroed memory whose first byte is congruent to `phase` modulo the page size, so that a direct read from
    /// that file offset lands in place with only its ragged ends bounced.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn allocate_with(len: ByteLen, phase: u64, huge: HugePages, populate: Populate) -> Result<Self, MapError> {
        let skew = phase % crate::PAGE_BYTES;
        let total = skew.checked_add(len.0).ok_or(MapError::BadLength(len))?;
        let mapping = HostMapping::map(ByteLen(total), 1, huge, populate)?;
        let region = DmaRegion::from_mapping(mapping, None);
        Ok(Self { span: DmaSpan { region, at: skew, len: len.0, exclusive: true, one_thread: PhantomData } })
    }

    /// As [`Buffer::allocate_with`], from a store of kept mappings, to which it returns when its last span is gone.
    ///
    /// Not zeroed: it may have the bytes of whoever in this process had it before.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn allocate_kept(len: ByteLen, phase: u64, huge: HugePages, store: &KeptMappings) -> Result<Self, MapError> {
        let skew = phase % crate::PAGE_BYTES;
        let total = skew.checked_add(len.0).filter(|_| len.0 > 0).ok_or(MapError::BadLength(len))?;
        let region = DmaRegion::from_mapping(store.map(ByteLen(total), huge)?, Some(store));
        Ok(Self { span: DmaSpan { region, at: skew, len: len.0, exclusive: true, one_thread: PhantomData } })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        let base = core::ptr::with_exposed_provenance(index(self.span.place().raw()));
        // SAFETY: a buffer is made from a fresh host mapping only, is split into disjoint parts only, and is consumed by
        // `into_span` before anything else may write; so this range is mapped, initialised (zeroed) and ours.
        unsafe { core::slice::from_raw_parts(base, index(self.span.len)) }
    }

    /// The bytes, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let base = core::ptr::with_exposed_provenance_mut(index(self.span.place().raw()));
        // SAFETY: as in `as_slice`, and `&mut self` makes it unique.
        unsafe { core::slice::from_raw_parts_mut(base, index(self.span.len)) }
    }

    /// Length in bytes.
    pub fn len(&self) -> ByteLen {
        ByteLen(self.span.len)
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.span.len == 0
    }

    /// Its region, for registration and for reports.
    pub fn region(&self) -> &DmaRegion {
        &self.span.region
    }

    /// Cuts it in two at byte `at`; both parts keep the mapping alive.
    ///
    /// # Errors
    /// The buffer itself, if `at` is past its end.
    pub fn split_at(self, at: u64) -> Result<(Buffer, Buffer), Buffer> {
        let cut = self.span.split_at(at);
        cut.map(|(left, right)| (Buffer { span: left }, Buffer { span: right })).map_err(|span| Buffer { span })
    }

    /// Gives the bytes away, to an operation.
    pub fn into_span(self) -> DmaSpan {
        self.span
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "buffer {:?}", self.span)
    }
}

#[cfg(test)]
#[path = "region_tests.rs"]
mod tests;
