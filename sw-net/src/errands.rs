//! Resets of controllers that this host does not reach any more, asked for through another one of their subsystem.
//!
//! ```text
//!   controller A: a write in doubt ─► Family ─► called ─► attendant of B ─► Cross-Controller Reset of A's life ─► log page …
//!                                       ▲                                                                          │
//!                                       └──────────── done: writes are safe before CQT and KATO are over ◄─────────┘
//! ```
//!
//! What an answer proves decides [`sw_nvme::resets`]; here it is carried out, by the thread that attends the controller that is asked, which
//! may be the next association of the same port. Lanes wait for nothing of it.

use std::{
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use sw_engine::Error;
use sw_nvme::{
    inquiry::{AdminQueue, Answer, Data},
    paths::Holder,
    resets::{Errand, Errands, Verdict},
    wire::{Command, DataPointer, ccr::Log, log::LogPage},
};

use crate::{
    admin::Admin,
    clock::now,
    controller::{Controller, HostIdentity},
    facts::Facts,
};

/// What an association of a family's member may be asked for, as its controller says.
pub(crate) fn of(member: u64, facts: &Facts, host: &HostIdentity) -> Option<Errands> {
    let by = Holder { controller: member, association: facts.association };
    Errands::of(by, &facts.info, facts.id, (&host.nqn, host.id))
}

/// Runs a command; `None`: its answer is none, and others will be.
///
/// # Errors
/// The queue is over.
fn run(admin: &mut Admin, data: Data, command: impl FnOnce(DataPointer) -> Command) -> Result<Option<Answer>, Error> {
    match admin.run(data, command) {
        Err(error) if admin.is_over() => Err(error),
        told => Ok(told.ok()),
    }
}

/// Asks for a reset.
fn ask(admin: &mut Admin, errand: &Errand) -> Result<Option<Answer>, Error> {
    run(admin, Data::None, |_| Command::cross_controller_reset(errand.instance))
}

/// Reads the log page; `None`: it is refused, or makes no sense.
fn read(admin: &mut Admin) -> Result<Option<Log>, Error> {
    let (page, bytes) = (LogPage::Resets, LogPage::Resets.len_bytes());
    // Never the other one: a multiple of 4 above zero. It would do nothing.
    let command = |data| Command::get_log_page(page, 0, bytes, data).unwrap_or(Command::keep_alive());
    let answer = run(admin, Data::In(sw_mem::index(bytes.into())), command)?;
    let is_told = answer.is_some_and(|answer| answer.status.is_success());
    Ok(Log::decode(&admin.page()).ok().filter(|_| is_told))
}

impl Controller {
    fn errands(&self) -> MutexGuard<'_, Option<Errands>> {
        self.errands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The association is another one, or over: what the last one was asked for will not be told.
    pub(crate) fn set_errands(&self, next: Option<Errands>) {
        let last = std::mem::replace(&mut *self.errands(), next);
        for errand in last.into_iter().flat_map(Errands::end) {
            self.family().settle(&errand, Verdict::Failed);
        }
    }

    /// How long nothing is to be done for others.
    pub(crate) fn without_errand(&self) -> Duration {
        let errands = self.errands();
        match errands.as_ref() {
            None => Duration::MAX,
            Some(errands) if self.family().has_claim(errands) => Duration::ZERO,
            Some(errands) => errands.due().map_or(Duration::MAX, |due| due.since(now())),
        }
    }

    /// The controller told that a reset is over.
    pub(crate) fn hurry_errands(&self) {
        self.errands().iter_mut().for_each(|errands| errands.hurry(now()));
    }

    /// Has the controller reset others that are in doubt, and looks how it goes. The attendant calls it.
    pub(crate) fn run_errands(&self) {
        while let Some(errand) = self.claim() {
            let asked = self.with_admin(|admin, _| ask(admin, &errand));
            let (answer, broken) = parted(asked);
            let verdict = match self.errands().as_mut() {
                Some(errands) => errands.answered(errand, answer, now()),
                None => Verdict::Failed,
            };
            let (name, of) = (self.name(), errand.instance);
            tracing::info!(controller = name, ?of, ?answer, ?verdict, "it was asked to reset another controller");
            self.family().settle(&errand, verdict);
            if let Some(error) = broken {
                return self.drop_association(error.to_string());
            }
        }
        if self.errands().as_ref().and_then(Errands::due).is_none_or(|due| now() < due) {
            return;
        }
        let (log, broken) = parted(self.with_admin(|admin, _| read(admin)));
        let over = self.errands().as_mut().map(|errands| errands.told(log.as_ref(), now()));
        for (errand, verdict) in over.into_iter().flatten() {
            let (name, of) = (self.name(), errand.instance);
            tracing::info!(controller = name, ?of, ?verdict, "it told how the reset of another controller went");
            self.family().settle(&errand, verdict);
        }
        if let Some(error) = broken {
            self.drop_association(error.to_string());
        }
    }

    fn claim(&self) -> Option<Errand> {
        self.errands().as_ref().and_then(|errands| self.family().claim(errands))
    }
}

/// What was told, and why the queue is over, if it is. Of an association that is not up nothing is told.
fn parted<T>(told: Option<Result<Option<T>, Error>>) -> (Option<T>, Option<Error>) {
    match told {
        None => (None, None),
        Some(Ok(told)) => (told, None),
        Some(Err(error)) => (None, Some(error)),
    }
}
