//! What is in the making, as its writer holds it: committed once, or given up.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use sw_engine::{
    Error, Object, Verb, WriteOutcome,
    seam::{Names, WriteIntent},
};

use crate::Runtime;

/// An object in the making.
pub(crate) trait Making: Send + Sync + 'static {
    /// As [`WriteIntent::cut`].
    fn cut(&self, len: u64) -> Result<(), Error>;

    /// A commit begins: the longest that [`Making::finish`] takes.
    fn begin_commit(&self) -> Result<Duration, Error>;

    /// Makes it durable and puts it in place.
    fn finish(&self, names: Names) -> BoxFuture<'_, Result<(), Error>>;

    /// What came of a commit that ended by an error which does not say so, as where it was given up somewhere on its way.
    fn outcome(&self, error: &Error) -> Option<WriteOutcome>;

    /// Longest that [`Making::abandon`] is waited for, as the process may be about to end; it goes on in the background then. `None`: nothing is
    /// there that could be left behind.
    fn leaves(&self) -> Option<Duration>;

    /// Removes what is there of it.
    fn abandon(&self) -> BoxFuture<'_, ()>;
}

/// It, as its writer holds it.
pub(crate) struct Intent<M: Making> {
    object: Arc<Object>,
    making: Arc<M>,
    runtime: Runtime,
    is_done: bool,
}

impl<M: Making> Intent<M> {
    pub(crate) fn new(object: Arc<Object>, making: Arc<M>, runtime: Runtime) -> Self {
        Self { object, making, runtime, is_done: false }
    }
}

impl<M: Making> WriteIntent for Intent<M> {
    fn object(&self) -> &Arc<Object> {
        &self.object
    }

    fn cut(&self, len: u64) -> Result<(), Error> {
        self.making.cut(len)
    }

    fn commit(mut self: Box<Self>, names: Names) -> Result<(), Error> {
        let limit = self.making.begin_commit()?;
        let making = self.making.clone();
        let finish = async move { making.finish(names).await };
        let done = self.runtime.wait((Verb::Create, &self.object.name), limit, finish);
        self.is_done = done.is_ok();
        done.map_err(|error| match error.outcome() {
            Some(_) => error,
            None => match self.making.outcome(&error) {
                Some(outcome) => error.with_outcome(outcome),
                None => error,
            },
        })
    }
}

impl<M: Making> Drop for Intent<M> {
    fn drop(&mut self) {
        // In a child of the process nothing of this is touched.
        if self.is_done || self.runtime.is_in_child() {
            return;
        }
        if let Some(limit) = self.making.leaves() {
            let making = self.making.clone();
            self.runtime.linger(limit, async move { making.abandon().await });
        }
    }
}
