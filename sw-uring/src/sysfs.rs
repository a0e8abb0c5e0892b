//! Facts of devices as the kernel tells them in sysfs: one root, so that tests can bring a tree of their own.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sw_engine::PciAddress;

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

    /// NUMA nodes that are there; 0 if the kernel does not tell.
    pub fn numa_nodes(&self) -> usize {
        let node = |name: &String| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok());
        names(&self.path("sys/devices/system/node")).iter().filter(|name| node(name)).count()
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
