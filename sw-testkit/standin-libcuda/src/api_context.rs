//! Contexts: primary ones counted by retains, others made and destroyed, one stack of current ones per thread.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the driver's")]

use crate::abi::{
    Answer, INVALID_CONTEXT, INVALID_VALUE, Out, PEER_ACCESS_ALREADY_ENABLED, PEER_ACCESS_NOT_ENABLED,
    PEER_ACCESS_UNSUPPORTED, api,
};
use crate::state::Life;
use crate::{queue, state};

api! {
    fn cuDevicePrimaryCtxRetain(context: Out<u64>, device: i32) {
        let handle = state::attempt(|s| {
            let index = s.device(device)?;
            let handle = match s.devices[index].primary {
                Some(handle) => handle,
                None => s.create_context(index, Life::Retained),
            };
            s.devices[index].primary = Some(handle);
            s.devices[index].retains += 1;
            Ok(handle)
        })?;
        context.set(handle)
    }

    fn cuDevicePrimaryCtxRelease_v2(device: i32) {
        let last = state::attempt(|s| {
            let index = s.device(device)?;
            let dev = &mut s.devices[index];
            dev.retains = dev.retains.checked_sub(1).ok_or(INVALID_CONTEXT)?;
            Ok(if dev.retains == 0 { dev.primary.take() } else { None })
        })?;
        end(last)
    }

    fn cuDevicePrimaryCtxReset_v2(device: i32) {
        let primary = state::with(|s| s.device(device).map(|index| s.devices[index].primary.take()))?;
        end(primary)
    }

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        let alive = state::with(|s| s.device(device).map(|index| s.devices[index].primary.is_some()))?;
        flags.set_if(0);
        active.set(i32::from(alive))
    }

    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, _flags: u32) {
        state::with(|s| s.device(device)).map(|_| ())
    }

    fn cuCtxCreate_v2(context: Out<u64>, _flags: u32, device: i32) {
        create(&context, device)
    }

    fn cuCtxCreate_v3(context: Out<u64>, _affinity: u64, _count: i32, _flags: u32, device: i32) {
        create(&context, device)
    }

    fn cuCtxCreate_v4(context: Out<u64>, _params: u64, _flags: u32, device: i32) {
        create(&context, device)
    }

    fn cuCtxDestroy_v2(context: u64) {
        let known = state::with(|s| s.contexts.get(&context).map(|c| c.life));
        match known {
            Some(Life::Created) => end(Some(context)),
            _ => Err(INVALID_CONTEXT),
        }
    }

    fn cuCtxGetCurrent(context: Out<u64>) {
        context.set(state::current().unwrap_or(0))
    }

    fn cuCtxSetCurrent(context: u64) {
        known_or_null(context)?;
        state::replace(context);
        Ok(())
    }

    fn cuCtxPushCurrent_v2(context: u64) {
        known_or_null(context)?;
        state::push(context);
        Ok(())
    }

    fn cuCtxPopCurrent_v2(context: Out<u64>) {
        let popped = state::pop().ok_or(INVALID_CONTEXT)?;
        context.set_if(popped);
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<i32>) {
        let index = state::attempt(|s| {
            let context = s.current_any()?;
            Ok(s.contexts.get(&context).map_or(0, |c| c.device))
        })?;
        device.set(i32::try_from(index).unwrap_or(0))
    }

    fn cuCtxGetFlags(flags: Out<u32>) {
        state::with(|s| s.current())?;
        flags.set(0)
    }

    fn cuCtxGetId(context: u64, id: Out<u64>) {
        let context = if context == 0 { state::with(|s| s.current_any())? } else { context };
        known_or_null(context)?;
        id.set(context)
    }

    fn cuCtxGetApiVersion(context: u64, version: Out<u32>) {
        known_or_null(context)?;
        version.set(12_080)
    }

    fn cuCtxGetLimit(value: Out<u64>, _limit: u32) {
        state::with(|s| s.current())?;
        value.set(1024)
    }

    fn cuCtxSetLimit(_limit: u32, _value: u64) {
        state::with(|s| s.current()).map(|_| ())
    }

    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        state::with(|s| s.current())?;
        least.set_if(0);
        greatest.set_if(-5);
        Ok(())
    }

    fn cuCtxSynchronize() {
        let context = state::attempt(|s| {
            s.stats.blocking_waits += 1;
            s.current()
        })?;
        queue::drain_context(context)
    }

    fn cuCtxEnablePeerAccess(peer: u64, flags: u32) {
        state::attempt(|s| {
            let context = s.current()?;
            let other = s.contexts.get(&peer).ok_or(INVALID_CONTEXT)?.device;
            let p2p = s.config.p2p;
            let this = s.contexts.get_mut(&context).ok_or(INVALID_CONTEXT)?;
            if flags != 0 {
                return Err(INVALID_VALUE);
            }
            if !p2p || this.device == other {
                return Err(PEER_ACCESS_UNSUPPORTED);
            }
            if this.peers.contains(&peer) {
                return Err(PEER_ACCESS_ALREADY_ENABLED);
            }
            this.peers.push(peer);
            Ok(())
        })
    }

    fn cuCtxDisablePeerAccess(peer: u64) {
        state::attempt(|s| {
            let context = s.current()?;
            let this = s.contexts.get_mut(&context).ok_or(INVALID_CONTEXT)?;
            let at = this.peers.iter().position(|p| *p == peer).ok_or(PEER_ACCESS_NOT_ENABLED)?;
            this.peers.remove(at);
            Ok(())
        })
    }
}

fn create(out: &Out<u64>, device: i32) -> Answer {
    let handle = state::with(|s| s.device(device).map(|index| s.create_context(index, Life::Created)))?;
    state::push(handle);
    out.set(handle)
}

fn known_or_null(context: u64) -> Answer {
    let known = context == 0 || state::with(|s| s.contexts.contains_key(&context));
    if known { Ok(()) } else { Err(INVALID_CONTEXT) }
}

/// Ends a context after what was queued in it, as the driver does.
fn end(context: Option<u64>) -> Answer {
    let Some(context) = context else { return Ok(()) };
    let outcome = queue::drain_context(context);
    if state::current() == Some(context) {
        state::pop();
    }
    state::with(|s| s.destroy_context(context));
    outcome
}
