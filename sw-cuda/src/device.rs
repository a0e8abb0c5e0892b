//! A device and what it says about itself. Asking makes no context and costs no device memory.
// UNSAFETY: calls through the checked table with result pointers of this file's own stack.
#![expect(unsafe_code, reason = "driver calls")]

use std::ffi::{CStr, c_char};
use std::fmt;

use cudarc::driver::sys::{CUdevice, CUdevice_P2PAttribute, CUuuid};
use sw_engine::ErrorKind;
use sw_mem::DeviceId;

use crate::attribute::Attribute;
use crate::driver::Driver;
use crate::error::CudaError;

/// Room for a device name or a PCI address, in bytes with the final zero.
const TEXT_BYTES: usize = 128;
/// The same as the driver wants it.
const TEXT_LEN: i32 = 128;

/// A device by its ordinal.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    driver: Driver,
    ordinal: u16,
    handle: CUdevice,
}

/// Compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ComputeCapability {
    /// Before the point.
    pub major: u32,
    /// After the point.
    pub minor: u32,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Identity of a physical device: the same in every process and under every `CUDA_VISIBLE_DEVICES`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    /// As `nvidia-smi -L` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GPU-")?;
        for (index, byte) in self.0.iter().enumerate() {
            if [4, 6, 8, 10].contains(&index) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Address on the PCI bus in the kernel's spelling: `0000:3b:00.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciAddress(pub String);

impl PciAddress {
    /// From the driver's spelling: hexadecimal in capitals, domain of four or eight digits.
    pub(crate) fn from_driver(text: &str) -> Option<Self> {
        let lower = text.trim().to_ascii_lowercase();
        let (domain, rest) = lower.split_once(':')?;
        let domain = u32::from_str_radix(domain, 16).ok()?;
        let shape: Vec<usize> = rest.split([':', '.']).map(str::len).collect();
        (shape == [2, 2, 1] && rest.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.'))
            .then(|| Self(format!("{domain:04x}:{rest}")))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Device {
    pub(crate) fn get(driver: Driver, ordinal: u16) -> Result<Self, CudaError> {
        let mut handle: CUdevice = 0;
        // SAFETY: a checked symbol and a writable result.
        let answer = unsafe { (driver.table().cuDeviceGet)(&raw mut handle, i32::from(ordinal)) };
        driver.check(answer, "cuDeviceGet", Some(ordinal))?;
        Ok(Self { driver, ordinal, handle })
    }

    /// The driver it belongs to.
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// Its ordinal, counted from 0.
    pub fn ordinal(&self) -> u16 {
        self.ordinal
    }

    /// Its name in the engine.
    pub fn id(&self) -> DeviceId {
        DeviceId(self.ordinal)
    }

    pub(crate) fn raw(&self) -> CUdevice {
        self.handle
    }

    /// The maker's name.
    ///
    /// # Errors
    /// The driver's.
    pub fn name(&self) -> Result<String, CudaError> {
        let mut text = [0 as c_char; TEXT_BYTES];
        // SAFETY: a checked symbol; the buffer has the length that is passed (`TEXT_LEN` is `TEXT_BYTES`).
        let answer = unsafe { (self.driver.table().cuDeviceGetName)(text.as_mut_ptr(), TEXT_LEN, self.handle) };
        self.check(answer, "cuDeviceGetName")?;
        Ok(text_of(&text))
    }

    /// Its identity.
    ///
    /// # Errors
    /// The driver's.
    pub fn uuid(&self) -> Result<Uuid, CudaError> {
        let mut uuid = CUuuid { bytes: [0; 16] };
        // SAFETY: a checked symbol and a writable result.
        let answer = unsafe { (self.driver.table().cuDeviceGetUuid_v2)(&raw mut uuid, self.handle) };
        self.check(answer, "cuDeviceGetUuid_v2")?;
        Ok(Uuid(uuid.bytes.map(|byte| byte.to_ne_bytes()[0])))
    }

    /// Its memory in bytes.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory_bytes(&self) -> Result<u64, CudaError> {
        let mut bytes = 0;
        // SAFETY: a checked symbol and a writable result.
        let answer = unsafe { (self.driver.table().cuDeviceTotalMem_v2)(&raw mut bytes, self.handle) };
        self.check(answer, "cuDeviceTotalMem_v2")?;
        Ok(bytes as u64)
    }

    /// Its address on the PCI bus.
    ///
    /// # Errors
    /// The driver's; `Protocol` if it answers no address.
    pub fn pci_address(&self) -> Result<PciAddress, CudaError> {
        const CALL: &str = "cuDeviceGetPCIBusId";
        let mut text = [0 as c_char; TEXT_BYTES];
        // SAFETY: as in `name`.
        let answer = unsafe { (self.driver.table().cuDeviceGetPCIBusId)(text.as_mut_ptr(), TEXT_LEN, self.handle) };
        self.check(answer, CALL)?;
        PciAddress::from_driver(&text_of(&text))
            .ok_or_else(|| CudaError::ours(ErrorKind::Protocol, CALL, Some(self.ordinal), ""))
    }

    /// Compute capability.
    ///
    /// # Errors
    /// The driver's.
    pub fn compute_capability(&self) -> Result<ComputeCapability, CudaError> {
        let part = |attribute| self.attribute(attribute).map(|value| u32::try_from(value).unwrap_or(0));
        Ok(ComputeCapability { major: part(Attribute::ComputeMajor)?, minor: part(Attribute::ComputeMinor)? })
    }

    /// One attribute.
    ///
    /// # Errors
    /// The driver's; `ApiMisuse` for an attribute that came after it.
    pub fn attribute(&self, attribute: Attribute) -> Result<i32, CudaError> {
        let mut value = 0;
        // SAFETY: a checked symbol and a writable result.
        let answer =
            unsafe { (self.driver.table().cuDeviceGetAttribute)(&raw mut value, attribute.raw(), self.handle) };
        self.check(answer, "cuDeviceGetAttribute")?;
        Ok(value)
    }

    /// Whether this device can reach the memory of `peer` by itself.
    ///
    /// # Errors
    /// The driver's.
    pub fn can_access(&self, peer: &Device) -> Result<bool, CudaError> {
        let mut can = 0;
        // SAFETY: a checked symbol and a writable result.
        let answer = unsafe { (self.driver.table().cuDeviceCanAccessPeer)(&raw mut can, self.handle, peer.handle) };
        self.check(answer, "cuDeviceCanAccessPeer")?;
        Ok(can != 0)
    }

    /// Relative quality of the link to `peer`; 0 is the best that this machine has.
    ///
    /// # Errors
    /// The driver's.
    pub fn link_rank(&self, peer: &Device) -> Result<i32, CudaError> {
        let mut rank = 0;
        let what = CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK;
        // SAFETY: a checked symbol and a writable result.
        let answer =
            unsafe { (self.driver.table().cuDeviceGetP2PAttribute)(&raw mut rank, what, self.handle, peer.handle) };
        self.check(answer, "cuDeviceGetP2PAttribute")?;
        Ok(rank)
    }

    fn check(&self, code: u32, call: &'static str) -> Result<(), CudaError> {
        self.driver.check(code, call, Some(self.ordinal))
    }
}

/// The text up to its zero; a driver that forgot the zero gets the whole buffer read, not more.
fn text_of(text: &[c_char; TEXT_BYTES]) -> String {
    let bytes: Vec<u8> = text.iter().map(|c| c.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map_or_else(|_| String::from_utf8_lossy(&bytes).into_owned(), |text| text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_get_the_kernels_spelling() {
        let of = |text| PciAddress::from_driver(text).map(|a| a.0);
        assert_eq!(of("0000:3B:00.0").as_deref(), Some("0000:3b:00.0"));
        assert_eq!(of("00000001:3B:00.0").as_deref(), Some("0001:3b:00.0"));
        for bad in ["", "3B:00.0", "0000:3B:00", "0000:3B:00.0/../x", "zz:3B:00.0"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn uuids_print_as_the_vendors_tool_does() {
        let bytes = [0x8f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(Uuid(bytes).to_string(), "GPU-8f010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
