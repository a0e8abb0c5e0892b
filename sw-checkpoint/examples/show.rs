//! Prints the tensors of a checkpoint and the plan to load them, with plain file reads: what a composing layer does.
//!
//! `cargo run --release -p sw-checkpoint --example show -- FILE.safetensors|FILE.index.json [PATTERN]`

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sw_checkpoint::{Catalog, HeadReader, Header, LoadLimits, LoadPlan, Pattern, Shard, ShardIndex, Want};

fn read_header(path: &Path) -> Result<Header, Box<dyn Error>> {
    let file = File::open(path).map_err(|error| format!("open {} failed: {error}", path.display()))?;
    let mut reader = HeadReader::new(file.metadata()?.len())?;
    let mut buffer = vec![0; usize::try_from(sw_checkpoint::STEP_LEN_MAX_BYTES)?];
    // Bounded: each step delivers a byte or fails, and the header has a limit.
    while let Some(step) = reader.need() {
        let got = file.read_at(&mut buffer[..usize::try_from(step.len_bytes)?], step.file_offset)?;
        reader.push(&buffer[..got])?;
    }
    Ok(reader.finish()?)
}

fn open(path: &Path) -> Result<Catalog, Box<dyn Error>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !name.ends_with(".json") {
        return Ok(Catalog::single(name, read_header(path)?));
    }
    let index = ShardIndex::parse(&std::fs::read(path)?)?;
    let shards = index.files().iter().map(|file| {
        let header = read_header(&path.with_file_name(file))?;
        Ok(Shard { name: file.clone(), header })
    });
    Ok(Catalog::sharded(&index, shards.collect::<Result<_, Box<dyn Error>>>()?)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: show FILE.safetensors|FILE.index.json [PATTERN]")?;
    let pattern = args.next().map_or_else(|| Ok(Pattern::all()), |text| Pattern::parse(&text))?;
    let catalog = open(Path::new(&path))?;
    let plan = LoadPlan::new(&catalog, &Want::matching(&catalog, &pattern)?, LoadLimits::default())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    for view in plan.views() {
        let tensor = &catalog.tensors()[view.tensor];
        let name = tensor.name.escape_debug();
        writeln!(out, "{name}\t{}\t{:?}\t{} bytes", tensor.dtype, tensor.shape, tensor.len_bytes)?;
    }
    for part in plan.parts() {
        let name = &catalog.files()[part.file].name;
        let (from, to) = (part.file_offset, part.region_offset);
        writeln!(out, "read {name} byte {from} +{} into region {} byte {to}", part.len_bytes, part.region)?;
    }
    writeln!(out, "{:?}", plan.totals())?;
    Ok(out.flush()?)
}
