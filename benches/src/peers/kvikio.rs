//! KvikIO, through `peers/gpu_read.py`.

use std::path::PathBuf;

use crate::{
    fault::Fault,
    peers::python::Python,
    report::{Role, Sample},
    rounds::Subject,
};

/// KvikIO's compatibility mode: its own reads and copies, or cuFile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compat {
    /// POSIX reads into pinned buffers and copies, by KvikIO's thread pool.
    On,
    /// cuFile, which must work then.
    Off,
}

/// How the file is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// At once; KvikIO splits it. Once more before the clock runs.
    Whole,
    /// Part by part, one after the other; the first one once before.
    Parts,
    /// The same of a file that is not cached: what the first one left in the page cache is dropped.
    ColdParts,
}

/// One way of KvikIO's to read a file.
#[derive(Clone, Debug)]
pub(crate) struct KvikIo {
    /// Name of the side.
    pub name: &'static str,
    /// Which path.
    pub compat: Compat,
    /// At once or in parts.
    pub reads: Reads,
    /// Threads of its pool.
    pub threads: u32,
    /// Bytes of the parts, which the digest samples, too.
    pub part_bytes: u64,
    /// How often the file is read while the clock runs.
    pub passes: u32,
    /// Seed of the sampled places.
    pub seed: u64,
    /// What is read.
    pub file: PathBuf,
    /// Where it runs.
    pub python: Python,
}

impl Subject for KvikIo {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn reads(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        let compat = match self.compat {
            Compat::On => "on",
            Compat::Off => "off",
        };
        let reads = match self.reads {
            Reads::Whole => "whole",
            Reads::Parts => "parts",
            Reads::ColdParts => "cold-parts",
        };
        let args = [
            format!("--compat={compat}"),
            format!("--reads={reads}"),
            format!("--threads={}", self.threads),
            format!("--part-bytes={}", self.part_bytes),
            format!("--passes={}", self.passes),
            format!("--seed={}", self.seed),
            self.file.to_string_lossy().into_owned(),
        ];
        self.python.peer_with_driver(self.name, "gpu_read.py", &args)
    }
}
