//! What the owners of queues leave for whoever does the slow work of a controller, and where they find what came of it.
//!
//! ```text
//!   lane ── order, discarded pair, freed identifier, wanted reset ──► Desk ──► Controller::work (may take minutes)
//!    ▲                                                                             │
//!    └──────────────── Ticket: a pair or why there is none ◄── wake ───────────────┘
//! ```
//!
//! Nobody holds a lock of the desk for longer than a push or a pop, so a lane never waits here. There are at most as many
//! orders as lanes have places for this controller, and as many discarded pairs as the controller has pairs.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sw_engine::{Error, seam::Wake};

use crate::{
    bus::Bus,
    controller::{Controller, Pair, PairRequest},
    queue::QueuePair,
};

/// A queue pair that a lane wants.
pub(super) struct Order<B: Bus> {
    pub(super) request: PairRequest,
    /// The identifier that it had before, 0 for none.
    pub(super) wish: u16,
    reply: Arc<Reply<B>>,
}

/// A queue pair that nobody uses any more and that the controller may still know; no command of it is in flight.
pub(super) struct Discarded<B: Bus> {
    pub(super) queue: QueuePair<B>,
    pub(super) epoch: u64,
}

/// The answer to an order.
enum Answer<B: Bus> {
    /// Not there yet.
    Open,
    Given(Box<Result<Pair<B>, Error>>),
    /// Nobody wants it any more.
    Unwanted,
}

struct Reply<B: Bus> {
    /// There is an answer: one load for a lane that looks.
    is_given: AtomicBool,
    answer: Mutex<Answer<B>>,
    wake: Arc<dyn Wake>,
}

impl<B: Bus> Reply<B> {
    fn swap(&self, next: Answer<B>) -> Answer<B> {
        core::mem::replace(&mut self.answer.lock().unwrap_or_else(PoisonError::into_inner), next)
    }
}

impl<B: Bus> Order<B> {
    /// What wakes its owner.
    pub(super) fn wake(&self) -> Arc<dyn Wake> {
        self.reply.wake.clone()
    }

    pub(super) fn is_wanted(&self) -> bool {
        !matches!(*self.reply.answer.lock().unwrap_or_else(PoisonError::into_inner), Answer::Unwanted)
    }

    /// Answers. Gives a pair back that nobody wants any more.
    pub(super) fn answer(self, result: Result<Pair<B>, Error>) -> Option<Pair<B>> {
        let mut answer = self.reply.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*answer, Answer::Unwanted) {
            return result.ok();
        }
        *answer = Answer::Given(Box::new(result));
        drop(answer);
        self.reply.is_given.store(true, Ordering::Release);
        None
    }
}

/// An order, as the one who made it holds it. Dropped, the order is called off; a pair that is there already is discarded.
pub(crate) struct Ticket<B: Bus> {
    reply: Arc<Reply<B>>,
    controller: Arc<Controller<B>>,
}

impl<B: Bus> Ticket<B> {
    /// The answer, if it is there; it is given once.
    pub(crate) fn take(&self) -> Option<Result<Pair<B>, Error>> {
        if !self.is_answered() {
            return None;
        }
        match self.reply.swap(Answer::Unwanted) {
            Answer::Given(result) => Some(*result),
            Answer::Open | Answer::Unwanted => None,
        }
    }

    /// Whether there is an answer. One load.
    pub(crate) fn is_answered(&self) -> bool {
        self.reply.is_given.load(Ordering::Acquire)
    }

    /// Whether the answer is there, and no pair.
    pub(crate) fn is_refused(&self) -> bool {
        let answer = || self.reply.answer.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_answered() && matches!(&*answer(), Answer::Given(result) if result.is_err())
    }

    /// Whose queue pair it is.
    pub(crate) fn controller(&self) -> &Arc<Controller<B>> {
        &self.controller
    }
}

impl<B: Bus> Drop for Ticket<B> {
    fn drop(&mut self) {
        if let Answer::Given(result) = self.reply.swap(Answer::Unwanted)
            && let Ok(pair) = *result
        {
            self.controller.discard(pair.queue, pair.epoch);
        }
    }
}

/// The epoch past all others.
const CLOSING: u64 = u64::MAX;

/// Whether somebody lacks a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    Yes,
    No,
}

/// What lies on the desk.
struct Papers<B: Bus> {
    orders: VecDeque<Order<B>>,
    discarded: Vec<Discarded<B>>,
    /// Identifiers whose owners write no doorbell of them any more.
    freed: Vec<u16>,
}

/// See the module documentation.
pub(super) struct Desk<B: Bus> {
    /// Something was left since the last look.
    posted: AtomicBool,
    /// The newest epoch whose end somebody wants, or [`CLOSING`]; shared with the admin queue, which gives up a wait for it.
    pub(super) reset: Arc<AtomicU64>,
    /// An order was refused because all queue pairs were out, and none came back since.
    short: AtomicBool,
    /// Events came, or namespaces are to be looked at.
    service: AtomicBool,
    papers: Mutex<Papers<B>>,
    /// Who is woken for what was left; `None`: whoever leaves something works on it.
    attendant: Mutex<Option<Arc<dyn Wake>>>,
}

impl<B: Bus> Desk<B> {
    pub(super) fn new(reset: Arc<AtomicU64>) -> Self {
        Self {
            posted: AtomicBool::new(false),
            reset,
            short: AtomicBool::new(false),
            service: AtomicBool::new(false),
            papers: Mutex::new(Papers { orders: VecDeque::new(), discarded: Vec::new(), freed: Vec::new() }),
            attendant: Mutex::new(None),
        }
    }

    fn papers(&self) -> MutexGuard<'_, Papers<B>> {
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn attend(&self, attendant: Option<Arc<dyn Wake>>) {
        *self.attendant.lock().unwrap_or_else(PoisonError::into_inner) = attendant;
    }

    /// Tells that something was left. `false`: nobody attends, the caller has to work.
    pub(super) fn post(&self) -> bool {
        let was_posted = self.posted.swap(true, Ordering::AcqRel);
        let attendant = self.attendant.lock().unwrap_or_else(PoisonError::into_inner);
        match &*attendant {
            Some(wake) if !was_posted => wake.wake(),
            Some(_) => {}
            None => return false,
        }
        true
    }

    pub(super) fn is_attended(&self) -> bool {
        self.attendant.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(super) fn is_posted(&self) -> bool {
        self.posted.load(Ordering::Acquire)
    }

    /// Before a look at everything: what is left from now on is told again.
    pub(super) fn begin(&self) {
        // It also reads: what was left before a call of `post` that found it posted is seen by the looks that follow.
        self.posted.swap(false, Ordering::AcqRel);
    }

    /// What could not be done yet is to be looked at again.
    pub(super) fn repeat(&self) {
        self.posted.store(true, Ordering::Release);
    }

    pub(super) fn order(
        &self,
        request: PairRequest,
        wish: u16,
        wake: Arc<dyn Wake>,
        for_: &Arc<Controller<B>>,
    ) -> Ticket<B> {
        let reply = Arc::new(Reply { is_given: AtomicBool::new(false), answer: Mutex::new(Answer::Open), wake });
        self.papers().orders.push_back(Order { request, wish, reply: reply.clone() });
        Ticket { reply, controller: for_.clone() }
    }

    pub(super) fn next_order(&self) -> Option<Order<B>> {
        self.papers().orders.pop_front()
    }

    /// To be the next one again.
    pub(super) fn put_back(&self, order: Order<B>) {
        self.papers().orders.push_front(order);
    }

    pub(super) fn discard(&self, discarded: Discarded<B>) {
        self.papers().discarded.push(discarded);
    }

    pub(super) fn take_discarded(&self) -> Vec<Discarded<B>> {
        core::mem::take(&mut self.papers().discarded)
    }

    pub(super) fn free(&self, qid: u16) {
        self.papers().freed.push(qid);
    }

    pub(super) fn take_freed(&self) -> Vec<u16> {
        core::mem::take(&mut self.papers().freed)
    }

    /// Somebody wants the end of `epoch`.
    pub(super) fn want_reset(&self, epoch: u64) {
        self.reset.fetch_max(epoch, Ordering::AcqRel);
    }

    pub(super) fn wants_reset(&self, epoch: u64) -> bool {
        let newest = self.reset.load(Ordering::Acquire);
        newest >= epoch && newest != CLOSING
    }

    /// The controller is to be shut down: nobody waits for an answer of its admin queue any more, in whichever epoch.
    pub(super) fn close(&self) {
        self.reset.store(CLOSING, Ordering::Release);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.reset.load(Ordering::Acquire) == CLOSING
    }

    /// Whoever shuts it down has the admin queue now, and waits for its answers.
    pub(super) fn hold(&self) {
        self.reset.store(0, Ordering::Release);
    }

    pub(super) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    pub(super) fn set_short(&self, short: Short) {
        self.short.store(short == Short::Yes, Ordering::Relaxed);
    }

    pub(super) fn want_service(&self) {
        self.service.store(true, Ordering::Release);
    }

    pub(super) fn take_service(&self) -> bool {
        self.service.swap(false, Ordering::AcqRel)
    }

    /// Never frees rings that a controller may still reach, nor what a forked child has of its parent's.
    pub(super) fn leak(&self) {
        self.take_discarded().into_iter().for_each(|discarded| discarded.queue.leak());
    }
}
