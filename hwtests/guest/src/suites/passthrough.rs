//! NVMe commands through the kernel's driver (`/dev/ngXnY`): the transport's contract, and the kernel's block device as the
//! second look at every byte.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sw_engine::seam::{Attach, EntryKind, IoKind, OpenMode, Store, Transport};
use sw_engine::{ErrorKind, Landing, Object, Retry};
use sw_testkit::conformance::block_file::{self, Bed, Clock, Target};
use sw_testkit::conformance::{End, fail as fail_case, skip as skip_case};
use sw_uring::{FileStore, IO_URING, NVME_PASSTHROUGH, PassthroughTransport, UringConfig, UringTransport};

use crate::block::{self, Aligned, Namespace};
use crate::context::{Context, entries, name, read_text};
use crate::file_system;
use crate::io::{bytes, io, memory, piece, run};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same, skip};

pub const SUITE: Suite = Suite {
    name: "passthrough",
    tests: &[
        Test::new("opens", "a generic node opens as whole blocks that a device moves", opens).bed_only(),
        Test::new("conforms", "the transport keeps the contract on blocks of 512 and 4096 bytes", conforms)
            .limit_s(120),
        Test::new("conforms-polled", "the same with completions that are polled for", conforms_polled).limit_s(120),
        Test::new(
            "block-device-polled",
            "the block device's transport keeps the contract when polled for",
            block_polled,
        )
        .limit_s(60),
        Test::new("same-bytes", "commands and the block device see the same bytes", same_bytes).bed_only(),
        Test::new("claim", "a writer has the namespace alone, a mounted one is refused", claim),
        Test::new("media-error", "an error of the medium is a fault with the controller's status", media_error)
            .bed_only(),
        Test::new("short-commands", "an I/O past the device's limit ends short", short_commands).bed_only(),
        Test::new("out-of-range", "a range past the end is refused by the controller", out_of_range).bed_only(),
        Test::new("few-calls", "many reads take few system calls", few_calls).harmless(),
        Test::new("not-a-namespace", "other character devices stay refused", not_a_namespace).harmless(),
    ],
};

/// Bytes of every disk of the bed.
const DISK_BYTES: u64 = 64 << 20;

/// Cases of the suite that no namespace can be made for, or that the transport has no use for.
const SKIPS: [&str; 4] = [
    // The kernel reaches any memory of the process.
    "memory_that_was_not_attached_is_refused",
    // Whole blocks only.
    "any_offset_and_address_on_a_bytewise_face",
    "a_read_over_the_end_is_short_or_an_error",
    "an_error_of_the_medium_is_a_fault_with_a_code",
];

/// Further cases that need several pieces of memory in one I/O.
const PIECES: [&str; 2] = ["pieces_of_memory_fill_in_object_order", "pieces_of_memory_are_written_in_object_order"];

fn namespaces(context: &Context) -> Result<Vec<Namespace>, Stop> {
    block::namespaces(context, &context.device("nvme-a")?, 2)
}

fn open(namespace: &Namespace, mode: OpenMode) -> Result<Arc<Object>, Stop> {
    Ok(FileStore::new(IO_URING).open(&generic(namespace)?.to_string_lossy(), mode)?)
}

/// The kind of the error that opening gives.
fn refused(namespace: &Namespace, mode: OpenMode) -> Result<Option<ErrorKind>, Stop> {
    let opened = FileStore::new(IO_URING).open(&generic(namespace)?.to_string_lossy(), mode);
    Ok(opened.err().map(|error| error.kind()))
}

fn opens(context: &Context) -> Verdict {
    for (namespace, block) in namespaces(context)?.iter().zip([512, 4096]) {
        let object = open(namespace, OpenMode::Read)?;
        same("length", &object.len, &DISK_BYTES)?;
        same("faces", &object.faces.len(), &1)?;
        for face in &object.faces {
            same("face", &(face.transport, face.landing), &(NVME_PASSTHROUGH, Landing::Dma))?;
            same("block", &face.granularity.block, &block)?;
            // The driver takes any dword; where the kernel does not tell, a block.
            let told = read_text(&queue(namespace, "dma_alignment")).is_ok();
            same("memory", &face.granularity.memory, &if told { 4 } else { 512 })?;
        }
        let entry = FileStore::new(IO_URING).stat(&generic(namespace)?.to_string_lossy())?;
        same("entry", &(entry.kind, entry.len), &(EntryKind::BlockDevice, DISK_BYTES))?;
    }
    Ok(())
}

fn queue(namespace: &Namespace, file: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/{}/queue/{file}", name(&namespace.node)))
}

fn conforms(context: &Context) -> Verdict {
    for namespace in namespaces(context)? {
        for (label, config) in [
            ("passthrough", UringConfig::passthrough()),
            (
                "passthrough, one thread, depth 3",
                UringConfig { single_issuer: true, queue_depth: 3, ..UringConfig::passthrough() },
            ),
        ] {
            let skips: Vec<&str> = SKIPS.into_iter().chain(PIECES).collect();
            block_file::run(&mut Passthrough::new(label, &namespace, config)).assert_green(&skips);
        }
    }
    Ok(())
}

fn conforms_polled(context: &Context) -> Verdict {
    let config = UringConfig { iopoll: true, ..UringConfig::passthrough() };
    for namespace in namespaces(context)? {
        if read_text(&queue(&namespace, "io_poll"))? == "1" {
            let skips: Vec<&str> = SKIPS.into_iter().chain(PIECES).collect();
            block_file::run(&mut Passthrough::new("passthrough, polled", &namespace, config.clone()))
                .assert_green(&skips);
            continue;
        }
        // No silent second best: a device without poll queues is not driven by interrupts instead.
        let (mut transport, object) = (PassthroughTransport::new(config.clone())?, open(&namespace, OpenMode::Read)?);
        let span = memory(4096, 0)?;
        let read = io(IoKind::Read, &object, 0, Some(piece(&span, 0, 4096)?))?;
        same("refused", &run(&mut transport, &read)?.map_err(|fault| fault.kind), &Err(ErrorKind::Unsupported))?;
        return skip("the driver has no poll queues here (nvme.poll_queues); the refusal was checked");
    }
    Ok(())
}

/// Not commands, but the same queues: direct reads and writes of the block device in a ring that is polled.
fn block_polled(context: &Context) -> Verdict {
    let all = namespaces(context)?;
    let Some(namespace) = all.first() else { return fail("no namespace") };
    if read_text(&queue(namespace, "io_poll"))? != "1" {
        return skip("the driver has no poll queues here (nvme.poll_queues)");
    }
    let config = UringConfig { iopoll: true, ..UringConfig::default() };
    let mut bed = Passthrough::new("io_uring, polled", namespace, config);
    bed.node = Node::Block;
    block_file::run(&mut bed).assert_green(&SKIPS);
    Ok(())
}

/// Written by commands and read by the block device, and the reverse; registered memory and other.
fn same_bytes(context: &Context) -> Verdict {
    for (seed, namespace) in (1..).zip(namespaces(context)?) {
        let object = open(&namespace, OpenMode::Update)?;
        let mut transport = PassthroughTransport::new(UringConfig::passthrough())?;
        let (span, len) = (memory(256 << 10, 0)?, 64 << 10);
        for (round, offset) in [0u64, 1 << 20, DISK_BYTES - (64 << 10)].into_iter().enumerate() {
            if round == 1 {
                // From now on with a registered file and a registered buffer.
                transport.attach(Attach::Object(&object))?;
                transport.attach(Attach::Region(span.region()))?;
                same("registered", &transport.registered(), &(1, 1))?;
            }
            let length = usize::try_from(len)?;
            span.write(4096, &block::pattern(seed, offset, length))?;
            let write = io(IoKind::Write, &object, offset, Some(piece(&span, 4096, len)?))?;
            same("written", &run(&mut transport, &write)?, &Ok(len))?;
            same("flushed", &run(&mut transport, &io(IoKind::FlushData, &object, 0, None)?)?, &Ok(0))?;
            block::check(&namespace, seed, offset, length)?;

            block::write_and_check(&namespace, seed + 100, offset, length)?;
            span.fill(0, 256 << 10, 0xEE)?;
            let read = io(IoKind::Read, &object, offset, Some(piece(&span, 4096, len)?))?;
            same("read", &run(&mut transport, &read)?, &Ok(len))?;
            let got = bytes(&span, 0, 256 << 10)?;
            let (guards, data) = ([&got[..4096], &got[4096 + length..]], &got[4096..4096 + length]);
            same("data", &(data == block::pattern(seed + 100, offset, length)), &true)?;
            same("guards", &guards.iter().all(|guard| guard.iter().all(|byte| *byte == 0xEE)), &true)?;
        }
    }
    Ok(())
}

fn claim(context: &Context) -> Verdict {
    let all = namespaces(context)?;
    let Some(namespace) = all.first() else { return fail("no namespace") };
    let exclusive = || File::options().read(true).custom_flags(libc::O_EXCL).open(&namespace.node);

    let reader = open(namespace, OpenMode::Read)?;
    drop(exclusive()?);
    drop(reader);
    let writer = open(namespace, OpenMode::Update)?;
    same("claimed", &exclusive().map(drop).map_err(|error| error.raw_os_error()), &Err(Some(libc::EBUSY)))?;
    same("a second writer", &refused(namespace, OpenMode::Update)?, &Some(ErrorKind::InUse))?;
    drop(writer);
    let holder = exclusive()?;
    same("held", &refused(namespace, OpenMode::Update)?, &Some(ErrorKind::InUse))?;
    same("readers come in", &open(namespace, OpenMode::Read).is_ok(), &true)?;
    drop(holder);
    same("free again", &open(namespace, OpenMode::Update).is_ok(), &true)?;
    file_system::mounted(namespace, |_| {
        same("mounted", &refused(namespace, OpenMode::Update)?, &Some(ErrorKind::InUse))?;
        same("readers of a mounted one", &refused(namespace, OpenMode::Read)?, &None)
    })?;

    // What was written by commands is what a later reader of the page cache sees, though it looked before.
    let through_cache = File::open(&namespace.node)?;
    let mut first = [0; 4096];
    through_cache.read_exact_at(&mut first, 0)?;
    let object = open(namespace, OpenMode::Update)?;
    let mut transport = PassthroughTransport::new(UringConfig::passthrough())?;
    let span = memory(4096, !first[0])?;
    let write = io(IoKind::Write, &object, 0, Some(piece(&span, 0, 4096)?))?;
    same("written", &run(&mut transport, &write)?, &Ok(4096))?;
    drop(object);
    let mut now = [0; 4096];
    through_cache.read_exact_at(&mut now, 0)?;
    same("the page cache was let go", &now, &[!first[0]; 4096])
}

fn media_error(context: &Context) -> Verdict {
    let (bad_read, bad_write) = (context.number("bad_read")? * 512, context.number("bad_write")? * 512);
    let all = block::namespaces(context, &context.device("nvme-faulty")?, 1)?;
    let Some(namespace) = all.first() else { return fail("no namespace") };
    let object = open(namespace, OpenMode::Update)?;
    let mut transport = PassthroughTransport::new(UringConfig::passthrough())?;
    let span = memory(4096, 1)?;
    let mut at = |kind, offset| run(&mut transport, &io(kind, &object, offset, Some(piece(&span, 0, 512)?))?);
    // Media and data integrity errors: unrecovered read error, write fault. QEMU leaves Do Not Retry clear.
    for (kind, offset, code) in [(IoKind::Read, bad_read, 0x281), (IoKind::Write, bad_write, 0x280)] {
        match at(kind, offset)? {
            Err(fault) => {
                same("fault", &(fault.kind, fault.code, fault.retry), &(ErrorKind::Io, code, Retry::Now))?;
            }
            Ok(count) => return fail(format!("{count} bytes of a bad sector")),
        }
        same("a neighbour", &at(kind, offset + 512)?, &Ok(512))?;
    }
    Ok(())
}

fn short_commands(context: &Context) -> Verdict {
    let all = block::namespaces(context, &context.device("nvme-b")?, 1)?;
    let Some(namespace) = all.first() else { return fail("no namespace") };
    let kib: u64 = read_text(&queue(namespace, "max_hw_sectors_kb"))?.parse()?;
    same("the device's limit", &kib, &128)?;
    let object = open(namespace, OpenMode::Read)?;
    let mut transport = PassthroughTransport::new(UringConfig { io_bytes_max: 1 << 20, ..UringConfig::passthrough() })?;
    block::write_and_check(namespace, 9, 0, 1 << 20)?;
    let span = memory(1 << 20, 0xEE)?;
    let read = io(IoKind::Read, &object, 0, Some(piece(&span, 0, 1 << 20)?))?;
    same("read", &run(&mut transport, &read)?, &Ok(128 << 10))?;
    let got = bytes(&span, 0, 1 << 20)?;
    same("data", &(got[..128 << 10] == block::pattern(9, 0, 128 << 10)), &true)?;
    same("the rest", &got[128 << 10..].iter().all(|byte| *byte == 0xEE), &true)
}

fn out_of_range(context: &Context) -> Verdict {
    for namespace in namespaces(context)? {
        let object = open(&namespace, OpenMode::Read)?;
        let mut transport = PassthroughTransport::new(UringConfig::passthrough())?;
        let span = memory(8192, 0xEE)?;
        let read = io(IoKind::Read, &object, DISK_BYTES - 4096, Some(piece(&span, 0, 8192)?))?;
        let fault = run(&mut transport, &read)?.map_err(|fault| (fault.kind, fault.code));
        same("fault", &fault, &Err((ErrorKind::OutOfRange, 0x80)))?;
    }
    Ok(())
}

fn few_calls(context: &Context) -> Verdict {
    const DEPTH: usize = 32;
    const ROUNDS: u64 = 32;
    let all = namespaces(context)?;
    let Some(namespace) = all.first() else { return fail("no namespace") };
    let object = open(namespace, OpenMode::Read)?;
    let config = UringConfig { single_issuer: true, ..UringConfig::passthrough() };
    let mut transport = PassthroughTransport::new(config)?;
    let span = memory(DEPTH as u64 * 4096, 0)?;
    transport.attach(Attach::Object(&object))?;
    transport.attach(Attach::Region(span.region()))?;
    let mut ended = Vec::with_capacity(DEPTH);
    let before = transport.system_calls();
    for round in 0..ROUNDS {
        for place in 0..DEPTH as u64 {
            let read = io(IoKind::Read, &object, (round * 32 + place) * 4096, Some(piece(&span, place * 4096, 4096)?))?;
            transport.submit(&read);
        }
        let mut count = 0;
        while count < DEPTH {
            ended.clear();
            let min = u32::try_from(DEPTH - count)?;
            let wait = sw_engine::seam::Wait::For { timeout: Duration::from_secs(20), min };
            count += transport.poll(wait, &mut ended)?;
            if let Some(done) = ended.iter().find(|done| done.result != Ok(4096)) {
                return fail(format!("a read ended with {:?}", done.result));
            }
        }
    }
    let calls = transport.system_calls() - before;
    context.fact(&json!({"reads": ROUNDS * DEPTH as u64, "depth": DEPTH, "system_calls": calls}));
    // One call for a batch; a slow emulated device may end a wait early now and then. 33 and 34 were
    // measured, and 51 on a host with eight times as much work as cores.
    if calls <= ROUNDS * 3 { Ok(()) } else { fail(format!("{calls} system calls for {ROUNDS} batches")) }
}

fn not_a_namespace(_context: &Context) -> Verdict {
    let error = FileStore::new(IO_URING).open("/dev/null", OpenMode::Read).map(drop).map_err(|error| error.kind());
    same("/dev/null", &error, &Err(ErrorKind::WrongKind))
}

/// The generic node of a namespace: below the same controller, with the same number of the namespace. The number of the
/// controller may differ.
pub fn generic(namespace: &Namespace) -> Result<PathBuf, Stop> {
    let disk = std::fs::canonicalize(format!("/sys/block/{}", name(&namespace.node)))?;
    let number = name(&disk).rsplit('n').next().unwrap_or_default().to_string();
    let ours = |leaf: &String| leaf.starts_with("ng") && leaf.ends_with(&format!("n{number}"));
    let found = disk.parent().and_then(|controller| entries(controller).iter().map(|path| name(path)).find(ours));
    match found {
        Some(leaf) => Ok(namespace.node.with_file_name(leaf)),
        None => fail(format!("no generic node beside {}", disk.display())),
    }
}

/// Which of a namespace's nodes is driven.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    /// `ngXnY`, by commands.
    Generic,
    /// `nvmeXnY`, by the direct face.
    Block,
}

/// A namespace whose content is made and looked at through its block device, past the page cache.
struct Passthrough {
    label: String,
    node: Node,
    namespace: Namespace,
    config: UringConfig,
    /// Length of the content of the last object.
    content: usize,
    start: Instant,
}

impl Passthrough {
    fn new(label: &str, namespace: &Namespace, config: UringConfig) -> Self {
        let namespace = namespace.clone();
        let label = format!("{label}, {:?}", namespace.node);
        Self { label, node: Node::Generic, namespace, config, content: 0, start: Instant::now() }
    }
}

/// A failure of the bed, in the suite's words.
fn told<T, E: std::fmt::Debug>(what: &str, result: Result<T, E>) -> Result<T, End> {
    result.or_else(|error| fail_case(format!("{what}: {error:?}")))
}

impl Bed for Passthrough {
    fn name(&self) -> String {
        self.label.clone()
    }

    fn transport(&mut self) -> Result<Box<dyn Transport>, End> {
        Ok(match self.node {
            Node::Generic => Box::new(told("a ring", PassthroughTransport::new(self.config.clone()))?),
            Node::Block => Box::new(told("a ring", UringTransport::new(self.config.clone()))?),
        })
    }

    fn object(&mut self, content: &[u8]) -> Result<Target, End> {
        if !content.len().is_multiple_of(block::ALIGN_BYTES) {
            return skip_case("a namespace has the length that it has");
        }
        self.content = content.len();
        let mut image = Aligned::of(content.len(), 0);
        image.bytes_mut().copy_from_slice(content);
        let file = told("the block device", block::open(&self.namespace.node))?;
        told("a write", file.write_all_at(image.bytes(), 0))?;
        let node = match self.node {
            Node::Generic => told("the generic node", generic(&self.namespace))?,
            Node::Block => self.namespace.node.clone(),
        };
        let opened = FileStore::new(IO_URING).open(&node.to_string_lossy(), OpenMode::Update);
        Ok(Target { object: told("open", opened)?, face: 0 })
    }

    fn content(&mut self, _target: &Target) -> Result<Vec<u8>, End> {
        let mut image = Aligned::of(self.content, 0xA5);
        let file = told("the block device", block::open(&self.namespace.node))?;
        told("a read", file.read_exact_at(image.bytes_mut(), 0))?;
        Ok(image.bytes().to_vec())
    }

    fn failing_object(&mut self) -> Result<Target, End> {
        skip_case("the emulated controller fails single sectors only")
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn clock(&self) -> Clock {
        Clock::Real
    }
}
