//! The report: JSON is the truth, Markdown is a view of it.
//!
//! ```text
//! Report ─┬─ machine, commit, date, command, seed, size
//!         └─ cases ─┬─ sides (ours and peers) ── one Sample per round, in the order they ran
//!                   └─ goals ── ratio per round, median, bound, held or not
//! ```
//!
//! Rounds are interleaved: sample `i` of every side of a case ran in round `i`, next to each other in time. So a ratio is
//! taken inside a round, and its spread over the rounds is the noise that `compare` works with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{fault::Fault, machine::Machine};

/// Version of the JSON form. A field may be added under the same number; a change of meaning raises it.
pub(crate) const SCHEMA: &str = "straightway-bench/1";

/// One command's whole result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// When the run started, seconds since 1970-01-01 UTC.
    pub started_unix_s: u64,
    /// The same, as `YYYY-MM-DDThh:mm:ssZ`.
    pub started: String,
    /// Arguments as given, the program's own name left out.
    pub command: Vec<String>,
    /// Commit of the source tree, with `+changes` where tracked files differ from it; `unknown` outside a repository.
    pub commit: String,
    /// Seed of file contents, offsets and sampled bytes.
    pub seed: u64,
    /// `smoke` or `real`.
    pub size: String,
    /// Rounds asked for.
    pub rounds: u32,
    /// Where it ran.
    pub machine: Machine,
    /// Name and version of each tool and package that took part.
    pub tools: BTreeMap<String, String>,
    /// What was measured.
    pub cases: Vec<Case>,
}

/// Sides that did the same job in turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    /// Stable name, such as `randread/depth32`.
    pub name: String,
    /// The job in one sentence.
    pub what: String,
    /// Everyone who took part, and who could not, with the reason.
    pub sides: Vec<Side>,
    /// What was asked of the ratios.
    pub goals: Vec<Goal>,
}

/// Whose side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// The product.
    Ours,
    /// Someone else doing the same job.
    Peer,
    /// The limit of the device or kernel, measured in the same rounds.
    Ceiling,
}

/// One participant of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Side {
    /// Stable name, such as `fio` or `safetensors-clone`.
    pub name: String,
    /// Whose.
    pub role: Role,
    /// Whether the bytes end in memory of the caller's own, not in a view of the page cache. Absent where it has no meaning.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub own_memory: Option<bool>,
    /// Why it has no samples.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub absent: Option<String>,
    /// Whether it is the product's and absent because it failed, not because something is not on this machine.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub failed: bool,
    /// One per round.
    pub samples: Vec<Sample>,
}

/// One run of one side.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sample {
    /// Operations done.
    pub ops: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Wall seconds of the job alone: no start of a process, no preparation.
    pub seconds: f64,
    /// User CPU seconds of the job, all its threads.
    pub cpu_user_s: f64,
    /// System CPU seconds of the job, all its threads.
    pub cpu_sys_s: f64,
    /// Page faults without I/O during the job.
    pub minor_faults: u64,
    /// Page faults with I/O during the job.
    pub major_faults: u64,
    /// Largest resident set of the process over its whole life, bytes.
    pub peak_rss_bytes: u64,
    /// Resident set just before the job, bytes.
    pub rss_before_bytes: u64,
    /// User and system CPU seconds of the whole process, start and exit included. 0 where the side is not a process.
    pub process_cpu_s: f64,
    /// SHA-256 of the sampled bytes, where the job has content to check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// Anything else with a number: percentiles in microseconds, counts per 1,000 operations. Names carry the unit.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<String, f64>,
    /// Where our side says which path the bytes took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<serde_json::Value>,
}

/// A number of a sample that goals and tables speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Operations per wall second.
    OpsPerSecond,
    /// Operations per CPU second (user and system).
    OpsPerCpuSecond,
    /// Bytes per wall second.
    BytesPerSecond,
    /// CPU microseconds per operation.
    CpuMicrosPerOp,
    /// The same of the thread that submits, without workers of the kernel.
    ThreadCpuMicrosPerOp,
    /// CPU seconds of the job.
    CpuSeconds,
    /// Wall seconds of the job.
    Seconds,
    /// Peak resident set less what was resident before the job, less the bytes delivered.
    ExtraMemoryBytes,
    /// System calls per 1,000 operations.
    SyscallsPerThousand,
    /// Allocations per 1,000 operations.
    AllocationsPerThousand,
    /// Waits for a lock per 1,000 operations.
    FutexPerThousand,
    /// Bytes that passed through a bounce block, per operation.
    BouncedBytesPerOp,
    /// Bytes that a CPU copied, kernel and ours together, by the engine's counters, of each byte moved.
    CpuCopiesPerByte,
    /// Milliseconds to make and close an engine.
    BareMillis,
    /// Wall seconds for which the caller of a save was held.
    StallSeconds,
    /// Emulated accelerators that are busy enough.
    Accelerators,
    /// Percent of the time that one emulated accelerator is busy.
    AuPercent,
    /// Bytes that readers asked storage for, of each byte that some rank wanted.
    AskedPerByte,
    /// Bytes that the kernel read from storage, of each byte that some rank wanted.
    StorageReadPerByte,
    /// Peak resident set less what was resident before, of the rank that has most of it.
    RankExtraMemoryBytes,
    /// Peak resident set less what was resident before the job, where nothing is delivered into memory.
    RisenBytes,
    /// Most that was resident in the second half of a job less the same of the first half.
    GrowthBytes,
    /// Milliseconds to open an index.
    OpenMillis,
    /// Milliseconds until the first batch.
    FirstBatchMillis,
    /// Nanoseconds that a call of the C interface takes longer than in Rust, whose memory goes in and comes back.
    CallOverRustNanos,
    /// The same beside Rust that takes a part of a region for each call.
    CallOverPartsNanos,
    /// Milliseconds of the first opening and closing of cuFile's driver.
    DriverMillis,
    /// Microseconds to register a handle of cuFile's.
    HandleRegisterMicros,
}

impl Sample {
    /// User and system CPU seconds of the job.
    pub(crate) fn cpu_s(&self) -> f64 {
        self.cpu_user_s + self.cpu_sys_s
    }

    /// The metric's value, `None` where this sample does not have it.
    #[expect(clippy::cast_precision_loss, reason = "counts of one run stay far below 2^52")]
    pub(crate) fn value(&self, metric: Metric) -> Option<f64> {
        let over = |a: f64, b: f64| (b > 0.0).then(|| a / b);
        match metric {
            Metric::OpsPerSecond => over(self.ops as f64, self.seconds),
            Metric::OpsPerCpuSecond => over(self.ops as f64, self.cpu_s()),
            Metric::BytesPerSecond => over(self.bytes as f64, self.seconds),
            Metric::CpuMicrosPerOp => over(self.cpu_s() * 1e6, self.ops as f64),
            Metric::ThreadCpuMicrosPerOp => over(*self.more.get("thread_cpu_s")? * 1e6, self.ops as f64),
            Metric::CpuSeconds => Some(self.cpu_s()),
            Metric::Seconds => Some(self.seconds),
            Metric::ExtraMemoryBytes => (self.peak_rss_bytes > 0)
                .then_some(self.peak_rss_bytes as f64 - self.rss_before_bytes as f64 - self.bytes as f64),
            Metric::SyscallsPerThousand => self.more.get("syscalls_per_1000").copied(),
            Metric::AllocationsPerThousand => self.more.get("allocations_per_1000").copied(),
            Metric::FutexPerThousand => self.more.get("futex_per_1000").copied(),
            Metric::BouncedBytesPerOp => self.more.get("bounced_bytes_per_op").copied(),
            Metric::CpuCopiesPerByte => self.more.get("cpu_copies_per_byte").copied(),
            Metric::BareMillis => self.more.get("bare_ms").copied(),
            Metric::StallSeconds => self.more.get("stall_s").copied(),
            Metric::Accelerators => self.more.get("accelerators").copied(),
            Metric::AuPercent => self.more.get("au_alone_percent").copied(),
            Metric::AskedPerByte => over(*self.more.get("asked_bytes")?, *self.more.get("unique_bytes")?),
            Metric::StorageReadPerByte => over(*self.more.get("storage_bytes")?, *self.more.get("unique_bytes")?),
            Metric::RankExtraMemoryBytes => self.more.get("rank_extra_bytes").copied(),
            Metric::RisenBytes => {
                (self.peak_rss_bytes > 0).then_some(self.peak_rss_bytes as f64 - self.rss_before_bytes as f64)
            }
            Metric::GrowthBytes => self.more.get("growth_bytes").copied(),
            Metric::OpenMillis => self.more.get("open_ms").copied(),
            Metric::FirstBatchMillis => self.more.get("first_batch_ms").copied(),
            Metric::CallOverRustNanos => self.more.get("over_rust_ns").copied(),
            Metric::CallOverPartsNanos => self.more.get("over_parts_ns").copied(),
            Metric::DriverMillis => self.more.get("first_driver_ms").copied(),
            Metric::HandleRegisterMicros => self.more.get("handle_register_us").copied(),
        }
    }
}

impl Side {
    /// A side that has nothing to run on, for this reason.
    pub(crate) fn absent(name: &str, role: Role, why: &str) -> Self {
        let (name, absent) = (name.to_owned(), Some(why.to_owned()));
        Self { name, role, own_memory: None, absent, failed: false, samples: Vec::new() }
    }

    /// Leaves it out of its case.
    pub(crate) fn leave_out(&mut self, fault: &Fault) {
        self.absent = Some(fault.line());
        self.failed = self.role == Role::Ours && !matches!(fault, Fault::Missing { .. });
        self.samples.clear();
    }

    /// Median of a metric over the rounds.
    pub(crate) fn median(&self, metric: Metric) -> Option<f64> {
        median(self.samples.iter().filter_map(|sample| sample.value(metric)).collect())
    }
}

/// Which way a bound points.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// The number is this or more.
    AtLeast(f64),
    /// The number is this or less.
    AtMost(f64),
}

impl Bound {
    /// Whether `value` keeps it.
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    /// As it reads in a table.
    pub(crate) fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!(">= {least}"),
            Self::AtMost(most) => format!("<= {most}"),
        }
    }
}

/// What one side is asked to be, against another side or against a number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Goal {
    /// In words.
    pub text: String,
    /// The number compared.
    pub metric: Metric,
    /// The side that it is asked of.
    pub of: String,
    /// The side that it is held against; absent: the metric itself is bounded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub against: Option<String>,
    /// The bound on the median.
    pub bound: Bound,
    /// Ratio (or value) of each round.
    pub rounds: Vec<f64>,
    /// Median of `rounds`; absent when a side has no samples.
    pub median: Option<f64>,
    /// Whether it held; absent when it was not measured.
    pub held: Option<bool>,
}

/// Median; `None` of nothing or of anything that is not a number.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *values.get(middle.checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}

impl Case {
    /// The side of this name.
    pub(crate) fn side(&self, name: &str) -> Option<&Side> {
        self.sides.iter().find(|side| side.name == name)
    }

    /// Adds a goal and fills in what was measured.
    pub(crate) fn hold(&mut self, text: &str, metric: Metric, of: &str, against: Option<&str>, bound: Bound) {
        let rounds = self.ratios(metric, of, against);
        let median = median(rounds.clone());
        self.goals.push(Goal {
            text: text.to_owned(),
            metric,
            of: of.to_owned(),
            against: against.map(str::to_owned),
            bound,
            held: median.map(|value| bound.holds(value)),
            median,
            rounds,
        });
    }

    /// Takes every goal's judgement back, because the numbers do not mean what they say; `why` goes before its text.
    pub(crate) fn void(&mut self, why: &str) {
        for goal in &mut self.goals {
            goal.text = format!("({why}) {}", goal.text);
            goal.held = None;
        }
    }

    /// The best peer by the median of `metric` among those that `accept` takes.
    pub(crate) fn best_peer(&self, metric: Metric, best: Best, accept: impl Fn(&Side) -> bool) -> Option<&Side> {
        let peers = self.sides.iter().filter(|side| side.role == Role::Peer && accept(side));
        let rated = peers.filter_map(|side| Some((side, side.median(metric)?)));
        let ordered = |a: &(&Side, f64), b: &(&Side, f64)| a.1.total_cmp(&b.1);
        match best {
            Best::Highest => rated.max_by(ordered),
            Best::Lowest => rated.min_by(ordered),
        }
        .map(|(side, _)| side)
    }

    fn ratios(&self, metric: Metric, of: &str, against: Option<&str>) -> Vec<f64> {
        let Some(ours) = self.side(of) else { return Vec::new() };
        let Some(other) = against else {
            return ours.samples.iter().filter_map(|sample| sample.value(metric)).collect();
        };
        let Some(theirs) = self.side(other) else { return Vec::new() };
        let pairs = ours.samples.iter().zip(&theirs.samples);
        pairs.filter_map(|(a, b)| Some(a.value(metric)? / b.value(metric)?)).filter(|ratio| ratio.is_finite()).collect()
    }
}

/// Which end of a metric is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Best {
    /// Rates.
    Highest,
    /// Costs.
    Lowest,
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
