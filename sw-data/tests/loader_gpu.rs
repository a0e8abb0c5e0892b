//! Batches in device memory, on the project's stand-in driver: each case in a process of its own, see
//! `standin_libcuda::runner`. It proves the logic, not a device.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed case")]

#[path = "loader/set.rs"]
#[expect(dead_code, reason = "the other test programs use the rest")]
mod set;

use std::process::ExitCode;

use set::{Set, options};
use standin_libcuda::runner::{Case, Outcome, case, holds, same, text};
use straightway::{Destination, Landing};
use sw_data::{
    loader::{Apart, Batch, Layout, LoadError, LoaderOptions, OnBad, PadTo, Why},
    order::Method,
};

const WORKER: &[(&str, &str)] = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "100")];
const GPU0: Destination = Destination::Gpu(0);

fn main() -> ExitCode {
    let cases = [
        case("ragged_batches_land_on_a_gpu_when_streams_run_late", ragged),
        Case { settings: WORKER, ..case("ragged_batches_land_on_a_gpu_when_streams_run_beside", ragged) },
        case("windows_of_a_block_shuffle_are_for_the_host", in_blocks),
        case("padded_and_fixed_places_are_filled_on_a_gpu", strided),
        case("a_damaged_sample_leaves_no_hole_on_a_gpu", damaged),
        case("what_works_in_host_memory_only_is_refused", refused),
    ];
    standin_libcuda::runner::main("sw-data-gpu", &cases)
}

fn on_gpu(batch: u32) -> LoaderOptions {
    let mut options = options(batch);
    (options.into, options.ahead) = (GPU0, 4);
    options
}

fn bytes_are(set: &Set, batch: &Batch) -> Outcome {
    same("destination", batch.destination(), GPU0)?;
    holds("no host bytes", batch.as_bytes().is_none() && batch.sample(0).is_none())?;
    for (index, id) in batch.ids().iter().enumerate() {
        let got = batch.copy_sample(&set.engine, index).map_err(text)?.ok_or("no sample")?;
        holds(&format!("{id} at {index}"), got == set.samples[usize::try_from(id.number).unwrap()])?;
    }
    Ok(())
}

fn ragged() -> Outcome {
    let set = Set::new(2, 40, |number| 5_000 + number * 977 % 4000);
    let loader = set.loader(on_gpu(16));
    let mut seen = 0;
    while let Some(batch) = loader.next_batch().map_err(text)? {
        bytes_are(&set, &batch)?;
        seen += batch.len();
    }
    same("samples", seen, 80)?;
    let stats = loader.stats();
    holds("all through slabs", stats.ways.iter().all(|way| way.path.route.landing == Landing::Staged))?;
    same("nothing assembled", stats.assembled_bytes, 0)
}

fn in_blocks() -> Outcome {
    let set = Set::new(2, 40, |number| 5_000 + number * 977 % 4000);
    let mut options = on_gpu(16);
    options.method = Method::Blocks { samples: 10, blocks: 3 };
    let loader = set.loader(options);
    while let Some(batch) = loader.next_batch().map_err(text)? {
        bytes_are(&set, &batch)?;
    }
    let stats = loader.stats();
    same("read with their batches, which is told", (stats.windows, stats.apart), (0, vec![(Apart::Device, 80)]))
}

fn strided() -> Outcome {
    let set = Set::new(2, 40, |number| 500 + number * 97 % 400);
    let mut options = on_gpu(16);
    options.layout = Layout::Padded(PadTo::Bytes(900));
    let loader = set.loader(options);
    while let Some(batch) = loader.next_batch().map_err(text)? {
        bytes_are(&set, &batch)?;
        same("array", (batch.stride(), batch.size_bytes()), (Some(900), 900 * batch.len() as u64))?;
    }
    let set = Set::new(1, 20, |_| 777);
    let mut options = on_gpu(6);
    options.layout = Layout::Fixed { bytes: None };
    let loader = set.loader(options);
    let mut seen = 0;
    while let Some(batch) = loader.next_batch().map_err(text)? {
        bytes_are(&set, &batch)?;
        same("stride", batch.stride(), Some(777))?;
        seen += batch.len();
    }
    same("samples", seen, 20)
}

fn damaged() -> Outcome {
    for layout in [Layout::Ragged, Layout::Padded(PadTo::Longest)] {
        let mut set = Set::new(1, 12, |_| 3000);
        set.places[5].crc32c = set.places[5].crc32c.map(|crc| crc ^ 1);
        let mut options = on_gpu(12);
        options.layout = layout;
        let error = set.loader(options.clone()).next_batch().map(|_| ()).err().ok_or("a damaged sample")?;
        holds("told", matches!(&error, LoadError::Sample(bad) if bad.id.number == 5))?;
        holds("why", matches!(error, LoadError::Sample(bad) if matches!(bad.why, Why::Checksum { .. })))?;
        options.on_bad = OnBad::Skip { max: 1 };
        let loader = set.loader(options);
        let batch = loader.next_batch().map_err(text)?.ok_or("no batch")?;
        same("samples", batch.len(), 11)?;
        bytes_are(&set, &batch)?;
        if let Some(stride) = batch.stride() {
            let want: Vec<u64> = (0..11).map(|index| index * stride).collect();
            same("places", batch.offsets(), &want[..])?;
        }
    }
    Ok(())
}

fn refused() -> Outcome {
    let set = Set::new(1, 2, |_| 100);
    let mut options = on_gpu(2);
    options.map = Some(std::sync::Arc::new(|_, _| Ok(())));
    let error = set.try_loader(options).map(|_| ()).err().ok_or("a map function on a GPU")?;
    holds("told", matches!(error, LoadError::Unsupported { .. }))
}
