//! The checkpoints of a run: `ROOT/step-000123/`, which there are, which is the latest, which stay.
//!
//! There is no file that points to the latest one: what has the name of a step and its checksums is committed, since the
//! rename is the last step of a commit. Nothing can dangle.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use straightway::{Error, ErrorKind, Verb};

use crate::CHECKSUMS_FILE;

use super::pending::{failed, remove};

const PREFIX: &str = "step-";

/// Which checkpoints stay. The latest always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// So many of the latest, at least 1.
    pub last: usize,
    /// Those whose step is a multiple of it, too.
    pub every: Option<u64>,
}

/// The directory of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    root: PathBuf,
}

impl Steps {
    /// The checkpoints in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory of the run.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the checkpoint of `step` is, or will be.
    pub fn path(&self, step: u64) -> PathBuf {
        self.root.join(name(step))
    }

    /// The steps that are committed, in ascending order; none where there is no such directory yet. What did not come from a
    /// commit is not among them.
    ///
    /// # Errors
    /// What the system reports.
    pub fn list(&self) -> Result<Vec<u64>, Error> {
        let at = |error: &io::Error| failed(Verb::List, &self.root, error);
        let mut steps = Vec::new();
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(steps),
            entries => entries.map_err(|error| at(&error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| at(&error))?.file_name();
            let step = entry.to_str().and_then(|entry| entry.strip_prefix(PREFIX)).and_then(|step| step.parse().ok());
            let Some(step) = step.filter(|step| entry == *name(*step)) else { continue };
            if self.path(step).join(CHECKSUMS_FILE).is_file() {
                steps.push(step);
            }
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The committed step with the highest number.
    ///
    /// # Errors
    /// As [`Steps::list`].
    pub fn latest(&self) -> Result<Option<u64>, Error> {
        Ok(self.list()?.pop())
    }

    /// Removes the checkpoints that do not stay; gives their steps. Each loses its name before its files go.
    ///
    /// # Errors
    /// `ApiMisuse` if none should stay; what the system reports, with the rest still there.
    pub fn retain(&self, keep: Keep) -> Result<Vec<u64>, Error> {
        if keep.last == 0 || keep.every == Some(0) {
            return Err(Error::new(ErrorKind::ApiMisuse, Verb::Replace)
                .at(self.root.to_string_lossy().as_ref())
                .detail(format!("{keep:?} has a zero"))
                .remedy("keep at least the latest one"));
        }
        let steps = self.list()?;
        let old = steps.get(..steps.len().saturating_sub(keep.last)).unwrap_or_default();
        let stays = |step: &u64| keep.every.is_some_and(|every| step.is_multiple_of(every));
        let old: Vec<u64> = old.iter().copied().filter(|step| !stays(step)).collect();
        old.iter().try_for_each(|step| remove(&self.path(*step)))?;
        Ok(old)
    }
}

fn name(step: u64) -> String {
    format!("{PREFIX}{step:06}")
}
