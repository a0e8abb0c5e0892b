//! Reads, writes and flushes through every transport, on ordinary files.
// UNSAFETY: memory that no I/O can reach has to be mapped and named by hand.
#![expect(unsafe_code, reason = "mmap, munmap and DmaRegion::from_foreign")]
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure to prepare is a failed test")]

use std::any::Any;

use crate::support::{self, bytes, io, memory, open, pattern, read, run, scratch, segment, transports, write};
use sw_engine::{
    ErrorKind, Granularity, Landing,
    seam::{Attach, IoDone, IoKind, OpenMode, Submit, Transport, Wait},
};
use sw_mem::{ByteLen, DmaRegion, HostVa, Place};
use sw_uring::{QUEUE_DEPTH_MAX, TaskRun, ThreadsConfig, ThreadsTransport, UringConfig, UringTransport};

#[test]
fn reads_through_every_face_return_the_bytes_of_the_file() {
    let scratch = scratch("read");
    let data = pattern(3 << 20, 1);
    std::fs::write(scratch.path("file"), &data).unwrap();
    for (name, mut transport) in transports() {
        let object = open(&*transport, &scratch.path("file"), OpenMode::Read);
        for face in 0..object.faces.len() {
            let at = 1 << 20;
            let got = read(&mut *transport, &object, face, at, 1 << 20).unwrap();
            assert!(got == data[1 << 20..2 << 20], "{name}, face {:?}", object.faces[face]);
        }
        let odd = object.bytewise_face().unwrap();
        assert_eq!(read(&mut *transport, &object, odd, 12345, 77).unwrap(), &data[12345..12345 + 77], "{name}");
    }
}

#[test]
fn registered_files_and_buffers_move_the_same_bytes_until_they_are_taken_out_and_after() {
    let scratch = scratch("registered");
    let data = pattern(1 << 20, 2);
    std::fs::write(scratch.path("file"), &data).unwrap();
    for (name, mut transport) in transports() {
        let object = open(&*transport, &scratch.path("file"), OpenMode::Read);
        let span = memory(1 << 20, 0);
        transport.attach(Attach::Object(&object)).unwrap();
        transport.attach(Attach::Region(span.region())).unwrap();
        for round in 0..2 {
            for face in 0..object.faces.len() {
                span.fill(0, 1 << 20, 0xEE).unwrap();
                let piece = io(IoKind::Read, &object, face, 4096, &[segment(&span, 8192, 65536)]);
                assert_eq!(run(&mut *transport, &piece), Ok(65536), "{name}");
                assert!(bytes(&span, 8192, 65536) == data[4096..4096 + 65536], "{name}");
                assert!(bytes(&span, 0, 8192).iter().all(|byte| *byte == 0xEE), "{name}: bytes before");
                assert!(bytes(&span, 8192 + 65536, 4096).iter().all(|byte| *byte == 0xEE), "{name}: bytes behind");
            }
            if round == 0 {
                transport.attach(Attach::ObjectGone(object.id)).unwrap();
                transport.attach(Attach::RegionGone(span.region().id())).unwrap();
            }
        }
    }
}

#[test]
fn up_to_three_pieces_of_memory_are_filled_in_order() {
    let scratch = scratch("pieces");
    let data = pattern(1 << 20, 3);
    std::fs::write(scratch.path("file"), &data).unwrap();
    for (name, mut transport) in transports() {
        let object = open(&*transport, &scratch.path("file"), OpenMode::Read);
        let span = memory(1 << 20, 0);
        for face in 0..object.faces.len() {
            let parts =
                [segment(&span, 500 << 10, 4096), segment(&span, 0, 128 << 10), segment(&span, 600 << 10, 4096)];
            let whole = (128 << 10) + 8192;
            assert_eq!(run(&mut *transport, &io(IoKind::Read, &object, face, 8192, &parts)), Ok(whole), "{name}");
            assert!(bytes(&span, 500 << 10, 4096) == data[8192..12288], "{name}");
            assert!(bytes(&span, 0, 128 << 10) == data[12288..12288 + (128 << 10)], "{name}");
            assert!(bytes(&span, 600 << 10, 4096) == data[12288 + (128 << 10)..][..4096], "{name}");
        }
    }
}

#[test]
fn written_and_flushed_bytes_are_in_the_file() {
    let scratch = scratch("write");
    for (name, mut transport) in transports() {
        std::fs::write(scratch.path("file"), vec![0u8; 1 << 20]).unwrap();
        let object = open(&*transport, &scratch.path("file"), OpenMode::Update);
        let mut expected = vec![0u8; 1 << 20];
        for face in 0..object.faces.len() {
            let at = 4096 * (1 + face * 40);
            let data = pattern(64 << 10, face as u64);
            assert_eq!(write(&mut *transport, &object, face, at as u64, &data), Ok(64 << 10), "{name}");
            expected[at..at + (64 << 10)].copy_from_slice(&data);
        }
        for kind in [IoKind::FlushData, IoKind::FlushAll] {
            assert_eq!(run(&mut *transport, &io(kind, &object, 0, 0, &[])), Ok(0), "{name}");
        }
        assert!(std::fs::read(scratch.path("file")).unwrap() == expected, "{name}");
    }
}

#[test]
fn the_end_of_the_file_is_short_then_zero_and_holes_are_zeros() {
    let scratch = scratch("ends");
    let file = std::fs::File::create(scratch.path("holes")).unwrap();
    file.set_len(100_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 99_997).unwrap();
    std::fs::write(scratch.path("empty"), b"").unwrap();
    for (name, mut transport) in transports() {
        let object = open(&*transport, &scratch.path("holes"), OpenMode::Read);
        assert_eq!(object.len, 100_000);
        for face in 0..object.faces.len() {
            let hole = read(&mut *transport, &object, face, 0, 65536).unwrap();
            assert!(hole.len() == 65536 && hole.iter().all(|byte| *byte == 0), "{name}");
            let tail = read(&mut *transport, &object, face, 98304, 8192).unwrap();
            assert_eq!(tail.len(), 100_000 - 98304, "{name}: short at the end");
            assert_eq!(&tail[tail.len() - 3..], b"end", "{name}");
            assert_eq!(read(&mut *transport, &object, face, 1 << 20, 4096).unwrap(), b"", "{name}: past the end");
        }
        let empty = open(&*transport, &scratch.path("empty"), OpenMode::Read);
        for face in 0..empty.faces.len() {
            assert_eq!(read(&mut *transport, &empty, face, 0, 4096).unwrap(), b"", "{name}: empty file");
        }
    }
}

#[test]
fn a_file_that_shrinks_gives_fewer_bytes_and_is_told_changed() {
    let scratch = scratch("shrinks");
    for (name, mut transport) in transports() {
        std::fs::write(scratch.path("file"), pattern(1 << 20, 4)).unwrap();
        let object = open(&*transport, &scratch.path("file"), OpenMode::Read);
        sw_uring::unchanged(&object).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(scratch.path("file")).unwrap();
        file.set_len(6000).unwrap();
        for face in 0..object.faces.len() {
            assert_eq!(read(&mut *transport, &object, face, 0, 65536).unwrap().len(), 6000, "{name}");
            assert_eq!(read(&mut *transport, &object, face, 65536, 65536).unwrap().len(), 0, "{name}");
        }
        assert_eq!(sw_uring::unchanged(&object).unwrap_err().kind(), ErrorKind::Changed, "{name}");
    }
}

#[test]
fn a_replaced_file_still_reads_as_the_old_one_and_is_told_changed() {
    let scratch = scratch("replaced");
    for (name, mut transport) in transports() {
        let old = pattern(65536, 5);
        std::fs::write(scratch.path("file"), &old).unwrap();
        let object = open(&*transport, &scratch.path("file"), OpenMode::Read);
        std::fs::write(scratch.path("new"), pattern(65536, 6)).unwrap();
        std::fs::rename(scratch.path("new"), scratch.path("file")).unwrap();
        assert!(read(&mut *transport, &object, 0, 0, 65536).unwrap() == old, "{name}");
        let error = sw_uring::unchanged(&object).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{name}: {error}");
        assert!(error.to_string().contains("replaced"), "{error}");
    }
}

#[test]
fn a_direct_face_refuses_what_is_not_aligned_and_says_why() {
    let scratch = scratch("unaligned");
    std::fs::write(scratch.path("file"), pattern(65536, 7)).unwrap();
    for (name, mut transport) in transports() {
        let object = open(&*transport, &scratch.path("file"), OpenMode::Read);
        let face = object.faces[0];
        if face.landing != Landing::Dma {
            println!("skip {name}: no direct face here: {:?}", face.because);
            continue;
        }
        assert_ne!(face.granularity, Granularity::ANY);
        let span = memory(65536, 0);
        let odd_offset = io(IoKind::Read, &object, 0, 1, &[segment(&span, 0, 4096)]);
        let odd_memory = io(IoKind::Read, &object, 0, 0, &[segment(&span, 1, 4096)]);
        for piece in [odd_offset, odd_memory] {
            let fault = run(&mut *transport, &piece).unwrap_err();
            assert_eq!((fault.kind, fault.code), (ErrorKind::ApiMisuse, libc::EINVAL), "{name}");
        }
    }
}

#[test]
fn a_ring_for_one_thread_refuses_another_and_a_shared_one_is_handed_over_in_flight() {
    let scratch = scratch("threads");
    std::fs::write(scratch.path("file"), pattern(65536, 8)).unwrap();
    let mut own = UringTransport::new(UringConfig { single_issuer: true, ..UringConfig::default() }).unwrap();
    let object = open(&own, &scratch.path("file"), OpenMode::Read);
    assert!(read(&mut own, &object, 0, 0, 4096).is_ok());
    let wait = Wait::For { timeout: support::PATIENCE, min: 1 };
    if own.task_run() == TaskRun::Deferred {
        let error = std::thread::scope(|scope| scope.spawn(|| own.poll(wait, &mut Vec::with_capacity(1))).join());
        assert_eq!(error.unwrap().unwrap_err().kind(), ErrorKind::ApiMisuse);
        assert!(read(&mut own, &object, 0, 0, 4096).is_ok(), "its owner goes on");
    } else {
        println!("skip: no DEFER_TASKRUN here, got {:?}", own.task_run());
    }
    let mut shared = UringTransport::new(UringConfig::default()).unwrap();
    let span = memory(4096, 0);
    let piece = io(IoKind::Read, &object, 0, 8192, &[segment(&span, 0, 4096)]);
    assert_eq!(shared.submit(&piece), Submit::Accepted);
    shared.ring().unwrap();
    let mut out: Vec<IoDone> = Vec::with_capacity(1);
    std::thread::scope(|scope| scope.spawn(|| shared.poll(wait, &mut out)).join()).unwrap().unwrap();
    assert_eq!(out.pop().map(|done| done.result), Some(Ok(4096)));
    assert!(bytes(&span, 0, 4096) == pattern(65536, 8)[8192..12288]);
}

#[test]
fn a_ring_without_room_for_buffers_ignores_hints_about_regions() {
    let Ok(mut transport) = UringTransport::new(UringConfig { buffers_max: 0, ..UringConfig::default() }) else {
        return println!("skip: no io_uring here");
    };
    let scratch = scratch("no-buffers");
    std::fs::write(scratch.path("file"), pattern(8192, 3)).unwrap();
    let object = open(&transport, &scratch.path("file"), OpenMode::Read);
    let span = memory(4096, 0);
    transport.attach(Attach::Region(span.region())).unwrap();
    assert_eq!(transport.registered(), (0, 0));
    let face = object.bytewise_face().unwrap();
    let read = io(IoKind::Read, &object, face, 4096, &[segment(&span, 0, 4096)]);
    assert_eq!(run(&mut transport, &read), Ok(4096));
    assert!(bytes(&span, 0, 4096) == pattern(8192, 3)[4096..]);
    transport.attach(Attach::RegionGone(span.region().id())).unwrap();
}

#[test]
fn settings_out_of_range_are_refused_before_anything_is_made() {
    let uring = [
        UringConfig { queue_depth: 0, ..UringConfig::default() },
        UringConfig { queue_depth: QUEUE_DEPTH_MAX + 1, ..UringConfig::default() },
        UringConfig { io_bytes_max: 5000, ..UringConfig::default() },
        UringConfig { buffers_max: u16::MAX, ..UringConfig::default() },
        UringConfig { iopoll: true, sqpoll: Some(1), ..UringConfig::default() },
    ];
    for config in uring {
        assert_eq!(UringTransport::new(config).err().unwrap().kind(), ErrorKind::ApiMisuse);
    }
    for config in [
        ThreadsConfig { threads: 0, ..ThreadsConfig::default() },
        ThreadsConfig { queue_depth: 0, ..ThreadsConfig::default() },
        ThreadsConfig { io_bytes_max: 0, ..ThreadsConfig::default() },
    ] {
        assert_eq!(ThreadsTransport::new(config).err().unwrap().kind(), ErrorKind::ApiMisuse);
    }
    assert!(UringTransport::new(UringConfig { queue_depth: QUEUE_DEPTH_MAX, ..UringConfig::default() }).is_ok());
}

/// A poll for two is answered for one when the other takes longer than the gathering: 256 MiB take some tens of
/// milliseconds, gathering 100 us.
#[test]
fn a_pool_of_threads_does_not_hold_one_completion_for_a_slow_one() {
    let scratch = scratch("gather");
    let len = 256 << 20;
    std::fs::File::create(scratch.path("file")).unwrap().set_len(len).unwrap();
    let config = ThreadsConfig { threads: 2, io_bytes_max: 256 << 20, ..ThreadsConfig::default() };
    let mut transport = ThreadsTransport::new(config).unwrap();
    let object = open(&transport, &scratch.path("file"), OpenMode::Read);
    let face = object.bytewise_face().unwrap();
    let (large, small) = (memory(len, 1), memory(4096, 1));
    let slow = io(IoKind::Read, &object, face, 0, &[segment(&large, 0, 256 << 20)]);
    let fast = io(IoKind::Read, &object, face, 0, &[segment(&small, 0, 4096)]);
    assert_eq!(transport.submit(&slow), Submit::Accepted);
    assert_eq!(transport.submit(&fast), Submit::Accepted);
    let mut done: Vec<IoDone> = Vec::with_capacity(2);
    let wait = Wait::For { timeout: support::PATIENCE, min: 2 };
    transport.poll(wait, &mut done).unwrap();
    assert_eq!(done.iter().map(|end| end.result).collect::<Vec<_>>(), [Ok(4096)]);
    while done.len() < 2 {
        assert!(transport.poll(wait, &mut done).unwrap() > 0, "the slow one never ended");
    }
}

/// Pages that nobody may read or write.
struct NoAccess(*mut libc::c_void, usize);

// SAFETY: it is an address range that nobody follows; `munmap` may be called on any thread.
unsafe impl Send for NoAccess {}
// SAFETY: as above; shared handles give no access to anything.
unsafe impl Sync for NoAccess {}

impl NoAccess {
    fn region(len: usize) -> DmaRegion {
        // SAFETY: a fresh private mapping at a place that the kernel chooses.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        let (base, owner) =
            (Place::Host(HostVa::new(at as u64)), Box::new(Self(at, len)) as Box<dyn Any + Send + Sync>);
        // SAFETY: the owner keeps the range mapped; no Rust reference into it exists, and no code touches it.
        unsafe { DmaRegion::from_foreign(base, ByteLen(len as u64), owner) }.unwrap()
    }
}

impl Drop for NoAccess {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whose last handle goes with this.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

#[test]
fn memory_that_the_kernel_cannot_reach_is_not_registered_and_the_next_read_is_right() {
    let scratch = scratch("no-access");
    let data = pattern(1 << 20, 61);
    std::fs::write(scratch.path("file"), &data).unwrap();
    for (name, mut transport) in transports() {
        let object = open(&*transport, &scratch.path("file"), OpenMode::Update);
        let nowhere = NoAccess::region(64 << 10).span(0, ByteLen(64 << 10)).unwrap();
        for (face, of) in object.faces.iter().enumerate() {
            for kind in [IoKind::Read, IoKind::Write] {
                let piece = io(kind, &object, face, 4096, &[segment(&nowhere, 0, 64 << 10)]);
                let fault = run(&mut *transport, &piece).unwrap_err();
                assert_eq!((fault.kind, fault.code), (ErrorKind::NotRegistered, libc::EFAULT), "{name}, {of:?}");
            }
            let got = read(&mut *transport, &object, face, 4096, 64 << 10).unwrap();
            assert!(got == data[4096..4096 + (64 << 10)], "{name}, {of:?}");
        }
    }
}
