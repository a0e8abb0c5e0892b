//! Bounded mutation fuzz of every decoder, with a fixed seed: seconds in every test run, the same run each time.
//! The unbounded twin is `fuzz/`; both run the bodies in `fuzz/bodies.rs`.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::collections::BTreeMap;
use std::path::Path;

/// SplitMix64: enough for choosing bytes, and replays from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % below.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        // Zeros, ones and all bits set mean more to lengths than others do.
        const ODD: [u8; 4] = [0, 1, 0x7f, 0xff];
        if self.roll(3) == 0 { ODD[self.roll(ODD.len())] } else { u8::try_from(self.roll(256)).unwrap() }
    }
}

fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..=dice.roll(3) {
        if bytes.is_empty() {
            return;
        }
        // Heads and footers are where lengths stand.
        let window = if dice.roll(2) == 0 { bytes.len() } else { bytes.len().min(200) };
        let at = if dice.roll(3) == 0 { bytes.len() - 1 - dice.roll(window) } else { dice.roll(window) };
        let end = (at + 1 + dice.roll(12)).min(bytes.len());
        match dice.roll(8) {
            0 | 1 => bytes[at] ^= 1 << dice.roll(8),
            2 | 3 => bytes[at] = dice.byte(),
            4 => bytes[at..end].iter_mut().for_each(|byte| *byte = dice.byte()),
            5 => drop(bytes.drain(at..end)),
            6 => {
                let copy = bytes[at..end].to_vec();
                let to = dice.roll(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => bytes.truncate(at),
        }
    }
}

/// Files of `testdata` and its folders that end in one of `endings`.
fn seeds(endings: &[&str]) -> Vec<Vec<u8>> {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let list = |folder: &Path| -> Vec<_> {
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let here = list(&testdata);
    let inside = here.iter().filter(|path| path.is_dir()).flat_map(|folder| list(folder));
    let all = here.iter().cloned().chain(inside);
    let own = all.filter(|path| endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)));
    let files: Vec<_> = own.map(|path| std::fs::read(path).unwrap()).filter(|file| file.len() < 64 << 10).collect();
    assert!(!files.is_empty());
    files
}

/// Runs `body` on the files of `endings` and on mutations of them; what came of it, and how often.
fn run(body: fn(&[u8]) -> &'static str, endings: &[&str], mutations: u32) -> BTreeMap<&'static str, u32> {
    let seeds = seeds(endings);
    let mut outcomes = BTreeMap::new();
    for seed in &seeds {
        *outcomes.entry(body(seed)).or_default() += 1;
    }
    let mut dice = Dice(1);
    for _ in 0..mutations {
        let mut file = seeds[dice.roll(seeds.len())].clone();
        mutate(&mut dice, &mut file);
        *outcomes.entry(body(&file)).or_default() += 1;
    }
    println!("{outcomes:?}");
    outcomes
}

/// The run is worth its time only if it reaches past the first check: each of `kinds` must have been seen.
fn check(outcomes: &BTreeMap<&str, u32>, kinds: &[&str]) {
    for kind in kinds {
        assert!(outcomes.contains_key(kind), "no {kind} in {outcomes:?}");
    }
}

#[test]
fn tar() {
    check(&run(bodies::tar, &[".tar"], 4_000), &["ok", "Cut", "Checksum", "Unsupported"]);
}

#[test]
fn tfrecord() {
    check(&run(bodies::tfrecord, &[".tfrecord"], 10_000), &["ok", "Cut", "Checksum"]);
}

#[test]
fn example() {
    check(&run(bodies::example_message, &[".example"], 20_000), &["ok", "Field"]);
}

#[test]
fn mds() {
    check(&run(bodies::mds, &[".mds", "index.json"], 10_000), &["ok", "Cut", "Field", "OutOfFile"]);
}

#[test]
fn npy() {
    check(&run(bodies::npy, &[".npy"], 10_000), &["ok", "Cut", "Field", "TooLong", "Unsupported"]);
}

#[test]
fn idx() {
    check(&run(bodies::idx, &[".idx"], 10_000), &["ok", "Cut", "Field", "OutOfFile", "Unsupported"]);
}

#[test]
fn sidecar() {
    check(&run(bodies::sidecar, &[".sidecar"], 10_000), &["ok", "Field", "Differs", "OutOfFile", "Unsupported"]);
}
