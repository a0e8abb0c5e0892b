//! Calls of a library that promises no end, with one.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::Builder;
use std::time::Duration;

/// What did not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unanswered {
    /// The function.
    pub(crate) call: &'static str,
    /// How long it was waited for; zero if the system gave no thread to call it on.
    pub(crate) waited: Duration,
}

/// Runs `work`, whose main part is `call`, and waits at most `limit` for it. What it owns stays with its thread until it ends, if it
/// ever does: memory and descriptors that the library may still use are not freed.
///
/// # Errors
/// It did not end; or it panicked, or there is no thread, which is told as an end that was not waited for.
pub(crate) fn within<T: Send + 'static>(
    call: &'static str,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unanswered> {
    let (answer, answered) = sync_channel(1);
    let run = move || {
        // Nobody listens any more: the value is dropped here.
        let _late = answer.send(work());
    };
    let Ok(thread) = Builder::new().name("sw-cufile-call".to_owned()).spawn(run) else {
        return Err(Unanswered { call, waited: Duration::ZERO });
    };
    match answered.recv_timeout(limit) {
        Ok(value) => {
            // It has said its last word; joining takes no more than the end of the thread itself.
            let _ended = thread.join();
            Ok(value)
        }
        Err(RecvTimeoutError::Disconnected) => Err(Unanswered { call, waited: Duration::ZERO }),
        Err(RecvTimeoutError::Timeout) => {
            tracing::error!(
                call,
                limit_ms = limit.as_millis(),
                "the vendor's library does not come back; its thread is left to it"
            );
            Err(Unanswered { call, waited: limit })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Condvar, Mutex};

    use super::*;

    #[test]
    fn what_does_not_end_is_an_answer_and_keeps_what_it_owns() {
        assert_eq!(within("quick", Duration::from_secs(60), || 7), Ok(7));
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (held, owned) = (gate.clone(), Arc::new(()));
        let kept = Arc::downgrade(&owned);
        let stuck = within("stuck", Duration::from_millis(20), move || {
            let open = held.1.wait_while(held.0.lock().unwrap(), |open| !*open);
            drop((open, owned));
        });
        assert_eq!(stuck, Err(Unanswered { call: "stuck", waited: Duration::from_millis(20) }));
        assert!(kept.upgrade().is_some());
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
    }

    #[test]
    fn a_panic_is_an_answer() {
        let answer = within("panics", Duration::from_secs(60), || panic!("on purpose"));
        assert_eq!(answer, Err::<(), _>(Unanswered { call: "panics", waited: Duration::ZERO }));
    }
}
