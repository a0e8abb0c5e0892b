//! The emulated machine: a q35 board with an IOMMU and devices behind root ports of their own.
//!
//! ```text
//! 00:02.0 root port ── nvme-a       two namespaces: 1 of 512-byte blocks, 2 of 4096-byte blocks
//! 00:03.0 root port ── nvme-b       small MDTS; may be removed and put back while it works
//! 00:05.0 root port ── nvme-faulty  reads and writes of certain sectors fail
//! 00:06.0 root port ── peer         a memory BAR of 64 MiB: stands for a GPU
//! 00:07.0 root port ── switch ─┬─ nvme-cmb    64 MiB of controller memory
//!                              └─ nvme-near   under the same switch
//! 00:08.0 root port ── nvme-log     its writes are logged in order, with flushes: what a power cut may leave
//! 00:09.0 root port ── nvme-many    namespaces of several sizes, with gaps between their numbers; large MDTS
//! 00:0a.0 root port ── wire         a network card; the other end of its wire is a second guest, which serves (`init.sh`)
//! ```
//!
//! A device behind its own root port is alone in its IOMMU group. Everything is a JSON value in QEMU's own words, so
//! that a device that was removed is added again as it was.

use std::path::Path;

use serde_json::{Value, json};

use super::packages::{self, at};
use crate::Stop;

/// A device of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    NvmeA,
    NvmeB,
    NvmeFaulty,
    Peer,
    NvmeCmb,
    NvmeNear,
    NvmeLog,
    NvmeMany,
    Wire,
}

/// What the network card of [`Device::Wire`] is joined to, in QEMU.
const WIRE_END: &str = "wire-end";
/// Bytes of most disks and of the peer's BAR.
pub const DISK_BYTES: u64 = 64 << 20;
/// Bytes of a disk, by its node name. Those of `nvme-many` differ, and one is no multiple of a page.
fn disk_bytes(disk: &str) -> u64 {
    match disk {
        "disk-many1" => 16 << 20,
        "disk-many3" | "disk-many9" | "disk-many11" => 8 << 20,
        "disk-many7" => (24 << 20) + 512,
        _ => DISK_BYTES,
    }
}

/// Sector (of 512 bytes) of `nvme-faulty` whose reads fail; the guest learns it by the kernel command line.
pub const BAD_READ_SECTOR: u64 = 2048;
/// Sector whose writes fail.
pub const BAD_WRITE_SECTOR: u64 = 4096;
/// errno of an injected error, EIO.
const EIO: u32 = 5;

impl Device {
    pub const ALL: [Device; 9] = [
        Device::NvmeA,
        Device::NvmeB,
        Device::NvmeFaulty,
        Device::Peer,
        Device::NvmeCmb,
        Device::NvmeNear,
        Device::NvmeLog,
        Device::NvmeMany,
        Device::Wire,
    ];

    /// The role by which tests ask for it, and its id in QEMU.
    pub fn name(self) -> &'static str {
        match self {
            Device::NvmeA => "nvme-a",
            Device::NvmeB => "nvme-b",
            Device::NvmeFaulty => "nvme-faulty",
            Device::Peer => "peer",
            Device::NvmeCmb => "nvme-cmb",
            Device::NvmeNear => "nvme-near",
            Device::NvmeLog => "nvme-log",
            Device::NvmeMany => "nvme-many",
            Device::Wire => "wire",
        }
    }

    pub fn named(name: &str) -> Option<Device> {
        Device::ALL.into_iter().find(|device| device.name() == name)
    }

    /// Device and function numbers of the ports above it, from the root down.
    fn ports(self) -> &'static str {
        match self {
            Device::NvmeA => "02.0",
            Device::NvmeB => "03.0",
            Device::NvmeFaulty => "05.0",
            Device::Peer => "06.0",
            Device::NvmeCmb => "07.0/00.0/00.0",
            Device::NvmeNear => "07.0/00.0/01.0",
            Device::NvmeLog => "08.0",
            Device::NvmeMany => "09.0",
            Device::Wire => "0a.0",
        }
    }

    /// Node names of its disks.
    fn disks(self) -> &'static [&'static str] {
        match self {
            Device::NvmeA => &["disk-a1", "disk-a2"],
            Device::NvmeB => &["disk-b1"],
            Device::NvmeFaulty => &["disk-faulty1"],
            Device::Peer | Device::Wire => &[],
            Device::NvmeCmb => &["disk-cmb1"],
            Device::NvmeNear => &["disk-near1"],
            Device::NvmeLog => &["disk-log1"],
            Device::NvmeMany => &["disk-many1", "disk-many3", "disk-many7", "disk-many9", "disk-many11"],
        }
    }

    /// Arguments of `-device` or `device_add`, one value for each part.
    pub fn parts(self) -> Vec<Value> {
        let id = self.name();
        let bus = format!("port-{id}");
        let nvme = |serial: &str| json!({"driver": "nvme", "id": id, "bus": bus, "serial": serial});
        let with = |mut device: Value, key: &str, value: Value| {
            device[key] = value;
            device
        };
        match self {
            Device::NvmeA => vec![
                with(nvme("sw-a"), "max_ioqpairs", json!(8)),
                json!({"driver": "nvme-ns", "drive": "disk-a1", "bus": id, "nsid": 1}),
                json!({"driver": "nvme-ns", "drive": "disk-a2", "bus": id, "nsid": 2,
                       "logical_block_size": 4096, "physical_block_size": 4096}),
            ],
            Device::NvmeB => vec![with(with(nvme("sw-b"), "mdts", json!(5)), "drive", json!("disk-b1"))],
            Device::NvmeFaulty => vec![with(nvme("sw-faulty"), "drive", json!("disk-faulty1"))],
            Device::Peer => vec![json!({"driver": "ivshmem-plain", "id": id, "bus": bus, "memdev": "peer-memory"})],
            Device::NvmeCmb => vec![with(with(nvme("sw-cmb"), "cmb_size_mb", json!(64)), "drive", json!("disk-cmb1"))],
            Device::NvmeNear => vec![with(nvme("sw-near"), "drive", json!("disk-near1"))],
            Device::NvmeLog => vec![with(nvme("sw-log"), "drive", json!("disk-log1"))],
            // Without the program that boots from the network, which would want a package of its own.
            Device::Wire => {
                vec![json!({"driver": "e1000e", "id": id, "bus": bus, "netdev": WIRE_END, "romfile": ""})]
            }
            Device::NvmeMany => {
                let namespace = |nsid: u32, block_bytes: u32| {
                    json!({"driver": "nvme-ns", "drive": format!("disk-many{nsid}"), "bus": id, "nsid": nsid,
                           "logical_block_size": block_bytes, "physical_block_size": block_bytes})
                };
                vec![
                    // 4 MiB in one command: lists that are chained.
                    with(with(nvme("sw-many"), "mdts", json!(10)), "max_ioqpairs", json!(4)),
                    namespace(1, 512),
                    namespace(3, 4096),
                    namespace(7, 512),
                    // Eight bytes of metadata a block that nobody protects: not to be used, and said to be so.
                    with(namespace(9, 512), "ms", json!(8)),
                    // Eight bytes of protection information, which the controller makes, checks and strips.
                    with(with(namespace(11, 512), "ms", json!(8)), "pi", json!(1)),
                ]
            }
        }
    }

    /// The block backend of one disk, files in `dir`.
    fn backend(self, disk: &str, dir: &Path) -> Value {
        // Flushes of a scratch image would cost time and prove nothing: the host's page cache outlives the guest.
        let file = json!({"driver": "file", "filename": dir.join(format!("{disk}.img")), "cache": {"no-flush": true}});
        let below = match self {
            Device::NvmeFaulty => json!({"driver": "blkdebug", "image": file, "inject-error": [
                {"event": "none", "iotype": "read", "errno": EIO, "sector": BAD_READ_SECTOR},
                {"event": "none", "iotype": "write", "errno": EIO, "sector": BAD_WRITE_SECTOR},
            ]}),
            Device::NvmeLog => json!({"driver": "blklogwrites", "file": file,
                "log": {"driver": "file", "filename": dir.join(format!("{disk}.log")), "cache": {"no-flush": true}}}),
            _ => file,
        };
        json!({"driver": "raw", "node-name": disk, "file": below})
    }
}

/// Whether DMA is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iommu {
    On,
    Off,
}

/// QEMU's arguments after its own, kernel and consoles excepted.
pub fn arguments(devices: &[Device], iommu: Iommu, dir: &Path) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut option = |name: &str, value: &Value| args.extend([name.to_string(), value.to_string()]);
    if iommu == Iommu::On {
        option("-device", &json!({"driver": "intel-iommu", "intremap": "on"}));
    }
    let mut switch = false;
    for device in devices {
        for disk in device.disks() {
            option("-blockdev", &device.backend(disk, dir));
        }
        let port = format!("port-{}", device.name());
        let numbers: Vec<&str> = device.ports().split('/').collect();
        match numbers.as_slice() {
            [top, _, below] => {
                if !switch {
                    option("-device", &root_port("port-switch", top));
                    option("-device", &json!({"driver": "x3130-upstream", "id": "switch", "bus": "port-switch"}));
                    switch = true;
                }
                option(
                    "-device",
                    &json!({"driver": "xio3130-downstream", "id": port, "bus": "switch",
                    "addr": below, "chassis": 100, "slot": slot(below)}),
                );
            }
            _ => option("-device", &root_port(&port, device.ports())),
        }
        if *device == Device::Peer {
            option(
                "-object",
                &json!({"qom-type": "memory-backend-file", "id": "peer-memory", "size": DISK_BYTES,
                "mem-path": dir.join("peer.bar"), "share": true}),
            );
        }
        for part in device.parts() {
            option("-device", &part);
        }
    }
    args
}

/// The wire between two guests, from one end: datagrams between two sockets, so that neither waits for the other to be there.
pub fn wire(ours: &Path, theirs: &Path) -> [String; 2] {
    let socket = |path: &Path| json!({"type": "unix", "path": path});
    let end = json!({"type": "dgram", "id": WIRE_END, "local": socket(ours), "remote": socket(theirs)});
    ["-netdev".to_string(), end.to_string()]
}

fn root_port(id: &str, number: &str) -> Value {
    json!({"driver": "pcie-root-port", "id": id, "addr": number, "chassis": slot(number), "slot": slot(number)})
}

/// The device number in `NN.F`, as the port's slot and chassis number: unique, since each port has its own.
fn slot(number: &str) -> u8 {
    number.split('.').next().and_then(|digits| u8::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// What the guest must know of the machine, for the kernel's command line.
pub fn facts_for_guest(devices: &[Device]) -> Vec<String> {
    let ports = devices.iter().map(|device| format!("sw.port.{}={}", device.name(), device.ports()));
    let faults = [format!("sw.bad_read={BAD_READ_SECTOR}"), format!("sw.bad_write={BAD_WRITE_SECTOR}")];
    ports.chain(faults).collect()
}

/// Makes the disks' files, empty and sparse.
pub fn make_disks(devices: &[Device], dir: &Path) -> Result<(), Stop> {
    for device in devices {
        let disks = device.disks().iter().map(|disk| (format!("{disk}.img"), disk_bytes(disk)));
        let bar = (*device == Device::Peer).then(|| ("peer.bar".to_string(), DISK_BYTES));
        for (file, len_bytes) in disks.chain(bar) {
            let path = dir.join(file);
            let made = std::fs::File::create(&path).and_then(|file| file.set_len(len_bytes));
            made.map_err(|error| at(&path, "cannot make", &error))?;
        }
        if *device == Device::NvmeLog {
            for disk in device.disks() {
                packages::write(&dir.join(format!("{disk}.log")), b"")?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ports_are_unique() {
        for (index, device) in Device::ALL.iter().enumerate() {
            assert_eq!(Device::named(device.name()), Some(*device));
            let others = || Device::ALL.iter().skip(index + 1);
            assert!(others().all(|other| other.ports() != device.ports() && other.name() != device.name()));
        }
    }

    #[test]
    fn a_switch_is_made_once() {
        let args = arguments(&[Device::NvmeCmb, Device::NvmeNear], Iommu::Off, Path::new("/run"));
        assert_eq!(args.iter().filter(|arg| arg.contains("x3130-upstream")).count(), 1);
        assert_eq!(args.iter().filter(|arg| arg.contains("xio3130-downstream")).count(), 2);
        assert!(!args.iter().any(|arg| arg.contains("intel-iommu")));
    }
}
