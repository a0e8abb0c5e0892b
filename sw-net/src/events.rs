//! What a controller tells by itself: that namespaces came, went, or are others now.
//!
//! ```text
//!   controller ─► event … ─► hear (the attendant, once a second) ─► log page, so that it can come again
//!                              └─ namespaces ─► another look ─► facts with the next revision ─► lanes see it with their next I/O
//! ```
//!
//! An I/O that was sent before this was heard is carried out on whatever is there by then: the controller tells afterwards.
//!
//! Base, "Asynchronous Event Request command", "Changed Attached Namespace List".

use std::time::Duration;

use sw_engine::Error;
use sw_nvme::{
    inquiry::{self, ADMIN_DATA_BYTES, AdminQueue, Data, Known, NAMESPACES_MAX},
    wire::{
        Command,
        feature::{Feature, async_events},
        identify::IdentifyController,
        log::{AsyncEvent, EventKind},
    },
};

use crate::{
    admin::Admin,
    associate::carry_over,
    controller::{Controller, Facts},
};

/// Between two looks for events.
pub(crate) const EVENTS_EVERY: Duration = Duration::from_secs(1);
/// Event requests under way at most.
const REQUESTS_MAX: u16 = 2;

/// Asks a controller that can to tell of its namespaces.
///
/// # Errors
/// There is no answer.
pub(crate) fn watch(admin: &mut Admin, info: &IdentifyController) -> Result<(), Error> {
    let bits = info.async_events & async_events::NAMESPACE_ATTRIBUTE;
    if bits == 0 {
        return Ok(());
    }
    // One that refuses tells what it wants to.
    admin.run(Data::None, |data| Command::set_features(&Feature::AsyncEvents { bits }, data))?;
    admin.watch(REQUESTS_MAX.min(info.async_requests_max))
}

impl Controller {
    /// Hears what the controller told since. The attendant calls it.
    pub(crate) fn hear(&self) {
        match self.with_admin(heard) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(facts))) => {
                tracing::info!(controller = self.name(), count = facts.namespaces.len(), "its namespaces have changed");
                self.publish(facts);
            }
            Some(Err(error)) => self.drop_association(error.to_string()),
        }
    }
}

/// The facts after what was told, if they are others.
fn heard(admin: &mut Admin, facts: &Facts) -> Result<Option<Facts>, Error> {
    if !admin.is_watched() {
        return Ok(None);
    }
    let events = admin.look()?;
    let mut is_stale = false;
    for event in &events {
        let event = AsyncEvent::decode(*event);
        tracing::debug!(controller = admin.name(), ?event, "the controller tells of an event");
        is_stale |= event.kind == EventKind::NamespaceAttribute;
        let Some(page) = event.page() else { continue };
        let len_bytes = page.len_bytes();
        let len = sw_mem::index(len_bytes.into()).min(ADMIN_DATA_BYTES);
        // Never the other one: lengths here are multiples of 4 above zero. It would do nothing.
        let command = |data| Command::get_log_page(page, 0, len_bytes, data).unwrap_or(Command::keep_alive());
        admin.run(Data::In(len), command)?;
    }
    if !events.is_empty() {
        admin.request_events()?;
    }
    if !is_stale {
        return Ok(None);
    }
    let known = Known { info: &facts.info, version: facts.version, page_bytes_min: facts.cap.page_bytes_min };
    let mut namespaces = inquiry::namespaces(admin, known)?;
    carry_over(&mut namespaces, facts.info.serial.as_str(), facts);
    // One that went may come back as the same: until then it is for the controller to refuse what is asked of it.
    let is_there = |nsid| namespaces.iter().any(|namespace| namespace.nsid == nsid);
    let went = facts.namespaces.iter().filter(|before| !is_there(before.nsid)).cloned().collect::<Vec<_>>();
    namespaces.extend(went.into_iter().take(NAMESPACES_MAX.saturating_sub(namespaces.len())));
    Ok(Some(Facts { namespaces: namespaces.into(), revision: facts.revision + 1, ..facts.clone() }))
}
