//! Waits that last as long as something moves.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Counts what moves. Cloning shares the count.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    own: Arc<AtomicU64>,
    /// What it is a part of moves with it.
    of: Option<Arc<AtomicU64>>,
}

/// Nothing moved for this long.
#[derive(Debug)]
pub(super) struct Silent(pub(super) Duration);

impl std::fmt::Display for Silent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no byte went either way for {} s", self.0.as_secs_f32())
    }
}

impl std::error::Error for Silent {}

impl Progress {
    /// A count of its own, which counts here too.
    pub(super) fn part(&self) -> Self {
        Self { own: Arc::default(), of: Some(self.own.clone()) }
    }

    /// Something moved.
    pub(super) fn moved(&self) {
        self.own.fetch_add(1, Ordering::Relaxed);
        if let Some(of) = &self.of {
            of.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for `work` as long as something moves: it is given up when nothing has for `silence`, or a little longer, twice that at most.
    ///
    /// # Errors
    /// [`Silent`]; the work is dropped.
    pub(super) async fn watch<T>(&self, silence: Duration, work: impl Future<Output = T>) -> Result<T, Silent> {
        let mut work = pin!(work);
        loop {
            let before = self.own.load(Ordering::Relaxed);
            match tokio::time::timeout(silence, work.as_mut()).await {
                Ok(done) => return Ok(done),
                Err(_) if self.own.load(Ordering::Relaxed) != before => {}
                Err(_) => return Err(Silent(silence)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_lasts_while_something_moves_and_not_longer() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (all, silence) = (Progress::default(), Duration::from_millis(40));
            let one = all.part();
            let steps = async {
                for _ in 0..12 {
                    tokio::time::sleep(silence / 4).await;
                    one.moved();
                }
                7
            };
            assert_eq!(one.watch(silence, steps).await.unwrap(), 7, "three times as long as may be silent");
            assert_eq!(all.own.load(Ordering::Relaxed), 12);
            one.watch(silence, std::future::pending::<()>()).await.unwrap_err();
        });
    }
}
