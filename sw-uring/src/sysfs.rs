//! Facts of devices as the kernel tells them in sysfs: one root, so that tests can bring a tree of their own.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// A PCI function: domain, bus, device, function. Printed as the kernel does, `0000:3b:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// 0 to 0xffff; more behind some bridges that make domains of their own.
    pub domain: u32,
    /// 0 to 255.
    pub bus: u8,
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// Reads `DDDD:BB:DD.F` (hexadecimal, at least four digits of domain), or `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let (domain, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let hex = |digits: &str, lengths: std::ops::RangeInclusive<usize>| {
            let plain = lengths.contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            u32::from_str_radix(digits, 16).ok().filter(|_| plain)
        };
        let parsed = Self {
            domain: hex(domain, 4..=8)?,
            bus: u8::try_from(hex(bus, 2..=2)?).ok()?,
            device: u8::try_from(hex(device, 2..=2)?).ok()?,
            function: u8::try_from(hex(function, 1..=1)?).ok()?,
        };
        (parsed.device < 32 && parsed.function < 8).then_some(parsed)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// Where the kernel shows itself: `/sys` and `/proc`, or a tree that looks like them.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
}

impl Default for Machine {
    fn default() -> Self {
        Self::this()
    }
}

impl Machine {
    /// The machine that this process runs on.
    pub fn this() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// A tree with `sys` and `proc` below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A path below the root; `path` has no leading slash.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The directory of a PCI function, with all symbolic links resolved: its bridges are above it.
    pub(crate) fn function(&self, address: PciAddress) -> io::Result<PathBuf> {
        fs::canonicalize(self.path(&format!("sys/bus/pci/devices/{address}")))
    }

    /// Text of a file below the root without white space around it.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        text(&self.path(path))
    }
}

/// Text of a file without white space around it; none if it cannot be read.
pub(crate) fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A decimal number in a file.
pub(crate) fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

/// A hexadecimal number in a file, with `0x` before it.
pub(crate) fn hex(path: &Path) -> Option<u32> {
    u32::from_str_radix(text(path)?.strip_prefix("0x")?, 16).ok()
}

/// A device number in a file, as `MAJOR:MINOR`.
pub(crate) fn device_number(path: &Path) -> Option<u64> {
    let text = text(path)?;
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Names in a directory, sorted; none if it cannot be read.
pub(crate) fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .take(NAMES_MAX)
        .collect();
    names.sort_unstable();
    names
}

/// Entries of one sysfs directory that are looked at: more functions or disks than a machine has.
const NAMES_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_printed_as_they_are_read_and_nothing_else_is_read() {
        for text in ["0000:3b:00.0", "0001:00:1f.7", "10000:01:00.0"] {
            assert_eq!(PciAddress::parse(text).unwrap().to_string(), text);
        }
        for text in
            ["", "3b:00.0", "0000:3b:20.0", "0000:3b:00.8", "0000:3b:00", "+000:3b:00.0", "0000:3b:0.0", "pci0000:00"]
        {
            assert_eq!(PciAddress::parse(text), None, "{text}");
        }
    }
}
