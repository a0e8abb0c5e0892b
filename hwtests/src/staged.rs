//! The whole way, by the engine: files into device memory and back, on the devices of this machine.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use straightway::{Destination, Engine, Memory, Object, Uri};
use sw_checkpoint::{Dtype, LayoutOptions, LoadOptions, SaveOptions, TensorSpec, load, save};

use crate::harness::{Need, Notes, Tag, Test};
use crate::machine::Machine;

/// Bytes of the file that is read and written for its bytes.
const FILE_BYTES: usize = (8 << 20) + 12_345;
/// Bytes of the file that is read for its rate; it stays in the page cache.
const RATE_FILE_BYTES: usize = 256 << 20;
/// Bytes of one read of it.
const PART_BYTES: u64 = 16 << 20;
/// Times that it is read.
const RATE_ROUNDS: u32 = 8;

/// All of them.
pub fn tests() -> Vec<Test> {
    vec![
        Test {
            name: "engine.round_trip",
            will: "read a file into each device and write it back to a new one, at odd offsets, and compare",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: round_trip,
        },
        Test {
            name: "engine.checkpoint",
            will: "save a sharded checkpoint, load it into each device, and compare the digest of every tensor",
            tag: Tag::Quick,
            needs: &[Need::Gpu],
            run: checkpoint,
        },
        Test {
            name: "engine.staged_rate",
            will: "measure staged reads from the page cache into the first device, and verify the bytes",
            tag: Tag::Timed,
            needs: &[Need::Gpu],
            run: staged_rate,
        },
    ]
}

fn say(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

/// A folder that is removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    /// An empty one.
    pub fn new() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("straightway-hwtests-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self(path))
    }

    /// Address of a file in it.
    pub fn uri(&self, name: &str) -> Result<Uri, String> {
        self.0.join(name).to_str().ok_or("a path that is not UTF-8")?.parse().map_err(say)
    }

    /// Writes a file of `len` bytes, and gives them.
    pub fn file(&self, name: &str, len: usize) -> Result<Vec<u8>, String> {
        let bytes: Vec<u8> = (0..len).map(|at| (at * 31 + at / 4093).to_le_bytes()[0]).collect();
        std::fs::write(self.0.join(name), &bytes).map_err(say)?;
        Ok(bytes)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _best_effort = std::fs::remove_dir_all(&self.0);
    }
}

/// Fails with the first byte that differs.
pub fn compare(engine: &Engine, memory: &Memory, want: &[u8]) -> Result<(), String> {
    let got = engine.copy_to_host(memory).map_err(say)?;
    match got.iter().zip(want).position(|(got, want)| got != want) {
        None if got.len() == want.len() => Ok(()),
        at => Err(format!("{} of {} bytes, the first that differs at {at:?}", got.len(), want.len())),
    }
}

fn round_trip(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let folder = Folder::new()?;
    let bytes = folder.file("source", FILE_BYTES)?;
    let engine = Engine::builder().build().map_err(say)?;
    let object = engine.open(&folder.uri("source")?).map_err(say)?;
    for gpu in &machine.gpus {
        let (offset, len) = (777, FILE_BYTES as u64 - 1000);
        let want = bytes.get(777..FILE_BYTES - 223).ok_or("the file is shorter than its test")?;
        let memory = engine.allocate(Destination::Gpu(gpu.ordinal), len, offset).map_err(say)?;
        let read = engine.read(&object, offset, memory).wait().ok().map_err(say)?;
        notes.insert(format!("gpu{}_read", gpu.ordinal), json!(read.path.to_string()));
        let memory = read.into_memory().ok_or("no memory came back")?;
        compare(&engine, &memory, want)?;
        let new = engine.create(&folder.uri("copy")?, len).map_err(say)?;
        let wrote = engine.write(new.object(), 0, memory).wait().ok().map_err(say)?;
        notes.insert(format!("gpu{}_write", gpu.ordinal), json!(wrote.path.to_string()));
        engine.flush(new.object()).wait().ok().map_err(say)?;
        new.commit().map_err(say)?;
        if std::fs::read(folder.0.join("copy")).map_err(say)? != want {
            return Err(format!("gpu{}: the file written differs", gpu.ordinal));
        }
    }
    engine.close().map_err(say)
}

fn checkpoint(machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let folder = Folder::new()?;
    let engine = Engine::builder().build().map_err(say)?;
    let shapes: [(&str, Dtype, &[u64], usize); 4] = [
        ("embed", Dtype::F32, &[1000, 700], 2_800_000),
        ("odd", Dtype::U8, &[1, 333], 333),
        ("scalar", Dtype::F64, &[], 8),
        ("layer", Dtype::Bf16, &[1400, 513], 1_436_400),
    ];
    let mut tensors = Vec::new();
    for (name, dtype, shape, len) in shapes {
        let memory = engine.allocate(Destination::Host, len as u64, 0).map_err(say)?;
        let mut buffer = memory.into_buffer().map_err(|_| "memory of the engine's own is shared".to_owned())?;
        let seed = name.len();
        buffer.as_mut_slice().iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 13 + seed).to_le_bytes()[0]);
        tensors.push((TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }, Memory::from(buffer)));
    }
    let layout = LayoutOptions { shard_len_max_bytes: Some(2_000_000), ..LayoutOptions::default() };
    save(&engine, &folder.0, tensors, &SaveOptions { layout: layout.into(), ..SaveOptions::default() }).map_err(say)?;
    let index = folder.uri("model.safetensors.index.json")?;
    let digests = |into| -> Result<Vec<_>, String> {
        let options = LoadOptions { into, digest: true, ..LoadOptions::default() };
        let loaded = load(&engine, &index, &options).map_err(say)?;
        let mut digests: Vec<_> = loaded.tensors.into_iter().map(|tensor| (tensor.name, tensor.digest)).collect();
        digests.sort();
        Ok(digests)
    };
    let want = digests(Destination::Host)?;
    if want.len() != shapes.len() || want.iter().any(|(_, digest)| digest.is_none()) {
        return Err(format!("{} tensors came back, and not each with a digest", want.len()));
    }
    for gpu in &machine.gpus {
        if digests(Destination::Gpu(gpu.ordinal))? != want {
            return Err(format!("gpu{}: tensors differ from what the host was given", gpu.ordinal));
        }
    }
    notes.insert("tensors".to_owned(), json!(want.len()));
    engine.close().map_err(say)
}

fn staged_rate(_machine: &Machine, notes: &mut Notes) -> Result<(), String> {
    let folder = Folder::new()?;
    let bytes = folder.file("source", RATE_FILE_BYTES)?;
    let engine = Engine::builder().build().map_err(say)?;
    let object = engine.open(&folder.uri("source")?).map_err(say)?;
    let mut memory = Vec::new();
    for _ in 0..RATE_FILE_BYTES as u64 / PART_BYTES {
        memory.push(engine.allocate(Destination::Gpu(0), PART_BYTES, 0).map_err(say)?);
    }
    // The first round makes lanes and measures slabs; it is not counted.
    memory = all_parts(&engine, &object, memory)?;
    let start = now();
    for _ in 0..RATE_ROUNDS {
        memory = all_parts(&engine, &object, memory)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    // GB are 10^9 bytes, as links are sold: beside `gpu.copy_rate` of the same record, which is the ceiling.
    let rate = f64::from(RATE_ROUNDS) * f64::from(u32::try_from(RATE_FILE_BYTES).map_err(say)?) / seconds / 1e9;
    notes.insert("staged_read_gb_per_s".to_owned(), json!(rate));
    let tree = engine.inspect().to_string();
    let staging = tree.lines().find(|line| line.contains(" slabs of ")).unwrap_or("not told").trim();
    notes.insert("staging".to_owned(), json!(staging));
    for (part, want) in memory.iter().zip(bytes.chunks(1 << 24)) {
        compare(&engine, part, want)?;
    }
    engine.close().map_err(say)
}

/// Reads the whole file once, all parts at the same time.
fn all_parts(engine: &Engine, object: &Object, memory: Vec<Memory>) -> Result<Vec<Memory>, String> {
    let request = |(n, part): (u64, Memory)| engine.read(object, n * PART_BYTES, part);
    let requests = (0..).zip(memory).map(request).collect();
    let done = engine.batch(requests).wait().into_iter();
    done.map(|done| done.ok().map_err(say)?.into_memory().ok_or_else(|| "no memory came back".to_owned())).collect()
}

#[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
fn now() -> Instant {
    Instant::now()
}
