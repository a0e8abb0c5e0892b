//! libibverbs and librdmacm, loaded at run time: what they are and which devices they have.
//!
//! ```text
//!   found ─► symbols present ─► device list ─► each device opened and asked ─► DeviceFacts, GIDs
//!     │            │                 │
//!     └ no library └ too old         └ no kernel support (ENOSYS), no device: an empty list
//! ```
//!
//! Four different facts, each with a refusal of its own. What is over it, [`LibraryFabric`], passes the suite of the seam on rxe in a guest; no NIC was
//! seen yet.
//!
//! Nothing is linked and no header is needed: the interface is written down in `sys`. A library that was loaded stays, as its providers have
//! threads and handlers at exit. [`LibraryFabric`] is the seam over it.
// UNSAFETY: loading a library and calling its functions.
#![expect(unsafe_code, reason = "loads libibverbs and calls it")]

mod cm;
mod fabric;
mod presence;
mod queue_pair;
mod sys;
mod wire;

use std::{
    ffi::{CStr, c_int},
    fmt, io, mem,
    path::Path,
};

use libloading::Library as Loaded;
use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{Ability, DeviceFacts, FabricKind, Gid, GidKind},
};

pub use fabric::{LibraryFabric, PortChoice};
use sys::{DeviceAttr, GidEntry, PortAttr};

/// The names that the libraries have had since 2005; the digit is their ABI.
const VERBS: &str = "libibverbs.so.1";
const CM: &str = "librdmacm.so.1";
/// Devices that are looked at.
const DEVICES_MAX: usize = 256;
/// Entries of a port's GID table that are looked at.
const GIDS_MAX: usize = 1024;

/// Why there is no RDMA by the system's libraries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A library is not there, or the loader refuses it; what it says.
    NoLibrary(&'static str, String),
    /// A library is older than what is needed, or something else by that name.
    NoSymbol(&'static str, &'static str),
    /// The libraries are there, and the kernel has no RDMA (ENOSYS): nothing is loaded that offers verbs.
    NoKernelSupport,
    /// The kernel offers no connection manager to programs (ENODEV).
    NoConnections,
    /// The library says so; an errno.
    System(&'static str, i32),
}

impl Refusal {
    /// The error of whoever wants a device.
    pub fn error(&self) -> Error {
        let kind = match self {
            Self::NoLibrary(..) | Self::NoKernelSupport | Self::NoConnections => ErrorKind::NoDevice,
            Self::NoSymbol(..) => ErrorKind::Unsupported,
            Self::System(_, libc::EACCES | libc::EPERM) => ErrorKind::PermissionDenied,
            Self::System(..) => ErrorKind::Io,
        };
        let code = match self {
            Self::NoKernelSupport => libc::ENOSYS,
            Self::NoConnections => libc::ENODEV,
            Self::System(_, errno) => *errno,
            Self::NoLibrary(..) | Self::NoSymbol(..) => 0,
        };
        Error::new(kind, Verb::Open).at("rdma").detail(self.to_string()).with_code(code).remedy(self.remedy())
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoLibrary(..) => "install libibverbs1, librdmacm1 and ibverbs-providers (rdma-core)",
            Self::NoSymbol(..) => "install rdma-core of version 34 or later",
            Self::NoKernelSupport => {
                "load ib_uverbs and the driver of a NIC, or rdma_rxe for an ordinary network device"
            }
            Self::NoConnections => "load rdma_ucm, beside ib_uverbs and the driver of a NIC (or rdma_rxe)",
            Self::System(..) => "look at the permissions of /dev/infiniband and at the kernel's log",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLibrary(name, why) => write!(f, "{name} cannot be loaded: {why}"),
            Self::NoSymbol(name, symbol) => write!(f, "{name} has no {symbol}"),
            Self::NoKernelSupport => {
                write!(f, "{VERBS} is there, and the kernel has no RDMA devices to offer (ENOSYS)")
            }
            Self::NoConnections => write!(f, "{CM} is there, and the kernel has no RDMA connections to offer (ENODEV)"),
            Self::System(call, errno) => write!(f, "{call} failed: {}", io::Error::from_raw_os_error(*errno)),
        }
    }
}

/// A device with the addresses of its first port.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it says of itself.
    pub facts: DeviceFacts,
    /// Whether its first port is up.
    pub port: Port,
    /// The addresses of its first port.
    pub gids: Vec<Gid>,
}

/// How a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// It carries traffic.
    Active,
    /// It does not.
    Down,
}

/// libibverbs with the functions that are used.
struct Table {
    get_device_list: sys::GetDeviceList,
    free_device_list: sys::FreeDeviceList,
    get_device_name: sys::GetDeviceName,
    open_device: sys::OpenDevice,
    close_device: sys::CloseDevice,
    query_device: sys::QueryDevice,
    query_port: sys::QueryPort,
    query_gid_table: sys::QueryGidTable,
    alloc_pd: sys::AllocPd,
    dealloc_pd: sys::DeallocPd,
    /// Since rdma-core 34; without it no dma-buf is registered.
    reg_dmabuf_mr: Option<sys::RegDmabufMr>,
}

/// The loaded libraries.
pub struct Library {
    table: Table,
    ops: wire::Ops,
}

fn load(name: &'static str, file: &Path) -> Result<&'static Loaded, Refusal> {
    // SAFETY: the initialisers of the system's own library of that name, which sets up its tables and starts nothing; what its file is, is the
    // word of whoever manages the machine.
    let loaded = unsafe { Loaded::new(file) };
    // It stays: see the module documentation.
    loaded.map(|loaded| &*Box::leak(Box::new(loaded))).map_err(|error| {
        // libloading keeps the loader's sentence in the source of its error.
        let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Refusal::NoLibrary(name, why)
    })
}

/// A function by name.
///
/// # Safety
/// - `T` is the type of a pointer to the function of that name.
unsafe fn symbol<T: Copy + 'static>(of: &'static Loaded, name: &'static str) -> Result<T, Refusal> {
    // SAFETY: the caller's contract.
    let found = unsafe { of.get::<T>(name.as_bytes()) };
    found.map(|found| *found).map_err(|_| Refusal::NoSymbol(VERBS, name))
}

impl Table {
    fn of(library: &'static Loaded) -> Result<Self, Refusal> {
        Ok(Self {
            // SAFETY: the type is that of the header's declaration, as in all lines below.
            get_device_list: unsafe { symbol(library, "ibv_get_device_list") }?,
            // SAFETY: as above.
            free_device_list: unsafe { symbol(library, "ibv_free_device_list") }?,
            // SAFETY: as above.
            get_device_name: unsafe { symbol(library, "ibv_get_device_name") }?,
            // SAFETY: as above.
            open_device: unsafe { symbol(library, "ibv_open_device") }?,
            // SAFETY: as above.
            close_device: unsafe { symbol(library, "ibv_close_device") }?,
            // SAFETY: as above.
            query_device: unsafe { symbol(library, "ibv_query_device") }?,
            // SAFETY: as above.
            query_port: unsafe { symbol(library, "ibv_query_port") }?,
            // SAFETY: as above.
            query_gid_table: unsafe { symbol(library, "_ibv_query_gid_table") }?,
            // SAFETY: as above.
            alloc_pd: unsafe { symbol(library, "ibv_alloc_pd") }?,
            // SAFETY: as above.
            dealloc_pd: unsafe { symbol(library, "ibv_dealloc_pd") }?,
            // SAFETY: as above.
            reg_dmabuf_mr: unsafe { symbol(library, "ibv_reg_dmabuf_mr") }.ok(),
        })
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// An open device; closed when it goes.
struct Open<'a> {
    table: &'a Table,
    context: sys::Context,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // SAFETY: opened by `Library::ask`, closed here only, with nothing made of it alive.
        unsafe { (self.table.close_device)(self.context) };
    }
}

impl Library {
    /// Loads both.
    ///
    /// # Errors
    /// [`Refusal::NoLibrary`], [`Refusal::NoSymbol`].
    pub fn load() -> Result<Self, Refusal> {
        Self::load_from(Path::new(VERBS), Path::new(CM))
    }

    fn load_from(verbs: &Path, cm: &Path) -> Result<Self, Refusal> {
        let verbs = load(VERBS, verbs)?;
        let table = Table::of(verbs)?;
        let cm = load(CM, cm)?;
        Ok(Self { table, ops: wire::Ops::of(verbs, cm)? })
    }

    /// The devices that there are, each opened and asked. *Blocking*: as long as the drivers take.
    ///
    /// # Errors
    /// [`Refusal::NoKernelSupport`], [`Refusal::System`]. A device that cannot be opened is an entry of the list.
    pub fn devices(&self) -> Result<Vec<Result<Found, Refusal>>, Refusal> {
        let mut count: c_int = 0;
        // SAFETY: a live local; the list is freed below.
        let list = unsafe { (self.table.get_device_list)(&raw mut count) };
        if list.is_null() {
            let errno = errno();
            return Err(if errno == libc::ENOSYS {
                Refusal::NoKernelSupport
            } else {
                Refusal::System("ibv_get_device_list", errno)
            });
        }
        let count = usize::try_from(count).unwrap_or(0).min(DEVICES_MAX);
        let found = (0..count)
            .map(|index| {
                // SAFETY: the list has as many entries as the library said.
                let device = unsafe { *list.wrapping_add(index) };
                self.ask(device)
            })
            .collect();
        // SAFETY: the list of above, which nothing refers to any more: contexts of devices outlive it.
        unsafe { (self.table.free_device_list)(list) };
        Ok(found)
    }

    fn ask(&self, device: sys::Device) -> Result<Found, Refusal> {
        // SAFETY: a device of the list; the name is a text of the library's that lives as long.
        let name = unsafe { (self.table.get_device_name)(device) };
        let name = if name.is_null() {
            String::new()
        } else {
            // SAFETY: not null, zero-terminated.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        };
        // SAFETY: a device of the list.
        let context = unsafe { (self.table.open_device)(device) };
        if context.is_null() {
            return Err(Refusal::System("ibv_open_device", errno()));
        }
        let open = Open { table: &self.table, context };
        let attr = open.device()?;
        let port = open.port()?;
        let positive = |number: c_int| u32::try_from(number).unwrap_or(0);
        let ability = |is: bool| if is { Ability::Yes } else { Ability::No };
        let facts = DeviceFacts {
            kind: kind_of(Path::new("/sys/class/infiniband"), &name),
            name,
            wr_max: positive(attr.max_qp_wr),
            cqe_max: positive(attr.max_cqe),
            message_bytes_max: port.max_msg_sz,
            mr_bytes_max: attr.max_mr_size,
            // As many as a request can name.
            sge_max: u8::try_from(positive(attr.max_sge).clamp(1, 4)).unwrap_or(1),
            rd_atomic_max: u8::try_from(attr.max_qp_rd_atom).unwrap_or(u8::MAX),
            remote_invalidate: ability(attr.device_cap_flags & sys::MEM_MGT_EXTENSIONS != 0),
            dma_buf: open.dma_buf(),
        };
        let state = if port.state == sys::PORT_ACTIVE { Port::Active } else { Port::Down };
        Ok(Found { facts, port: state, gids: open.gids()? })
    }
}

impl Open<'_> {
    fn device(&self) -> Result<DeviceAttr, Refusal> {
        // SAFETY: a structure of integers, of which all zeroes is a value.
        let mut attr: DeviceAttr = unsafe { mem::zeroed() };
        // SAFETY: an open context, and a live structure of the library's layout.
        match unsafe { (self.table.query_device)(self.context, &raw mut attr) } {
            0 => Ok(attr),
            errno => Err(Refusal::System("ibv_query_device", errno)),
        }
    }

    /// The first port.
    fn port(&self) -> Result<PortAttr, Refusal> {
        // SAFETY: a structure of integers, of which all zeroes is a value.
        let mut attr: PortAttr = unsafe { mem::zeroed() };
        // SAFETY: an open context, and a live structure that is longer than what any revision of the function writes.
        match unsafe { (self.table.query_port)(self.context, 1, &raw mut attr) } {
            0 => Ok(attr),
            errno => Err(Refusal::System("ibv_query_port", errno)),
        }
    }

    fn gids(&self) -> Result<Vec<Gid>, Refusal> {
        let mut entries = vec![GidEntry::default(); GIDS_MAX];
        let bytes = size_of::<GidEntry>();
        // SAFETY: an open context, and an array of as many structures of the library's layout as are named.
        let found = unsafe { (self.table.query_gid_table)(self.context, entries.as_mut_ptr(), GIDS_MAX, 0, bytes) };
        let Ok(found) = usize::try_from(found) else {
            return Err(Refusal::System("ibv_query_gid_table", i32::try_from(-found).unwrap_or(0)));
        };
        let kind = |raw| match raw {
            0 => Some(GidKind::InfiniBand),
            1 => Some(GidKind::RoceV1),
            2 => Some(GidKind::RoceV2),
            _ => None,
        };
        let of_port = entries.iter().take(found).filter(|entry| entry.port_num == 1);
        Ok(of_port
            .filter_map(|entry| Some(Gid { index: entry.gid_index, kind: kind(entry.gid_type)?, raw: entry.gid }))
            .collect())
    }

    /// Whether dma-bufs can be registered: asked with a descriptor that is none, which those that can find wrong, and others do not get to
    /// (the probe of NCCL and UCX). That one is *good* when it is registered, only a self-test shows.
    fn dma_buf(&self) -> Ability {
        let Some(register) = self.table.reg_dmabuf_mr else { return Ability::No };
        // SAFETY: an open context.
        let pd = unsafe { (self.table.alloc_pd)(self.context) };
        if pd.is_null() {
            return Ability::No;
        }
        // SAFETY: a live PD; no memory is named.
        let none = unsafe { register(pd, 0, 0, 0, -1, 0) };
        let said = errno();
        // SAFETY: allocated above; nothing was registered in it.
        unsafe { (self.table.dealloc_pd)(pd) };
        if none.is_null() && said == libc::EBADF { Ability::Yes } else { Ability::No }
    }
}

/// A device without a parent on a bus is one of the kernel's own (rxe, siw). One whose place is not told is not taken for a NIC.
fn kind_of(class: &Path, name: &str) -> FabricKind {
    let place = std::fs::canonicalize(class.join(name));
    if place.is_ok_and(|place| place.components().all(|part| part.as_os_str() != "virtual")) {
        FabricKind::Hardware
    } else {
        FabricKind::Software
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod layout;
#[cfg(test)]
mod tests;
