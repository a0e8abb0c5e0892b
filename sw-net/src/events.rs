//! What a controller tells by itself: that namespaces came, went, or are others now; that they are reached otherwise; how it is.
//!
//! ```text
//!   controller ─► event … ─► hear (the attendant, once a second) ─► log page, so that it can come again
//!                              └─ namespaces, access ─► another look ─► facts with the next revision ─► lanes see it with their next I/O
//! ```
//!
//! An I/O that was sent before this was heard is carried out on whatever is there by then: the controller tells afterwards.
//!
//! Access is looked at besides where a command found it to be another than was told.
//!
//! Base, "Asynchronous Event Request command", "Changed Attached Namespace List", "Asymmetric Namespace Access".

use std::time::Duration;

use sw_engine::Error;
use sw_nvme::{
    inquiry::{self, ADMIN_DATA_BYTES, AdminQueue, Data, Known, NAMESPACES_MAX},
    namespace::Namespace,
    wire::{
        Command,
        ana::{Access, Groups},
        feature::{Feature, async_events},
        identify::IdentifyController,
        log::{AsyncEvent, EventKind, LogPage, Retain, Smart},
    },
};

use crate::{
    admin::Admin,
    controller::{Controller, Facts},
    family::Family,
};

/// Between two looks for events.
pub(crate) const EVENTS_EVERY: Duration = Duration::from_secs(1);
/// Event requests under way at most.
const REQUESTS_MAX: u16 = 2;

/// Asks a controller that can to tell of its namespaces, of how they are reached, and of its health.
///
/// # Errors
/// There is no answer.
pub(crate) fn watch(admin: &mut Admin, info: &IdentifyController) -> Result<(), Error> {
    let bits = info.async_events & (async_events::NAMESPACE_ATTRIBUTE | async_events::ANA_CHANGE);
    if bits == 0 {
        return Ok(());
    }
    let bits = bits | async_events::SMART;
    // One that refuses tells what it wants to.
    admin.run(Data::None, |data| Command::set_features(&Feature::AsyncEvents { bits }, data))?;
    admin.watch(REQUESTS_MAX.min(info.async_requests_max))
}

/// What is to be looked at again.
#[derive(Clone, Copy, Default)]
struct Stale {
    namespaces: bool,
    access: bool,
}

impl Stale {
    fn is_any(self) -> bool {
        self.namespaces || self.access
    }
}

impl Controller {
    /// Hears what the controller told since. The attendant calls it.
    pub(crate) fn hear(&self) {
        let asked = Stale { access: self.take_distrust(), ..Stale::default() };
        match self.with_admin(|admin, facts| heard(admin, facts, asked, self.family())) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(facts))) => {
                let count = facts.namespaces.len();
                tracing::info!(
                    controller = self.name(),
                    count,
                    "its namespaces, or how they are reached, have changed"
                );
                self.publish(facts);
            }
            Some(Err(error)) => self.drop_association(error.to_string()),
        }
    }
}

/// Reads the page of each event, so that it can come again; what else is to be looked at.
fn answer(admin: &mut Admin, facts: &Facts) -> Result<Stale, Error> {
    let mut stale = Stale::default();
    if !admin.is_watched() {
        return Ok(stale);
    }
    let events = admin.look()?;
    for event in &events {
        let event = AsyncEvent::decode(*event);
        tracing::debug!(controller = admin.name(), ?event, "the controller tells of an event");
        stale.namespaces |= event.kind == EventKind::NamespaceAttribute;
        if event.kind == EventKind::AnaChange {
            stale.access = facts.info.tells_access();
            // ANACAP bit 6: ANAGRPID of an attached namespace stays.
            stale.namespaces |= facts.info.ana_abilities >> 6 & 1 == 0;
        }
        let Some(page) = event.page() else { continue };
        if matches!(page, LogPage::Access(_)) && stale.access {
            // Read below, as a whole.
            continue;
        }
        let len_bytes = page.len_bytes();
        let len = sw_mem::index(len_bytes.into()).min(ADMIN_DATA_BYTES);
        // Never the other one: lengths here are multiples of 4 above zero. It would do nothing.
        let command = |data| Command::get_log_page(page, 0, len_bytes, data).unwrap_or(Command::keep_alive());
        let answer = admin.run(Data::In(len), command)?;
        if let (LogPage::Smart(_), true, Ok(smart)) = (page, answer.status.is_success(), Smart::decode(&admin.page())) {
            let (warning, spare, used) = (smart.critical_warning, smart.spare_percent, smart.used_percent);
            tracing::warn!(controller = admin.name(), warning, spare, used, "the controller tells of its health");
        }
    }
    if !events.is_empty() {
        admin.request_events()?;
    }
    Ok(stale)
}

/// Whether access is to be looked at although nobody told of a change: it is changing, or is not what it should be and the controller has
/// no event for it.
fn is_unsettled(facts: &Facts) -> bool {
    let has_event = facts.info.async_events & async_events::ANA_CHANGE != 0;
    let mut states = facts.access.iter().flat_map(Groups::iter).map(|(_, access)| access);
    states.any(|access| access == Access::Change || access != Access::Optimized && !has_event)
}

/// The facts after what was told, or `asked` to be looked at, if they are others.
fn heard(admin: &mut Admin, facts: &Facts, asked: Stale, family: &Family) -> Result<Option<Facts>, Error> {
    let mut stale = answer(admin, facts)?;
    stale.access |= facts.info.tells_access() && (asked.access || is_unsettled(facts));
    if !stale.is_any() {
        return Ok(None);
    }
    let mut next = facts.clone();
    if stale.access {
        next.access = Some(inquiry::access(admin, Retain::Clear)?);
    }
    if stale.namespaces {
        next.namespaces = namespaces(admin, facts, family)?;
    }
    let is_same = next.access == facts.access && next.namespaces == facts.namespaces;
    next.revision += 1;
    Ok((!is_same || stale.namespaces).then_some(next))
}

/// The namespaces as they are now.
fn namespaces(admin: &mut Admin, facts: &Facts, family: &Family) -> Result<Box<[Namespace]>, Error> {
    let known = Known { info: &facts.info, version: facts.version, page_bytes_min: facts.cap.page_bytes_min };
    let mut namespaces = inquiry::namespaces(admin, known)?;
    family.name(&mut namespaces, facts.info.serial.as_str());
    // One that went may come back as the same: until then it is for the controller to refuse what is asked of it.
    let is_there = |nsid| namespaces.iter().any(|namespace| namespace.nsid == nsid);
    let went = facts.namespaces.iter().filter(|before| !is_there(before.nsid)).cloned().collect::<Vec<_>>();
    namespaces.extend(went.into_iter().take(NAMESPACES_MAX.saturating_sub(namespaces.len())));
    Ok(namespaces.into())
}
