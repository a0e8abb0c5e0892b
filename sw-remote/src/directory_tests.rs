//! A child of the process, and what its parent's threads hold.
// UNSAFETY: fork, waitpid and _exit.
#![expect(unsafe_code, reason = "forks")]

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{Error, seam::IoKind};

use super::*;
use crate::land::Landing;

struct Nothing;

impl Remote for Nothing {
    fn read<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn write<'a>(&'a self, _offset: u64, _landing: &'a mut Landing) -> BoxFuture<'a, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn unchanged(&self) -> BoxFuture<'_, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn flush(&self, _kind: IoKind) -> BoxFuture<'_, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }
}

#[test]
fn a_child_that_drops_an_object_waits_for_no_thread_of_its_parent() {
    let directory = Directory::new();
    let kept = directory.add(Arc::new(Nothing));
    // As another thread would have it at the fork, which the child has not.
    let held = directory.0.open.write().unwrap();
    // SAFETY: the child drops one thing and leaves by _exit; an alarm ends one that hangs.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: it has no precondition.
        unsafe { libc::alarm(10) };
        drop(kept);
        // SAFETY: ends the child without the parent's handlers.
        unsafe { libc::_exit(0) }
    }
    let mut status = -1;
    // SAFETY: a child of ours and a writable status.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    drop(held);
    assert!(directory.find(kept.handle).is_some());
}
