//! What this machine can do and what to change: one line a fact, with a remedy where there is one.

use std::fs;

use crate::backends::Backends;

/// How a fact stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As good as it gets.
    Good,
    /// Works, slower or with less than it could.
    Limited,
    /// Not there.
    Missing,
    /// Neither good nor bad.
    Neutral,
}

impl Health {
    /// The name that reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Limited => "limited",
            Self::Missing => "missing",
            Self::Neutral => "info",
        }
    }
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// A stable name such as `io_uring` or `gpu0.bar1`.
    pub name: String,
    /// How it stands.
    pub health: Health,
    /// Its value.
    pub value: String,
    /// What to do about it; empty if nothing.
    pub remedy: String,
}

/// All facts, in a stable order.
#[derive(Clone, Debug, Default)]
pub struct Doctor {
    /// The facts.
    pub facts: Vec<Fact>,
}

impl Doctor {
    pub(crate) fn examine(backends: &Backends) -> Self {
        let mut doctor = Self::default();
        doctor.kernel();
        doctor.io_uring(backends);
        doctor.memory();
        doctor.gpus(backends);
        doctor.controllers(backends);
        doctor
    }

    fn add(&mut self, name: impl Into<String>, health: Health, value: impl Into<String>, remedy: impl Into<String>) {
        self.facts.push(Fact { name: name.into(), health, value: value.into(), remedy: remedy.into() });
    }

    fn kernel(&mut self) {
        let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into());
        self.add("kernel", Health::Neutral, release, "");
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.add("cores", Health::Neutral, cores.to_string(), "");
    }

    fn io_uring(&mut self, backends: &Backends) {
        match &backends.probe.because {
            None => self.add("io_uring", Health::Good, "works", ""),
            Some((reason, errno)) => {
                self.add("io_uring", Health::Limited, format!("{} (errno {errno})", reason.code()), reason.text());
            }
        }
        if let Some(level) = backends.probe.sysctl {
            let health = if level == 0 { Health::Good } else { Health::Limited };
            let remedy = if level == 0 { "" } else { "set kernel.io_uring_disabled=0" };
            self.add("kernel.io_uring_disabled", health, level.to_string(), remedy);
        }
        self.add("file_transport", Health::Neutral, backends.probe.transport, "");
    }

    fn memory(&mut self) {
        match read("/sys/kernel/mm/transparent_hugepage/enabled") {
            Some(text) => {
                let chosen = text.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
                let (health, remedy) = match chosen.as_str() {
                    "always" | "madvise" => (Health::Good, ""),
                    _ => (
                        Health::Limited,
                        "set transparent_hugepage/enabled to madvise: fresh memory then costs a quarter of the CPU time",
                    ),
                };
                self.add("huge_pages", health, chosen, remedy);
            }
            None => self.add("huge_pages", Health::Missing, "the kernel has no transparent huge pages", ""),
        }
        let locked = read("/proc/self/limits").and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("Max locked memory"))?;
            line.split_whitespace().nth(3).map(str::to_owned)
        });
        let (health, remedy) = match locked.as_deref().map(str::parse::<u64>) {
            _ if may_lock_anything() => (Health::Good, ""),
            // Slabs of one lane and a few hundred registered buffers.
            Some(Ok(bytes)) if bytes < 64 << 20 => (
                Health::Limited,
                "raise it (ulimit -l, LimitMEMLOCK=) or give CAP_IPC_LOCK: registered buffers need locked memory",
            ),
            _ => (Health::Good, ""),
        };
        self.add("locked_memory_limit", health, locked.unwrap_or_else(|| "unknown".into()), remedy);
    }

    fn gpus(&mut self, backends: &Backends) {
        self.facts.extend(backends.gpu_facts());
        self.facts.extend(backends.vendor.facts());
    }

    fn controllers(&mut self, backends: &Backends) {
        self.facts.extend(backends.nvme.facts());
        self.facts.extend(backends.direct_facts());
        self.facts.extend(crate::rdma_facts::facts());
    }

    /// The worst health of all facts that are not merely told.
    pub fn worst(&self) -> Health {
        let has = |health| self.facts.iter().any(|fact| fact.health == health);
        if has(Health::Missing) {
            Health::Missing
        } else if has(Health::Limited) {
            Health::Limited
        } else {
            Health::Good
        }
    }
}

/// Whether the process has CAP_IPC_LOCK, bit 14 of the effective set (capabilities(7)).
fn may_lock_anything() -> bool {
    let status = read("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).is_some_and(|bits| bits >> 14 & 1 == 1)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
