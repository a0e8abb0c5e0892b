//! # Engine
// UNSAFETY: exported names, and a structure that C callers fill.
#![expect(unsafe_code, reason = "exported names, and a structure that C callers fill")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use straightway::{Engine, Error};

use crate::{
    edge::{call, misuse},
    handle::{Handle, Kind, Table},
    pointer::{In, Out, Str, versioned},
    pump::Pump,
    report,
    status::SwStatus,
    text::{self, SwText},
};

/// Moves bytes between objects and memory. Any thread may use it. Closed by `sw_engine_close`.
#[repr(C)]
pub struct SwEngine {
    _opaque: [u8; 0],
}

impl Kind for SwEngine {
    type State = EngineState;
    const TAG: u8 = 0xa1;
    const NAME: &'static str = "an engine";

    fn table() -> &'static Table<EngineState> {
        static TABLE: Table<EngineState> = Table::new();
        &TABLE
    }
}

/// What is behind a handle of an engine, shared by its objects, regions and operations.
pub struct EngineState {
    pub(crate) engine: Engine,
    /// Made with the first operation that wants to be told of.
    pub(crate) pump: Mutex<PumpSlot>,
    /// Regions by their first address and their handle: length in bytes.
    pub(crate) regions: RwLock<BTreeMap<(u64, u64), u64>>,
}

/// The thread that tells of ends.
#[derive(Default)]
pub(crate) enum PumpSlot {
    /// Nobody wanted to be told yet.
    #[default]
    None,
    Some(Pump),
    /// The engine was closed.
    Closed,
}

/// How an engine is made.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SwEngineOptions {
    /// Size of this structure in bytes, set by the caller.
    pub size: usize,
    /// Settings as the command line has them, with spaces or commas between, such as `queue_depth=128 gpu=off`. NULL: the
    /// defaults. They are: `reactors` (1 to 64), `queue_depth` (1 to 4096), `io_bytes`, `staging_bytes`,
    /// `staging=BYTESxCOUNT`, `ops_per_lane`, `keep_bytes`, `sqpoll_ms`, `iopoll=on|off`, `gpu=auto|off`,
    /// `io_uring=auto|off`, `nvme=auto|off`, `nvme_backend=auto|type1|iommufd|noiommu`,
    /// `nvme_completion=polled|interrupt|hybrid`, `cufile=on-request|prefer|off`, `cufile_library=FILE`. Bytes may be written as
    /// `64KiB`.
    pub settings: Str,
}

versioned!(SwEngineOptions, "sw_engine_options", 16);

/// Makes an engine. Its threads and queues come with the first operation that needs them. `options` may be NULL.
///
/// Errors: `SW_ERR_API_MISUSE` for a setting that does not exist or is out of range.
#[unsafe(no_mangle)]
pub extern "C" fn sw_engine_open(options: In<SwEngineOptions>, engine: Out<Handle<SwEngine>>) -> SwStatus {
    call(|| {
        let out = engine.ready("engine")?;
        let settings = options.sized()?.settings.text("sw_engine_options.settings")?.unwrap_or_default();
        let state = EngineState { engine: build(settings)?, pump: Mutex::default(), regions: RwLock::default() };
        out.put(Handle::make(Arc::new(state))?);
        Ok(())
    })
}

fn build(settings: &str) -> Result<Engine, Error> {
    let mut builder = Engine::builder();
    for setting in settings.split([' ', ',', '\t', '\n']).filter(|setting| !setting.is_empty()) {
        let (name, value) = setting
            .split_once('=')
            .ok_or_else(|| misuse(format!("the setting {setting:?} has no value"), "write NAME=VALUE"))?;
        builder = builder.set(name, value)?;
    }
    builder.build()
}

/// Ends every operation in flight and stops the engine; each operation gets its answer. Callbacks are over when it returns, unless it
/// was called from one. Objects, regions and operations of the engine are still to be closed or freed by their own functions; other
/// calls with them fail with `SW_ERR_CLOSED`. Takes up to 5 seconds for each queue whose device does not answer.
///
/// Errors: `SW_ERR_PROTOCOL` if a device did not let go of memory in time. The handle is closed all the same, and that memory
/// is kept until the process ends.
#[unsafe(no_mangle)]
pub extern "C" fn sw_engine_close(engine: Handle<SwEngine>) -> SwStatus {
    call(|| {
        let state = engine.end(|_| Ok(()))?;
        let closed = state.engine.clone().close();
        let mut slot = state.pump.lock().unwrap_or_else(PoisonError::into_inner);
        let pump = std::mem::replace(&mut *slot, PumpSlot::Closed);
        drop(slot);
        if let PumpSlot::Some(pump) = pump {
            pump.stop();
        }
        closed
    })
}

/// Tells what this machine can do, and what to change: JSON with the fields `health` and `facts` of `straightway.doctor/1`,
/// which `docs/json.md` lists. Freed by `sw_text_free`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_engine_doctor(engine: Handle<SwEngine>, json: Out<Handle<SwText>>) -> SwStatus {
    call(|| {
        let out = json.ready("json")?;
        text::give(report::doctor(&engine.get()?.engine.doctor()), out)
    })
}

/// Tells the live state of an engine, as text for people. Freed by `sw_text_free`.
#[unsafe(no_mangle)]
pub extern "C" fn sw_engine_inspect(engine: Handle<SwEngine>, state: Out<Handle<SwText>>) -> SwStatus {
    call(|| {
        let out = state.ready("state")?;
        text::give(engine.get()?.engine.inspect().to_string(), out)
    })
}
