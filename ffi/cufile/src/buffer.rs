//! Registered memory.
// UNSAFETY: exported names.
#![expect(unsafe_code, reason = "exported names")]

use std::{
    fmt,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use straightway::{Engine, Memory, Region};

use crate::{
    abi::CuFileError,
    code::{self, Failure},
    count::What,
    edge::call,
    library::library,
    memory::place,
    pointer::{Addr, lend},
};

/// Memory that a caller registered.
pub struct Buffer {
    base: u64,
    len: u64,
    gpu: Option<u16>,
    region: Region,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at {:#x})", self.len, self.base)
    }
}

impl Buffer {
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn gpu(&self) -> Option<u16> {
        self.gpu
    }

    /// `len` bytes from an address that is inside.
    ///
    /// # Errors
    /// The engine's.
    pub(crate) fn part(&self, address: u64, len: u64) -> Result<Memory, Failure> {
        Ok(self.region.part(address - self.base, len)?)
    }

    /// # Errors
    /// `INVALID_MAPPING_RANGE` if it leaves its device allocation; the driver's and the engine's.
    pub(crate) fn new(engine: &Engine, base: u64, len: u64) -> Result<Self, Failure> {
        let gpu = match engine.device_allocation(base)? {
            Some(found) if len > (found.base + found.len).saturating_sub(base) => {
                return Err(Failure::new(
                    code::INVALID_MAPPING_RANGE,
                    format!(
                        "{len} bytes at {base:#x} leave their allocation, {} bytes at {:#x}",
                        found.len, found.base
                    ),
                ));
            }
            found => found.map(|found| found.gpu),
        };
        let region = engine.register(lend(place(gpu, base), len, Box::new(()))?)?;
        Ok(Self { base, len, gpu, region })
    }
}

/// `cuFileBufRegister`: makes memory of a GPU or of this process known. Nothing is copied, and no second buffer is allocated. The driver
/// is opened if it is not. Flags are taken as they are, unknown ones too, as the real library does: there is no RDMA here.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileBufRegister(base: Addr, length: usize, _flags: i32) -> CuFileError {
    call("cuFileBufRegister", || {
        let registered = register(base, length);
        library().counts.call(What::BufRegister, &registered);
        registered
    })
}

fn register(base: Addr, length: usize) -> Result<(), Failure> {
    let (base, len) = (base.raw(), length as u64);
    if base == 0 || len == 0 || base.checked_add(len).is_none() {
        return Err(Failure::invalid(format!("{len} bytes at {base:#x} are no memory")));
    }
    let running = library().opened()?;
    let known = || Failure::new(code::MEMORY_ALREADY_REGISTERED, format!("{base:#x} is registered already"));
    let buffers = || library().buffers.write().unwrap_or_else(PoisonError::into_inner);
    if buffers().contains_key(&base) {
        return Err(known());
    }
    // Without the lock: the driver may take its time.
    let buffer = Arc::new(Buffer::new(&running.engine, base, len)?);
    let mut buffers = buffers();
    if buffers.contains_key(&base) {
        return Err(known());
    }
    library().still(&running)?;
    library().longest.fetch_max(len, Ordering::Relaxed);
    if let Some(gpu) = buffer.gpu {
        library().counts.registered(gpu, len);
    }
    buffers.insert(base, buffer);
    Ok(())
}

/// `cuFileBufDeregister`: forgets memory, by the address that it was registered with. A transfer that runs holds it until it is over;
/// the caller must, too.
#[unsafe(no_mangle)]
pub extern "C" fn cuFileBufDeregister(base: Addr) -> CuFileError {
    call("cuFileBufDeregister", || {
        let deregistered = deregister(base);
        library().counts.call(What::BufDeregister, &deregistered);
        deregistered
    })
}

fn deregister(base: Addr) -> Result<(), Failure> {
    let base = base.raw();
    if base == 0 {
        return Err(Failure::invalid("the buffer is NULL"));
    }
    let gone = library().buffers.write().unwrap_or_else(PoisonError::into_inner).remove(&base);
    let gone = gone.ok_or_else(|| Failure::new(code::MEMORY_NOT_REGISTERED, format!("{base:#x} is not registered")))?;
    if let Some(gpu) = gone.gpu {
        library().counts.deregistered(gpu, gone.len);
    }
    Ok(())
}
