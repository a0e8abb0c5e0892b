//! Runs many seeds and lists those that fail, by their first violation: what to look at first after a change.
//!
//! `cargo run --release -p sw-sim --example survey -- FIRST COUNT`

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use sw_sim::{Mark, Marks, World};

fn main() {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse().unwrap_or(0u64));
    let (first, count) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(1000));
    let mut failures: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut marks = Marks::default();
    for seed in first..first.saturating_add(count) {
        let outcome = World::run(seed);
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
    println!("{failed} of {count} seeds failed; marks never reached: {:?}", marks.missing(&Mark::ALL));
    println!("{}", Mark::ALL.map(|mark| format!("{mark:?} {}", marks.count(mark))).join(", "));
}
