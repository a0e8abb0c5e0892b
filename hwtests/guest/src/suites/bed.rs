//! The bed itself: devices are where they should be, the kernel's driver moves bytes, drivers can be changed, faults
//! and removal happen. If one of these fails, no failure of another suite means anything.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::block::{self, Aligned};
use crate::context::{Context, read_text};
use crate::registry::{Suite, Test, Verdict, fail, same};

pub const SUITE: Suite = Suite {
    name: "bed",
    tests: &[
        Test::new("host-answers", "the host does what it knows and refuses the rest", host_answers).bed_only(),
        Test::new("kernel-log", "a test reads what the kernel logs meanwhile", kernel_log).harmless(),
        Test::new("machine", "controllers have their serials, namespaces, block sizes and limits", machine).bed_only(),
        Test::new("groups", "each device is alone in its IOMMU group", groups).harmless(),
        Test::new("kernel-io", "the kernel's driver writes and reads every namespace", kernel_io),
        Test::new("vfio-and-back", "a controller goes to vfio-pci and back, and keeps its data", vfio_and_back),
        Test::new("peer", "the peer has a memory BAR, which the host sees", peer).bed_only(),
        Test::new("media-errors", "injected errors hit their sectors and no neighbour", media_errors)
            .bed_only()
            .limit_s(60),
        Test::new("removal", "a controller that is pulled out is gone, and works when put back", removal)
            .bed_only()
            .limit_s(60),
    ],
};

/// Vendor and device of QEMU's NVMe controller and of its shared memory device.
const NVME_ID: &str = "1b36:0010";
const PEER_ID: &str = "1af4:1110";
/// Bytes of every disk and of the peer's BAR.
const DISK_BYTES: u64 = 64 << 20;
/// The peer's memory is its BAR 2 (QEMU, `docs/specs/ivshmem-spec.rst`).
const PEER_BAR: usize = 2;

fn host_answers(context: &Context) -> Verdict {
    same("echo", &context.host("echo", "one two")?, &"one two".to_string())?;
    let refused = context.ask_host("device_del", "no-such-device");
    same("an unknown device is refused", &refused.is_err(), &true)?;
    context.fact(&json!({"kernel": read_text(Path::new("/proc/version")).unwrap_or_default()}));
    Ok(())
}

fn kernel_log(context: &Context) -> Verdict {
    let mark = "sw-guest: a line of the bed's own";
    // Without the line's end the kernel would keep the record open for more.
    std::fs::write("/dev/kmsg", format!("{mark}\n"))?;
    let log = context.kernel_log();
    if !log.iter().any(|line| line.ends_with(mark)) {
        return fail(format!("{mark:?} is not in {log:?}"));
    }
    same("and only once", &context.kernel_log().iter().any(|line| line.ends_with(mark)), &false)
}

fn machine(context: &Context) -> Verdict {
    for (role, serial, block_bytes) in [("nvme-a", "sw-a", [512, 4096].as_slice()), ("nvme-b", "sw-b", &[512])] {
        let device = context.device(role)?;
        same(role, &device.id()?, &NVME_ID.to_string())?;
        let found = block::namespaces(context, &device, block_bytes.len())?;
        for (namespace, (nsid, block_bytes)) in found.iter().zip((1..).zip(block_bytes)) {
            same("namespace", &(namespace.nsid, namespace.block_bytes), &(nsid, *block_bytes))?;
            same("bytes", &namespace.bytes, &DISK_BYTES)?;
        }
        let node = found.first().map(|namespace| namespace.node.clone()).unwrap_or_default();
        let queue = Path::new("/sys/block").join(node.file_name().unwrap_or_default());
        same("serial", &read_text(&queue.join("device/serial"))?, &serial.to_string())?;
        context.fact(&json!({
            "role": role,
            "address": device.address,
            "transfer_max_kib": read_text(&queue.join("queue/max_hw_sectors_kb"))?,
            "firmware": read_text(&queue.join("device/firmware_rev"))?,
        }));
    }
    Ok(())
}

fn groups(context: &Context) -> Verdict {
    for role in ["nvme-a", "nvme-b", "peer"] {
        let device = context.device(role)?;
        let Some(_) = device.iommu_group() else { return fail(format!("{role} has no IOMMU group")) };
        same(role, &device.group_members(), &vec![device.address.clone()])?;
    }
    Ok(())
}

fn kernel_io(context: &Context) -> Verdict {
    for (role, count) in [("nvme-a", 2), ("nvme-b", 1)] {
        let device = context.device(role)?;
        for namespace in block::namespaces(context, &device, count)? {
            // One block, then more than the small controller moves in one command, at the end of the namespace.
            let block = usize::try_from(namespace.block_bytes)?;
            block::write_and_check(&namespace, 1, 0, block)?;
            block::write_and_check(&namespace, 2, namespace.bytes - (1 << 20), 1 << 20)?;
        }
    }
    Ok(())
}

fn vfio_and_back(context: &Context) -> Verdict {
    let device = context.device("nvme-b")?;
    let before = block::namespaces(context, &device, 1)?;
    let Some(namespace) = before.first() else { return fail("no namespace") };
    block::write_and_check(namespace, 3, 4096, 64 << 10)?;
    device.bind("vfio-pci")?;
    let Some(group) = device.iommu_group() else { return fail("no IOMMU group") };
    let node = Path::new("/dev/vfio").join(&group);
    context.until(Duration::from_secs(5), &node.display().to_string(), || node.exists().then_some(()))?;
    same("/dev/vfio/vfio", &Path::new("/dev/vfio/vfio").exists(), &true)?;
    same("no block device while vfio-pci has it", &block::list(&device).len(), &0)?;
    let after = block::namespaces(context, &device, 1)?;
    let Some(namespace) = after.first() else { return fail("no namespace") };
    block::check(namespace, 3, 4096, 64 << 10)
}

fn peer(context: &Context) -> Verdict {
    let device = context.device("peer")?;
    same("peer", &device.id()?, &PEER_ID.to_string())?;
    same("bytes of BAR 2", &device.bar_bytes(PEER_BAR)?, &DISK_BYTES)?;
    device.bind("vfio-pci")?;
    // An empty file behind the BAR: FNV-1a of eight zero bytes, as the host computes it.
    let zeroes = (0..8).fold(0xcbf2_9ce4_8422_2325_u64, |hash, _| hash.wrapping_mul(0x0100_0000_01b3));
    same("the host's sum", &context.host("peer_sum", "0 8")?, &format!("{zeroes:016x}"))
}

fn media_errors(context: &Context) -> Verdict {
    let device = context.device("nvme-faulty")?;
    let found = block::namespaces(context, &device, 1)?;
    let Some(namespace) = found.first() else { return fail("no namespace") };
    let bad_read = context.number("bad_read")? * 512;
    let bad_write = context.number("bad_write")? * 512;
    let file = block::open(&namespace.node)?;
    let mut memory = Aligned::of(512, 0);
    // The kernel's word for "unrecovered read error" and "write fault" (Linux `drivers/nvme/host/core.c`, the table of
    // status codes: BLK_STS_MEDIUM, which user space sees as ENODATA).
    let medium = Some(libc::ENODATA);
    let error = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    same("read", &error(file.read_exact_at(memory.bytes_mut(), bad_read)), &medium)?;
    same("read of the next", &error(file.read_exact_at(memory.bytes_mut(), bad_read + 512)), &None)?;
    same("write", &error(file.write_all_at(memory.bytes(), bad_write)), &medium)?;
    same("write of the next", &error(file.write_all_at(memory.bytes(), bad_write + 512)), &None)?;
    same("read where writes fail", &error(file.read_exact_at(memory.bytes_mut(), bad_write)), &None)
}

fn removal(context: &Context) -> Verdict {
    let device = context.device("nvme-b")?;
    let found = block::namespaces(context, &device, 1)?;
    let Some(namespace) = found.first() else { return fail("no namespace") };
    block::write_and_check(namespace, 4, 0, 4096)?;
    let file = block::open(&namespace.node)?;
    context.host("device_del", "nvme-b")?;
    // Direct reads without a pause, until one fails: the controller goes while it works.
    let failed = context.until(Duration::from_secs(20), "a read that fails", || {
        file.read_exact_at(Aligned::of(4096, 0).bytes_mut(), 0).err()
    })?;
    context.fact(&json!({"error_after_removal": failed.to_string()}));
    context.until(Duration::from_secs(20), "the device gone", || (!context.present("nvme-b")).then_some(()))?;
    context.host("device_add", "nvme-b")?;
    let device = context.until(Duration::from_secs(20), "the device back", || context.device("nvme-b").ok())?;
    let found = block::namespaces(context, &device, 1)?;
    let Some(namespace) = found.first() else { return fail("no namespace") };
    block::check(namespace, 4, 0, 4096)
}
