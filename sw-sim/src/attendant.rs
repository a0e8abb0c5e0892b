//! A second thread of the modelled process: it runs in turns with the world's own, so that one seed stays one history.
//!
//! ```text
//!   world:      … poll ─► wait, pause, look ─┐ due │            ┌─► … goes on
//!   attendant:                               └─► work … pause ──┘
//! ```
//!
//! Exactly one of the two runs at any time; the other one sleeps on the baton. The attendant gives the baton back whenever it
//! pauses, and gets it again in a wait of the world once its pause is over. What it holds meanwhile, such as the lock of an
//! admin queue, it holds: that is what these turns are for.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use crate::hub::{Hub, WakeFlag};

/// The attendant waits for a wake-up and for no time.
const NEVER: u64 = u64::MAX;
/// Virtual time that its last work may take, when it is dismissed: several resets, each with its limits.
const LAST_WORK_NS: u64 = 60_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    World,
    Attendant,
    /// The attendant is gone.
    Over,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Baton {
    turn: Mutex<Turn>,
    passed: Condvar,
    /// When the attendant's pause is over.
    due: AtomicU64,
    /// It was woken.
    pub(crate) bell: Arc<WakeFlag>,
}

impl Default for Baton {
    fn default() -> Self {
        Self { turn: Mutex::new(Turn::Over), passed: Condvar::new(), due: AtomicU64::new(NEVER), bell: Arc::default() }
    }
}

impl Baton {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over and sleeps until the baton comes back, or the other side is over.
    fn pass(&self, from: Turn, to: Turn) -> Turn {
        let mut turn = self.turn();
        *turn = to;
        self.passed.notify_all();
        while *turn == to && to != Turn::Over {
            turn = self.passed.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        debug_assert!(*turn == from || *turn == Turn::Over);
        *turn
    }

    /// Whether the caller is the attendant.
    pub(crate) fn is_attendants(&self) -> bool {
        *self.turn() == Turn::Attendant
    }

    /// The next moment at which the attendant has something to do, if that comes before `until`.
    pub(crate) fn due_before(&self, until: u64) -> Option<u64> {
        let due = self.due.load(Ordering::Relaxed);
        (due < until && *self.turn() == Turn::World).then_some(due)
    }

    /// The world's side: the attendant runs if it was woken or its pause is over.
    pub(crate) fn let_it_run(&self, now: u64) {
        let rung = self.due.load(Ordering::Relaxed) == NEVER && self.bell.0.load(Ordering::Relaxed);
        if (rung || self.due.load(Ordering::Relaxed) <= now) && *self.turn() == Turn::World {
            self.pass(Turn::World, Turn::Attendant);
        }
    }

    /// The attendant's side: the world goes on until `due`.
    pub(crate) fn pause_until(&self, due: u64) -> bool {
        self.due.store(due, Ordering::Relaxed);
        self.pass(Turn::Attendant, Turn::World) == Turn::Attendant
    }
}

/// The attendant's thread, from the world's side.
pub(crate) struct Attendant {
    hub: Hub,
    thread: Option<JoinHandle<()>>,
    ends: Arc<WakeFlag>,
}

/// Ends the turns, also if the thread panics: the world would wait for ever.
struct Over(Hub);

impl Drop for Over {
    fn drop(&mut self) {
        let baton = self.0.baton();
        *baton.turn() = Turn::Over;
        baton.passed.notify_all();
    }
}

impl Attendant {
    /// Starts a thread that does `work` whenever the bell of the hub's baton was rung.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub(crate) fn start(hub: &Hub, work: impl Fn() + Send + 'static) -> Result<Self, String> {
        let ends = Arc::new(WakeFlag::default());
        let (own, ending) = (hub.clone(), Arc::clone(&ends));
        *hub.baton().turn() = Turn::World;
        let run = move || {
            let over = Over(own.clone());
            let baton = own.baton();
            {
                let mut turn = baton.turn();
                while *turn != Turn::Attendant {
                    turn = baton.passed.wait(turn).unwrap_or_else(PoisonError::into_inner);
                }
            }
            while !ending.0.load(Ordering::Relaxed) {
                if baton.bell.0.swap(false, Ordering::Relaxed) {
                    work();
                    continue;
                }
                baton.pause_until(NEVER);
            }
            drop(over);
        };
        let thread = std::thread::Builder::new().name("sim attendant".to_owned()).spawn(run);
        Ok(Self { hub: hub.clone(), thread: Some(thread.map_err(|error| error.to_string())?), ends })
    }

    /// Lets it end the work that it is at, and ends it.
    pub(crate) fn dismiss(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let baton = self.hub.baton();
        let until = self.hub.now().0 + LAST_WORK_NS;
        while let Some(due) = baton.due_before(NEVER) {
            self.hub.run_until(sw_engine::Time(due.max(self.hub.now().0)));
            if self.hub.now().0 > until {
                self.hub
                    .lock()
                    .violate("liveness", format!("the attendant's last work took more than {LAST_WORK_NS} ns"));
                // It is left where it is, with all that it holds.
                return;
            }
            baton.let_it_run(self.hub.now().0);
        }
        self.ends.0.store(true, Ordering::Relaxed);
        baton.bell.0.store(true, Ordering::Relaxed);
        baton.let_it_run(self.hub.now().0);
        if thread.join().is_err() {
            self.hub.lock().violate("panic", "the attendant panicked".to_owned());
        }
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        self.dismiss();
    }
}
