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
        // 43, and one less where the emulator does not put a removed device back.
        tests_min: 42,
        limit_s: 480,
    },
    Boot {
        name: "driver",
        group: "nvme",
        why: "our driver byte for byte and under load: corners of memory, queues, resets",
        suites: &["driver-io", "driver-load"],
        kernel: Kernel::Stock,
        devices: &[Device::NvmeA, Device::NvmeB, Device::NvmeFaulty, Device::NvmeMany, Device::NvmeCmb, Device::Peer],
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
        tests_min: 20,
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
        // 29, likewise.
        tests_min: 28,
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
        // One fewer than there are: QEMU does not always put a removed device back.
        tests_min: 15,
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
        tests_min: 6,
        limit_s: 480,
    },
    Boot {
        name: "fabrics",
        group: "fabrics",
        why: "our initiator over TCP against the kernel's target, in one guest",
        suites: &[
            "fabrics",
            "fabrics-namespaces",
            "fabrics-paths",
            "fabrics-life",
            "fabrics-discovery",
            "fabrics-host",
        ],
        kernel: Kernel::Stock,
        devices: &[],
        extras: &[],
        iommu: Iommu::Off,
        append: "",
        memory_mib: 512,
        tests_min: 38,
        limit_s: 720,
    },
    Boot {
        name: "pair",
        group: "fabrics",
        why: "copies between two guests, and a wire between them that is cut",
        suites: &["fabrics-pair"],
        kernel: Kernel::Stock,
        devices: &[Device::Wire],
        extras: &[Extra::Straightway],
        iommu: Iommu::Off,
        append: "",
        memory_mib: 512,
        tests_min: 3,
        limit_s: 180,
    },
    Boot {
        name: "fabrics-speed",
        group: "fabrics",
        why: "one target of the kernel's, read by its initiator and by ours in turns",
        suites: &["fabrics-speed"],
        kernel: Kernel::Stock,
        devices: &[],
        extras: &[Extra::Fio, Extra::Straightway],
        iommu: Iommu::Off,
        append: "",
        memory_mib: 1024,
        tests_min: 1,
        limit_s: 240,
    },
    Boot {
        name: "tls",
        group: "tls",
        why: "TLS over NVMe/TCP by the kernel, at our end and at both, and with its own target and host",
        suites: &["tls"],
        // tlshd 1.4 wants to bound records (TLS_TX_MAX_PAYLOAD_LEN), which 6.12 does not know, and gives up without.
        kernel: Kernel::Backports,
        devices: &[],
        extras: &[Extra::Dynamic],
        iommu: Iommu::Off,
        append: "",
        memory_mib: 768,
        tests_min: 4,
        limit_s: 600,
    },
    Boot {
        name: "rdma",
        group: "rdma",
        why: "NVMe over RDMA by libibverbs on the kernel's rxe: its target, its host, the seam's suite",
        suites: &["rdma"],
        kernel: Kernel::Stock,
        devices: &[],
        extras: &[Extra::Rdma],
        iommu: Iommu::Off,
        append: "",
        memory_mib: 768,
        tests_min: 15,
        limit_s: 900,
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
        tests_min: 12,
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

    /// What is wrong with a record of a row that the page calls passed: it must have passed, with as many tests as the row
    /// wants and at least one of each of its suites.
    fn lacks(boot: &Boot, record: &serde_json::Value) -> Option<String> {
        if record["verdict"] != "passed" {
            return Some(format!("its record says {}", record["verdict"]));
        }
        let tests = record["tests"].as_array().map(Vec::as_slice).unwrap_or_default();
        let passed: Vec<&str> =
            tests.iter().filter(|test| test["end"] == "ok").filter_map(|test| test["name"].as_str()).collect();
        let has = |suite: &&str| passed.iter().any(|name| name.split_once('.').is_some_and(|(of, _)| of == *suite));
        match boot.suites.iter().find(|suite| !has(suite)) {
            Some(suite) => Some(format!("its record has no passed test of {suite}")),
            None if passed.len() < boot.tests_min => {
                Some(format!("its record has {} passed tests of {}", passed.len(), boot.tests_min))
            }
            None => None,
        }
    }

    #[test]
    fn the_page_has_every_row_and_calls_passed_what_a_record_shows() {
        let page = include_str!("../../../docs/hardware.md");
        let mut wrong = Vec::new();
        for boot in BOOTS {
            let start = format!("| `{}` |", boot.name);
            let line = page.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{}", boot.name));
            let cells: Vec<&str> = line.trim_end_matches(" |").split(" | ").collect();
            let mut told: Vec<&str> = cells[3].split(", ").map(|name| name.trim_matches('`')).collect();
            let mut suites = boot.suites.to_vec();
            suites.sort_unstable();
            told.sort_unstable();
            assert_eq!(told, suites, "suites of {}", boot.name);
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join(format!("../hwtests/records/vm-{}.json", boot.name));
            let record = std::fs::read_to_string(path).ok().map(|text| serde_json::from_str(&text).unwrap());
            let lack = record.map_or_else(|| Some("it has no record".to_owned()), |record| lacks(boot, &record));
            match (cells[5].starts_with("passed"), lack) {
                (true, Some(lack)) => wrong.push(format!("{} is called passed, but {lack}", boot.name)),
                (false, None) => wrong.push(format!("{} has a record that shows it: call it passed", boot.name)),
                (false, Some(_)) if !cells[5].starts_with("no record of all of it") => {
                    wrong.push(format!("{}: say 'no record of all of it', not {}", boot.name, cells[5]));
                }
                _ => {}
            }
        }
        assert!(wrong.is_empty(), "docs/hardware.md and hwtests/records disagree:\n{}", wrong.join("\n"));
    }

    /// The page says that those of a group are of one commit and of one run, whose rows exist.
    #[test]
    fn committed_records_are_of_rows_and_of_one_clean_commit() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../hwtests/records");
        let mut runs: std::collections::BTreeMap<String, std::collections::BTreeSet<(String, String)>> =
            Default::default();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // The whole run's own record is of the same.
            if let Some(group) = name.strip_prefix("run-").and_then(|name| name.strip_suffix(".json")) {
                let record: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
                runs.entry(group.to_owned())
                    .or_default()
                    .insert((record["commit"].to_string(), record["date"].to_string()));
                assert!(record["within_limit"] == true && record["rows_skipped"] == serde_json::json!([]), "{name}");
            }
            let Some(row) = name.strip_prefix("vm-").and_then(|name| name.strip_suffix(".json")) else { continue };
            let boot = BOOTS.iter().find(|boot| boot.name == row).unwrap_or_else(|| panic!("{name} is of no row"));
            let record: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            let of_group = runs.entry(boot.group.to_owned()).or_default();
            of_group.insert((record["commit"].to_string(), record["date"].to_string()));
        }
        assert!(runs.contains_key("nvme") && runs.values().all(|of_group| of_group.len() == 1), "{runs:?}");
        let mut commits = runs.values().flatten();
        assert!(commits.all(|(commit, _)| commit.len() == 42), "{runs:?}: not a commit alone");
    }

    #[test]
    fn a_record_without_a_suite_or_with_too_few_tests_shows_nothing() {
        let boot = Boot { suites: &["one", "two"], tests_min: 3, ..BOOTS[0] };
        let ends = |ends: &[(&str, &str)]| {
            let tests: Vec<_> = ends.iter().map(|(name, end)| serde_json::json!({"name": name, "end": end})).collect();
            serde_json::json!({"verdict": "passed", "tests": tests})
        };
        let good = ends(&[("one.a", "ok"), ("one.b", "ok"), ("two.a", "ok"), ("two.b", "skip")]);
        assert_eq!(lacks(&boot, &good), None);
        let mut failed = good;
        failed["verdict"] = "failed".into();
        for (record, why) in [
            (failed, "says \"failed\""),
            (ends(&[("one.a", "ok"), ("one.b", "ok"), ("one.c", "ok"), ("two.a", "skip")]), "no passed test of two"),
            (ends(&[("one.a", "ok"), ("two.a", "ok"), ("two.b", "skip")]), "2 passed tests of 3"),
            (serde_json::json!({}), "says null"),
        ] {
            let lack = lacks(&boot, &record).unwrap();
            assert!(lack.contains(why), "{lack}");
        }
    }

    /// A line of a transcript without what differs from run to run: times, rates, the kernel's numbers for namespaces.
    fn steady(line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let is_rate = |word: &str| word.trim_end_matches([';', ',']).ends_with("B/s");
        let varies = |at: usize| {
            let next = words.get(at + 1).copied().unwrap_or_default();
            next == "s," || is_rate(next) || is_rate(words[at]) || words.contains(&"(nsid")
        };
        let kept: Vec<&str> = (0..words.len()).map(|at| if varies(at) { "#" } else { words[at] }).collect();
        kept.join(" ").trim_end().to_owned()
    }

    /// The words of a run as a person types them.
    fn typed(run: &serde_json::Value) -> String {
        let words = run["ran"].as_array().map(Vec::as_slice).unwrap_or_default();
        let words = words.iter().filter_map(|word| word.as_str());
        words.map(|word| if word.contains('&') { format!(" '{word}'") } else { format!(" {word}") }).collect()
    }

    #[test]
    fn the_session_of_the_page_is_that_of_the_record() {
        let page = include_str!("../../../docs/nvme.md").split_once("## A session").unwrap().1;
        let shown: Vec<String> = page.lines().filter_map(|line| line.strip_prefix("    ")).map(steady).collect();
        let record: serde_json::Value =
            serde_json::from_str(include_str!("../../../hwtests/records/vm-speed.json")).unwrap();
        let facts = record["facts"].as_array().unwrap();
        let runs = facts.iter().filter(|fact| fact["test"] == "command.transcript").map(|fact| &fact["value"]);
        // Before it begins, what earlier tests bound is given back.
        let runs: Vec<_> = runs.skip_while(|run| run["ran"][0] != "load").collect();
        let mut told = Vec::new();
        for run in &runs {
            told.push(format!("# straightway{}", typed(run)));
            told.extend(run["said"].as_str().unwrap().lines().map(steady));
        }
        assert!(
            runs.len() > 7 && told == shown,
            "docs/nvme.md shows\n{}\n\nand the record has\n{}",
            shown.join("\n"),
            told.join("\n")
        );
        assert_eq!(steady("2.00 MiB in 0.1 s, 4.47 MiB/s; x 3"), "2.00 MiB in # s, # # x 3");
        assert_ne!(steady("reach a"), steady("reach b"));
    }
}
