//! A forked child gets an error, at once, and the parent's engine is none the worse.
// UNSAFETY: fork, waitpid and _exit.
#![expect(unsafe_code, reason = "forks")]

use std::path::PathBuf;

use straightway::{Destination, Engine, ErrorKind, GpuUse, Uri};

#[test]
fn a_forked_child_is_told_and_the_parent_goes_on() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fork-{}", std::process::id()));
    std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    let uri: Uri = path.to_str().unwrap().parse().unwrap();
    let engine = Engine::builder().gpu(GpuUse::Off).build().unwrap();
    let object = engine.open(&uri).unwrap();
    let memory = || engine.allocate(Destination::Host, 1 << 20, 0).unwrap();
    // Rings and threads exist before the fork.
    engine.read(&object, 0, memory()).wait().ok().unwrap();
    engine.read(&object, 0, memory()).start().wait().ok().unwrap();
    let spare = memory();
    // In flight at the fork: the child has no reactor that could answer.
    let running = engine.read(&object, 0, memory()).start();

    // SAFETY: the child calls into code that only reads and allocates, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let opened = engine.open(&uri).map(|_| ()).map_err(|error| error.kind());
        let read = engine.read(&object, 0, spare).wait().result.map_err(|error| error.kind());
        let inherited = running.wait().result.map_err(|error| error.kind());
        let refused = opened == Err(ErrorKind::Forked) && read == Err(ErrorKind::Forked);
        let refused = refused && matches!(inherited, Ok(_) | Err(ErrorKind::Forked));
        let own = Engine::builder().gpu(GpuUse::Off).build().and_then(|own| own.open(&uri).map(|_| ()));
        // The parent's engine is dropped in no child: `_exit` runs no destructor; `close` must not touch the parent's rings.
        let closed = engine.close().is_ok();
        // SAFETY: ends the child without the parent's handlers.
        unsafe { libc::_exit(if refused && own.is_ok() && closed { 0 } else { 1 }) }
    }
    let mut status = -1;
    // SAFETY: a child of ours and a writable status.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    running.wait().ok().unwrap();
    engine.read(&object, 0, spare).wait().ok().unwrap();
    engine.close().unwrap();
    std::fs::remove_file(&path).unwrap();
}
