//! Looks at what was read, after its bytes have come: they are of the version that was opened if it still is that one.
//!
//! ```text
//!   reads ─► bytes landed ─┬─ waits for a look ─► one look for all that wait ─► done, or Changed
//!                          └─ the next look, if one is under way: it may have begun before these bytes came
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Those of one open object.
pub(crate) struct Looks<E> {
    /// Reads whose bytes have landed.
    landed: AtomicU64,
    looked: Mutex<Looked<E>>,
}

/// The last look, and the reads that it is good for.
struct Looked<E> {
    at: u64,
    found: Result<(), E>,
}

impl<E> Default for Looks<E> {
    fn default() -> Self {
        Self { landed: AtomicU64::new(0), looked: Mutex::new(Looked { at: 0, found: Ok(()) }) }
    }
}

impl<E: Clone> Looks<E> {
    /// What a look says that begins after this call. All that wait share one.
    pub(crate) async fn confirm<F: Future<Output = Result<(), E>>>(&self, look: impl FnOnce() -> F) -> Result<(), E> {
        let mine = self.landed.fetch_add(1, Ordering::SeqCst) + 1;
        let mut looked = self.looked.lock().await;
        if looked.at < mine {
            let at = self.landed.load(Ordering::SeqCst);
            let found = look().await;
            *looked = Looked { at, found };
        }
        looked.found.clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[test]
    fn all_that_wait_share_a_look_that_begins_after_they_came() {
        let (looks, count) = (Looks::<()>::default(), AtomicU64::new(0));
        let look = || async {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok(())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(join_all((0..10).map(|_| looks.confirm(look))));
        assert!(found.iter().all(Result::is_ok));
        // The first has its own; the others came while that was under way.
        assert_eq!(count.load(Ordering::SeqCst), 2);
        assert_eq!(runtime.block_on(looks.confirm(|| async { Err(()) })), Err(()));
    }
}
