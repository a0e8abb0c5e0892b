//! What commands share: the engine they use, and how they end.

use std::time::{Duration, Instant};

use straightway::{Engine, EngineBuilder};

use crate::{args::EngineArgs, fail::Fail};

/// An engine with the options of the command line.
///
/// # Errors
/// Usage, for an option that the engine does not have or a value out of its range.
pub fn engine(args: &EngineArgs) -> Result<Engine, Fail> {
    let mut builder: EngineBuilder = Engine::builder();
    for option in &args.engine {
        let (name, value) = option.split_once('=').ok_or_else(|| {
            Fail::usage(format!("`{option}` is no engine option"), "write NAME=VALUE, such as --engine queue_depth=128")
        })?;
        builder = builder.set(name, value)?;
    }
    Ok(builder.build()?)
}

/// Runs `work` with an engine and closes it.
///
/// # Errors
/// What `work` gives; else what closing gives.
pub fn with_engine<T>(args: &EngineArgs, work: impl FnOnce(&Engine) -> Result<T, Fail>) -> Result<T, Fail> {
    let engine = engine(args)?;
    let outcome = work(&engine);
    let closed = engine.close();
    let value = outcome?;
    closed?;
    Ok(value)
}

/// Measures time. The one clock of the command.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// From now on.
    #[expect(clippy::disallowed_methods, reason = "the command line is a composing layer: this is its clock")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }

    /// The same in seconds.
    pub fn seconds(self) -> f64 {
        self.elapsed().as_secs_f64()
    }
}
