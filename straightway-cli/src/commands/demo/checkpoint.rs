//! The checkpoint of the demo: tensors of several types and odd shapes in several safetensors files.

use std::collections::BTreeMap;

use straightway::{Destination, Memory, Uri};
use sw_checkpoint::{Dtype, LayoutOptions, LoadOptions, SaveOptions, TensorSpec, Verify};

use super::{Run, dataset::LARGE_SEED};
use crate::{commands::load::ways_of, fail::Fail, pattern, pipeline, route::Ways, session::Stopwatch, signals};

/// Layers; each has one tensor of every entry of [`KINDS`].
const LAYERS: u64 = 8;
/// Files that the tensors are spread over.
const FILES: u64 = 3;
/// Tensors of a layer: name, type, bytes of an element, and share of the layer in hundredths.
const KINDS: [(&str, Dtype, u64, u64); 4] = [
    ("attention.weight", Dtype::Bf16, 2, 40),
    ("mlp.weight", Dtype::F32, 4, 45),
    ("mlp.scale", Dtype::F8E4m3, 1, 14),
    ("norm.bias", Dtype::F32, 4, 1),
];
/// Its directory below the demo's.
const DIRECTORY: &str = "checkpoint";

impl Run<'_> {
    /// Saves and loads a checkpoint of three eighths of `size`.
    pub fn checkpoint(&mut self, size: u64) -> Result<(), Fail> {
        let dir = self.dir.join(DIRECTORY);
        std::fs::create_dir(&dir).map_err(|error| Fail::system(&format!("create {}", dir.display()), &error))?;
        let specs = specs(size / 8 * 3);
        let mut seeds = BTreeMap::new();
        let mut tensors: Vec<(TensorSpec, Memory)> = Vec::with_capacity(specs.len());
        let mut total = 0;
        for ((spec, len), seed) in specs.into_iter().zip(LARGE_SEED + 1..) {
            signals::requested()?;
            seeds.insert(spec.name.clone(), seed);
            let memory = self.engine.allocate(Destination::Host, len, 0)?;
            tensors.push((spec, pipeline::filled(memory, seed, 0)?));
            total += len;
        }
        let layout = LayoutOptions { shard_len_max_bytes: Some(total.div_ceil(FILES)), ..LayoutOptions::default() };
        let options = SaveOptions { layout: layout.into(), ..SaveOptions::default() };
        let saved = sw_checkpoint::save(self.engine, &dir, tensors, &options).map_err(|failed| failed.error)?;
        self.written += saved.moved.bytes.total();
        let count = seeds.len();
        self.out.text(format_args!("checkpoint: {count} tensors written to {} files", saved.files.len()))?;
        drop(saved);
        signals::requested()?;
        let clock = Stopwatch::start();
        // Every byte is compared with the pattern below.
        let options = LoadOptions { into: self.into, verify: Verify::Off, ..LoadOptions::default() };
        let loaded = sw_checkpoint::load(self.engine, &Uri::from_path(&dir)?, &options)?;
        self.read_s += clock.seconds();
        if loaded.tensors.len() != count {
            let text = format!("{} tensors came back of {count}", loaded.tensors.len());
            return Err(Fail::verification(text, "report this as a defect"));
        }
        for tensor in &loaded.tensors {
            signals::requested()?;
            let seed = seeds.get(&tensor.name).copied().unwrap_or_default();
            let bytes = loaded.bytes_of(self.engine, tensor)?;
            self.verify_bytes(&bytes, tensor.len_bytes, &tensor.name, seed)?;
        }
        let mut sums = Ways::default();
        for file in &loaded.files {
            let ways = ways_of(file);
            self.note(&file.name, &ways)?;
            sums.join(ways);
        }
        self.tell(&sums)
    }
}

/// Tensors of about `bytes` in all, with their lengths. Odd dimensions, so that hardly one starts on a block.
fn specs(bytes: u64) -> Vec<(TensorSpec, u64)> {
    let layer = bytes / LAYERS;
    let of = |layer_number: u64, (name, dtype, element, share): (&str, Dtype, u64, u64)| {
        let columns = 31 + pattern::word(layer_number, element) % 97;
        let rows = (layer / 100 * share / element / columns).max(1);
        let spec = TensorSpec { name: format!("layers.{layer_number}.{name}"), dtype, shape: vec![rows, columns] };
        (spec, rows * columns * element)
    };
    (0..LAYERS).flat_map(|number| KINDS.into_iter().map(move |kind| of(number, kind))).collect()
}
