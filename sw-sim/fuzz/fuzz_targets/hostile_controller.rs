//! libFuzzer target: the NVMe driver under a workload, over a controller whose registers, completions and data are what the
//! fuzzer says. The first eight bytes are the seed of the world, the rest is what the controller makes of everything.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let outcome = sw_sim::World::run_fuzzed(bytes);
    assert!(outcome.holds(), "{}", outcome.report);
});
