//! Checksums of what is in device memory. The stand-in runs the kernels' sources as code of this machine.

use standin_libcuda::{
    harness::{COPY, Control, SILENT_DAMAGE},
    runner::KERNELS,
};
use straightway::{Destination, ErrorKind, checksum::Algorithm};

use crate::{Case, GPU0, Outcome, case, engine, file, holds, on_gpu, same, scratch, text};

const LAZY: &[(&str, &str)] = &[("STANDIN_MODE", "lazy"), KERNELS];
const WORKER: &[(&str, &str)] = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "100"), KERNELS];
const BOTH: [Algorithm; 2] = [Algorithm::Crc32c, Algorithm::Crc64Nvme];

pub fn cases() -> Vec<Case> {
    vec![
        Case { settings: LAZY, ..case("a_device_sums_its_memory_when_streams_run_late", on_device) },
        Case { settings: WORKER, ..case("a_device_sums_its_memory_when_streams_run_beside", on_device) },
        case("a_device_without_kernels_is_summed_by_copies_and_says_why", by_copies),
        Case { settings: WORKER, ..case("damage_behind_the_processor_is_seen_where_the_bytes_lie", damage) },
    ]
}

fn on_device() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let (memory, bytes) = on_gpu(&engine, &scratch, 300_001);
    let mut sums = engine.sums(GPU0).map_err(text)?;
    holds("the device sums", sums.is_on_device() && sums.refusal().is_none())?;
    let copied = || Control::open().map(|control| control.stat("copied_bytes"));
    let before = copied()?;
    for algorithm in BOTH {
        let got =
            sums.of(algorithm, &[(&memory, 0, 300_001), (&memory, 1001, 70_000), (&memory, 5, 0)]).map_err(text)?;
        let want = [&bytes[..], &bytes[1001..71_001], &[]].map(|bytes| algorithm.of(bytes));
        same("sums", got, want.to_vec())?;
    }
    // Jobs go and come: 3 ranges of 32 bytes, twice each.
    same("bytes moved for it", copied()? - before, 2 * 2 * 3 * 32)?;
    let past = sums.of(Algorithm::Crc32c, &[(&memory, 1, 300_001)]);
    same("past the end", past.map_err(|error| error.kind()), Err(ErrorKind::OutOfRange))?;
    let host = engine.allocate(Destination::Host, 10, 0).map_err(text)?;
    let other = sums.of(Algorithm::Crc32c, &[(&host, 0, 10)]);
    same("other memory", other.map_err(|error| error.kind()), Err(ErrorKind::ApiMisuse))
}

fn by_copies() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let (memory, bytes) = on_gpu(&engine, &scratch, 3 << 20);
    let mut sums = engine.sums(GPU0).map_err(text)?;
    let refusal = sums.refusal().ok_or("no reason")?;
    same("reason", (sums.is_on_device(), refusal.kind()), (false, ErrorKind::Unsupported))?;
    holds("remedy", !refusal.remedy_text().is_empty())?;
    for algorithm in BOTH {
        let got = sums.of(algorithm, &[(&memory, 7, (3 << 20) - 7)]).map_err(text)?;
        same("sums", got, vec![algorithm.of(&bytes[7..])])?;
    }
    let host = engine.sums(Destination::Host).map_err(text)?;
    holds("host memory needs no device", !host.is_on_device() && host.refusal().is_none())
}

fn damage() -> Outcome {
    let (scratch, engine) = (scratch(), engine());
    let (uri, bytes) = file(&scratch, "data", 1 << 20);
    let object = engine.open(&uri).map_err(text)?;
    let memory = engine.allocate(GPU0, 1 << 20, 0).map_err(text)?;
    // The lanes are there and measured; then one copy to the device is damaged.
    let done = engine.read(&object, 0, memory).checksum(Algorithm::Crc32c).wait();
    let memory = done.ok().map_err(text)?.into_memory().ok_or("memory")?;
    Control::open()?.set_fault(COPY, 3, SILENT_DAMAGE);
    let done = engine.read(&object, 0, memory).checksum(Algorithm::Crc32c).wait();
    let want = Algorithm::Crc32c.of(&bytes);
    // The processor saw the right bytes on their way.
    same("checksum of the read", done.checksum, Some(want))?;
    let memory = done.ok().map_err(text)?.into_memory().ok_or("memory")?;
    let got = engine.sums(GPU0).map_err(text)?.of(Algorithm::Crc32c, &[(&memory, 0, 1 << 20)]).map_err(text)?;
    holds("what the device has is something else", got != vec![want])
}
