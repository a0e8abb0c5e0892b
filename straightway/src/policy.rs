//! Policies and destinations as people write them.

use std::{
    fmt,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use sw_engine::{Error, ErrorKind, Landing, PciAddress, Policy, RouteMatch, Verb};
use sw_mem::{DeviceId, DmaRegion, Place, RegionId};

/// Where bytes shall land.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Destination {
    /// Memory of this process.
    #[default]
    Host,
    /// Memory of GPU n, counted as the driver counts.
    Gpu(u16),
    /// Memory behind a BAR of a PCIe function that is bound to vfio-pci.
    Bar(PciBar),
    /// Memory that a PCI device gives out through its kernel driver for peer-to-peer DMA (`p2pmem` in sysfs). Written
    /// `p2pmem:0000:3b:00.0`. It has addresses of this process; whether a drive reaches it in place depends on both.
    PeerMemory(PciAddress),
}

/// A BAR of a PCIe function. Written `bar:0000:02:00.0/2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PciBar {
    /// The function's place.
    pub address: PciAddress,
    /// Which of its BARs, 0 to 5.
    pub bar: u8,
}

/// The BARs that this process opened, by their place among the devices: few, and never forgotten, so that a device stands
/// for the same BAR as long as the process lives.
static BARS: Mutex<Vec<PciBar>> = Mutex::new(Vec::new());

/// Different BARs that one process can open.
pub(crate) const BARS_MAX: usize = 64;

/// Stands for a BAR that was not opened, in plans: it is no device that has memory.
const UNOPENED: DeviceId = DeviceId(u16::MAX);

impl PciBar {
    fn parse(text: &str) -> Option<Self> {
        let (address, bar) = text.split_once('/')?;
        let bar = bar.parse().ok().filter(|bar| *bar < 6)?;
        Some(Self { address: address.parse().ok()?, bar })
    }

    /// Its place among the BARs that were opened.
    pub(crate) fn known(self) -> Option<u16> {
        let bars = BARS.lock().unwrap_or_else(PoisonError::into_inner);
        u16::try_from(bars.iter().position(|known| *known == self)?).ok()
    }

    /// Takes a place for it, for who opens it; `None` if there are too many.
    pub(crate) fn index(self) -> Option<u16> {
        let mut bars = BARS.lock().unwrap_or_else(PoisonError::into_inner);
        let at = bars.iter().position(|known| *known == self);
        if at.is_none() && bars.len() == BARS_MAX {
            return None;
        }
        let at = at.unwrap_or_else(|| {
            bars.push(self);
            bars.len() - 1
        });
        u16::try_from(at).ok()
    }

    fn named(index: u16) -> Option<Self> {
        BARS.lock().unwrap_or_else(PoisonError::into_inner).get(usize::from(index)).copied()
    }
}

impl Destination {
    /// The device whose memory it is; `None` for what has addresses of this process. A BAR that was not opened has no memory
    /// yet: one device stands for all of those.
    pub(crate) fn device(self) -> Option<DeviceId> {
        match self {
            Destination::Host | Destination::PeerMemory(_) => None,
            Destination::Gpu(ordinal) => Some(DeviceId(ordinal)),
            Destination::Bar(bar) => Some(bar.known().map_or(UNOPENED, |index| DeviceId(DeviceId::PEER_FIRST + index))),
        }
    }

    /// Where memory is.
    pub(crate) fn of(region: &DmaRegion) -> Self {
        Self::at(region.base(), region.id())
    }

    /// Memory of a device that is no BAR is a GPU's.
    fn at(place: Place, region: RegionId) -> Self {
        let Place::Device(DeviceId(device), _) = place else {
            return sw_uring::peer::provider_of(region).map_or(Destination::Host, Destination::PeerMemory);
        };
        let bar = device.checked_sub(DeviceId::PEER_FIRST).and_then(PciBar::named);
        bar.map_or(Destination::Gpu(device), Destination::Bar)
    }
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let gpu = || text.strip_prefix("gpu").and_then(|ordinal| ordinal.parse().ok()).map(Destination::Gpu);
        let bar = || text.strip_prefix("bar:").and_then(PciBar::parse).map(Destination::Bar);
        let peer = || text.strip_prefix("p2pmem:").and_then(|at| at.parse().ok()).map(Destination::PeerMemory);
        let host = || (text == "host").then_some(Destination::Host);
        host().or_else(gpu).or_else(bar).or_else(peer).ok_or_else(|| {
            Error::new(ErrorKind::ApiMisuse, Verb::Plan)
                .detail(format!("{text:?} is no destination"))
                .remedy("write host, gpu0, gpu1, …, bar:PCI-ADDRESS/N or p2pmem:PCI-ADDRESS, as in bar:0000:02:00.0/2")
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Host => f.write_str("host"),
            Destination::Gpu(ordinal) => write!(f, "gpu{ordinal}"),
            Destination::Bar(bar) => write!(f, "bar:{}/{}", bar.address, bar.bar),
            Destination::PeerMemory(provider) => write!(f, "p2pmem:{provider}"),
        }
    }
}

/// Parses `any`, `prefer=ROUTE`, `require=ROUTE` or `require-core=ROUTE`, where ROUTE is a landing (`dma`, `kernel-copy`,
/// `staged`), a transport (`io_uring`, `preadv2`, `nvme`, `nvme-passthrough`, `cufile`), or both with a slash (`io_uring/dma`).
///
/// `require` means every byte; `require-core` lets the ragged ends of an operation bounce: at most two blocks, of
/// long reads of 4 KiB at least.
///
/// # Errors
/// `ApiMisuse` with what may be written.
pub fn parse_policy(text: &str) -> Result<Policy, Error> {
    let wrong = || {
        Error::new(ErrorKind::ApiMisuse, Verb::Plan)
            .detail(format!("{text:?} is no policy"))
            .remedy("write any, prefer=ROUTE, require=ROUTE or require-core=ROUTE, with a route such as dma, staged or io_uring/dma")
    };
    match text.split_once('=') {
        None if text == "any" => Ok(Policy::Any),
        Some(("prefer", route)) => route_match(route).map(Policy::Prefer).ok_or_else(wrong),
        Some(("require", route)) => route_match(route).map(Policy::Require).ok_or_else(wrong),
        Some(("require-core", route)) => route_match(route).map(Policy::RequireCore).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

fn route_match(text: &str) -> Option<RouteMatch> {
    let landing =
        |name: &str| [Landing::Dma, Landing::KernelCopy, Landing::Staged].into_iter().find(|l| l.name() == name);
    let transport = |name: &str| crate::backends::TRANSPORTS.into_iter().find(|known| *known == name);
    match text.split_once('/') {
        Some((first, second)) => {
            Some(RouteMatch { transport: Some(transport(first)?), landing: Some(landing(second)?) })
        }
        None => match landing(text) {
            Some(landing) => Some(RouteMatch { transport: None, landing: Some(landing) }),
            None => Some(RouteMatch { transport: Some(transport(text)?), landing: None }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_written_as_documented() {
        let dma = RouteMatch { transport: None, landing: Some(Landing::Dma) };
        assert_eq!(parse_policy("any").unwrap(), Policy::Any);
        assert_eq!(parse_policy("require=dma").unwrap(), Policy::Require(dma));
        assert_eq!(parse_policy("require-core=dma").unwrap(), Policy::RequireCore(dma));
        let both = RouteMatch { transport: Some("io_uring"), ..dma };
        assert_eq!(parse_policy("prefer=io_uring/dma").unwrap(), Policy::Prefer(both));
        for wrong in ["", "require", "require=", "require=fast", "any=dma", "prefer=io_uring/", "require=dma/io_uring"]
        {
            assert_eq!(parse_policy(wrong).unwrap_err().kind(), ErrorKind::ApiMisuse, "{wrong:?}");
        }
    }

    #[test]
    fn a_bar_that_is_only_planned_for_takes_no_place() {
        let bar = |domain| PciBar { address: PciAddress { domain, bus: 9, device: 0, function: 0 }, bar: 0 };
        for domain in 0..2 * u32::try_from(BARS_MAX).unwrap() {
            assert_eq!((Destination::Bar(bar(domain)).device(), bar(domain).known()), (Some(UNOPENED), None));
        }
        let index = bar(1).index();
        assert!(index.is_some() && bar(1).known() == index);
        let device = DeviceId(DeviceId::PEER_FIRST + index.unwrap());
        assert_eq!(Destination::Bar(bar(1)).device(), Some(device));
    }

    #[test]
    fn destinations_are_host_a_gpu_a_bar_or_peer_memory() {
        assert_eq!("gpu12".parse::<Destination>().unwrap(), Destination::Gpu(12));
        assert_eq!(Destination::Gpu(3).to_string().parse::<Destination>().unwrap(), Destination::Gpu(3));
        let bar: Destination = "bar:2:00.0/2".parse().unwrap();
        assert_eq!(bar.to_string(), "bar:0000:02:00.0/2");
        let Destination::Bar(pci) = bar else { panic!("{bar}") };
        let device = DeviceId(DeviceId::PEER_FIRST + pci.index().unwrap());
        let at = |device| Destination::at(Place::Device(device, sw_mem::GpuVa::new(4096)), RegionId(1));
        assert_eq!(at(device), bar);
        assert_eq!(at(DeviceId(7)), Destination::Gpu(7));
        let peer: Destination = "p2pmem:3b:00.0".parse().unwrap();
        assert_eq!((peer.to_string().as_str(), peer.device()), ("p2pmem:0000:3b:00.0", None));
        assert_eq!(peer.to_string().parse::<Destination>().unwrap(), peer);
        let host = sw_mem::Buffer::allocate(sw_mem::ByteLen(1)).unwrap();
        assert_eq!(Destination::of(host.region()), Destination::Host);
        let gpus = ["", "gpu", "gpu-1", "gpu99999", "cpu"];
        let pci = ["bar:", "bar:02:00.0", "bar:02:00.0/6", "bar:02:00.9/0", "p2pmem:", "p2pmem", "p2pmem:3b:00.0/0"];
        for wrong in gpus.iter().chain(&pci) {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong:?}");
        }
    }
}
