//! Everything the stand-in remembers, behind one lock.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::abi::{Answer, Code, INVALID_CONTEXT, INVALID_DEVICE, INVALID_HANDLE, NO_DEVICE, NOT_INITIALIZED};
use crate::arena::{Arena, Kind};
use crate::config::Config;
use crate::fault::Faults;
use crate::kernels::{Code as KernelCode, Function};
use crate::queue::{Event, Stream};

/// One device.
#[derive(Debug, Default)]
pub struct Device {
    /// Handle of the primary context while it lives.
    pub primary: Option<u64>,
    /// Retains not yet released.
    pub retains: u32,
}

/// Who ends a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The last release of the device's primary context.
    Retained,
    /// `cuCtxDestroy`.
    Created,
}

/// One context.
#[derive(Debug)]
pub struct Context {
    /// Ordinal of its device.
    pub device: usize,
    /// Who ends it.
    pub life: Life,
    /// Zero, or the code that every later call answers.
    pub sticky: Code,
    /// Contexts whose memory it may reach.
    pub peers: Vec<u64>,
    /// Handle of its default stream.
    pub default_stream: u64,
}

/// One loaded module.
#[derive(Debug)]
pub struct Module {
    /// Context that loaded it.
    pub context: u64,
    /// Its kernels.
    pub entries: Vec<Function>,
}

/// Counters that tests read.
#[derive(Debug, Default)]
pub struct Stats {
    /// Panics caught at the edge.
    pub panics: u64,
    /// Memory freed or unregistered while queued work still named a byte of it.
    pub freed_in_flight: u64,
    /// Copies executed.
    pub copies: u64,
    /// Kernels run.
    pub kernels: u64,
    /// Bytes copied.
    pub copied_bytes: u64,
    /// dma-buf descriptors handed out.
    pub exports: u64,
    /// Longest queue of one stream seen.
    pub queue_peak: u64,
    /// Blocking waits asked for (stream, event, context).
    pub blocking_waits: u64,
    /// Calls by name.
    pub calls: HashMap<&'static str, u64>,
}

/// The state of the process.
#[derive(Debug)]
pub struct State {
    /// Settings.
    pub config: Config,
    /// Whether `cuInit` was called.
    pub ready: bool,
    /// Process that initialised; a child of it is refused.
    pub pid: u32,
    /// Devices by ordinal.
    pub devices: Vec<Device>,
    /// Contexts by handle.
    pub contexts: HashMap<u64, Context>,
    /// Streams by handle.
    pub streams: HashMap<u64, Stream>,
    /// Events by handle.
    pub events: HashMap<u64, Event>,
    /// Modules by handle.
    pub modules: HashMap<u64, Module>,
    /// Functions by handle, each with its module.
    pub functions: HashMap<u64, (u64, Function)>,
    /// The code of kernels, once one was loaded.
    pub code: Option<KernelCode>,
    /// Memory.
    pub arena: Arena,
    /// Faults to come.
    pub faults: Faults,
    /// Counters.
    pub stats: Stats,
    /// Whether the worker thread of mode worker has been started.
    pub worker_started: bool,
    next_handle: u64,
}

impl State {
    fn new() -> Self {
        let config = Config::from_env();
        let mut faults = Faults::default();
        for (name, nth, code) in Config::faults_from_env() {
            faults.add(&name, nth, code);
        }
        Self {
            devices: (0..config.devices).map(|_| Device::default()).collect(),
            config,
            ready: false,
            pid: std::process::id(),
            contexts: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            code: None,
            arena: Arena::default(),
            faults,
            stats: Stats::default(),
            worker_started: false,
            // Handles look like pointers into nothing: aligned, never null, never a small number.
            next_handle: 0x5eed_0000_0000,
        }
    }

    /// What every exported function does first.
    pub fn enter(&mut self, name: &'static str) -> Answer {
        *self.stats.calls.entry(name).or_insert(0) += 1;
        if let Some(code) = self.faults.due(name) {
            return Err(code);
        }
        let free = ["cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString", "cuGetExportTable"];
        if free.contains(&name) || name.starts_with("cuGetProcAddress") {
            return Ok(());
        }
        if !self.ready || self.pid != std::process::id() {
            return Err(NOT_INITIALIZED);
        }
        Ok(())
    }

    /// A handle that was never used before.
    pub fn handle(&mut self) -> u64 {
        self.next_handle += 0x100;
        self.next_handle
    }

    /// Checks a device ordinal.
    pub fn device(&self, ordinal: i32) -> Answer<usize> {
        let index = usize::try_from(ordinal).map_err(|_| INVALID_DEVICE)?;
        if self.devices.is_empty() {
            return Err(NO_DEVICE);
        }
        if index < self.devices.len() { Ok(index) } else { Err(INVALID_DEVICE) }
    }

    /// The current context of this thread, whatever its health.
    pub fn current_any(&self) -> Answer<u64> {
        let handle = current().ok_or(INVALID_CONTEXT)?;
        if self.contexts.contains_key(&handle) { Ok(handle) } else { Err(INVALID_CONTEXT) }
    }

    /// The current context of this thread; its sticky error if it has one.
    pub fn current(&self) -> Answer<u64> {
        let handle = self.current_any()?;
        self.health(handle)?;
        Ok(handle)
    }

    /// `Err` with the sticky code of a broken context.
    pub fn health(&self, context: u64) -> Answer {
        match self.contexts.get(&context).map(|c| c.sticky) {
            Some(0) => Ok(()),
            Some(code) => Err(code),
            None => Err(INVALID_CONTEXT),
        }
    }

    /// Makes a context with its default stream.
    pub fn create_context(&mut self, device: usize, life: Life) -> u64 {
        let handle = self.handle();
        let default_stream = self.handle();
        self.streams.insert(default_stream, Stream::default_of(handle));
        let context = Context { device, life, sticky: 0, peers: Vec::new(), default_stream };
        self.contexts.insert(handle, context);
        handle
    }

    /// Destroys a context and what was made in it, as the driver does. Its queued work must have been drained.
    pub fn destroy_context(&mut self, context: u64) {
        self.streams.retain(|_, s| s.context != context);
        self.events.retain(|_, e| e.context != context);
        self.modules.retain(|_, m| m.context != context);
        let modules = &self.modules;
        self.functions.retain(|_, (module, _)| modules.contains_key(module));
        for (base, kind) in self.arena.bases_of(context) {
            self.arena.remove(base, &[kind]);
        }
        self.contexts.remove(&context);
    }

    /// The stream that a C handle means: null, 1 and 2 are default streams of the current context.
    pub fn stream(&self, handle: u64) -> Answer<u64> {
        if handle <= 2 {
            let context = self.current()?;
            return Ok(self.contexts.get(&context).ok_or(INVALID_CONTEXT)?.default_stream);
        }
        if self.streams.contains_key(&handle) { Ok(handle) } else { Err(INVALID_HANDLE) }
    }

    /// Streams that programs made (default streams come with their context).
    pub fn live_streams(&self) -> u64 {
        self.streams.values().filter(|s| !s.is_default).count() as u64
    }

    /// Things that are alive and that somebody has to release.
    pub fn live(&self) -> u64 {
        let memory: u64 = [Kind::Device, Kind::Managed, Kind::HostAlloc, Kind::Registered]
            .iter()
            .map(|kind| self.arena.count(*kind))
            .sum();
        let retains: u64 = self.devices.iter().map(|d| u64::from(d.retains)).sum();
        let created = self.contexts.values().filter(|c| c.life == Life::Created).count() as u64;
        memory + retains + created + self.live_streams() + self.events.len() as u64 + self.modules.len() as u64
    }
}

static STATE: Mutex<Option<State>> = Mutex::new(None);
/// Told whenever queued work has run or was queued.
pub static PROGRESS: Condvar = Condvar::new();

thread_local! {
    static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Locks the state. A panic while it was locked does not matter: it is a test double, and the panic was counted.
pub fn lock() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` on the state.
pub fn with<T>(f: impl FnOnce(&mut State) -> T) -> T {
    f(lock().get_or_insert_with(State::new))
}

/// As [`with`], for what can fail with a driver's code.
pub fn attempt<T>(f: impl FnOnce(&mut State) -> Answer<T>) -> Answer<T> {
    with(f)
}

/// As [`with`], for the panic handler: does nothing if the state does not exist yet.
pub fn with_quiet(f: impl FnOnce(&mut State)) {
    if let Some(state) = lock().as_mut() {
        f(state);
    }
}

/// The context on top of this thread's stack.
pub fn current() -> Option<u64> {
    CURRENT.with_borrow(|stack| stack.last().copied()).filter(|handle| *handle != 0)
}

/// Pushes a context.
pub fn push(handle: u64) {
    CURRENT.with_borrow_mut(|stack| stack.push(handle));
}

/// Pops a context.
pub fn pop() -> Option<u64> {
    CURRENT.with_borrow_mut(Vec::pop).filter(|handle| *handle != 0)
}

/// Replaces the top of the stack.
pub fn replace(handle: u64) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        stack.push(handle);
    });
}
