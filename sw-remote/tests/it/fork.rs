//! A forked child leaves what its parent's threads hold as it is.
// UNSAFETY: fork, waitpid and _exit.
#![expect(unsafe_code, reason = "forks")]

use sw_engine::{
    ErrorKind,
    seam::{Names, OpenMode, Store},
};
use sw_testkit::{
    alone,
    s3::{Server, Wire},
};

use crate::client::{config, read, stores as stores_of, write};

/// Does something in a child, which leaves by `_exit` then, and is ended after 20 s. Whether it says that all is well.
pub fn in_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child does what it is told, and leaves by _exit; an alarm ends one that hangs.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: it has no precondition.
        unsafe { libc::alarm(20) };
        let is_well = work();
        // SAFETY: ends the child without the parent's handlers.
        unsafe { libc::_exit(if is_well { 0 } else { 1 }) }
    }
    let mut status = -1;
    // SAFETY: a child of ours and a writable status.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    (waited, status) == (child, 0)
}

#[test]
fn a_child_that_drops_everything_ends_and_the_parent_goes_on() {
    // Threads of other tests may hold what a child needs, such as the allocator's locks.
    if !alone::in_own_process("fork::a_child_that_drops_everything_ends_and_the_parent_goes_on").unwrap() {
        return;
    }
    let server = Server::start();
    let stores = stores_of(config(server.environment()));
    std::fs::write(server.path("object"), [7; 1000]).unwrap();
    let object = stores.open(&Server::uri("object"), OpenMode::Read).unwrap();
    for round in 0..20u64 {
        // Requests are under way, and connections are idle.
        server.set(if round % 2 == 0 { Wire::Good } else { Wire::HoldAfter(100) });
        let intent = stores.create(&Server::uri("new"), 6 << 20).unwrap();
        server.set(Wire::Good);
        write(&stores, intent.object(), 0, &vec![1; 5 << 20]).unwrap();
        let own = stores_of(config(server.environment()));
        let opened = own.open(&Server::uri("object"), OpenMode::Read).unwrap();
        let is_well = in_child(|| {
            let refused = own.open(&Server::uri("object"), OpenMode::Read).map(drop).map_err(|error| error.kind());
            drop((opened, own));
            refused == Err(ErrorKind::Forked)
        });
        assert!(is_well, "round {round}");
        intent.commit(Names::Durable).unwrap();
        assert_eq!(read(&stores, &object).unwrap(), [7; 1000]);
    }
}
