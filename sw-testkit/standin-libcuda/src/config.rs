//! What the stand-in pretends to be; read once from the environment, changed by the control functions.
#![expect(clippy::disallowed_methods, reason = "a loaded library has no other way to be told what to be")]

/// When queued work runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only when somebody waits, or after `query_polls` answers of "not ready". Deterministic.
    Lazy,
    /// On a thread of the stand-in, `delay_us` after it was queued.
    Worker,
    /// At once, inside the call that queues it.
    Eager,
}

/// Whether the CPU can follow a device pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It faults, as on a real machine.
    Opaque,
    /// It can: for tests of code that maps device memory.
    Mapped,
}

/// The settings, each with its environment variable.
#[derive(Clone, Debug)]
pub struct Config {
    /// `STANDIN_DEVICES`: number of devices, 0 to 16, 1 unless told.
    pub devices: usize,
    /// `STANDIN_VRAM_MIB`: memory of each device in MiB, 1024 unless told.
    pub vram_bytes: u64,
    /// `STANDIN_MODE`: `lazy`, `worker` (unless told) or `eager`.
    pub mode: Mode,
    /// `STANDIN_QUERY_POLLS`: in mode lazy, how often a query says "not ready" before the work runs; 2 unless told.
    pub query_polls: u32,
    /// `STANDIN_DELAY_US`: in mode worker, microseconds between queueing and running; 50 unless told.
    pub delay_us: u64,
    /// `STANDIN_DMABUF`: `on` (unless told) or `off`.
    pub dmabuf: bool,
    /// `STANDIN_P2P`: `on` (unless told) or `off`.
    pub p2p: bool,
    /// `STANDIN_COHERENT`: `on` for a device that reads pageable memory through the host's page tables; off unless told.
    pub coherent: bool,
    /// `STANDIN_DEVICE_MEMORY`: `opaque` (unless told): the CPU faults on a device pointer; `mapped`: it can follow it.
    pub access: Access,
    /// `STANDIN_DRIVER_VERSION`: what `cuDriverGetVersion` says, 12080 unless told.
    pub driver_version: i32,
    /// `STANDIN_KERNELS`: the library with the code of kernels (`kernels/emulate`); without it no module loads.
    pub kernels: Option<String>,
}

impl Config {
    /// Reads the environment. A value that cannot be read leaves the default.
    pub fn from_env() -> Self {
        let text = |name: &str| std::env::var(name).ok();
        let number = |name: &str, default: u64| text(name).and_then(|v| v.parse().ok()).unwrap_or(default);
        let on = |name: &str, default: bool| text(name).map_or(default, |v| v == "on" || v == "1");
        Self {
            devices: usize::try_from(number("STANDIN_DEVICES", 1)).unwrap_or(1).min(16),
            vram_bytes: number("STANDIN_VRAM_MIB", 1024).clamp(1, 64 * 1024) << 20,
            mode: match text("STANDIN_MODE").as_deref() {
                Some("lazy") => Mode::Lazy,
                Some("eager") => Mode::Eager,
                _ => Mode::Worker,
            },
            query_polls: u32::try_from(number("STANDIN_QUERY_POLLS", 2)).unwrap_or(2),
            delay_us: number("STANDIN_DELAY_US", 50),
            dmabuf: on("STANDIN_DMABUF", true),
            p2p: on("STANDIN_P2P", true),
            coherent: on("STANDIN_COHERENT", false),
            access: match text("STANDIN_DEVICE_MEMORY").as_deref() {
                Some("mapped") => Access::Mapped,
                _ => Access::Opaque,
            },
            driver_version: i32::try_from(number("STANDIN_DRIVER_VERSION", 12_080)).unwrap_or(12_080),
            kernels: text("STANDIN_KERNELS"),
        }
    }

    /// The faults asked for at start, `STANDIN_FAULTS`: `name:nth:code`, separated by commas.
    pub fn faults_from_env() -> Vec<(String, u64, u32)> {
        let list = std::env::var("STANDIN_FAULTS").unwrap_or_default();
        list.split(',')
            .filter_map(|item| {
                let mut parts = item.split(':');
                let name = parts.next()?.trim().to_owned();
                let nth = parts.next()?.trim().parse().ok()?;
                let code = parts.next()?.trim().parse().ok()?;
                Some((name, nth, code))
            })
            .collect()
    }
}
