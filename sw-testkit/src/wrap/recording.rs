//! Keeps what was asked and answered, for tests that look at order and counts.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sw_engine::{
    Error, Token,
    seam::{Attach, Fence, Io, IoDone, Submit, Transport, TransportCaps, Wait, Wake},
};

/// One call and its answer.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// An I/O and whether it was taken.
    Submit(Io, Submit),
    /// A doorbell.
    Ring,
    /// An end that a poll gave.
    Done(IoDone),
    /// A cancel.
    Cancel(Token),
    /// A fence and its answer.
    Fence(Fence),
}

/// A transport that records up to a stated number of events; later ones are counted, not kept.
pub struct Recording<T> {
    inner: T,
    log: Arc<Mutex<Vec<Event>>>,
    limit: usize,
}

impl<T: Transport> Recording<T> {
    /// Around `inner`; at most `limit` events are kept. The log stays readable after the transport was given away.
    pub fn new(inner: T, limit: usize) -> (Self, Arc<Mutex<Vec<Event>>>) {
        let log = Arc::new(Mutex::new(Vec::with_capacity(limit.min(1 << 16))));
        (Self { inner, log: Arc::clone(&log), limit }, log)
    }

    fn note(&self, event: Event) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() < self.limit {
            log.push(event);
        }
    }
}

impl<T: Transport> Transport for Recording<T> {
    fn caps(&self) -> TransportCaps {
        self.inner.caps()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        self.inner.attach(hint)
    }

    fn submit(&mut self, io: &Io) -> Submit {
        let taken = self.inner.submit(io);
        self.note(Event::Submit(*io, taken));
        taken
    }

    fn ring(&mut self) -> Result<(), Error> {
        self.note(Event::Ring);
        self.inner.ring()
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        let before = out.len();
        let polled = self.inner.poll(wait, out);
        out.get(before..).unwrap_or_default().iter().for_each(|done| self.note(Event::Done(*done)));
        polled
    }

    fn cancel(&mut self, token: Token) {
        self.note(Event::Cancel(token));
        self.inner.cancel(token);
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        let before = out.len();
        let fence = self.inner.fence(timeout, out);
        out.get(before..).unwrap_or_default().iter().for_each(|done| self.note(Event::Done(*done)));
        self.note(Event::Fence(fence));
        fence
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }
}
