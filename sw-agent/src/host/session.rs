//! From a connection to a session, and back.

use sw_engine::{ErrorKind, Time};

use super::{Action, Closing, Host, Phase, Refusal};
use crate::credits::Spender;
use crate::id::{Position, SessionId};
use crate::limits::AUTH_STEPS_MAX;
use crate::wire::message::{Flag, Hello};
use crate::wire::{Breach, Message, VERSION, VERSION_MIN};

impl Host {
    /// The next step of who we are, after [`Action::Authenticate`].
    ///
    /// # Errors
    /// `ApiMisuse` when nobody asked.
    pub fn present(&mut self, now: Time, kind: u16, evidence: &[u8]) -> Result<(), Refusal> {
        let Phase::Auth(_, step) = self.phase else {
            return Err(Refusal::new(ErrorKind::ApiMisuse, "nobody asks who we are"));
        };
        if step >= AUTH_STEPS_MAX || evidence.len() > crate::limits::EVIDENCE_BYTES_MAX {
            return Err(Refusal::new(ErrorKind::TooLarge, "evidence of too many bytes or steps"));
        }
        self.send(now, Message::Auth { kind, step, evidence: evidence.into() });
        Ok(())
    }

    /// Leaves: nothing new is begun, what is under way ends until `until`, leases come back, and the connection is closed.
    pub fn drain(&mut self, now: Time, until: Time) {
        if self.draining.is_none() {
            let left = u32::try_from(until.since(now).as_millis()).unwrap_or(u32::MAX);
            if self.phase == Phase::Up {
                self.send(now, Message::Drain { reason: 0, deadline_ms: left });
            }
            self.leave(now, until);
        }
    }

    /// Both when we want to go and when the agent does.
    fn leave(&mut self, now: Time, until: Time) {
        self.draining = Some(until);
        self.fail_queued(ErrorKind::Closed);
        self.leave_if_done(now);
    }

    /// What is under way ends first, then leases come back, then there is nothing to stay for.
    pub(super) fn leave_if_done(&mut self, now: Time) {
        if self.draining.is_none() || self.operations_open() > 0 {
            return;
        }
        self.revoke_all(now);
        if self.leases_open() == 0 && self.requests.is_empty() && self.phase == Phase::Up {
            self.act(Action::Send(Message::Goodbye { reason: 0 }));
            self.draining = Some(Time::FOREVER);
            self.session = SessionId::default();
            self.close(Closing::Goodbye);
        }
    }

    pub(super) fn connected(&mut self, now: Time) {
        // Who connects before the last connection is quiet, or twice, or after we left, is not listened to.
        if self.phase != (Phase::Down { quiet: Flag::Set }) || self.draining.is_some() {
            return;
        }
        self.phase = Phase::Hello(now.after(self.config.patience));
        self.heard = now;
        self.send(now, Message::Hello(self.config.hello.clone()));
    }

    pub(super) fn message(&mut self, now: Time, message: Message) -> Result<(), Breach> {
        match (self.phase, message) {
            (Phase::Up, message) => self.message_up(now, message),
            (_, Message::Refused { request: 0, failure, .. }) => {
                self.close(Closing::Refused(failure));
                Ok(())
            }
            (Phase::Hello(_), Message::Welcome(welcome)) => self.welcome(now, &welcome),
            (Phase::Auth(until, step), Message::Auth { step: theirs, evidence, .. }) if step == theirs => {
                self.phase = Phase::Auth(until, step + 1);
                self.act(Action::Authenticate(step + 1, evidence));
                Ok(())
            }
            (Phase::Auth(..), Message::Admitted { .. }) => {
                self.phase = Phase::Opening(now.after(self.config.patience));
                let (session, epoch, boot, key) = (self.session, self.epoch, self.boot, self.key);
                self.send(now, Message::SessionOpen { session, epoch, boot, key, credit: self.config.window });
                Ok(())
            }
            (Phase::Opening(_), message @ Message::Session { .. }) => self.session_is_there(now, &message),
            _ => Err(Breach::of("a message that may not come now")),
        }
    }

    fn welcome(&mut self, now: Time, welcome: &Hello) -> Result<(), Breach> {
        let ours = &self.config.hello;
        let version = welcome.version_min;
        if version != welcome.version_max || !(VERSION_MIN..=VERSION).contains(&version) {
            return Err(Breach::of("a version that was not offered"));
        }
        let offered = ours.features_critical | ours.features_optional;
        if welcome.features_critical & !offered != 0 || ours.features_critical & !welcome.features_critical != 0 {
            return Err(Breach::of("features in force are not those that were offered and demanded"));
        }
        self.common = Hello {
            operations_max: ours.operations_max.min(welcome.operations_max),
            leases_max: ours.leases_max.min(welcome.leases_max),
            objects_max: ours.objects_max.min(welcome.objects_max),
            payload_bytes_max: ours.payload_bytes_max.min(welcome.payload_bytes_max),
            silence_ms: ours.silence_ms.min(welcome.silence_ms),
            checksums: ours.checksums & welcome.checksums,
            ..welcome.clone()
        };
        self.phase = Phase::Auth(now.after(self.config.patience), 0);
        if self.config.auth_kind == 0 {
            self.send(now, Message::Auth { kind: 0, step: 0, evidence: Box::default() });
        } else {
            self.act(Action::Authenticate(0, Box::default()));
        }
        Ok(())
    }

    fn session_is_there(&mut self, now: Time, message: &Message) -> Result<(), Breach> {
        let Message::Session { session, epoch, key, credit, resumed, settled, .. } = message else { return Ok(()) };
        let (asked, before) = (self.session, self.epoch);
        let is_resumed = *resumed == Flag::Set;
        if is_resumed && (*session != asked || self.common.boot != self.boot) {
            return Err(Breach::of("a session is told to be the old one and is not"));
        }
        if *epoch <= before {
            return Err(Breach::of("an epoch that is not above the last one"));
        }
        (self.session, self.epoch, self.key, self.boot) = (*session, *epoch, *key, self.common.boot);
        self.credit = Spender::new(*credit);
        self.position = Position::default();
        self.phase = Phase::Up;
        self.act(Action::Up { epoch: *epoch, resumed: *resumed, settled: *settled });
        if !is_resumed && !self.objects.is_empty() {
            self.objects.clear();
            self.act(Action::ObjectsLost);
            self.fail_queued(ErrorKind::Closed);
        }
        self.grant_again(now);
        Ok(())
    }

    fn message_up(&mut self, now: Time, message: Message) -> Result<(), Breach> {
        match message {
            Message::LeaseHeld { lease } => self.lease_held(now, lease),
            Message::LeaseRevoked { lease, reason } => self.lease_revoked(lease, reason),
            Message::Credits(credit) => {
                if self.credit.grant(credit) {
                    Ok(())
                } else {
                    Err(Breach::of("credit is taken back"))
                }
            }
            Message::Heartbeat { .. } => Ok(()),
            Message::Drain { deadline_ms, .. } => {
                if self.draining.is_none() {
                    self.act(Action::Draining);
                    self.leave(now, now.after(core::time::Duration::from_millis(u64::from(deadline_ms))));
                }
                Ok(())
            }
            Message::Goodbye { .. } => {
                self.close(Closing::Goodbye);
                Ok(())
            }
            Message::Refused { request: 0, failure, .. } => {
                self.close(Closing::Refused(failure));
                Ok(())
            }
            answer => self.answer(now, answer),
        }
    }

    /// The connection is gone. What it carried may still touch memory.
    pub(super) fn lost(&mut self) {
        if !self.is_connected() {
            return;
        }
        self.phase = Phase::Down { quiet: Flag::Clear };
        self.requests_lost();
        self.operations_lost();
        self.leases_lost();
        if self.mutation.has(crate::mutant::Mutant::BackBeforeQuiet) {
            self.operations_quiet();
            self.leases_quiet();
        }
    }

    /// Nothing of it can.
    pub(super) fn quiet(&mut self, _now: Time) {
        if self.phase != (Phase::Down { quiet: Flag::Clear }) {
            return;
        }
        self.phase = Phase::Down { quiet: Flag::Set };
        self.operations_quiet();
        self.leases_quiet();
    }
}
