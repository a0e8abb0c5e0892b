//! Registered memory of an emulated device: keys, what they open, and the copies that go through them.
// UNSAFETY: the emulation stands where a NIC's DMA would: it moves bytes between a socket and memory that has an address only.
#![expect(unsafe_code, reason = "system calls on raw memory")]

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    io,
    net::TcpStream,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{Access, DmaBufRequest, LocalKey, Mr, MrRequest, Sge},
};
use sw_mem::RemoteAddr;

use crate::bound::Keeps;

/// Bytes registered at a time at most, by default 64 GiB: what a NIC has is a limit too, and the kernel's on locked memory.
pub const REGISTERED_BYTES_MAX: u64 = 64 << 30;
/// Registrations at a time at most.
pub const REGISTRATIONS_MAX: usize = 1 << 16;

/// Which of the two keys of an MR.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// lkey: requests of this end.
    Local,
    /// rkey: the peer's.
    Remote,
}

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Memory of a descriptor, mapped as long as something of it is registered.
#[derive(Debug)]
pub(crate) struct Mapping {
    first: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: an address and a length; what lies there is touched by system calls only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The pages that `len` bytes from byte `at` on lie in.
    fn new(fd: i32, at: u64, len: u64) -> Result<Self, Error> {
        let refuse = |kind, errno| {
            let error = Error::new(kind, Verb::Setup).at(format!("descriptor {fd}")).with_code(errno);
            Err(error.detail("the emulation cannot map it").remedy("give a dma-buf or a memfd of that length"))
        };
        let start = at & !(PAGE - 1);
        let (bytes, offset) =
            (sw_mem::index(at - start + len), libc::off_t::try_from(start).unwrap_or(libc::off_t::MAX));
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; a descriptor that is none is refused.
        let first = unsafe { libc::mmap(core::ptr::null_mut(), bytes, prot, libc::MAP_SHARED, fd, offset) };
        if first == libc::MAP_FAILED {
            return match io::Error::last_os_error().raw_os_error().unwrap_or(0) {
                libc::EBADF => refuse(ErrorKind::ApiMisuse, libc::EBADF),
                errno => refuse(ErrorKind::Unsupported, errno),
            };
        }
        Ok(Self { first, bytes })
    }

    fn first(&self) -> u64 {
        self.first.expose_provenance() as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped here only; no key opens it any more.
        unsafe { libc::munmap(self.first, self.bytes) };
    }
}

/// What a key opens.
pub(super) struct Entry {
    pd: u64,
    /// The address that requests name its first byte by …
    base: u64,
    /// … and the one that it has in this process.
    host: u64,
    len: u64,
    access: Access,
    key: u32,
    /// `None` once it is deregistered. Held over each copy, so that a deregistration waits for one, and no longer.
    region: Mutex<Option<Keeps>>,
}

impl Entry {
    /// Whether a peer may do something with it.
    fn is_remote(&self) -> bool {
        self.access.allows(Access::REMOTE_READ) || self.access.allows(Access::REMOTE_WRITE)
    }
}

/// Bytes that a key was shown to open.
#[derive(Clone)]
pub(super) struct Window {
    entry: Arc<Entry>,
    at: u64,
    len: u32,
}

/// The MRs of a device.
#[derive(Default)]
pub(super) struct Keys {
    table: Mutex<Table>,
    random: RandomState,
    next: AtomicU64,
}

#[derive(Default)]
struct Table {
    /// By key without its lowest bit, which tells an rkey from an lkey.
    entries: BTreeMap<u32, Arc<Entry>>,
    bytes: u64,
}

impl Keys {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registrations and their bytes now.
    pub(super) fn count(&self) -> (usize, u64) {
        let table = self.table();
        (table.entries.len(), table.bytes)
    }

    /// Registers memory.
    pub(super) fn register(
        self: &Arc<Self>,
        pd: u64,
        memory: MrRequest<'_>,
        keeps: Keeps,
    ) -> Result<Registered, Error> {
        let refuse = |kind, text: &str| Err(Error::new(kind, Verb::Setup).at("mr").detail(text.to_owned()));
        let MrRequest { region, at, len, access } = memory;
        if len == 0 || at.checked_add(len).is_none_or(|end| end > region.len().0) {
            return refuse(ErrorKind::OutOfRange, "the range is outside of the region, or empty");
        }
        if access.allows(Access::REMOTE_WRITE) && !access.allows(Access::LOCAL_WRITE) {
            return refuse(ErrorKind::ApiMisuse, "remote write needs local write beside it");
        }
        let Some(base) = region.base().host().and_then(|va| va.checked_add(sw_mem::ByteLen(at))) else {
            return refuse(ErrorKind::Unsupported, "the emulation reaches host memory only");
        };
        self.admit(pd, (base.raw(), base.raw(), len), access, keeps)
    }

    /// Registers what a descriptor can map, in place of a dma-buf.
    pub(super) fn register_descriptor(self: &Arc<Self>, pd: u64, memory: DmaBufRequest) -> Result<Registered, Error> {
        memory.validate()?;
        let DmaBufRequest { fd, at, len, iova, access } = memory;
        let mapping = Arc::new(Mapping::new(fd, at, len)?);
        let host = mapping.first() + at % PAGE;
        self.admit(pd, (iova, host, len), access, Keeps::Mapping(mapping))
    }

    fn admit(
        self: &Arc<Self>,
        pd: u64,
        (base, host, len): (u64, u64, u64),
        access: Access,
        keeps: Keeps,
    ) -> Result<Registered, Error> {
        let mut table = self.table();
        if table.entries.len() >= REGISTRATIONS_MAX || table.bytes.saturating_add(len) > REGISTERED_BYTES_MAX {
            let limit = Error::new(ErrorKind::ResourceLimit, Verb::Setup).at("mr");
            return Err(limit.detail("too much memory is registered"));
        }
        let key = self.fresh(&table);
        let region = Mutex::new(Some(keeps));
        let entry = Arc::new(Entry { pd, base, host, len, access, key, region });
        table.entries.insert(key, Arc::clone(&entry));
        table.bytes += len;
        drop(table);
        Ok(Registered { entry, keys: Arc::clone(self) })
    }

    /// A key that nobody has and nobody guesses from another one.
    fn fresh(&self, table: &Table) -> u32 {
        loop {
            let word = self.random.hash_one(self.next.fetch_add(1, Ordering::Relaxed));
            // The low half is as random as the rest.
            let key = (word & 0xFFFF_FFFE) as u32;
            if key != 0 && !table.entries.contains_key(&key) {
                return key;
            }
        }
    }

    /// The bytes that `key` opens for `access`; `None`: it does not.
    pub(super) fn open(
        &self,
        pd: u64,
        (key, used): (u32, Use),
        (addr, len): (u64, u32),
        access: Access,
    ) -> Option<Window> {
        if (key & 1 == 1) != (used == Use::Remote) {
            return None;
        }
        let entry = Arc::clone(self.table().entries.get(&(key & !1))?);
        let at = addr.checked_sub(entry.base)?;
        let inside = at.checked_add(len.into()).is_some_and(|end| end <= entry.len);
        (entry.pd == pd && inside && entry.access.allows(access)).then_some(Window { entry, at, len })
    }

    /// Ends what an rkey opens; whether it opened something of the protection domain.
    pub(super) fn invalidate(&self, pd: u64, key: u32) -> bool {
        let entry = self.table().entries.get(&(key & !1)).cloned();
        match entry.filter(|entry| entry.pd == pd && entry.is_remote()) {
            Some(entry) if key & 1 == 1 => {
                self.remove(&entry);
                true
            }
            _ => false,
        }
    }

    fn remove(&self, entry: &Arc<Entry>) {
        let mut table = self.table();
        if table.entries.get(&entry.key).is_some_and(|there| Arc::ptr_eq(there, entry)) {
            table.entries.remove(&entry.key);
            table.bytes -= entry.len;
        }
        drop(table);
        // Waits for a copy that is under way; the next one finds nothing.
        entry.region.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// How a copy between a socket and memory went.
pub(super) enum Copied {
    /// So many bytes; none: the peer closed.
    Bytes(usize),
    /// The socket is not ready.
    Blocked,
    /// The key opens nothing any more.
    Gone,
}

impl Window {
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The part from byte `at` on, `len` bytes at most.
    pub(super) fn part(&self, at: u32, len: u32) -> Self {
        let at = at.min(self.len);
        Self { entry: Arc::clone(&self.entry), at: self.at + u64::from(at), len: len.min(self.len - at) }
    }

    /// Whether it opens something still.
    pub(super) fn is_open(&self) -> bool {
        self.entry.region.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Receives into it what is there.
    pub(super) fn receive(&self, from: &TcpStream) -> io::Result<Copied> {
        self.copy(|base, len| {
            // SAFETY: `copy` gives `len` bytes of a live region, which is kept or bound to the entry, whose lock is held until this returns; who registered it left it to the device,
            // so that no reference to it exists. The call does not block.
            unsafe { libc::recv(from.as_raw_fd(), base.cast(), len, libc::MSG_DONTWAIT) }
        })
    }

    /// Sends of it what the socket takes.
    pub(super) fn send(&self, to: &TcpStream) -> io::Result<Copied> {
        self.copy(|base, len| {
            // SAFETY: as in `receive`, for reading.
            unsafe { libc::send(to.as_raw_fd(), base.cast(), len, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
        })
    }

    fn copy(&self, call: impl FnOnce(*mut u8, usize) -> isize) -> io::Result<Copied> {
        let region = self.entry.region.lock().unwrap_or_else(PoisonError::into_inner);
        if region.is_none() {
            return Ok(Copied::Gone);
        }
        let base = core::ptr::with_exposed_provenance_mut(sw_mem::index(self.entry.host + self.at));
        let moved = call(base, sw_mem::index(self.len.into()));
        match usize::try_from(moved) {
            Ok(bytes) => Ok(Copied::Bytes(bytes)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(Copied::Blocked),
                error if error.kind() == io::ErrorKind::Interrupted => Ok(Copied::Blocked),
                error => Err(error),
            },
        }
    }
}

/// An MR.
pub(super) struct Registered {
    entry: Arc<Entry>,
    keys: Arc<Keys>,
}

impl Mr for Registered {
    fn len(&self) -> u64 {
        self.entry.len
    }

    fn sge(&self, at: u64, len: u32) -> Option<Sge> {
        at.checked_add(len.into()).filter(|end| *end <= self.entry.len)?;
        Some(Sge { addr: self.entry.base + at, len, lkey: LocalKey(self.entry.key) })
    }

    fn remote(&self, at: u64) -> Option<RemoteAddr> {
        (self.entry.is_remote() && at <= self.entry.len)
            .then(|| RemoteAddr::new(self.entry.base + at, self.entry.key | 1))
    }

    fn deregister(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.keys.remove(&self.entry);
    }
}
