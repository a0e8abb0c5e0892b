//! What a controller tells by itself: that namespaces came, went, or are others now; that they are reached otherwise; how it is.
//!
//! ```text
//!   controller ─► event … ─► hear (the attendant, once a second) ─► log page, so that it can come again
//!                              └─ namespaces, access ─► another look ─► facts with the next revision ─► lanes see it with their next I/O
//! ```
//!
//! An I/O that was sent before this was heard is carried out on whatever is there by then: the controller tells afterwards.
//!
//! Access is looked at besides where a command found it to be another than was told, and namespaces where one found none. What a controller
//! refuses to tell, tells in a way that makes no sense, or leaves out is [asked for again](Again), and what is known so far stays: an
//! association that works is not given up for it.
//!
//! Base, "Asynchronous Event Request command", "Changed Attached Namespace List", "Asymmetric Namespace Access".

use std::{sync::PoisonError, time::Duration};

use sw_engine::{Error, ErrorKind, Time};
use sw_nvme::{
    inquiry::{self, ADMIN_DATA_BYTES, AdminQueue, Data, Known, NAMESPACES_MAX},
    namespace::Namespace,
    wire::{
        Command, DataPointer,
        ana::{self, Access, Groups},
        feature::{Feature, async_events},
        identify::IdentifyController,
        log::{AsyncEvent, EventKind, LogPage, Retain, Smart},
    },
};

use crate::{admin::Admin, clock::now, controller::Controller, facts::Facts, family::Family};

/// Between two looks for events.
pub(crate) const EVENTS_EVERY: Duration = Duration::from_secs(1);
/// Event requests under way at most.
const REQUESTS_MAX: u16 = 2;
/// The first pause before something that was not told is asked for again, and the longest.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// Asks a controller that can to tell of its namespaces, of how they are reached, and of its health.
///
/// # Errors
/// There is no answer.
pub(crate) fn watch(admin: &mut Admin, info: &IdentifyController) -> Result<(), Error> {
    let bits = info.async_events & (async_events::NAMESPACE_ATTRIBUTE | async_events::ANA_CHANGE);
    if bits == 0 {
        return Ok(());
    }
    let bits = bits | async_events::SMART | info.async_events & async_events::RESET_COMPLETED;
    // One that refuses tells what it wants to.
    admin.run(Data::None, |data| Command::set_features(&Feature::AsyncEvents { bits }, data))?;
    admin.watch(REQUESTS_MAX.min(info.async_requests_max))
}

/// What is to be looked at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stale {
    pub(crate) namespaces: bool,
    pub(crate) access: bool,
}

impl Stale {
    fn is_any(self) -> bool {
        self.namespaces || self.access
    }

    fn and(self, more: Self) -> Self {
        Self { namespaces: self.namespaces || more.namespaces, access: self.access || more.access }
    }
}

/// What was asked for and not told, and when it is asked for again: with pauses that double.
#[derive(Debug)]
pub(crate) struct Again {
    open: Stale,
    next: Time,
    pause: Duration,
}

impl Default for Again {
    fn default() -> Self {
        Self { open: Stale::default(), next: Time::ZERO, pause: AGAIN_FIRST }
    }
}

impl Again {
    /// What is due.
    fn due(&self, now: Time) -> Stale {
        if now >= self.next { self.open } else { Stale::default() }
    }

    /// After a look: what is open still.
    fn note(&mut self, open: Stale, now: Time) {
        if !open.is_any() {
            *self = Self::default();
        } else if self.open != open || now >= self.next {
            let pause = if self.open == open { self.pause } else { AGAIN_FIRST };
            *self = Self { open, next: now.after(pause), pause: (pause * 2).min(AGAIN_MAX) };
        }
    }
}

/// What a look came to.
struct Heard {
    /// Where they are others than before.
    facts: Option<Facts>,
    /// Whether a reset of another controller is over.
    is_reset: bool,
    /// What was not told.
    open: Stale,
    /// And why, if it was asked for now.
    why: Option<Error>,
}

impl Controller {
    /// Hears what the controller told since. The attendant calls it.
    pub(crate) fn hear(&self) {
        let (asked, now) = (self.take_distrust(), now());
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        let due = again.due(now);
        let later = if due.is_any() { Stale::default() } else { again.open };
        let asked = asked.and(due);
        let heard = self.with_admin(|admin, facts| heard(admin, facts, asked, self.family()));
        match heard {
            None => {}
            Some(Ok(Heard { facts, is_reset, open, why })) => {
                if is_reset {
                    self.hurry_errands();
                }
                let is_news = !again.open.is_any();
                again.note(open.and(later), now);
                if let Some(why) = why {
                    let name = self.name();
                    if is_news {
                        tracing::warn!(controller = name, %why, "what it has is not told, and asked for again; what was told before counts");
                    } else {
                        tracing::debug!(controller = name, %why, "what it has is not told");
                    }
                }
                if let Some(facts) = facts {
                    let count = facts.namespaces.len();
                    tracing::info!(
                        controller = self.name(),
                        count,
                        "its namespaces, or how they are reached, have changed"
                    );
                    self.publish(facts);
                }
            }
            Some(Err(error)) => self.drop_association(error.to_string()),
        }
    }
}

/// How the groups of a controller's namespaces are reached by it; to be asked for where it [tells](IdentifyController::tells_access). The event of
/// a change may come again from then on. One command, as Linux and SPDK ask: offsets into this page are not kept by all targets.
///
/// # Errors
/// The page is refused, or makes no sense, and what is known so far stays; or the queue [is over](Admin::is_over).
pub(crate) fn access(admin: &mut Admin, info: &IdentifyController, page_bytes_min: u32) -> Result<Groups, Error> {
    let namespaces = if info.namespaces_max == 0 { info.namespaces } else { info.namespaces_max };
    let transfer = match info.mdts {
        0 => usize::MAX,
        mdts => sw_mem::index(page_bytes_min.into()).checked_shl(mdts.into()).unwrap_or(usize::MAX),
    };
    let room = ana::page_bytes(info.ana_groups, namespaces).min(transfer);
    let what = "get log page asymmetric namespace access";
    // Never the other one: a multiple of 4 above zero. It would do nothing.
    let command =
        Command::get_log_page(LogPage::Access(Retain::Clear), 0, u32::try_from(room).unwrap_or(0), DataPointer::None);
    let page = admin.read_long(what, room, command.unwrap_or(Command::keep_alive()))?;
    Groups::decode(&page)
        .map_err(|cause| admin.error(ErrorKind::Protocol, format!("{what}: it makes no sense")).caused_by(cause))
}

/// What was asked for, if it was told; what was not leaves the association as it is, unless the queue is over.
fn told<T>(admin: &Admin, asked: Result<T, Error>, why: &mut Option<Error>) -> Result<Option<T>, Error> {
    match asked {
        Ok(told) => Ok(Some(told)),
        Err(error) if admin.is_over() => Err(error),
        Err(error) => {
            *why = Some(error);
            Ok(None)
        }
    }
}

/// As [`access`], while an association is made.
///
/// # Errors
/// The queue is over.
pub(crate) fn first_access(
    admin: &mut Admin,
    info: &IdentifyController,
    page_bytes_min: u32,
) -> Result<Option<Groups>, Error> {
    if !info.tells_access() {
        return Ok(None);
    }
    let (asked, mut why) = (access(admin, info, page_bytes_min), None);
    let groups = told(admin, asked, &mut why)?;
    if let Some(why) = why {
        tracing::warn!(controller = admin.name(), %why, "it does not tell how its namespaces are reached; commands find out");
    }
    Ok(groups)
}

/// Reads the page of each event, so that it can come again; what else is to be looked at, and whether a reset is over.
fn answer(admin: &mut Admin, facts: &Facts, why: &mut Option<Error>) -> Result<(Stale, bool), Error> {
    let (mut stale, mut is_reset) = (Stale::default(), false);
    if !admin.is_watched() {
        return Ok((stale, is_reset));
    }
    let events = admin.look()?;
    for event in &events {
        let event = AsyncEvent::decode(*event);
        tracing::debug!(controller = admin.name(), ?event, "the controller tells of an event");
        stale.namespaces |= event.kind == EventKind::NamespaceAttribute;
        is_reset |= event.kind == EventKind::ResetCompleted;
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
        let asked = admin.run(Data::In(len), command);
        let Some(answer) = told(admin, asked, why)? else { continue };
        if let (LogPage::Smart(_), true, Ok(smart)) = (page, answer.status.is_success(), Smart::decode(&admin.page())) {
            let (warning, spare, used) = (smart.critical_warning, smart.spare_percent, smart.used_percent);
            tracing::warn!(controller = admin.name(), warning, spare, used, "the controller tells of its health");
        }
    }
    if !events.is_empty() {
        admin.request_events()?;
    }
    Ok((stale, is_reset))
}

/// Whether access is to be looked at although nobody told of a change: it is changing, or is not what it should be and the controller has
/// no event for it.
fn is_unsettled(facts: &Facts) -> bool {
    let has_event = facts.info.async_events & async_events::ANA_CHANGE != 0;
    let mut states = facts.access.iter().flat_map(Groups::iter).map(|(_, access)| access);
    states.any(|access| access == Access::Change || access != Access::Optimized && !has_event)
}

/// Whether the controller did not tell how a namespace's group is reached, though it tells of such things.
fn is_untold(access: Option<&Groups>, mut groups: impl Iterator<Item = u32>) -> bool {
    access.is_none_or(|told| groups.any(|group| told.of(group).is_none()))
}

/// The facts after what was told, or `asked` to be looked at, if they are others.
fn heard(admin: &mut Admin, facts: &Facts, asked: Stale, family: &Family) -> Result<Heard, Error> {
    let (mut why, tells) = (None, facts.info.tells_access());
    let (stale, is_reset) = answer(admin, facts, &mut why)?;
    let mut stale = stale.and(asked);
    stale.access = tells && (stale.access || is_unsettled(facts));
    let mut next = facts.clone();
    let mut open = Stale::default();
    if stale.access {
        let asked = access(admin, &facts.info, facts.cap.page_bytes_min);
        match told(admin, asked, &mut why)? {
            Some(groups) => next.access = Some(groups),
            None => open.access = true,
        }
    }
    if stale.namespaces {
        let asked = namespaces(admin, facts, family);
        match told(admin, asked, &mut why)? {
            Some(Found { all, absent }) => (next.namespaces, next.absent) = (all, absent),
            None => open.namespaces = true,
        }
    }
    let groups = next.namespaces.iter().map(|namespace| namespace.info.ana_group);
    open.access |= tells && is_untold(next.access.as_ref(), groups);
    let is_same = next.access == facts.access && next.namespaces == facts.namespaces && next.absent == facts.absent;
    next.revision += 1;
    Ok(Heard { facts: (!is_same).then_some(next), is_reset, open, why })
}

/// Namespaces as they are now, and those that went; the numbers of the latter.
struct Found {
    all: Box<[Namespace]>,
    absent: Box<[u32]>,
}

/// Looks at the namespaces.
fn namespaces(admin: &mut Admin, facts: &Facts, family: &Family) -> Result<Found, Error> {
    let known = Known { info: &facts.info, version: facts.version, page_bytes_min: facts.cap.page_bytes_min };
    let mut namespaces = inquiry::namespaces(admin, known)?;
    family.name(&mut namespaces, facts.info.serial.as_str());
    // One that went may come back as the same: until then it is for other controllers, or this one to refuse what is asked of it.
    let is_there = |nsid| namespaces.iter().any(|namespace| namespace.nsid == nsid);
    let went = facts.namespaces.iter().filter(|before| !is_there(before.nsid)).cloned().collect::<Vec<_>>();
    let room = NAMESPACES_MAX.saturating_sub(namespaces.len());
    let absent = went.iter().take(room).map(|namespace| namespace.nsid).collect();
    namespaces.extend(went.into_iter().take(room));
    Ok(Found { all: namespaces.into(), absent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_asked_for_again_with_pauses_that_double() {
        let (access, none) = (Stale { access: true, ..Stale::default() }, Stale::default());
        let mut again = Again::default();
        again.note(access, Time::ZERO);
        let mut asked = Vec::new();
        for second in 1..=130 {
            let now = Time::ZERO.after(Duration::from_secs(second));
            if again.due(now) == access {
                asked.push(second);
            }
            again.note(access, now);
        }
        assert_eq!(asked, [1, 3, 7, 15, 31, 61, 91, 121]);
        // Something else that is not told is asked for at once, and what is told not any more.
        let at = Time::ZERO.after(Duration::from_secs(131));
        let both = Stale { namespaces: true, access: true };
        again.note(both, at);
        assert_eq!((again.due(at), again.due(at.after(AGAIN_FIRST))), (none, both));
        again.note(none, at.after(AGAIN_FIRST));
        assert_eq!(again.due(at.after(AGAIN_MAX)), none);
    }

    #[test]
    fn a_group_that_was_left_out_is_not_told() {
        // One descriptor: group 2, optimized.
        let mut page = [0; ana::HEADER_BYTES + ana::GROUP_BYTES];
        (page[8], page[16], page[32]) = (1, 2, 1);
        let groups = Groups::decode(&page).unwrap();
        assert!(!is_untold(Some(&groups), [2, 2].into_iter()) && !is_untold(Some(&groups), [].into_iter()));
        assert!(is_untold(Some(&groups), [2, 3].into_iter()) && is_untold(None, [].into_iter()));
    }
}
