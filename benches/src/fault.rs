//! What can go wrong in a benchmark, with what to do about it.

use std::{io, path::PathBuf};

/// Why a benchmark, or one side of it, has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The operating system refused.
    #[error("{what} {} failed", path.display())]
    Os {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// A program ended badly.
    #[error("{program} ended with {status}: {words}")]
    Ended {
        /// Its name.
        program: String,
        /// Exit code or signal.
        status: String,
        /// The last words on its error output.
        words: String,
    },
    /// A program ran past its limit and was killed.
    #[error("{program} was killed after {limit_s} s")]
    TooLong {
        /// Its name.
        program: String,
        /// Its limit.
        limit_s: u64,
    },
    /// Output that is not what the program promises.
    #[error("{program} printed something else than its result: {words}")]
    Output {
        /// Its name.
        program: String,
        /// The start of it.
        words: String,
    },
    /// Delivered bytes that are not those of the file.
    #[error("{side} delivered wrong bytes: sampled {got}, expected {want}")]
    WrongBytes {
        /// Which side.
        side: String,
        /// Its digest.
        got: String,
        /// The file's digest.
        want: String,
    },
    /// Our own loader said no.
    #[error("{0}")]
    Loader(String),
    /// A function of a shared library said no.
    #[error("{call} {answer}")]
    Library {
        /// Its name.
        call: &'static str,
        /// What it said.
        answer: String,
    },
    /// Our own engine said no.
    #[error(transparent)]
    Engine(#[from] straightway::Error),
    /// Something that is not on this machine.
    #[error("{what}; {remedy}")]
    Missing {
        /// What.
        what: String,
        /// How to get it.
        remedy: &'static str,
    },
}

impl From<sw_checkpoint::SaveError> for Fault {
    fn from(error: sw_checkpoint::SaveError) -> Self {
        Self::Engine(error.into())
    }
}

impl Fault {
    /// An error number's error, with what was tried on which path.
    pub(crate) fn os(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Os { what, path, source }
    }

    /// The fault and its sources in one line.
    pub(crate) fn line(&self) -> String {
        match std::error::Error::source(self) {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}
