//! `dataset index`.

use std::{
    fmt,
    fs::File,
    io::{BufWriter, Write as _},
    ops::ControlFlow,
};

use serde::Serialize;
use straightway::{ErrorKind, Uri};
use sw_data::index::{BuildOptions, Built, Checksums, Event, Index as IndexFile, OnError as Policy, SideCars, build};

use crate::{
    dataset_args::{BesideShards, Index, OnError},
    fail::Fail,
    out::{Out, Progress},
    session::{self, Stopwatch},
    size::Bytes,
};

use super::{absolute, all_absolute, or_signal, until_signal};

/// An object that is left out.
#[derive(Serialize)]
struct Damaged<'a> {
    schema: &'static str,
    uri: &'a str,
    kind: &'static str,
    message: String,
}

impl fmt::Display for Damaged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "left out {}: {}", self.uri, self.message)
    }
}

/// An index beside an object that does not fit it.
#[derive(Serialize)]
struct Unfit<'a> {
    schema: &'static str,
    uri: &'a str,
    sidecar: &'a str,
    kind: &'static str,
    message: String,
}

impl fmt::Display for Unfit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "walked {}: its index {} does not fit: {}", self.uri, self.sidecar, self.message)
    }
}

/// What was written.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    index: String,
    samples: u64,
    objects: u64,
    object_bytes: u64,
    checksums: u64,
    taken_over: u64,
    dropped: u64,
    damaged: u64,
    passed_files: u64,
    passed_members: u64,
    deleted_rows: u64,
    unflushed_rows: u64,
    sidecars: u64,
    sidecars_unfit: u64,
    sidecar_samples: u64,
    sidecar_heads_unchecked: u64,
    index_bytes: u64,
    seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} samples of {} objects ({}) in {:.3} s, {} with a checksum",
            self.index,
            self.samples,
            self.objects,
            Bytes(self.object_bytes),
            self.seconds,
            self.checksums
        )?;
        let told = [
            (self.taken_over, "objects taken over from the older index"),
            (self.dropped, "objects of the older index are gone or were read again"),
            (self.damaged, "damaged objects left out"),
            (self.passed_files, "files hold no samples"),
            (self.passed_members, "members of archives belong to no sample"),
            (self.deleted_rows, "rows of collections were deleted"),
            (self.unflushed_rows, "rows of collections are not flushed, and not there"),
            (self.sidecars, "objects were not walked: an index lies beside each"),
            (self.sidecar_samples, "samples are from those indexes, without the checksums that a walk finds"),
            (self.sidecar_heads_unchecked, "heads of records or members in those objects were not looked at"),
            (self.sidecars_unfit, "objects were walked because the index beside them does not fit"),
        ];
        told.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, what)| write!(f, "\n  {count} {what}"))
    }
}

/// Runs it.
///
/// # Errors
/// Those of the sources, of the first damaged object with `--on-error fail`, and of writing; an interrupt.
pub fn run(args: &Index, out: &mut Out) -> Result<(), Fail> {
    let sources = all_absolute(&args.sources)?;
    let to: Uri = absolute(&args.out.to_string_lossy())?.parse()?;
    session::with_engine(&args.engine, |engine| {
        let clock = Stopwatch::start();
        let older = match args.update.then(|| IndexFile::open(engine, &to)) {
            Some(Ok(older)) => Some(older),
            // The first time there is nothing to take over.
            Some(Err(error)) if error.kind() == ErrorKind::NotFound => None,
            Some(Err(error)) => return Err(error.into()),
            None => None,
        };
        let options = BuildOptions {
            threads: args.threads,
            format: args.format,
            column: args.column.as_deref(),
            sidecars: if args.sidecars == BesideShards::Use { SideCars::Use } else { SideCars::Ignore },
            checksums: if args.checksum { Checksums::Computed } else { Checksums::Stored },
            on_error: if args.on_error == OnError::Fail { Policy::Fail } else { Policy::Skip },
            older: older.as_ref(),
        };
        let mut told = Told { out, list: List::new(&args.on_error)?, bar: None, fail: None };
        let built = build(engine, &sources, &to, &options, &mut |event| told.event(&event));
        let Told { list, bar, fail, .. } = told;
        drop(bar);
        if let Some(fail) = fail {
            return Err(fail);
        }
        let built = built.map_err(or_signal)?;
        list.finish()?;
        out.report(&report(&to, built, clock.seconds()))
    })
}

fn report(to: &Uri, built: Built, seconds: f64) -> Report {
    Report {
        schema: "straightway.dataset.index/1",
        index: to.to_string(),
        samples: built.samples,
        objects: built.objects,
        object_bytes: built.object_bytes,
        checksums: built.checksums,
        taken_over: built.taken_over,
        dropped: built.dropped,
        damaged: built.damaged,
        passed_files: built.passed_files,
        passed_members: built.passed_members,
        deleted_rows: built.deleted_rows,
        unflushed_rows: built.unflushed_rows,
        sidecars: built.sidecars,
        sidecars_unfit: built.sidecars_unfit,
        sidecar_samples: built.sidecar_samples,
        sidecar_heads_unchecked: built.sidecar_heads_unchecked,
        index_bytes: built.index_bytes,
        seconds,
    }
}

/// Tells people and lists what happens.
struct Told<'a> {
    out: &'a mut Out,
    list: List,
    bar: Option<Progress>,
    /// Why telling failed.
    fail: Option<Fail>,
}

impl Told<'_> {
    fn event(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        let told = match event {
            Event::Found { objects } => {
                self.bar = Some(self.out.steps(*objects, "index"));
                Ok(())
            }
            Event::Deletes { .. } => Ok(()),
            Event::Object { .. } => {
                self.step();
                Ok(())
            }
            Event::SideCar { uri, sidecar, error } => self.out.report(&Unfit {
                schema: "straightway.dataset.sidecar/1",
                uri,
                sidecar,
                kind: error.kind().name(),
                message: error.to_string(),
            }),
            Event::Damaged { uri, error } => {
                self.step();
                let damaged = Damaged {
                    schema: "straightway.dataset.damaged/1",
                    uri,
                    kind: error.kind().name(),
                    message: error.to_string(),
                };
                self.out.report(&damaged).and_then(|()| self.list.add(&damaged))
            }
        };
        if let Err(fail) = told {
            self.fail = Some(fail);
            return ControlFlow::Break(());
        }
        until_signal()
    }

    fn step(&self) {
        if let Some(bar) = &self.bar {
            bar.add(1);
        }
    }
}

/// The quarantine list: a line for each damaged object.
struct List(Option<(String, BufWriter<File>)>);

impl List {
    fn new(policy: &OnError) -> Result<Self, Fail> {
        let OnError::Quarantine(path) = policy else { return Ok(Self(None)) };
        let name = path.display().to_string();
        let file = File::create(path).map_err(|error| Fail::system(&format!("writing {name}"), &error))?;
        Ok(Self(Some((name, BufWriter::new(file)))))
    }

    fn add(&mut self, damaged: &Damaged<'_>) -> Result<(), Fail> {
        let Some((name, file)) = &mut self.0 else { return Ok(()) };
        let written = serde_json::to_writer(&mut *file, damaged).map_err(Into::into).and_then(|()| writeln!(file));
        written.map_err(|error: std::io::Error| Fail::system(&format!("writing {name}"), &error))
    }

    fn finish(self) -> Result<(), Fail> {
        let Some((name, mut file)) = self.0 else { return Ok(()) };
        file.flush().map_err(|error| Fail::system(&format!("writing {name}"), &error))
    }
}
