//! Bounded mutation fuzz of the target over RDMA, with fixed seeds. The unbounded twin is `sw-net/fuzz`; both run the body in
//! `sw-net/fuzz/rdma_target.rs`.

use std::collections::BTreeMap;

#[expect(clippy::cast_possible_truncation, reason = "lengths of a few blocks")]
#[path = "../../../sw-net/fuzz/rdma_target.rs"]
mod rdma_target;

const SEEDS: u64 = 3;
const INPUTS: u32 = 200;

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

#[test]
fn whatever_a_host_sends_the_target_answers_or_ends_the_connection_and_lives() {
    for seed in 1..=SEEDS {
        let mut dice = Dice(seed);
        let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
        for _ in 0..INPUTS {
            let mut raw = vec![dice.byte()];
            for _ in 0..1 + dice.byte() % 12 {
                let mut step: [u8; 16] = std::array::from_fn(|_| dice.byte());
                // Most are commands with nothing wrong: the end comes soon enough.
                if !dice.byte().is_multiple_of(8) {
                    (step[0], step[1], step[2]) = (1 + step[0] % 7, step[1] & 0x1C, step[2] & 0x0F);
                }
                raw.extend(step);
            }
            *outcomes.entry(rdma_target::rdma_target(&raw)).or_default() += 1;
        }
        println!("seed {seed}: {outcomes:?}");
        for word in ["success", "refused", "ended"] {
            assert!(outcomes.get(word).is_some_and(|&count| count >= 10), "seed {seed}: {word} in {outcomes:?}");
        }
    }
    assert_eq!(rdma_target::panics(), 0);
}
