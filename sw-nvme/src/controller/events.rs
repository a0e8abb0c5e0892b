//! Asynchronous events, and the log pages behind them.
//!
//! Base, "Asynchronous Event Request command", "Get Log Page command".

use core::time::Duration;
use std::collections::VecDeque;

use sw_engine::{Error, ErrorKind};

use crate::{
    bus::Bus,
    controller::{Control, Controller, Life},
    inquiry::{ADMIN_DATA_BYTES, AdminQueue, Data},
    wire::{
        Command,
        feature::{Feature, async_events},
        identify::IdentifyController,
        log::{
            AsyncEvent, ChangedNamespaces, ERROR_ENTRY_BYTES, ErrorEntry, EventKind, LogPage, Retain, SMART_BYTES,
            Smart,
        },
    },
};

/// Event requests outstanding at most; AERL may allow fewer. One per kind of event that is acted on.
const REQUESTS_MAX: u32 = 4;
/// Events kept for whoever asks; the oldest goes first.
const KEPT_MAX: usize = 64;
/// Looks at the namespaces for one notice at most, if they fail.
const RESCANS_MAX: u32 = 5;
/// Events handled in one service at most: a controller that has more to say is asked again at the next one.
const HANDLED_MAX: usize = 16;

/// Events since somebody asked.
#[derive(Debug, Default)]
pub(super) struct Log {
    kept: VecDeque<AsyncEvent>,
    /// The namespaces must be looked at again; stays set until that worked.
    inventory_stale: bool,
    /// How often that failed since it worked.
    failures: u32,
}

impl Log {
    fn note(&mut self, event: AsyncEvent) {
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(event);
        self.inventory_stale |= event.kind == EventKind::NamespaceAttribute;
    }
}

impl<B: Bus> Control<B> {
    /// Chooses the events and hands over the requests.
    pub(super) fn ask_for_events(&mut self, info: &IdentifyController) -> Result<(), Error> {
        let notices = async_events::NAMESPACE_ATTRIBUTE | async_events::FIRMWARE_ACTIVATION;
        let feature = Feature::AsyncEvents { bits: async_events::SMART | info.async_events & notices };
        // Refused by some old devices: errors are reported all the same.
        self.admin.run(Data::None, |data| Command::set_features(&feature, data))?;
        self.admin.requests_max = u32::from(info.async_requests_max).min(REQUESTS_MAX);
        self.admin.request_events();
        Ok(())
    }

    /// Takes events that came, keeps them, and reads the log page of each, so that it can come again.
    fn take_events(&mut self) -> Result<usize, Error> {
        let count = self.admin.events.len().min(HANDLED_MAX);
        for _ in 0..count {
            let event = AsyncEvent::decode(self.admin.events.remove(0));
            self.log.note(event);
            self.answer(event)?;
        }
        self.admin.request_events();
        Ok(count)
    }

    fn answer(&mut self, event: AsyncEvent) -> Result<(), Error> {
        let Some(page) = event.page() else { return Ok(()) };
        self.read_log(page, page.len_bytes()).map(drop)
    }

    /// Whether there is something for a service.
    pub(super) fn has_news(&self) -> bool {
        !self.admin.events.is_empty() || self.log.inventory_stale
    }

    /// Reads the start of a log page; `None` if the controller does not have it.
    fn read_log(&mut self, page: LogPage, len_bytes: u32) -> Result<Option<[u8; ADMIN_DATA_BYTES]>, Error> {
        let len = sw_mem::index(u64::from(len_bytes)).min(ADMIN_DATA_BYTES);
        // Never the other one: lengths here are multiples of 4 above zero. It would do nothing.
        let command = |data| Command::get_log_page(page, 0, len_bytes, data).unwrap_or(Command::keep_alive());
        let answer = self.admin.run(Data::In(len), command)?;
        Ok(answer.status.is_success().then(|| self.admin.page()))
    }
}

impl<B: Bus> Controller<B> {
    /// Takes care of what the controller wants to tell: events, ended aborts, changed namespaces. Called now and then by
    /// whoever has a moment; does nothing if another thread has the admin queue. Waits only if something came.
    ///
    /// # Errors
    /// What the admin queue says: [`Controller::reset`] is next.
    pub fn service(&self) -> Result<(), Error> {
        let Life::Up(_) = self.life() else { return Ok(()) };
        let Some(mut guard) = self.lock_within(Duration::ZERO) else { return Ok(()) };
        let Some(control) = guard.as_mut() else { return Ok(()) };
        self.service_with(control)
    }

    pub(super) fn service_with(&self, control: &mut Control<B>) -> Result<(), Error> {
        control.admin.reap_idle();
        control.admin.check_usable()?;
        control.take_events()?;
        if control.log.inventory_stale {
            control.log.failures += 1;
            // An answer that makes no sense is asked for again, and then left: the list is as it was.
            control.log.inventory_stale = control.log.failures < RESCANS_MAX;
            self.rescan_with(control)?;
            (control.log.inventory_stale, control.log.failures) = (false, 0);
        }
        Ok(())
    }

    /// Events since the last call, at most 64; older ones are gone.
    pub fn take_events(&self) -> Vec<AsyncEvent> {
        self.control(|control| Ok(control.log.kept.drain(..).collect())).unwrap_or_default()
    }

    /// The newest entries of the Error Information log page, newest first: at most `most`, ELPE, and 64.
    ///
    /// # Errors
    /// What the controller says.
    pub fn error_log(&self, most: u16) -> Result<Vec<ErrorEntry>, Error> {
        let entries =
            usize::from(most.min(self.facts.info.error_entries)).clamp(1, ADMIN_DATA_BYTES / ERROR_ENTRY_BYTES);
        let len = u32::try_from(entries * ERROR_ENTRY_BYTES).unwrap_or(0);
        self.control_up(|control, _| {
            let page = control.read_log(LogPage::Errors(Retain::Keep), len)?.ok_or_else(|| control.no_page("error"))?;
            let raw = page.chunks_exact(ERROR_ENTRY_BYTES).take(entries);
            // An entry has its 64 bytes here, so that only unused ones are left out.
            Ok(raw.filter_map(|entry| ErrorEntry::decode(entry).ok().flatten()).collect())
        })
    }

    /// SMART / Health of the controller.
    ///
    /// # Errors
    /// What the controller says.
    pub fn smart(&self) -> Result<Smart, Error> {
        self.control_up(|control, _| {
            let len = u32::try_from(SMART_BYTES).unwrap_or(0);
            let page = control.read_log(LogPage::Smart(Retain::Keep), len)?.ok_or_else(|| control.no_page("health"))?;
            Smart::decode(&page).map_err(|cause| control.admin.error(ErrorKind::Protocol, cause.to_string()))
        })
    }

    /// Namespaces that changed since this was last asked, by the controller's own list.
    ///
    /// # Errors
    /// What the controller says.
    pub fn changed_namespaces(&self) -> Result<ChangedNamespaces, Error> {
        self.control_up(|control, _| {
            let page = LogPage::ChangedNamespaces(Retain::Clear);
            let page =
                control.read_log(page, page.len_bytes())?.ok_or_else(|| control.no_page("changed namespaces"))?;
            ChangedNamespaces::decode(&page)
                .map_err(|cause| control.admin.error(ErrorKind::Protocol, cause.to_string()))
        })
    }
}

impl<B: Bus> Control<B> {
    fn no_page(&self, name: &str) -> Error {
        self.admin.error(ErrorKind::Unsupported, format!("the controller does not give its {name} log page"))
    }
}
