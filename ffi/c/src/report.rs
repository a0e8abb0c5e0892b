//! Plans and facts as JSON, with the fields that the command line prints (`docs/json.md`).

use serde_json::{Value, json};
use straightway::{Destination, Doctor, Engine, Object, Plan, Policy, Reach, Reason, SelfTest, Verb, Via};

/// `straightway.doctor/1`, without `paths`: what concerns the whole machine.
pub(crate) fn doctor(doctor: &Doctor) -> String {
    let fact = |fact: &straightway::Fact| json!({ "name": fact.name, "health": fact.health.name(), "value": fact.value, "remedy": fact.remedy });
    let facts: Vec<Value> = doctor.facts.iter().map(fact).collect();
    json!({ "schema": "straightway.doctor/1", "health": doctor.worst().name(), "facts": facts, "paths": [] })
        .to_string()
}

/// `straightway.plan/1`.
pub(crate) fn plan(
    engine: &Engine,
    object: &Object,
    (destination, policy, verb): (Destination, Policy, Verb),
) -> String {
    let plan = engine.plan(object, destination, policy, verb);
    let candidates: Vec<Value> = plan.candidates.iter().map(candidate).collect();
    let choice = plan.choice.as_ref().ok().map(|choice| {
        json!({
            "route": choice.route.to_string(),
            "via": via(choice.main.via),
            "ends_may_bounce": choice.ends_may_bounce,
            "reason": choice.main.reason.code(),
            "reason_text": choice.main.reason.text(),
        })
    });
    json!({
        "schema": "straightway.plan/1",
        "uri": object.name(),
        "len": object.len(),
        "into": destination.to_string(),
        "verb": verb.to_string(),
        "faces": faces(object, &plan),
        "reach": reached(&engine.reach(object, destination)),
        "candidates": candidates,
        "choice": choice,
    })
    .to_string()
}

fn candidate(candidate: &straightway::Candidate) -> Value {
    let reason = candidate.verdict.err();
    json!({
        "route": candidate.route.to_string(),
        "face": candidate.face,
        "via": via(candidate.via),
        "verdict": if reason.is_none() { "chosen" } else { "refused" },
        "reason": reason.map(Reason::code),
        "reason_text": reason.map(Reason::text),
        "measured_bytes_per_s": candidate.measured,
    })
}

/// The ways to an object, one of the plan alone included; those of a stripe set are its members'.
fn faces(object: &Object, plan: &Plan) -> Vec<Value> {
    let object = object.as_engine_object();
    let members = object.composed.iter().flat_map(|(_, members)| members).flat_map(|member| &member.faces);
    let own = plan.faces.iter().filter(|_| object.composed.is_none());
    let all = own.chain(members);
    all.map(|face| {
        json!({
            "transport": face.transport,
            "landing": face.landing.name(),
            "block": face.granularity.block,
            "memory": face.granularity.memory,
            "reason": face.because.map(Reason::code),
            "reason_text": face.because.map(Reason::text),
        })
    })
    .collect()
}

fn reached(reach: &Reach) -> Option<Value> {
    let self_test = match reach.self_test {
        SelfTest::None if reach.tree.is_none() && reach.in_place.is_ok() => return None,
        SelfTest::None => "none",
        SelfTest::AtFirstUse => "at-first-use",
        SelfTest::Done => "done",
    };
    let reason = reach.in_place.err().map(Reason::code);
    let tree = reach.tree.as_ref().map(ToString::to_string);
    Some(json!({ "in_place": reason.is_none(), "reason": reason, "tree": tree, "self_test": self_test }))
}

fn via(via: Via) -> &'static str {
    match via {
        Via::Direct => "direct",
        Via::Staged => "staged",
    }
}
