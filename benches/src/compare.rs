//! `compare a.json b.json`: what changed between two reports, and what is noise.
//!
//! Compared are ratios to a peer of the same round, because they survive a busy machine; and metrics that are counts. The
//! noise of a goal is the range of its rounds. A change counts when the medians differ by more than [`LEAST`] and each
//! report's median lies outside the other's range.

use std::fmt::Write;

use crate::{
    markdown::figures,
    report::{Bound, Goal, Report},
};

/// Relative differences below this are not worth a reviewer's time, whatever their noise.
const LEAST: f64 = 0.01;

/// What became of a goal's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Inside the noise.
    Noise,
    /// Outside it, the good way.
    Better,
    /// Outside it, the bad way.
    Worse,
    /// One of the reports does not have it.
    Unknown,
}

/// A Markdown table of all goals that either report has, and how many got worse.
pub(crate) fn render(old: &Report, new: &Report) -> (String, usize) {
    let mut out =
        String::from("| case | goal | against | before | after | change | verdict |\n|---|---|---|---|---|---|---|\n");
    let mut worse = 0;
    for case in &new.cases {
        let before = old.cases.iter().find(|other| other.name == case.name);
        for goal in &case.goals {
            let twin = before.and_then(|case| case.goals.iter().find(|other| same(other, goal)));
            let change = twin.map_or(Change::Unknown, |twin| judge(twin, goal));
            worse += usize::from(change == Change::Worse);
            let median = |goal: Option<&Goal>| goal.and_then(|goal| goal.median);
            let cell = |value: Option<f64>| value.map_or("–".to_owned(), figures);
            let (a, b) = (median(twin), median(Some(goal)));
            let percent = a.zip(b).filter(|(a, _)| *a != 0.0).map(|(a, b)| (b / a - 1.0) * 100.0);
            let percent = percent.map_or("–".to_owned(), |value| format!("{value:+.1} %"));
            let verdict = match change {
                Change::Noise => "noise",
                Change::Better => "better",
                Change::Worse => "**worse**",
                Change::Unknown => "not in both",
            };
            let against = goal.against.as_deref().unwrap_or("–");
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "| {} | {} | {against} | {} | {} | {percent} | {verdict} |",
                case.name,
                goal.text,
                cell(a),
                cell(b)
            );
        }
    }
    (out + &differences(old, new), worse)
}

fn same(a: &Goal, b: &Goal) -> bool {
    a.text == b.text && a.of == b.of && a.against == b.against
}

/// What makes the reports hard to compare.
fn differences(old: &Report, new: &Report) -> String {
    let mut out = String::new();
    let rows = [
        ("size", old.size.clone(), new.size.clone()),
        ("seed", old.seed.to_string(), new.seed.to_string()),
        ("processor", old.machine.cpu.clone(), new.machine.cpu.clone()),
        ("kernel", old.machine.kernel.clone(), new.machine.kernel.clone()),
        ("storage", old.machine.storage.clone(), new.machine.storage.clone()),
        ("tools", format!("{:?}", old.tools), format!("{:?}", new.tools)),
    ];
    for (what, a, b) in rows {
        if a != b {
            let _ = write!(out, "\nNot the same {what}: {a} before, {b} after.\n");
        }
    }
    out
}

/// Whether `new` differs from `old` by more than the noise of both.
pub(crate) fn judge(old: &Goal, new: &Goal) -> Change {
    let (Some(a), Some(b)) = (old.median, new.median) else { return Change::Unknown };
    let apart = outside(&old.rounds, b) && outside(&new.rounds, a);
    if !apart || (b - a).abs() <= LEAST * a.abs() {
        return Change::Noise;
    }
    let up_is_good = matches!(new.bound, Bound::AtLeast(_));
    if (b > a) == up_is_good { Change::Better } else { Change::Worse }
}

fn outside(rounds: &[f64], value: f64) -> bool {
    rounds.iter().all(|round| value < *round) || rounds.iter().all(|round| value > *round)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Metric;

    fn goal(bound: Bound, rounds: &[f64]) -> Goal {
        Goal {
            text: "rate".into(),
            metric: Metric::OpsPerSecond,
            of: "ours".into(),
            against: Some("fio".into()),
            bound,
            rounds: rounds.to_vec(),
            median: crate::report::median(rounds.to_vec()),
            held: None,
        }
    }

    #[test]
    fn overlapping_rounds_are_noise() {
        let old = goal(Bound::AtLeast(0.97), &[0.95, 1.0, 1.1]);
        assert_eq!(judge(&old, &goal(Bound::AtLeast(0.97), &[0.9, 1.05, 1.2])), Change::Noise);
    }

    #[test]
    fn clear_change_is_judged_by_the_direction_of_the_bound() {
        let (low, high) = ([0.8, 0.81, 0.82], [1.0, 1.01, 1.02]);
        assert_eq!(judge(&goal(Bound::AtLeast(1.0), &low), &goal(Bound::AtLeast(1.0), &high)), Change::Better);
        assert_eq!(judge(&goal(Bound::AtMost(1.0), &low), &goal(Bound::AtMost(1.0), &high)), Change::Worse);
    }

    #[test]
    fn difference_under_one_percent_is_noise_however_steady() {
        let old = goal(Bound::AtLeast(1.0), &[1.0, 1.0, 1.0]);
        assert_eq!(judge(&old, &goal(Bound::AtLeast(1.0), &[1.005, 1.005, 1.005])), Change::Noise);
    }

    #[test]
    fn goal_that_one_report_lacks_is_no_verdict() {
        let old = goal(Bound::AtLeast(1.0), &[]);
        assert_eq!(judge(&old, &goal(Bound::AtLeast(1.0), &[1.0])), Change::Unknown);
    }
}
