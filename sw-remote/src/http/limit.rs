//! How many requests are under way at a time: more while it goes well, half of it when a server says that it is too much (additive
//! increase, multiplicative decrease, as TCP's windows; Chiu and Jain, 1989).

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of an engine's requests.
#[derive(Debug)]
pub(super) struct Limit {
    places: Arc<Semaphore>,
    window: Mutex<Window>,
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit);

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
        Self { places: Arc::new(Semaphore::new(max)), window: Mutex::new(window) }
    }

    /// Waits for a place.
    pub(super) async fn enter(&self) -> Place {
        loop {
            let permit = self.places.clone().acquire_owned().await;
            // Nobody closes it.
            let Ok(permit) = permit else { std::future::pending().await };
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            if window.owed == 0 {
                return Place(permit);
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
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let limit = Limit::new(4);
        let taken: Vec<Place> = runtime.block_on(async {
            let mut taken = Vec::new();
            for _ in 0..4 {
                taken.push(limit.enter().await);
            }
            taken
        });
        limit.was_too_much();
        drop(taken);
        let entered = runtime.block_on(async {
            let entered = (limit.enter().await, limit.enter().await);
            assert!(futures_util::FutureExt::now_or_never(limit.enter()).is_none(), "a third of two");
            entered
        });
        drop(entered);
    }
}
