//! Requests at the agent: objects that are opened and closed, and questions that whoever composes it answers.

use sw_engine::{ErrorKind, Time};

use super::{Action, Agent, ConnectionId, Facts};
use crate::failure::{Class, Failure, Origin};
use crate::id::{Epoch, ObjectId, SessionId};
use crate::limits::{CONTROL_BYTES_MAX, REQUESTS_MAX};
use crate::wire::message::Access;
use crate::wire::{Breach, Message};

impl Agent {
    pub(super) fn request(
        &mut self,
        now: Time,
        id: ConnectionId,
        name: SessionId,
        message: Message,
    ) -> Result<(), Breach> {
        let (Message::Open { request, .. }
        | Message::Stat { request, .. }
        | Message::List { request, .. }
        | Message::Close { request, .. }) = message
        else {
            return Err(Breach::of("a message that a host does not send, or not now"));
        };
        let Some(session) = self.sessions.get_mut(&name) else { return Ok(()) };
        if session.requests.len() >= REQUESTS_MAX {
            return Err(Breach::of("more requests than may be under way"));
        }
        if !session.requests.insert(request) {
            return Err(Breach::of("a request of a number that is under way"));
        }
        let epoch = session.epoch;
        match message {
            Message::Open { access, uri, version, .. } => {
                self.act(Action::Open { session: name, epoch, request, access, uri, version });
            }
            Message::Close { object, .. } => {
                let closed = self.close_object(name, object);
                self.reply(
                    now,
                    id,
                    name,
                    request,
                    closed.map(|()| Message::Closed { request }).map_err(|failure| (failure, Box::default())),
                );
            }
            question => self.act(Action::Ask(name, epoch, question)),
        }
        Ok(())
    }

    fn close_object(&mut self, name: SessionId, object: ObjectId) -> Result<(), Failure> {
        let missing = Failure::caller(ErrorKind::NotRegistered);
        let session = self.sessions.get_mut(&name).ok_or(missing)?;
        if session.operations.values().any(|operation| operation.object() == object) {
            return Err(Failure::caller(ErrorKind::InUse));
        }
        session.objects.get(&object.slot()).filter(|(id, _)| *id == object).ok_or(missing)?;
        session.objects.remove(&object.slot());
        self.act(Action::CloseObject(name, object));
        Ok(())
    }

    /// An object was opened for a request, or not. Gives its name; `None` where nobody wants it any more, so that it is to be closed.
    pub fn opened(
        &mut self,
        now: Time,
        (name, epoch, request): (SessionId, Epoch, u32),
        access: Access,
        opened: Result<Facts, (Failure, Box<str>)>,
    ) -> Option<ObjectId> {
        let session = self.sessions.get_mut(&name).filter(|session| session.epoch == epoch)?;
        let id = session.connection.filter(|_| session.requests.contains(&request))?;
        let most = self.connections.get(&id).map_or(0, |connection| connection.common.objects_max);
        let free = (0..most).find(|slot| !session.objects.contains_key(slot));
        let told = match (opened, free) {
            (Err(told), _) => Err(told),
            (Ok(_), None) => {
                Err((Failure::new(Class::RetryNow, Origin::Agent, ErrorKind::ResourceLimit), Box::default()))
            }
            (Ok(facts), Some(slot)) => {
                session.object_last = session.object_last.wrapping_add(1).max(1);
                let object = ObjectId::new(slot, session.object_last);
                session.objects.insert(slot, (object, access));
                let granularity = facts.granularity.max(1).next_power_of_two();
                Ok((
                    object,
                    Message::Opened { request, object, length: facts.length, granularity, version: facts.version },
                ))
            }
        };
        let object = told.as_ref().ok().map(|(object, _)| *object);
        self.reply(now, id, name, request, told.map(|(_, message)| message));
        object
    }

    /// The answer to [`Action::Ask`]: STATED, LISTED, or why not. One that nobody waits for is dropped.
    pub fn answer(
        &mut self,
        now: Time,
        (name, epoch, request): (SessionId, Epoch, u32),
        answer: Result<Message, (Failure, Box<str>)>,
    ) {
        let Some(session) = self.sessions.get(&name).filter(|session| session.epoch == epoch) else { return };
        let Some(id) = session.connection.filter(|_| session.requests.contains(&request)) else { return };
        self.reply(now, id, name, request, answer);
    }

    fn reply(
        &mut self,
        now: Time,
        id: ConnectionId,
        name: SessionId,
        request: u32,
        answer: Result<Message, (Failure, Box<str>)>,
    ) {
        if let Some(session) = self.sessions.get_mut(&name) {
            session.requests.remove(&request);
        }
        let refused = |(failure, text)| Message::Refused { request, failure, text };
        let answer = answer.unwrap_or_else(refused);
        let mut body = Vec::new();
        answer.encode(&mut body);
        let is_long = body.len() as u64 > u64::from(CONTROL_BYTES_MAX);
        let answer = if is_long {
            refused((Failure::new(Class::Fatal, Origin::Agent, ErrorKind::TooLarge), Box::default()))
        } else {
            answer
        };
        self.send(now, id, answer);
    }
}
