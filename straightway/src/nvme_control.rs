//! The thread that does the slow work of one NVMe controller, so that no lane waits for it: queue pairs, resets, log pages.
//!
//! Wake-up: whoever leaves work unparks the thread after it left it; the thread looks for work before it parks, and an unpark
//! that came in between makes the park return at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::thread::Thread;

use sw_engine::{Error, ErrorKind, Verb, seam::Wake};
use sw_nvme::{bus::Bus, controller::Controller, wire::log::EventKind};

/// Attends one controller until it is dropped. The thread then ends once the work that it is at is done, which nobody waits
/// for; lanes do what is left by themselves.
#[derive(Debug)]
pub(crate) struct Attendant {
    stops: Arc<AtomicBool>,
    thread: Thread,
}

/// Ends a park.
struct Bell(Thread);

impl Wake for Bell {
    fn wake(&self) {
        self.0.unpark();
    }
}

/// Hands the work back to the lanes, also if a panic ends the thread.
struct Attended<B: Bus>(Arc<Controller<B>>);

impl<B: Bus> Drop for Attended<B> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Attendant {
    /// Starts the thread.
    ///
    /// # Errors
    /// `ResourceLimit` if the system refuses one.
    pub(crate) fn start<B: Bus>(controller: &Arc<Controller<B>>) -> Result<Self, Error> {
        let stops = Arc::new(AtomicBool::new(false));
        let (attended, stopping) = (Attended(Arc::clone(controller)), Arc::clone(&stops));
        let run = move || {
            let controller = &attended.0;
            while !stopping.load(Ordering::Acquire) {
                turn(controller);
                if !controller.wants_work() {
                    std::thread::park();
                }
            }
            // What was left until now is for nobody else; from here on whoever leaves something works.
            controller.leave();
            if controller.wants_work() {
                turn(controller);
            }
        };
        let name = format!("nvme {}", controller.name());
        let thread =
            std::thread::Builder::new().name(name).spawn(run).map_err(|cause| no_thread(controller.name(), cause))?;
        // Before the first lane can ask for anything, whenever the thread comes to run.
        controller.attend(Arc::new(Bell(thread.thread().clone())));
        Ok(Self { stops, thread: thread.thread().clone() })
    }
}

/// The error of a controller that cannot have a thread of its own.
pub(crate) fn no_thread(controller: &str, cause: std::io::Error) -> Error {
    Error::new(ErrorKind::ResourceLimit, Verb::Open)
        .at(controller)
        .detail("the system refuses a thread")
        .remedy("raise the limit of processes (ulimit -u)")
        .with_code(cause.raw_os_error().unwrap_or(0))
        .caused_by(cause)
}

impl Drop for Attendant {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Does what is wanted, and tells the operator what the controller had to say: errors and its health are warnings, notices
/// are not. The driver itself acts on notices about namespaces alone.
fn turn<B: Bus>(controller: &Controller<B>) {
    controller.work();
    for event in controller.take_events() {
        let (pci, kind, log_page) = (controller.name(), event.kind, event.log_page);
        match kind {
            EventKind::NamespaceAttribute | EventKind::FirmwareActivation | EventKind::AnaChange => {
                tracing::info!(pci, ?kind, log_page, "the controller gives notice");
            }
            _ => tracing::warn!(pci, ?kind, log_page, "the controller reports an error or its health"),
        }
    }
}

#[cfg(test)]
mod tests;
