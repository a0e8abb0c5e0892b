//! Device memory into files.

use std::fs;

use straightway::{ErrorKind, WriteOutcome, checksum::Algorithm, parse_policy};

use crate::{
    Case, EAGER, LAZY, Outcome, WORKER, at, case, engine, file, holds, on_gpu, same, scratch, text, went_through_slabs,
};

pub fn cases() -> Vec<Case> {
    let with = |settings, name, run| Case { settings, ..case(name, run) };
    vec![
        with(LAZY, "a_new_file_has_the_bytes_of_device_memory_when_streams_run_late", new_file),
        with(WORKER, "a_new_file_has_the_bytes_of_device_memory_when_streams_run_beside", new_file),
        with(EAGER, "a_new_file_has_the_bytes_of_device_memory_when_streams_run_at_once", new_file),
        with(WORKER, "a_ragged_write_from_device_memory_keeps_its_neighbours", in_place),
        case("a_policy_for_writes_is_kept_too", policy),
    ]
}

fn new_file() -> Outcome {
    let scratch = scratch();
    let engine = engine();
    for (n, len) in [1, 4096, 100_003, 1 << 20, 1_234_567].into_iter().enumerate() {
        let (memory, bytes) = on_gpu(&engine, &scratch, len);
        let name = format!("new{n}");
        let new = engine.create(&at(&scratch, &name), len as u64).map_err(text)?;
        let request = engine.write(new.object(), 0, memory).checksum(Algorithm::Crc64Nvme);
        let done = if n % 2 == 0 { request.wait() } else { request.start().wait() };
        let done = done.ok().map_err(text)?;
        went_through_slabs(&done, len)?;
        same("checksum", done.checksum, Some(Algorithm::Crc64Nvme.of(&bytes)))?;
        engine.flush(new.object()).wait().ok().map_err(text)?;
        new.commit().map_err(text)?;
        holds("the file's bytes", fs::read(scratch.path(&name)).map_err(text)? == bytes)?;
    }
    engine.close().map_err(text)
}

fn in_place() -> Outcome {
    let scratch = scratch();
    let engine = engine();
    let (memory, source) = on_gpu(&engine, &scratch, 300_000);
    let (uri, mut bytes) = file(&scratch, "data", 500_000);
    let object = engine.open_for_update(&uri).map_err(text)?;
    let (head, rest) = memory.split_at(1_001).map_err(|_| "split")?;
    let done = engine.write(&object, 12_345, rest).wait().ok().map_err(text)?;
    went_through_slabs(&done, 298_999)?;
    let parts = vec![(0, head), (499_999 - 298_999, done.into_memory().ok_or("no memory")?)];
    let done = engine.write_vectored(&object, parts).wait().ok().map_err(text)?;
    went_through_slabs(&done, 300_000)?;
    engine.flush(&object).all_metadata().wait().ok().map_err(text)?;
    bytes[12_345..311_344].copy_from_slice(&source[1_001..]);
    bytes[..1_001].copy_from_slice(&source[..1_001]);
    bytes[201_000..499_999].copy_from_slice(&source[1_001..]);
    let got = fs::read(scratch.path("data")).map_err(text)?;
    same("first byte that differs", got.iter().zip(&bytes).position(|(a, b)| a != b), None)
}

fn policy() -> Outcome {
    let scratch = scratch();
    let engine = engine();
    let (memory, _) = on_gpu(&engine, &scratch, 8192);
    let new = engine.create(&at(&scratch, "new"), 8192).map_err(text)?;
    let done = engine.write(new.object(), 0, memory).policy(parse_policy("require=dma").map_err(text)?).wait();
    let error = done.result.as_ref().err().ok_or("met a policy that nothing meets")?;
    same("kind", error.kind(), ErrorKind::PolicyUnmet)?;
    holds("nothing was written", !matches!(error.outcome(), Some(WriteOutcome::Unknown | WriteOutcome::Applied)))?;
    holds("memory comes back", done.into_memory().is_some())
}
