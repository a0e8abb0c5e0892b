//! Functions through VFIO, by every back end that the kernel has: claims, mappings, interrupts, a peer's BAR, loss.

use std::cell::Cell;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sw_engine::seam::{CopyDirection, CopyEngine, CopyJob, IoKind, Submit, Transport, Wait};
use sw_engine::{ErrorKind, Object, Token};
use sw_mem::{Buffer, ByteLen, DeviceId, DmaRegion, DmaSpan};
use sw_nvme::bus::{Bus, Registers};
use sw_nvme::controller::{Notify, Pair, PairRequest};
use sw_nvme::prp::Segment;
use sw_nvme::status::Status;
use sw_nvme::transport::Completion;
use sw_nvme::wire::{BlockCount, Command, IoFlags, LbaRange};
use sw_testkit::conformance::{self, End};
use sw_vfio::{Backend, ControllerClaim, DmaSpace, Gone, PeerBar, Sysfs, VfioFunction};

use crate::block;
use crate::context::Context;
use crate::io::{bytes, io, memory, piece};
use crate::registry::{Stop, Suite, Test, Verdict, fail, same, skip};
use crate::vfio_rig::{Rig, all, attach, bound, data, on_each};

pub const SUITE: Suite = Suite {
    name: "vfio",
    tests: &[
        Test::new(
            "bind-and-undo",
            "a controller is bound by a plan and given back to the driver it had",
            bind_and_undo,
        ),
        Test::new("bind-in-use", "a controller whose namespace is in use is not bound", bind_in_use).bed_only(),
        Test::new("claim-twice", "a second owner is refused and told who the first one is", claim_twice),
        Test::new("facts", "the machine's facts name the controller and what to do", facts),
        Test::new("identify", "a controller comes up and says who it is", identify),
        Test::new("interop", "what we write the kernel reads, and the reverse", interop).limit_s(60),
        Test::new("interrupts", "completions come by interrupt, none is lost", interrupts).limit_s(60),
        Test::new("mappings", "mappings are counted, limited, reused, and end with their memory", mappings)
            .bed_only()
            .limit_s(60),
        Test::new("unpinning", "what unmapping of large memory costs beside freeing it", unpinning)
            .bed_only()
            .limit_s(60),
        Test::new("unmapped", "DMA to memory that is mapped no more is stopped, and the memory is as it was", unmapped)
            .bed_only()
            .limit_s(120),
        Test::new("peer-copies", "the CPU copies into a BAR and out of it", peer_copies).limit_s(90),
        Test::new("peer-dma", "reads land in a BAR and writes come from it, byte for byte", peer_dma).limit_s(60),
        Test::new("reset", "a function is reset while it is idle and works again", reset).limit_s(60),
        Test::new("removal", "a controller that is pulled out under load is a typed error", removal)
            .bed_only()
            .limit_s(150),
    ],
};

/// Where a test works on a namespace, apart from the others' places.
const AT: u64 = 8 << 20;
/// What no data of these tests is.
const POISON: u8 = 0x77;
/// What the BAR is called in these tests.
const PEER: DeviceId = DeviceId(DeviceId::PEER_FIRST);

fn bind_and_undo(context: &Context) -> Verdict {
    let device = context.device("nvme-b")?;
    let (sysfs, address) = (Sysfs::default(), device.address.parse()?);
    let before = block::namespaces(context, &device, 1)?;
    let plan = sw_vfio::plan_bind(&sysfs, address)?;
    let told = plan.to_string();
    same("nothing happened yet", &device.driver().as_deref(), &Some("nvme"))?;
    if !["nvme/unbind", "driver_override", "drivers_probe"].iter().all(|word| told.contains(word)) {
        return fail(format!("the plan does not say what it does: {told}"));
    }
    plan.run(&sysfs)?;
    same("after binding", &device.driver().as_deref(), &Some("vfio-pci"))?;
    same("binding again", &sw_vfio::plan_bind(&sysfs, address)?.steps().len(), &0)?;
    let back = sw_vfio::plan_unbind(&sysfs, address)?;
    context.fact(&json!({"bind": told, "unbind": back.to_string()}));
    back.run(&sysfs)?;
    same("after unbinding", &device.driver().as_deref(), &Some("nvme"))?;
    same("its namespaces", &block::namespaces(context, &device, 1)?.len(), &before.len())
}

fn bind_in_use(context: &Context) -> Verdict {
    let device = context.device("nvme-b")?;
    let (sysfs, address) = (Sysfs::default(), device.address.parse()?);
    let namespaces = block::namespaces(context, &device, 1)?;
    let Some(namespace) = namespaces.first() else { return fail("no namespace") };
    let exclusive = std::fs::File::options().read(true).custom_flags(libc::O_EXCL).open(&namespace.node)?;
    let refused = sw_vfio::plan_bind(&sysfs, address);
    same("while somebody has it", &refused.as_ref().err().map(sw_engine::Error::kind), &Some(ErrorKind::InUse))?;
    drop(exclusive);
    let swap = Swap::on(namespace)?;
    let refused = sw_vfio::plan_bind(&sysfs, address);
    drop(swap);
    match refused {
        Err(error) if error.to_string().contains("is swap space") => {}
        other => return fail(format!("while it is swap space: {other:?}")),
    }
    same("afterwards", &sw_vfio::plan_bind(&sysfs, address).is_ok(), &true)
}

/// A namespace that the kernel swaps to, until it is dropped.
struct Swap(String);

impl Swap {
    fn on(namespace: &block::Namespace) -> Result<Swap, Stop> {
        let node = namespace.node.display().to_string();
        for program in ["mkswap", "swapon"] {
            let done = std::process::Command::new("/bin/busybox").args([program, &node]).output()?;
            if !done.status.success() {
                return skip(format!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim()));
            }
        }
        Ok(Swap(node))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = std::process::Command::new("/bin/busybox").args(["swapoff", &self.0]).status();
    }
}

fn claim_twice(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let address = bound(context, "nvme-b")?;
        let sysfs = Sysfs::default();
        let claim = ControllerClaim::take(&sysfs, address)?;
        let Err(second) = ControllerClaim::take(&sysfs, address) else { return fail("it was claimed twice") };
        if second.kind() != ErrorKind::InUse || !second.to_string().contains("this process has it already") {
            return fail(format!("{second:?}"));
        }
        // And without asking for the lock: the kernel opens it once.
        let start = Instant::now();
        let spaces = [DmaSpace::new(&sysfs, backend)?, DmaSpace::new(&sysfs, backend)?];
        let owner = VfioFunction::open(&spaces[0], address, start)?;
        for space in &spaces {
            match VfioFunction::open(space, address, start) {
                Err(error) if error.kind() == ErrorKind::InUse => {}
                other => return fail(format!("a second open: {:?}", other.map(|function| function.name().to_owned()))),
            }
        }
        if sw_vfio::plan_unbind(&sysfs, address).err().map(|error| error.kind()) != Some(ErrorKind::InUse) {
            return fail("it would be unbound while it is open");
        }
        drop(owner);
        VfioFunction::open(&spaces[1], address, start)?;
        drop(claim);
        ControllerClaim::take(&sysfs, address).map(drop).map_err(Stop::from)
    })
}

fn facts(context: &Context) -> Verdict {
    let device = context.device("nvme-a")?;
    device.bind("nvme")?;
    context.until(Duration::from_secs(5), "its serial", || device.attribute("nvme").err())?;
    let facts = sw_vfio::facts(&Sysfs::default());
    let find = |name: &str| facts.iter().find(|fact| fact.name == name);
    let Some(ours) = find(&format!("nvme.{}", device.address)) else { return fail(format!("{facts:?}")) };
    context.fact(&json!(
        facts.iter().map(|fact| format!("{}: {} {}", fact.name, fact.value, fact.remedy)).collect::<Vec<_>>()
    ));
    if device.iommu_group().is_none() {
        same("IOMMU", &find("iommu").map(|fact| fact.health), &Some(sw_vfio::Health::Missing))?;
        return Ok(());
    }
    if !ours.value.contains(context.serial("nvme-a").trim()) || !ours.remedy.contains("straightway nvme bind") {
        return fail(format!("{ours:?}"));
    }
    same("IOMMU", &find("iommu").map(|fact| fact.health), &Some(sw_vfio::Health::Good))
}

fn identify(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let info = &rig.controller.facts().info;
        same("serial", &info.serial.to_string().trim(), &context.serial("nvme-a").trim())?;
        let of_the_bed = if context.is_real() { [].as_slice() } else { &[(1, 512), (2, 4096)] };
        for &(nsid, block_bytes) in of_the_bed {
            let namespace = rig.namespace(nsid)?;
            same("block", &namespace.block_bytes(), &block_bytes)?;
            same("bytes", &namespace.len_bytes(), &(64 << 20))?;
        }
        let facts = rig.controller.facts();
        context.fact(&json!({"backend": backend.name(), "vectors": rig.function.vectors(),
            "queue_pairs": facts.queue_pairs, "space": format!("{:?}", rig.space.report()),
            "shadow_doorbells": facts.shadow_doorbells, "sgl": format!("{:?}", facts.sgl),
            "cmb": format!("{:?}", facts.cmb), "pmr": format!("{:?}", facts.pmr)}));
        Ok(())
    })
}

fn interop(context: &Context) -> Verdict {
    let device = context.device("nvme-b")?;
    on_each(context, |backend| {
        let len = 640 << 10;
        let theirs = block::namespaces(context, &device, 1)?;
        let Some(namespace) = theirs.first() else { return fail("no namespace") };
        block::write_and_check(namespace, 11, AT, len)?;
        {
            let rig = Rig::open(context, "nvme-b", backend)?;
            let object = rig.object(1)?;
            let mut lane = rig.lane(Completion::Polled)?;
            let span = data(backend, 1 << 20, 0xA5)?;
            attach(&mut lane, span.region())?;
            let len = u32::try_from(len)?;
            all(&mut lane, IoKind::Read, &object, AT, (&span, 4096, len))?;
            let got = bytes(&span, 0, 1 << 20)?;
            let end = 4096 + len as usize;
            same("what the kernel wrote", &(got[4096..end] == block::pattern(11, AT, len as usize)), &true)?;
            same("guards", &got[..4096].iter().chain(&got[end..]).all(|byte| *byte == 0xA5), &true)?;
            span.write(0, &block::pattern(12, AT + (4 << 20), 1 << 20))?;
            all(&mut lane, IoKind::Write, &object, AT + (4 << 20), (&span, 0, 1 << 20))?;
            rig.controller.shut_down()?;
        }
        let theirs = block::namespaces(context, &device, 1)?;
        let Some(namespace) = theirs.first() else { return fail("no namespace") };
        block::check(namespace, 12, AT + (4 << 20), 1 << 20)?;
        bound(context, "nvme-b").map(drop)
    })
}

fn interrupts(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        if rig.function.vectors() == 0 {
            return fail("the emulated controller has MSI-X");
        }
        let object = rig.object(1)?;
        let span = data(backend, 1 << 20, 0)?;
        // Two lanes: each has a vector of its own.
        let mut lanes = [rig.lane(Completion::Interrupt)?, rig.lane(Completion::Interrupt)?];
        for lane in &mut lanes {
            attach(lane, span.region())?;
        }
        for n in 0..200u64 {
            let lane = &mut lanes[usize::from(n % 2 == 1)];
            all(lane, IoKind::Read, &object, n * 4096, (&span, 0, 4096))?;
        }
        for lane in &lanes {
            let counters = lane.counters();
            // A sleep that took longer than it should on a busy machine counts as one whose interrupt was lost.
            if counters.lost_interrupts > 5 {
                return fail(format!("{} of 100 completions came without their interrupt", counters.lost_interrupts));
            }
            same("completions", &counters.queues.completions, &100)?;
        }
        Ok(())
    })
}

fn mappings(context: &Context) -> Verdict {
    on_each(context, |backend| {
        if backend == Backend::NoIommu {
            return skip("without an IOMMU nothing is mapped, counted or limited");
        }
        let limit = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
        let usual = std::fs::read_to_string(limit).ok();
        if backend == Backend::Type1 {
            std::fs::write(limit, "40")?;
        }
        let rig = Rig::open(context, "nvme-b", backend);
        if let Some(usual) = usual.filter(|_| backend == Backend::Type1) {
            std::fs::write(limit, usual.trim())?;
        }
        let rig = rig?;
        let before = rig.space.report();
        let mut held = Vec::new();
        let mut refused = None;
        for n in 0..64u64 {
            // Odd addresses and lengths: pages are shared by neighbours, and every region keeps its own address.
            let buffer =
                Buffer::allocate_with(ByteLen(5000 + n), n * 8, sw_mem::HugePages::Never, sw_mem::Populate::Lazy)?;
            match rig.function.map(buffer.region()) {
                Ok(iova) => {
                    same("mapped again", &rig.function.map(buffer.region())?, &iova)?;
                    held.push((iova, buffer));
                }
                Err(error) => refused = Some(error),
            }
        }
        let report = rig.space.report();
        same("entries", &report.entries, &(before.entries + held.len()))?;
        match (backend, refused) {
            (Backend::Type1, Some(error)) if error.kind() == ErrorKind::ResourceLimit => {
                same("all of them are used", &report.entries, &40)?;
            }
            (Backend::Iommufd, None) => {}
            (_, other) => return fail(format!("{other:?} after {} mappings", held.len())),
        }
        let first = held.first().map(|(iova, _)| *iova);
        held.clear();
        same("after they are gone", &rig.space.report(), &before)?;
        let again = Buffer::allocate(ByteLen(4096))?;
        same("an address is used again", &Some(rig.function.map(again.region())?), &first)?;
        // A large one has the address that lets the IOMMU use large pages.
        let large = Buffer::allocate(ByteLen(8 << 20))?;
        let (iova, va) = (rig.function.map(large.region())?, large.region().base().raw());
        same("congruent to 2 MiB", &(iova.raw() % (2 << 20)), &(va % (2 << 20)))
    })
}

/// Three times each: map, unmap and free, and free alone. The numbers go into the record.
fn unpinning(context: &Context) -> Verdict {
    const LEN: u64 = 128 << 20;
    on_each(context, |backend| {
        if backend == Backend::NoIommu {
            return skip("without an IOMMU nothing is pinned");
        }
        let rig = Rig::open(context, "nvme-b", backend)?;
        let before = rig.space.report();
        for pages in [sw_mem::HugePages::Never, sw_mem::HugePages::Advise] {
            let mut took = Vec::new();
            for _ in 0..3 {
                let made = || Buffer::allocate_with(ByteLen(LEN), 0, pages, sw_mem::Populate::Now);
                let (buffer, other) = (made()?, made()?);
                let begun = Instant::now();
                rig.space.map(buffer.region())?;
                let mapped = Instant::now();
                drop(buffer);
                let gone = Instant::now();
                same("mappings", &rig.space.report(), &before)?;
                let begun_free = Instant::now();
                drop(other);
                let spans = [mapped - begun, gone - mapped, begun_free.elapsed()];
                took.push(spans.map(|span| span.as_secs_f64()));
            }
            context.fact(&json!({"backend": backend.name(), "bytes": LEN, "pages": format!("{pages:?}"),
                "map_unmap_with_free_and_free_s": took}));
        }
        Ok(())
    })
}

/// Bytes of what is mapped no more.
const GONE_BYTES: u64 = 1 << 16;

/// Memory that was mapped and is not any more, which the host of the bed sees all the same: in the peer's BAR, full of poison.
struct BehindNothing {
    iova: sw_mem::Iova,
    offset: u64,
}

impl BehindNothing {
    fn new(context: &Context, rig: &Rig, backend: Backend) -> Result<Self, Stop> {
        let bar = peer(context, &rig.space)?;
        let region = bar.allocate(ByteLen(GONE_BYTES))?;
        let offset = region.base().raw();
        let poison = data(backend, GONE_BYTES, POISON)?;
        copy(&bar, CopyDirection::ToDevice, &poison, &region.span(0, ByteLen(GONE_BYTES))?)?;
        let iova = rig.function.map(&region)?;
        Ok(Self { iova, offset })
    }

    /// Fails unless it holds what it held.
    fn is_as_it_was(&self, context: &Context) -> Verdict {
        same_on_host(context, self.offset, &vec![POISON; sw_mem::index(GONE_BYTES)])
    }
}

fn unmapped(context: &Context) -> Verdict {
    on_each(context, |backend| {
        if backend == Backend::NoIommu {
            return skip("without an IOMMU nothing stops DMA");
        }
        let rig = Rig::open(context, "nvme-b", backend)?;
        let request = PairRequest { depth: 4, data_bytes_max: 1 << 16, notify: Notify::Polled };
        let mut pair = rig.controller.create_pair(&request)?;
        // Memory that is mapped, and beside it what is mapped last and not any more, so that nothing else gets its address.
        let here = memory(1 << 16, POISON)?;
        let mapped = rig.function.map(here.region())?;
        let gone = BehindNothing::new(context, &rig, backend)?;
        let page = |iova| Segment { iova, len: ByteLen(4096) };
        // Alone; and as the second page of a command whose first one is good.
        for (what, segments, kind, may_change) in [
            ("read", [page(gone.iova), page(gone.iova)], IoKind::Read, 0),
            ("read, its second page", [page(mapped), page(gone.iova)], IoKind::Read, 4096),
            ("write", [page(gone.iova), page(gone.iova)], IoKind::Write, 0),
        ] {
            here.fill(0, 1 << 16, POISON)?;
            // The kernel tells ten lines of faults in five seconds (Linux `drivers/iommu/intel/dmar.c`, `dmar_fault`), and one
            // command takes up to eight: what it told of another must not cost this one its own.
            std::thread::sleep(Duration::from_secs(6));
            context.kernel_log();
            let status = at_once(&mut pair, &segments, (what, kind))?;
            let address = format!("fault addr {:#x}", gone.iova.raw());
            let log = context.until(Duration::from_secs(5), &format!("{address} in the kernel's log"), || {
                context.kernel_log().into_iter().find(|line| line.contains("DMAR") && line.contains(&address))
            })?;
            // An answer without an error is no proof that bytes came: poison that is still there tells.
            let got = bytes(&here, 0, 1 << 16)?;
            let poisoned = got.iter().filter(|byte| **byte == POISON).count();
            let behind = got[may_change..].iter().all(|byte| *byte == POISON);
            context.fact(&json!({"backend": backend.name(), "command": what, "status": format!("{status:?}"),
                "log": log, "bytes_of_ours_still_poisoned": poisoned}));
            same(&format!("{what}: our memory past byte {may_change} is as it was"), &behind, &true)?;
            gone.is_as_it_was(context)?;
        }
        rig.controller.delete_pair(pair.queue.qid(), pair.epoch, Duration::from_secs(5));
        Ok(())
    })
}

/// One command of 16 blocks on a pair, and its status if it ends.
fn at_once(
    pair: &mut Pair<VfioFunction>,
    segments: &[Segment],
    (what, kind): (&str, IoKind),
) -> Result<Option<Status>, Stop> {
    let range = LbaRange { nsid: 1, slba: 0, nlb: BlockCount::new(16).ok_or(Stop::Fail("16 blocks".into()))? };
    let staged = pair.queue.stage(segments, 1, |pointer| match kind {
        IoKind::Write => Command::write(range, pointer, IoFlags::default()),
        _ => Command::read(range, pointer, IoFlags::default()),
    });
    if let Err(why) = staged {
        return fail(format!("{what} not staged: {why:?}"));
    }
    pair.queue.ring();
    let (mut status, start) = (None, Instant::now());
    while status.is_none() && start.elapsed() < Duration::from_secs(5) {
        pair.queue.poll(4, |ended| status = Some(ended.status));
    }
    Ok(status)
}

/// The peer's BAR that is used as memory.
///
/// # Errors
/// A skip where there is no peer.
pub(super) fn peer(context: &Context, space: &DmaSpace) -> Result<PeerBar, Stop> {
    let address = bound(context, "peer")?;
    Ok(PeerBar::open(space, address, context.bar("peer"), PEER)?)
}

struct CopyBed(PeerBar, Instant);

impl conformance::copy_engine::Bed for CopyBed {
    fn name(&self) -> String {
        format!("BAR {}", self.0.name())
    }

    fn engine(&mut self) -> Result<Box<dyn CopyEngine>, End> {
        self.0
            .copy_engine(16)
            .map_or_else(|error| Err(End::Fail(error.to_string())), |engine| Ok(Box::new(engine) as _))
    }

    fn device_memory(&mut self, len: ByteLen) -> Result<DmaRegion, End> {
        self.0.allocate(len).map_err(|error| End::Fail(error.to_string()))
    }

    fn now(&self) -> Duration {
        self.1.elapsed()
    }

    fn idle(&mut self) {}
}

fn peer_copies(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let space = DmaSpace::new(&Sysfs::default(), backend)?;
        let bar = peer(context, &space)?;
        bar.self_test()?;
        let report = conformance::copy_engine::run(&mut CopyBed(bar, Instant::now()));
        let failed: Vec<String> = report.failed().map(|row| format!("{row:?}")).collect();
        if failed.is_empty() { Ok(()) } else { fail(failed.join("; ")) }
    })
}

/// What the host sees in the file behind the BAR.
fn same_on_host(context: &Context, offset: u64, want: &[u8]) -> Verdict {
    // FNV-1a, 64 bits, as the host counts.
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let sum = want.iter().fold(0xcbf2_9ce4_8422_2325, step);
    let told = context.host("peer_sum", &format!("{offset} {}", want.len()))?;
    same("the BAR as the host sees it", &told, &format!("{sum:016x}"))
}

fn peer_dma(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-a", backend)?;
        let bar = peer(context, &rig.space)?;
        let object = rig.object(1)?;
        let mut lane = rig.lane(Completion::Polled)?;
        let host = data(backend, 2 << 20, 0)?;
        attach(&mut lane, host.region())?;
        host.write(0, &block::pattern(21, 0, 1 << 20))?;
        all(&mut lane, IoKind::Write, &object, AT, (&host, 0, 1 << 20))?;

        let region = bar.allocate(ByteLen(2 << 20))?;
        let at = region.base().raw();
        let span = region.span(0, ByteLen(2 << 20))?;
        attach(&mut lane, &region)?;
        let mut image = vec![0x5A; 2 << 20];
        host.write(0, &image)?;
        copy(&bar, CopyDirection::ToDevice, &host, &span)?;
        // Whole and ragged pages; a block in the middle of one; each list boundary.
        for (at, len, from) in
            [(4096, 512, 0u64), (8192 + 1024, 4096, 7 * 512), (65_536, 1 << 20, 0), (1_572_864 + 12, 131_072, 512)]
        {
            all(&mut lane, IoKind::Read, &object, AT + from, (&span, at, len))?;
            let (to, from, len) = (sw_mem::index(at), sw_mem::index(from), len as usize);
            image[to..to + len].copy_from_slice(&block::pattern(21, 0, 1 << 20)[from..from + len]);
        }
        let back = data(backend, 2 << 20, 0)?;
        copy(&bar, CopyDirection::FromDevice, &back, &span)?;
        same("the BAR, guards included", &(bytes(&back, 0, 2 << 20)? == image), &true)?;
        if !context.is_real() {
            same_on_host(context, at, &image)?;
        }
        // And out of it again, from an odd place, past our copies.
        all(&mut lane, IoKind::Write, &object, AT + (2 << 20), (&span, 65_536 + 4, 131_072))?;
        host.fill(0, 1 << 20, 0)?;
        all(&mut lane, IoKind::Read, &object, AT + (2 << 20), (&host, 0, 131_072))?;
        same("written from the BAR", &(bytes(&host, 0, 131_072)? == image[65_540..65_540 + 131_072]), &true)?;
        context.fact(&json!({"backend": backend.name(), "space": format!("{:?}", rig.space.report())}));
        drop(lane);
        let unmapped = rig.space.report().entries;
        drop((span, region));
        same(
            "the BAR is unmapped with its region",
            &rig.space.report().entries,
            &unmapped.saturating_sub(usize::from(backend != Backend::NoIommu)),
        )
    })
}

/// Copies all of `host` to a part of the BAR, or the reverse.
///
/// # Errors
/// A failure of the copy.
pub(super) fn copy(bar: &PeerBar, direction: CopyDirection, host: &DmaSpan, part: &DmaSpan) -> Verdict {
    let mut engine = bar.copy_engine(1)?;
    let fault = |fault: sw_engine::Fault| Stop::Fail(format!("{fault:?}"));
    let _pin = engine.pin(host.region()).map_err(fault)?;
    let (Some(from), sw_mem::Place::Device(_, device)) = (host.place().host(), part.place()) else {
        return fail("a slab in the host and memory in a device");
    };
    let token = Token::from_raw(1);
    let job = CopyJob { token, direction, host: from, device, len: u32::try_from(host.len().0)? };
    engine.submit(&job).map_err(fault)?;
    let mut done = Vec::with_capacity(1);
    engine.poll(&mut done).map_err(fault)?;
    match done.as_slice() {
        [one] => one.result.map_err(fault),
        other => fail(format!("{} ends of one copy", other.len())),
    }
}

fn reset(context: &Context) -> Verdict {
    on_each(context, |backend| {
        let rig = Rig::open(context, "nvme-b", backend)?;
        let registers = rig.function.registers();
        let (cap, version) = (registers.read64(0), registers.read32(8));
        // CSTS.RDY (Base, "Controller Status").
        same("ready", &(registers.read32(0x1C) & 1), &1)?;
        rig.function.reset()?;
        same("ready after a reset of the function", &(registers.read32(0x1C) & 1), &0)?;
        same("CAP and VS", &(registers.read64(0), registers.read32(8)), &(cap, version))?;
        same("DMA can be stopped", &rig.function.stop(), &true)?;
        drop((registers, rig));
        let again = Rig::open(context, "nvme-b", backend)?;
        same("serial", &again.controller.facts().info.serial.to_string().trim(), &context.serial("nvme-b").trim())
    })
}

/// Keeps a lane busy until something fails: how many reads ended well before, and the first fault.
fn load(lane: &mut dyn Transport, object: &Object, span: &DmaSpan, reads: &AtomicU64) -> Result<String, Stop> {
    let start = Instant::now();
    let mut next = 0u64;
    let mut ended = Vec::with_capacity(64);
    while start.elapsed() < Duration::from_secs(60) {
        let mut read = io(IoKind::Read, object, next % 64 * 65_536, Some(piece(span, next % 8 * 65_536, 65_536)?))?;
        read.token = Token::from_raw(next);
        if lane.submit(&read) == Submit::Accepted {
            next += 1;
            continue;
        }
        let wait = Wait::For { timeout: Duration::from_secs(1), min: 1 };
        if let Err(error) = lane.poll(wait, &mut ended) {
            return Ok(format!("{:?}", error.kind()));
        }
        for done in ended.drain(..) {
            match done.result {
                Ok(_) => reads.fetch_add(1, Ordering::Relaxed),
                Err(fault) => return Ok(format!("{:?}", fault.kind)),
            };
        }
    }
    fail("nothing happened for a minute")
}

fn removal(context: &Context) -> Verdict {
    let there = Cell::new(Put::Back);
    on_each(context, |backend| {
        for completion in [Completion::Polled, Completion::Interrupt] {
            if there.get() == Put::Nowhere {
                return skip(format!("not tried by {completion:?}: the emulator did not put the device back"));
            }
            there.set(pulled_out(context, backend, completion)?);
        }
        Ok(())
    })
}

/// Whether a device that was pulled out is there again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    Back,
    Nowhere,
}

fn pulled_out(context: &Context, backend: Backend, completion: Completion) -> Result<Put, Stop> {
    let rig = Rig::open(context, "nvme-b", backend)?;
    let object = rig.object(1)?;
    let span = data(backend, 1 << 20, 0)?;
    let mut lane = rig.lane(completion)?;
    attach(&mut lane, span.region())?;
    let reads = AtomicU64::new(0);
    let (mut lane, span, kind, told_after) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let kind = load(&mut lane, &object, &span, &reads);
            (lane, span, kind, Instant::now())
        });
        context.until(Duration::from_secs(20), "reads", || (reads.load(Ordering::Relaxed) > 200).then_some(()))?;
        let start = Instant::now();
        context.host("device_del", "nvme-b")?;
        match worker.join() {
            Ok((lane, span, kind, end)) => Ok((lane, span, kind?, end.saturating_duration_since(start))),
            Err(_) => fail("the lane panicked"),
        }
    })?;
    same("the error", &kind.as_str(), &"NoDevice")?;
    same("the function", &rig.function.gone(), &Some(Gone::Requested))?;
    let registers = rig.function.registers();
    same("a register", &registers.read32(0x1C), &u32::MAX)?;
    let mut left = Vec::with_capacity(64);
    let fence = lane.fence(Duration::from_secs(5), &mut left);
    same("the fence", &fence, &sw_engine::seam::Fence::Quiet)?;
    same("DMA", &rig.function.stop(), &true)?;
    context.fact(&json!({"backend": backend.name(), "completion": format!("{completion:?}"),
        "reads_before": reads.load(Ordering::Relaxed), "told_after_s": told_after.as_secs_f64(),
        "bus_errors": sw_vfio::replaced_pages()}));
    let address = rig.function.address();
    drop(lane);
    drop(registers);
    let space = rig.space.clone();
    drop(rig);
    drop(span);
    same("mappings afterwards", &space.report().entries, &0)?;
    let path = format!("/sys/bus/pci/devices/{address}");
    let gone = || (!std::path::Path::new(&path).exists()).then_some(());
    context.until(Duration::from_secs(10), "the kernel lets go of it", gone)?;
    // An emulated controller whose bus mastership ended between a command and its data retries for ever, by its source
    // (QEMU 7.2, `dma_blk_cb`), and QEMU then keeps the device: one removal in twenty here, more on a busy machine.
    if let Err(reason) = context.ask_host("device_add", "nvme-b") {
        context.fact(&json!({"not_put_back": reason}));
        return Ok(Put::Nowhere);
    }
    let again = Rig::open(context, "nvme-b", backend)?;
    same("serial", &again.controller.facts().info.serial.to_string().trim(), &context.serial("nvme-b").trim())?;
    Ok(Put::Back)
}
