//! The engine over controllers that come and go: a job keeps its engine and its objects while a drive is replaced.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use straightway::{Destination, Engine, Memory, NvmeBackend, Object, Policy, Uri};
use sw_engine::{ErrorKind, PciAddress, Reason};
use sw_mem::{Buffer, ByteLen, HugePages, Populate};
use sw_vfio::{Backend, ControllerClaim, Sysfs};

use crate::block;
use crate::context::{Context, write_text};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same, skip};
use crate::vfio_rig::{bound, on_each};

pub const SUITE: Suite = Suite {
    name: "engine",
    tests: &[
        Test::new("replaced", "a drive is pulled out and put back under an engine that has objects of it", replaced)
            .bed_only()
            .limit_s(90),
        Test::new("unbound", "a drive is taken from an engine that has objects of it, and given again", unbound)
            .bed_only()
            .limit_s(90),
        Test::new(
            "pinned",
            "large memory is pinned by who brings it, and another thread's I/O goes on meanwhile",
            pinned,
        )
        .bed_only()
        .limit_s(60),
        Test::new(
            "memory",
            "what the engine allocates, any memory through slabs, and files beside a controller",
            any_memory,
        )
        .bed_only()
        .limit_s(60),
        Test::new(
            "no-io-uring",
            "kernel.io_uring_disabled at 2, and at 1 for a user: threads read the same bytes and say why",
            no_io_uring,
        )
        .bed_only()
        .limit_s(60),
        Test::new("closed", "a closed engine has given its controllers back, whoever holds objects", closed)
            .bed_only()
            .limit_s(60),
    ],
};

const AT: u64 = 12 << 20;
const LEN: usize = 256 << 10;
const SEED: u64 = 41;
/// Longest that the kernel may take to let go of a function once it was asked to.
const LET_GO: Duration = Duration::from_secs(10);

fn engine(backend: Backend) -> Result<Engine, Stop> {
    let backend = match backend {
        Backend::Type1 => NvmeBackend::Type1,
        Backend::Iommufd => NvmeBackend::Iommufd,
        Backend::NoIommu => NvmeBackend::NoIommu,
    };
    Ok(Engine::builder().nvme_backend(backend).build()?)
}

fn uri(address: PciAddress) -> Result<Uri, Stop> {
    Ok(format!("nvme://{address}/1").parse()?)
}

/// Memory that every back end takes.
fn memory(backend: Backend) -> Result<Memory, Stop> {
    let pages = if backend == Backend::NoIommu { HugePages::Reserved } else { HugePages::Advise };
    Ok(Memory::from(Buffer::allocate_with(ByteLen(LEN as u64), 0, pages, Populate::Now)?))
}

/// Reads what the kernel wrote before.
fn read(engine: &Engine, object: &Object, backend: Backend) -> Verdict {
    let done = engine.read(object, AT, memory(backend)?).wait().ok()?;
    let mut got = vec![0; LEN];
    match done.into_memory() {
        Some(memory) => memory.read(0, &mut got)?,
        None => return fail("the memory did not come back"),
    }
    same("the bytes", &(got == block::pattern(SEED, AT, LEN)), &true)
}

/// A read that must fail so.
fn refused(engine: &Engine, object: &Object, backend: Backend, kind: ErrorKind) -> Verdict {
    let done = engine.read(object, AT, memory(backend)?).wait().ok();
    same("a read of the old object", &done.err().map(|error| error.kind()), &Some(kind))
}

/// The controller, with known bytes on its namespace, bound.
fn filled(context: &Context) -> Result<PciAddress, Stop> {
    let device = context.device("nvme-b")?;
    let found = block::namespaces(context, &device, 1)?;
    let Some(namespace) = found.first() else { return fail("no namespace") };
    block::write_and_check(namespace, SEED, AT, LEN)?;
    bound(context, "nvme-b")
}

fn replaced(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let address = filled(context)?;
        let engine = engine(backend)?;
        let held = engine.open(&uri(address)?)?;
        read(&engine, &held, backend)?;
        for _ in 0..2 {
            let path = PathBuf::from(format!("/sys/bus/pci/devices/{address}"));
            let start = Instant::now();
            context.host("device_del", "nvme-b")?;
            let asked = start.elapsed();
            context.until(LET_GO, "the kernel lets go of it", || (!path.exists()).then_some(()))?;
            let gone = start.elapsed();
            refused(&engine, &held, backend, ErrorKind::NoDevice)?;
            let while_gone = engine.open(&uri(address)?).err().map(|error| error.kind());
            same("opened while it is gone", &while_gone, &Some(ErrorKind::NoDevice))?;
            let log: Vec<String> = context.kernel_log().into_iter().filter(|line| line.contains("pci")).collect();
            context.fact(&json!({"backend": backend.name(), "host_answered_after_s": asked.as_secs_f64(),
                "gone_after_s": gone.as_secs_f64(), "log": log}));
            context.host("device_add", "nvme-b")?;
            same("its address", &bound(context, "nvme-b")?, &address)?;
            let again = engine.open(&uri(address)?)?;
            read(&engine, &again, backend)?;
            refused(&engine, &held, backend, ErrorKind::NoDevice)?;
        }
        same("the old object", &held.check_unchanged().err().map(|error| error.kind()), &Some(ErrorKind::NoDevice))
    })
}

/// Writes to a file of sysfs on another thread: the kernel blocks there until it has its way.
fn write_within(limit: Duration, path: PathBuf, text: String) -> Result<Duration, Stop> {
    let start = Instant::now();
    let (done, told) = std::sync::mpsc::channel();
    // Left behind if it hangs: the row then fails, and the guest ends.
    std::thread::spawn(move || done.send(write_text(&path, &text)));
    match told.recv_timeout(limit) {
        Ok(written) => written.map(|()| start.elapsed()),
        Err(_) => fail(format!("the kernel still waits after {limit:?}")),
    }
}

fn unbound(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let address = filled(context)?;
        let engine = engine(backend)?;
        let held = engine.open(&uri(address)?)?;
        read(&engine, &held, backend)?;
        let took = write_within(LET_GO, Path::new("/sys/bus/pci/drivers/vfio-pci/unbind").into(), address.to_string())?;
        context.fact(&json!({"backend": backend.name(), "unbound_after_s": took.as_secs_f64()}));
        refused(&engine, &held, backend, ErrorKind::NoDevice)?;
        // Its claim went, too: anybody may have it.
        bound(context, "nvme-b")?;
        drop(ControllerClaim::take(&Sysfs::default(), address)?);
        let again = engine.open(&uri(address)?)?;
        read(&engine, &again, backend)?;
        refused(&engine, &held, backend, ErrorKind::NoDevice)
    })
}

/// Locked memory of this process in KiB: what type 1 pins is counted there (Linux `vfio_lock_acct`).
fn locked_kib() -> Result<u64, Stop> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    Ok(line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0))
}

fn pinned(context: &Context) -> Verdict {
    const LARGE: u64 = 192 << 20;
    on_each(context, |backend| {
        if backend == Backend::NoIommu {
            return skip("without an IOMMU nothing is pinned");
        }
        let address = filled(context)?;
        let engine = engine(backend)?;
        let object = engine.open(&uri(address)?)?;
        read(&engine, &object, backend)?;
        // Mapped before the large one: the kernel makes one mapping after the other.
        let mut own = engine.read(&object, AT, memory(backend)?).wait().ok()?.into_memory();
        let before = locked_kib()?;
        let (memory, took, meanwhile) = std::thread::scope(|scope| {
            let large = scope.spawn(|| {
                let start = Instant::now();
                engine.allocate(Destination::Host, LARGE, 0).map(|memory| (memory, start.elapsed()))
            });
            let mut meanwhile = Vec::new();
            while !large.is_finished() {
                let Some(memory) = own.take() else { return fail("the memory did not come back") };
                let start = Instant::now();
                own = engine.read(&object, AT, memory).wait().ok()?.into_memory();
                meanwhile.push(start.elapsed());
            }
            match large.join() {
                Ok(made) => made.map(|(memory, took)| (memory, took, meanwhile)).map_err(Stop::from),
                Err(_) => fail("the allocation panicked"),
            }
        })?;
        let after = locked_kib()?;
        if backend == Backend::Type1 && after < before + LARGE / 1024 {
            return fail(format!("{before} KiB were locked before and {after} KiB after"));
        }
        let start = Instant::now();
        drop(memory);
        context.fact(
            &json!({"backend": backend.name(), "pinned_s": took.as_secs_f64(), "reads_meanwhile": meanwhile.len(),
            "longest_read_s": meanwhile.iter().max().map(Duration::as_secs_f64),
            "unpinned_and_freed_s": start.elapsed().as_secs_f64()}),
        );
        Ok(())
    })
}

/// The engine's own memory as it comes; memory that a controller may not reach, through slabs; a file, while the engine has a
/// controller.
fn any_memory(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let address = filled(context)?;
        let engine = engine(backend)?;
        let object = engine.open(&uri(address)?)?;
        let (want, staged) = (block::pattern(SEED, AT, LEN), straightway::parse_policy("require=staged")?);
        let check = |what: &str, source: &Object, at: u64, policy: Policy, memory: Memory| {
            let done = engine.read(source, at, memory).policy(policy).wait().ok()?;
            let way = done.path.to_string();
            let mut got = vec![0; LEN];
            match done.into_memory() {
                Some(memory) => memory.read(0, &mut got)?,
                None => return fail(format!("{what}: the memory did not come back")),
            }
            context.fact(&json!({"backend": backend.name(), "memory": what, "way": way}));
            same(what, &(got == want), &true)
        };
        let own = || engine.allocate(Destination::Host, LEN as u64, AT);
        let usual =
            || Buffer::allocate_with(ByteLen(LEN as u64), 0, HugePages::Never, Populate::Lazy).map(Memory::from);
        check("its own memory", &object, AT, Policy::Any, own()?)?;
        check("any memory, through slabs", &object, AT, staged, usual()?)?;
        let large = engine.allocate(Destination::Host, 16 << 20, 0)?;
        let done = engine.read(&object, 0, large).policy(staged).wait().ok()?;
        same("large memory, through slabs", &done.result?, &(16 << 20))?;
        let path = std::env::temp_dir().join("straightway-engine-memory");
        std::fs::write(&path, &want)?;
        let file = engine.open(&Uri::from_path(&path)?)?;
        let read = check("a file into any memory", &file, 0, Policy::Any, usual()?)
            .and_then(|()| check("a file into its own memory", &file, 0, Policy::Any, own()?));
        std::fs::remove_file(&path)?;
        read
    })
}

fn closed(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let address = filled(context)?;
        let first = engine(backend)?;
        let held = first.open(&uri(address)?)?;
        read(&first, &held, backend)?;
        let second = engine(backend)?;
        match second.open(&uri(address)?) {
            Err(error) if error.kind() == ErrorKind::InUse && error.to_string().contains("this process has it") => {}
            Err(error) => return fail(format!("the second engine: {error}")),
            Ok(_) => return fail("the second engine has it, too"),
        }
        first.clone().close()?;
        refused(&first, &held, backend, ErrorKind::Closed)?;
        read(&second, &second.open(&uri(address)?)?, backend)?;
        second.close()?;
        // Nobody has it open: the kernel gets it back as the command does it.
        sw_vfio::plan_unbind(&Sysfs::default(), address)?.run(&Sysfs::default())?;
        let device = context.device("nvme-b")?;
        same("its driver", &device.driver().as_deref(), &Some("nvme"))?;
        refused(&first, &held, backend, ErrorKind::Closed)
    })
}

/// Who may make rings: 0 everybody, 1 a group and who may administer the system, 2 nobody (Linux
/// `Documentation/admin-guide/sysctl/kernel.rst`, "io_uring_disabled").
const IO_URING_DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";
/// No user of the guest: it has no rights.
const NOBODY: u32 = 65534;

fn no_io_uring(context: &Context) -> Verdict {
    let device = context.device("nvme-b")?;
    let found = block::namespaces(context, &device, 1)?;
    let Some(namespace) = found.first() else { return fail("no namespace") };
    if std::fs::metadata("/proc/self")?.uid() == NOBODY {
        return read_by(&namespace.node, sw_uring::PREADV2, Reason::UringBlocked);
    }
    block::write_and_check(namespace, SEED, AT, LEN)?;
    let by_io_uring = || read_by(&namespace.node, sw_uring::IO_URING, Reason::Best);
    by_io_uring()?;
    let setting = Path::new(IO_URING_DISABLED);
    let before = crate::context::read_text(setting)?;
    let mode = std::fs::metadata(&namespace.node)?.permissions();
    let looked = (|| {
        write_text(setting, "2")?;
        read_by(&namespace.node, sw_uring::PREADV2, Reason::UringBlocked)?;
        write_text(setting, "1")?;
        by_io_uring()?;
        std::fs::set_permissions(&namespace.node, Permissions::from_mode(0o644))?;
        as_nobody()
    })();
    write_text(setting, &before)?;
    std::fs::set_permissions(&namespace.node, mode)?;
    looked?;
    by_io_uring()
}

/// An engine made now reads the namespace as a file, past the page cache, by this transport and for this reason.
fn read_by(node: &Path, transport: &str, reason: Reason) -> Verdict {
    let engine = Engine::builder().build()?;
    let object = engine.open(&Uri::from_path(node)?)?;
    let memory = engine.allocate(Destination::Host, LEN as u64, AT)?;
    let policy = straightway::parse_policy("require=dma")?;
    let done = engine.read(&object, AT, memory).policy(policy).wait().ok()?;
    same("the transport", &done.path.route.transport, &transport)?;
    same("the reason", &done.path.reason.code(), &reason.code())?;
    let fact = |name: &str| engine.doctor().facts.iter().find(|fact| fact.name == name).map(|fact| fact.value.clone());
    same("doctor's transport", &fact("file_transport").as_deref(), &Some(transport))?;
    let told = fact("io_uring").unwrap_or_default();
    same(&format!("doctor says why: {told}"), &told.starts_with(reason.code()), &(reason != Reason::Best))?;
    let mut got = vec![0; LEN];
    match done.into_memory() {
        Some(memory) => memory.read(0, &mut got)?,
        None => return fail("the memory did not come back"),
    }
    same("the bytes", &(got == block::pattern(SEED, AT, LEN)), &true)?;
    Ok(engine.close()?)
}

/// This very test as a user without rights, in a process of its own.
fn as_nobody() -> Verdict {
    let result = std::env::temp_dir().join("straightway-nobody");
    std::fs::write(&result, "")?;
    std::fs::set_permissions(&result, Permissions::from_mode(0o666))?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["test", "engine.no-io-uring"]).arg(&result).uid(NOBODY).gid(NOBODY);
    let status = command.status()?;
    let told = std::fs::read_to_string(&result)?;
    std::fs::remove_file(&result)?;
    same("as a user", &(status.success(), told.as_str()), &(true, "ok"))
}
