//! What tests use to steer the stand-in and to look inside. Not part of the driver's interface; names begin `standin_`.
// UNSAFETY: exported names, and the look-up of our own symbols by the loader.
#![expect(unsafe_code, reason = "exported names and dlsym on ourselves")]

use std::ffi::CString;

use crate::abi::Text;
use crate::arena::Kind;
use crate::config::Mode;
use crate::state;

/// Makes the `nth` call of `name` from now (1: the next; 0: every) answer `code`. Answers 0, or 1 for a bad name.
#[unsafe(no_mangle)]
pub extern "C" fn standin_set_fault(name: Text, nth: u64, code: u32) -> u32 {
    let Ok(name) = name.get() else { return 1 };
    state::with(|s| s.faults.add(name, nth, code));
    0
}

/// Forgets the faults that have not been played.
#[unsafe(no_mangle)]
pub extern "C" fn standin_clear_faults() {
    state::with(|s| s.faults.clear());
}

/// Every context of the device answers `code` from now on, as after a device fell off the bus.
#[unsafe(no_mangle)]
pub extern "C" fn standin_lose_device(ordinal: u32, code: u32) {
    state::with(|s| {
        for context in s.contexts.values_mut().filter(|c| c.device == ordinal as usize) {
            context.sticky = code;
        }
    });
    state::PROGRESS.notify_all();
}

/// Changes a setting: `mode` (0 lazy, 1 worker, 2 eager), `query_polls`, `delay_us`, `dmabuf`, `p2p`. Answers 0, or 1 for
/// an unknown name.
#[unsafe(no_mangle)]
pub extern "C" fn standin_set(name: Text, value: u64) -> u32 {
    let Ok(name) = name.get() else { return 1 };
    state::with(|s| {
        match name {
            "mode" => {
                s.config.mode = match value {
                    0 => Mode::Lazy,
                    1 => Mode::Worker,
                    _ => Mode::Eager,
                }
            }
            "query_polls" => s.config.query_polls = u32::try_from(value).unwrap_or(u32::MAX),
            "delay_us" => s.config.delay_us = value,
            "dmabuf" => s.config.dmabuf = value != 0,
            "p2p" => s.config.p2p = value != 0,
            _ => return 1,
        }
        0
    })
}

/// A counter by name; `u64::MAX` for an unknown one. `live` is everything that somebody has to release; `calls.NAME`
/// counts the calls of one function.
#[unsafe(no_mangle)]
pub extern "C" fn standin_stat(name: Text) -> u64 {
    let Ok(name) = name.get() else { return u64::MAX };
    state::with(|s| match name {
        "live" => s.live(),
        "live.device" => s.arena.count(Kind::Device),
        "live.managed" => s.arena.count(Kind::Managed),
        "live.host" => s.arena.count(Kind::HostAlloc),
        "live.registered" => s.arena.count(Kind::Registered),
        "live.streams" => s.live_streams(),
        "live.events" => s.events.len() as u64,
        "live.modules" => s.modules.len() as u64,
        "kernels" => s.stats.kernels,
        "live.contexts" => s.contexts.len() as u64,
        "live.retains" => s.devices.iter().map(|d| u64::from(d.retains)).sum(),
        "pending" => s.streams.values().map(|st| st.queued - st.done).sum(),
        "panics" => s.stats.panics,
        "freed_in_flight" => s.stats.freed_in_flight,
        "canaries_hurt" => s.arena.canaries_hurt,
        "copies" => s.stats.copies,
        "copied_bytes" => s.stats.copied_bytes,
        "exports" => s.stats.exports,
        "queue_peak" => s.stats.queue_peak,
        "blocking_waits" => s.stats.blocking_waits,
        "faults_played" => s.faults.hits,
        _ => match name.strip_prefix("calls.") {
            Some("all") => s.stats.calls.values().sum(),
            Some(function) => s.stats.calls.get(function).copied().unwrap_or(0),
            None => u64::MAX,
        },
    })
}

/// Address of one of our exported functions, for `cuGetProcAddress`: the name as given, then its `_v2`.
pub fn symbol(name: &str) -> Option<u64> {
    if !name.starts_with("cu") {
        return None;
    }
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    let own: *const libc::c_void = (standin_clear_faults as extern "C" fn()) as *const libc::c_void;
    // SAFETY: an address inside this library and a writable result.
    if unsafe { libc::dladdr(own, &raw mut info) } == 0 {
        return None;
    }
    // SAFETY: `dladdr` succeeded, so the name is the loader's own zero-terminated text.
    let handle = unsafe { libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    if handle.is_null() {
        return None;
    }
    [name.to_owned(), format!("{name}_v2")].into_iter().find_map(|candidate| {
        let candidate = CString::new(candidate).ok()?;
        // SAFETY: a live handle (the library is us) and a zero-terminated name.
        let found = unsafe { libc::dlsym(handle, candidate.as_ptr()) };
        (!found.is_null()).then(|| found.expose_provenance() as u64)
    })
}
