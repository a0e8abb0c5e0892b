//! A test: what it needs, what it will do, how it ended.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// What a test needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A started driver with a device.
    Gpu,
    /// Two devices.
    TwoGpus,
    /// A device that exports dma-bufs.
    DmaBuf,
    /// A driver and a device that run our kernels.
    Kernels,
    /// A driver that captures streams into graphs.
    Graphs,
}

impl Need {
    /// Its name in profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::TwoGpus => "gpu.two",
            Self::DmaBuf => "gpu.dmabuf_export",
            Self::Kernels => "gpu.kernels",
            Self::Graphs => "gpu.graphs",
        }
    }

    /// `Err` with the reason if the machine does not have it.
    fn check(self, machine: &Machine) -> Result<(), String> {
        match self {
            Self::Gpu => machine.driver.as_ref().map(|_| ()).map_err(|why| format!("{why}; {}", why.remedy())),
            Self::TwoGpus => match machine.gpus.len() {
                0 | 1 => Err(format!("{} device", machine.gpus.len())),
                _ => Ok(()),
            },
            Self::Kernels => crate::kernels::there(machine),
            Self::Graphs => crate::streams::graphs_are_there(machine),
            Self::DmaBuf => match machine.gpus.first().map(|gpu| &gpu.dmabuf_attribute) {
                Some(Ok(true)) => Ok(()),
                Some(Ok(false)) => Err("the device says that it cannot export dma-bufs".to_owned()),
                Some(Err(gap)) => Err(gap.to_string()),
                None => Err("no device".to_owned()),
            },
        }
    }
}

/// How long a test takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Well under a second.
    Quick,
    /// Measures something.
    Timed,
}

/// Named results of a test, in the order in which they were taken. Names carry their unit.
pub type Notes = serde_json::Map<String, serde_json::Value>;

/// One test.
pub struct Test {
    /// Its name: suite, dot, behaviour.
    pub name: &'static str,
    /// Completes "this test will".
    pub will: &'static str,
    /// How long it takes.
    pub tag: Tag,
    /// What it needs; the first unmet one is the reason of the skip.
    pub needs: &'static [Need],
    /// `Err` is the reason of the failure.
    pub run: fn(&Machine, &mut Notes) -> Result<(), String>,
}

/// How it ended.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "end")]
pub enum End {
    /// As claimed.
    #[serde(rename = "pass")]
    Pass,
    /// Not as claimed, or a promise of the profile is broken.
    #[serde(rename = "fail")]
    Fail {
        /// In one sentence.
        reason: String,
    },
    /// A need is not met.
    #[serde(rename = "skip")]
    Skip {
        /// In one sentence.
        reason: String,
        /// The need.
        need: &'static str,
    },
}

/// One line of the record.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The test.
    pub name: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub end: End,
    /// Wall time in milliseconds.
    pub elapsed_ms: f64,
    /// What it measured and saw.
    pub notes: Notes,
}

impl Row {
    /// For the terminal.
    pub fn line(&self) -> String {
        let notes = if self.notes.is_empty() {
            String::new()
        } else {
            format!("  {}", serde_json::Value::Object(self.notes.clone()))
        };
        match &self.end {
            End::Pass => format!("pass {} ({:.1} ms){notes}", self.name, self.elapsed_ms),
            End::Fail { reason } => format!("FAIL {}: {reason}{notes}", self.name),
            End::Skip { reason, need } => format!("skip {}: needs {need}: {reason}", self.name),
        }
    }
}

/// What a machine must have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Names of needs.
    promises: Vec<String>,
}

impl Profile {
    /// Reads the file.
    ///
    /// # Errors
    /// A sentence with the path: not readable, not of this shape, or a need that does not exist.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let profile: Self = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let known = [Need::Gpu, Need::TwoGpus, Need::DmaBuf, Need::Kernels, Need::Graphs];
        match profile.promises.iter().find(|p| !known.iter().any(|need| need.name() == p.as_str())) {
            Some(unknown) => Err(format!("{}: no need is called {unknown:?}", path.display())),
            None => Ok(profile),
        }
    }

    fn promises(&self, need: Need) -> bool {
        self.promises.iter().any(|name| name == need.name())
    }
}

/// Runs one test, or says why not.
#[expect(clippy::disallowed_methods, reason = "a runner of its own keeps its own time")]
pub fn run(test: &Test, machine: &Machine, profile: &Profile) -> Row {
    let mut notes = Notes::new();
    let start = Instant::now();
    let unmet = test.needs.iter().find_map(|need| need.check(machine).err().map(|reason| (*need, reason)));
    let end = match unmet {
        Some((need, reason)) if profile.promises(need) => {
            End::Fail { reason: format!("the profile promises {}: {reason}", need.name()) }
        }
        Some((need, reason)) => End::Skip { reason, need: need.name() },
        None => match (test.run)(machine, &mut notes) {
            Ok(()) => End::Pass,
            Err(reason) => End::Fail { reason },
        },
    };
    Row { name: test.name, end, elapsed_ms: start.elapsed().as_secs_f64() * 1e3, notes }
}
