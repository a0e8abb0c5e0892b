//! NVMe over RDMA by libibverbs on the kernel's rxe, in one guest: the seam's suite, the kernel's target and our host, our target and the kernel's host.
//!
//! rxe copies by CPU and its packets go round inside of the kernel: protocol and bytes are shown, no NIC is.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use straightway::{
    Engine, FabricWire, Memory, NvmeTcp, RdmaPort, RdmaRegistering, Uri,
    discovery::{self, Asking, TransportType},
    target::TargetConfig,
};
use sw_engine::{
    ErrorKind,
    seam::verbs::{Device, Fabric},
};
use sw_testkit::conformance::{self, verbs};
use sw_verbs::library::{Library, LibraryFabric};

use super::fabrics::{
    NQN, Over, PORT, SEED, SERIAL, Target, busybox, connect_over, kernel_host_over, known, memory, namespace_of, nvmet,
    our_target, read,
};
use super::fabrics_life::{associations, port_over};
use crate::block;
use crate::context::{Context, read_text, write_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "rdma",
    tests: &[
        Test::new("seam", "the suite of the seam passes over libibverbs", seam).bed_only().limit_s(300),
        Test::new("copy", "bytes of any length go to the kernel's target and come back, and their way is told", copy)
            .bed_only()
            .limit_s(90),
        Test::new(
            "capsules",
            "writes go in capsules of what the kernel's target takes, none and 16 KiB included",
            capsules,
        )
        .bed_only()
        .limit_s(90),
        Test::new("queue", "many reads and writes at a time", queue).bed_only().limit_s(90),
        Test::new(
            "registrations",
            "bytes are right with registrations that are kept and with one a command; what both take",
            registrations,
        )
        .bed_only()
        .limit_s(90),
        Test::new("choice", "device and address are chosen by the route or by name, and wrong ones refused", choice)
            .bed_only()
            .limit_s(60),
        Test::new("refused", "nobody there, another subsystem, another serial number: each has its own words", refused)
            .bed_only()
            .limit_s(60),
        Test::new(
            "lost",
            "the kernel's target is torn down and set up again under reads and writes: the fence holds",
            lost,
        )
        .bed_only()
        .limit_s(180),
        Test::new("kernel-host", "the kernel's host makes a file system on our target, and ours reads it", kernel_host)
            .bed_only()
            .limit_s(120),
        Test::new(
            "kernel-host-large",
            "the kernel's large writes and reads on our target are right",
            kernel_host_large,
        )
        .bed_only()
        .limit_s(90),
        Test::new(
            "foreign-host",
            "another host in user space reads and writes our target: commands of all sizes, many at a time, one beyond the end",
            foreign_host,
        )
        .bed_only()
        .limit_s(120),
        Test::new("discover", "the kernel's discovery service and ours tell of subsystems over RDMA", discover)
            .bed_only()
            .limit_s(60),
        Test::new("churn", "thirty associations leave no descriptor and no thread behind", churn)
            .bed_only()
            .limit_s(180),
        Test::new("two", "two devices carry the bytes of one namespace, each by its own path", two)
            .bed_only()
            .limit_s(90),
        // The last one: its device is not whole again before this process has ended.
        Test::new(
            "gone",
            "a device that is deleted under reads ends them with its name, and those by another device go on",
            gone,
        )
        .bed_only()
        .limit_s(120),
    ],
};

const DEVICE: &str = "rxe0";
const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// A device of rxe, over a network device that leads nowhere but to itself.
struct Rxe {
    name: &'static str,
    net: &'static str,
    address: &'static str,
    /// The end of its address of IPv4 in the table of the port.
    gid: &'static str,
}

const FIRST: Rxe = Rxe { name: DEVICE, net: "dummy0", address: "10.0.0.1", gid: ":ffff:0a00:0001" };
const SECOND: Rxe = Rxe { name: "rxe1", net: "dummy1", address: "10.0.1.1", gid: ":ffff:0a00:0101" };

impl Rxe {
    fn place(&self) -> PathBuf {
        Path::new("/sys/class/infiniband").join(self.name)
    }

    /// Sees to it.
    fn make(&self, context: &Context) -> Verdict {
        if !self.place().exists() {
            busybox(&["ifconfig", "lo", "127.0.0.1", "up"])?;
            if !Path::new("/sys/class/net").join(self.net).exists() {
                busybox(&["ip", "link", "add", self.net, "type", "dummy"])?;
            }
            busybox(&["ifconfig", self.net, self.address, "netmask", "255.255.255.0", "up"])?;
            let make = ["link", "add", self.name, "type", "rxe", "netdev", self.net];
            let made = Command::new("/usr/bin/rdma").args(make).output()?;
            if !made.status.success() {
                return fail(format!("rdma link add: {}", String::from_utf8_lossy(&made.stderr).trim()));
            }
        }
        context.until(Duration::from_secs(10), "the device has its address", || self.gid_index().ok()).map(drop)
    }

    /// The index of the address of IPv4 by RoCE v2.
    fn gid_index(&self) -> Result<u32, Stop> {
        let port = self.place().join("ports/1");
        let is_ours = |index: &u32| {
            let gid = read_text(&port.join(format!("gids/{index}"))).unwrap_or_default();
            let kind = read_text(&port.join(format!("gid_attrs/types/{index}"))).unwrap_or_default();
            gid.ends_with(self.gid) && kind == "RoCE v2"
        };
        (0..16).find(is_ours).map_or_else(|| fail("no address of IPv4 in the table"), Ok)
    }

    /// Packets that it sent.
    fn sent(&self) -> Result<u64, Stop> {
        Ok(read_text(&self.place().join("ports/1/hw_counters/sent_pkts"))?.parse()?)
    }
}

fn rig(context: &Context) -> Verdict {
    FIRST.make(context)
}

struct Bed(LibraryFabric, Instant);

impl verbs::Bed for Bed {
    fn name(&self) -> String {
        format!("libibverbs, {DEVICE}")
    }

    fn device(&mut self) -> Result<Arc<dyn Device>, conformance::End> {
        self.0.open(DEVICE).map_err(|error| conformance::End::Fail(error.to_string()))
    }

    fn address(&self) -> String {
        format!("{}:0", Over::Rdma.address())
    }

    fn now(&self) -> Duration {
        self.1.elapsed()
    }

    fn idle(&mut self) {
        std::thread::yield_now();
    }
}

fn seam(context: &Context) -> Verdict {
    rig(context)?;
    let library = Library::load().map_err(|refusal| Stop::Fail(refusal.to_string()))?;
    let report = verbs::run(&mut Bed(LibraryFabric::new(library), Instant::now()));
    let failed: Vec<_> = report.failed().collect();
    let skipped: Vec<_> = report.skipped().collect();
    context.fact(&json!({"cases": report.rows.len(), "skipped": skipped}));
    // Ordinary memory cannot be invalidated from afar, rxe flushes a request with memory that is not registered without a reason (docs/rdma.md), and
    // nobody has a dma-buf there.
    let allowed = [
        "bytes_land_in_a_dma_buf_and_nowhere_beside",
        "a_send_can_invalidate_a_key_of_the_peers",
        "a_key_is_not_invalidated_twice",
        "a_request_needs_memory_that_is_registered",
    ];
    same("cases that were skipped", &skipped, &allowed.to_vec())?;
    if failed.is_empty() { Ok(()) } else { fail(format!("{failed:?}")) }
}

fn copy(context: &Context) -> Verdict {
    rig(context)?;
    let target = Target::make_over(Over::Rdma)?;
    let engine = Engine::builder().build()?;
    let object = Over::Rdma.opened(&engine)?;
    let mut at = 0;
    for len in [4096, 8192, 65536, 69632, 1 << 20, (9 << 20) + 4096] {
        let content = block::pattern(SEED + at, at, len);
        let done = engine.write(&object, at, memory(&content)?).wait();
        let path = done.path;
        done.ok()?;
        context.fact(&json!({"len": len, "write": path.to_string()}));
        same("the way of a write", &(path.to_string().starts_with("nvme+rdma/kernel-copy"), path.bounced), &(true, 0))?;
        let mut there = vec![0; len];
        target.backing()?.read_exact_at(&mut there, at)?;
        let ours = read(&engine, &object, at, len)?;
        same(&format!("{len} bytes at {at}"), &(there == content, ours == content), &(true, true))?;
        at += len as u64;
    }
    // Ends that are no whole blocks.
    let ragged = read(&engine, &object, 4097, 100_001)?;
    let mut there = vec![0; 100_001];
    target.backing()?.read_exact_at(&mut there, 4097)?;
    same("a read of odd bytes", &(ragged == there), &true)
}

fn capsules(context: &Context) -> Verdict {
    rig(context)?;
    // None, one block, and the most that Linux's target takes.
    for bytes in [0u64, 4096, 16384] {
        let target = Target::prepare_over(Over::Rdma)?;
        write_text(&nvmet("ports/1/param_inline_data_size"), &bytes.to_string())?;
        target.offer()?;
        let taken = read_text(&nvmet("ports/1/param_inline_data_size"))?;
        let engine = Engine::builder().build()?;
        let object = Over::Rdma.opened(&engine)?;
        let mut at = 0;
        // At both sides of what fits a capsule, and many commands' worth.
        for len in [4096, 8192, 16384, 20480, 1 << 20] {
            let content = block::pattern(SEED + bytes + at, at, len);
            engine.write(&object, at, memory(&content)?).wait().ok()?;
            let mut there = vec![0; len];
            target.backing()?.read_exact_at(&mut there, at)?;
            let ours = read(&engine, &object, at, len)?;
            let what = format!("{len} bytes at {at} with capsules of {bytes} bytes");
            same(&what, &(there == content, ours == content), &(true, true))?;
            at += len as u64;
        }
        context.fact(&json!({"capsule_bytes": bytes, "taken": taken}));
    }
    Ok(())
}

fn queue(context: &Context) -> Verdict {
    rig(context)?;
    let target = Target::make_over(Over::Rdma)?;
    let content = block::pattern(SEED, 0, 16 << 20);
    let engine = Engine::builder().reactors(2).build()?;
    let object = Over::Rdma.opened(&engine)?;
    let len = 64 << 10;
    let parts = || content.chunks(len).enumerate().map(|(n, part)| ((n * len) as u64, part));
    let writes: Vec<_> =
        parts().map(|(at, part)| Ok(engine.write(&object, at, memory(part)?))).collect::<Result<_, Stop>>()?;
    for done in engine.batch(writes).wait() {
        done.ok()?;
    }
    let mut there = vec![0; content.len()];
    target.backing()?.read_exact_at(&mut there, 0)?;
    same("what the target has", &(there == content), &true)?;
    let empty = || memory(&vec![0; len]);
    let reads: Vec<_> = parts().map(|(at, _)| Ok(engine.read(&object, at, empty()?))).collect::<Result<_, Stop>>()?;
    for ((_, part), done) in parts().zip(engine.batch(reads).wait()) {
        let mut got = vec![0; len];
        let memory: Option<Memory> = done.ok()?.into_memory();
        memory.ok_or_else(|| Stop::Fail("no memory".into()))?.read(0, &mut got)?;
        same("the bytes of a read", &(got == part), &true)?;
    }
    Ok(())
}

/// Small reads one after another into the same memory.
fn registrations(context: &Context) -> Verdict {
    rig(context)?;
    let target = Target::make_over(Over::Rdma)?;
    let content = block::pattern(SEED, 0, 1 << 20);
    target.backing()?.write_all_at(&content, 0)?;
    for (len, reads) in [(4096usize, 500u64), (1 << 20, 20)] {
        for registering in [RdmaRegistering::PerCommand, RdmaRegistering::Kept] {
            known()?;
            let tcp = NvmeTcp { registering, ..NvmeTcp::default() };
            let engine = Engine::builder().nvme_tcp(tcp).reactors(1).build()?;
            let object = Over::Rdma.opened(&engine)?;
            let mut memory = memory(&vec![0; len])?;
            let start = Instant::now();
            for number in 0..reads {
                let at = number * len as u64 % (1 << 20);
                let done = engine.read(&object, at, memory).wait().ok()?;
                memory = done.into_memory().ok_or_else(|| Stop::Fail("no memory".into()))?;
                let mut got = vec![0; len];
                memory.read(0, &mut got)?;
                let from = usize::try_from(at)?;
                same("the bytes of a read", &(got == content[from..from + len]), &true)?;
            }
            let us = start.elapsed().as_micros() / u128::from(reads);
            context.fact(&json!({"registering": format!("{registering:?}"), "len": len, "us_per_read": us}));
        }
    }
    Ok(())
}

fn choice(context: &Context) -> Verdict {
    rig(context)?;
    let _target = Target::make_over(Over::Rdma)?;
    let index = FIRST.gid_index()?;
    let named = format!("&device={DEVICE}");
    for more in [String::new(), named.clone(), format!("&gid={index}"), format!("{named}&gid={index}")] {
        known()?;
        let engine = Engine::builder().build()?;
        let object = engine.open(&Over::Rdma.uri(NQN, &format!("{more}&serial={SERIAL}"))?)?;
        same(&format!("bytes by {more:?}"), &read(&engine, &object, 0, 4096)?.len(), &4096)?;
    }
    let engine = Engine::builder().build()?;
    for (more, kind, words) in [
        ("&device=mlx5_9".to_owned(), ErrorKind::NoDevice, DEVICE.to_owned()),
        // The first address is of the link, and of IPv6.
        ("&gid=0".to_owned(), ErrorKind::ApiMisuse, "same family".to_owned()),
        ("&gid=200".to_owned(), ErrorKind::NoDevice, "no address at index 200".to_owned()),
    ] {
        match engine.open(&Over::Rdma.uri(NQN, &more)?).err() {
            Some(error) if error.kind() == kind && error.to_string().contains(&words) => {}
            other => return fail(format!("{more}: {other:?}")),
        }
    }
    Ok(())
}

fn refused(context: &Context) -> Verdict {
    rig(context)?;
    let _target = Target::make_over(Over::Rdma)?;
    known()?;
    let engine = Engine::builder().build()?;
    let expect = |what: &str, uri: String, kind: ErrorKind, words: &str| {
        let told = engine.open(&uri.parse()?).err().map(|error| (error.kind(), error.to_string()));
        context.fact(&json!({"what": what, "told": format!("{told:?}")}));
        match told {
            Some((got, text)) if got == kind && text.contains(words) => Ok(()),
            other => fail(format!("{what}: {other:?}")),
        }
    };
    expect("nobody there", format!("nvme+rdma://10.0.0.1:4499/{NQN}?nsid=1"), ErrorKind::NoDevice, "nobody listens")?;
    expect("another machine", format!("nvme+rdma://192.0.2.1:4420/{NQN}?nsid=1"), ErrorKind::NoDevice, "route")?;
    let none = "nvme+rdma://10.0.0.1:4420/nqn.2026-11.io.straightway:none?nsid=1";
    expect("another subsystem", none.to_owned(), ErrorKind::NoDevice, "no such subsystem")?;
    let other = format!("nvme+rdma://10.0.0.1:4420/{NQN}?nsid=1&serial=other");
    expect("another serial number", other, ErrorKind::Changed, SERIAL)
}

fn lost(context: &Context) -> Verdict {
    rig(context)?;
    port_over(context, Over::Rdma)
}

fn kernel_host(context: &Context) -> Verdict {
    rig(context)?;
    kernel_host_over(context, Over::Rdma)
}

fn kernel_host_large(context: &Context) -> Verdict {
    rig(context)?;
    let target = our_target(Over::Rdma, 32 << 20)?;
    let controller = connect_over(Over::Rdma, target.address(), "nqn.2026-11.io.straightway:target", "")?;
    let namespace = namespace_of(context, &controller)?;
    for (at, len) in [(0, 4096), (8192, 8192), (65536, 65536), (1 << 20, 8 << 20), (12 << 20, 16 << 20)] {
        block::write_and_check(&namespace, SEED + at, at, len)?;
    }
    delete(&controller)?;
    let counters = target.counters();
    context.fact(&json!({"reads": counters.reads, "writes": counters.writes}));
    same("units that our target did not take", &counters.terminations, &0)
}

/// Where the other host writes what it has read, inverted.
const BEHIND: u64 = 16 << 20;

fn foreign_host(context: &Context) -> Verdict {
    rig(context)?;
    let TargetConfig { subsystem, serial, .. } = TargetConfig::default();
    let bytes = 32 << 20;
    let target = our_target(Over::Rdma, bytes)?;
    let content = block::pattern(SEED, 0, 6 << 20);
    let engine = Engine::builder().build()?;
    let object = engine
        .open_for_update(&format!("nvme+rdma://{}/{subsystem}?nsid=1&serial={serial}", target.address()).parse()?)?;
    engine.write(&object, 0, memory(&content)?).wait().ok()?;
    let file = Path::new("/tmp/content");
    std::fs::write(file, &content)?;
    let mut command = Command::new("/usr/bin/python3.11");
    command.args(["-S", "-B", "/sw/foreign_host.py"]).env("PYTHONPATH", "/sw/python");
    let address = target.address();
    command.args([address.ip().to_string(), address.port().to_string(), subsystem.to_string()]).arg(file);
    let ran = command.output()?;
    if !ran.status.success() {
        return fail(format!("the other host: {}", String::from_utf8_lossy(&ran.stderr).trim()));
    }
    let saw: serde_json::Value = serde_json::from_slice(&ran.stdout)?;
    same("bytes of the namespace", &saw["bytes"].as_u64(), &Some(bytes))?;
    same("whether it had some reads in flight", &(saw["in_flight"].as_u64() > Some(8)), &true)?;
    same("whether a read beyond the end was refused", &saw["refused"].is_string(), &true)?;
    context.fact(&saw);
    let there = read(&engine, &object, BEHIND, content.len())?;
    same("what it wrote", &there.iter().copied().eq(content.iter().map(|byte| !byte)), &true)?;
    same("what was there before", &(read(&engine, &object, 0, content.len())? == content), &true)?;
    let counters = target.counters();
    context.fact(&json!({"commands": counters.commands, "reads": counters.reads, "writes": counters.writes}));
    same("units that our target did not take", &counters.terminations, &0)
}

fn delete(controller: &str) -> Verdict {
    write_text(Path::new(&format!("/sys/class/nvme/{controller}/delete_controller")), "1")
}

fn discover(context: &Context) -> Verdict {
    rig(context)?;
    let target = Target::make_over(Over::Rdma)?;
    known()?;
    let told = |port| {
        let asking = Asking { by: FabricWire::Rdma(RdmaPort::default()), port, ..Asking::default() };
        let told = discovery::discover(Over::Rdma.address(), &asking)?;
        let at = |entry: &discovery::Entry| {
            Some((entry.endpoint(TransportType::Rdma)?.to_string(), entry.subsystem.to_string()))
        };
        Ok::<Vec<_>, Stop>(told.entries.iter().filter_map(at).collect())
    };
    // Nobody listens at 8009.
    let found = told(None)?;
    context.fact(&json!({"kernel": format!("{found:?}")}));
    same("the kernel's subsystem", &found.contains(&("10.0.0.1:4420".to_owned(), NQN.to_owned())), &true)?;
    drop(target);
    let ours = our_target(Over::Rdma, 1 << 20)?;
    let found = told(Some(ours.address().port()))?;
    let name = "nqn.2026-11.io.straightway:target".to_owned();
    same("our subsystem", &found, &vec![(ours.address().to_string(), name)])?;
    // The kernel's host stays with our service.
    let controller = connect_over(Over::Rdma, ours.address(), DISCOVERY, "")?;
    let state = read_text(Path::new(&format!("/sys/class/nvme/{controller}/state")))?;
    delete(&controller)?;
    same("what the kernel says of our service", &state.as_str(), &"live")
}

fn churn(context: &Context) -> Verdict {
    rig(context)?;
    associations(context, Over::Rdma, CHURN)
}

/// Associations of one test.
const CHURN: u32 = 30;

/// The kernel's target at both devices, and the address of both ports.
fn at_both(context: &Context) -> Result<(Target, Uri), Stop> {
    FIRST.make(context)?;
    SECOND.make(context)?;
    let target = Target::make_over(Over::Rdma)?;
    std::fs::create_dir(nvmet("ports/2"))?;
    for (file, text) in
        [("addr_trtype", "rdma"), ("addr_adrfam", "ipv4"), ("addr_traddr", SECOND.address), ("addr_trsvcid", PORT)]
    {
        write_text(&nvmet("ports/2").join(file), text)?;
    }
    target.offer_at("2")?;
    known()?;
    let ports = format!("{}:{PORT},{}:{PORT}", FIRST.address, SECOND.address);
    Ok((target, format!("nvme+rdma://{ports}/{NQN}?nsid=1&serial={SERIAL}").parse()?))
}

fn two(context: &Context) -> Verdict {
    let (target, uri) = at_both(context)?;
    let content = block::pattern(SEED, 0, 8 << 20);
    let engine = Engine::builder().reactors(1).build()?;
    let object = engine.open_for_update(&uri)?;
    let before = [FIRST.sent()?, SECOND.sent()?];
    let len = 64 << 10;
    let parts = || content.chunks(len).enumerate().map(|(n, part)| ((n * len) as u64, part));
    let writes: Vec<_> =
        parts().map(|(at, part)| Ok(engine.write(&object, at, memory(part)?))).collect::<Result<_, Stop>>()?;
    for done in engine.batch(writes).wait() {
        done.ok()?;
    }
    let mut there = vec![0; content.len()];
    target.backing()?.read_exact_at(&mut there, 0)?;
    let ours = read(&engine, &object, 0, content.len())?;
    same("the bytes", &(there == content, ours == content), &(true, true))?;
    let sent = [FIRST.sent()? - before[0], SECOND.sent()? - before[1]];
    context.fact(&json!({"packets": sent}));
    // A quarter of the bytes at least went by each, in packets of 4 KiB at most.
    let least = content.len() as u64 / 4096 / 4;
    same("whether both carried them", &sent.map(|packets| packets > least), &[true, true])
}

/// How long reads of a device that is gone may take to say so.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// How long reads by another device go on afterwards.
const ON_FOR: Duration = Duration::from_secs(3);

fn gone(context: &Context) -> Verdict {
    let (target, both) = at_both(context)?;
    let bytes = block::pattern(SEED, 0, 1 << 20);
    target.backing()?.write_all_at(&bytes, 0)?;
    let (alone, beside) = (Engine::builder().reactors(1).build()?, Engine::builder().reactors(1).build()?);
    let (one, other) = (Over::Rdma.opened(&alone)?, beside.open_for_update(&both)?);
    let stop = AtomicBool::new(false);
    let (error, within, reads, deleting) = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = alone.read(&one, 0, memory(&vec![0; bytes.len()])?).wait().ok() {
                    return Ok::<_, Stop>(Some(error));
                }
            }
            Ok(None)
        });
        let going_on = scope.spawn(|| {
            let mut reads = 0u64;
            while !stop.load(Ordering::Relaxed) {
                same("the bytes", &(read(&beside, &other, 0, bytes.len())? == bytes), &true)?;
                reads += 1;
            }
            Ok::<_, Stop>(reads)
        });
        std::thread::sleep(Duration::from_secs(1));
        let start = Instant::now();
        // It comes back when nobody has the device any more, which this process does to its end.
        let deleting = Command::new("/usr/bin/rdma").args(["link", "delete", DEVICE]).spawn();
        while !reading.is_finished() && start.elapsed() < GONE_WITHIN {
            std::thread::sleep(Duration::from_millis(20));
        }
        let within = start.elapsed();
        std::thread::sleep(ON_FOR);
        stop.store(true, Ordering::Relaxed);
        let panicked = |_| Stop::Fail("a thread panicked".into());
        let (error, reads) = (reading.join().map_err(panicked)?, going_on.join().map_err(panicked)?);
        Ok::<_, Stop>((error?, within, reads?, deleting?))
    })?;
    let mut deleting = deleting;
    let told = error.map(|error| (error.kind(), error.to_string()));
    context.fact(&json!({"told": format!("{told:?}"), "within_s": within.as_secs_f64(), "reads_beside": reads,
        "delete": format!("{:?}", deleting.try_wait())}));
    match told {
        Some((ErrorKind::NoDevice, text)) if text.contains(DEVICE) => {}
        told => return fail(format!("reads by a device that is gone: {told:?}")),
    }
    // The other path is still there at the end.
    same("the bytes by the other device", &(read(&beside, &other, 0, bytes.len())? == bytes), &true)
}
