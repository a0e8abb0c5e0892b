//! `order`: seeks into the shuffled order of 10⁸ samples.

use crate::{
    bench::{Bench, words},
    fault::Fault,
    report::{Bound, Case, Metric, Role},
    rounds::Before,
};

/// Samples of the dataset. The same at every size: no table is made of them.
const SAMPLES: u64 = 100_000_000;

/// Random positions of random epochs, as a job that goes on after a stop asks for them; by each method.
pub(crate) fn run(bench: &mut Bench<'_>) -> Result<Vec<Case>, Fault> {
    let (seeks, seed) = (bench.size.seeks(), bench.seed);
    let mut cases = Vec::new();
    for method in ["shuffle", "blocks"] {
        let args = words(&[
            "order",
            &format!("--samples={SAMPLES}"),
            &format!("--method={method}"),
            &format!("--seeks={seeks}"),
            &format!("--seed={seed}"),
        ]);
        let subjects = vec![bench.worker("straightway", Role::Ours, &args, &[])];
        let what = format!("seeks to random positions of random epochs of {SAMPLES} samples, one thread");
        let mut case = bench.case(&format!("order/{method}"), &what, subjects, &Before::default());
        let (text, bound) = ("a seek in at most 1 microsecond of CPU", Bound::AtMost(1.0));
        case.hold(text, Metric::CpuMicrosPerOp, "straightway", None, bound);
        cases.push(case);
    }
    Ok(cases)
}
