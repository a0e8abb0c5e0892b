//! `doctor`: what this machine can do, and what to change.

use std::{fmt, path::Path};

use serde::Serialize;
use straightway::{Engine, EntryKind, Error, ErrorKind, Fact, Health, Object, Uri, Verb, mounts::MountFacts};

use super::list::{Face, faces};
use crate::{fail::Fail, machine_args::Doctor, out::Out, session};

/// Bytes of the file that is made in a directory to see how its file system takes direct I/O.
const PROBE_BYTES: u64 = 4096;

/// All facts.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    health: &'static str,
    facts: Vec<FactReport>,
    paths: Vec<PathReport>,
}

/// One fact.
#[derive(Serialize)]
struct FactReport {
    name: String,
    health: &'static str,
    value: String,
    remedy: String,
}

/// How files at a path can be reached.
#[derive(Serialize)]
struct PathReport {
    path: String,
    faces: Vec<Face>,
    mount: Option<MountReport>,
    error: Option<String>,
}

/// What a path is mounted from.
#[derive(Serialize)]
struct MountReport {
    at: String,
    #[serde(rename = "type")]
    kind: String,
    source: String,
    system: &'static str,
    direct: &'static str,
    note: &'static str,
    facts: Vec<FactReport>,
}

impl MountReport {
    fn of(found: MountFacts) -> Self {
        let MountFacts { mount, system, direct, note, facts, .. } = found;
        let facts = facts.into_iter().map(fact).collect();
        Self { at: mount.at, kind: mount.kind, source: mount.source, system, direct, note, facts }
    }
}

impl fmt::Display for MountReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "         mount {} ({}) from {} at {}", self.system, self.kind, self.source, self.at)?;
        writeln!(f, "         O_DIRECT: {}", self.direct)?;
        if !self.note.is_empty() {
            writeln!(f, "         note: {}", self.note)?;
        }
        for fact in &self.facts {
            writeln!(f, "         {:<8} {:<16} {}", fact.health, fact.name, fact.value)?;
            if !fact.remedy.is_empty() {
                writeln!(f, "                  {:<16} -> {}", "", fact.remedy)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fact in &self.facts {
            write!(f, "{:<8} {:<28} {}", fact.health, fact.name, fact.value)?;
            if !fact.remedy.is_empty() {
                write!(f, "\n         {:<28} -> {}", "", fact.remedy)?;
            }
            writeln!(f)?;
        }
        for path in &self.paths {
            writeln!(f, "{:<8} {}", "path", path.path)?;
            if let Some(mount) = &path.mount {
                write!(f, "{mount}")?;
            }
            for face in &path.faces {
                writeln!(f, "         way {face}")?;
            }
            if let Some(error) = &path.error {
                writeln!(f, "         {error}")?;
            }
        }
        write!(f, "in all: {}", self.health)
    }
}

/// Runs it.
///
/// # Errors
/// The first path that cannot be looked at, after everything was printed.
pub fn run(args: &Doctor, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        let doctor = engine.doctor();
        let mut failed = None;
        let mut paths = Vec::with_capacity(args.paths.len());
        for path in &args.paths {
            // Where none is told there is none; what is wrong with the path is told by looking at it.
            let mount = straightway::mounts::of(path).ok();
            let looked = match mount.as_ref().filter(|mount| !mount.answers) {
                Some(_) => Err(silent(path)),
                None => look(engine, path),
            };
            let error = looked.as_ref().err().map(ToString::to_string);
            paths.push(PathReport {
                path: path.display().to_string(),
                faces: looked.as_ref().map(faces).unwrap_or_default(),
                mount: mount.map(MountReport::of),
                error,
            });
            failed = failed.or(looked.err());
        }
        let health = if doctor.worst() == Health::Good { "good" } else { doctor.worst().name() };
        let facts = doctor.facts.into_iter().map(fact).collect();
        out.report(&Report { schema: "straightway.doctor/1", health, facts, paths })?;
        failed.map_or(Ok(()), Err)
    })
}

fn fact(fact: Fact) -> FactReport {
    FactReport { name: fact.name, health: fact.health.name(), value: fact.value, remedy: fact.remedy }
}

/// One that is not touched: whoever does waits for as long as its server is gone.
fn silent(path: &Path) -> Fail {
    let error = Error::new(ErrorKind::DeadlineExceeded, Verb::Open).at(path.to_string_lossy().into_owned());
    Fail::from(error.detail("the mount does not answer").remedy("look whether its server can be reached"))
}

/// A file as it is; of a directory, a file that is made in it and goes away.
fn look(engine: &Engine, path: &Path) -> Result<Object, Fail> {
    let uri = Uri::from_path(path)?;
    if engine.stat(&uri)?.kind != EntryKind::Directory {
        return Ok(engine.open(&uri)?);
    }
    let name = format!(".straightway-doctor-{}", std::process::id());
    let probe: Uri = Uri::from_path(&path.join(name))?;
    let new = engine.create(&probe, PROBE_BYTES)?;
    Ok(new.object().clone())
}
