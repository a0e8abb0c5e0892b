//! What `cargo xtask vm GROUP` boots: one row, one guest. Add checks to a suite rather than rows here: a boot costs
//! seconds, a check milliseconds.

use super::guest::Extra;
use super::kernels::Kernel;
use super::machine::{Device, Iommu};

/// One guest.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// For `--boot`, and the record's name.
    pub name: &'static str,
    /// The group it belongs to.
    pub group: &'static str,
    /// What it shows, in one line.
    pub why: &'static str,
    /// Suites of `straightway-guest`, in order.
    pub suites: &'static [&'static str],
    pub kernel: Kernel,
    pub devices: &'static [Device],
    /// Programs beside the tests.
    pub extras: &'static [Extra],
    pub iommu: Iommu,
    /// Words for the kernel's command line.
    pub append: &'static str,
    pub memory_mib: u32,
    /// Fewer passed tests than this fail the row: a suite that was renamed must not look like success.
    pub tests_min: usize,
    /// Wall time of the whole row in seconds, second phase included. Several times what it takes on two loaded cores.
    pub limit_s: u64,
}

/// Every guest.
pub const BOOTS: &[Boot] = &[
    Boot {
        name: "nvme",
        group: "nvme",
        why: "the bed itself and the driver by VFIO type 1, on the kernel that machines run",
        suites: &["bed", "passthrough", "passthrough-load", "engine", "vfio", "vfio-transport"],
        kernel: Kernel::Stock,
        devices: &[Device::NvmeA, Device::NvmeB, Device::NvmeFaulty, Device::Peer],
        extras: &[],
        iommu: Iommu::On,
        append: "",
        memory_mib: 768,
        tests_min: 39,
        limit_s: 480,
    },
    Boot {
        name: "driver",
        group: "nvme",
        why: "our driver byte for byte and under load: corners of memory, queues, resets",
        suites: &["driver-io", "driver-load"],
        kernel: Kernel::Stock,
        devices: &[Device::NvmeA, Device::NvmeB, Device::NvmeFaulty, Device::NvmeMany, Device::Peer],
        extras: &[],
        iommu: Iommu::On,
        append: "",
        memory_mib: 768,
        tests_min: 11,
        limit_s: 300,
    },
    Boot {
        name: "power",
        group: "nvme",
        why: "a power cut during writes, and what is left of them",
        suites: &["power"],
        kernel: Kernel::Stock,
        devices: &[Device::NvmeLog],
        extras: &[],
        iommu: Iommu::On,
        append: "",
        memory_mib: 512,
        tests_min: 1,
        limit_s: 180,
    },
    Boot {
        name: "power-driver",
        group: "nvme",
        why: "a power cut during our driver's writes: nothing acknowledged is lost, no block torn",
        suites: &["power-driver"],
        kernel: Kernel::Stock,
        devices: &[Device::NvmeLog],
        extras: &[Extra::Straightway],
        iommu: Iommu::On,
        append: "",
        memory_mib: 768,
        tests_min: 1,
        limit_s: 180,
    },
    Boot {
        name: "p2p",
        group: "nvme",
        why: "the kernel's peer-to-peer pages: the direct route, and its refusal across root ports",
        suites: &["peer-pages", "peer-dma", "peer-command"],
        kernel: Kernel::Backports,
        devices: &[Device::NvmeA, Device::NvmeCmb, Device::NvmeNear],
        extras: &[Extra::Straightway],
        iommu: Iommu::Off,
        append: "",
        memory_mib: 768,
        tests_min: 17,
        limit_s: 180,
    },
    Boot {
        name: "direct",
        group: "nvme",
        why: "both direct routes through the kernel's driver, with queues that are polled",
        suites: &["passthrough", "passthrough-load", "peer-dma", "peer-command"],
        kernel: Kernel::Own,
        devices: &[Device::NvmeA, Device::NvmeB, Device::NvmeFaulty, Device::NvmeCmb, Device::NvmeNear],
        extras: &[Extra::Straightway],
        iommu: Iommu::Off,
        append: "nvme.poll_queues=1",
        memory_mib: 768,
        tests_min: 32,
        limit_s: 180,
    },
    Boot {
        name: "iommufd",
        group: "nvme",
        why: "the driver by iommufd and device nodes",
        suites: &["bed", "ways", "engine", "vfio"],
        kernel: Kernel::Own,
        devices: &[Device::NvmeA, Device::NvmeB, Device::NvmeFaulty, Device::Peer],
        extras: &[],
        iommu: Iommu::On,
        append: "",
        memory_mib: 768,
        tests_min: 27,
        limit_s: 300,
    },
    Boot {
        name: "noiommu",
        group: "nvme",
        why: "the driver without an IOMMU, asked for by name",
        suites: &["ways", "engine", "vfio"],
        kernel: Kernel::Own,
        devices: &[Device::NvmeA, Device::NvmeB, Device::Peer],
        extras: &[],
        iommu: Iommu::Off,
        append: "vfio.enable_unsafe_noiommu_mode=1",
        memory_mib: 768,
        tests_min: 17,
        limit_s: 240,
    },
    Boot {
        name: "hwtest",
        group: "nvme",
        why: "straightway hwtest on the guest's controllers: the gate, the giving back, the record",
        suites: &["hwtest"],
        kernel: Kernel::Stock,
        devices: &[Device::NvmeA, Device::NvmeB, Device::Peer],
        extras: &[Extra::Straightway],
        iommu: Iommu::On,
        append: "",
        memory_mib: 768,
        tests_min: 5,
        limit_s: 300,
    },
    Boot {
        name: "speed",
        group: "nvme",
        why: "rates beside the kernel's driver and fio in one run; the command's view of the machine",
        suites: &["speed", "command"],
        kernel: Kernel::Stock,
        devices: &[Device::NvmeA, Device::NvmeB, Device::Peer],
        extras: &[Extra::Fio, Extra::Straightway],
        iommu: Iommu::On,
        append: "",
        memory_mib: 1024,
        tests_min: 10,
        limit_s: 300,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_reasons_short() {
        for (index, boot) in BOOTS.iter().enumerate() {
            assert!(BOOTS.iter().skip(index + 1).all(|other| other.name != boot.name), "{}", boot.name);
            assert!(!boot.why.is_empty() && boot.why.len() <= 90, "{}", boot.name);
            assert!(!boot.suites.is_empty() && boot.tests_min > 0 && boot.limit_s > 0, "{}", boot.name);
        }
    }

    #[test]
    fn the_page_has_every_row_and_its_records_passed() {
        let page = include_str!("../../../docs/hardware.md");
        for boot in BOOTS {
            let start = format!("| `{}` |", boot.name);
            let line = page.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{}", boot.name));
            let cells: Vec<&str> = line.split(" | ").collect();
            let mut told: Vec<&str> = cells[3].split(", ").map(|name| name.trim_matches('`')).collect();
            let mut suites = boot.suites.to_vec();
            suites.sort_unstable();
            told.sort_unstable();
            assert_eq!(told, suites, "suites of {}", boot.name);
            let record = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join(format!("../hwtests/records/vm-{}.json", boot.name));
            if let Ok(text) = std::fs::read_to_string(record) {
                let record: serde_json::Value = serde_json::from_str(&text).unwrap();
                let verdict = record["verdict"].as_str().unwrap();
                assert!(cells[5].contains(verdict), "{}: the page says {}, the record {verdict}", boot.name, cells[5]);
            }
        }
    }
}
