//! Where the bytes are: device memory, host allocations, registrations, and the lookup from an address to its range.
//!
//! ```text
//!   device address space (one reservation per device, no access)      backing (one memfd per allocation)
//!   ├─ gap ─┤ allocation ├─ gap ─┤ allocation ├─ gap …                ├ canary │ bytes │ canary ┤  mapped elsewhere
//! ```
//!
//! The CPU cannot follow a device address; the stand-in moves bytes through the second mapping. The canaries around
//! the bytes are compared when the allocation is freed.
// UNSAFETY: mmap, memfd and raw copies; this is where the stand-in's memory is made and moved.
#![expect(unsafe_code, reason = "mmap, memfd and raw copies between mappings")]

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::abi::{Answer, INVALID_VALUE, OUT_OF_MEMORY, index, pointer};
use crate::config::Access;

/// Bytes in a page; also the size of each canary.
pub const PAGE: u64 = 4096;
/// The real driver hands out device memory in steps of at least 512 bytes; interior layout never depends on more.
const DEVICE_ALIGN: u64 = 512;
const CANARY: u8 = 0xc5;

/// A mapping that is unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: u64,
    len: u64,
}

impl Mapping {
    /// Reserves `len` bytes of addresses that nobody can read or write.
    pub fn reserve(len: u64) -> Answer<Self> {
        Self::map(len, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
    }

    /// Anonymous memory, readable and writable.
    pub fn anonymous(len: u64) -> Answer<Self> {
        Self::map(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
    }

    fn map(len: u64, prot: i32, flags: i32) -> Answer<Self> {
        let len_usize = usize::try_from(len).map_err(|_| OUT_OF_MEMORY)?;
        // SAFETY: a mapping at an address of the kernel's choice touches nobody's memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len_usize, prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(OUT_OF_MEMORY);
        }
        Ok(Self { base: base.expose_provenance() as u64, len })
    }

    /// First address.
    pub fn base(&self) -> u64 {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let base = pointer::<libc::c_void>(self.base);
        // SAFETY: the range was mapped by `map`, is owned by this value, and nothing in the stand-in keeps its address.
        unsafe { libc::munmap(base, index(self.len)) };
    }
}

/// What kind of memory a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `cuMemAlloc`.
    Device,
    /// `cuMemAllocManaged`.
    Managed,
    /// `cuMemHostAlloc`, `cuMemAllocHost`.
    HostAlloc,
    /// `cuMemHostRegister`.
    Registered,
}

/// One range that the driver knows.
#[derive(Debug)]
pub struct Range {
    /// First address that the caller sees.
    pub base: u64,
    /// Length in bytes as asked for.
    pub len: u64,
    /// What it is.
    pub kind: Kind,
    /// Ordinal of the device that it belongs to.
    pub device: usize,
    /// Context that made it.
    pub context: u64,
    /// Number that no other range of this process has had.
    pub id: u64,
    /// Where the stand-in reaches byte 0.
    alias: u64,
    /// The file behind device memory, for dma-buf export.
    fd: Option<OwnedFd>,
    backing: Option<Mapping>,
}

/// Device address space of one device.
#[derive(Debug)]
struct Space {
    reservation: Mapping,
    used: u64,
}

/// All ranges of the process.
#[derive(Debug, Default)]
pub struct Arena {
    ranges: BTreeMap<u64, Range>,
    spaces: Vec<Option<Space>>,
    next_id: u64,
    /// Allocations whose canary had been written over when they were freed.
    pub canaries_hurt: u64,
}

impl Arena {
    /// Allocates device memory, the first gap that fits; `INVALID_VALUE` for length 0, `OUT_OF_MEMORY` when full.
    pub fn device_alloc(&mut self, device: usize, context: u64, len: u64, vram: u64, access: Access) -> Answer<u64> {
        if len == 0 {
            return Err(INVALID_VALUE);
        }
        let room = len.checked_next_multiple_of(PAGE).ok_or(OUT_OF_MEMORY)?;
        let base = self.place(device, room, vram)?;
        let fd = memfd(room + PAGE)?;
        let backing = Mapping::anonymous(room + 2 * PAGE)?;
        map_over(backing.base() + PAGE, room + PAGE, &fd)?;
        fill(backing.base(), CANARY, PAGE + room + PAGE);
        // Fresh device memory has no promised content; a pattern shows a reader that reads what was never written.
        fill(backing.base() + PAGE, 0xee, len);
        if access == Access::Mapped {
            map_over(base, room, &fd)?;
        }
        let alias = backing.base() + PAGE;
        self.insert(base, len, Kind::Device, device, context, alias, Some(fd), Some(backing));
        if let Some(Some(space)) = self.spaces.get_mut(device) {
            space.used += room;
        }
        Ok(base)
    }

    /// Allocates memory that the CPU and the device share: managed or page-locked host memory.
    pub fn host_alloc(&mut self, kind: Kind, device: usize, context: u64, len: u64) -> Answer<u64> {
        if len == 0 {
            return Err(INVALID_VALUE);
        }
        let backing = Mapping::anonymous(len.checked_next_multiple_of(PAGE).ok_or(OUT_OF_MEMORY)?)?;
        let base = backing.base();
        self.insert(base, len, kind, device, context, base, None, Some(backing));
        Ok(base)
    }

    /// Registers memory of the caller. `None`: it overlaps a range that is known already.
    pub fn register(&mut self, device: usize, context: u64, base: u64, len: u64) -> Option<()> {
        let end = base.checked_add(len)?;
        if self.ranges.range(..end).next_back().is_some_and(|(_, r)| r.base + r.len > base) {
            return None;
        }
        self.insert(base, len, Kind::Registered, device, context, base, None, None);
        Some(())
    }

    /// Forgets the range that starts at `base` and is one of `kinds`.
    pub fn remove(&mut self, base: u64, kinds: &[Kind]) -> Option<Kind> {
        let range = self.ranges.get(&base).filter(|r| kinds.contains(&r.kind))?;
        let (kind, device) = (range.kind, range.device);
        if kind == Kind::Device {
            let room = range.len.next_multiple_of(PAGE);
            let tail = room - range.len + PAGE;
            let whole = filled(range.alias - PAGE, CANARY, PAGE) && filled(range.alias + range.len, CANARY, tail);
            self.canaries_hurt += u64::from(!whole);
            if let Some(Some(space)) = self.spaces.get_mut(device) {
                space.used -= room;
            }
            unmap_over(base, room);
        }
        self.ranges.remove(&base);
        Some(kind)
    }

    /// The range that `address` lies in.
    pub fn find(&self, address: u64) -> Option<&Range> {
        self.ranges.range(..=address).next_back().map(|(_, r)| r).filter(|r| address - r.base < r.len)
    }

    /// Ranges of one kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.ranges.values().filter(|r| r.kind == kind).count() as u64
    }

    /// Bases of what belongs to `context`, registrations included.
    pub fn bases_of(&self, context: u64) -> Vec<(u64, Kind)> {
        self.ranges.values().filter(|r| r.context == context).map(|r| (r.base, r.kind)).collect()
    }

    /// Bytes of device memory in use.
    pub fn used(&self, device: usize) -> u64 {
        self.spaces.get(device).and_then(Option::as_ref).map_or(0, |s| s.used)
    }

    /// Where the stand-in reaches `len` bytes at `address`. Memory that the driver does not know is the caller's own
    /// host memory, reached as it is; `None`: the range is known and too short, or it is a device address of nobody.
    pub fn reach(&self, address: u64, len: u64) -> Option<u64> {
        if let Some(range) = self.find(address) {
            let offset = address - range.base;
            return (len <= range.len - offset).then_some(range.alias + offset);
        }
        let in_space = |s: &Space| address >= s.reservation.base && address < s.reservation.base + s.reservation.len;
        let nobodys = self.spaces.iter().flatten().any(in_space);
        (!nobodys).then_some(address)
    }

    /// A new descriptor for the memory of `[address, address + len)`, as dma-buf export hands out.
    ///
    /// Only ranges that start where the allocation starts can be exported: the descriptor stands for the whole
    /// allocation, and a file cannot be cut at the front. (The real driver exports any page-aligned range.)
    pub fn export(&self, address: u64, len: u64) -> Answer<i32> {
        let range = self.find(address).filter(|r| r.kind == Kind::Device).ok_or(INVALID_VALUE)?;
        let room = range.len.next_multiple_of(PAGE);
        if address != range.base || !len.is_multiple_of(PAGE) || len == 0 || len > room {
            return Err(INVALID_VALUE);
        }
        let fd = range.fd.as_ref().ok_or(INVALID_VALUE)?;
        // SAFETY: duplicates a descriptor that we own; the copy belongs to the caller.
        let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 { Err(OUT_OF_MEMORY) } else { Ok(copy) }
    }

    fn place(&mut self, device: usize, room: u64, vram: u64) -> Answer<u64> {
        if self.spaces.len() <= device {
            self.spaces.resize_with(device + 1, || None);
        }
        if self.spaces[device].is_none() {
            // Twice the memory: gaps cost addresses, not memory.
            self.spaces[device] = Some(Space { reservation: Mapping::reserve(vram * 2)?, used: 0 });
        }
        let space = self.spaces[device].as_ref().ok_or(OUT_OF_MEMORY)?;
        if space.used.checked_add(room).is_none_or(|used| used > vram) {
            return Err(OUT_OF_MEMORY);
        }
        let end = space.reservation.base + space.reservation.len;
        let mut at = (space.reservation.base + PAGE).next_multiple_of(DEVICE_ALIGN.max(PAGE));
        for (base, range) in self.ranges.range(space.reservation.base..end) {
            if base.saturating_sub(at) >= room + PAGE {
                break;
            }
            at = (base + range.len.next_multiple_of(PAGE)) + PAGE;
        }
        if at + room > end { Err(OUT_OF_MEMORY) } else { Ok(at) }
    }

    #[expect(clippy::too_many_arguments, reason = "one private constructor; a struct would repeat every field")]
    fn insert(
        &mut self,
        base: u64,
        len: u64,
        kind: Kind,
        device: usize,
        context: u64,
        alias: u64,
        fd: Option<OwnedFd>,
        backing: Option<Mapping>,
    ) {
        self.next_id += 1;
        let id = self.next_id;
        self.ranges.insert(base, Range { base, len, kind, device, context, id, alias, fd, backing });
    }
}

impl Range {
    /// Where the stand-in reaches its first byte.
    pub fn alias(&self) -> u64 {
        self.alias
    }

    /// Whether the stand-in made the memory (and not the caller).
    pub fn is_ours(&self) -> bool {
        self.backing.is_some()
    }
}

/// Copies between two reachable places. `memmove`: the caller may pass overlapping ranges.
pub fn copy(dst: u64, src: u64, len: u64) {
    let from = pointer::<u8>(src).cast_const();
    let to = pointer::<u8>(dst);
    // SAFETY: both were bounds-checked by `Arena::reach`, or are host memory that the C caller vouches for.
    unsafe { std::ptr::copy(from, to, index(len)) };
}

/// Fills a reachable place.
pub fn fill(dst: u64, byte: u8, len: u64) {
    let to = pointer::<u8>(dst);
    // SAFETY: bounds-checked by `Arena::reach`, or host memory that the C caller vouches for.
    unsafe { std::ptr::write_bytes(to, byte, index(len)) };
}

/// Reads a 32-bit word.
pub fn load_u32(src: u64) -> u32 {
    let from = pointer::<u32>(src).cast_const();
    // SAFETY: bounds-checked by `Arena::reach`; alignment is not assumed.
    unsafe { from.read_unaligned() }
}

fn filled(at: u64, byte: u8, len: u64) -> bool {
    (0..len).all(|i| {
        let from = pointer::<u8>(at + i).cast_const();
        // SAFETY: inside the backing of a live allocation: the caller passes its own canary ranges.
        unsafe { from.read_volatile() == byte }
    })
}

fn memfd(len: u64) -> Answer<OwnedFd> {
    // SAFETY: the name is a zero-terminated literal.
    let raw = unsafe { libc::memfd_create(c"standin-libcuda".as_ptr(), libc::MFD_CLOEXEC) };
    if raw < 0 {
        return Err(OUT_OF_MEMORY);
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let len = libc::off_t::try_from(len).map_err(|_| OUT_OF_MEMORY)?;
    // SAFETY: a plain system call on our descriptor.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len) } != 0 {
        return Err(OUT_OF_MEMORY);
    }
    Ok(fd)
}

/// Puts the file's bytes at a place inside one of our own mappings.
fn map_over(base: u64, room: u64, fd: &OwnedFd) -> Answer {
    let at = pointer::<libc::c_void>(base);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: replaces pages of our own reservation or of our own fresh mapping only: both callers computed the range.
    let mapped = unsafe { libc::mmap(at, index(room), prot, libc::MAP_SHARED | libc::MAP_FIXED, fd.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED { Err(OUT_OF_MEMORY) } else { Ok(()) }
}

/// Gives the addresses back to the reservation, without access.
fn unmap_over(base: u64, room: u64) {
    let at = pointer::<libc::c_void>(base);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: replaces pages of our own reservation only.
    unsafe { libc::mmap(at, index(room), libc::PROT_NONE, flags, -1, 0) };
}

/// Flips the lowest bit of one byte.
pub fn flip(at: u64) {
    let byte = pointer::<u8>(at);
    // SAFETY: bounds-checked by `Arena::reach`.
    let value = unsafe { byte.read() };
    // SAFETY: as above.
    unsafe { byte.write(value ^ 1) };
}
