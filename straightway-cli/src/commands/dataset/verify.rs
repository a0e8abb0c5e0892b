//! `dataset verify`.

use std::{fmt, ops::ControlFlow};

use serde::Serialize;
use sw_data::{
    index::{Finding, Verified, verify},
    samples::Samples as _,
};

use crate::{
    dataset_args::Verify,
    fail::Fail,
    out::Out,
    session::{self, Stopwatch},
    size::{self, Bytes, Rate},
};

use super::{open, or_signal, until_signal};

/// An object or a sample that is not what was indexed.
#[derive(Serialize)]
struct Bad {
    schema: &'static str,
    uri: String,
    /// Null if the object is meant.
    sample: Option<u64>,
    key: Option<String>,
    kind: &'static str,
    message: String,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.sample, &self.key) {
            (Some(sample), Some(key)) => write!(f, "bad sample {sample} ({}): {}", key.escape_debug(), self.message),
            _ => write!(f, "bad object {}: {}", self.uri, self.message),
        }
    }
}

/// The whole.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    index: String,
    objects: u64,
    bad_objects: u64,
    samples: u64,
    compared: u64,
    bad_samples: u64,
    bytes: u64,
    seconds: f64,
    bytes_per_s: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} objects, {} of them bad; {} of {} samples compared, {} of them bad; {} in {:.3} s, {}",
            self.objects,
            self.bad_objects,
            self.compared,
            self.samples,
            self.bad_samples,
            Bytes(self.bytes),
            self.seconds,
            Rate(self.bytes_per_s)
        )
    }
}

/// Runs it.
///
/// # Errors
/// Verification, if anything is not what was indexed; those of reading the index; an interrupt.
pub fn run(args: &Verify, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        let clock = Stopwatch::start();
        let index = open(engine, &args.index)?;
        let bar = out.steps(u64::from(index.object_count()), "verify");
        let mut fail = None;
        let verified = verify(engine, &index, args.threads, &mut |finding| {
            if !matches!(finding, Finding::Sample { .. }) {
                bar.add(1);
            }
            if let Some(bad) = bad(finding)
                && let Err(told) = out.report(&bad)
            {
                fail = Some(told);
                return ControlFlow::Break(());
            }
            until_signal()
        });
        drop(bar);
        if let Some(fail) = fail {
            return Err(fail);
        }
        let Verified { objects, bad_objects, samples, compared, bad_samples, bytes } = verified.map_err(or_signal)?;
        let seconds = clock.seconds();
        out.report(&Report {
            schema: "straightway.dataset.verify/1",
            index: index.name().to_owned(),
            objects,
            bad_objects,
            samples,
            compared,
            bad_samples,
            bytes,
            seconds,
            bytes_per_s: size::rate(bytes, seconds),
        })?;
        match bad_objects + bad_samples {
            0 => Ok(()),
            _ => Err(Fail::verification(
                format!("{}: {bad_objects} objects and {bad_samples} samples are not what was indexed", index.name()),
                "restore them, or index the dataset again: straightway dataset index --update",
            )),
        }
    })
}

fn bad(finding: Finding) -> Option<Bad> {
    const SCHEMA: &str = "straightway.dataset.bad/1";
    let (uri, sample, key, error) = match finding {
        Finding::Right { .. } => return None,
        Finding::Object { entry, error } => (entry.uri, None, None, error),
        Finding::Sample { sample, key, uri, error } => (uri, Some(sample), Some(key), error),
    };
    Some(Bad { schema: SCHEMA, uri, sample, key, kind: error.kind().name(), message: error.to_string() })
}
