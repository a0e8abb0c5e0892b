//! What a process may not do: io_uring behind a filter, locked memory, descriptors, permissions; and being killed.
//!
//! Each needs a process of its own: the parent runs this test program again with one ignored test, which plays the
//! child. Run by hand without the parent's variables it does nothing.
// UNSAFETY: the calls that take privileges away are system calls.
#![expect(unsafe_code, reason = "setrlimit, setresuid and seccomp")]
#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure to prepare is a failed test")]
#![expect(clippy::disallowed_methods, reason = "the parent tells the child by the environment what to do")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Reason,
    seam::{Attach, IoKind, OpenMode, Store, Transport, Wait},
};
use sw_uring::{FileStore, IO_URING, PREADV2, ThreadsConfig, ThreadsTransport, UringConfig, UringTransport};

use crate::{
    mounts::is_root,
    support::{bytes, io, memory, open, pattern, read, run, scratch, segment, transports, write},
};

const ROLE: &str = "SW_URING_TEST_ROLE";
const DIRECTORY: &str = "SW_URING_TEST_DIRECTORY";

/// Bytes of the file that the killed writer writes.
const WRITTEN: usize = 1 << 20;

/// This program again, as the child with that role.
fn child(test: &str, role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("limits::{test}"), "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(DIRECTORY, dir).stdin(Stdio::null());
    command
}

/// Runs the child to its end; it must say that it did its part.
fn child_passes(test: &str, role: &str, dir: &Path) {
    let output = child(test, role, dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("child done"), "{test} {role}: {output:?}");
}

/// The child's role and directory, if it was started by its parent.
fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var(ROLE).ok()?, PathBuf::from(std::env::var_os(DIRECTORY)?)))
}

/// Makes `io_uring_setup` fail with `errno` in this thread, for good.
fn block_io_uring(errno: u32) {
    let code = |bits: u32| u16::try_from(bits).unwrap();
    let line = |op: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code(op), jt, jf, k };
    let number = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    // Load the call's number (the first word of seccomp_data); equal: fall through to the errno; else skip it.
    let mut lines = [
        line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        line(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, 0, 1),
        line(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno, 0, 0),
        line(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: 4, filter: lines.as_mut_ptr() };
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program and its lines live until the call returns; the kernel copies them.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }, 0);
}

fn limit(resource: u32, value: u64) {
    let limits = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the pointer names a live structure.
    assert_eq!(unsafe { libc::setrlimit(resource, &raw const limits) }, 0);
}

/// Goes on as a user without privileges.
fn become_nobody() {
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
}

#[test]
fn where_io_uring_is_blocked_threads_serve_and_the_reason_is_told() {
    let scratch = scratch("blocked");
    std::fs::write(scratch.path("file"), pattern(65536, 30)).unwrap();
    child_passes("child_blocked", &libc::EPERM.to_string(), &scratch.path(""));
    child_passes("child_blocked", &libc::ENOSYS.to_string(), &scratch.path(""));
}

#[test]
#[ignore = "run by its parent in a process of its own"]
fn child_blocked() {
    let Some((errno, dir)) = role() else { return };
    let errno: i32 = errno.parse().unwrap();
    assert_eq!(sw_uring::probe().transport, IO_URING, "not blocked yet");
    block_io_uring(errno.cast_unsigned());
    let probe = sw_uring::probe();
    assert_eq!((probe.transport, probe.because), (PREADV2, Some((Reason::UringBlocked, errno))));
    let error = UringTransport::new(UringConfig::default()).err().unwrap();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Unsupported, errno), "{error}");
    assert_eq!(error.reasons(), [Reason::UringBlocked]);
    assert!(error.remedy_text().contains("seccomp"), "{error}");
    let mut transport = ThreadsTransport::new(ThreadsConfig::default()).unwrap();
    let object = open(&transport, &dir.join("file"), OpenMode::Read);
    assert_eq!(object.faces[0].transport, PREADV2);
    for face in 0..object.faces.len() {
        assert!(read(&mut transport, &object, face, 0, 65536).unwrap() == pattern(65536, 30));
    }
    println!("child done");
}

#[test]
fn too_little_locked_memory_refuses_the_hint_and_not_the_io() {
    if !is_root() {
        return println!("skip: only root can give up the right to lock memory");
    }
    let scratch = scratch("memlock");
    std::fs::write(scratch.path("file"), pattern(1 << 20, 31)).unwrap();
    child_passes("child_memlock", "", &scratch.path(""));
}

#[test]
#[ignore = "run by its parent in a process of its own"]
fn child_memlock() {
    let Some((_, dir)) = role() else { return };
    let store = FileStore::new(IO_URING);
    let object = store.open(dir.join("file").to_str().unwrap(), OpenMode::Read).unwrap();
    limit(libc::RLIMIT_MEMLOCK, 64 << 10);
    become_nobody();
    let mut transport = UringTransport::new(UringConfig::default()).unwrap();
    let span = memory(1 << 20, 0);
    let error = transport.attach(Attach::Region(span.region())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceLimit, "{error}");
    assert!(error.remedy_text().contains("RLIMIT_MEMLOCK") && error.to_string().contains("1 MiB"), "{error}");
    assert_eq!(transport.registered(), (0, 0));
    let piece = io(IoKind::Read, &object, 0, 0, &[segment(&span, 0, 1 << 20)]);
    assert_eq!(run(&mut transport, &piece), Ok(1 << 20));
    assert!(bytes(&span, 0, 1 << 20) == pattern(1 << 20, 31));
    println!("child done");
}

#[test]
fn permission_and_descriptors_are_told_with_the_name_and_the_remedy() {
    if !is_root() {
        return println!("skip: only root can make what others may not read");
    }
    let scratch = scratch("denied");
    std::fs::write(scratch.path("file"), b"secret").unwrap();
    std::fs::set_permissions(scratch.path("file"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    child_passes("child_denied", "", &scratch.path(""));
}

#[test]
#[ignore = "run by its parent in a process of its own"]
fn child_denied() {
    let Some((_, dir)) = role() else { return };
    let store = FileStore::new(IO_URING);
    let secret = dir.join("file").to_str().unwrap().to_owned();
    limit(libc::RLIMIT_NOFILE, 32);
    let mut kept = Vec::new();
    let error = (0..32)
        .find_map(|_| match store.open(&secret, OpenMode::Read) {
            Ok(object) => {
                kept.push(object);
                None
            }
            Err(error) => Some(error),
        })
        .unwrap();
    assert_eq!((error.kind(), error.code()), (ErrorKind::ResourceLimit, libc::EMFILE), "{error}");
    assert!(error.to_string().contains(&secret) && error.remedy_text().contains("ulimit -n"), "{error}");
    kept.clear();
    become_nobody();
    let error = store.open(&secret, OpenMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().contains(&secret) && !error.remedy_text().is_empty(), "{error}");
    let error = store.create(dir.join("new").to_str().unwrap(), 10).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    println!("child done");
}

#[test]
fn a_forked_child_gets_an_error_and_the_parent_goes_on() {
    let scratch = scratch("forked");
    std::fs::write(scratch.path("file"), pattern(65536, 32)).unwrap();
    child_passes("child_forks", "", &scratch.path(""));
}

#[test]
#[ignore = "run by its parent in a process of its own"]
fn child_forks() {
    let Some((_, dir)) = role() else { return };
    for (name, mut transport) in transports() {
        let object = open(&*transport, &dir.join("file"), OpenMode::Read);
        assert!(read(&mut *transport, &object, 0, 0, 4096).is_ok(), "{name}");
        // SAFETY: the child does not touch locks of other threads: it allocates (the C library makes that safe), asks
        // the transport, and leaves by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let mut out = Vec::with_capacity(1);
            let poll = transport.poll(Wait::For { timeout: Duration::from_secs(1), min: 1 }, &mut out);
            let forked = |result: Result<(), Error>| result.is_err_and(|error| error.kind() == ErrorKind::Forked);
            let right = forked(poll.map(drop)) && forked(transport.ring());
            transport.cancel(sw_engine::Token::from_raw(1 << 32));
            drop(transport);
            // SAFETY: no pointers; ends the child at once.
            unsafe { libc::_exit(if right { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: the pointer names a live integer.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0, "{name}: the child ended by itself, and well");
        assert!(read(&mut *transport, &object, 0, 0, 65536).unwrap() == pattern(65536, 32), "{name}: the parent");
    }
    println!("child done");
}

#[test]
fn a_resumable_copy_is_free_again_while_a_forked_child_lives() {
    let scratch = scratch("forked-copy");
    let target = scratch.path("copy");
    let start = || FileStore::new(sw_uring::IO_URING).create_resumable(target.to_str().unwrap(), 4096, 1);
    let first = start().unwrap();
    // SAFETY: the child waits for its end, and for nothing else.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        loop {
            // SAFETY: no pointers.
            unsafe { libc::pause() };
        }
    }
    assert_eq!(start().err().unwrap().kind(), ErrorKind::InUse, "the parent still has it");
    drop(first);
    let again = start();
    // SAFETY: a child of ours that nobody waited for yet.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    // SAFETY: no status is asked for.
    assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
    assert!(again.is_ok(), "{:?}", again.err());
}

#[test]
fn a_killed_writer_leaves_the_old_file_or_the_new_one() {
    let scratch = scratch("killed");
    let target = scratch.path("target");
    let versions = [pattern(WRITTEN, 0), pattern(WRITTEN, 1)];
    std::fs::write(&target, &versions[0]).unwrap();
    let mut partial_seen = 0;
    for round in 0..12u64 {
        let mut writer = child("child_writer", "", &scratch.path("")).stdout(Stdio::null()).spawn().unwrap();
        // Spread over start-up, writing, flushing and renaming.
        std::thread::park_timeout(Duration::from_millis(20 + 17 * round));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let found = std::fs::read(&target).unwrap();
        assert!(versions.contains(&found), "round {round}: half a file of {} bytes", found.len());
        for entry in std::fs::read_dir(scratch.path("")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name != "target" {
                assert!(name.starts_with(".target.") && name.ends_with(".straightway-partial"), "{name}");
                std::fs::remove_file(scratch.path(&name)).unwrap();
                partial_seen += 1;
            }
        }
    }
    assert!(partial_seen > 0, "no writer was killed in the middle: the test proves nothing");
}

#[test]
#[ignore = "run by its parent, which kills it"]
fn child_writer() {
    let Some((_, dir)) = role() else { return };
    let store = FileStore::new(IO_URING);
    let mut transport = UringTransport::new(UringConfig::default()).unwrap();
    for version in (0..1000).map(|turn| turn % 2) {
        let intent = store.create(dir.join("target").to_str().unwrap(), WRITTEN as u64).unwrap();
        let data = pattern(WRITTEN, version);
        for (at, piece) in data.chunks(64 << 10).enumerate() {
            write(&mut transport, intent.object(), 0, (at * (64 << 10)) as u64, piece).unwrap();
        }
        intent.commit(sw_engine::seam::Names::Durable).unwrap();
    }
}
