//! A file in the making, as its writer holds it.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use sw_engine::{Error, ErrorKind, WriteOutcome, seam::Names};

use super::write::NfsWrite;
use crate::intent::Making;

/// Longest that a write which is given up waits until its temporary name is gone.
const ABANDON_WAIT: Duration = Duration::from_secs(10);
/// Calls that a commit makes one after the other, and what it may have to write again.
const CALLS: u32 = 10;

impl Making for NfsWrite {
    fn cut(&self, len: u64) -> Result<(), Error> {
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn begin_commit(&self) -> Result<Duration, Error> {
        Ok(self.limit().saturating_mul(CALLS))
    }

    /// The name is durable with it, whatever is asked: a server answers a RENAME when it has it in stable storage (RFC 1813 §1.2, §4.8).
    fn finish(&self, _names: Names) -> BoxFuture<'_, Result<(), Error>> {
        self.finish().boxed()
    }

    fn outcome(&self, error: &Error) -> Option<WriteOutcome> {
        let is_begun = error.kind() != ErrorKind::Forked;
        Some(if is_begun { WriteOutcome::Unknown } else { WriteOutcome::NotApplied })
    }

    fn leaves(&self) -> Option<Duration> {
        Some(self.limit().min(ABANDON_WAIT))
    }

    fn abandon(&self) -> BoxFuture<'_, ()> {
        self.abandon().boxed()
    }
}
