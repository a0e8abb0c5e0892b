//! Files into device memory.

use std::time::{Duration, Instant};

use standin_libcuda::harness::Control;
use straightway::checksum::Algorithm;
use straightway::{
    CacheConfig, Destination, Engine, ErrorKind, Landing, Lane, Policy, Reason, Remote, Uri, UringUse, Verb,
    parse_policy,
};
use sw_testkit::s3;

use crate::{
    Case, EAGER, GPU0, LAZY, Outcome, TWO, WORKER, builder, bytes_are, case, engine, file, holds, read, same, scratch,
    text, went_through_slabs,
};

/// With the keys of the S3 server in this process.
const STORE: &[(&str, &str)] = &[
    ("STANDIN_MODE", "worker"),
    ("STANDIN_DELAY_US", "100"),
    ("AWS_ACCESS_KEY_ID", s3::KEY.0),
    ("AWS_SECRET_ACCESS_KEY", s3::KEY.1),
];

pub fn cases() -> Vec<Case> {
    let with = |settings, name, run| Case { settings, ..case(name, run) };
    vec![
        with(LAZY, "reads_of_every_shape_arrive_when_streams_run_late", shapes),
        with(WORKER, "reads_of_every_shape_arrive_when_streams_run_beside", shapes),
        with(EAGER, "reads_of_every_shape_arrive_when_streams_run_at_once", shapes),
        case("reads_land_in_the_middle_of_an_allocation_and_leave_its_rest", interior),
        with(WORKER, "a_vectored_read_reaches_every_part", vectored),
        with(WORKER, "a_stripe_set_reaches_device_memory", striped),
        with(STORE, "a_remote_object_reaches_device_memory_through_its_cache", cached),
        with(TWO, "two_gpus_are_fed_at_once", two_gpus),
        with(WORKER, "many_reads_share_a_small_ring", many),
        case("a_lane_of_ones_own_feeds_a_gpu", own_lane),
        case("a_policy_that_only_dma_meets_is_refused_with_the_reasons", policy),
        case("one_operation_has_one_kind_of_memory", mixed),
    ]
}

fn shapes() -> Outcome {
    let scratch = scratch();
    let (uri, bytes) = file(&scratch, "data", 5_000_003);
    for io_uring in [UringUse::Auto, UringUse::Off] {
        let engine = builder().io_uring(io_uring).build().map_err(text)?;
        let object = engine.open(&uri).map_err(text)?;
        let whole = bytes.len();
        for (offset, len) in [
            (0, 4096),
            (4096, 65_536),
            (0, whole),
            (1, whole - 2),
            (777, 1),
            (4095, 2),
            (65_535, 131_074),
            (whole - 1, 1),
        ] {
            let want = &bytes[offset..offset + len];
            for (started, algorithm) in [(false, Algorithm::Crc32c), (true, Algorithm::Crc64Nvme)] {
                let memory = engine.allocate(GPU0, len as u64, offset as u64).map_err(text)?;
                let request = engine.read(&object, offset as u64, memory).checksum(algorithm);
                let done = if started { request.start().wait() } else { request.wait() };
                let done = done.ok().map_err(text)?;
                went_through_slabs(&done, len)?;
                same("checksum", done.checksum, Some(algorithm.of(want)))?;
                let transport = if io_uring == UringUse::Auto { "io_uring" } else { "preadv2" };
                same("transport", done.path.route.transport, transport)?;
                bytes_are(&engine, &done.into_memory().ok_or("no memory")?, want)?;
            }
        }
        let counters = engine.counters();
        same("bytes staged, bounced", counters.bytes.staged, counters.bounced)?;
        holds("the ring went round", counters.copies > 150)?;
        engine.close().map_err(text)?;
    }
    Ok(())
}

fn interior() -> Outcome {
    let scratch = scratch();
    let (uri, bytes) = file(&scratch, "data", 300_000);
    let engine = engine();
    let object = engine.open(&uri).map_err(text)?;
    let memory = read(&engine, &object, 0, 300_000)?.into_memory().ok_or("no memory")?;
    let (region, base) = memory.share();
    let part = region.part(base + 100_001, 77_777).map_err(text)?;
    let done = engine.read(&object, 5, part).wait().ok().map_err(text)?;
    went_through_slabs(&done, 77_777)?;
    drop(done);
    let mut want = bytes.clone();
    want[100_001..177_778].copy_from_slice(&bytes[5..77_782]);
    bytes_are(&engine, &region.part(base, 300_000).map_err(text)?, &want)?;
    let past = engine.copy_range_to_host(&region.part(base, 300_000).map_err(text)?, 299_999, 2);
    same("past the end", past.map_err(|error| error.kind()), Err(ErrorKind::OutOfRange))
}

fn vectored() -> Outcome {
    let scratch = scratch();
    let (uri, bytes) = file(&scratch, "data", 1 << 20);
    let engine = engine();
    let object = engine.open(&uri).map_err(text)?;
    let places = [(0usize, 1usize), (700_001, 99_999), (4096, 4096), (8191, 300_000), (1_048_575, 1)];
    let parts = places
        .iter()
        .map(|&(offset, len)| engine.allocate(GPU0, len as u64, 0).map(|memory| (offset as u64, memory)).map_err(text));
    let request = engine.read_vectored(&object, parts.collect::<Result<_, _>>()?).checksum(Algorithm::Crc32c);
    let done = request.wait().ok().map_err(text)?;
    let want: Vec<u8> = places.iter().flat_map(|&(offset, len)| &bytes[offset..offset + len]).copied().collect();
    went_through_slabs(&done, want.len())?;
    same("checksum", done.checksum, Some(Algorithm::Crc32c.of(&want)))?;
    for (memory, (offset, len)) in done.into_memories().iter().zip(places) {
        bytes_are(&engine, memory, &bytes[offset..offset + len])?;
    }
    Ok(())
}

fn striped() -> Outcome {
    let scratch = scratch();
    let engine = engine();
    let members: Vec<(Uri, Vec<u8>)> = (0..3).map(|n| file(&scratch, &format!("m{n}"), 1 << 20)).collect();
    let paths: Vec<String> = members.iter().map(|(uri, _)| uri.to_string()).collect();
    let set: Uri = format!("stripe:64k:{}", paths.join(",")).parse().map_err(text)?;
    let object = engine.open(&set).map_err(text)?;
    let logical: Vec<u8> =
        (0..3 << 20).map(|x: usize| members[x / 65_536 % 3].1[x / 65_536 / 3 * 65_536 + x % 65_536]).collect();
    for (offset, len) in [(0, 3 << 20), (65_535, 2), (123_457, 1_500_001)] {
        let done = read(&engine, &object, offset, len)?;
        went_through_slabs(&done, len)?;
        bytes_are(&engine, &done.into_memory().ok_or("no memory")?, &logical[offset..offset + len])?;
    }
    Ok(())
}

fn cached() -> Outcome {
    let (scratch, server) = (scratch(), s3::Server::start());
    let (_, bytes) = file(&scratch, "data", 3_000_003);
    std::fs::copy(scratch.path("data"), server.path("one")).map_err(text)?;
    let [(_, endpoint), ..] = server.environment();
    let remote = Remote { s3_endpoint: Some(endpoint), ..Remote::default() };
    let config = CacheConfig { block_bytes: 64 << 10, ..CacheConfig::new(scratch.path("cache"), 8 << 20) };
    let engine = builder().remote(remote).cache(config).build().map_err(text)?;
    let uri: Uri = s3::Server::uri("one").parse().map_err(text)?;
    let object = engine.open(&uri).map_err(text)?;
    let first = read(&engine, &object, 0, bytes.len())?;
    same("transport of the first", first.path.route.transport, "http")?;
    bytes_are(&engine, &first.into_memory().ok_or("no memory")?, &bytes)?;
    let cache = engine.cache().ok_or("no cache")?.map_err(text)?;
    holds("what came is kept", cache.wait_for_room(u64::MAX, Duration::from_secs(60)))?;
    drop(server.stop());
    for (offset, len) in [(0, bytes.len()), (65_535, 2), (100_001, 777_777)] {
        let done = read(&engine, &object, offset, len)?;
        holds("it comes from a file", ["io_uring", "preadv2"].contains(&done.path.route.transport))?;
        went_through_slabs(&done, len)?;
        bytes_are(&engine, &done.into_memory().ok_or("no memory")?, &bytes[offset..offset + len])?;
    }
    Ok(())
}

fn two_gpus() -> Outcome {
    let scratch = scratch();
    let (uri, bytes) = file(&scratch, "data", 2_000_000);
    let engine = engine();
    let object = engine.open(&uri).map_err(text)?;
    let request = |n: u64| {
        let gpu = Destination::Gpu(u16::try_from(n % 2).unwrap_or(0));
        let memory = engine.allocate(gpu, 500_001, 0).map_err(text)?;
        Ok(engine.read(&object, n * 123_457, memory))
    };
    let requests = (0..12).map(request).collect::<Result<Vec<_>, String>>()?;
    for (n, done) in engine.batch(requests).wait().into_iter().enumerate() {
        let done = done.ok().map_err(text)?;
        went_through_slabs(&done, 500_001)?;
        let memory = done.into_memory().ok_or("no memory")?;
        same("device", memory.destination(), Destination::Gpu(u16::try_from(n % 2).unwrap_or(0)))?;
        bytes_are(&engine, &memory, &bytes[n * 123_457..n * 123_457 + 500_001])?;
    }
    let tree = engine.inspect().to_string();
    holds("inspect shows both copy engines", tree.contains("copy engine 0") && tree.contains("copy engine 1"))
}

fn many() -> Outcome {
    let scratch = scratch();
    let (uri, bytes) = file(&scratch, "data", 1 << 20);
    let engine = builder().reactors(1).ops_per_lane(8).queue_depth(4).staging(64 << 10, 2).build().map_err(text)?;
    let object = engine.open(&uri).map_err(text)?;
    let request = |n: u64| Ok(engine.read(&object, n * 1001, engine.allocate(GPU0, 3000, 0).map_err(text)?));
    let requests = (0..500).map(request).collect::<Result<Vec<_>, String>>()?;
    for (n, done) in engine.batch(requests).wait().into_iter().enumerate() {
        let memory = done.ok().map_err(text)?.into_memory().ok_or("no memory")?;
        bytes_are(&engine, &memory, &bytes[n * 1001..n * 1001 + 3000])?;
    }
    Ok(())
}

fn own_lane() -> Outcome {
    let scratch = scratch();
    let (uri, bytes) = file(&scratch, "data", 1 << 20);
    let engine = engine();
    let object = engine.open(&uri).map_err(text)?;
    let mut lane = engine.lane(GPU0).map_err(text)?;
    let target = lane.target(&object, &Policy::Any, Verb::Read).map_err(text)?;
    for n in 0..8 {
        let memory = engine.allocate(GPU0, 131_072, 0).map_err(text)?;
        lane.submit(Lane::op(n, Verb::Read, target.clone(), n * 131_072, memory)).map_err(text)?;
    }
    let (mut seen, start) = (0, now());
    while seen < 8 {
        holds("it ends within ten seconds", start.elapsed() < Duration::from_secs(10))?;
        lane.poll(Duration::from_secs(1), 4);
        while let Some(done) = lane.pop() {
            same("bytes", done.result.map_err(text)?, 131_072)?;
            let start = usize::try_from(done.user).map_err(text)? * 131_072;
            let memory = done.op.and_then(Lane::memory_of).ok_or("no memory")?;
            bytes_are(&engine, &memory, &bytes[start..start + 131_072])?;
            seen += 1;
        }
    }
    drop(lane);
    same("nothing is registered any more", Control::open()?.stat("live.registered"), 0)
}

fn policy() -> Outcome {
    let scratch = scratch();
    let (uri, bytes) = file(&scratch, "data", 8192);
    let engine = engine();
    let object = engine.open(&uri).map_err(text)?;
    let memory = engine.allocate(GPU0, 8192, 0).map_err(text)?;
    let refused = engine.read(&object, 0, memory).policy(parse_policy("require=dma").map_err(text)?).wait();
    let error = refused.result.as_ref().err().ok_or("met a policy that nothing meets")?;
    same("kind", error.kind(), ErrorKind::PolicyUnmet)?;
    holds("the reasons name what is missing", error.reasons().contains(&Reason::NoPeerPages))?;
    holds("and so does the text", error.to_string().contains("NO_P2PDMA") && !error.remedy_text().is_empty())?;
    let memory = refused.into_memory().ok_or("the memory did not come back")?;
    let staged = engine.read(&object, 0, memory).policy(parse_policy("require=staged").map_err(text)?).wait();
    let done = staged.ok().map_err(text)?;
    bytes_are(&engine, &done.into_memory().ok_or("no memory")?, &bytes)?;
    let plan = engine.plan(&object, GPU0, Policy::Any, Verb::Read);
    let direct = plan.candidates.iter().filter(|candidate| candidate.route.landing == Landing::Dma);
    holds("the plan says why not", direct.clone().all(|c| c.verdict == Err(Reason::NoPeerPages)))?;
    same("the plan's choice", plan.choice.map_err(text)?.route.landing, Landing::Staged)
}

fn mixed() -> Outcome {
    let scratch = scratch();
    let (uri, _) = file(&scratch, "data", 8192);
    let engine: Engine = engine();
    let object = engine.open(&uri).map_err(text)?;
    let (host, device) = (engine.allocate(Destination::Host, 10, 0), engine.allocate(GPU0, 10, 0));
    let parts = vec![(0, host.map_err(text)?), (10, device.map_err(text)?)];
    let done = engine.read_vectored(&object, parts).wait();
    same("kind", done.result.as_ref().map_err(straightway::Error::kind).copied(), Err(ErrorKind::ApiMisuse))?;
    same("memory comes back", done.into_memories().len(), 2)
}

#[expect(clippy::disallowed_methods, reason = "a test bounds its own loop")]
fn now() -> Instant {
    Instant::now()
}
