//! Bounded mutation fuzz of every decoder, with a fixed seed: seconds in every test run, the same run each time.
//! The unbounded twin is `fuzz/`; both run the bodies in `fuzz/bodies.rs`.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::collections::BTreeMap;
use std::path::Path;

use sw_data::formats::{ParquetRows, ParquetScan, scan_slice};

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

/// Runs `body` on `seeds` and on mutations of them; what came of it, and how often.
fn run(body: fn(&[u8]) -> &'static str, seeds: &[Vec<u8>], mutations: u32) -> BTreeMap<&'static str, u32> {
    let mut outcomes = BTreeMap::new();
    for seed in seeds {
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
    check(&run(bodies::tar, &seeds(&[".tar"]), 4_000), &["ok", "Cut", "Checksum", "Unsupported"]);
}

#[test]
fn tfrecord() {
    check(&run(bodies::tfrecord, &seeds(&[".tfrecord"]), 10_000), &["ok", "Cut", "Checksum"]);
}

#[test]
fn example() {
    check(&run(bodies::example_message, &seeds(&[".example"]), 20_000), &["ok", "Field"]);
}

#[test]
fn mds() {
    check(&run(bodies::mds, &seeds(&[".mds", "index.json"]), 10_000), &["ok", "Cut", "Field", "OutOfFile"]);
}

#[test]
fn npy() {
    check(&run(bodies::npy, &seeds(&[".npy"]), 10_000), &["ok", "Cut", "Field", "TooLong", "Unsupported"]);
}

#[test]
fn binlog() {
    check(&run(bodies::binlog, &seeds(&[".binlog"]), 5_000), &["ok", "Cut", "Field", "Unsupported"]);
}

#[test]
fn idx() {
    check(&run(bodies::idx, &seeds(&[".idx"]), 10_000), &["ok", "Cut", "Field", "OutOfFile", "Unsupported"]);
}

#[test]
fn sidecar() {
    check(
        &run(bodies::sidecar, &seeds(&[".sidecar"]), 10_000),
        &["ok", "Field", "Differs", "OutOfFile", "Unsupported"],
    );
}

#[test]
fn npz() {
    let kinds = ["ok", "Archive"];
    check(&run(bodies::npz, &seeds(&[".npz"]), 10_000), &kinds);
}

#[test]
fn parquet() {
    let kinds = ["ok", "Cut", "Field", "TooLong", "Unsupported", "OutOfFile", "Differs", "Column"];
    check(&run(bodies::parquet, &seeds(&[".parquet"]), 20_000), &kinds);
}

/// Blocks of Parquet files behind the four bytes that [`bodies::block`] takes for their coding, and compressed shards.
fn block_seeds() -> Vec<Vec<u8>> {
    let mut blocks = seeds(&[".zstd"]);
    for file in seeds(&[".parquet"]) {
        let Ok(mut scan) = ParquetScan::new(file.len() as u64, None) else { continue };
        let found = scan_slice(&mut scan, &file).unwrap_or_default();
        let Some(coding) = scan.coding() else { continue };
        let codec = bodies::CODECS.iter().position(|codec| *codec == coding.codec).unwrap();
        for rows in found {
            let ParquetRows::Block { extent, .. } = rows else { continue };
            let from = usize::try_from(extent.offset).unwrap();
            let block = &file[from..from + usize::try_from(extent.len).unwrap()];
            let head = [0, u8::try_from(codec).unwrap(), coding.definition, coding.repetition];
            blocks.push([&head, block].concat());
        }
    }
    assert!(blocks.len() > 20);
    blocks
}

#[test]
fn block() {
    let outcomes = run(bodies::block, &block_seeds(), 20_000);
    check(&outcomes, &["rows", "shard", "none"]);
    assert!(outcomes["rows"] > 1_000, "{outcomes:?}");
}
