//! libFuzzer target: a caller of the engine that does what the fuzzer says, over the product's NVMe driver and a modelled
//! controller. The first eight bytes are the seed of the world, the rest are the caller's choices, word by word.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let outcome = sw_sim::World::run_fuzzed_caller(bytes);
    assert!(outcome.holds(), "{}", outcome.report);
});
