//! Requests of the host: what is opened, asked about, listed and closed. Each is answered once.

use sw_engine::{ErrorKind, Time};

use super::{Action, Host, Phase, Refusal, lost_failure};
use crate::failure::{Class, Failure, Origin};
use crate::id::ObjectId;
use crate::limits::{CURSOR_BYTES_MAX, ENTRIES_MAX, REQUESTS_MAX, URI_BYTES_MAX, VERSION_BYTES_MAX};
use crate::wire::message::Access;
use crate::wire::{Breach, Message};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Open(Access),
    Stat,
    List(u16),
    Close,
}

/// A request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Request {
    kind: Kind,
    /// `None`: its caller was answered already, and what comes is put away.
    until: Option<Time>,
}

impl Request {
    pub(super) const fn due(&self) -> Option<Time> {
        self.until
    }
}

impl Host {
    /// Opens an object, of that version if one is given. The answer is OPENED.
    ///
    /// # Errors
    /// `Closed` without a session, `Busy` with too many requests or objects, `TooLarge` for a text that does not fit.
    pub fn open(&mut self, now: Time, uri: &str, access: Access, version: &str) -> Result<u32, Refusal> {
        let opening = self.requests.values().filter(|request| matches!(request.kind, Kind::Open(_))).count();
        if self.objects.len() + opening >= usize::from(self.common.objects_max) {
            return Err(Refusal::new(ErrorKind::Busy, "as many objects are open as may be"));
        }
        fits(&[(uri, URI_BYTES_MAX), (version, VERSION_BYTES_MAX)])?;
        let (uri, version) = (uri.into(), version.into());
        self.request(now, Kind::Open(access), |request| Message::Open { request, access, uri, version })
    }

    /// Asks what is there. The answer is STATED.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn stat(&mut self, now: Time, uri: &str) -> Result<u32, Refusal> {
        fits(&[(uri, URI_BYTES_MAX)])?;
        let uri = uri.into();
        self.request(now, Kind::Stat, |request| Message::Stat { request, uri })
    }

    /// Asks for names below `uri` behind `cursor`. The answer is LISTED, of `entries_max` entries at most.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn list(&mut self, now: Time, uri: &str, cursor: &str, entries_max: u16) -> Result<u32, Refusal> {
        fits(&[(uri, URI_BYTES_MAX), (cursor, CURSOR_BYTES_MAX)])?;
        let entries_max = entries_max.clamp(1, ENTRIES_MAX);
        let (uri, cursor) = (uri.into(), cursor.into());
        self.request(now, Kind::List(entries_max), |request| Message::List { request, entries_max, uri, cursor })
    }

    /// Closes an object. The answer is CLOSED.
    ///
    /// # Errors
    /// As [`open`](Self::open); `InUse` while operations on it have not ended, `NotRegistered` for one that is not open.
    pub fn close_object(&mut self, now: Time, object: ObjectId) -> Result<u32, Refusal> {
        if !self.objects.contains_key(&object.0) {
            return Err(Refusal::new(ErrorKind::NotRegistered, "no such object is open"));
        }
        if self.is_object_used(object) {
            return Err(Refusal::new(ErrorKind::InUse, "operations on the object have not ended"));
        }
        let request = self.request(now, Kind::Close, |request| Message::Close { request, object })?;
        self.objects.remove(&object.0);
        Ok(request)
    }

    fn request(&mut self, now: Time, kind: Kind, make: impl FnOnce(u32) -> Message) -> Result<u32, Refusal> {
        if self.phase != Phase::Up || self.draining.is_some() {
            return Err(Refusal::new(ErrorKind::Closed, "there is no session"));
        }
        if self.requests.len() >= REQUESTS_MAX {
            return Err(Refusal::new(ErrorKind::Busy, "as many requests are under way as may be"));
        }
        self.request_last = self.request_last.checked_add(1).unwrap_or(1);
        let request = self.request_last;
        self.requests.insert(request, Request { kind, until: Some(now.after(self.config.patience)) });
        self.send(now, make(request));
        Ok(request)
    }

    pub(super) fn answer(&mut self, now: Time, answer: Message) -> Result<(), Breach> {
        let (Message::Opened { request, .. }
        | Message::Stated { request, .. }
        | Message::Listed { request, .. }
        | Message::Closed { request }
        | Message::Refused { request, .. }) = answer
        else {
            return Err(Breach::of("a message that an agent does not send"));
        };
        let Some(known) = self.requests.remove(&request) else {
            return Err(Breach::of("an answer to what was not asked"));
        };
        let fits = match (&answer, known.kind) {
            (Message::Opened { .. }, Kind::Open(_))
            | (Message::Stated { .. }, Kind::Stat)
            | (Message::Closed { .. }, Kind::Close)
            | (Message::Refused { .. }, _) => true,
            (Message::Listed { entries, .. }, Kind::List(most)) => entries.len() <= usize::from(most),
            _ => false,
        };
        if !fits {
            return Err(Breach::of("an answer to another question"));
        }
        if let (Message::Opened { object, .. }, Kind::Open(access)) = (&answer, known.kind) {
            if self.objects.contains_key(&object.0) {
                return Err(Breach::of("two objects of one name"));
            }
            if known.until.is_none() {
                // Nobody waits for it any more.
                let object = *object;
                let _ = self.request(now, Kind::Close, |request| Message::Close { request, object });
                return Ok(());
            }
            self.objects.insert(object.0, access);
        }
        if known.until.is_some() {
            let told = match answer {
                Message::Refused { failure, text, .. } => Err((failure, text)),
                answer => Ok(answer),
            };
            self.act(Action::Answer(request, told));
        }
        Ok(())
    }

    pub(super) fn requests_time(&mut self, now: Time) {
        let late = Failure::new(Class::Caller, Origin::Agent, ErrorKind::DeadlineExceeded);
        for (request, known) in &mut self.requests {
            if known.until.is_some_and(|until| now >= until) {
                known.until = None;
                self.actions.push_back(Action::Answer(*request, Err((late, Box::default()))));
            }
        }
    }

    pub(super) fn requests_lost(&mut self) {
        for (request, known) in core::mem::take(&mut self.requests) {
            if known.until.is_some() {
                self.act(Action::Answer(request, Err((lost_failure(Class::RetryNow), Box::default()))));
            }
        }
    }
}

fn fits(texts: &[(&str, usize)]) -> Result<(), Refusal> {
    let is_bad = |(text, most): &(&str, usize)| text.len() > *most || text.chars().any(char::is_control);
    if texts.iter().any(is_bad) {
        return Err(Refusal::new(ErrorKind::TooLarge, "a text that is too long, or has control characters"));
    }
    Ok(())
}
