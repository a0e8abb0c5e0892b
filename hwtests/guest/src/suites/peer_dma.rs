//! Drives that reach a device's memory: controller memory stands for a GPU's. Where the PCI tree allows it bytes go across
//! without a copy; where it does not, the planner says so before anything is tried.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde_json::json;
use sw_engine::seam::{Attach, Io, IoKind, OpenMode, Store, Transport};
use sw_engine::{
    Choice, Error, ErrorKind, Face, Landing, MemoryFacts, Object, PciAddress, Policy, RateTable, Reason, RouteMatch,
    Verb, plan,
};
use sw_mem::ByteLen;
use sw_uring::peer::{self, Answer, Lasts, PeerMemory, Verdict as Reach};
use sw_uring::{FileStore, IO_URING, Machine, ThreadsConfig, ThreadsTransport, UringConfig, UringTransport};

use crate::block::{self, Namespace};
use crate::context::Context;
use crate::file_system;
use crate::io::{bytes, io, piece, run};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same, skip};
use crate::suites::passthrough::generic;

pub const SUITE: Suite = Suite {
    name: "peer-dma",
    tests: &[
        Test::new("provider", "the device that gives memory out is found, with its size", provider).bed_only(),
        Test::new("memory", "its memory can be mapped, used by the CPU, exhausted and given back", memory).bed_only(),
        Test::new("tree", "the PCI tree tells one device, one switch and another root port apart", tree).bed_only(),
        Test::new("across", "a drive under the same switch reads and writes it byte for byte", across),
        Test::new("file", "so does a file on a file system of that drive", file),
        Test::new("same-device", "the device's own drive does, too", same_device),
        Test::new("by-threads", "so does the thread pool", by_threads),
        Test::new("other-port", "a drive under another root port is refused before anything is tried", other_port),
        Test::new("tried-anyway", "the kernel's refusal is a typed error with the tree's reason", tried_anyway),
        Test::new("buffered", "the page cache reaches it by the CPU, and is reported as that", buffered),
        Test::new("unregistered", "a ring takes it as a hint that it has no use for", unregistered),
        Test::new("commands", "commands through the kernel's driver reach it, too", commands),
    ],
};

/// Bytes of controller memory.
const PROVIDED: u64 = 64 << 20;
/// Bytes of one transfer, and of the guards on both sides of it.
const LEN: u32 = 64 << 10;
const GUARD: u64 = 4096;

pub(super) fn address(context: &Context, role: &str) -> Result<PciAddress, Stop> {
    let device = context.device(role)?;
    device.bind("nvme")?;
    Ok(device.address.parse()?)
}

/// Memory of the device that gives some out.
pub(super) fn lend(context: &Context, len: u64) -> Result<PeerMemory, Stop> {
    match PeerMemory::map(address(context, "nvme-cmb")?, ByteLen(len)) {
        Ok(memory) => Ok(memory),
        Err(error) if error.reasons() == [Reason::NoPeerPages] => skip("this kernel has no CONFIG_PCI_P2PDMA"),
        Err(error) => fail(error.to_string()),
    }
}

pub(super) fn namespace(context: &Context, role: &str) -> Result<Namespace, Stop> {
    let count = if role == "nvme-a" { 2 } else { 1 };
    let all = block::namespaces(context, &context.device(role)?, count)?;
    all.into_iter().next().map_or_else(|| fail("no namespace"), Ok)
}

pub(super) fn path(namespace: &Namespace) -> String {
    namespace.node.to_string_lossy().into_owned()
}

fn direct(object: &Object) -> Option<&Face> {
    object.faces.iter().find(|face| face.landing == Landing::Dma)
}

fn provider(context: &Context) -> Verdict {
    drop(lend(context, 4096)?);
    let found = peer::providers(&Machine::this());
    let cmb = address(context, "nvme-cmb")?;
    let Some(one) = found.iter().find(|one| one.address == cmb) else { return fail(format!("{cmb} not in {found:?}")) };
    same("provider", &(one.size, one.published, one.accessible), &(PROVIDED, true, true))?;
    same("others", &found.len(), &1)
}

fn memory(context: &Context) -> Verdict {
    drop(lend(context, GUARD)?);
    let cmb = address(context, "nvme-cmb")?;
    let left = || peer::providers(&Machine::this()).into_iter().find(|one| one.address == cmb).map(|one| one.available);
    // The driver keeps a part for its own submission queues.
    let Some(before) = left() else { return fail("no provider") };
    let lent = lend(context, 3 * GUARD - 100)?;
    same("rounded up", &lent.region().len(), &ByteLen(3 * GUARD))?;
    let span = lent.span(0, ByteLen(3 * GUARD))?;
    let pattern = block::pattern(1, 0, 3 * 4096);
    span.write(0, &pattern)?;
    same("the CPU", &(bytes(&span, 0, pattern.len())? == pattern), &true)?;
    let past = lent.span(GUARD, ByteLen(3 * GUARD)).map(drop).map_err(|error| error.kind());
    same("past the end", &past, &Err(ErrorKind::OutOfRange))?;

    same("taken", &left(), &Some(before - 3 * GUARD))?;
    let too_much = PeerMemory::map(cmb, ByteLen(PROVIDED)).map(drop).map_err(|error| error.kind());
    same("exhausted", &too_much, &Err(ErrorKind::NoSpace))?;
    // A span keeps the memory when the handle is gone.
    drop(lent);
    same("still taken", &left(), &Some(before - 3 * GUARD))?;
    drop(span);
    same("given back", &left(), &Some(before))
}

fn tree(context: &Context) -> Verdict {
    let lent = lend(context, GUARD)?;
    let told = |role| -> Result<Reach, Stop> {
        let object = FileStore::new(IO_URING).open(&path(&namespace(context, role)?), OpenMode::Read)?;
        Ok(peer::reach(&object, lent.provider())?)
    };
    same("itself", &told("nvme-cmb")?, &Reach::Across { hops: 0 })?;
    same("the same switch", &told("nvme-near")?, &Reach::Across { hops: 4 })?;
    // The emulated board's host bridge is in no table, and the emulated processor is no Zen.
    same("another root port", &told("nvme-a")?, &Reach::Refused(Reason::P2pNoCommonSwitch))
}

/// Reads and writes of an object through a transport, with guard bytes around, checked by the CPU and in `check`, which looks
/// at the object in another way: (seed, offset, length).
fn moves(
    context: &Context,
    name: &str,
    transport: &mut dyn Transport,
    check: impl Fn(Look, u64, u64, usize) -> Verdict,
) -> Verdict {
    let whole = u64::from(LEN) + 2 * GUARD;
    let (lent, scratch) = (lend(context, whole)?, lend(context, peer::SELF_TEST_BYTES.0)?);
    let object = FileStore::new(transport.caps().name).open(name, OpenMode::Update)?;
    same("the direct face is there", &direct(&object).is_some(), &true)?;
    same("and leads there", &peer::prove(&object, &scratch), &Answer { in_place: Ok(()), lasts: Lasts::WhileOpen })?;
    let proof = peer::self_test(&object, &scratch)?;
    context.fact(&json!({"object": name, "transport": transport.caps().name, "self_test_bytes": proof.bytes}));

    let length = usize::try_from(LEN)?;
    let span = lent.span(0, ByteLen(whole))?;
    for (seed, offset) in [(21, 0u64), (22, 3 << 20)] {
        check(Look::Written, seed, offset, length)?;
        span.fill(0, whole, 0x5C)?;
        let read = io(IoKind::Read, &object, offset, Some(piece(&span, GUARD, LEN)?))?;
        same("read", &run(transport, &read)?, &Ok(LEN))?;
        let got = bytes(&span, 0, usize::try_from(whole)?)?;
        same("data", &(got[4096..4096 + length] == block::pattern(seed, offset, length)), &true)?;
        let guards = got[..4096].iter().chain(&got[4096 + length..]);
        same("guards", &guards.copied().all(|byte| byte == 0x5C), &true)?;

        span.write(GUARD, &block::pattern(seed + 50, offset, length))?;
        let write = io(IoKind::Write, &object, offset, Some(piece(&span, GUARD, LEN)?))?;
        same("written", &run(transport, &write)?, &Ok(LEN))?;
        check(Look::Read, seed + 50, offset, length)?;
    }
    Ok(())
}

/// What the other way to an object does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Writes the pattern.
    Written,
    /// Reads and compares with it.
    Read,
}

/// A drive's first namespace as a block device.
fn moves_disk(context: &Context, role: &str, transport: &mut dyn Transport) -> Verdict {
    let namespace = namespace(context, role)?;
    moves(context, &path(&namespace), transport, |look, seed, offset, length| match look {
        Look::Written => block::write_and_check(&namespace, seed, offset, length),
        Look::Read => block::check(&namespace, seed, offset, length),
    })
}

fn file(context: &Context) -> Verdict {
    file_system::mounted(&namespace(context, "nvme-near")?, |directory| {
        let file = directory.join("file");
        std::fs::write(&file, vec![0; 4 << 20])?;
        let name = file.to_string_lossy();
        // Zeros of a file may be the kernel's: nothing is shown until there is something else.
        let scratch = lend(context, peer::SELF_TEST_BYTES.0)?;
        let object = FileStore::new(IO_URING).open(&name, OpenMode::Read)?;
        let unshown = Answer { in_place: Ok(()), lasts: Lasts::ForNow };
        same("nothing but zeros", &peer::prove(&object, &scratch), &unshown)?;
        let kind = peer::self_test(&object, &scratch).map(drop).map_err(|error| error.kind());
        same("says so", &kind, &Err(ErrorKind::ShortData))?;
        drop((scratch, object));
        std::fs::write(&file, block::pattern(20, 0, 4 << 20))?;
        moves(context, &name, &mut UringTransport::new(UringConfig::default())?, |look, seed, offset, length| {
            let pattern = block::pattern(seed, offset, length);
            let other = File::options().read(true).write(true).open(&file)?;
            if look == Look::Written {
                other.write_all_at(&pattern, offset)?;
                other.sync_all()?;
            }
            let mut got = vec![0; length];
            other.read_exact_at(&mut got, offset)?;
            same("the file", &(got == pattern), &true)
        })
    })
}

fn across(context: &Context) -> Verdict {
    moves_disk(context, "nvme-near", &mut UringTransport::new(UringConfig::default())?)
}

fn same_device(context: &Context) -> Verdict {
    moves_disk(context, "nvme-cmb", &mut UringTransport::new(UringConfig::default())?)
}

fn by_threads(context: &Context) -> Verdict {
    moves_disk(context, "nvme-near", &mut ThreadsTransport::new(ThreadsConfig::default())?)
}

fn planned(object: &Object, in_place: Result<(), Reason>, policy: Policy) -> Result<Choice, Error> {
    let facts = MemoryFacts { in_place, may_go: true, ..MemoryFacts::HOST };
    plan(object, &facts, &[UringConfig::default().caps()], &policy, &RateTable::default(), Verb::Read).choice
}

const DEMAND_DMA: Policy = Policy::Require(RouteMatch { transport: None, landing: Some(Landing::Dma) });

fn other_port(context: &Context) -> Verdict {
    let lent = lend(context, GUARD)?;
    let name = path(&namespace(context, "nvme-a")?);
    let object = FileStore::new(IO_URING).open(&name, OpenMode::Read)?;
    same("for ordinary memory", &planned(&object, Ok(()), DEMAND_DMA).is_ok(), &true)?;
    drop(context.kernel_log());
    let proof = peer::prove(&object, &lent).in_place;
    same("not in place", &proof, &Err(Reason::P2pNoCommonSwitch))?;
    match planned(&object, proof, DEMAND_DMA) {
        Err(error) => {
            same("refused", &error.kind(), &ErrorKind::PolicyUnmet)?;
            same("for the tree's reason", &error.reasons().contains(&Reason::P2pNoCommonSwitch), &true)?;
        }
        Ok(choice) => return fail(format!("planned {choice:?}")),
    }
    let complaints: Vec<String> =
        context.kernel_log().into_iter().filter(|line| line.contains("peer-to-peer")).collect();
    same("the kernel was not asked", &complaints, &Vec::new())
}

fn tried_anyway(context: &Context) -> Verdict {
    let lent = lend(context, peer::SELF_TEST_BYTES.0)?;
    let object = FileStore::new(IO_URING).open(&path(&namespace(context, "nvme-a")?), OpenMode::Read)?;
    let span = lent.span(0, ByteLen(GUARD))?;
    span.fill(0, GUARD, 0x5C)?;
    let mut transport = UringTransport::new(UringConfig::default())?;
    let read = io(IoKind::Read, &object, 0, Some(piece(&span, 0, 4096)?))?;
    let fault = match run(&mut transport, &read)? {
        Err(fault) => fault,
        Ok(count) => return fail(format!("{count} bytes went where the tree said none would")),
    };
    same("kind", &fault.kind, &ErrorKind::Unsupported)?;
    same("untouched", &bytes(&span, 0, 4096)?.iter().all(|byte| *byte == 0x5C), &true)?;
    let error = Error::from_fault(fault, Verb::Read).at(object.name.clone()).in_range(0, 4096);
    let told = peer::explain(error, &object, lent.provider());
    same("reason", &told.reasons(), &[Reason::P2pNoCommonSwitch].as_slice())?;
    context.fact(&json!({"errno": fault.code, "text": told.to_string()}));
    let tested = peer::self_test(&object, &lent).map(drop).map_err(|error| (error.kind(), error.reasons().to_vec()));
    same("the self-test says so", &tested, &Err((ErrorKind::Unsupported, vec![Reason::P2pRefused])))?;
    // Ordinary memory on the same ring: the transport did not break.
    let ordinary = crate::io::memory(4096, 0)?;
    let read = io(IoKind::Read, &object, 0, Some(piece(&ordinary, 0, 4096)?))?;
    same("ordinary memory", &run(&mut transport, &read)?, &Ok(4096))
}

/// One I/O on another face than the first.
fn on_face(io: Io, face: &Face) -> Io {
    Io { handle: face.handle, ..io }
}

fn buffered(context: &Context) -> Verdict {
    let lent = lend(context, GUARD)?;
    let namespace = namespace(context, "nvme-a")?;
    block::write_and_check(&namespace, 33, 0, 4096)?;
    let object = FileStore::new(IO_URING).open(&path(&namespace), OpenMode::Read)?;
    let choice = planned(&object, peer::prove(&object, &lent).in_place, Policy::Any)?;
    let (landing, reason) = (choice.route.landing, choice.main.reason);
    same("planned", &(landing, reason), &(Landing::KernelCopy, Reason::P2pNoCommonSwitch))?;
    let Some(face) = object.faces.iter().find(|face| face.landing == landing) else { return fail("no face") };
    let span = lent.span(0, ByteLen(GUARD))?;
    span.fill(0, GUARD, 0x5C)?;
    let mut transport = UringTransport::new(UringConfig::default())?;
    let read = on_face(io(IoKind::Read, &object, 3, Some(piece(&span, 5, 1001)?))?, face);
    same("read", &run(&mut transport, &read)?, &Ok(1001))?;
    same("data", &(bytes(&span, 5, 1001)? == block::pattern(33, 0, 4096)[3..1004]), &true)
}

fn unregistered(context: &Context) -> Verdict {
    let lent = lend(context, GUARD)?;
    let mut transport = UringTransport::new(UringConfig::default())?;
    transport.attach(Attach::Region(lent.region()))?;
    same("registered", &transport.registered(), &(0, 0))?;
    transport.attach(Attach::RegionGone(lent.region().id()))?;
    Ok(())
}

fn commands(context: &Context) -> Verdict {
    let lent = lend(context, u64::from(LEN))?;
    let namespace = namespace(context, "nvme-near")?;
    block::write_and_check(&namespace, 44, 0, usize::try_from(LEN)?)?;
    let node = |namespace| -> Result<String, Stop> { Ok(generic(namespace)?.to_string_lossy().into_owned()) };
    let object: Arc<Object> = FileStore::new(IO_URING).open(&node(&namespace)?, OpenMode::Read)?;
    same("the tree", &peer::reach(&object, lent.provider())?, &Reach::Across { hops: 4 })?;
    let proof = peer::self_test(&object, &lent);
    context.fact(&json!({"self_test": format!("{proof:?}")}));
    let span = lent.span(0, ByteLen(LEN.into()))?;
    let mut transport = sw_uring::PassthroughTransport::new(UringConfig::passthrough())?;
    let read = io(IoKind::Read, &object, 0, Some(piece(&span, 0, LEN)?))?;
    let done = run(&mut transport, &read)?;
    context.fact(&json!({"read": format!("{done:?}")}));
    same("self-test", &proof.is_ok(), &true)?;
    same("read", &done, &Ok(LEN))?;
    let length = usize::try_from(LEN)?;
    same("data", &(bytes(&span, 0, length)? == block::pattern(44, 0, length)), &true)?;
    // From another root port they are refused as reads of the block device are.
    let far = node(&self::namespace(context, "nvme-a")?)?;
    let object = FileStore::new(IO_URING).open(&far, OpenMode::Read)?;
    same("not in place", &peer::prove(&object, &lent).in_place, &Err(Reason::P2pNoCommonSwitch))?;
    let read = io(IoKind::Read, &object, 0, Some(piece(&span, 0, 4096)?))?;
    let refused = run(&mut transport, &read)?.map_err(|fault| fault.kind);
    same("another root port", &refused, &Err(ErrorKind::Unsupported))
}
