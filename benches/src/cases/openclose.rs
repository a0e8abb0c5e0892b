//! `openclose`: what a short-lived program pays.

use crate::{
    bench::{Bench, Size, words},
    data,
    fault::Fault,
    report::{Bound, Case, Metric, Role},
    rounds::Before,
};

/// Engines made per run.
fn times(size: Size) -> u32 {
    match size {
        Size::Smoke => 5,
        Size::Real => 50,
    }
}

/// An engine made, a lane made, both closed; and the same with a first read.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let file = data::plain(&bench.dir, Size::Smoke.file_bytes(), bench.seed)?;
    let args = words(&["open-close", &file.to_string_lossy(), &format!("--times={}", times(bench.size))]);
    let subjects = vec![bench.worker("straightway", Role::Ours, &args, &[])];
    let what = "engine and lane made and closed (bare_ms), and engine made, first 4 KiB read, closed (the sample)";
    let mut case = bench.case("openclose", what, subjects, &Before::default());
    let text = "made and closed in under 10 ms without a GPU driver";
    case.hold(text, Metric::BareMillis, "straightway", None, Bound::AtMost(10.0));
    Ok(vec![case])
}
