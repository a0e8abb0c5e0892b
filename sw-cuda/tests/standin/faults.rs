//! Every fault is a typed error, and nothing is left behind (the runner looks after each case).
// UNSAFETY: forks, to see what a child is told.

use std::time::Duration;

use standin_libcuda::harness::{COPY, Control};
use sw_cuda::{Context, CudaCopyEngine, CudaError, DeviceBuffer, Driver, HostPin, PinnedBuffer, SelfTest};
use sw_engine::ErrorKind;
use sw_engine::seam::{CopyDirection::ToDevice, CopyEngine, Fence};
use sw_mem::{Buffer, ByteLen};

use crate::copies::Bench;
use crate::{Case, Outcome, case, first_context, holds, same, text};

pub fn cases() -> Vec<Case> {
    vec![
        case("each_control_call_that_fails_is_typed_and_leaves_nothing", control_calls),
        case("a_refused_copy_fails_alone", refused_copy),
        case("a_copy_that_breaks_the_context_keeps_its_memory_in_flight", broken_submit),
        case("a_copy_that_fails_later_stops_the_engine", broken_later),
        case("a_lost_device_is_told_by_poll_and_fence", lost_device),
        case("an_event_that_cannot_be_recorded_stops_the_engine", no_event),
        case("a_context_that_cannot_be_entered_stops_the_engine", no_context),
        case("copies_told_before_the_loss_are_good", told_before),
        case("a_forked_child_is_told_so", forked),
    ]
}

/// What a program does with the control plane, from nothing to a passed self-test.
fn everything() -> Result<(), CudaError> {
    let driver = Driver::load().map_err(|_| CudaError::clone(&unexpected("cuInit")))?;
    let device = driver.device(0)?;
    device.name()?;
    device.uuid()?;
    device.memory_bytes()?;
    device.pci_address()?;
    device.compute_capability()?;
    let context = Context::primary(&device)?;
    context.memory_info()?;
    let pinned = PinnedBuffer::allocate(&context, ByteLen(4096))?;
    let buffer = DeviceBuffer::allocate(&context, ByteLen(4096))?;
    context.address_range(buffer.base())?;
    driver.pointer_facts(pinned.base().raw())?;
    let host = Buffer::allocate(ByteLen(4096)).map_err(|_| unexpected("mmap"))?.into_span();
    let pin = HostPin::new(&context, host.region())?;
    let engine = CudaCopyEngine::new(&context, Default::default())?;
    drop((engine, pin, pinned, buffer));
    SelfTest::run(&context).map(|_| ())
}

fn unexpected(call: &'static str) -> CudaError {
    CudaError { kind: ErrorKind::Protocol, code: 0, name: String::new(), call, device: None, remedy: "" }
}

fn control_calls() -> Outcome {
    Driver::load().map_err(text)?;
    let control = Control::open()?;
    everything().map_err(text)?;
    let faults: [(&str, u64, u32, ErrorKind); 19] = [
        ("cuDeviceGet", 1, 101, ErrorKind::NoDevice),
        ("cuDeviceGetName", 1, 999, ErrorKind::Io),
        ("cuDeviceGetUuid_v2", 1, 801, ErrorKind::Unsupported),
        ("cuDeviceTotalMem_v2", 1, 999, ErrorKind::Io),
        ("cuDeviceGetPCIBusId", 1, 1, ErrorKind::ApiMisuse),
        ("cuDeviceGetAttribute", 2, 1, ErrorKind::ApiMisuse),
        ("cuDevicePrimaryCtxRetain", 1, 2, ErrorKind::ResourceLimit),
        ("cuDevicePrimaryCtxRetain", 1, 46, ErrorKind::NoDevice),
        ("cuMemGetInfo_v2", 1, 700, ErrorKind::Io),
        ("cuMemHostAlloc", 1, 2, ErrorKind::ResourceLimit),
        ("cuMemAlloc_v2", 1, 2, ErrorKind::ResourceLimit),
        ("cuMemAlloc_v2", 2, 2, ErrorKind::ResourceLimit),
        ("cuMemGetAddressRange_v2", 1, 500, ErrorKind::NotFound),
        ("cuPointerGetAttributes", 1, 4711, ErrorKind::Io),
        ("cuMemHostRegister_v2", 1, 2, ErrorKind::ResourceLimit),
        ("cuMemHostRegister_v2", 2, 800, ErrorKind::PermissionDenied),
        ("cuStreamCreate", 2, 2, ErrorKind::ResourceLimit),
        ("cuEventCreate", 33, 2, ErrorKind::ResourceLimit),
        ("cuCtxPushCurrent_v2", 2, 201, ErrorKind::ApiMisuse),
    ];
    for (name, nth, code, kind) in faults {
        control.set_fault(name, nth, code);
        let before = control.stat("faults_played");
        let error = everything().err().ok_or_else(|| format!("{name} failed and nobody noticed"))?;
        same(&format!("{name} played"), control.stat("faults_played") - before, 1)?;
        same(&format!("{name} {code}"), (error.call, error.code, error.kind), (name, code, kind))?;
        same(&format!("left after {name}"), control.stat("live"), 0)?;
    }
    everything().map_err(text)
}

fn refused_copy() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    control.set_fault("cuMemcpyHtoDAsync_v2", 2, 1);
    for n in 0..4 {
        bench.engine.submit(&bench.job(n, ToDevice, 0, 0, 16)).map_err(text)?;
    }
    bench.engine.ring().map_err(text)?;
    bench.drain(4)?;
    let mut ends: Vec<(u64, bool)> = bench.done.drain(..).map(|d| (d.token.raw(), d.result.is_ok())).collect();
    ends.sort_unstable();
    same("one failed", ends, vec![(0, true), (1, false), (2, true), (3, true)])?;
    bench.copy(ToDevice, 0, 0, 16)
}

/// After a loss: no copy is taken, ring and poll say why, and the memory stays in flight.
fn is_lost(bench: &mut Bench, code: i32, busy: u32) -> Outcome {
    let job = bench.job(99, ToDevice, 0, 0, 16);
    same("submit", bench.engine.submit(&job).map_err(|f| (f.kind, f.code)), Err((ErrorKind::Io, code)))?;
    same("ring", bench.engine.ring().map_err(|f| f.code), Err(code))?;
    same("poll", bench.engine.poll(&mut bench.done).map_err(|f| f.code), Err(code))?;
    same("fence", bench.engine.fence(Duration::from_millis(5), &mut bench.done), Fence::Busy(busy))
}

fn broken_submit() -> Outcome {
    let context = first_context()?;
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    Control::open()?.set_fault("cuMemcpyHtoDAsync_v2", 2, 719);
    for n in 0..4 {
        bench.engine.submit(&bench.job(n, ToDevice, 0, 0, 16)).map_err(text)?;
    }
    same("ring", bench.engine.ring().map_err(|f| (f.kind, f.code)), Err((ErrorKind::Io, 719)))?;
    // The first copy runs, the second may: the other two were never handed over.
    is_lost(&mut bench, 719, 2)
}

fn broken_later() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    control.set("query_polls", 0);
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    control.set_fault(COPY, 1, 719);
    bench.engine.submit(&bench.job(0, ToDevice, 0, 0, 16)).map_err(text)?;
    bench.engine.ring().map_err(text)?;
    is_lost_after_poll(&mut bench, 719, 1)
}

fn is_lost_after_poll(bench: &mut Bench, code: i32, busy: u32) -> Outcome {
    let first = bench.engine.poll(&mut bench.done).map_err(|f| f.code);
    same("the poll that finds out", first, Err(code))?;
    same("nothing is told as good", bench.done.len(), 0)?;
    is_lost(bench, code, busy)
}

fn lost_device() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    for n in 0..3 {
        bench.engine.submit(&bench.job(n, ToDevice, 0, 0, 16)).map_err(text)?;
    }
    bench.engine.ring().map_err(text)?;
    control.lose_device(0, 999);
    is_lost_after_poll(&mut bench, 999, 3)?;
    let error = DeviceBuffer::allocate(&context, ByteLen(16)).map(|_| ()).err().ok_or("allocated on a lost device")?;
    holds("remedy", error.to_string().contains("Xid"))
}

fn no_event() -> Outcome {
    let context = first_context()?;
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    Control::open()?.set_fault("cuEventRecord", 1, 999);
    bench.engine.submit(&bench.job(0, ToDevice, 0, 0, 16)).map_err(text)?;
    same("ring", bench.engine.ring().map_err(|f| f.code), Err(999))?;
    is_lost(&mut bench, 999, 1)
}

fn no_context() -> Outcome {
    let context = first_context()?;
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    bench.engine.submit(&bench.job(0, ToDevice, 0, 0, 16)).map_err(text)?;
    Control::open()?.set_fault("cuCtxPushCurrent_v2", 1, 709);
    same("ring", bench.engine.ring().map_err(|f| f.code), Err(709))?;
    // Nothing was handed over, so nothing can touch memory.
    same("fence", bench.engine.fence(Duration::from_millis(5), &mut bench.done), Fence::Quiet)
}

fn told_before() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    control.set("query_polls", 0);
    let mut bench = Bench::new(&context, Default::default(), 8192)?;
    for n in 0..2 {
        control.set("query_polls", n * 1000);
        bench.engine.submit(&bench.job(n, ToDevice, 0, 0, 16)).map_err(text)?;
        bench.engine.ring().map_err(text)?;
    }
    same("the first is told", bench.engine.poll(&mut bench.done).map_err(text)?, 1)?;
    control.lose_device(0, 46);
    same("then the loss", bench.engine.poll(&mut bench.done).map_err(|f| f.kind), Err(ErrorKind::NoDevice))?;
    same("the second stays in flight", bench.engine.fence(Duration::ZERO, &mut bench.done), Fence::Busy(1))
}

fn forked() -> Outcome {
    let driver = Driver::load().map_err(text)?;
    // SAFETY: the process has one thread (mode lazy starts none); the child only calls the driver and `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let kind = driver.device(0).map(|_| ()).map_err(|e| e.kind);
        let status = i32::from(kind != Err(ErrorKind::Forked));
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: a child of ours and a writable result.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    same("the child saw", status, 0)?;
    driver.device(0).map(|_| ()).map_err(text)
}
