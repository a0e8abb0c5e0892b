//! `peers/restore.py`: a model on several local ranks.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    data,
    fault::Fault,
    peers::python::Python,
    report::{Role, Sample},
    rounds::Subject,
};

/// Writes the model of `files` as a DCP directory by `writers` ranks of torch, unless it is there; gives its files.
///
/// # Errors
/// There is no environment, or a rank failed.
pub(crate) fn write(
    python: &Python,
    (writers, shape): (u32, &str),
    folder: &Path,
    files: &[PathBuf],
) -> Result<Vec<PathBuf>, Fault> {
    if !folder.exists() {
        let partial = folder.with_extension(format!("partial-{}", std::process::id()));
        let (writers, to) = (writers.to_string(), partial.to_string_lossy());
        let args = ["--write", &writers, "--shape", shape, "--to", &to];
        python.peer("restore.py", &args, files)?;
        fs::rename(&partial, folder).map_err(Fault::os("rename", &partial))?;
    }
    data::files_in(folder)
}

/// One reader on all ranks.
#[derive(Clone, Debug)]
pub(crate) struct Restore {
    /// Name in `peers/restore.py`.
    pub name: &'static str,
    /// Whose side.
    pub role: Role,
    /// How many ranks.
    pub ranks: u32,
    /// How the model lies on them.
    pub shape: &'static str,
    /// Files of the DCP directory.
    pub files: Vec<PathBuf>,
    /// Files that the model was made of.
    pub sources: Vec<PathBuf>,
    /// Seed of the sampled places.
    pub seed: u64,
    /// Where it runs.
    pub python: Python,
}

impl Subject for Restore {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn role(&self) -> Role {
        self.role
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        if self.role == Role::Ours {
            self.python.package()?;
        }
        let folder = self.files.first().and_then(|file| file.parent()).ok_or_else(|| Fault::Missing {
            what: "there is no DCP directory".to_owned(),
            remedy: "make the environment that writes it with `cargo xtask bench peers`",
        })?;
        let (ranks, seed, folder) = (self.ranks.to_string(), self.seed.to_string(), folder.to_string_lossy());
        let args = ["--peer", self.name, "--ranks", &ranks, "--shape", self.shape, "--from", &folder, "--seed", &seed];
        let finished = self.python.peer("restore.py", &args, &self.sources)?;
        crate::worker::parse(self.name, &finished)
    }
}
