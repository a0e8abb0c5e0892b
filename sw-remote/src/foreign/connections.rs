//! Connections by their names, each made once, by the first who needs it: one that does not answer costs those who need it, and nobody else.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sw_engine::Error;

/// What is known of one.
enum State<T> {
    /// None, and nobody makes one.
    Open,
    /// Somebody makes it.
    Making,
    /// Somebody makes it, and was waited for in vain: nobody else waits, so that a thread is all that one takes which never answers.
    Late,
    Made(T),
}

struct Cell<T> {
    state: Mutex<State<T>>,
    is_over: Condvar,
}

impl<T> Cell<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever makes one leaves it so that others can try, however it ends.
struct Maker<'a, T>(&'a Cell<T>, Option<T>);

impl<T> Drop for Maker<'_, T> {
    fn drop(&mut self) {
        *self.0.state() = self.1.take().map_or(State::Open, State::Made);
        self.0.is_over.notify_all();
    }
}

/// Those that are known.
pub(crate) struct Connections<K, T>(Mutex<HashMap<K, Arc<Cell<T>>>>);

impl<K, T> Default for Connections<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, T: Clone> Connections<K, T> {
    fn cells(&self) -> MutexGuard<'_, HashMap<K, Arc<Cell<T>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of that name, made by `make` if there is none; who comes while it is made waits, `limit` at most. *Blocking*.
    pub(crate) fn get(
        &self,
        key: K,
        limit: Duration,
        (make, late): (impl FnOnce() -> Result<T, Error>, impl FnOnce() -> Error),
    ) -> Result<T, Error> {
        let empty = || Arc::new(Cell { state: Mutex::new(State::Open), is_over: Condvar::new() });
        let cell = self.cells().entry(key).or_insert_with(empty).clone();
        let is_making = |state: &mut State<T>| matches!(state, State::Making);
        let waited = cell.is_over.wait_timeout_while(cell.state(), limit, is_making);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        match &*state {
            State::Made(made) => return Ok(made.clone()),
            State::Open => *state = State::Making,
            State::Making | State::Late => {
                *state = State::Late;
                return Err(late());
            }
        }
        drop(state);
        let mut maker = Maker(&cell, None);
        let made = make()?;
        maker.1 = Some(made.clone());
        Ok(made)
    }

    /// The one of that name, if it is there.
    pub(crate) fn known(&self, key: &K) -> Option<T> {
        let cell = self.cells().get(key).cloned()?;
        let state = cell.state();
        if let State::Made(made) = &*state { Some(made.clone()) } else { None }
    }

    /// Those that are there, which are known no more. One that is being made is its maker's. It never waits: in a child of the process a lock
    /// may be one that nobody gives back.
    pub(crate) fn take(&self) -> Vec<T> {
        let Ok(mut cells) = self.0.try_lock() else { return Vec::new() };
        let made = |cell: Arc<Cell<T>>| {
            let mut state = cell.state.try_lock().ok()?;
            if !matches!(*state, State::Made(_)) {
                return None;
            }
            let State::Made(made) = std::mem::replace(&mut *state, State::Open) else { return None };
            Some(made)
        };
        std::mem::take(&mut *cells).into_values().filter_map(made).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use sw_engine::{ErrorKind, Verb};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn late() -> Error {
        Error::new(ErrorKind::DeadlineExceeded, Verb::Open)
    }

    #[test]
    fn one_that_does_not_answer_keeps_nobody_else() {
        let connections = Connections::<&str, u32>::default();
        let (go, may_go) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        thread::scope(|scope| {
            let silent = scope.spawn(|| {
                let make = move || {
                    begin.send(()).unwrap();
                    let _closed = may_go.recv();
                    Ok(1)
                };
                connections.get("silent", LONG, (make, late))
            });
            begun.recv().unwrap();
            assert_eq!(connections.get("other", LONG, (|| Ok(2), late)).unwrap(), 2);
            let short = Duration::from_millis(10);
            let error = connections.get("silent", short, (|| Ok(3), late)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
            // From now on it is told at once.
            assert!(connections.get("silent", LONG, (|| Ok(3), late)).is_err());
            assert_eq!((connections.known(&"silent"), connections.known(&"other")), (None, Some(2)));
            drop(go);
            assert_eq!(silent.join().unwrap().unwrap(), 1);
        });
        assert_eq!(connections.get("silent", LONG, (|| Ok(3), late)).unwrap(), 1);
        assert!(connections.get("none", LONG, (|| Err(late()), late)).is_err());
        assert_eq!(connections.get("none", LONG, (|| Ok(4), late)).unwrap(), 4);
        let mut all = connections.take();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 4]);
        assert_eq!(connections.known(&"none"), None);
    }
}
