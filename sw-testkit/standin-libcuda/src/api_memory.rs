//! Allocating, registering, freeing, exporting.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the driver's")]

use crate::abi::{
    Answer, HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED, INVALID_CONTEXT, INVALID_VALUE, NOT_SUPPORTED,
    Out, api,
};
use crate::arena::Kind;
use crate::state::State;
use crate::{queue, state};

api! {
    fn cuMemGetInfo_v2(free: Out<u64>, total: Out<u64>) {
        let (left, all) = state::attempt(|s| {
            let context = s.current()?;
            let device = device_of(s, context)?;
            Ok((s.config.vram_bytes.saturating_sub(s.arena.used(device)), s.config.vram_bytes))
        })?;
        free.set(left)?;
        total.set(all)
    }

    fn cuMemAlloc_v2(pointer: Out<u64>, bytes: u64) {
        pointer.set(device_alloc(bytes)?)
    }

    fn cuMemAllocAsync(pointer: Out<u64>, bytes: u64, stream: u64) {
        state::with(|s| s.stream(stream))?;
        pointer.set(device_alloc(bytes)?)
    }

    fn cuMemFree_v2(pointer: u64) {
        if pointer == 0 {
            return Ok(());
        }
        release(pointer, &[Kind::Device, Kind::Managed], INVALID_VALUE)
    }

    fn cuMemFreeAsync(pointer: u64, stream: u64) {
        let (stream, seq) = state::attempt(|s| {
            let stream = s.stream(stream)?;
            Ok((stream, s.streams.get(&stream).map_or(0, |st| st.queued)))
        })?;
        queue::run_to(stream, seq)?;
        release(pointer, &[Kind::Device], INVALID_VALUE)
    }

    fn cuMemAllocManaged(pointer: Out<u64>, bytes: u64, flags: u32) {
        // cuda.h, "enum CUmemAttach_flags": global 1, host 2.
        if flags != 1 && flags != 2 {
            return Err(INVALID_VALUE);
        }
        pointer.set(host_alloc(Kind::Managed, bytes)?)
    }

    fn cuMemHostAlloc(pointer: Out<u64>, bytes: u64, _flags: u32) {
        pointer.set(host_alloc(Kind::HostAlloc, bytes)?)
    }

    fn cuMemAllocHost_v2(pointer: Out<u64>, bytes: u64) {
        pointer.set(host_alloc(Kind::HostAlloc, bytes)?)
    }

    fn cuMemFreeHost(pointer: u64) {
        release(pointer, &[Kind::HostAlloc], INVALID_VALUE)
    }

    fn cuMemHostRegister_v2(pointer: u64, bytes: u64, _flags: u32) {
        if pointer == 0 || bytes == 0 {
            return Err(INVALID_VALUE);
        }
        state::attempt(|s| {
            let context = s.current()?;
            let device = device_of(s, context)?;
            s.arena.register(device, context, pointer, bytes).ok_or(HOST_MEMORY_ALREADY_REGISTERED)
        })
    }

    fn cuMemHostUnregister(pointer: u64) {
        release(pointer, &[Kind::Registered], HOST_MEMORY_NOT_REGISTERED)
    }

    fn cuMemHostGetDevicePointer_v2(device: Out<u64>, pointer: u64, flags: u32) {
        let known = state::attempt(|s| {
            s.current()?;
            Ok(s.arena.find(pointer).is_some_and(|r| matches!(r.kind, Kind::HostAlloc | Kind::Registered)))
        })?;
        if !known || flags != 0 {
            return Err(INVALID_VALUE);
        }
        device.set(pointer)
    }

    fn cuMemHostGetFlags(flags: Out<u32>, pointer: u64) {
        let known = state::with(|s| s.arena.find(pointer).is_some_and(|r| r.kind == Kind::HostAlloc));
        // Portable and mapped: what unified addressing makes of every page-locked allocation.
        if known { flags.set(3) } else { Err(INVALID_VALUE) }
    }

    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<u64>, pointer: u64) {
        let (start, len) = state::attempt(|s| {
            s.current()?;
            let range = s.arena.find(pointer).ok_or(crate::abi::NOT_FOUND)?;
            Ok((range.base, range.len))
        })?;
        base.set_if(start);
        bytes.set_if(len);
        Ok(())
    }

    fn cuMemGetHandleForAddressRange(handle: Out<i32>, pointer: u64, bytes: u64, kind: u32, flags: u64) {
        // cuda.h, "enum CUmemRangeHandleType": dma-buf descriptor 1; flags: PCIe mapping 1.
        if kind != 1 || flags > 1 {
            return Err(INVALID_VALUE);
        }
        let fd = state::attempt(|s| {
            s.current()?;
            if !s.config.dmabuf {
                return Err(NOT_SUPPORTED);
            }
            let fd = s.arena.export(pointer, bytes)?;
            s.stats.exports += 1;
            Ok(fd)
        })?;
        handle.set(fd)
    }

    fn cuMemPrefetchAsync(pointer: u64, bytes: u64, _device: i32, stream: u64) {
        state::attempt(|s| {
            s.stream(stream)?;
            s.arena.reach(pointer, bytes).map(|_| ()).ok_or(INVALID_VALUE)
        })
    }

    fn cuMemAdvise(pointer: u64, bytes: u64, _advice: u32, _device: i32) {
        state::with(|s| s.arena.reach(pointer, bytes).map(|_| ()).ok_or(INVALID_VALUE))
    }
}

fn device_of(s: &State, context: u64) -> Answer<usize> {
    s.contexts.get(&context).map(|c| c.device).ok_or(INVALID_CONTEXT)
}

fn device_alloc(bytes: u64) -> Answer<u64> {
    state::attempt(|s| {
        let context = s.current()?;
        let device = device_of(s, context)?;
        let (vram, access) = (s.config.vram_bytes, s.config.access);
        s.arena.device_alloc(device, context, bytes, vram, access)
    })
}

fn host_alloc(kind: Kind, bytes: u64) -> Answer<u64> {
    state::attempt(|s| {
        let context = s.current()?;
        let device = device_of(s, context)?;
        s.arena.host_alloc(kind, device, context, bytes)
    })
}

/// Gives memory back. The driver waits for work in flight first; so does the stand-in, and counts that it had to.
/// In a broken context the memory is given back too, and the sticky code is the answer.
fn release(pointer: u64, kinds: &[Kind], otherwise: u32) -> Answer {
    let owner = state::attempt(|s| {
        s.current_any()?;
        let range = s.arena.find(pointer).filter(|r| r.base == pointer && kinds.contains(&r.kind));
        let (owner, base, len) = range.map(|r| (r.context, r.base, r.len)).ok_or(otherwise)?;
        s.stats.freed_in_flight += u64::from(queue::is_pending_on(s, base, len));
        Ok(owner)
    })?;
    let outcome = queue::drain_context(owner);
    state::with(|s| s.arena.remove(pointer, kinds));
    outcome
}
