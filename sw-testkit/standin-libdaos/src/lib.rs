//! A stand-in for DAOS's `libdaos.so.2` and `libdfs.so`: the functions that the product calls, with the names and structures of DAOS 2.6's
//! public headers, on directories: a pool is one below the root that a test names, a container one below it.
//!
//! It is loaded by the dynamic loader and called through C, as the real ones are. What it does like those, on purpose: libdaos gives minus a
//! number of `daos_errno.h`, libdfs an errno; a read with an event is done by whoever polls, and its memory is written then; an event that
//! runs is not finished (`DER_BUSY`); an object whose name went to another one is not there (`ENOENT`); a move inserts
//! the new name before it removes the old one, and a remove punches the object, whatever other name it has. Each test installs a copy of the file
//! ([`harness::install`]), which has settings and counts of its own.
//!
//! What it is not: DAOS. It proves that the product calls what the headers say, and what it does with the answers; not what the real libraries
//! answer, nor how fast.
// UNSAFETY: exported names, and reads and writes of the caller's memory by its address.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the library's")]

mod daos;
mod dfs;
pub mod harness;

use std::sync::atomic::{AtomicI64, Ordering};

/// What a test can set; the number of each is its place among the settings. Zero is how all begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Setting {
    /// What `daos_init` gives.
    InitCode,
    /// What `daos_pool_connect` gives.
    PoolCode,
    /// What `daos_cont_open` gives.
    ContainerCode,
    /// What `dfs_mount` gives.
    MountCode,
    /// Not 0: reads do not end until it is 0 again.
    Stall,
    /// Not 0: `daos_event_abort` ends what it is given, which that of DAOS 2.6 does not.
    Aborts,
    /// Not 0: what events of reads say.
    ReadError,
    /// What `dfs_read` gives.
    ReadCode,
    /// Bytes that a read moves at most, if above zero.
    BytesMax,
    /// Bytes that are claimed beside those that were moved.
    Claimed,
    /// What `daos_eq_poll` gives, if below zero.
    PollCode,
    /// Not 0: `dfs_lookup` waits until it is 0 again.
    StallLookup,
    /// What `dfs_write` gives.
    WriteCode,
    /// What `dfs_move` gives.
    MoveCode,
    /// Not 0: the file is written anew, with other bytes, before each read.
    ChangeBeforeRead,
    /// What `dfs_readdir` gives.
    ReaddirCode,
    /// What `dfs_move` gives when it has inserted the new name, and the old one is still there.
    MoveHalfCode,
    /// Not 0: `dfs_move` waits when it has inserted the new name until it is 0 again.
    StallMove,
    /// What `dfs_remove` gives, after it has removed.
    RemoveCode,
    /// What `daos_pool_connect` waits for if the pool is called `silent`: until it is 0 again.
    StallPool,
    /// Not 0: the name that `dfs_lookup` refuses is `closed` (`EACCES`).
    RefuseClosed,
    /// Microseconds that each `dfs_lookup` takes.
    LookupUs,
}

/// What a test can look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Count {
    /// `daos_init`s without their `daos_fini`.
    Inits,
    /// Queues that are open.
    Queues,
    /// Pools, containers and mounts that are open.
    Mounts,
    /// Files and directories that are open.
    Nodes,
    /// Events that run.
    Running,
    /// The most of them that ran at a time.
    RunningMost,
    /// Reads that were begun.
    Reads,
    /// Events that were asked to end.
    Aborts,
    /// Calls of `dfs_ostat`.
    Stats,
    /// Calls of `dfs_readdir`.
    Pages,
    /// Connections to pools for writing.
    Writers,
    /// Calls of `daos_eq_poll`.
    Polls,
}

static SETTINGS: [AtomicI64; 22] = [const { AtomicI64::new(0) }; 22];
static COUNTS: [AtomicI64; 12] = [const { AtomicI64::new(0) }; 12];

fn setting(which: Setting) -> i32 {
    let value = SETTINGS.get(which as usize).map_or(0, |value| value.load(Ordering::SeqCst));
    i32::try_from(value).unwrap_or(0)
}

fn count(which: Count, by: i64) -> i64 {
    COUNTS.get(which as usize).map_or(0, |count| count.fetch_add(by, Ordering::SeqCst) + by)
}

/// Sets something, by its place.
#[unsafe(no_mangle)]
pub extern "C" fn standin_daos_set(which: i32, value: i64) {
    if let Some(setting) = usize::try_from(which).ok().and_then(|place| SETTINGS.get(place)) {
        setting.store(value, Ordering::SeqCst);
    }
}

/// Looks at a count, by its place.
#[unsafe(no_mangle)]
pub extern "C" fn standin_daos_count(which: i32) -> i64 {
    let count = usize::try_from(which).ok().and_then(|place| COUNTS.get(place));
    count.map_or(-1, |count| count.load(Ordering::SeqCst))
}
