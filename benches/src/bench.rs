//! What all cases of one command share: where files are, how large the jobs are, who listens.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    fault::Fault,
    peers::python::Python,
    report::{Case, Role},
    rounds::{self, Before, Subject},
    worker::Worker,
};

/// How large the jobs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Size {
    /// Seconds in all: shows that everything runs and that the bytes are right. Its numbers mean little.
    Smoke,
    /// The size that goals are about.
    Real,
}

impl Size {
    /// As it stands in a report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Real => "real",
        }
    }

    /// Bytes of the file of the raw I/O jobs.
    pub(crate) fn file_bytes(self) -> u64 {
        match self {
            Self::Smoke => 64 << 20,
            Self::Real => 2 << 30,
        }
    }

    /// Bytes of the checkpoint's tensors.
    pub(crate) fn checkpoint_bytes(self) -> u64 {
        match self {
            Self::Smoke => 128 << 20,
            Self::Real => 2 << 30,
        }
    }

    /// Positions that a job of seeks looks up.
    pub(crate) fn seeks(self) -> u64 {
        match self {
            Self::Smoke => 10_000,
            Self::Real => 5_000_000,
        }
    }

    /// Samples of the large index.
    pub(crate) fn indexed(self) -> u64 {
        match self {
            Self::Smoke => 100_000,
            Self::Real => 100_000_000,
        }
    }

    /// Samples of the index that a first batch comes from, 1 KiB each.
    pub(crate) fn first_batch_of(self) -> u64 {
        match self {
            Self::Smoke => 10_000,
            Self::Real => 1_000_000,
        }
    }

    /// Milliseconds of a job that is bounded by time.
    pub(crate) fn time_ms(self) -> u64 {
        match self {
            Self::Smoke => 200,
            Self::Real => 3000,
        }
    }
}

/// One command's surroundings.
pub(crate) struct Bench<'a> {
    /// How large.
    pub size: Size,
    /// How often each side runs.
    pub rounds: u32,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Where files are.
    pub dir: PathBuf,
    /// Where outputs of programs are kept for a moment.
    pub scratch: PathBuf,
    /// Where the shared libraries are that cargo built.
    pub libraries: PathBuf,
    /// The interpreter with the peers' packages.
    pub python: Python,
    /// What names of cases must contain one of, of those that ask: texts separated by commas.
    pub only: Option<String>,
    /// Hears a line per step.
    pub tell: &'a mut dyn FnMut(&str),
}

impl Bench<'_> {
    /// The surroundings with their folders made.
    pub(crate) fn folders(dir: &Path) -> Result<PathBuf, Fault> {
        let scratch = dir.join(format!("scratch-{}", std::process::id()));
        fs::create_dir_all(&scratch).map_err(Fault::os("create", &scratch))?;
        Ok(scratch)
    }

    /// A side that is a worker process of ours.
    pub(crate) fn worker(&self, name: &str, role: Role, args: &[String], files: &[PathBuf]) -> Box<dyn Subject> {
        Box::new(Worker {
            name: name.to_owned(),
            role,
            own_memory: None,
            args: args.to_vec(),
            files: files.to_vec(),
            scratch: self.scratch.clone(),
        })
    }

    /// Whether a case was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.split(',').any(|part| name.contains(part)))
    }

    /// Runs the sides of a case in turn.
    pub(crate) fn case(&mut self, name: &str, what: &str, subjects: Vec<Box<dyn Subject>>, before: &Before) -> Case {
        rounds::run(name, what, subjects, self.rounds, before, self.tell)
    }
}

/// Words as a command line wants them.
pub(crate) fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}
