//! Reading and writing the kernel's text files, below a root that tests replace.

use std::{fs, io::Write, path::PathBuf, time::Duration};

use sw_engine::{Error, ErrorKind, PciAddress, Verb};

use crate::{iova::Window, sys};

/// Names in one directory that are looked at: a machine has a few thousand PCI functions at most.
const NAMES_MAX: usize = 1 << 16;

/// Looks for a file of VFIO that should be there, and the time between two: 2 s in all.
const FILE_LOOKS: u32 = 200;
const FILE_LOOK_EVERY: Duration = Duration::from_millis(10);

/// The tree with `sys`, `proc`, `dev` and `run`: the machine's own, or one that a test made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self { root: PathBuf::from("/") }
    }
}

/// The IOMMU group of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Its number, as text.
    pub(crate) number: String,
    /// Made up by vfio for a function without IOMMU.
    pub(crate) is_noiommu: bool,
}

/// A part of the bus's addresses that belongs to a function: a BAR, or what a bridge passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resource {
    window: Window,
    is_prefetchable: bool,
}

/// What a BAR is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarKind {
    /// Not there, or no memory.
    None,
    /// Reading may have an effect, as with registers.
    Registers,
    /// Reading has no effect, and writes may be merged (PCI Local Bus Specification 3.0 §6.2.5.1 "Address Maps"): memory.
    Prefetchable,
}

impl Group {
    /// Its file below `dev/vfio`.
    pub(crate) fn file(&self) -> String {
        format!("dev/vfio/{}{}", if self.is_noiommu { "noiommu-" } else { "" }, self.number)
    }
}

impl Sysfs {
    /// The tree below another root than `/`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `relative` in the tree.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The content of a small file without spaces at its ends; `None` if it cannot be read.
    pub(crate) fn read(&self, relative: &str) -> Option<String> {
        let text = fs::read(self.path(relative)).ok()?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Writes to a file that exists.
    pub(crate) fn write(&self, relative: &str, text: &str) -> Result<(), i32> {
        let mut file = fs::OpenOptions::new().write(true).open(self.path(relative)).map_err(|e| sys::code(&e))?;
        file.write_all(text.as_bytes()).map_err(|e| sys::code(&e))
    }

    /// The last part of what a symbolic link names.
    pub(crate) fn link_name(&self, relative: &str) -> Option<String> {
        let target = fs::read_link(self.path(relative)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// The names in a directory, sorted; none if it cannot be read.
    pub(crate) fn names(&self, relative: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(relative)) else { return Vec::new() };
        let names =
            entries.take(NAMES_MAX).filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Whether there is something.
    pub(crate) fn exists(&self, relative: &str) -> bool {
        self.path(relative).exists()
    }

    /// The directory of a function.
    pub(crate) fn function(address: PciAddress) -> String {
        format!("sys/bus/pci/devices/{address}")
    }

    /// The driver that has a function.
    pub(crate) fn driver(&self, address: PciAddress) -> Option<String> {
        self.link_name(&format!("{}/driver", Self::function(address)))
    }

    /// The IOMMU group of a function, if it has one.
    pub(crate) fn group(&self, address: PciAddress) -> Option<Group> {
        let link = format!("{}/iommu_group", Self::function(address));
        let number = self.link_name(&link)?;
        let is_noiommu = self.read(&format!("{link}/name")).is_some_and(|name| name == "vfio-noiommu");
        Some(Group { number, is_noiommu })
    }

    /// The file of a function that is driven by VFIO, below `dev/vfio/devices` (Linux 6.6).
    pub(crate) fn cdev(&self, address: PciAddress) -> Option<String> {
        let names = self.names(&format!("{}/vfio-dev", Self::function(address)));
        names.into_iter().find(|name| name.starts_with("vfio")).map(|name| format!("dev/vfio/devices/{name}"))
    }

    /// Groups behind a real IOMMU.
    pub(crate) fn iommu_groups(&self) -> usize {
        let dir = "sys/kernel/iommu_groups";
        let is_real =
            |group: &String| self.read(&format!("{dir}/{group}/name")).is_none_or(|name| name != "vfio-noiommu");
        self.names(dir).iter().filter(|group| is_real(group)).count()
    }

    /// Bus addresses that belong to some function's BARs.
    pub(crate) fn bar_windows(&self) -> Vec<Window> {
        let functions = self.names("sys/bus/pci/devices");
        functions.iter().flat_map(|name| self.resources(name)).flatten().map(|resource| resource.window).collect()
    }

    /// The resources of a function in order, the six BARs first; `None` for one that it does not have.
    fn resources(&self, name: &str) -> Vec<Option<Resource>> {
        // `IORESOURCE_MEM` and `IORESOURCE_PREFETCH` of Linux `include/linux/ioport.h`.
        const MEMORY: u64 = 0x200;
        const PREFETCH: u64 = 0x2000;
        let text = self.read(&format!("sys/bus/pci/devices/{name}/resource")).unwrap_or_default();
        let window = |line: &str| {
            let mut numbers = line.split_whitespace().map(|n| u64::from_str_radix(n.trim_start_matches("0x"), 16).ok());
            let (first, last, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
            let is_prefetchable = flags & PREFETCH != 0;
            (flags & MEMORY != 0 && first < last)
                .then_some(Resource { window: Window { first, last }, is_prefetchable })
        };
        text.lines().map(window).collect()
    }

    /// Where BAR `bar` of a function lies on the bus.
    pub(crate) fn bar_address(&self, address: PciAddress, bar: u32) -> Option<u64> {
        self.bar(address, bar).map(|resource| resource.window.first)
    }

    fn bar(&self, address: PciAddress, bar: u32) -> Option<Resource> {
        self.resources(&address.to_string()).get(sw_mem::index(bar.into())).copied().flatten()
    }

    /// The BARs of a function that can be taken for memory: number and bytes.
    pub(crate) fn memory_bars(&self, address: PciAddress) -> Vec<(u8, u64)> {
        let bars = (0..6u8).zip(self.resources(&address.to_string()));
        let memory =
            bars.filter_map(|(number, resource)| Some((number, resource.filter(|it| it.is_prefetchable)?.window)));
        memory.map(|(number, window)| (number, (window.last - window.first).saturating_add(1))).collect()
    }

    /// What BAR `bar` (0 to 5) of a function is.
    pub(crate) fn bar_kind(&self, address: PciAddress, bar: u32) -> BarKind {
        match self.bar(address, bar) {
            None => BarKind::None,
            Some(Resource { is_prefetchable: false, .. }) => BarKind::Registers,
            Some(Resource { is_prefetchable: true, .. }) => BarKind::Prefetchable,
        }
    }

    /// Gives a file of VFIO that is about to appear a moment: the driver's name stands at the function before the driver has
    /// made it, and the rules of udev come after that. Returns at once unless vfio-pci has the function.
    #[expect(clippy::disallowed_methods, reason = "control plane; sysfs has nothing to wait on")]
    pub(crate) fn await_file(&self, address: PciAddress, file: impl Fn() -> Option<String>) {
        for _ in 0..FILE_LOOKS {
            let there = file().is_some_and(|file| self.exists(&file));
            if there || self.driver(address).as_deref() != Some(crate::bind::VFIO_PCI) {
                return;
            }
            std::thread::sleep(FILE_LOOK_EVERY);
        }
    }

    /// An error unless the function is there.
    pub(crate) fn expect_function(&self, address: PciAddress) -> Result<(), Error> {
        if self.exists(&Self::function(address)) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NoDevice, Verb::Open)
            .at(address.to_string())
            .detail("there is no PCI function with this address")
            .remedy("straightway nvme list shows the ones there are"))
    }
}
