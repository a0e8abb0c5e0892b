//! Memory that a transfer names by an address: registered, of a GPU, or of this process.

use std::sync::{Arc, PoisonError};

use straightway::{DeviceAllocation, DeviceId, Engine, GpuVa, HostVa, Memory, Place};

use crate::{
    buffer::Buffer,
    code::{self, Failure},
    library::library,
    pointer::lend,
};

/// A range that a caller named, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    buffer: Option<Arc<Buffer>>,
    gpu: Option<u16>,
    address: u64,
    len: u64,
}

impl Range {
    /// `len` bytes, `at` bytes from `base`. An address inside a registration is as good as its base.
    ///
    /// # Errors
    /// `INVALID_VALUE` for NULL, a negative offset or a range that wraps; `INVALID_MAPPING_RANGE` for one that leaves its
    /// registration or its device allocation; the driver's.
    pub(crate) fn new(engine: &Engine, base: u64, at: i64, len: u64) -> Result<Self, Failure> {
        if base == 0 {
            return Err(Failure { errno: libc::EINVAL, ..Failure::invalid("the buffer is NULL") });
        }
        let at = u64::try_from(at).map_err(|_| Failure::invalid(format!("the buffer offset {at} is negative")))?;
        let address = base.checked_add(at);
        let (Some(address), Some(_)) = (address, address.and_then(|address| address.checked_add(len))) else {
            return Err(Failure::invalid(format!("{len} bytes at {base:#x} + {at} are no range of memory")));
        };
        let (whole, inside) = registered(base, address, len);
        if let Some(buffer) = whole {
            return Ok(Self { gpu: buffer.gpu(), buffer: Some(buffer), address, len });
        }
        if let Some(buffer) = inside {
            return Err(Failure::new(
                code::INVALID_MAPPING_RANGE,
                format!(
                    "{len} bytes at {address:#x} leave the registration, {} bytes at {:#x}",
                    buffer.len(),
                    buffer.base()
                ),
            ));
        }
        let gpu = engine.device_allocation(address)?.map(|found: DeviceAllocation| found.gpu);
        Ok(Self { buffer: None, gpu, address, len })
    }

    /// The GPU whose memory it is.
    pub(crate) fn gpu(&self) -> Option<u16> {
        self.gpu
    }

    /// Its first byte.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// A part of it, for one operation.
    ///
    /// # Errors
    /// The engine's.
    pub(crate) fn part(&self, engine: &Engine, at: u64, len: u64) -> Result<Memory, Failure> {
        debug_assert!(at + len <= self.len, "{at} + {len} of {}", self.len);
        let address = self.address + at;
        if let Some(buffer) = &self.buffer {
            return buffer.part(address, len);
        }
        let region = lend(place(self.gpu, address), len, Box::new(()))?;
        Ok(engine.register(region)?.part(0, len)?)
    }
}

/// An address in its space.
pub(crate) fn place(gpu: Option<u16>, address: u64) -> Place {
    match gpu {
        Some(gpu) => Place::Device(DeviceId(gpu), GpuVa::new(address)),
        None => Place::Host(HostVa::new(address)),
    }
}

/// A registration that has all of a range, and one that has the base of it.
fn registered(base: u64, address: u64, len: u64) -> (Option<Arc<Buffer>>, Option<Arc<Buffer>>) {
    let buffers = library().buffers.read().unwrap_or_else(PoisonError::into_inner);
    let longest = library().longest_buffer();
    let mut inside = None;
    for (first, buffer) in buffers.range(..=address).rev() {
        if first.saturating_add(longest) < base.min(address) {
            break;
        }
        let end = first.saturating_add(buffer.len());
        // No bytes at its end are in it if they are asked for from inside: what begins where it ends is other memory.
        if address.saturating_add(len) <= end && (address < end || base < end) {
            return (Some(buffer.clone()), None);
        }
        if inside.is_none() && (*first..end).contains(&base) {
            inside = Some(buffer.clone());
        }
    }
    (None, inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_where_a_registration_ends_is_other_memory() {
        let running = library().opened().unwrap();
        let bytes = [0_u8; 200];
        let base = bytes.as_ptr().expose_provenance() as u64;
        let buffer = Arc::new(Buffer::new(&running.engine, base, 100).unwrap());
        library().longest.fetch_max(100, std::sync::atomic::Ordering::Relaxed);
        library().buffers.write().unwrap().insert(base, buffer);
        let range = |base: u64, at: i64, len: u64| Range::new(&running.engine, base, at, len);
        let is_registered = |range: Result<Range, Failure>| range.unwrap().buffer.is_some();
        assert!(is_registered(range(base, 0, 100)) && is_registered(range(base + 99, 0, 1)));
        // No bytes at the end, asked for from inside and from what is behind.
        assert!(is_registered(range(base, 100, 0)) && !is_registered(range(base + 100, 0, 0)));
        assert!(!is_registered(range(base + 100, 0, 100)));
        assert_eq!(range(base, 1, 100).unwrap_err().code, code::INVALID_MAPPING_RANGE);
        library().buffers.write().unwrap().remove(&base);
    }
}
