//! What one device can do, asked one by one, for `straightway doctor`.
//!
//! A finding is a value or a gap with a reason: nothing here fails as a whole, and nothing is guessed from the name.

use std::fmt;
use std::path::Path;

use sw_engine::ErrorKind;
use sw_mem::{ByteLen, GpuVa};

use crate::attribute::Attribute;
use crate::buffer::DeviceBuffer;
use crate::context::Context;
use crate::device::{ComputeCapability, Device, PciAddress, Uuid};
use crate::dmabuf::DmaBuf;
use crate::error::CudaError;

/// Where the kernel lists PCI devices.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";
/// What the export probe allocates: one large page of the device, in bytes.
const EXPORT_BYTES: u64 = 2 << 20;
/// Memory aperture through which the bus reaches device memory: BAR1 on this maker's devices
/// (`/sys/bus/pci/devices/ADDRESS/resource`, second line).
const BAR1_LINE: usize = 1;

/// Why something is not known or not there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gap {
    /// The driver failed to answer.
    Driver(CudaError),
    /// The device says that it cannot.
    NotSupported,
    /// The kernel does not show it at this path.
    NotInSysfs {
        /// The path.
        path: String,
        /// The error number, 0 for a text that cannot be read.
        errno: i32,
    },
    /// Not asked, because it would have needed this first.
    Needs(&'static str),
}

impl Gap {
    /// What to do about it; empty if nothing is known.
    pub fn remedy(&self) -> &str {
        match self {
            Self::Driver(error) => error.remedy,
            Self::NotInSysfs { .. } => "mount sysfs in the container, or run on the host",
            Self::NotSupported | Self::Needs(_) => "",
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(error) => write!(f, "{error}"),
            Self::NotSupported => f.write_str("the device says no"),
            Self::NotInSysfs { path, errno } => write!(f, "{path} cannot be read (errno {errno})"),
            Self::Needs(what) => write!(f, "not asked: needs {what}"),
        }
    }
}

/// A value, or why there is none.
pub type Finding<T> = Result<T, Gap>;

/// The link to one other device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerReport {
    /// Its ordinal.
    pub peer: u16,
    /// Whether this device can reach its memory by itself.
    pub access: Finding<bool>,
    /// Relative quality of the link, 0 the best of the machine.
    pub rank: Finding<i32>,
}

/// What one device can do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeviceReport {
    /// Ordinal.
    pub ordinal: u16,
    /// The maker's name.
    pub name: Finding<String>,
    /// Identity of the physical device.
    pub uuid: Finding<Uuid>,
    /// Address on the bus.
    pub pci: Finding<PciAddress>,
    /// Compute capability.
    pub compute: Finding<ComputeCapability>,
    /// Device memory in bytes.
    pub memory_bytes: Finding<u64>,
    /// Aperture of the bus into device memory, in bytes. As large as the memory: everything can be reached at once.
    pub bar1_bytes: Finding<u64>,
    /// NUMA node of the host that the device hangs on; -1 where the kernel does not know.
    pub numa_node: Finding<i32>,
    /// Copy engines that run beside kernels.
    pub copy_engines: Finding<i32>,
    /// The device says that memory can be exported as dma-buf.
    pub dmabuf_attribute: Finding<bool>,
    /// A real export of 2 MiB worked. A different fact from the one above.
    pub dmabuf_export: Finding<()>,
    /// Memory can be given to third-party devices.
    pub gpudirect_rdma: Finding<bool>,
    /// How inbound writes are flushed, a bit set: 1 by a call of the host, 2 by a stream operation.
    pub gpudirect_flush: Finding<i32>,
    /// Who sees inbound writes in order: 0 nobody, 100 the owner, 200 all devices.
    pub gpudirect_ordering: Finding<i32>,
    /// The device reads pageable host memory.
    pub pageable_access: Finding<bool>,
    /// It does so through the host's page tables: a coherent link (C2C).
    pub coherent_link: Finding<bool>,
    /// The host reads managed memory on the device without moving it.
    pub managed_from_host: Finding<bool>,
    /// The link carries native atomics.
    pub host_native_atomics: Finding<bool>,
    /// Links to the other devices.
    pub peers: Vec<PeerReport>,
}

impl DeviceReport {
    /// Asks everything. With `context` also what needs device memory; without it those findings say so.
    ///
    /// *Blocking*: a few driver calls each; with a context one allocation of 2 MiB.
    pub fn gather(device: &Device, context: Option<&Context>) -> Self {
        let number = |attribute| device.attribute(attribute).map_err(Gap::Driver);
        let yes = |attribute| number(attribute).map(|value| value != 0);
        let pci = device.pci_address().map_err(Gap::Driver);
        let sysfs = |read: fn(&Path, &PciAddress) -> Finding<u64>| match &pci {
            Ok(pci) => read(Path::new(PCI_DEVICES), pci),
            Err(_) => Err(Gap::Needs("an address on the PCI bus")),
        };
        Self {
            ordinal: device.ordinal(),
            name: device.name().map_err(Gap::Driver),
            uuid: device.uuid().map_err(Gap::Driver),
            compute: device.compute_capability().map_err(Gap::Driver),
            memory_bytes: device.memory_bytes().map_err(Gap::Driver),
            bar1_bytes: sysfs(bar1_bytes),
            numa_node: match &pci {
                Ok(pci) => numa_node(Path::new(PCI_DEVICES), pci),
                Err(_) => Err(Gap::Needs("an address on the PCI bus")),
            },
            copy_engines: number(Attribute::CopyEngines),
            dmabuf_attribute: yes(Attribute::DmaBuf),
            dmabuf_export: match context {
                Some(context) => try_export(context),
                None => Err(Gap::Needs("a context")),
            },
            gpudirect_rdma: yes(Attribute::GpuDirectRdma),
            gpudirect_flush: number(Attribute::GpuDirectFlush),
            gpudirect_ordering: number(Attribute::GpuDirectOrdering),
            pageable_access: yes(Attribute::PageableAccess),
            coherent_link: yes(Attribute::PageableThroughHostTables),
            managed_from_host: yes(Attribute::ManagedFromHost),
            host_native_atomics: yes(Attribute::HostNativeAtomics),
            peers: peers_of(device),
            pci,
        }
    }

    /// Every finding as a stable name and a line of text, for the tool's table; gaps with their reason.
    pub fn lines(&self) -> Vec<(&'static str, Result<String, Gap>)> {
        fn line<T: fmt::Display>(finding: &Finding<T>) -> Result<String, Gap> {
            finding.as_ref().map(ToString::to_string).map_err(Clone::clone)
        }
        let mut lines = vec![
            ("name", line(&self.name)),
            ("uuid", line(&self.uuid)),
            ("pci", line(&self.pci)),
            ("compute_capability", line(&self.compute)),
            ("memory", line(&self.memory_bytes.clone().map(ByteLen))),
            ("bar1", line(&self.bar1_bytes.clone().map(ByteLen))),
            ("numa_node", line(&self.numa_node)),
            ("copy_engines", line(&self.copy_engines)),
            ("dmabuf_attribute", line(&self.dmabuf_attribute)),
            ("dmabuf_export", self.dmabuf_export.clone().map(|()| "works".to_owned())),
            ("gpudirect_rdma", line(&self.gpudirect_rdma)),
            ("gpudirect_flush", line(&self.gpudirect_flush)),
            ("gpudirect_ordering", line(&self.gpudirect_ordering)),
            ("pageable_access", line(&self.pageable_access)),
            ("coherent_link", line(&self.coherent_link)),
            ("managed_from_host", line(&self.managed_from_host)),
            ("host_native_atomics", line(&self.host_native_atomics)),
        ];
        for peer in &self.peers {
            let text = match (&peer.access, &peer.rank) {
                (Ok(access), Ok(rank)) => Ok(format!("gpu{}: access {access}, rank {rank}", peer.peer)),
                (Err(gap), _) | (_, Err(gap)) => Err(gap.clone()),
            };
            lines.push(("p2p", text));
        }
        lines
    }
}

fn peers_of(device: &Device) -> Vec<PeerReport> {
    let driver = device.driver();
    let others = (0..driver.device_count()).filter(|ordinal| *ordinal != device.ordinal());
    others
        .map(|ordinal| match driver.device(ordinal) {
            Ok(peer) => PeerReport {
                peer: ordinal,
                access: device.can_access(&peer).map_err(Gap::Driver),
                rank: device.link_rank(&peer).map_err(Gap::Driver),
            },
            Err(error) => {
                PeerReport { peer: ordinal, access: Err(Gap::Driver(error.clone())), rank: Err(Gap::Driver(error)) }
            }
        })
        .collect()
}

/// Allocates, exports, closes. The attribute alone is no proof: drivers have said yes and failed (closed kernel module).
fn try_export(context: &Context) -> Finding<()> {
    if context.device().attribute(Attribute::DmaBuf).is_ok_and(|value| value == 0) {
        return Err(Gap::NotSupported);
    }
    let buffer = DeviceBuffer::allocate(context, ByteLen(EXPORT_BYTES)).map_err(Gap::Driver)?;
    let exported = DmaBuf::export(context, GpuVa::new(buffer.base().raw()), buffer.len());
    exported.map(drop).map_err(|error| {
        if error.kind == ErrorKind::Unsupported && error.code != 0 { Gap::NotSupported } else { Gap::Driver(error) }
    })
}

/// Size of BAR1 from the kernel's list: a line is "first last flags", all hexadecimal.
fn bar1_bytes(root: &Path, pci: &PciAddress) -> Finding<u64> {
    let (path, text) = read(root, pci, "resource")?;
    let unreadable = Gap::NotInSysfs { path, errno: 0 };
    let mut words = text.lines().nth(BAR1_LINE).unwrap_or("").split_whitespace();
    let mut word = || {
        let word = words.next()?.strip_prefix("0x")?;
        u64::from_str_radix(word, 16).ok()
    };
    match (word(), word()) {
        (Some(0), Some(0)) => Err(Gap::NotSupported),
        (Some(first), Some(last)) if last > first => Ok(last - first + 1),
        _ => Err(unreadable),
    }
}

fn numa_node(root: &Path, pci: &PciAddress) -> Finding<i32> {
    let (path, text) = read(root, pci, "numa_node")?;
    text.trim().parse().map_err(|_| Gap::NotInSysfs { path, errno: 0 })
}

fn read(root: &Path, pci: &PciAddress, file: &str) -> Finding<(String, String)> {
    let path = root.join(&pci.0).join(file);
    let shown = path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok((shown, text)),
        Err(error) => Err(Gap::NotInSysfs { path: shown, errno: error.raw_os_error().unwrap_or(0) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_resource(name: &str, text: &str) -> Finding<u64> {
        let root = std::env::temp_dir().join(format!("sw-cuda-sysfs-{}-{name}", std::process::id()));
        let pci = PciAddress("0000:3b:00.0".to_owned());
        std::fs::create_dir_all(root.join(&pci.0)).unwrap();
        std::fs::write(root.join(&pci.0).join("resource"), text).unwrap();
        let found = bar1_bytes(&root, &pci);
        std::fs::remove_dir_all(&root).unwrap();
        found
    }

    #[test]
    fn bar1_is_the_second_line_of_the_kernels_list() {
        let text = "0x00000000de000000 0x00000000deffffff 0x0000000000040200\n\
                    0x0000038000000000 0x0000039fffffffff 0x000000000014220c\n";
        assert_eq!(with_resource("whole", text), Ok(128 << 30));
        assert_eq!(with_resource("absent", "0x0 0x1 0x0\n0x0 0x0 0x0\n"), Err(Gap::NotSupported));
        assert!(matches!(with_resource("short", "0x0 0x1 0x0\n"), Err(Gap::NotInSysfs { errno: 0, .. })));
    }

    #[test]
    fn a_device_that_sysfs_does_not_show_is_a_gap_with_its_errno() {
        let found = bar1_bytes(Path::new("/nonexistent"), &PciAddress("0000:00:00.0".to_owned()));
        assert!(matches!(found, Err(Gap::NotInSysfs { errno: 2, .. })), "{found:?}");
    }
}
