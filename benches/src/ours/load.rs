//! A checkpoint through `sw_checkpoint::load` into host memory.

use std::{path::Path, time::Instant};

use sha2::{Digest, Sha256};
use straightway::{Engine, Error, Uri};
use sw_checkpoint::{LoadOptions, Loaded, load};

use crate::{
    data::{SAMPLE_BYTES, hex, sample_places},
    report::Sample,
    usage::{self, Usage},
};

/// Where the destination comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Mapped by the load that counts, as in a program that loads once.
    Fresh,
    /// Kept from a load before, as in a program that loads the next weights of the same model.
    Kept,
}

/// More than any checkpoint of these benchmarks.
const KEEP_BYTES: u64 = 8 << 30;

/// Makes an engine, loads what `index` names, stops the clock, then takes the digest of sampled bytes.
pub(crate) fn run(index: &Path, seed: u64, memory: Memory) -> Result<Sample, Error> {
    let index = &Uri::from_path(index)?;
    let mut sample = Sample { rss_before_bytes: usage::resident_bytes(), ..Sample::default() };
    let warm = match memory {
        Memory::Fresh => None,
        Memory::Kept => {
            let engine = Engine::builder().keep_bytes(KEEP_BYTES).build()?;
            drop(load(&engine, index, &LoadOptions::default())?);
            Some(engine)
        }
    };
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let engine = warm.map_or_else(|| Engine::builder().build(), Ok)?;
    let loaded = load(&engine, index, &LoadOptions::default())?;
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    sample.ops = loaded.tensors.len() as u64;
    sample.bytes = loaded.tensor_bytes;
    sample.checksum = Some(digest(&loaded, seed)?);
    sample.path = Some(paths(&loaded));
    drop(loaded);
    engine.close()?;
    Ok(sample)
}

/// As `peers/load.py` takes it: name and samples of each tensor, in order of name.
pub(crate) fn digest(loaded: &Loaded, seed: u64) -> Result<String, Error> {
    let mut tensors: Vec<_> = loaded.tensors.iter().collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut sha = Sha256::new();
    for (index, tensor) in (0_u64..).zip(tensors) {
        sha.update(tensor.name.as_bytes());
        let Some((region, offset)) = tensor.place else { continue };
        let Some(memory) = loaded.regions.get(region) else { continue };
        for place in sample_places(tensor.len_bytes, index, seed) {
            let mut bytes = [0; SAMPLE_BYTES];
            memory.read(offset + place, &mut bytes)?;
            sha.update(bytes);
        }
    }
    Ok(hex(&sha.finalize()))
}

fn paths(loaded: &Loaded) -> serde_json::Value {
    let ways = loaded.files.iter().flat_map(|file| &file.ways);
    let row = |way: &sw_checkpoint::Way| {
        serde_json::json!({
            "route": way.path.route.to_string(),
            "reason": way.path.reason.code(),
            "reads": way.reads,
            "bytes": way.path.bytes.dma + way.path.bytes.kernel_copy + way.path.bytes.staged,
            "bounced_bytes": way.path.bounced,
            "cpu_copied_bytes": way.path.cpu_copied,
        })
    };
    serde_json::json!({ "ways": ways.map(row).collect::<Vec<_>>(), "gap_bytes": loaded.gap_bytes })
}
