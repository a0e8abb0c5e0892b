//! Bounded mutation fuzz of the target, with a fixed seed: seconds in every test run. The unbounded twin is `fuzz/`; both run the body
//! in `fuzz/bodies.rs`.

#![expect(clippy::expect_used, clippy::cast_possible_truncation, reason = "a helper of a test may panic")]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

const MUTATIONS: u32 = 1000;

/// SplitMix64: enough for choosing bytes, and replays from its seed.
struct Dice(u64);

impl Dice {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()[0]
    }
}

/// Panics of any thread: those of the target's are caught where they are joined.
static PANICS: AtomicU32 = AtomicU32::new(0);

#[test]
fn whatever_a_host_sends_the_target_answers_in_whole_units_and_lives() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        told(info);
    }));
    let mut dice = Dice(1);
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..MUTATIONS {
        let mut raw = vec![dice.byte()];
        for _ in 0..1 + dice.byte() % 12 {
            let mut step: [u8; 16] = std::array::from_fn(|_| dice.byte());
            // Most are commands with nothing wrong: the end comes soon enough.
            if !dice.byte().is_multiple_of(8) {
                (step[0], step[1], step[2]) = (1 + step[0] % 3, step[1] & 4, 0);
            }
            raw.extend(step);
        }
        *outcomes.entry(bodies::target(&raw)).or_default() += 1;
    }
    println!("{outcomes:?}");
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
    for word in ["success", "refused", "terminated"] {
        assert!(outcomes.get(word).is_some_and(|&count| count >= 10), "{word} in {outcomes:?}");
    }
}
