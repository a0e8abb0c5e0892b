//! What goes wrong below: read errors, full disks, pipes that do not answer, a device that holds on to a write.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure to prepare is a failed test")]
#![expect(clippy::disallowed_methods, reason = "bounds in time are measured")]

use std::{
    io::Write as _,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::fuse;
use crate::mounts::{Loop, LoopMount, tool};
use crate::support::{PATIENCE, io, memory, open, pattern, read, run, scratch, segment, transports, write};
use sw_engine::{
    ErrorKind, Face, Granularity, Landing, Object, Residency, Retry, Version,
    seam::{Fence, IoDone, IoKind, OpenMode, Store, Submit, Transport, Wait},
};
use sw_uring::{FileStore, ThreadsConfig, ThreadsTransport, UringConfig, UringTransport};

/// An object over any descriptor, with one buffered face.
fn object_of(fd: OwnedFd, transport: &'static str) -> Object {
    let face = Face {
        transport,
        handle: u64::from(fd.as_raw_fd().cast_unsigned()),
        granularity: Granularity::ANY,
        write_unit: 1,
        landing: Landing::KernelCopy,
        because: None,
    };
    Object {
        id: Object::next_id(),
        name: Arc::from("test"),
        len: 0,
        version: Version::default(),
        faces: vec![face],
        residency: Residency::Unknown.into(),
        composed: None,
        keep: Box::new(fd),
    }
}

/// A pipe with nothing in it: a read on it has no end of its own.
fn silent_pipe(transport: &'static str) -> (Object, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    (object_of(OwnedFd::from(reader), transport), writer)
}

#[test]
fn a_read_error_of_a_file_system_is_an_io_fault_and_the_rest_of_the_file_still_reads() {
    let scratch = scratch("eio-fuse");
    let data = pattern(1 << 20, 20);
    // The kernel reads ahead only in whole answers, so the bad range is far from the good one.
    match fuse::mount(&scratch.path("mnt"), data.clone(), 900_000..900_001, libc::EIO) {
        Ok(_session) => {
            for (name, mut transport) in transports() {
                let object = open(&*transport, &scratch.path("mnt").join(fuse::NAME), OpenMode::Read);
                let fault = read(&mut *transport, &object, 0, 899_000, 4096).unwrap_err();
                assert_eq!((fault.kind, fault.code, fault.retry), (ErrorKind::Io, libc::EIO, Retry::Never), "{name}");
                assert!(read(&mut *transport, &object, 0, 0, 4096).unwrap() == data[..4096], "{name}");
            }
        }
        Err(why) => println!("skip: {why}"),
    }
}

#[test]
fn a_read_error_of_a_device_is_an_io_fault_on_both_faces() {
    let scratch = scratch("eio-loop");
    let device = match Loop::new(&scratch.path("image"), 8 << 20) {
        Ok(device) => device,
        Err(why) => return println!("skip: {why}"),
    };
    for (name, mut transport) in transports() {
        let object = open(&*transport, std::path::Path::new(device.device()), OpenMode::Read);
        assert_eq!(object.len, 8 << 20, "{name}");
        // The device keeps its length; the blocks behind it are gone.
        std::fs::OpenOptions::new().write(true).open(device.file()).unwrap().set_len(1 << 20).unwrap();
        for face in 0..object.faces.len() {
            let fault = read(&mut *transport, &object, face, 4 << 20, 65536).unwrap_err();
            assert_eq!((fault.kind, fault.code), (ErrorKind::Io, libc::EIO), "{name}, face {face}");
            assert_eq!(read(&mut *transport, &object, face, 0, 65536).unwrap().len(), 65536, "{name}, face {face}");
        }
    }
}

#[test]
fn a_full_disk_is_known_before_the_first_byte_and_leaves_the_old_file() {
    let scratch = scratch("full");
    let disk = match LoopMount::new(&["mkfs.ext4", "-q"], &scratch.path(""), 16 << 20) {
        Ok(disk) => disk,
        Err(why) => return println!("skip: {why}"),
    };
    for (name, mut transport) in transports() {
        let store = FileStore::new(transport.caps().name);
        let path = disk.path().join("file");
        std::fs::write(&path, b"old").unwrap();
        let error = store.create(path.to_str().unwrap(), 64 << 20).err().unwrap();
        assert_eq!((error.kind(), error.code()), (ErrorKind::NoSpace, libc::ENOSPC), "{name}: {error}");
        assert!(error.to_string().contains("file") && !error.remedy_text().is_empty(), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old", "{name}");
        let left = std::fs::read_dir(disk.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("straightway"));
        assert_eq!(left.count(), 0, "{name}: no temporary file stays");
        // Without a reservation the disk fills up under the writes.
        std::fs::File::create(disk.path().join("sparse")).unwrap().set_len(64 << 20).unwrap();
        let sparse = open(&*transport, &disk.path().join("sparse"), OpenMode::Update);
        let data = pattern(1 << 20, 21);
        let fault = (0..64u64).find_map(|mib| write(&mut *transport, &sparse, 0, mib << 20, &data).err());
        assert_eq!(fault.unwrap().kind, ErrorKind::NoSpace, "{name}");
        assert_eq!(sw_uring::preallocate(&sparse, 60 << 20).unwrap_err().kind(), ErrorKind::NoSpace, "{name}");
        std::fs::remove_file(disk.path().join("sparse")).unwrap();
    }
}

#[test]
fn again_means_now() {
    let scratch = scratch("again");
    match fuse::mount(&scratch.path("mnt"), pattern(1 << 20, 23), 900_000..900_001, libc::EAGAIN) {
        Ok(_session) => {
            for (name, mut transport) in transports() {
                let object = open(&*transport, &scratch.path("mnt").join(fuse::NAME), OpenMode::Read);
                let fault = read(&mut *transport, &object, 0, 899_000, 4096).unwrap_err();
                assert_eq!(
                    (fault.kind, fault.code, fault.retry),
                    (ErrorKind::Busy, libc::EAGAIN, Retry::Now),
                    "{name}"
                );
            }
        }
        Err(why) => println!("skip: {why}"),
    }
}

#[test]
fn a_cancelled_read_ends_with_a_cancelled_completion() {
    for (name, mut transport) in transports() {
        if name == "preadv2" {
            continue;
        }
        let (object, _writer) = silent_pipe(transport.caps().name);
        let span = memory(4096, 0);
        let piece = io(IoKind::Read, &object, 0, 0, &[segment(&span, 0, 4096)]);
        assert_eq!(transport.submit(&piece), Submit::Accepted);
        transport.ring().unwrap();
        let mut out: Vec<IoDone> = Vec::with_capacity(1);
        transport.poll(Wait::For { timeout: Duration::from_millis(20), min: 1 }, &mut out).unwrap();
        assert!(out.is_empty(), "{name}: nothing was written to the pipe");
        transport.cancel(piece.token);
        transport.poll(Wait::For { timeout: PATIENCE, min: 1 }, &mut out).unwrap();
        let fault = out.pop().unwrap().result.unwrap_err();
        assert_eq!((fault.kind, fault.code), (ErrorKind::Cancelled, libc::ECANCELED), "{name}");
    }
}

#[test]
fn a_fence_ends_what_can_be_ended_and_then_takes_no_more() {
    for (name, mut transport) in transports() {
        if name == "preadv2" {
            continue;
        }
        let (object, _writer) = silent_pipe(transport.caps().name);
        let span = memory(4096, 0);
        let piece = |_| io(IoKind::Read, &object, 0, 0, &[segment(&span, 0, 4096)]);
        let pieces: Vec<_> = (0..5).map(piece).collect();
        pieces.iter().for_each(|piece| assert_eq!(transport.submit(piece), Submit::Accepted));
        let mut out: Vec<IoDone> = Vec::with_capacity(8);
        assert_eq!(transport.fence(PATIENCE, &mut out), Fence::Quiet, "{name}");
        assert_eq!(out.len(), 5, "{name}");
        assert_eq!(transport.submit(&pieces[0]), Submit::Full, "{name}: closed");
    }
}

#[test]
fn a_write_that_the_kernel_holds_makes_the_fence_busy_and_the_drop_leak() {
    let scratch = scratch("frozen");
    let disk = match LoopMount::new(&["mkfs.ext4", "-q"], &scratch.path(""), 16 << 20) {
        Ok(disk) => disk,
        Err(why) => return println!("skip: {why}"),
    };
    std::fs::write(disk.path().join("file"), vec![0; 65536]).unwrap();
    let makers: [fn() -> Box<dyn Transport>; 2] = [
        || Box::new(UringTransport::new(UringConfig::default()).unwrap()),
        || Box::new(ThreadsTransport::new(ThreadsConfig { threads: 2, ..ThreadsConfig::default() }).unwrap()),
    ];
    let mut kept = Vec::new();
    for make in makers {
        let mut transport = make();
        let name = transport.caps().name;
        let object = open(&*transport, &disk.path().join("file"), OpenMode::Update);
        // A frozen file system holds writers in a sleep that no signal ends: the worst device there is.
        tool("fsfreeze", &["-f", disk.path().to_str().unwrap()]).unwrap();
        let span = memory(4096, 1);
        let piece = io(IoKind::Write, &object, object.bytewise_face().unwrap(), 0, &[segment(&span, 0, 4096)]);
        assert_eq!(transport.submit(&piece), Submit::Accepted);
        transport.ring().unwrap();
        let mut out: Vec<IoDone> = Vec::with_capacity(1);
        // Long enough for a worker to have begun it.
        transport.poll(Wait::For { timeout: Duration::from_millis(100), min: 1 }, &mut out).unwrap();
        let start = Instant::now();
        let fence = transport.fence(Duration::from_millis(200), &mut out);
        let took = start.elapsed();
        let before = sw_uring::leaked_rings() + sw_uring::leaked_threads();
        drop(transport);
        let after = sw_uring::leaked_rings() + sw_uring::leaked_threads();
        tool("fsfreeze", &["-u", disk.path().to_str().unwrap()]).unwrap();
        assert_eq!(fence, Fence::Busy(1), "{name}");
        assert!(took < Duration::from_secs(5), "{name}: the fence is bounded, it took {took:?}");
        assert_eq!(after - before, 1, "{name}: counted");
        // The write runs on from here: its memory stays until the end of the test, as the engine would keep it.
        kept.push(span);
    }
}

#[test]
fn a_wake_ends_a_wait_of_another_thread_and_one_in_advance_counts() {
    for (name, mut transport) in transports() {
        let waker = transport.waker();
        let mut out: Vec<IoDone> = Vec::with_capacity(4);
        for min in [1, 4] {
            let start = Instant::now();
            let other = waker.clone();
            let thread = std::thread::Builder::new()
                .spawn(move || {
                    std::thread::park_timeout(Duration::from_millis(50));
                    other.wake();
                })
                .unwrap();
            assert_eq!(transport.poll(Wait::For { timeout: PATIENCE, min }, &mut out).unwrap(), 0, "{name}");
            assert!(start.elapsed() < PATIENCE / 2, "{name}: woken, not timed out");
            thread.join().unwrap();
        }
        let start = Instant::now();
        waker.wake();
        assert_eq!(transport.poll(Wait::For { timeout: PATIENCE, min: 1 }, &mut out).unwrap(), 0, "{name}");
        assert!(start.elapsed() < PATIENCE / 2, "{name}: woken in advance");
        let start = Instant::now();
        transport.poll(Wait::For { timeout: Duration::from_millis(30), min: 1 }, &mut out).unwrap();
        // A stale signal of the eventfd may end one wait early; never two.
        transport.poll(Wait::For { timeout: Duration::from_millis(30), min: 1 }, &mut out).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30), "{name}: a used wake is used up");
    }
}

#[test]
fn the_depth_is_a_limit_and_a_short_list_of_completions_loses_none() {
    let scratch = scratch("depth");
    std::fs::File::create(scratch.path("file")).unwrap().write_all(&pattern(1 << 20, 22)).unwrap();
    let shapes: Vec<Box<dyn Transport>> = vec![
        Box::new(UringTransport::new(UringConfig { queue_depth: 8, ..UringConfig::default() }).unwrap()),
        Box::new(ThreadsTransport::new(ThreadsConfig { queue_depth: 8, ..ThreadsConfig::default() }).unwrap()),
    ];
    for mut transport in shapes {
        let name = transport.caps().name;
        let object = open(&*transport, &scratch.path("file"), OpenMode::Read);
        let span = memory(9 * 4096, 0);
        let pieces: Vec<_> =
            (0..9).map(|at| io(IoKind::Read, &object, 0, at * 4096, &[segment(&span, at * 4096, 4096)])).collect();
        for piece in &pieces[..8] {
            assert_eq!(transport.submit(piece), Submit::Accepted, "{name}");
        }
        assert_eq!(transport.submit(&pieces[8]), Submit::Full, "{name}");
        let mut seen = Vec::new();
        while seen.len() < 8 {
            let mut out: Vec<IoDone> = Vec::with_capacity(3);
            let count = transport.poll(Wait::For { timeout: PATIENCE, min: 8 }, &mut out).unwrap();
            assert!(count > 0 && count == out.len() && out.capacity() == 3, "{name}");
            seen.extend(out.iter().map(|done| (done.token, done.result)));
        }
        assert!(seen.iter().all(|(_, result)| *result == Ok(4096)), "{name}");
        assert!(pieces[..8].iter().all(|piece| seen.iter().any(|(token, _)| *token == piece.token)), "{name}");
        assert_eq!(transport.submit(&pieces[8]), Submit::Accepted, "{name}");
    }
}

#[test]
fn device_memory_is_refused_with_a_completion() {
    for (name, mut transport) in transports() {
        let (object, _writer) = silent_pipe(transport.caps().name);
        let mut part = segment(&memory(4096, 0), 0, 4096);
        part.place = sw_mem::Place::Device(sw_mem::DeviceId(0), sw_mem::GpuVa::new(0x7000_0000));
        let fault = run(&mut *transport, &io(IoKind::Read, &object, 0, 0, &[part])).unwrap_err();
        assert_eq!(fault.kind, ErrorKind::Unsupported, "{name}");
    }
}
