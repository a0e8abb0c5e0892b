//! Names of PCI functions: where a device is, in the operator's words.

use core::{fmt, ops::RangeInclusive, str::FromStr};

use crate::error::{Error, ErrorKind, Verb};

/// The address of a PCI function: domain, bus, device, function. Printed as `lspci -D` and the kernel do, `0000:3b:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Domain (segment); 32 bits, because some bridges make domains of their own past 16.
    pub domain: u32,
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device on the bus, 0 to 31.
    pub device: u8,
    /// Function of the device, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// The function that the kernel calls `name`, as directories of sysfs are called; `None` for any other name, a shorter
    /// way to write an address included.
    pub fn of_name(name: &str) -> Option<Self> {
        parse(name).filter(|address| address.to_string() == name)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let hex = |part: &str, digits: RangeInclusive<usize>| {
        let plain = digits.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        u32::from_str_radix(part, 16).ok().filter(|_| plain)
    };
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let byte = |value: u32, max: u8| u8::try_from(value).ok().filter(|value| *value <= max);
    Some(PciAddress {
        domain: hex(domain, 1..=8)?,
        bus: byte(hex(bus, 1..=2)?, 255)?,
        device: byte(hex(device, 1..=2)?, 31)?,
        function: byte(hex(function, 1..=1)?, 7)?,
    })
}

impl FromStr for PciAddress {
    type Err = Error;

    /// Reads `0000:3b:00.0` or, for domain 0, `3b:00.0`.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| {
            Error::new(ErrorKind::BadUri, Verb::Open)
                .at(text)
                .detail("not the address of a PCI function")
                .remedy("write it as lspci -D does, such as 0000:3b:00.0")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_domain() {
        let want = PciAddress { domain: 0, bus: 0x3B, device: 0x1F, function: 7 };
        assert_eq!("0000:3b:1f.7".parse::<PciAddress>().unwrap(), want);
        assert_eq!("3B:1f.7".parse::<PciAddress>().unwrap(), want);
        assert_eq!("10000:01:00.0".parse::<PciAddress>().unwrap().to_string(), "10000:01:00.0");
        assert_eq!(want.to_string(), "0000:3b:1f.7");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "3b", "3b:00", "3b:00.8", "3b:20.0", "0:3b:00.0:0", "+1:00.0", "0000:3b:00.", "é:00.0", "../x:0.0"]
        {
            let refused = text.parse::<PciAddress>().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::BadUri, "{text}");
        }
    }

    #[test]
    fn the_kernels_names_are_told_from_what_people_write() {
        for name in ["0000:3b:00.0", "0001:00:1f.7", "10000:01:00.0"] {
            assert_eq!(PciAddress::of_name(name).unwrap().to_string(), name);
        }
        for other in ["", "3b:00.0", "0000:3B:00.0", "0000:3b:0.0", "+000:3b:00.0", "0000:3b:20.0", "pci0000:00"] {
            assert_eq!(PciAddress::of_name(other), None, "{other}");
        }
    }
}
