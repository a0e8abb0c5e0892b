//! Interrupts: the first asks the command to stop cleanly, the second ends the process at once.
//!
//! Commands look at [`requested`] between pieces of work that are bounded, so that a half-written file is removed or
//! recorded by its owner's drop and never left under its final name.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::fail::Fail;

/// The number of the first signal; 0 while there was none.
static SEEN: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Installs the handlers. A system that refuses leaves the default behaviour, which ends the process.
pub fn install() {
    let seen = Arc::clone(SEEN.get_or_init(Arc::default));
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Registered first, so that it acts on what the signals before this one left.
        let ended = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again));
        let Ok(number) = usize::try_from(signal) else { continue };
        let set = ended
            .and_then(|_| signal_hook::flag::register_usize(signal, Arc::clone(&seen), number))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&again)));
        if set.is_err() {
            return;
        }
    }
}

/// An error once a signal asked the command to stop.
///
/// # Errors
/// [`Fail::interrupted`] with the signal's number.
pub fn requested() -> Result<(), Fail> {
    match SEEN.get().map_or(0, |seen| seen.load(Ordering::Relaxed)) {
        0 => Ok(()),
        signal => Err(Fail::interrupted(signal)),
    }
}
