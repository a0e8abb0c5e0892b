//! An early end for work that takes long.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use straightway::{Error, ErrorKind, Verb};

/// Ends loads and saves early, from any thread. Clones are one.
///
/// Work looks at it between its reads or writes: those in flight are waited for, and then it fails with `Cancelled`.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for the end, for good.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked for it.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// # Errors
    /// `Cancelled`.
    pub(crate) fn check(&self, verb: Verb) -> Result<(), Error> {
        match self.is_cancelled() {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Cancelled, verb).detail("it was cancelled").remedy("start it again")),
        }
    }
}
