//! `plan`: every candidate route with its verdict, and the one that would be taken.

use std::fmt;

use serde::Serialize;
use straightway::{Reach, Reason, SelfTest, Verb, Via};

use super::list::{Face, Path, faces, paths};
use crate::{
    args::{Direction, Plan},
    fail::Fail,
    out::Out,
    session,
    size::{Bytes, Rate},
};

/// The plan.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    uri: String,
    len: u64,
    into: String,
    verb: &'static str,
    faces: Vec<Face>,
    paths: Vec<Path>,
    /// Null for memory whose way does not depend on where object and memory are.
    reach: Option<Reached>,
    candidates: Vec<Candidate>,
    /// Null if no route meets the policy; the error that follows says why.
    choice: Option<Choice>,
}

/// What is known of the way between the object and the memory.
#[derive(Serialize)]
struct Reached {
    in_place: bool,
    reason: Option<&'static str>,
    /// What the PCI tree says; null where it is not asked.
    tree: Option<String>,
    self_test: Tested,
}

/// Planning tests nothing itself.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Tested {
    /// There is nothing to test.
    None,
    /// When the memory is first used.
    AtFirstUse,
    /// It has run.
    Done,
}

/// A route that was looked at.
#[derive(Serialize)]
struct Candidate {
    route: String,
    face: usize,
    via: &'static str,
    verdict: &'static str,
    reason: Option<&'static str>,
    reason_text: Option<&'static str>,
    measured_bytes_per_s: Option<u64>,
}

/// What would be taken.
#[derive(Serialize)]
struct Choice {
    route: String,
    via: &'static str,
    /// Whether the ragged ends of an operation may go through a bounce block.
    ends_may_bounce: bool,
    reason: &'static str,
    reason_text: &'static str,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} ({}) into {}", self.verb, self.uri, Bytes(self.len), self.into)?;
        for (number, face) in self.faces.iter().enumerate() {
            writeln!(f, "  way {}      {face}", number + 1)?;
        }
        for path in &self.paths {
            writeln!(f, "  path       {path}")?;
        }
        if let Some(reach) = &self.reach {
            writeln!(f, "  reach      {reach}")?;
        }
        for candidate in &self.candidates {
            writeln!(f, "  candidate  {candidate}")?;
        }
        match &self.choice {
            Some(choice) => write!(f, "  choice     {} ({}: {})", choice.route, choice.reason, choice.reason_text),
            None => write!(f, "  choice     none"),
        }
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.tree.as_deref().or(self.reason);
        let tested = match self.self_test {
            Tested::AtFirstUse => Some("a self-test runs when the memory is first used"),
            Tested::Done => Some("a self-test has run"),
            Tested::None => None,
        };
        let parts: Vec<&str> = known.into_iter().chain(tested).collect();
        f.write_str(&parts.join("; "))
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<22} {:<7} way {}  {}", self.route, self.via, self.face + 1, self.verdict)?;
        if let (Some(code), Some(text)) = (self.reason, self.reason_text) {
            write!(f, " {code}: {text}")?;
        }
        match self.measured_bytes_per_s {
            Some(rate) => write!(f, " [measured {}]", Rate(rate as f64)),
            None => Ok(()),
        }
    }
}

/// Runs it.
///
/// # Errors
/// Those of opening; the planner's, after the plan was printed.
pub fn run(args: &Plan, out: &mut Out) -> Result<(), Fail> {
    session::with_engine(&args.engine, |engine| {
        let (object, verb) = match args.verb {
            Direction::Read => (engine.open(&args.uri)?, Verb::Read),
            Direction::Write => (engine.open_for_update(&args.uri)?, Verb::Write),
        };
        let plan = engine.plan(&object, args.into, args.policy, verb);
        let choice = plan.choice.as_ref().ok().map(|choice| Choice {
            route: choice.route.to_string(),
            via: via(choice.main.via),
            ends_may_bounce: choice.ends_may_bounce,
            reason: choice.main.reason.code(),
            reason_text: choice.main.reason.text(),
        });
        out.report(&Report {
            schema: "straightway.plan/1",
            uri: args.uri.to_string(),
            len: object.len(),
            into: args.into.to_string(),
            verb: if verb == Verb::Read { "read" } else { "write" },
            faces: ways(&object, &plan),
            paths: paths(engine, &args.uri)?,
            reach: reached(engine.reach(&object, args.into)),
            candidates: plan.candidates.iter().map(candidate).collect(),
            choice,
        })?;
        plan.choice.map(|_| ()).map_err(Fail::from)
    })
}

/// Those that candidates count, one of the plan alone included; of a stripe set, those of all members.
fn ways(object: &straightway::Object, plan: &straightway::Plan) -> Vec<Face> {
    if object.as_engine_object().composed.is_some() { faces(object) } else { plan.faces.iter().map(Face::of).collect() }
}

fn reached(reach: Reach) -> Option<Reached> {
    let self_test = match reach.self_test {
        SelfTest::None if reach.tree.is_none() && reach.in_place.is_ok() => return None,
        SelfTest::None => Tested::None,
        SelfTest::AtFirstUse => Tested::AtFirstUse,
        SelfTest::Done => Tested::Done,
    };
    let reason = reach.in_place.err().map(Reason::code);
    Some(Reached { in_place: reason.is_none(), reason, tree: reach.tree.map(|tree| tree.to_string()), self_test })
}

fn candidate(candidate: &straightway::Candidate) -> Candidate {
    let reason = candidate.verdict.err();
    Candidate {
        route: candidate.route.to_string(),
        face: candidate.face,
        via: via(candidate.via),
        verdict: if reason.is_none() { "chosen" } else { "refused" },
        reason: reason.map(Reason::code),
        reason_text: reason.map(Reason::text),
        measured_bytes_per_s: candidate.measured,
    }
}

fn via(via: Via) -> &'static str {
    match via {
        Via::Direct => "direct",
        Via::Staged => "staged",
    }
}
