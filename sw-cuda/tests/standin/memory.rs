//! Allocating, registering, finding interior pointers, pinning, exporting; several devices and contexts.
// UNSAFETY: plays the caller who registers memory of its own.

use std::os::fd::{AsFd, AsRawFd};

use standin_libcuda::harness::Control;
use sw_cuda::{
    Context, CudaCopyEngine, DeviceBuffer, DmaBuf, Driver, HostPin, ManagedBuffer, PinnedBuffer, PointerKind,
};
use sw_engine::{ErrorKind, seam::CopyEngine};
use sw_mem::{Buffer, ByteLen, DeviceId, GpuVa, Place};

use crate::{Case, Outcome, case, first_context, holds, same, text};

pub fn cases() -> Vec<Case> {
    vec![
        case("allocations_become_regions_and_are_freed_with_the_last_span", regions),
        case("interior_pointers_find_their_allocation", interior),
        case("a_range_that_leaves_its_allocation_is_refused", leaves),
        case("memory_that_the_driver_does_not_know_is_refused", unknown),
        case("a_reused_address_has_another_identity", reused),
        case("pins_of_one_range_share_a_registration", pins),
        case("a_partial_pin_of_another_library_is_refused", partial_pin),
        case("an_export_is_a_descriptor_of_the_memory", export),
        case("a_context_of_the_caller_is_used_and_not_ended", caller_context),
        case("the_current_context_is_left_as_it_was", current_is_kept),
        Case {
            settings: &[("STANDIN_DEVICES", "4"), ("STANDIN_VRAM_MIB", "8")],
            ..case("several_devices_keep_their_memory_apart", several)
        },
    ]
}

fn regions() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    let device = DeviceBuffer::allocate(&context, ByteLen(10_000)).map_err(text)?.into_region().map_err(text)?;
    let managed = ManagedBuffer::allocate(&context, ByteLen(5000)).map_err(text)?.into_region().map_err(text)?;
    let pinned = PinnedBuffer::allocate(&context, ByteLen(5000)).map_err(text)?.into_region().map_err(text)?;
    holds("device place", matches!(device.base(), Place::Device(DeviceId(0), _)))?;
    holds("the CPU is refused", device.span(0, ByteLen(4)).map_err(text)?.write(0, b"no").is_err())?;
    for region in [&managed, &pinned] {
        let span = region.span(100, ByteLen(5)).map_err(text)?;
        span.write(0, b"bytes").map_err(text)?;
        let mut back = [0; 5];
        span.read(0, &mut back).map_err(text)?;
        same("host access", back, *b"bytes")?;
    }
    let span = device.span(0, ByteLen(1)).map_err(text)?;
    drop(device);
    same("kept by its span", control.stat("live.device"), 1)?;
    drop(span);
    same("freed", control.stat("live.device"), 0)?;
    same(
        "length zero",
        DeviceBuffer::allocate(&context, ByteLen(0)).map(|_| ()).map_err(|e| e.kind),
        Err(ErrorKind::ApiMisuse),
    )
}

fn interior() -> Outcome {
    let context = first_context()?;
    let driver = context.device().driver();
    let buffer = DeviceBuffer::allocate(&context, ByteLen(1 << 20)).map_err(text)?;
    let base = buffer.base().raw();
    let facts = driver.pointer_facts(base + 12_345).map_err(text)?;
    same("kind", facts.kind, PointerKind::Device)?;
    same("place", (facts.base, facts.len, facts.offset), (base, 1 << 20, 12_345))?;
    same("left", facts.bytes_left(), (1 << 20) - 12_345)?;
    same(
        "both calls agree",
        context.address_range(GpuVa::new(base + 12_345)).map_err(text)?,
        (GpuVa::new(base), ByteLen(1 << 20)),
    )?;
    // SAFETY: `buffer` outlives `region`, which is dropped in this function.
    let (region, _) = unsafe { driver.register_existing(base + 512, ByteLen(1000)) }.map_err(text)?;
    same("region", region.base(), Place::Device(DeviceId(0), GpuVa::new(base + 512)))?;
    let managed = ManagedBuffer::allocate(&context, ByteLen(8192)).map_err(text)?;
    same("managed", driver.pointer_facts(managed.base().raw() + 8191).map_err(text)?.kind, PointerKind::Managed)?;
    let pinned = PinnedBuffer::allocate(&context, ByteLen(8192)).map_err(text)?;
    // SAFETY: as above; no reference into it exists.
    let (region, facts) = unsafe { driver.register_existing(pinned.base().raw() + 1, ByteLen(8191)) }.map_err(text)?;
    same("pinned", facts.kind, PointerKind::PinnedHost)?;
    holds("reached by the CPU", matches!(region.base(), Place::Host(_)))
}

fn leaves() -> Outcome {
    let context = first_context()?;
    let driver = context.device().driver();
    let buffer = DeviceBuffer::allocate(&context, ByteLen(4096)).map_err(text)?;
    for (offset, len) in [(0, 4097), (4095, 2), (0, 0), (1, u64::MAX)] {
        // SAFETY: `buffer` outlives the region, if there were one.
        let answer = unsafe { driver.register_existing(buffer.base().raw() + offset, ByteLen(len)) };
        same("refused", answer.map(|_| ()).map_err(|e| e.kind), Err(ErrorKind::OutOfRange))?;
    }
    Ok(())
}

fn unknown() -> Outcome {
    let context = first_context()?;
    let driver = context.device().driver();
    let pageable = [0u8; 64];
    let gone = DeviceBuffer::allocate(&context, ByteLen(4096)).map_err(text)?.base().raw();
    for address in [pageable.as_ptr().addr() as u64, 0, u64::MAX, gone] {
        same("kind", driver.pointer_facts(address).map_err(text)?.kind, PointerKind::Unknown)?;
        // SAFETY: no region comes into being.
        let answer = unsafe { driver.register_existing(address, ByteLen(16)) };
        same("refused", answer.map(|_| ()).map_err(|e| e.kind), Err(ErrorKind::NotRegistered))?;
    }
    Ok(())
}

fn reused() -> Outcome {
    let context = first_context()?;
    let driver = context.device().driver();
    let first = DeviceBuffer::allocate(&context, ByteLen(4096)).map_err(text)?;
    let (address, id) = (first.base(), driver.pointer_facts(first.base().raw()).map_err(text)?.buffer_id);
    drop(first);
    let second = DeviceBuffer::allocate(&context, ByteLen(4096)).map_err(text)?;
    same("address used again", second.base(), address)?;
    holds("with another identity", driver.pointer_facts(address.raw()).map_err(text)?.buffer_id != id)
}

fn pins() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    let slabs = Buffer::allocate(ByteLen::mib(1)).map_err(text)?.into_span();
    let mut first = CudaCopyEngine::new(&context, Default::default()).map_err(text)?;
    let mut second = CudaCopyEngine::new(&context, Default::default()).map_err(text)?;
    let a = first.pin(slabs.region()).map_err(text)?;
    let b = second.pin(slabs.region()).map_err(text)?;
    same("one registration", control.stat("calls.cuMemHostRegister_v2"), 1)?;
    drop(a);
    same("kept for the other", control.stat("live.registered"), 1)?;
    drop(b);
    same("ended with the last", control.stat("live.registered"), 0)?;
    let device = DeviceBuffer::allocate(&context, ByteLen(4096)).map_err(text)?.into_region().map_err(text)?;
    same("device memory", first.pin(&device).map(|_| ()).map_err(|f| f.kind), Err(ErrorKind::ApiMisuse))
}

fn partial_pin() -> Outcome {
    let context = first_context()?;
    let driver = context.device().driver();
    let slabs = Buffer::allocate(ByteLen::mib(1)).map_err(text)?.into_span();
    let pinned = HostPin::new(&context, slabs.region()).map_err(text)?;
    // The same bytes under a region of another library: twice as long, so only a part of it is registered.
    let base = slabs.place().host().ok_or("host memory")?;
    let wide = Place::Host(sw_mem::HostVa::new(base.raw() - 4096));
    // SAFETY: never read or written: the pin is refused before anything touches it.
    let wide = unsafe { sw_mem::DmaRegion::from_foreign(wide, ByteLen::mib(1), Box::new(())) }.map_err(text)?;
    let error = HostPin::new(&context, &wide).map(|_| ()).err().ok_or("a partial pin was taken")?;
    same("kind", error.kind, ErrorKind::InUse)?;
    holds("remedy", error.remedy.contains("whole"))?;
    same("found as pinned", driver.pointer_facts(base.raw() + 5).map_err(text)?.kind, PointerKind::PinnedHost)?;
    drop(pinned);
    Ok(())
}

fn export() -> Outcome {
    let context = first_context()?;
    let buffer = DeviceBuffer::allocate(&context, ByteLen(8192)).map_err(text)?;
    let exported = DmaBuf::export(&context, buffer.base(), ByteLen(8192)).map_err(text)?;
    holds("a descriptor", exported.as_fd().as_raw_fd() > 2)?;
    same("length", exported.len(), ByteLen(8192))?;
    let odd = GpuVa::new(buffer.base().raw() + 1);
    let error = DmaBuf::export(&context, odd, ByteLen(4096)).map(|_| ()).err().ok_or("exported half a page")?;
    same("kind", error.kind, ErrorKind::ApiMisuse)
}

fn caller_context() -> Outcome {
    let driver = Driver::load().map_err(text)?;
    // SAFETY: no context is current, so none is kept.
    let none = unsafe { Context::of_caller(driver) };
    same("none", none.map(|_| ()).map_err(|e| e.kind), Err(ErrorKind::ApiMisuse))?;
    let control = Control::open()?;
    let made = crate::copies::make_current_context()?;
    {
        // SAFETY: `made` is destroyed after everything made from it.
        let context = unsafe { Context::of_caller(driver) }.map_err(text)?;
        same("its device", context.device().ordinal(), 0)?;
        let buffer = DeviceBuffer::allocate(&context, ByteLen(4096)).map_err(text)?;
        same("allocated in it", driver.pointer_facts(buffer.base().raw()).map_err(text)?.kind, PointerKind::Device)?;
    }
    same("not ended", control.stat("live.contexts"), 1)?;
    drop(made);
    same("ended by its owner", control.stat("live.contexts"), 0)
}

fn current_is_kept() -> Outcome {
    let made = crate::copies::make_current_context()?;
    let before = crate::copies::current_context();
    let context = first_context()?;
    holds("they differ", before != 0)?;
    let buffer = DeviceBuffer::allocate(&context, ByteLen(4096)).map_err(text)?;
    sw_cuda::SelfTest::run(&context).map_err(text)?;
    drop((buffer, context));
    same("current", crate::copies::current_context(), before)?;
    drop(made);
    Ok(())
}

fn several() -> Outcome {
    let driver = Driver::load().map_err(text)?;
    let mut kept = Vec::new();
    for device in driver.devices().map_err(text)? {
        let context = Context::primary(&device).map_err(text)?;
        let buffer = DeviceBuffer::allocate(&context, ByteLen::mib(6)).map_err(text)?;
        let facts = driver.pointer_facts(buffer.base().raw()).map_err(text)?;
        same("owner", facts.device, Some(device.ordinal()))?;
        same("free", context.memory_info().map_err(text)?, (2 << 20, 8 << 20))?;
        let error = DeviceBuffer::allocate(&context, ByteLen::mib(6)).map(|_| ()).err().ok_or("more than there is")?;
        same("kind", (error.kind, error.device), (ErrorKind::ResourceLimit, Some(device.ordinal())))?;
        sw_cuda::SelfTest::run(&context).map_err(text)?;
        kept.push((context, buffer));
    }
    same("devices", kept.len(), 4)
}
