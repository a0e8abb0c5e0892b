//! # Regions
//!
//! Memory that operations use. Operations name a region and a range in it, so that interior addresses need no registration of
//! their own; `sw_region_find` finds the region of an address. Two operations may use the same bytes at the same time; they
//! then race as two system calls do.
// UNSAFETY: exported names, and structures that C callers fill.
#![expect(unsafe_code, reason = "exported names, and structures that C callers fill")]

use std::{
    any::Any,
    ffi::CString,
    sync::{Arc, PoisonError},
};

use straightway::{Destination, DeviceId, DmaRegion, Error, ErrorKind, GpuVa, HostVa, Memory, Place, Region, Verb};

use crate::{
    edge::{call, misuse, unsupported},
    engine::{EngineState, SwEngine},
    handle::{Handle, Kind, Table},
    last::c_text,
    pointer::{Addr, ConstAddr, In, Out, Str, fill, lend, versioned},
    status::SwStatus,
};

/// Memory that the engine may use. Any thread may use it. Freed by `sw_region_free` or `sw_region_release`.
#[repr(C)]
pub struct SwRegion {
    _opaque: [u8; 0],
}

impl Kind for SwRegion {
    type State = RegionState;
    const TAG: u8 = 0xa3;
    const NAME: &'static str = "a region";

    fn table() -> &'static Table<RegionState> {
        static TABLE: Table<RegionState> = Table::new();
        &TABLE
    }
}

/// What is behind a handle of a region.
pub struct RegionState {
    engine: Arc<EngineState>,
    region: Region,
    memory: DmaRegion,
    /// Handles of `memory` when no operation has any.
    idle: usize,
    destination: Destination,
    destination_text: CString,
}

/// Called when no operation and no device touches the memory of a region any more. It may be called by any thread, also
/// by the one that frees the region, and must not call this library or throw an exception.
pub type SwRelease = Option<extern "C" fn(user: Addr)>;

/// How memory is registered.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwRegionOptions {
    /// Size of this structure in bytes, set by the caller.
    pub size: usize,
    /// Where the memory is: NULL or `host`, or `gpu0`, `gpu1`, and so on, counted as the GPU's driver counts.
    pub destination: Str,
    /// Told when the memory is the caller's again; NULL: nobody is.
    pub release: SwRelease,
    /// For `release`.
    pub user: Addr,
}

versioned!(SwRegionOptions, "sw_region_options", 32);

/// Facts of a region.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwRegionInfo {
    /// Size of this structure in bytes, set by the caller.
    pub size: usize,
    /// Address of its first byte. Of host memory the program may follow it; of a GPU it is a device pointer.
    pub address: Addr,
    /// Length in bytes.
    pub length: u64,
    /// Where it is, such as `host`. Valid until the region is freed.
    pub destination: Str,
    /// Whether an operation or a device holds it now: 1 or 0.
    pub in_use: i32,
    /// Zero.
    pub reserved: u32,
}

versioned!(SwRegionInfo, "sw_region_info", 40);

/// Calls the release callback when it is dropped.
struct Lent {
    release: SwRelease,
    user: Addr,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            release(self.user);
        }
    }
}

/// Fresh memory of `length` bytes in `destination`: `host`, `gpu0`, `gpu1` and so on; NULL is `host`. Memory of `bar:` and `p2pmem:`
/// is not given out yet. Its address is congruent to `phase` modulo the page size, so that bytes from file offset `phase` on can land
/// in place. Host memory is zeroed, and on huge pages where the kernel has some.
///
/// Errors: `SW_ERR_RESOURCE_LIMIT`; `SW_ERR_NO_DEVICE`; `SW_ERR_API_MISUSE` for zero bytes; `SW_ERR_UNSUPPORTED`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_region_allocate(
    engine: Handle<SwEngine>,
    destination: Str,
    length: u64,
    phase: u64,
    region: Out<Handle<SwRegion>>,
) -> SwStatus {
    call(|| {
        let out = region.ready("region")?;
        let engine = engine.get()?;
        let destination: Destination = destination.text("destination")?.unwrap_or("host").parse()?;
        let memory = engine.engine.allocate(destination, length, phase)?;
        let (memory, owner) = kept(memory, destination)?;
        out.put(make(engine, (memory, length), owner)?);
        Ok(())
    })
}

/// Where memory of the engine's is, and what keeps it there.
fn kept(memory: Memory, destination: Destination) -> Result<(Place, Box<dyn Any + Send + Sync>), Error> {
    let address = memory.address();
    let place = match destination {
        Destination::Host => Place::Host(HostVa::new(address)),
        Destination::Gpu(ordinal) => Place::Device(DeviceId(ordinal), GpuVa::new(address)),
        Destination::Bar(_) | Destination::PeerMemory(_) => {
            return Err(unsupported(
                format!("{destination} memory is not given out by the C interface yet"),
                "use host or gpuN",
            ));
        }
    };
    // Shared, because a span of one owner stays with one thread. No part of it is given out.
    let (region, _) = memory.share();
    Ok((place, Box::new(region)))
}

/// Makes memory of the caller's known to an engine: `length` bytes from `address`, host memory of this process or memory of a
/// GPU. `options` may be NULL: host memory.
///
/// The memory must stay mapped, and where it is, until `sw_region_free` returns `SW_OK` or the release callback was called. While
/// an operation uses a range of it, the program must not touch that range (of a write: not change it).
///
/// Errors: `SW_ERR_API_MISUSE` for a NULL address, zero bytes or a range that wraps; `SW_ERR_NO_DEVICE`;
/// `SW_ERR_NOT_REGISTERED` if the driver does not know device memory there; `SW_ERR_OUT_OF_RANGE` if it leaves its allocation.
/// Whether host memory is mapped cannot be known: using memory that is not may end the process.
#[unsafe(no_mangle)]
pub extern "C" fn sw_region_register(
    engine: Handle<SwEngine>,
    address: Addr,
    length: u64,
    options: In<SwRegionOptions>,
    region: Out<Handle<SwRegion>>,
) -> SwStatus {
    call(|| {
        let out = region.ready("region")?;
        let options = options.sized()?;
        let engine = engine.get()?;
        let destination = options.destination.text("sw_region_options.destination")?.unwrap_or("host");
        let place = match destination.parse()? {
            Destination::Host => Place::Host(HostVa::new(address.raw())),
            Destination::Gpu(ordinal) => Place::Device(DeviceId(ordinal), GpuVa::new(address.raw())),
            Destination::Bar(_) | Destination::PeerMemory(_) => {
                return Err(misuse(format!("{destination} memory is not registered"), "use host or gpuN"));
            }
        };
        // An error before this call is over must not tell that memory is free which the caller never gave away.
        let lent = Arc::new(std::sync::Mutex::new(Lent { release: None, user: options.user }));
        let handle = make(engine, (place, length), Box::new(lent.clone()))?;
        lent.lock().unwrap_or_else(PoisonError::into_inner).release = options.release;
        out.put(handle);
        Ok(())
    })
}

fn make(
    engine: Arc<EngineState>,
    (place, length): (Place, u64),
    owner: Box<dyn Any + Send + Sync>,
) -> Result<Handle<SwRegion>, Error> {
    let memory = lend(place, length, owner)?;
    let region = engine.engine.register(memory.clone())?;
    let destination = match place {
        Place::Host(_) => Destination::Host,
        Place::Device(DeviceId(ordinal), _) => Destination::Gpu(ordinal),
    };
    let state = RegionState {
        idle: memory.holders(),
        destination_text: c_text(destination.to_string()),
        engine: engine.clone(),
        region,
        memory,
        destination,
    };
    let handle = Handle::make(Arc::new(state))?;
    let mut regions = engine.regions.write().unwrap_or_else(PoisonError::into_inner);
    regions.insert((place.raw(), handle.raw()), length);
    Ok(handle)
}

impl RegionState {
    /// A range of it for an operation of an engine.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` if it is another engine's.
    pub(crate) fn part(&self, engine: &Arc<EngineState>, at: u64, len: u64) -> Result<Memory, Error> {
        if !Arc::ptr_eq(engine, &self.engine) {
            return Err(misuse(
                "the region and the object are of different engines",
                "register it with the other one too",
            ));
        }
        self.region.part(at, len)
    }

    fn in_use(&self) -> bool {
        self.memory.holders() > self.idle
    }

    fn forget(&self, handle: Handle<SwRegion>) {
        let mut regions = self.engine.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.remove(&(self.memory.base().raw(), handle.raw()));
    }
}

/// Frees a region that nothing uses. Memory that the caller registered is the caller's again when it returns `SW_OK`.
///
/// Errors: `SW_ERR_IN_USE` while an operation or a device holds it; the region stays. That may be so for a while after a
/// deadline or a cancel, until the device has let go: try again later, or call `sw_region_release`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_region_free(region: Handle<SwRegion>) -> SwStatus {
    call(|| {
        let state = region.end(|state| {
            // With the table's lock held nobody can start; who has just looked it up holds it.
            if Arc::strong_count(state) == 1 && !state.in_use() {
                return Ok(());
            }
            Err(Error::new(ErrorKind::InUse, Verb::Register)
                .at(format!("{} memory", state.destination))
                .detail("an operation or a device still holds the region")
                .remedy("wait for its operations first, or use sw_region_release"))
        })?;
        state.forget(region);
        Ok(())
    })
}

/// Gives a region up: its handle ends at once, its memory when the last operation and device have let go of it. The release
/// callback tells when that is.
#[unsafe(no_mangle)]
pub extern "C" fn sw_region_release(region: Handle<SwRegion>) -> SwStatus {
    call(|| {
        let state = region.end(|_| Ok(()))?;
        state.forget(region);
        Ok(())
    })
}

/// Tells facts of a region.
#[unsafe(no_mangle)]
pub extern "C" fn sw_region_info_get(region: Handle<SwRegion>, info: Out<SwRegionInfo>) -> SwStatus {
    call(|| {
        let out = info.sized()?;
        let state = region.get()?;
        out.put(|| SwRegionInfo {
            size: 0,
            address: Addr::from_raw(state.memory.base().raw()),
            length: state.memory.len().0,
            destination: Str::lent(&state.destination_text),
            in_use: i32::from(state.in_use()),
            reserved: 0,
        });
        Ok(())
    })
}

/// Finds the region of an engine that has all of `length` bytes from `address`, and where in it they begin. The handle is the
/// one that is there already; it is not to be freed once more.
///
/// Errors: `SW_ERR_NOT_REGISTERED`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_region_find(
    engine: Handle<SwEngine>,
    address: ConstAddr,
    length: u64,
    region: Out<Handle<SwRegion>>,
    offset: Out<u64>,
) -> SwStatus {
    call(|| {
        let (region, offset) = (region.ready("region")?, offset.ready("offset")?);
        let engine = engine.get()?;
        let (handle, at) = find(&engine, address.raw(), length)?;
        region.put(handle);
        offset.put(at);
        Ok(())
    })
}

fn find(engine: &EngineState, address: u64, length: u64) -> Result<(Handle<SwRegion>, u64), Error> {
    let regions = engine.regions.read().unwrap_or_else(PoisonError::into_inner);
    let below = regions.range(..=(address, u64::MAX)).rev();
    let end = address.checked_add(length);
    let mut has = below.filter(|((base, _), len)| end.is_some_and(|end| end <= base.saturating_add(**len)));
    let found = has.next().map(|((base, handle), _)| (Handle::from_raw(*handle), address - base));
    found.ok_or_else(|| {
        Error::new(ErrorKind::NotRegistered, Verb::Register)
            .at(format!("{length} bytes at {address:#x}"))
            .detail("no region of the engine has them all")
            .remedy("register the memory first")
    })
}

/// Copies `length` bytes from byte `offset` of a region, also of device memory, to host memory at `to`. For checks and headers; it
/// is not the fast path.
#[unsafe(no_mangle)]
pub extern "C" fn sw_region_get(region: Handle<SwRegion>, offset: u64, length: u64, to: Addr) -> SwStatus {
    call(|| {
        let state = region.get()?;
        let part = state.region.part(offset, length)?;
        let mut at = 0;
        let mut copied = Ok(());
        let mut out = state.engine.engine.copy_out(state.destination)?;
        out.visit(&part, 0, length, |bytes| {
            if copied.is_ok() {
                copied = fill(to, at, bytes, "to");
                at += bytes.len();
            }
        })?;
        copied
    })
}

/// Copies `length` bytes of host memory at `from` to byte `offset` of a region, also of device memory. It is not the fast path.
#[unsafe(no_mangle)]
pub extern "C" fn sw_region_put(region: Handle<SwRegion>, offset: u64, length: u64, from: ConstAddr) -> SwStatus {
    call(|| {
        let state = region.get()?;
        let part = state.region.part(offset, length)?;
        let len =
            usize::try_from(length).map_err(|_| misuse("the length is no size of memory", "give a smaller one"))?;
        let bytes = from.bytes(len, "from")?;
        state.engine.engine.copy_in(state.destination)?.put(&part, 0, bytes)
    })
}
