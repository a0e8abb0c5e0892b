//! The kernel's initiator against our target: many namespaces, digests, resets under reads and writes, many connections.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use straightway::target::{Backing, Counters, Target, TargetConfig};

use super::fabrics::{SEED, busybox, connect_with, known, namespace_of};
use crate::block;
use crate::context::{Context, entries, name, read_text, write_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "fabrics-host",
    tests: &[
        Test::new("capsules", "the kernel's bytes are right with each size of capsules and kind of digests", capsules)
            .bed_only()
            .limit_s(120),
        Test::new(
            "namespaces",
            "the kernel finds our namespaces, each as long as it is and with its own bytes",
            namespaces,
        )
        .bed_only()
        .limit_s(60),
        Test::new("ipv6", "the kernel's initiator reaches our target by IPv6", ipv6).bed_only().limit_s(60),
        Test::new(
            "queue-kinds",
            "bytes are right by queues for writes and for polling beside those for reads",
            queue_kinds,
        )
        .bed_only()
        .limit_s(60),
        Test::new(
            "discovery",
            "the kernel stays with our discovery service past KATO: its signs of life are answered",
            discovery,
        )
        .bed_only()
        .limit_s(60),
        Test::new("reset", "the kernel resets its controller under reads and writes, and bytes stay right", reset)
            .bed_only()
            .limit_s(90),
        Test::new("churn", "the kernel connects and goes a hundred times, and our target holds nothing of it", churn)
            .bed_only()
            .limit_s(120),
    ],
};

const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// A target of ours, and what the kernel calls it.
struct Ours {
    target: Target,
    subsystem: String,
}

impl Ours {
    fn start(config: TargetConfig) -> Result<Self, Stop> {
        busybox(&["ifconfig", "lo", "127.0.0.1", "up"])?;
        known()?;
        let subsystem = config.subsystem.to_string();
        Ok(Self { target: Target::start(config)?, subsystem })
    }

    fn connect(&self, more: &str) -> Result<String, Stop> {
        connect_with(self.target.address(), &self.subsystem, more)
    }

    /// Waits until it holds nothing of hosts any more.
    fn expect_idle(&self, context: &Context) -> Verdict {
        let idle = |now: Counters| now.connections_open == 0 && now.controllers == 0;
        let limit = Duration::from_secs(10);
        let counters =
            context.until(limit, "our target is idle", || Some(self.target.counters()).filter(|now| idle(*now)))?;
        same("units that our target did not take", &counters.terminations, &0)
    }
}

fn control(controller: &str, file: &str) -> Verdict {
    write_text(Path::new(&format!("/sys/class/nvme/{controller}/{file}")), "1")
}

fn capsules(context: &Context) -> Verdict {
    for capsule_data_bytes in [0, 4096, 65536] {
        let namespaces = vec![Backing::Memory(16 << 20)];
        let ours = Ours::start(TargetConfig { capsule_data_bytes, namespaces, ..TargetConfig::default() })?;
        for more in ["", ",hdr_digest", ",data_digest", ",hdr_digest,data_digest"] {
            let controller = ours.connect(more)?;
            let namespace = namespace_of(context, &controller)?;
            for (at, len) in [(0, 4096), (8192, 8192), (65536, 65536), (1 << 20, 2 << 20)] {
                block::write_and_check(&namespace, SEED + at + u64::from(capsule_data_bytes), at, len)?;
            }
            control(&controller, "delete_controller")?;
        }
        let counters = ours.target.counters();
        context.fact(&json!({"capsule_bytes": capsule_data_bytes, "writes": counters.writes, "reads": counters.reads}));
        ours.expect_idle(context)?;
    }
    Ok(())
}

/// Block devices of a controller's namespaces, with their NSIDs.
fn spaces(controller: &str) -> Vec<block::Namespace> {
    let number = |path: &Path, file: &str| read_text(&path.join(file)).ok()?.parse::<u64>().ok();
    let head = format!("{controller}n");
    let all = entries(Path::new("/sys/block")).into_iter().filter(|path| name(path).starts_with(&head));
    let found = all.filter_map(|path| {
        let node = Path::new("/dev").join(name(&path));
        Some(block::Namespace {
            nsid: u32::try_from(number(&path, "nsid")?).ok()?,
            block_bytes: number(&path, "queue/logical_block_size")?,
            bytes: number(&path, "size")? * 512,
            node: node.exists().then_some(node)?,
        })
    });
    found.collect()
}

fn namespaces(context: &Context) -> Verdict {
    let count = 24u64;
    let namespaces = (1..=count).map(|n| Backing::Memory(n << 20)).collect();
    let ours = Ours::start(TargetConfig { namespaces, ..TargetConfig::default() })?;
    let controller = ours.connect("")?;
    let wanted = usize::try_from(count)?;
    let limit = Duration::from_secs(20);
    let mut found = context.until(limit, "the kernel shows the namespaces", || {
        Some(spaces(&controller)).filter(|all| all.len() == wanted)
    })?;
    found.sort_by_key(|namespace| namespace.nsid);
    for (n, namespace) in (1..).zip(&found) {
        same("its length", &(u64::from(namespace.nsid), namespace.bytes), &(n, n << 20))?;
        block::write_and_check(namespace, SEED + n, namespace.bytes - (64 << 10), 64 << 10)?;
    }
    for (n, namespace) in (1..).zip(&found) {
        block::check(namespace, SEED + n, namespace.bytes - (64 << 10), 64 << 10)?;
    }
    control(&controller, "delete_controller")?;
    ours.expect_idle(context)
}

fn ipv6(context: &Context) -> Verdict {
    let listen = (std::net::Ipv6Addr::LOCALHOST, 0).into();
    let namespaces = vec![Backing::Memory(16 << 20)];
    let ours = Ours::start(TargetConfig { listen, namespaces, ..TargetConfig::default() })?;
    let controller = ours.connect("")?;
    let namespace = namespace_of(context, &controller)?;
    block::write_and_check(&namespace, SEED, 1 << 20, 4 << 20)?;
    control(&controller, "delete_controller")?;
    ours.expect_idle(context)
}

fn queue_kinds(context: &Context) -> Verdict {
    let ours = Ours::start(TargetConfig { namespaces: vec![Backing::Memory(16 << 20)], ..TargetConfig::default() })?;
    for (more, queues) in [(",nr_write_queues=1", 2), (",nr_write_queues=1,nr_poll_queues=1", 3)] {
        let controller = ours.connect(more)?;
        let namespace = namespace_of(context, &controller)?;
        for (at, len) in [(0, 4096), (1 << 20, 4 << 20)] {
            block::write_and_check(&namespace, SEED + at, at, len)?;
        }
        // Beside the admin queue. Of each kind there are as many as processors at most.
        let count = read_text(Path::new(&format!("/sys/class/nvme/{controller}/queue_count")))?.parse::<u64>()?;
        context.fact(&json!({"asked": more, "queue_count": count}));
        same("whether it has queues of each kind", &(count > queues), &true)?;
        control(&controller, "delete_controller")?;
    }
    ours.expect_idle(context)
}

fn discovery(context: &Context) -> Verdict {
    let ours = Ours::start(TargetConfig { namespaces: vec![Backing::Memory(1 << 20)], ..TargetConfig::default() })?;
    // KATO is 5 s.
    let controller = connect_with(ours.target.address(), DISCOVERY, "")?;
    drop(context.kernel_log());
    std::thread::sleep(Duration::from_secs(7));
    let state = read_text(Path::new(&format!("/sys/class/nvme/{controller}/state")))?;
    let log: Vec<String> = context.kernel_log().into_iter().filter(|line| line.contains("nvme")).collect();
    context.fact(&json!({"state": state, "kernel": log, "commands": ours.target.counters().commands}));
    same("its state past KATO, and what the kernel says", &(state.as_str(), log.len()), &("live", 0))?;
    control(&controller, "delete_controller")?;
    ours.expect_idle(context)
}

fn reset(context: &Context) -> Verdict {
    let namespaces = vec![Backing::Memory(32 << 20)];
    let ours = Ours::start(TargetConfig { namespaces, ..TargetConfig::default() })?;
    let controller = ours.connect("")?;
    let namespace = namespace_of(context, &controller)?;
    block::write_and_check(&namespace, SEED, 0, 4 << 20)?;
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let using = scope.spawn(|| {
            let mut rounds = 0u64;
            while !stop.load(Ordering::Relaxed) {
                block::check(&namespace, SEED, 0, 4 << 20)?;
                block::write_and_check(&namespace, SEED + rounds, 8 << 20, 2 << 20)?;
                rounds += 1;
            }
            Ok::<_, Stop>(rounds)
        });
        let done = (0..8).try_for_each(|_| {
            control(&controller, "reset_controller")?;
            let state = format!("/sys/class/nvme/{controller}/state");
            let live = || read_text(Path::new(&state)).ok().filter(|state| state == "live");
            context.until(Duration::from_secs(20), "the kernel's controller is live", live)?;
            std::thread::sleep(Duration::from_millis(300));
            Ok::<_, Stop>(())
        });
        stop.store(true, Ordering::Relaxed);
        let rounds = using.join().unwrap_or_else(|_| fail("the thread that reads and writes panicked"))?;
        done.map(|()| rounds)
    })?;
    let counters = ours.target.counters();
    context.fact(&json!({"rounds": rounds, "connections": counters.connections, "reads": counters.reads,
        "writes": counters.writes}));
    same("whether it was used meanwhile", &(rounds > 0), &true)?;
    block::check(&namespace, SEED, 0, 4 << 20)?;
    control(&controller, "delete_controller")?;
    ours.expect_idle(context)
}

fn churn(context: &Context) -> Verdict {
    let namespaces = vec![Backing::Memory(1 << 20)];
    let ours = Ours::start(TargetConfig { namespaces, ..TargetConfig::default() })?;
    let held = || (entries(Path::new("/proc/self/fd")).len(), entries(Path::new("/proc/self/task")).len());
    let before = held();
    for _ in 0..100 {
        // At once, whatever the kernel still does with what it found.
        control(&ours.connect("")?, "delete_controller")?;
    }
    ours.expect_idle(context)?;
    let after =
        context.until(Duration::from_secs(10), "threads end", || Some(held()).filter(|now| now.1 <= before.1))?;
    context.fact(&json!({"connections": ours.target.counters().connections}));
    same("descriptors and threads of our target", &after, &before)
}
