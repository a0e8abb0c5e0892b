//! Checkpoints in device memory, on the project's stand-in driver: each case in a process of its own, see
//! `standin_libcuda::runner`. It proves the logic, not a device.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed case")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use standin_libcuda::{
    harness::{COPY, Control, SILENT_DAMAGE},
    runner::{Case, End, KERNELS, Outcome, case, holds, same, text},
};
use straightway::{Destination, Engine, ErrorKind, Landing, Memory, Reason, Uri};
use sw_checkpoint::{
    Bytes, Checkpoint, Commit, DcpOptions, Dtype, IfExists, Layout, LayoutOptions, LoadOptions, Loaded, NewTensor,
    Pattern, PendingCheckpoint, Rank, SaveOptions, Saver, SaverOptions, Slice, TensorSpec, Verify, Want, commit, load,
    save,
};
use sw_testkit::scratch::Scratch;

const WORKER: &[(&str, &str)] = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "100"), ("STANDIN_DEVICES", "2")];
const LAZY: &[(&str, &str)] = &[("STANDIN_MODE", "lazy"), KERNELS];
const BESIDE: &[(&str, &str)] = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "100"), KERNELS];
const GPU0: Destination = Destination::Gpu(0);

fn main() -> ExitCode {
    let cases = [
        case("a_sharded_checkpoint_has_the_same_digests_on_a_gpu_when_streams_run_late", sharded),
        Case {
            settings: WORKER,
            ..case("a_sharded_checkpoint_has_the_same_digests_on_a_gpu_when_streams_run_beside", sharded)
        },
        Case { settings: WORKER, ..case("a_checkpoint_is_saved_from_one_gpu_and_loaded_into_another", saved_from_gpu) },
        Case { settings: WORKER, ..case("chunks_and_slices_are_put_together_in_device_memory", put_together) },
        case("a_gpu_too_small_for_a_checkpoint_is_told_before_anything_is_read", too_small),
        Case { settings: LAZY, ..case("what_landed_is_compared_where_it_lies_when_streams_run_late", landed) },
        Case { settings: BESIDE, ..case("what_landed_is_compared_where_it_lies_when_streams_run_beside", landed) },
        Case { settings: BESIDE, ..case("damage_behind_the_processor_fails_a_load_that_compares", landed_damaged) },
        case("a_gpu_without_kernels_says_that_it_compared_nothing", landed_refused),
        Case { settings: LAZY, ..case("short_runs_are_moved_by_the_gpu_when_streams_run_late", moved) },
        Case { settings: BESIDE, ..case("short_runs_are_moved_by_the_gpu_when_streams_run_beside", moved) },
        Case { settings: BESIDE, ..case("without_room_to_land_in_short_runs_are_copied", moved_without_room) },
        case("a_gpu_without_kernels_gets_short_runs_by_copies_and_says_so", moved_refused),
        Case { end: End::Kept, ..case("a_copy_that_fails_fails_the_load", copy_fails) },
    ];
    standin_libcuda::runner::main("sw-checkpoint-gpu", &cases)
}

fn scratch() -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), "gpu")
}

fn directory(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn engine() -> Engine {
    Engine::builder().reactors(2).staging(256 << 10, 4).build().unwrap()
}

/// Six tensors, some of odd length, one empty, in host memory.
fn tensors(engine: &Engine) -> Vec<(TensorSpec, Memory)> {
    let specs: [(&str, Dtype, &[u64], u64); 6] = [
        ("embed", Dtype::F32, &[1000, 300], 1_200_000),
        ("odd", Dtype::U8, &[1, 333], 333),
        ("empty", Dtype::F16, &[0, 5], 0),
        ("scalar", Dtype::F64, &[], 8),
        ("layer.0.w", Dtype::Bf16, &[700, 513], 718_200),
        ("layer.1.w", Dtype::Bf16, &[700, 513], 718_200),
    ];
    let with_memory = |(name, dtype, shape, len): (&str, Dtype, &[u64], u64)| {
        let seed: usize = name.bytes().map(usize::from).sum();
        let mut buffer = engine.allocate(Destination::Host, len.max(1), 0).unwrap().into_buffer().unwrap();
        for (at, byte) in buffer.as_mut_slice().iter_mut().enumerate() {
            *byte = (at * 13 + seed + at / 511).to_le_bytes()[0];
        }
        let (exact, _) = buffer.split_at(len).unwrap();
        (TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }, Memory::from(exact))
    };
    specs.into_iter().map(with_memory).collect()
}

fn in_shards() -> SaveOptions {
    let layout = LayoutOptions { shard_len_max_bytes: Some(800_000), ..LayoutOptions::default() };
    SaveOptions { layout: layout.into(), ..SaveOptions::default() }
}

/// Without the reads of what chunks of checksums lack: the way of each file is asked for here.
fn into(destination: Destination) -> LoadOptions {
    LoadOptions { into: destination, digest: true, verify: Verify::Off, ..LoadOptions::default() }
}

fn digests(loaded: &Loaded) -> BTreeMap<String, Option<[u8; 32]>> {
    loaded.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.digest)).collect()
}

/// Every way is staged and says why.
fn ways_are_staged(loaded: &Loaded) -> Outcome {
    for way in loaded.files.iter().flat_map(|file| &file.ways) {
        same("landing", (way.path.route.landing, way.path.reason), (Landing::Staged, Reason::NoPeerPages))?;
        same("bounced", way.path.bounced, way.path.bytes.total())?;
    }
    let read: u64 = loaded.files.iter().flat_map(|file| &file.ways).map(|way| way.path.bytes.total()).sum();
    holds("every byte has a way", read >= loaded.tensor_bytes)
}

fn sharded() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let directory = directory(&scratch, "model");
    let saved = save(&engine, &directory, tensors(&engine), &in_shards()).map_err(text)?;
    same("files", saved.files.len(), 5)?;
    let host = load(&engine, &at(&directory), &into(Destination::Host)).map_err(text)?;
    let device = load(&engine, &at(&directory), &into(GPU0)).map_err(text)?;
    same("tensors", device.tensors.len(), 6)?;
    same("digests", digests(&device), digests(&host))?;
    ways_are_staged(&device)?;
    holds("the memory is the device's", device.regions.iter().all(|region| region.destination() == GPU0))?;
    // The lanes are there; what is made now is the way out for the digests of all six tensors.
    let control = Control::open()?;
    let streams = || control.stat("calls.cuStreamCreate");
    let before = streams();
    load(&engine, &at(&directory), &into(GPU0)).map_err(text)?;
    same("streams of one copy engine, one each way", streams() - before, 2)?;
    let some = LoadOptions { tensors: Pattern::parse("layer.*").map_err(text)?, ..into(GPU0) };
    let some = load(&engine, &at(&directory), &some).map_err(text)?;
    same("two of them", some.tensors.len(), 2)?;
    let all = digests(&host);
    holds("the same two", digests(&some).iter().all(|(name, digest)| all.get(name) == Some(digest)))
}

fn saved_from_gpu() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let (first, second) = (directory(&scratch, "first"), directory(&scratch, "second"));
    save(&engine, &first, tensors(&engine), &SaveOptions::default()).map_err(text)?;
    let mut loaded = load(&engine, &at(&first), &into(GPU0)).map_err(text)?;
    let want = digests(&loaded);
    let regions: Vec<_> = std::mem::take(&mut loaded.regions).into_iter().map(Memory::share).collect();
    let empty = engine.allocate(Destination::Host, 1, 0).map_err(text)?.split_at(0).map_err(|_| "split")?.0;
    let mut empty = Some(empty);
    let mut parts = Vec::new();
    for tensor in &loaded.tensors {
        let memory = match tensor.place {
            Some((region, offset)) => {
                let (region, base) = &regions[region];
                region.part(base + offset, tensor.len_bytes).map_err(text)?
            }
            None => empty.take().ok_or("more than one empty tensor")?,
        };
        parts
            .push((TensorSpec { name: tensor.name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone() }, memory));
    }
    let saved = save(&engine, &second, parts, &in_shards()).map_err(text)?;
    holds("written through slabs", saved.moved.staged_bytes >= loaded.tensor_bytes)?;
    let other = load(&engine, &at(&second), &into(Destination::Gpu(1))).map_err(text)?;
    same("digests", digests(&other), want)?;
    ways_are_staged(&other)
}

/// Files of PyTorch: tensors in chunks along every dimension, and slices of them, whose short runs are gathered.
fn put_together() -> Outcome {
    let engine = engine();
    for name in ["views.pt", "training.pt", "dcp", "hf"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/torch").join(name);
        let host = load(&engine, &at(&path), &into(Destination::Host)).map_err(text)?;
        let device = load(&engine, &at(&path), &into(GPU0)).map_err(text)?;
        same(name, digests(&device), digests(&host))?;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/torch/dcp");
    let checkpoint = Checkpoint::open(&engine, &at(&path)).map_err(text)?;
    for (name, ranges) in [("model.columns", vec![1..6, 2..9]), ("model.cube", vec![1..3, 1..7, 2..4])] {
        let want = [Want::slice(checkpoint.catalog(), name, &ranges).map_err(text)?];
        let host = checkpoint.load(&engine, &want, &into(Destination::Host)).map_err(text)?;
        let device = checkpoint.load(&engine, &want, &into(GPU0)).map_err(text)?;
        same(name, digests(&device), digests(&host))?;
        let len = device.tensors[0].len_bytes;
        let given = vec![engine.allocate(GPU0, len, 0).map_err(text)?];
        let given = checkpoint.load_into(&engine, &want, given, &into(GPU0)).map_err(text)?;
        same(name, digests(&given), digests(&host))?;
    }
    Ok(())
}

fn too_small() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let directory = directory(&scratch, "model");
    save(&engine, &directory, tensors(&engine), &in_shards()).map_err(text)?;
    // Held, as the engine loads the driver only with the first device memory.
    let control = Control::open()?;
    control.set_fault("cuMemAlloc_v2", 1, 2);
    let error =
        load(&engine, &at(&directory), &into(GPU0)).map(|_| ()).err().ok_or("loaded into memory that is not there")?;
    same("kind", error.kind(), ErrorKind::ResourceLimit)?;
    holds("remedy", error.remedy_text().contains("device memory"))?;
    same("copies", control.stat("copies"), 0)?;
    load(&engine, &at(&directory), &into(GPU0)).map(|_| ()).map_err(text)
}

fn copy_fails() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let directory = directory(&scratch, "model");
    save(&engine, &directory, tensors(&engine), &in_shards()).map_err(text)?;
    let control = Control::open()?;
    control.set_fault(COPY, 3, 719);
    let error = load(&engine, &at(&directory), &into(GPU0)).map(|_| ()).err().ok_or("loaded although a copy failed")?;
    same("kind, code", (error.kind(), error.code()), (ErrorKind::Io, 719))?;
    holds("remedy", !error.remedy_text().is_empty())?;
    // Memory that the lost device may still write is kept, and closing says so.
    same("close", engine.close().map_err(|error| error.kind()), Err(ErrorKind::Protocol))
}

/// Loads that must compare.
fn required() -> LoadOptions {
    LoadOptions { into: GPU0, verify: Verify::Require, ..LoadOptions::default() }
}

fn landed() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let directory = directory(&scratch, "model");
    save(&engine, &directory, tensors(&engine), &in_shards()).map_err(text)?;
    let loaded = load(&engine, &at(&directory), &required()).map_err(text)?;
    let landed = loaded.landed.as_ref().ok_or("nothing is said of what landed")?;
    holds("the device compared", landed.refusal.is_none())?;
    let read: u64 = loaded.files.iter().flat_map(|file| &file.ways).map(|way| way.path.bytes.total()).sum();
    same("all that was read for the tensors", landed.compared_bytes, read - loaded.rest_bytes)?;
    holds("kernels ran", Control::open()?.stat("kernels") > 0)?;
    // Not where it was not required, nor where there is no device.
    for options in
        [LoadOptions { verify: Verify::Auto, ..required() }, LoadOptions { into: Destination::Host, ..required() }]
    {
        holds("nothing", load(&engine, &at(&directory), &options).map_err(text)?.landed.is_none())?;
    }
    Ok(())
}

fn landed_damaged() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let directory = directory(&scratch, "model");
    save(&engine, &directory, tensors(&engine), &in_shards()).map_err(text)?;
    load(&engine, &at(&directory), &required()).map_err(text)?;
    let control = Control::open()?;
    control.set_fault(COPY, 3, SILENT_DAMAGE);
    let error =
        load(&engine, &at(&directory), &required()).map(drop).err().ok_or("loaded although a copy was damaged")?;
    same("kind", error.kind(), ErrorKind::ChecksumMismatch)?;
    holds("it names the memory", error.to_string().contains("gpu0 memory"))?;
    // Whoever does not require it does not see it.
    control.set_fault(COPY, 3, SILENT_DAMAGE);
    load(&engine, &at(&directory), &LoadOptions { verify: Verify::Auto, ..required() }).map(drop).map_err(text)
}

fn landed_refused() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let directory = directory(&scratch, "model");
    save(&engine, &directory, tensors(&engine), &in_shards()).map_err(text)?;
    let loaded = load(&engine, &at(&directory), &required()).map_err(text)?;
    let landed = loaded.landed.ok_or("nothing is said of what landed")?;
    let refusal = landed.refusal.ok_or("no reason")?;
    same("refusal", (landed.compared_bytes, refusal.kind()), (0, ErrorKind::Unsupported))
}

/// A tensor of 1000 rows that two ranks saved by columns: a thousand runs of 600 bytes in each of two files, a thousand places apart.
/// The load of the whole into device memory, its bytes compared with the one into host memory, and the copies that it took.
fn columns(scratch: &Scratch, engine: &Engine, break_it: impl FnOnce(&Control)) -> Result<(Loaded, u64), String> {
    let target = scratch.path("model");
    let saver = Saver::new(engine, SaverOptions::default()).map_err(text)?;
    let pending = PendingCheckpoint::begin(&target, IfExists::Refuse).map_err(text)?;
    let layout = || SaveOptions { layout: Layout::Dcp(DcpOptions::default()), ..SaveOptions::default() };
    let mut parts = Vec::new();
    for (number, from) in [(0, 0), (1, 150)] {
        let bytes: Vec<u8> = (0..600_000_usize).map(|at| (at * 31 + from + at / 511).to_le_bytes()[0]).collect();
        let spec = TensorSpec { name: "w".into(), dtype: Dtype::F32, shape: vec![1000, 150] };
        let slice = Some(Slice { whole: vec![1000, 300], offsets: vec![0, from as u64] });
        let tensors = vec![NewTensor { spec, slice, bytes: Bytes::Source(&bytes) }];
        let joined = PendingCheckpoint::join(pending.directory()).map_err(text)?;
        let prepared = saver.prepare(&joined, Rank { number, of: 2 }, tensors.into(), &layout()).map_err(text)?;
        parts.push(prepared.wait().map_err(text)?.part);
    }
    commit(engine, pending, parts, &Commit { layout: layout().layout, ..Commit::default() }).map_err(text)?;
    let checkpoint = Checkpoint::open(engine, &at(&target)).map_err(text)?;
    let want = checkpoint.wants(&Pattern::all()).map_err(text)?;
    let host = checkpoint.load(engine, &want, &into(Destination::Host)).map_err(text)?;
    let memory = vec![engine.allocate(GPU0, 1_200_000, 0).map_err(text)?];
    let control = Control::open()?;
    break_it(&control);
    let before = control.stat("copies");
    let options = LoadOptions { digest: false, ..into(GPU0) };
    let device = checkpoint.load_into(engine, &want, memory, &options).map_err(text)?;
    let copies = control.stat("copies") - before;
    let bytes = |loaded: &Loaded| loaded.bytes_of(engine, &loaded.tensors[0]).map_err(text);
    holds("the same bytes", bytes(&device)? == bytes(&host)?)?;
    Ok((device, copies))
}

fn moved() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let (loaded, copies) = columns(&scratch, &engine, |_| {})?;
    let moved = loaded.moved.ok_or("nothing is said of short runs")?;
    same("all of them", (moved.bytes, moved.refusal.is_none()), (1_200_000, true))?;
    holds("few copies for many runs", copies < 50)
}

fn moved_without_room() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    // The kernel's own list of ranges has room; where a window would land has none.
    let (loaded, copies) = columns(&scratch, &engine, |control| control.set_fault("cuMemAlloc_v2", 2, 2))?;
    let moved = loaded.moved.ok_or("nothing is said of short runs")?;
    let refusal = moved.refusal.ok_or("no reason")?;
    same("refusal", (moved.bytes, refusal.kind()), (0, ErrorKind::ResourceLimit))?;
    holds("a copy for each run", copies >= 2000)
}

fn moved_refused() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let (loaded, copies) = columns(&scratch, &engine, |_| {})?;
    let moved = loaded.moved.ok_or("nothing is said of short runs")?;
    let refusal = moved.refusal.ok_or("no reason")?;
    same("refusal", (moved.bytes, refusal.kind()), (0, ErrorKind::Unsupported))?;
    holds("a copy for each run", copies >= 2000)
}

fn at(path: &Path) -> Uri {
    Uri::from_path(path).unwrap()
}
