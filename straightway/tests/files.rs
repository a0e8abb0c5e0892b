//! The facade on real files: every way to run an operation, and what users get wrong.
#![expect(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::{fs, os::fd::AsFd, time::Duration};

use straightway::{
    Destination, Engine, ErrorKind, GpuUse, Landing, Lane, Policy, Reason, RouteMatch, Uri, UringUse, Verb,
    checksum::Algorithm, parse_policy,
};
use sw_testkit::{scratch::Scratch, wait::block_on};

fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag)
}

fn file(scratch: &Scratch, name: &str, len: usize) -> (Uri, Vec<u8>) {
    let bytes = scratch.file(name, len);
    (at(scratch, name), bytes)
}

fn at(scratch: &Scratch, name: &str) -> Uri {
    scratch.text(name).parse().unwrap()
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).reactors(2).build().unwrap()
}

#[test]
fn a_policy_is_planned_once_for_an_object_and_a_verb() {
    let scratch = scratch("planned");
    let (uri, _) = file(&scratch, "data", 100_000);
    let engine = engine();
    let object = engine.open_for_update(&uri).unwrap();
    let lane = engine.lane(Destination::Host).unwrap();
    let prefer = |landing| Policy::Prefer(RouteMatch { landing: Some(landing), ..RouteMatch::default() });
    let policies = [Policy::Any, prefer(Landing::Dma), prefer(Landing::KernelCopy), prefer(Landing::Staged)];
    // Two operations that share a plan share their target.
    let plan = |policy, verb| lane.target(&object, policy, verb).unwrap();
    let address = |target: &straightway::Target| std::ptr::from_ref(&**target).addr();
    let mut seen = Vec::new();
    for verb in [Verb::Read, Verb::Write] {
        for policy in &policies {
            let first = plan(policy, verb);
            assert_eq!(address(&first), address(&plan(policy, verb)), "{policy:?} {verb:?}");
            seen.push(first);
        }
    }
    let mut places: Vec<_> = seen.iter().map(address).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), seen.len(), "no policy and no verb is given the plan of another");
    // One policy too many: planned each time, and the others stay.
    let more = Policy::Prefer(RouteMatch::default());
    assert_ne!(address(&plan(&more, Verb::Read)), address(&plan(&policies[1], Verb::Read)));
    assert_eq!(address(&plan(&policies[3], Verb::Read)), address(&seen[3]));
}

#[test]
fn a_descriptor_is_read_and_written_also_when_its_file_grows() {
    let scratch = scratch("descriptor");
    let (_, bytes) = file(&scratch, "data", 100_000);
    let engine = engine();
    let open = |write| fs::OpenOptions::new().read(true).write(write).open(scratch.path("data")).unwrap();
    let descriptor = open(true);
    let object = engine.open_descriptor(descriptor.as_fd()).unwrap();
    // The object has a descriptor of its own.
    drop(descriptor);
    let done = engine.read(&object, 77, engine.allocate(Destination::Host, 5000, 0).unwrap()).wait().ok().unwrap();
    assert_eq!(engine.copy_to_host(&done.into_memory().unwrap()).unwrap(), bytes[77..5077]);
    let memory = engine.allocate(Destination::Host, 3000, 0).unwrap();
    engine.copy_in(Destination::Host).unwrap().put(&memory, 0, &[7; 3000]).unwrap();
    engine.write(&object, 150_001, memory).wait().ok().unwrap();
    assert_eq!(fs::metadata(scratch.path("data")).unwrap().len(), 153_001);
    let done = engine.read(&object, 150_001, engine.allocate(Destination::Host, 3000, 0).unwrap()).wait().ok().unwrap();
    assert_eq!(engine.copy_to_host(&done.into_memory().unwrap()).unwrap(), [7; 3000]);
    let past = engine.read(&object, 153_000, engine.allocate(Destination::Host, 2, 0).unwrap()).wait();
    assert_eq!(past.result.unwrap_err().kind(), ErrorKind::ShortData);
    // One that only reads does not write.
    let object = engine.open_descriptor(open(false).as_fd()).unwrap();
    let refused = engine.write(&object, 0, engine.allocate(Destination::Host, 4096, 0).unwrap()).wait();
    assert!(refused.result.is_err());
    // What both faces of it are planned from: the part of the file that is in the page cache, not of what it may grow to.
    let cached = object.cached_bytes();
    assert!(cached.is_none_or(|cached| cached <= 160_000), "{cached:?}");
    assert_eq!(object.as_engine_object().is_resident(), cached.is_some_and(|cached| cached >= 153_001 / 10 * 9));
}

#[test]
fn an_object_without_a_length_gets_it_in_the_end() {
    let scratch = scratch("open-ended");
    let engine = engine();
    let uri = at(&scratch, "new");
    let memory = |byte, len| {
        let memory = engine.allocate(Destination::Host, len, 0).unwrap();
        let mut buffer = memory.into_buffer().unwrap();
        buffer.as_mut_slice().fill(byte);
        buffer
    };
    fs::write(scratch.path("new"), "old").unwrap();
    let new = engine.create_open(&uri).unwrap();
    engine.write(new.object(), 0, memory(1, 8192)).wait().ok().unwrap();
    engine.write(new.object(), 8192, memory(2, 5000)).wait().ok().unwrap();
    // Written again from an odd place, as after a part was taken back.
    engine.write(new.object(), 8000, memory(3, 1000)).wait().ok().unwrap();
    assert_eq!(fs::read(scratch.path("new")).unwrap(), b"old");
    new.commit(8999).unwrap();
    assert_eq!(fs::read(scratch.path("new")).unwrap(), [vec![1; 8000], vec![3; 999]].concat());
    let gone = engine.create_open(&uri).unwrap();
    engine.write(gone.object(), 0, memory(4, 100)).wait().ok().unwrap();
    drop(gone);
    assert_eq!(fs::read(scratch.path("new")).unwrap().len(), 8999);
    assert_eq!(fs::read_dir(scratch.root()).unwrap().count(), 1);
}

#[test]
fn operations_on_a_part_stay_inside_it() {
    let scratch = scratch("part");
    let (uri, bytes) = file(&scratch, "data", 100_000);
    let engine = engine();
    let whole = engine.open(&uri).unwrap();
    let part = whole.part(10_000, Some(50_000)).unwrap().part(1_000, None).unwrap();
    assert_eq!((part.len(), part.position(Verb::Read, 5, 10).unwrap()), (49_000, 11_005));
    let memory = |len| engine.allocate(Destination::Host, len, 11_000).unwrap();
    let read = engine.read(&part, 0, memory(49_000)).wait().ok().unwrap().into_memory().unwrap();
    assert!(read.into_buffer().unwrap().as_slice() == &bytes[11_000..60_000]);
    let parts = vec![(100, memory(10)), (48_990, memory(10))];
    let many = engine.read_vectored(&part, parts).wait().ok().unwrap().into_memories();
    let many: Vec<_> = many.into_iter().map(|memory| memory.into_buffer().unwrap()).collect();
    assert!(many[0].as_slice() == &bytes[11_100..11_110] && many[1].as_slice() == &bytes[59_990..60_000]);
    let outside = engine.read(&part, 48_991, memory(10)).wait();
    assert_eq!(outside.result.as_ref().unwrap_err().kind(), ErrorKind::OutOfRange);
    assert!(outside.into_memory().is_some(), "the memory comes back");
    for (offset, len) in [(100_001, None), (0, Some(100_001)), (u64::MAX, Some(2)), (99_999, Some(2))] {
        assert_eq!(whole.part(offset, len).unwrap_err().kind(), ErrorKind::OutOfRange);
    }
}

#[test]
fn waited_started_and_awaited_reads_give_the_same_bytes_and_say_their_way() {
    let scratch = scratch("ways");
    let (uri, bytes) = file(&scratch, "data", 3_000_001);
    for io_uring in [UringUse::Auto, UringUse::Off] {
        let engine = Engine::builder().gpu(GpuUse::Off).reactors(2).io_uring(io_uring).build().unwrap();
        let object = engine.open(&uri).unwrap();
        let memory = || engine.allocate(Destination::Host, 2_999_000, 777).unwrap();
        let request = || engine.read(&object, 777, memory()).poison(0xdb).checksum(Algorithm::Crc64Nvme);
        let answers = [request().wait(), request().start().wait(), block_on(request().into_future_now())];
        for done in answers {
            let done = done.ok().unwrap();
            assert_eq!(done.checksum, Some(Algorithm::Crc64Nvme.of(&bytes[777..2_999_777])));
            assert_eq!(done.path.bytes.total(), 2_999_000);
            assert_eq!(done.path.route.transport, if io_uring == UringUse::Auto { "io_uring" } else { "preadv2" });
            assert!(done.into_memory().unwrap().into_buffer().unwrap().as_slice() == &bytes[777..2_999_777]);
        }
        // Threads stand in for io_uring, and say so.
        let mut reasons = object.as_engine_object().faces.iter().filter_map(|face| face.because);
        assert_eq!(reasons.any(|reason| reason == Reason::PolicyExcludes), io_uring == UringUse::Off);
        engine.close().unwrap();
    }
}

trait IntoFutureNow: IntoFuture + Sized {
    fn into_future_now(self) -> Self::IntoFuture {
        self.into_future()
    }
}
impl<T: IntoFuture> IntoFutureNow for T {}

/// What the kernel says of the device under a file: whether it has poll queues.
fn has_poll_queues(path: &std::path::Path) -> Option<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let device = fs::metadata(path).unwrap().dev();
    let place = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    // A partition's queue is its disk's.
    let text = [format!("{place}/queue/io_poll"), format!("{place}/../queue/io_poll")];
    text.iter().find_map(|path| fs::read_to_string(path).ok()).map(|text| text.trim() == "1")
}

#[test]
fn a_polled_engine_asks_the_device_or_says_that_it_cannot_and_the_page_cache_is_as_ever() {
    let scratch = scratch("polled");
    let (uri, bytes) = file(&scratch, "data", 1 << 20);
    let builder = Engine::builder().gpu(GpuUse::Off).reactors(1);
    let polled = builder.clone().set("iopoll", "on").unwrap();
    let refused = polled.clone().set("sqpoll_ms", "10").unwrap().build().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ApiMisuse);
    assert!(builder.clone().set("iopoll", "yes").is_err());
    let read = |builder: straightway::EngineBuilder, policy: &str| -> Result<Landing, straightway::Error> {
        let engine = builder.build().unwrap();
        let object = engine.open(&uri).unwrap();
        let memory = engine.allocate(Destination::Host, 1 << 20, 0).unwrap();
        let done = engine.read(&object, 0, memory).policy(parse_policy(policy).unwrap()).wait().ok()?;
        let (landing, memory) = (done.path.route.landing, done.into_memory().unwrap().into_buffer().unwrap());
        assert!(memory.as_slice() == bytes);
        Ok(landing)
    };
    assert_eq!(read(polled.clone(), "prefer=kernel-copy").unwrap(), Landing::KernelCopy);
    match read(builder.set("iopoll", "off").unwrap(), "require=io_uring/dma") {
        Ok(landing) => assert_eq!(landing, Landing::Dma),
        Err(error) => return println!("skipped: no direct reads by io_uring here ({error})"),
    }
    match has_poll_queues(&scratch.path("data")) {
        Some(true) => assert_eq!(read(polled, "require=io_uring/dma").unwrap(), Landing::Dma),
        Some(false) => {
            assert_eq!(read(polled, "require=io_uring/dma").unwrap_err().kind(), ErrorKind::Unsupported);
            println!("skipped: no device with poll queues under the build; its refusal was checked");
        }
        None => println!("skipped: the kernel does not tell whether the device has poll queues"),
    }
}

#[test]
fn a_direct_read_bounces_only_its_ends() {
    let scratch = scratch("direct");
    let (uri, bytes) = file(&scratch, "data", 1_000_000);
    let engine = engine();
    let object = engine.open(&uri).unwrap();
    let policy = parse_policy("require-core=dma").unwrap();
    let memory = engine.allocate(Destination::Host, 900_001, 4_099).unwrap();
    let done = engine.read(&object, 4_099, memory).policy(policy).wait();
    let done = match done.ok() {
        Err(error) if error.reasons().contains(&Reason::DirectRefused) => {
            println!("skipped: the build's file system refuses O_DIRECT");
            return;
        }
        done => done.unwrap(),
    };
    assert_eq!(done.path.route.landing, Landing::Dma);
    assert!(done.path.bounced > 0 && done.path.bounced < 2 * 4096, "{}", done.path);
    assert_eq!(done.path.reason, Reason::RaggedEnds);
    assert!(done.into_memory().unwrap().into_buffer().unwrap().as_slice() == &bytes[4_099..904_100]);

    let memory = engine.allocate(Destination::Host, 900_001, 4_099).unwrap();
    let strict = engine.read(&object, 4_099, memory).policy(parse_policy("require=dma").unwrap()).wait();
    let error = strict.result.as_ref().unwrap_err();
    assert_eq!((error.kind(), error.reasons()), (ErrorKind::PolicyUnmet, [Reason::RaggedEnds].as_slice()));
    assert_eq!(strict.into_memory().unwrap().len(), 900_001, "memory comes back with a refusal");
}

#[test]
fn a_new_object_appears_whole_or_not_at_all() {
    let scratch = scratch("create");
    let engine = engine();
    let uri = at(&scratch, "new");
    let fill = |byte: u8| {
        let mut buffer = engine.allocate(Destination::Host, 100_003, 0).unwrap().into_buffer().unwrap();
        buffer.as_mut_slice().fill(byte);
        buffer
    };
    for (byte, commit) in [(1, true), (2, false), (3, true)] {
        let new = engine.create(&uri, 100_003).unwrap();
        engine.write(new.object(), 0, fill(byte)).wait().ok().unwrap();
        engine.flush(new.object()).wait().ok().unwrap();
        if commit {
            new.commit().unwrap();
        }
        let expected = if commit { byte } else { 1 };
        assert!(fs::read(scratch.path("new")).unwrap() == vec![expected; 100_003]);
    }
    assert_eq!(fs::read_dir(scratch.root()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_ragged_write_in_place_keeps_its_neighbours() {
    let scratch = scratch("update");
    let (uri, mut bytes) = file(&scratch, "data", 500_000);
    let engine = engine();
    let object = engine.open_for_update(&uri).unwrap();
    let mut buffer = engine.allocate(Destination::Host, 300_000, 12_345).unwrap().into_buffer().unwrap();
    buffer.as_mut_slice().fill(0xaa);
    let done = engine.write(&object, 12_345, buffer).wait().ok().unwrap();
    assert_eq!(done.path.bytes.total(), 300_000);
    engine.flush(&object).wait().ok().unwrap();
    bytes[12_345..312_345].fill(0xaa);
    assert!(fs::read(scratch.path("data")).unwrap() == bytes);
    assert_eq!(object.check_unchanged().unwrap_err().kind(), ErrorKind::Changed);
}

#[test]
fn stripes_and_batches_reach_every_byte() {
    let scratch = scratch("stripe");
    let engine = engine();
    let parts: Vec<_> = (0..3).map(|n| file(&scratch, &format!("m{n}"), 1 << 20)).collect();
    let paths: Vec<String> = parts.iter().map(|(uri, _)| uri.to_string()).collect();
    let set: Uri = format!("stripe:64k:{}", paths.join(",")).parse().unwrap();
    let object = engine.open(&set).unwrap();
    assert_eq!(object.len(), 3 << 20);
    let logical = |x: usize| parts[x / 65_536 % 3].1[x / 65_536 / 3 * 65_536 + x % 65_536];
    let requests = (0..20u64).map(|n| {
        let memory = engine.allocate(Destination::Host, 150_001, n * 149_999).unwrap();
        engine.read(&object, n * 149_999, memory)
    });
    for (n, done) in engine.batch(requests.collect()).wait().into_iter().enumerate() {
        let got = done.ok().unwrap().into_memory().unwrap().into_buffer().unwrap();
        let start = n * 149_999;
        assert!(got.as_slice().iter().enumerate().all(|(at, byte)| *byte == logical(start + at)), "part {n}");
    }
    assert_eq!(engine.counters().ok, 20);
}

#[test]
fn more_requests_than_any_queue_holds_all_complete() {
    let scratch = scratch("many");
    let (uri, bytes) = file(&scratch, "data", 1 << 20);
    let engine = Engine::builder().gpu(GpuUse::Off).reactors(1).ops_per_lane(4).queue_depth(2).build().unwrap();
    let object = engine.open(&uri).unwrap();
    let requests: Vec<_> = (0..3_000u64)
        .map(|n| engine.read(&object, n * 300, engine.allocate(Destination::Host, 300, 0).unwrap()))
        .collect();
    for (n, done) in block_on(engine.batch(requests)).into_iter().enumerate() {
        let got = done.ok().unwrap().into_memory().unwrap().into_buffer().unwrap();
        assert!(got.as_slice() == &bytes[n * 300..n * 300 + 300], "request {n}");
    }
}

#[test]
fn a_lane_of_ones_own_runs_without_the_engine_threads() {
    let scratch = scratch("lane");
    let (uri, bytes) = file(&scratch, "data", 1 << 20);
    let engine = engine();
    let object = engine.open(&uri).unwrap();
    let mut lane = engine.lane(Destination::Host).unwrap();
    lane.attach_object(&object).unwrap();
    let target = lane.target(&object, &Policy::Any, Verb::Read).unwrap();
    for n in 0..16 {
        let memory = engine.allocate(Destination::Host, 65_536, 0).unwrap();
        lane.submit(Lane::op(n, Verb::Read, target.clone(), n * 65_536, memory)).unwrap();
    }
    let mut seen = 0;
    while seen < 16 {
        lane.poll(Duration::from_secs(1), 4);
        while let Some(done) = lane.pop() {
            assert_eq!(done.result.unwrap(), 65_536);
            let start = usize::try_from(done.user).unwrap() * 65_536;
            let got = Lane::memory_of(done.op.unwrap()).unwrap().into_buffer().unwrap();
            assert!(got.as_slice() == &bytes[start..start + 65_536]);
            seen += 1;
        }
    }
    lane.detach_object(&object).unwrap();
    assert_eq!(lane.counters().ok, 16);
}

#[test]
fn dropped_and_cancelled_requests_leave_nothing_behind() {
    let scratch = scratch("drop");
    let (uri, _) = file(&scratch, "data", 4 << 20);
    let engine = engine();
    let object = engine.open(&uri).unwrap();
    for n in 0..200 {
        let memory = engine.allocate(Destination::Host, 4 << 20, 0).unwrap();
        let mut pending = engine.read(&object, 0, memory).start();
        if n % 2 == 0 {
            pending.cancel();
            let done = pending.wait();
            assert!(matches!(done.result, Ok(4_194_304)) || done.result.unwrap_err().kind() == ErrorKind::Cancelled);
        }
    }
    let memory = engine.allocate(Destination::Host, 4 << 20, 0).unwrap();
    engine.read(&object, 0, memory).wait().ok().unwrap();
    let inspected = engine.inspect().to_string();
    assert!(inspected.contains("quarantined: 0"), "{inspected}");
    engine.close().unwrap();
}

#[test]
fn closing_answers_what_is_in_flight_and_refuses_the_rest() {
    let scratch = scratch("close");
    let (uri, _) = file(&scratch, "data", 8 << 20);
    let engine = engine();
    let object = engine.open(&uri).unwrap();
    let pending: Vec<_> = (0..20)
        .map(|_| engine.read(&object, 0, engine.allocate(Destination::Host, 8 << 20, 0).unwrap()).start())
        .collect();
    let spare = engine.allocate(Destination::Host, 1, 0).unwrap();
    let late = engine.read(&object, 0, spare);
    engine.clone().close().unwrap();
    for pending in pending {
        let done = pending.wait();
        assert!(
            done.result.as_ref().is_ok_and(|bytes| *bytes == 8 << 20)
                || done.result.unwrap_err().kind() == ErrorKind::Closed
        );
    }
    assert_eq!(late.wait().result.unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn what_users_get_wrong_is_a_typed_error_with_a_remedy() {
    let scratch = scratch("misuse");
    let (uri, _) = file(&scratch, "data", 1000);
    let (empty, _) = file(&scratch, "empty", 0);
    let engine = engine();
    let open = |uri: &Uri| engine.open(uri).unwrap_err().kind();
    assert_eq!(open(&at(&scratch, "missing")), ErrorKind::NotFound);
    assert_eq!(open(&at(&scratch, ".")), ErrorKind::WrongKind);
    assert_eq!(engine.open(&empty).unwrap().len(), 0);
    let object = engine.open(&uri).unwrap();
    let memory = |len| engine.allocate(Destination::Host, len, 0).unwrap();
    assert_eq!(engine.read(&object, 999, memory(2)).wait().result.unwrap_err().kind(), ErrorKind::OutOfRange);
    assert_eq!(engine.read(&object, 999, memory(1)).wait().result.unwrap(), 1);
    assert_eq!(engine.allocate(Destination::Host, 0, 0).unwrap_err().kind(), ErrorKind::ApiMisuse);
    assert_eq!(engine.allocate(Destination::Host, 1 << 60, 0).unwrap_err().kind(), ErrorKind::ResourceLimit);
    assert_eq!(engine.allocate(Destination::Gpu(7), 1, 0).unwrap_err().kind(), ErrorKind::NoDevice);
    let nowhere = RouteMatch { transport: Some("preadv2"), landing: Some(Landing::Dma) };
    let unmet = engine.read(&object, 0, memory(1)).policy(Policy::Require(nowhere)).wait().result.unwrap_err();
    assert_eq!(unmet.kind(), ErrorKind::PolicyUnmet);
    assert!(!unmet.reasons().is_empty() && unmet.to_string().contains("POLICY_EXCLUDES"), "{unmet}");
    for error in [engine.open(&at(&scratch, "missing")).unwrap_err(), unmet] {
        assert!(!error.remedy_text().is_empty(), "{error}");
    }
    for builder in [Engine::builder().reactors(0), Engine::builder().queue_depth(0), Engine::builder().io_bytes(5000)] {
        assert_eq!(builder.build().unwrap_err().kind(), ErrorKind::ApiMisuse);
    }
}

#[test]
fn a_deadline_is_kept() {
    let scratch = scratch("deadline");
    let (uri, _) = file(&scratch, "data", 64 << 20);
    let engine = engine();
    let object = engine.open(&uri).unwrap();
    let memory = engine.allocate(Destination::Host, 64 << 20, 0).unwrap();
    let done = engine
        .read(&object, 0, memory)
        .policy(parse_policy("prefer=dma").unwrap())
        .deadline(Duration::from_nanos(1))
        .wait();
    let error = done.result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.to_string().contains("waited for"), "{error}");
}

#[test]
fn kept_memory_is_used_again_and_its_old_bytes_never_reach_a_read() {
    let scratch = scratch("keep");
    let (uri, bytes) = file(&scratch, "data", 3 << 20);
    let engine = Engine::builder().gpu(GpuUse::Off).keep_bytes(8 << 20).build().unwrap();
    let object = engine.open(&uri).unwrap();
    let mut places = Vec::new();
    for _ in 0..3 {
        let memory = engine.allocate(Destination::Host, 3 << 20, 0).unwrap();
        places.push(memory.address());
        let buffer = engine.read(&object, 0, memory).wait().ok().unwrap().into_memory().unwrap().into_buffer().unwrap();
        assert!(buffer.as_slice() == bytes);
    }
    assert_eq!(places[0], places[2], "the mapping is used again");
}
