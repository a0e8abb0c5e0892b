//! Our initiator over TCP against the kernel's target, in one guest: the bytes of a file in memory by way of the network stack.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use straightway::{
    Destination, Engine, Landing, Memory, NvmeTcp, NvmeTcpKeys, Object, Uri,
    authentication::{Group, Hash, Offer, Secret, make_secret},
    discovery,
    target::{Authentication, Backing, Target as OurTarget, TargetConfig, start_rdma},
};
use sw_engine::{ErrorKind, Reason};
use sw_mem::{Buffer, ByteLen};

use crate::block;
use crate::context::{Context, entries, name, read_text, write_text};
use crate::file_system;
use crate::registry::{Stop, Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "fabrics",
    tests: &[
        Test::new("identity", "a machine that no subsystem could know is told what it lacks", identity).bed_only(),
        Test::new("copy", "bytes go to the kernel's target and come back, at any offset and length", copy)
            .bed_only()
            .limit_s(60),
        Test::new("queue", "many reads at a time, and writes beyond what a capsule holds", queue)
            .bed_only()
            .limit_s(60),
        Test::new(
            "refused",
            "a wrong subsystem, a host that is not let in, nobody there: each has its own words",
            refused,
        )
        .bed_only()
        .limit_s(60),
        Test::new(
            "lost",
            "a subsystem that stays away ends reads and writes, and is opened again when it is back",
            lost,
        )
        .bed_only()
        .limit_s(60),
        Test::new("back", "a subsystem that goes and comes back is gone on with, under the same object", back)
            .bed_only()
            .limit_s(60),
        Test::new(
            "kernel-host",
            "the kernel's initiator makes a file system on our target, and our initiator reads it",
            kernel_host,
        )
        .bed_only()
        .limit_s(90),
        Test::new(
            "discover",
            "the kernel's discovery service tells of its subsystem, and referrals are followed once",
            discover,
        )
        .bed_only()
        .limit_s(60),
        Test::new(
            "auth-target",
            "the kernel's target lets our initiator in with its key, and with no other",
            auth_target,
        )
        .bed_only()
        .limit_s(120),
        Test::new("auth-host", "our target lets the kernel's initiator in with its key, and with no other", auth_host)
            .bed_only()
            .limit_s(120),
        Test::new("silence", "a target that goes on holding the connection sees signs of life", silence)
            .bed_only()
            .limit_s(90),
    ],
};

const CONFIG: &str = "/sys/kernel/config";
pub(super) const NQN: &str = "nqn.2026-11.io.straightway:kernel";
pub(super) const SERIAL: &str = "swfabrics0001";
pub(super) const BACKING: &str = "/tmp/fabrics.img";
pub(super) const BACKING_BYTES: u64 = 32 << 20;
pub(super) const PORT: &str = "4420";
pub(super) const SECOND_PORT: &str = "4421";
pub(super) const SEED: u64 = 77;

pub(super) fn busybox(args: &[&str]) -> Verdict {
    let output = Command::new("/bin/busybox").args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    fail(format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

pub(super) fn nvmet(path: &str) -> PathBuf {
    Path::new(CONFIG).join("nvmet").join(path)
}

/// What is between the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Tcp,
    /// By the kernel's rxe.
    Rdma,
}

impl Over {
    /// As the kernel calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }

    /// Where the target is: on the loopback, or at the address of the RDMA device.
    pub(super) fn address(self) -> &'static str {
        match self {
            Self::Tcp => "127.0.0.1",
            Self::Rdma => "10.0.0.1",
        }
    }

    pub(super) fn uri(self, subsystem: &str, more: &str) -> Result<Uri, Stop> {
        Ok(format!("nvme+{}://{}:{PORT}/{subsystem}?nsid=1{more}", self.name(), self.address()).parse()?)
    }

    pub(super) fn opened(self, engine: &Engine) -> Result<Object, Stop> {
        known()?;
        Ok(engine.open_for_update(&self.uri(NQN, &format!("&serial={SERIAL}"))?)?)
    }
}

/// The kernel's target with one namespace in memory.
pub(super) struct Target(Over);

impl Target {
    pub(super) fn make() -> Result<Self, Stop> {
        Self::make_over(Over::Tcp)
    }

    pub(super) fn make_over(over: Over) -> Result<Self, Stop> {
        let made = Self::prepare_over(over)?;
        made.offer()?;
        Ok(made)
    }

    /// The same before it lets hosts in: its port can still be changed.
    pub(super) fn prepare() -> Result<Self, Stop> {
        Self::prepare_over(Over::Tcp)
    }

    pub(super) fn prepare_over(over: Over) -> Result<Self, Stop> {
        if !nvmet("").exists() {
            busybox(&["mount", "-t", "configfs", "none", CONFIG])?;
        }
        // Each test is a process of its own, and the one before may have been killed.
        Self::clear();
        busybox(&["ifconfig", "lo", "127.0.0.1", "up"])?;
        File::create(BACKING)?.set_len(BACKING_BYTES)?;
        let made = Self(over);
        made.configure(None)?;
        Ok(made)
    }

    /// Makes all of it over the file that is there; the namespace has a name of its own, or this one.
    fn configure(&self, uuid: Option<&str>) -> Verdict {
        let subsystem = format!("subsystems/{NQN}");
        for dir in [subsystem.clone(), format!("{subsystem}/namespaces/1"), "ports/1".into()] {
            std::fs::create_dir(nvmet(&dir))?;
        }
        if let Some(uuid) = uuid {
            write_text(&nvmet(&subsystem).join("namespaces/1/device_uuid"), uuid)?;
        }
        for (file, text) in [
            ("attr_allow_any_host", "1"),
            ("attr_serial", SERIAL),
            ("namespaces/1/device_path", BACKING),
            ("namespaces/1/buffered_io", "1"),
            ("namespaces/1/enable", "1"),
        ] {
            write_text(&nvmet(&subsystem).join(file), text)?;
        }
        self.place("1", PORT)
    }

    /// Says where a port is.
    fn place(&self, port: &str, service: &str) -> Verdict {
        for (file, text) in [
            ("addr_trtype", self.0.name()),
            ("addr_adrfam", "ipv4"),
            ("addr_traddr", self.0.address()),
            ("addr_trsvcid", service),
        ] {
            write_text(&nvmet(&format!("ports/{port}")).join(file), text)?;
        }
        Ok(())
    }

    /// Makes a second port and lets hosts in there.
    pub(super) fn second(&self) -> Verdict {
        std::fs::create_dir(nvmet("ports/2"))?;
        self.place("2", SECOND_PORT)?;
        self.offer_at("2")
    }

    /// Takes all of it away and makes it again over the same bytes, as a target that restarts. In between nobody is there for `away`.
    pub(super) fn restart(&self, away: Duration) -> Verdict {
        let uuid = read_text(&nvmet(&format!("subsystems/{NQN}/namespaces/1/device_uuid")))?;
        Self::clear();
        std::thread::sleep(away);
        self.configure(Some(&uuid))?;
        self.offer()
    }

    /// Has its discovery service refer to one at another port.
    fn refer(name: &str, port: &str) -> Verdict {
        let referral = nvmet(&format!("ports/1/referrals/{name}"));
        std::fs::create_dir(&referral)?;
        for (file, text) in [
            ("addr_trtype", "tcp"),
            ("addr_adrfam", "ipv4"),
            ("addr_traddr", "127.0.0.1"),
            ("addr_trsvcid", port),
            ("addr_portid", port),
            ("enable", "1"),
        ] {
            write_text(&referral.join(file), text)?;
        }
        Ok(())
    }

    /// Takes away what of it is there, subsystems and namespaces that a test added included.
    fn clear() {
        for port in entries(&nvmet("ports")) {
            for offered in entries(&port.join("subsystems")) {
                let _ = std::fs::remove_file(offered);
            }
            for referral in entries(&port.join("referrals")) {
                let _ = std::fs::remove_dir(referral);
            }
            let _ = std::fs::remove_dir(port);
        }
        for subsystem in entries(&nvmet("subsystems")) {
            for host in entries(&subsystem.join("allowed_hosts")) {
                let _ = std::fs::remove_file(host);
            }
            for namespace in entries(&subsystem.join("namespaces")) {
                let _ = std::fs::remove_dir(namespace);
            }
            let _ = std::fs::remove_dir(subsystem);
        }
        let _ = std::fs::remove_dir(nvmet(&format!("hosts/{}", host_name())));
    }

    /// Lets nobody in but our host, and that with keys.
    fn demand(key: &str, controller_key: &str, hash: &str, group: &str) -> Verdict {
        let host = nvmet(&format!("hosts/{}", host_name()));
        if !host.exists() {
            std::fs::create_dir(&host)?;
            write_text(&nvmet(&format!("subsystems/{NQN}/attr_allow_any_host")), "0")?;
            symlink(&host, nvmet(&format!("subsystems/{NQN}/allowed_hosts/{}", host_name())))?;
        }
        for (file, text) in
            [("dhchap_key", key), ("dhchap_ctrl_key", controller_key), ("dhchap_hash", hash), ("dhchap_dhgroup", group)]
        {
            write_text(&host.join(file), text)?;
        }
        Ok(())
    }

    /// Lets hosts in.
    pub(super) fn offer(&self) -> Verdict {
        self.offer_at("1")
    }

    /// Lets hosts in at a port.
    pub(super) fn offer_at(&self, port: &str) -> Verdict {
        Ok(symlink(nvmet(&format!("subsystems/{NQN}")), nvmet(&format!("ports/{port}/subsystems/{NQN}")))?)
    }

    /// Takes it away from the network: associations end.
    pub(super) fn withdraw(&self) -> Verdict {
        self.withdraw_at("1")
    }

    /// Takes it away from a port: associations by it end.
    pub(super) fn withdraw_at(&self, port: &str) -> Verdict {
        Ok(std::fs::remove_file(nvmet(&format!("ports/{port}/subsystems/{NQN}")))?)
    }

    pub(super) fn backing(&self) -> Result<File, Stop> {
        Ok(File::options().read(true).write(true).open(BACKING)?)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        Self::clear();
    }
}

/// What our host is called by the machine-id that [`known`] writes, and what the kernel's is told to be.
pub(super) fn host_name() -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{HOST}")
}

pub(super) fn known() -> Verdict {
    std::fs::create_dir_all("/etc")?;
    Ok(std::fs::write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")?)
}

pub(super) fn uri(subsystem: &str, more: &str) -> Result<Uri, Stop> {
    Over::Tcp.uri(subsystem, more)
}

pub(super) fn opened(engine: &Engine) -> Result<Object, Stop> {
    Over::Tcp.opened(engine)
}

pub(super) fn memory(bytes: &[u8]) -> Result<Memory, Stop> {
    let mut buffer = Buffer::allocate(ByteLen(bytes.len() as u64))?;
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    Ok(Memory::from(buffer))
}

pub(super) fn read(engine: &Engine, object: &Object, at: u64, len: usize) -> Result<Vec<u8>, Stop> {
    let memory = engine.allocate(Destination::Host, len as u64, 0)?;
    let done = engine.read(object, at, memory).wait();
    let path = done.path;
    let memory = done.ok()?.into_memory();
    // Whole blocks land in their place; of others the ends are bounced.
    let whole = at.is_multiple_of(4096) && len.is_multiple_of(4096);
    // rxe copies out of packets as the kernel does out of a socket: neither is a NIC's DMA.
    // Linux's target may answer in another order than it was asked: then some were copied aside, and are told so.
    let in_place = path.route.landing == Landing::KernelCopy || path.reason == Reason::OutOfOrder;
    if !matches!(path.route.transport, "nvme+tcp" | "nvme+rdma") || (whole && (!in_place || path.bounced > 0)) {
        return fail(format!("the bytes came by {path}"));
    }
    let mut got = vec![0; len];
    match memory {
        Some(memory) => memory.read(0, &mut got)?,
        None => return fail("the memory did not come back"),
    }
    Ok(got)
}

fn identity(_: &Context) -> Verdict {
    let _target = Target::make()?;
    let engine = Engine::builder().build()?;
    let told = engine.open(&uri(NQN, "")?).err();
    let told = told.map(|error| (error.kind(), error.to_string().contains("/etc/nvme/hostnqn")));
    same("without an identity", &told, &Some((ErrorKind::NotFound, true)))
}

fn copy(context: &Context) -> Verdict {
    let target = Target::make()?;
    let engine = Engine::builder().build()?;
    let object = opened(&engine)?;
    same("the length", &object.len(), &BACKING_BYTES)?;
    let (at, len) = (1 << 20, (5 << 20) + 4096);
    let bytes = block::pattern(SEED, at, len);
    let done = engine.write(&object, at, memory(&bytes)?).wait();
    context.fact(&json!({"write": done.path.to_string()}));
    done.ok()?;
    engine.flush(&object).wait().ok()?;
    let mut there = vec![0; len];
    target.backing()?.read_exact_at(&mut there, at)?;
    same("what the target has", &(there == bytes), &true)?;
    // Odd ends, one byte, whole blocks, more than one command.
    for (skip, len) in [(0, len), (1, 1), (511, 2), (4096, 4096), (12_345, 3_456_789)] {
        let got = read(&engine, &object, at + skip, len)?;
        let skip = usize::try_from(skip)?;
        same("what came back", &(got == bytes[skip..skip + len]), &true)?;
    }
    object.check_unchanged()?;
    let past = engine.read(&object, BACKING_BYTES, memory(&[0; 512])?).wait().ok();
    same("past the end", &past.err().map(|error| error.kind()), &Some(ErrorKind::OutOfRange))
}

fn queue(context: &Context) -> Verdict {
    let target = Target::make()?;
    let bytes = block::pattern(SEED, 0, usize::try_from(BACKING_BYTES)?);
    target.backing()?.write_all_at(&bytes, 0)?;
    let engine = Engine::builder().build()?;
    let object = opened(&engine)?;
    let (count, len) = (256u64, 64 << 10);
    let place = |n: u64| n * 37 % 500 * (len as u64);
    let start = Instant::now();
    let requests = (0..count)
        .map(|n| Ok(engine.read(&object, place(n), engine.allocate(Destination::Host, len as u64, 0)?)))
        .collect::<Result<Vec<_>, Stop>>()?;
    let mut aside = 0;
    for (n, done) in (0..count).zip(engine.batch(requests).wait()) {
        let mut got = vec![0; len];
        let done = done.ok()?;
        // What the target sent in another order than was foreseen; whole blocks of host memory are staged for no other reason.
        aside += done.path.bytes.staged;
        match done.into_memory() {
            Some(memory) => memory.read(0, &mut got)?,
            None => return fail("the memory did not come back"),
        }
        let at = usize::try_from(place(n))?;
        same("the bytes of a read", &(got == bytes[at..at + len]), &true)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    context.fact(&json!({"reads": count, "bytes": len, "seconds": seconds, "bytes_aside": aside}));
    let more = block::pattern(SEED + 1, 0, 8 << 20);
    let requests = (0..8u64)
        .map(|n| {
            let at = usize::try_from(n << 20)?;
            Ok(engine.write(&object, n << 20, memory(&more[at..at + (1 << 20)])?))
        })
        .collect::<Result<Vec<_>, Stop>>()?;
    for done in engine.batch(requests).wait() {
        done.ok()?;
    }
    let mut there = vec![0; more.len()];
    target.backing()?.read_exact_at(&mut there, 0)?;
    same("what the target has", &(there == more), &true)
}

fn refused(_: &Context) -> Verdict {
    let _target = Target::make()?;
    known()?;
    let engine = Engine::builder().build()?;
    let told = |uri: &Uri| engine.open(uri).err().map(|error| (error.kind(), error.to_string()));
    let expect = |what: &str, uri: Uri, kind: ErrorKind, words: &str| match told(&uri) {
        Some((got, text)) if got == kind && text.contains(words) => Ok(()),
        other => fail(format!("{what}: {other:?}")),
    };
    expect("another subsystem", uri("nqn.2026-11.io.straightway:none", "")?, ErrorKind::NoDevice, "no such subsystem")?;
    expect("another serial number", uri(NQN, "&serial=other")?, ErrorKind::Changed, SERIAL)?;
    let missing = format!("nvme+tcp://127.0.0.1:{PORT}/{NQN}?nsid=9").parse()?;
    expect("another namespace", missing, ErrorKind::NotFound, "its namespaces are: 1")?;
    let nobody = format!("nvme+tcp://127.0.0.1:4421/{NQN}?nsid=1").parse()?;
    expect("nobody there", nobody, ErrorKind::NoDevice, "nobody listens")?;
    let update =
        engine.open_for_update(&uri(NQN, "")?).err().map(|error| (error.kind(), error.to_string().contains(SERIAL)));
    same("to write without a serial number", &update, &Some((ErrorKind::ApiMisuse, true)))?;
    write_text(&nvmet(&format!("subsystems/{NQN}/attr_allow_any_host")), "0")?;
    let stranger = Engine::builder().build()?;
    let told = stranger.open(&uri(NQN, "")?).err().map(|error| (error.kind(), error.to_string()));
    match told {
        Some((ErrorKind::PermissionDenied, text)) if text.contains("nqn.2014-08.org.nvmexpress:uuid:01234567") => {
            Ok(())
        }
        other => fail(format!("a host that is not let in: {other:?}")),
    }
}

fn lost(context: &Context) -> Verdict {
    let target = Target::make()?;
    let tcp = NvmeTcp { patience: Duration::from_secs(3), ..NvmeTcp::default() };
    let engine = Engine::builder().nvme_tcp(tcp).build()?;
    let object = opened(&engine)?;
    let first = read(&engine, &object, 0, 4096)?;
    target.withdraw()?;
    let start = Instant::now();
    let failed = read(&engine, &object, 0, 4096);
    let took = start.elapsed();
    context.fact(&json!({"read": format!("{failed:?}"), "after_s": took.as_secs_f64()}));
    if failed.is_ok() || took > Duration::from_secs(20) {
        return fail(format!("a read of a subsystem that is gone: {failed:?} after {took:?}"));
    }
    let write = engine.write(&object, 0, memory(&[1; 4096])?).wait().ok();
    same("a write to it", &write.err().map(|error| error.kind()), &Some(ErrorKind::NoDevice))?;
    target.offer()?;
    let again = opened(&engine)?;
    same("the bytes", &(read(&engine, &again, 0, 4096)? == first), &true)
}

fn back(context: &Context) -> Verdict {
    let target = Target::make()?;
    let engine = Engine::builder().build()?;
    let object = opened(&engine)?;
    let bytes = block::pattern(SEED, 0, 1 << 20);
    engine.write(&object, 0, memory(&bytes)?).wait().ok()?;
    for _ in 0..3 {
        target.withdraw()?;
        let start = Instant::now();
        let got = std::thread::scope(|scope| {
            let offering = scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(700));
                target.offer()
            });
            let got = read(&engine, &object, 0, 1 << 20);
            offering.join().unwrap_or_else(|_| fail("the thread that offers it again panicked"))?;
            got
        })?;
        context.fact(&json!({"back_after_s": start.elapsed().as_secs_f64()}));
        same("the bytes", &(got == bytes), &true)?;
    }
    object.check_unchanged()?;
    Ok(())
}

fn discover(context: &Context) -> Verdict {
    let _target = Target::make()?;
    known()?;
    // To itself, and to nobody.
    Target::refer("circle", PORT)?;
    Target::refer("nobody", "4422")?;
    // Nobody listens at 8009.
    let told = discovery::discover("127.0.0.1", &discovery::Asking::default())?;
    context.fact(&json!({"entries": format!("{:?}", told.entries), "failed": format!("{:?}", told.failed)}));
    let asked: Vec<String> = told.asked.iter().map(|service| service.at.to_string()).collect();
    same("who was asked", &asked, &vec![format!("127.0.0.1:{PORT}")])?;
    let failed: Vec<_> = told.failed.iter().map(|(service, error)| (service.at.to_string(), error.kind())).collect();
    same("who did not answer", &failed, &vec![("127.0.0.1:4422".to_owned(), ErrorKind::NoDevice)])?;
    same("referrals that were left alone", &(told.not_followed.len(), told.left_out), &(0, 0))?;
    let found: Vec<_> = told.entries.iter().filter(|entry| entry.subsystem.as_str() == NQN).collect();
    let [entry] = found[..] else { return fail(format!("{} entries of the subsystem", found.len())) };
    let at = entry.endpoint(discovery::TransportType::Tcp).map(|at| at.to_string());
    same("where it is", &at, &Some(format!("127.0.0.1:{PORT}")))?;
    let engine = Engine::builder().build()?;
    let object = engine.open(&uri(entry.subsystem.as_str(), "")?)?;
    same("the length", &object.len(), &BACKING_BYTES)
}

fn silence(context: &Context) -> Verdict {
    let _target = Target::make()?;
    let keep_alive = Duration::from_secs(2);
    let engine = Engine::builder().nvme_tcp(NvmeTcp { keep_alive, ..NvmeTcp::default() }).build()?;
    let object = opened(&engine)?;
    // Twice the time after which the target gives up a host that says nothing, and a little more.
    std::thread::sleep(2 * keep_alive + Duration::from_secs(1));
    context.fact(
        &json!({"kernel": context.kernel_log().into_iter().filter(|l| l.contains("keep-alive")).collect::<Vec<_>>()}),
    );
    object.check_unchanged()?;
    read(&engine, &object, 0, 4096).map(drop)
}

/// Has the kernel connect to a target of ours; its controller, such as `nvme0`.
pub(super) fn connect(address: std::net::SocketAddr, subsystem: &str) -> Result<String, Stop> {
    connect_with(address, subsystem, "")
}

/// The same with more options.
pub(super) fn connect_with(address: std::net::SocketAddr, subsystem: &str, more: &str) -> Result<String, Stop> {
    connect_over(Over::Tcp, address, subsystem, more)
}

pub(super) fn connect_over(
    over: Over,
    address: std::net::SocketAddr,
    subsystem: &str,
    more: &str,
) -> Result<String, Stop> {
    let mut node = File::options().read(true).write(true).open("/dev/nvme-fabrics")?;
    let words = format!(
        "transport={},traddr={},trsvcid={},nqn={subsystem},hostnqn={},hostid={HOST},nr_io_queues=2,queue_size=64,\
         keep_alive_tmo=5{more}",
        over.name(),
        address.ip(),
        address.port(),
        host_name()
    );
    node.write_all(words.as_bytes())?;
    let mut told = String::new();
    node.read_to_string(&mut told)?;
    let instance = told.split(',').find_map(|word| word.trim().strip_prefix("instance="));
    match instance {
        Some(instance) => Ok(format!("nvme{instance}")),
        None => fail(format!("the kernel says {told:?}")),
    }
}

const HOST: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// A key as text, each time another one.
fn key(like: Hash, transform: Option<Hash>) -> Result<String, Stop> {
    Ok(make_secret(like, transform)?.to_text().to_string())
}

fn keys(host: &str, controller: Option<&str>) -> Result<NvmeTcpKeys, Stop> {
    let secret = |text: &str| Secret::parse(text).map_err(|error| Stop::Fail(error.to_string()));
    Ok(NvmeTcpKeys {
        host: Some(secret(host)?.into()),
        controller: controller.map(secret).transpose()?.map(Into::into),
        ..NvmeTcpKeys::default()
    })
}

fn auth_target(context: &Context) -> Verdict {
    let target = Target::make()?;
    known()?;
    let content = block::pattern(SEED, 0, 1 << 20);
    target.backing()?.write_all_at(&content, 0)?;
    let read_by = |keys: NvmeTcpKeys| {
        let engine = Engine::builder().nvme_tcp_keys(keys).build()?;
        let object = engine.open(&uri(NQN, "")?)?;
        Ok::<_, Stop>(read(&engine, &object, 0, 1 << 20)? == content)
    };
    let start = Instant::now();
    for (hash, group, like, transform) in [
        ("hmac(sha256)", "null", Hash::Sha256, None),
        ("hmac(sha384)", "ffdhe2048", Hash::Sha384, Some(Hash::Sha384)),
        ("hmac(sha512)", "ffdhe3072", Hash::Sha512, Some(Hash::Sha512)),
        ("hmac(sha256)", "ffdhe4096", Hash::Sha256, Some(Hash::Sha256)),
        ("hmac(sha512)", "ffdhe6144", Hash::Sha256, Some(Hash::Sha256)),
        ("hmac(sha384)", "ffdhe8192", Hash::Sha512, None),
    ] {
        let (own, theirs) = (key(like, transform)?, key(like, transform)?);
        Target::demand(&own, &theirs, hash, group)?;
        // Its own key alone with the small groups: an exchange with a large one takes seconds here.
        let is_large = matches!(group, "ffdhe6144" | "ffdhe8192");
        for controller in [None, Some(theirs.as_str())].into_iter().skip(usize::from(is_large)) {
            same(&format!("the bytes with {hash} and {group}"), &read_by(keys(&own, controller)?)?, &true)?;
        }
        context.fact(&json!({"hash": hash, "group": group, "after_s": start.elapsed().as_secs_f64()}));
    }
    let (own, theirs) = (key(Hash::Sha256, Some(Hash::Sha256))?, key(Hash::Sha256, None)?);
    Target::demand(&own, &theirs, "hmac(sha256)", "ffdhe2048")?;
    let refused = |what: &str, keys: NvmeTcpKeys, words: &str| {
        let engine = Engine::builder().nvme_tcp_keys(keys).build()?;
        match engine.open(&uri(NQN, "")?).err().map(|error| (error.kind(), error.to_string())) {
            Some((ErrorKind::PermissionDenied, text)) if text.contains(words) => Ok(()),
            other => fail(format!("{what}: {other:?}")),
        }
    };
    refused("no key", NvmeTcpKeys::default(), "set nvme_tcp_dhchap_key_file")?;
    refused("another key", keys(&theirs, None)?, "compare the file of nvme_tcp_dhchap_key_file")?;
    refused("another key of the controller", keys(&own, Some(&own))?, "compare nvme_tcp_dhchap_ctrl_key_file")?;
    same("the bytes with the right keys again", &read_by(keys(&own, Some(&theirs))?)?, &true)
}

fn auth_host(context: &Context) -> Verdict {
    busybox(&["ifconfig", "lo", "127.0.0.1", "up"])?;
    known()?;
    let bytes = 4 << 20;
    for (hash, group, transform) in [
        (Hash::Sha256, Group::Null, None),
        (Hash::Sha384, Group::Ffdhe2048, Some(Hash::Sha384)),
        (Hash::Sha512, Group::Ffdhe4096, Some(Hash::Sha512)),
    ] {
        let [own, theirs, other] = [key(hash, transform)?, key(hash, transform)?, key(hash, transform)?];
        let known = keys(&own, Some(&theirs))?;
        let Some(secret) = known.host else { return fail("no key") };
        let offer = Offer { hashes: vec![hash], groups: vec![group] };
        let authentication = Some(Authentication { secret, controller_secret: known.controller, offer });
        let namespaces = vec![Backing::Memory(bytes)];
        let config = TargetConfig { authentication, namespaces, ..TargetConfig::default() };
        let subsystem = config.subsystem.to_string();
        let target = OurTarget::start(config)?;
        let (host_key, controller_key) = (format!(",dhchap_secret={own}"), format!(",dhchap_ctrl_secret={theirs}"));
        for more in [host_key.clone(), format!("{host_key}{controller_key}")] {
            let controller = connect_with(target.address(), &subsystem, &more)?;
            let namespace = namespace_of(context, &controller)?;
            let there = std::fs::read(&namespace.node)?;
            write_text(Path::new(&format!("/sys/class/nvme/{controller}/delete_controller")), "1")?;
            same("what the kernel reads", &(there.len() as u64, there.iter().all(|byte| *byte == 0)), &(bytes, true))?;
        }
        let authenticated = target.counters().authenticated;
        // Twice the admin queue, and at least one I/O queue each.
        if authenticated < 4 {
            return fail(format!("{authenticated} queues were authenticated"));
        }
        for (what, more) in [
            ("no key", String::new()),
            ("another key", format!(",dhchap_secret={other}")),
            ("another key of the controller", format!("{host_key},dhchap_ctrl_secret={other}")),
        ] {
            let told = connect_with(target.address(), &subsystem, &more);
            context.fact(&json!({"what": what, "hash": hash.name(), "told": format!("{told:?}")}));
            if told.is_ok() {
                return fail(format!("the kernel connects with {what}"));
            }
        }
        let counters = target.counters();
        same("queues that were let in meanwhile", &counters.authenticated, &authenticated)?;
        same("units that our target did not take", &counters.terminations, &0)?;
    }
    Ok(())
}

/// The block device of the one namespace that the kernel sees.
pub(super) fn namespace_of(context: &Context, controller: &str) -> Result<block::Namespace, Stop> {
    let number = |path: &Path, file: &str| read_text(&path.join(file)).ok()?.parse::<u64>().ok();
    // As nvme0n1, whatever path leads to it.
    let head = format!("{controller}n");
    context.until(Duration::from_secs(20), "the kernel shows the namespace", || {
        let path = entries(Path::new("/sys/block")).into_iter().find(|path| name(path).starts_with(&head))?;
        Some(block::Namespace {
            nsid: 1,
            node: Path::new("/dev").join(name(&path)),
            block_bytes: number(&path, "queue/logical_block_size")?,
            bytes: number(&path, "size")? * 512,
        })
    })
}

fn kernel_host(context: &Context) -> Verdict {
    kernel_host_over(context, Over::Tcp)
}

/// A target of ours with a namespace in memory.
pub(super) fn our_target(over: Over, bytes: u64) -> Result<OurTarget, Stop> {
    busybox(&["ifconfig", "lo", "127.0.0.1", "up"])?;
    known()?;
    let config = TargetConfig { namespaces: vec![Backing::Memory(bytes)], ..TargetConfig::default() };
    Ok(match over {
        Over::Tcp => OurTarget::start(config)?,
        Over::Rdma => start_rdma(TargetConfig { listen: format!("{}:4430", over.address()).parse()?, ..config })?,
    })
}

pub(super) fn kernel_host_over(context: &Context, over: Over) -> Verdict {
    let bytes = 48 << 20;
    let TargetConfig { subsystem, serial, .. } = TargetConfig::default();
    let target = our_target(over, bytes)?;
    let controller = connect_over(over, target.address(), subsystem.as_str(), "")?;
    let namespace = namespace_of(context, &controller)?;
    same("its length", &namespace.bytes, &bytes)?;
    let content = block::pattern(SEED, 0, (6 << 20) + 321);
    file_system::mounted(&namespace, |dir| {
        std::fs::write(dir.join("a file"), &content)?;
        Ok(())
    })?;
    // By way of the network again: nothing of it is in the page cache after the file system is gone.
    file_system::remounted(&namespace, |dir| {
        same("the file", &(std::fs::read(dir.join("a file"))? == content), &true)
    })?;
    let there = std::fs::read(&namespace.node)?;
    write_text(Path::new(&format!("/sys/class/nvme/{controller}/delete_controller")), "1")?;
    let engine = Engine::builder().build()?;
    let uri = format!("nvme+{}://{}/{subsystem}?nsid=1&serial={serial}", over.name(), target.address()).parse()?;
    let ours = read(&engine, &engine.open(&uri)?, 0, usize::try_from(bytes)?)?;
    same("what both initiators see", &(ours == there), &true)?;
    let counters = target.counters();
    context.fact(&json!({"commands": counters.commands, "reads": counters.reads, "writes": counters.writes,
        "terminations": counters.terminations}));
    same("units that our target did not take", &counters.terminations, &0)
}
