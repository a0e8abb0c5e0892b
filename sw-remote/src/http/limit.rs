//! How many requests are under way at a time: more while it goes well, half of it when a server says that it is too much (additive
//! increase, multiplicative decrease, as TCP's windows; Chiu and Jain, 1989).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::progress::{Progress, Silent};

/// The places of an engine's requests.
#[derive(Debug)]
pub(super) struct Limit {
    places: Arc<Semaphore>,
    window: Mutex<Window>,
    /// What all requests move.
    progress: Progress,
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    progress: Progress,
}

impl Place {
    /// What its request moves.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that waits for a place comes nearer.
        self.progress.moved();
    }
}

#[derive(Debug)]
struct Window {
    /// Places that there are, those that are taken included.
    now: usize,
    max: usize,
    /// Answers that went well since the window last changed.
    well: usize,
    /// Places that are to go as soon as they are given back.
    owed: usize,
}

impl Window {
    /// One place more for each window of answers that went well. Gives whether there is one more.
    fn went_well(&mut self) -> bool {
        self.well += 1;
        if self.well < self.now || self.now == self.max {
            return false;
        }
        (self.now, self.well) = (self.now + 1, 0);
        // One that was to go stays instead.
        let paid = self.owed > 0;
        self.owed -= usize::from(paid);
        !paid
    }

    /// Half of it, but one at least, stays. Gives how many are to go.
    fn was_too_much(&mut self) -> usize {
        // A burst of refusals is one: what comes of requests that were under way when the window was halved says nothing new.
        if self.well == 0 && self.now < self.max {
            return 0;
        }
        let fewer = self.now / 2;
        (self.now, self.well) = (self.now - fewer, 0);
        fewer
    }
}

impl Limit {
    pub(super) fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        let window = Window { now: max, max, well: 0, owed: 0 };
        Self { places: Arc::new(Semaphore::new(max)), window: Mutex::new(window), progress: Progress::default() }
    }

    /// Waits for a place as long as the requests that have one move something.
    ///
    /// # Errors
    /// [`Silent`]: none of them did for `silence`.
    pub(super) async fn enter(&self, silence: Duration) -> Result<Place, Silent> {
        loop {
            let permit = self.progress.watch(silence, self.places.clone().acquire_owned()).await?;
            // Nobody closes it.
            let Ok(permit) = permit else { return Err(Silent(silence)) };
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            if window.owed == 0 {
                return Ok(Place { _permit: permit, progress: self.progress.part() });
            }
            window.owed -= 1;
            permit.forget();
        }
    }

    pub(super) fn went_well(&self) {
        if self.window.lock().unwrap_or_else(PoisonError::into_inner).went_well() {
            self.places.add_permits(1);
        }
    }

    pub(super) fn was_too_much(&self) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let fewer = window.was_too_much();
        // Those that are free go now, the others when they are given back.
        window.owed += fewer - self.places.forget_permits(fewer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(20);

    fn count(limit: &Limit) -> usize {
        limit.places.available_permits()
    }

    #[test]
    fn half_of_the_places_go_at_a_refusal_and_come_back_one_by_one() {
        let limit = Limit::new(16);
        limit.was_too_much();
        assert_eq!(count(&limit), 8);
        // What else was under way is refused too; that says nothing new.
        limit.was_too_much();
        assert_eq!(count(&limit), 8);
        (0..8).for_each(|_| limit.went_well());
        assert_eq!(count(&limit), 9);
        limit.was_too_much();
        limit.was_too_much();
        assert_eq!(count(&limit), 9, "no answer went well since the window changed");
        limit.went_well();
        limit.was_too_much();
        assert_eq!(count(&limit), 5);
        (0..1000).for_each(|_| limit.went_well());
        assert_eq!(count(&limit), 16);
    }

    #[test]
    fn there_is_always_one_place() {
        let limit = Limit::new(4);
        for _ in 0..10 {
            limit.went_well();
            limit.was_too_much();
        }
        assert_eq!(count(&limit), 1);
    }

    #[test]
    fn a_place_that_is_taken_goes_when_it_is_given_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let limit = Limit::new(4);
        let taken: Vec<Place> = runtime.block_on(async {
            let mut taken = Vec::new();
            for _ in 0..4 {
                taken.push(limit.enter(SILENCE).await.unwrap());
            }
            taken
        });
        limit.was_too_much();
        drop(taken);
        let entered = runtime.block_on(async {
            let entered = (limit.enter(SILENCE).await, limit.enter(SILENCE).await);
            assert!(futures_util::FutureExt::now_or_never(limit.enter(SILENCE)).is_none(), "a third of two");
            entered
        });
        drop(entered);
    }

    #[test]
    fn who_waits_for_requests_that_move_nothing_gives_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let limit = Limit::new(1);
        runtime.block_on(async {
            let silence = Duration::from_millis(20);
            let held = limit.enter(silence).await.unwrap();
            limit.enter(silence).await.unwrap_err();
            let moves = async {
                for _ in 0..10 {
                    tokio::time::sleep(silence / 4).await;
                    held.progress().moved();
                }
                drop(held);
            };
            let (entered, ()) = futures_util::join!(limit.enter(silence), moves);
            entered.unwrap();
        });
    }
}
