use super::*;

fn side(name: &str, role: Role, seconds: &[f64]) -> Side {
    let sample = |s: &f64| Sample { ops: 100, bytes: 1000, seconds: *s, cpu_user_s: *s / 2.0, ..Sample::default() };
    Side {
        name: name.into(),
        role,
        own_memory: None,
        absent: None,
        failed: false,
        samples: seconds.iter().map(sample).collect(),
    }
}

fn case(ours: &[f64], peer: &[f64]) -> Case {
    let sides = vec![side("ours", Role::Ours, ours), side("fio", Role::Peer, peer)];
    Case { name: "x".into(), what: "x".into(), sides, goals: Vec::new() }
}

#[test]
fn median_takes_the_middle_and_refuses_what_is_no_number() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    assert_eq!(median(vec![]), None);
    assert_eq!(median(vec![1.0, f64::NAN]), None);
}

#[test]
fn ratio_is_taken_inside_a_round() {
    // The machine was ten times slower in the second round, for both sides: the ratio does not see it.
    let mut case = case(&[1.0, 10.0, 1.0], &[2.0, 20.0, 2.0]);
    case.hold("twice", Metric::BytesPerSecond, "ours", Some("fio"), Bound::AtLeast(1.9));
    assert_eq!(case.goals[0].rounds, vec![2.0, 2.0, 2.0]);
    assert_eq!(case.goals[0].held, Some(true));
}

#[test]
fn goal_without_samples_is_not_measured_rather_than_held() {
    let mut case = case(&[], &[1.0]);
    case.hold("rate", Metric::OpsPerSecond, "ours", Some("fio"), Bound::AtLeast(0.97));
    assert_eq!(case.goals[0].held, None);
    case.hold("rate", Metric::OpsPerSecond, "nobody", None, Bound::AtLeast(0.97));
    assert_eq!(case.goals[1].held, None);
}

#[test]
fn missed_bound_is_not_held() {
    let mut case = case(&[2.0], &[1.0]);
    case.hold("rate", Metric::OpsPerSecond, "ours", Some("fio"), Bound::AtLeast(0.97));
    case.hold("cost", Metric::CpuMicrosPerOp, "ours", Some("fio"), Bound::AtMost(1.1));
    assert_eq!(case.goals[0].held, Some(false));
    assert_eq!(case.goals[1].held, Some(false));
}

#[test]
fn goal_that_was_made_void_is_not_held_and_says_why() {
    let mut case = case(&[1.0], &[2.0]);
    case.hold("rate", Metric::OpsPerSecond, "ours", Some("fio"), Bound::AtLeast(0.97));
    case.void("not a device");
    assert_eq!((case.goals[0].held, case.goals[0].text.as_str()), (None, "(not a device) rate"));
}

#[test]
fn best_peer_is_never_our_own_side() {
    let case = case(&[0.1], &[1.0]);
    let best = case.best_peer(Metric::BytesPerSecond, Best::Highest, |_| true);
    assert_eq!(best.map(|side| side.name.as_str()), Some("fio"));
}

#[test]
fn report_of_an_older_run_with_fewer_fields_is_read() {
    let sample: Sample = serde_json::from_str(r#"{"ops": 3, "seconds": 1.5}"#).unwrap();
    assert_eq!((sample.ops, sample.minor_faults), (3, 0));
}
