//! Runs many seeds and lists those that fail, by their first violation: what to look at first after a change.
//!
//! `cargo run --release -p sw-sim --example survey -- FIRST COUNT [nvme|net]`

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use sw_sim::{Mark, Marks, NetWorld, Outcome, World};

fn main() {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse().unwrap_or(0u64));
    let (first, count) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(1000));
    // With the word behind the numbers, the worlds are those of modelled NVMe controllers, or of a network.
    let (run, all): (fn(u64) -> Outcome, _) = match std::env::args().nth(3).as_deref() {
        Some("nvme") => (World::run_nvme, &Mark::NVME[..]),
        Some("net") => (NetWorld::run, &Mark::NET[..]),
        _ => (World::run, &Mark::ALL[..]),
    };
    let mut failures: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut marks = Marks::default();
    for seed in first..first.saturating_add(count) {
        let outcome = run(seed);
        marks.add(&outcome.marks);
        if let Some(violation) = outcome.violations.first() {
            // Digits differ from seed to seed; the rest names the kind of failure.
            let kind: String = violation.evidence.chars().filter(|c| !c.is_ascii_digit()).take(70).collect();
            failures.entry(format!("{}: {kind}", violation.rule)).or_default().push(seed);
        }
    }
    for (kind, seeds) in &failures {
        println!("{:>5}  {kind}  {:?}", seeds.len(), seeds.iter().take(8).collect::<Vec<_>>());
    }
    let failed: usize = failures.values().map(Vec::len).sum();
    println!("{failed} of {count} seeds failed; marks never reached: {:?}", marks.missing(all));
    println!("{}", all.iter().map(|mark| format!("{mark:?} {}", marks.count(*mark))).collect::<Vec<_>>().join(", "));
}
