//! The seed suite: the product's lane against modelled hardware, judged after every step.
//!
//! Four kinds of worlds: modelled disks behind the `Transport` seam; modelled NVMe controllers behind the bus seam, with
//! the product's driver between them and the lane; a modelled network with a target behind it, under what decides in the
//! initiator over TCP; and modelled RDMA NICs behind the seam of verbs, under the product's end of queues over RDMA.
//!
//! `SW_SIM_SEEDS=n` sets how many fixed seeds of each kind run (200 if unset, and more while a mark is missing);
//! `SW_SIM_SEED=n` makes `one_seed`, `one_nvme_seed`, `one_net_seed` and `one_rdma_seed` replay that one.

#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "a test reads its size from the environment and fresh seeds from the clock"
)]

use std::{
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use sw_sim::{Mark, Marks, NetWorld, Outcome, RdmaWorld, World};

/// Seeds that run unless the environment says otherwise.
const FIXED: u64 = 200;
/// Seeds that nobody has seen before, in each run.
const FRESH: u64 = 50;
/// Seeds from which on every mark must have been reached. More than [`FIXED`]: a pool whose every slab is lost is rare.
const SEEDS_FOR_ALL_MARKS: u64 = 600;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Panics with everything there is to know about a failure.
fn must_hold(outcome: &Outcome, nth: u64) {
    if !outcome.holds() {
        println!("{}", outcome.report);
        println!("{outcome}");
        panic!("seed {} failed; {nth} seeds were needed to find it", outcome.seed);
    }
}

/// Runs fixed seeds until all marks are reached.
fn fixed(run: fn(u64) -> Outcome, all: &[Mark]) {
    let stated = number("SW_SIM_SEEDS");
    let (least, most) = (stated.unwrap_or(FIXED), stated.unwrap_or(SEEDS_FOR_ALL_MARKS));
    let (mut seeds, mut marks) = (0, Marks::default());
    let (mut ops, mut ok, mut bytes) = (0, 0, 0);
    while seeds < least || (seeds < most && !marks.missing(all).is_empty()) {
        let outcome = run(seeds);
        seeds += 1;
        must_hold(&outcome, seeds);
        marks.add(&outcome.marks);
        ops += outcome.stats.ops;
        ok += outcome.stats.ok;
        bytes += outcome.stats.bytes;
    }
    println!("{seeds} seeds: {ops} operations, {ok} succeeded, {bytes} bytes");
    all.iter().for_each(|mark| println!("  {mark:?}: {}", marks.count(*mark)));
    if seeds >= SEEDS_FOR_ALL_MARKS {
        assert_eq!(marks.missing(all), [], "branches that {seeds} seeds must reach");
    }
}

fn fresh(run: fn(u64) -> Outcome) {
    if number("SW_SIM_SEEDS").is_some() {
        println!("skipped: a stated number of seeds is about the fixed ones");
        return;
    }
    let start =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0));
    println!("fresh seeds from {start}");
    (0..FRESH).for_each(|n| must_hold(&run(start.wrapping_add(n)), n + 1));
}

fn one(run: fn(u64) -> Outcome) {
    let Some(seed) = number("SW_SIM_SEED") else {
        println!("skipped: SW_SIM_SEED names no seed to replay");
        return;
    };
    let outcome = run(seed);
    println!("{outcome}, hash {:016x}, {:?}", outcome.event_hash, outcome.stats);
    must_hold(&outcome, 1);
}

#[test]
fn fixed_seeds_hold_and_reach_every_mark() {
    fixed(World::run, &Mark::ALL);
}

#[test]
fn fixed_nvme_seeds_hold_and_reach_every_mark() {
    fixed(World::run_nvme, &Mark::NVME);
}

#[test]
fn fixed_net_seeds_hold_and_reach_every_mark() {
    fixed(NetWorld::run, &Mark::NET);
}

#[test]
fn fixed_net_seeds_with_two_paths_hold() {
    fixed(NetWorld::run_paths, &[]);
}

#[test]
fn fixed_resets_seeds_hold_and_reach_every_mark() {
    fixed(NetWorld::run_resets, &Mark::RESETS);
}

#[test]
fn fresh_resets_seeds_hold() {
    fresh(NetWorld::run_resets);
}

#[test]
fn one_resets_seed() {
    one(NetWorld::run_resets);
}

#[test]
fn fixed_rdma_seeds_hold_and_reach_every_mark() {
    fixed(RdmaWorld::run, &Mark::RDMA);
}

#[test]
fn fresh_rdma_seeds_hold() {
    fresh(RdmaWorld::run);
}

#[test]
fn one_rdma_seed() {
    one(RdmaWorld::run);
}

#[test]
fn fresh_net_seeds_with_two_paths_hold() {
    fresh(NetWorld::run_paths);
}

#[test]
fn one_paths_seed() {
    one(NetWorld::run_paths);
}

#[test]
fn fresh_seeds_hold() {
    fresh(World::run);
}

#[test]
fn fresh_nvme_seeds_hold() {
    fresh(World::run_nvme);
}

#[test]
fn fresh_net_seeds_hold() {
    fresh(NetWorld::run);
}

#[test]
fn one_seed() {
    one(World::run);
}

#[test]
fn one_nvme_seed() {
    one(World::run_nvme);
}

#[test]
fn one_net_seed() {
    one(NetWorld::run);
}

#[test]
fn a_seed_is_one_history_in_this_process() {
    for seed in [0, 7, 19, 123_456] {
        for run in [World::run, World::run_nvme, NetWorld::run, NetWorld::run_resets, RdmaWorld::run] {
            let (first, second) = (run(seed), run(seed));
            assert_eq!(first.event_hash, second.event_hash, "seed {seed} is not deterministic");
            assert_eq!(first.stats, second.stats);
        }
    }
    assert_ne!(World::run(0).event_hash, World::run(1).event_hash);
}

#[test]
fn a_seed_is_one_history_in_every_process() {
    let seed = 5;
    for (run, test) in [
        (World::run as fn(u64) -> Outcome, "one_seed"),
        (World::run_nvme, "one_nvme_seed"),
        (NetWorld::run, "one_net_seed"),
        (RdmaWorld::run, "one_rdma_seed"),
    ] {
        let here = format!("hash {:016x}", run(seed).event_hash);
        let there = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env("SW_SIM_SEED", seed.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&there.stdout);
        assert!(text.contains(&here), "{here} is not in the output of another process: {text}");
    }
}
