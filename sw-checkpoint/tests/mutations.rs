//! Bounded mutation fuzz of every decoder, with a fixed seed: seconds in every test run, the same run each time.
//! The unbounded twin is `fuzz/`; both run the bodies in `fuzz/bodies.rs`.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::collections::BTreeMap;
use std::path::Path;

const MUTATIONS: u32 = 20_000;

/// Pieces that mean something to the parsers.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\u0000",
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    "18446744073709551615",
    "9223372036854775808",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"__metadata__\"",
    "\"F4\"",
    "\"U8\"",
    "\"weight_map\"",
    "\"../x.safetensors\"",
    "{\"a\":",
    "[[[[[[[[",
];

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
}

fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..=dice.roll(3) {
        let at = dice.roll(bytes.len());
        let end = (at + 1 + dice.roll(12)).min(bytes.len());
        match dice.roll(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.roll(8),
            1 if !bytes.is_empty() => bytes[at] = u8::try_from(dice.roll(256)).unwrap(),
            2 if !bytes.is_empty() => drop(bytes.drain(at..end)),
            3 if !bytes.is_empty() => {
                let copy = bytes[at..end].to_vec();
                let to = dice.roll(bytes.len());
                bytes.splice(to..to, copy);
            }
            4 => bytes.truncate(at),
            5 if !bytes.is_empty() => {
                // A digit for a digit: offsets and dimensions that are nearly right.
                let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
                if let Some(&digit) = digits.get(dice.roll(digits.len())) {
                    bytes[digit] = b'0' + u8::try_from(dice.roll(10)).unwrap();
                }
            }
            _ => {
                let word = WORDS[dice.roll(WORDS.len())].bytes();
                bytes.splice(at..at, word);
            }
        }
    }
}

fn files(dir: &str, ending: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(dir);
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    assert!(!paths.is_empty());
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn mutated_files_give_a_header_or_a_typed_error() {
    let seeds = files("golden", ".safetensors");
    let mut dice = Dice(1);
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for round in 0..MUTATIONS {
        let seed = &seeds[dice.roll(seeds.len())];
        let json_len = usize::try_from(u64::from_le_bytes(seed[..8].try_into().unwrap())).unwrap();
        let (json, data) = seed[8..].split_at(json_len);
        // Three of four keep the length field right, so that the mutation reaches the parser and the checks behind it.
        let file = if round % 4 == 0 {
            let mut file = seed.clone();
            mutate(&mut dice, &mut file);
            file
        } else {
            let mut json = json.to_vec();
            mutate(&mut dice, &mut json);
            [&(json.len() as u64).to_le_bytes()[..], &json, data].concat()
        };
        *outcomes.entry(bodies::header(&file)).or_default() += 1;
    }
    println!("{outcomes:?}");
    // The run is worth its time only if it reaches past the JSON parser: most codes must have been seen.
    assert!(outcomes.len() >= 15, "only {} outcomes: {outcomes:?}", outcomes.len());
    assert!(outcomes["ok"] > 100, "{outcomes:?}");
}

#[test]
fn mutated_hostile_files_do_no_harm() {
    let seeds = files("hostile", ".safetensors");
    let mut dice = Dice(2);
    for _ in 0..MUTATIONS / 4 {
        let mut file = seeds[dice.roll(seeds.len())].clone();
        mutate(&mut dice, &mut file);
        bodies::header(&file);
    }
}

#[test]
fn mutated_indexes_give_an_index_or_a_typed_error() {
    let seeds = files("golden", ".index.json");
    let mut dice = Dice(3);
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..MUTATIONS {
        let mut text = seeds[dice.roll(seeds.len())].clone();
        mutate(&mut dice, &mut text);
        *outcomes.entry(bodies::index(&text)).or_default() += 1;
    }
    println!("{outcomes:?}");
    assert!(outcomes.len() >= 4, "{outcomes:?}");
    assert!(outcomes["ok"] > 100, "{outcomes:?}");
}

#[test]
fn mutated_patterns_parse_or_are_refused() {
    let mut dice = Dice(4);
    for _ in 0..MUTATIONS {
        let mut text = b"model.*.weight,?b\\,c*\nmodel.layers.0.weight".to_vec();
        mutate(&mut dice, &mut text);
        bodies::pattern(&text);
    }
}

#[test]
fn mutated_files_of_torch_give_a_catalog_or_a_typed_error() {
    let mut seeds = files("torch", ".pt");
    seeds.extend(files("hostile-torch", "e.pt"));
    seeds.extend(files("hostile-torch", "p.pt"));
    let mut dice = Dice(5);
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..MUTATIONS {
        let mut file = seeds[dice.roll(seeds.len())].clone();
        // In place, so that the container still holds together and the pickle behind it is reached.
        for _ in 0..=dice.roll(3) {
            let at = dice.roll(file.len());
            file[at] = u8::try_from(dice.roll(256)).unwrap();
        }
        *outcomes.entry(bodies::torch(&file)).or_default() += 1;
    }
    println!("{outcomes:?}");
    assert!(outcomes.len() >= 12, "only {} outcomes: {outcomes:?}", outcomes.len());
    assert!(outcomes["ok"] > 100, "{outcomes:?}");
    for _ in 0..MUTATIONS / 4 {
        let mut file = seeds[dice.roll(seeds.len())].clone();
        mutate(&mut dice, &mut file);
        bodies::torch(&file);
    }
}

#[test]
fn mutated_metadata_of_dcp_is_read_or_refused() {
    let seeds = [files("torch/dcp", ".metadata"), files("torch/dcp-one", ".metadata")].concat();
    let mut dice = Dice(6);
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..MUTATIONS {
        let mut bytes = seeds[dice.roll(seeds.len())].clone();
        mutate(&mut dice, &mut bytes);
        *outcomes.entry(bodies::dcp(&bytes)).or_default() += 1;
    }
    println!("{outcomes:?}");
    assert!(outcomes.len() >= 6, "only {} outcomes: {outcomes:?}", outcomes.len());
    assert!(outcomes["ok"] > 100, "{outcomes:?}");
}
