//! A file in the making, as its writer holds it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use sw_engine::{
    Error, ErrorKind, Object, Verb, WriteOutcome,
    seam::{Names, WriteIntent},
};

use super::write::NfsWrite;
use crate::Runtime;

/// Longest that a write which is given up waits until its temporary name is gone; where that takes longer, it goes on in the background.
const ABANDON_WAIT: Duration = Duration::from_secs(10);
/// Calls that a commit makes one after the other, and what it may have to write again.
const CALLS: u32 = 10;

pub(super) struct Intent {
    object: Arc<Object>,
    write: Arc<NfsWrite>,
    runtime: Runtime,
    /// Longest that one call takes.
    limit: Duration,
    is_done: bool,
}

impl Intent {
    pub(super) fn new(object: Arc<Object>, write: Arc<NfsWrite>, runtime: Runtime, limit: Duration) -> Self {
        Self { object, write, runtime, limit, is_done: false }
    }
}

impl WriteIntent for Intent {
    fn object(&self) -> &Arc<Object> {
        &self.object
    }

    fn cut(&self, len: u64) -> Result<(), Error> {
        self.write.len.store(len, Ordering::Release);
        Ok(())
    }

    /// The name is durable with it, whatever is asked: a server answers a RENAME when it has it in stable storage (RFC 1813 §1.2, §4.8).
    fn commit(mut self: Box<Self>, _names: Names) -> Result<(), Error> {
        let write = self.write.clone();
        let limit = self.limit.saturating_mul(CALLS);
        let name = write.name.clone();
        let done = self.runtime.wait((Verb::Create, &name), limit, async move { write.finish().await });
        self.is_done = done.is_ok();
        done.map_err(|error| match (error.outcome(), error.kind()) {
            (Some(_), _) => error,
            (None, ErrorKind::Forked) => error.with_outcome(WriteOutcome::NotApplied),
            // It was given up, or stopped, somewhere on its way.
            (None, _) => error.with_outcome(WriteOutcome::Unknown),
        })
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        // In a child of the process nothing of this is touched.
        if !self.is_done && !self.runtime.is_in_child() {
            let write = self.write.clone();
            self.runtime.linger(self.limit.min(ABANDON_WAIT), async move { write.abandon().await });
        }
    }
}
