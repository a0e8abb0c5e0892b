//! The worlds that are explored, and the mistakes that must be found in them.

use std::collections::BTreeSet;

use super::world::{Plan, Source, World};
use super::{Broken, explore};
use crate::mutant::Mutant;
use crate::wire::Opcode;
use crate::wire::message::Way;

/// More states than any of the worlds has.
const STATES_MAX: usize = 2_000_000;

const DIRECT: Way = Way::SharedMemory { segment: 0, offset: 0 };
const QUIETLY: Plan = Plan {
    way: DIRECT,
    window: 2,
    operations: [Opcode::Read, Opcode::Write],
    cancels: 0,
    revokes: 0,
    cuts: 0,
    restarts: 0,
    failures: 0,
    ticks: 0,
    source: Source::Answers,
};

/// Each with a name.
fn worlds() -> Vec<(&'static str, Plan)> {
    let writes_first = [Opcode::Write, Opcode::Read];
    vec![
        ("stop", Plan { cancels: 1, revokes: 1, failures: 1, ..QUIETLY }),
        ("stop, one credit", Plan { window: 1, cancels: 1, revokes: 1, ..QUIETLY }),
        ("stop a write", Plan { operations: writes_first, cancels: 1, revokes: 1, ..QUIETLY }),
        ("stop, by frames", Plan { way: Way::Frames, cancels: 1, revokes: 1, ..QUIETLY }),
        (
            "stop a write, by frames",
            Plan { way: Way::Frames, operations: writes_first, cancels: 1, revokes: 1, ..QUIETLY },
        ),
        ("stop what hangs", Plan { cancels: 1, source: Source::Hangs, ..QUIETLY }),
        ("cut", Plan { cuts: 1, ..QUIETLY }),
        ("cut and revoke", Plan { window: 1, cuts: 1, revokes: 1, ..QUIETLY }),
        ("cut and cancel", Plan { window: 1, cuts: 1, cancels: 1, ..QUIETLY }),
        ("cut, by frames", Plan { way: Way::Frames, window: 1, cuts: 1, cancels: 1, ..QUIETLY }),
        ("restart", Plan { restarts: 1, ..QUIETLY }),
        ("restart and revoke", Plan { window: 1, restarts: 1, revokes: 1, ..QUIETLY }),
        ("restart, by frames", Plan { way: Way::Frames, window: 1, restarts: 1, ..QUIETLY }),
        ("time", Plan { ticks: 2, window: 1, ..QUIETLY }),
    ]
}

fn told(name: &str, broken: &Broken) -> String {
    format!("in world {name:?}: {}\n  by {:?}", broken.promise, broken.moves)
}

#[test]
fn every_order_of_events_keeps_every_promise() {
    let mut marks = BTreeSet::new();
    for (name, plan) in worlds() {
        let explored =
            explore(World::new(plan, None), STATES_MAX).unwrap_or_else(|broken| panic!("{}", told(name, &broken)));
        println!("{name}: {} states, {} at rest", explored.states, explored.at_rest);
        assert!(explored.states > 100 && explored.at_rest > 0, "{name}: {explored:?}");
        marks.extend(explored.marks);
    }
    let wanted = [
        "a ghost came",
        "a session was attached again",
        "a touch was refused",
        "an operation could not be stopped in time",
        "an operation failed",
        "an operation succeeded",
        "an outcome is unknown",
        "the agent began anew",
    ];
    assert_eq!(marks, BTreeSet::from(wanted), "what was reached");
}

/// The first world in which a mistake is found, and what is found.
fn found(mutant: Mutant) -> (&'static str, Broken) {
    for (name, plan) in worlds() {
        if let Err(broken) = explore(World::new(plan, Some(mutant)), STATES_MAX) {
            return (name, broken);
        }
    }
    panic!("{mutant:?} is not found");
}

#[test]
fn mistakes_made_on_purpose_are_found() {
    let mutants = [
        (Mutant::RevokedTooEarly, "over"),
        (Mutant::CancelledTooEarly, "ended"),
        (Mutant::OldCompletionTaken, "a completion of an operation that was not sent"),
        (Mutant::CreditLost, "credit is lost"),
        (Mutant::CreditOverdrawn, "credit"),
        (Mutant::ResumedTooEarly, "settled"),
        (Mutant::WriteSentAgain, "twice"),
        (Mutant::CancelForgotten, "never end"),
        (Mutant::BackBeforeQuiet, "ended"),
        (Mutant::StrayDataLands, "written"),
    ];
    for (mutant, promise) in mutants {
        let (name, broken) = found(mutant);
        println!("{mutant:?}: {}", told(name, &broken));
        assert!(broken.promise.contains(promise), "{mutant:?}: {}", told(name, &broken));
    }
}
