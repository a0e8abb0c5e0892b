//! `ls` and `stat`: what is at an address.

use std::{fmt, ops::ControlFlow};

use serde::Serialize;
use straightway::{Engine, Entry, EntryKind, Hidden, Object, Uri};

use crate::{
    args::{Ls, Stat},
    fail::Fail,
    out::Out,
    session,
    size::Bytes,
};

/// A line of `ls`.
#[derive(Serialize)]
struct Line {
    schema: &'static str,
    name: String,
    kind: &'static str,
    len: u64,
    /// Nanoseconds since 1970, as a string: more than a JSON number holds exactly.
    modified_ns: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<12} {:>14}  {}", self.kind, self.len, self.name)
    }
}

fn line(entry: Entry) -> Line {
    Line {
        schema: "straightway.ls/1",
        kind: kind(entry.kind),
        len: entry.len,
        modified_ns: entry.version.stamp.to_string(),
        name: entry.name,
    }
}

/// The name that reports give a kind.
fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Object => "object",
        EntryKind::Directory => "directory",
        EntryKind::BlockDevice => "block_device",
        EntryKind::Other => "other",
    }
}

/// Runs `ls`.
///
/// # Errors
/// Those of listing, and of writing to stdout.
pub fn ls(args: &Ls, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        for uri in &args.uris {
            if args.recursive {
                walk(engine, uri, out)?;
                continue;
            }
            let entry = engine.stat(uri)?;
            let entries = if entry.kind == EntryKind::Directory { engine.list(uri)? } else { vec![entry] };
            for entry in entries {
                out.report(&line(entry))?;
            }
        }
        Ok(())
    })
}

fn walk(engine: &Engine, uri: &Uri, out: &mut Out) -> Result<(), Fail> {
    let mut printed = Ok(());
    engine.walk(uri, Hidden::Given, |entry| {
        printed = out.report(&line(entry));
        if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    printed
}

/// The answer of `stat`.
#[derive(Serialize)]
struct StatReport {
    schema: &'static str,
    name: String,
    kind: &'static str,
    len: u64,
    modified_ns: String,
    identity: [u64; 2],
    /// Bytes in the page cache; null if nobody can tell.
    cached: Option<u64>,
    faces: Vec<Face>,
    paths: Vec<Path>,
}

/// One path to a namespace behind a fabric.
#[derive(Serialize)]
pub struct Path {
    address: String,
    controller: Option<u16>,
    state: &'static str,
    why: Option<String>,
}

/// The paths of an address; none of what is not behind a fabric.
///
/// # Errors
/// Those of opening.
pub fn paths(engine: &Engine, uri: &Uri) -> Result<Vec<Path>, Fail> {
    let of = |path: straightway::PathReport| Path {
        state: path.state.name(),
        why: path.state.why().map(str::to_owned),
        address: path.address,
        controller: path.controller,
    };
    Ok(engine.paths(uri)?.into_iter().map(of).collect())
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.address, self.state)?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

/// One way to reach an object's bytes.
#[derive(Serialize)]
pub struct Face {
    transport: &'static str,
    landing: &'static str,
    block: u32,
    memory: u32,
    reason: Option<&'static str>,
    reason_text: Option<&'static str>,
}

/// The ways to an object, for reports; those of a stripe set are its members'.
pub fn faces(object: &Object) -> Vec<Face> {
    let object = object.as_engine_object();
    let members = object.composed.iter().flat_map(|(_, members)| members).flat_map(|member| &member.faces);
    let all = object.faces.iter().chain(members);
    all.map(Face::of).collect()
}

impl Face {
    /// One of the engine's.
    pub fn of(face: &straightway::Face) -> Self {
        Self {
            transport: face.transport,
            landing: face.landing.name(),
            block: face.granularity.block,
            memory: face.granularity.memory,
            reason: face.because.map(straightway::Reason::code),
            reason_text: face.because.map(straightway::Reason::text),
        }
    }
}

impl fmt::Display for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}: offset and length by {}, memory by {}",
            self.transport, self.landing, self.block, self.memory
        )?;
        match (self.reason, self.reason_text) {
            (Some(code), Some(text)) => write!(f, " ({code}: {text})"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for StatReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        writeln!(f, "  kind      {}", self.kind)?;
        writeln!(f, "  length    {} ({})", self.len, Bytes(self.len))?;
        writeln!(f, "  modified  {} ns since 1970", self.modified_ns)?;
        write!(f, "  identity  {}:{}", self.identity[0], self.identity[1])?;
        if let Some(cached) = self.cached {
            write!(f, "\n  cached    {cached} ({})", Bytes(cached))?;
        }
        self.faces.iter().try_for_each(|face| write!(f, "\n  way       {face}"))?;
        self.paths.iter().try_for_each(|path| write!(f, "\n  path      {path}"))
    }
}

/// Runs `stat`.
///
/// # Errors
/// Those of looking, and of writing to stdout.
pub fn stat(args: &Stat, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        args.uris.iter().try_for_each(|uri| out.report(&stat_one(engine, uri)?))
    })
}

fn stat_one(engine: &Engine, uri: &Uri) -> Result<StatReport, Fail> {
    let (entry, object) = match uri {
        // A stripe set or a part has no entry of its own: what it is follows from what it is made of.
        Uri::Stripe { .. } | Uri::Part { .. } => {
            let object = engine.open(uri)?;
            let (name, len) = (uri.to_string(), object.len());
            (Entry { name, kind: EntryKind::Object, len, version: object.version() }, Some(object))
        }
        Uri::File(_) | Uri::Nvme(_) | Uri::NvmeTcp(_) | Uri::Remote(_) => {
            let entry = engine.stat(uri)?;
            let bytes = matches!(entry.kind, EntryKind::Object | EntryKind::BlockDevice);
            // What may be looked at may not always be read: the ways are then unknown, the rest is not.
            let object = if bytes { engine.open(uri).ok() } else { None };
            (entry, object)
        }
    };
    Ok(StatReport {
        schema: "straightway.stat/1",
        kind: kind(entry.kind),
        len: entry.len,
        modified_ns: entry.version.stamp.to_string(),
        identity: [entry.version.identity.0, entry.version.identity.1],
        cached: object.as_ref().and_then(Object::cached_bytes),
        faces: object.iter().flat_map(faces).collect(),
        paths: paths(engine, uri)?,
        name: entry.name,
    })
}
