//! A panic inside the engine's own threads is contained: the process lives, the engine says that it is poisoned, and
//! memory that a device may write is not freed under it.

use std::{
    future::Future,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use straightway::{Destination, Engine, ErrorKind, GpuUse, Uri};

/// Foreign code that a reactor must call, and that panics there.
struct Bomb;

impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        panic!("a waker of the caller's panics");
    }
}

#[test]
fn a_panic_in_a_reactor_poisons_the_engine_and_nothing_else() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("panic-{}", std::process::id()));
    std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
    let uri: Uri = path.to_str().unwrap().parse().unwrap();
    let engine = Engine::builder().gpu(GpuUse::Off).reactors(1).build().unwrap();
    let object = engine.open(&uri).unwrap();
    let memory = || engine.allocate(Destination::Host, 1 << 20, 0).unwrap();

    let bomb = Waker::from(Arc::new(Bomb));
    let mut pending = pin!(engine.read(&object, 0, memory()).start());
    let first = pending.as_mut().poll(&mut Context::from_waker(&bomb));
    if first.is_ready() {
        println!("skipped: the read was over before a waker could be left with it");
        return;
    }
    // In line, so that it does not depend on the reactor that died.
    let poisoned = (0..20_000).find_map(|_| engine.flush(&object).wait().result.err());
    let poisoned = poisoned.expect("the engine never noticed");
    assert_eq!(poisoned.kind(), ErrorKind::Poisoned);
    assert!(!poisoned.remedy_text().is_empty());
    // The answer that was left before the panic is still there, and nothing hangs.
    let quiet = Waker::noop();
    assert!(matches!(pending.as_mut().poll(&mut Context::from_waker(quiet)), Poll::Ready(done) if done.result.is_ok()));
    let other = Engine::builder().gpu(GpuUse::Off).build().unwrap();
    let object = other.open(&uri).unwrap();
    let memory = other.allocate(Destination::Host, 1 << 20, 0).unwrap();
    assert_eq!(other.read(&object, 0, memory).wait().result.unwrap(), 1 << 20);
    engine.close().unwrap();
    std::fs::remove_file(&path).unwrap();
}
