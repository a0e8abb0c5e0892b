//! The controller's end of an exchange.
//!
//! Order of calls: the data of each Authentication Send goes to [`handle_message`](Exchange::handle_message), and each Authentication
//! Receive gets what [`poll_message`](Exchange::poll_message) gives. A negotiation begins anew, at any time but after a failure.

use core::num::NonZeroU32;

use zeroize::Zeroizing;

use super::{
    Chosen, Hash, Offer, RANDOM_BYTES,
    group::{Group, Pair},
    message::{BadMessage, Challenge, Envelope, Explanation, Message, Negotiate, Reply, Success1, payload, unexpected},
    response::{Parties, Question, digest, same},
    secret::Secret,
};
use crate::fabrics::Nqn;

/// Who talks to whom, and what they know.
#[derive(Clone, Copy)]
pub struct ControllerConfig<'a> {
    /// HOSTNQN, as Connect has it.
    pub host: &'a Nqn,
    /// SUBNQN, as Connect has it.
    pub subsystem: &'a Nqn,
    /// The host's secret.
    pub secret: &'a Secret,
    /// The controller's own, for hosts that ask for it.
    pub controller_secret: Option<&'a Secret>,
    /// What is chosen from, the best first.
    pub offer: &'a Offer,
}

/// What is new in each exchange.
pub struct ControllerRandom {
    /// S1; see [`Sequence`](super::Sequence).
    pub sequence: NonZeroU32,
    /// C1.
    pub challenge: Zeroizing<[u8; RANDOM_BYTES]>,
    /// The exponent.
    pub exponent: Zeroizing<[u8; RANDOM_BYTES]>,
}

/// What Authentication Receive gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// A message.
    Message(Vec<u8>),
    /// None is due.
    Nothing,
    /// One is due that is longer than the room for it.
    NoRoom,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    Under,
    /// The host is who it says.
    Done(Chosen),
    /// It is not, or does not say so. The host was told or is to be told at the next Authentication Receive.
    Failing,
    /// The same, and the host knows.
    Failed(Explanation),
}

enum State {
    /// AUTH_Negotiate is awaited.
    Idle,
    /// The challenge is to be given.
    Challenge(Box<Asked>),
    /// The reply is awaited.
    Reply(Box<Asked>),
    /// DH-HMAC-CHAP_Success1 is to be given, the response with it.
    Success1(Chosen, Option<Zeroizing<Vec<u8>>>),
    /// DH-HMAC-CHAP_Success2 is awaited.
    Success2(Chosen),
    Done(Chosen),
    /// AUTH_Failure1 is to be given.
    Failure1(Explanation),
    Failed(Explanation),
}

/// What the host was asked.
struct Asked {
    chosen: Chosen,
    sequence: NonZeroU32,
    challenge: Zeroizing<Vec<u8>>,
    pair: Option<Pair>,
}

/// See the module documentation.
pub struct Exchange {
    parties: Parties,
    key: Zeroizing<Vec<u8>>,
    controller_key: Option<Zeroizing<Vec<u8>>>,
    offer: Offer,
    /// Of the last negotiation.
    transaction: u16,
    state: State,
}

impl Exchange {
    /// Awaits a negotiation.
    pub fn new(config: ControllerConfig<'_>) -> Self {
        let ControllerConfig { host, subsystem, secret, controller_secret, offer } = config;
        Self {
            parties: Parties { host: host.clone(), subsystem: subsystem.clone() },
            key: secret.key_of(host),
            controller_key: controller_secret.map(|secret| secret.key_of(subsystem)),
            offer: offer.clone(),
            transaction: 0,
            state: State::Idle,
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        match self.state {
            State::Done(chosen) => Progress::Done(chosen),
            State::Failure1(_) => Progress::Failing,
            State::Failed(explanation) => Progress::Failed(explanation),
            _ => Progress::Under,
        }
    }

    /// The data of Authentication Send came. `random` is for the challenge, if it is a negotiation.
    pub fn handle_message(&mut self, raw: &[u8], random: ControllerRandom) {
        if matches!(self.state, State::Failure1(_) | State::Failed(_)) {
            return;
        }
        self.state = self.next(raw, random).unwrap_or_else(|bad| State::Failure1(bad.explanation));
    }

    /// The data for Authentication Receive with room for so many bytes.
    pub fn poll_message(&mut self, room_bytes: usize) -> Given {
        let message = match &self.state {
            State::Challenge(asked) => Message::Challenge(Challenge {
                hash: asked.chosen.hash.id(),
                group: asked.chosen.group.id(),
                sequence: asked.sequence.get(),
                challenge: &asked.challenge,
                value: asked.pair.as_ref().map_or(&[], |pair| &pair.value),
            }),
            State::Success1(chosen, response) => Message::Success1(Success1 {
                // 64 at most.
                hash_bytes: u8::try_from(chosen.hash.len_bytes()).unwrap_or(0),
                response: response.as_ref().map(|response| response.as_slice()),
            }),
            State::Failure1(explanation) => Message::Failure1(*explanation),
            _ => return Given::Nothing,
        };
        let raw = Envelope { transaction: self.transaction, message }.encode();
        if raw.len() > room_bytes {
            return Given::NoRoom;
        }
        self.state = match core::mem::replace(&mut self.state, State::Idle) {
            State::Challenge(asked) => State::Reply(asked),
            State::Success1(chosen, None) => State::Done(chosen),
            State::Success1(chosen, Some(_)) => State::Success2(chosen),
            State::Failure1(explanation) => State::Failed(explanation),
            same => same,
        };
        Given::Message(raw)
    }

    fn next(&mut self, raw: &[u8], random: ControllerRandom) -> Result<State, BadMessage> {
        let Envelope { transaction, message } = Envelope::decode(raw)?;
        if let Message::Negotiate(negotiate) = message {
            self.transaction = transaction;
            return self.negotiated(&negotiate, random).map(|asked| State::Challenge(Box::new(asked)));
        }
        if transaction != self.transaction {
            return Err(payload("a message of another transaction (T_ID)"));
        }
        match (&self.state, message) {
            (State::Reply(asked), Message::Reply(reply)) => self.replied(asked, &reply),
            (State::Success2(chosen), Message::Success2) => Ok(State::Done(*chosen)),
            // Whenever the host gives up, it needs not be told.
            (_, Message::Failure2(explanation)) => Ok(State::Failed(explanation)),
            _ => Err(unexpected("a message that is not due")),
        }
    }

    /// Chooses the best of what the host offers, and makes a challenge.
    fn negotiated(&self, negotiate: &Negotiate<'_>, random: ControllerRandom) -> Result<Asked, BadMessage> {
        let refuse = |rule, explanation| BadMessage { rule, explanation };
        if negotiate.concatenation != 0 {
            return Err(refuse("a secure channel is asked for (SC_C)", Explanation::CONCATENATION));
        }
        let is_offered = |hash: &&Hash| negotiate.hashes.contains(&hash.id());
        let hash = self.offer.hashes.iter().find(is_offered).copied();
        let hash = hash.ok_or(refuse("no hash of the host's may be used", Explanation::HASH))?;
        let is_offered = |group: &&Group| negotiate.groups.contains(&group.id());
        let group = self.offer.groups.iter().find(is_offered).copied();
        let group = group.ok_or(refuse("no group of the host's may be used", Explanation::GROUP))?;
        let challenge = random.challenge.iter().copied().take(hash.len_bytes()).collect();
        Ok(Asked {
            chosen: Chosen { hash, group },
            sequence: random.sequence,
            challenge: Zeroizing::new(challenge),
            pair: Pair::new(group, &random.exponent),
        })
    }

    /// Compares the response of the host, and makes one if the host asks for it.
    fn replied(&self, asked: &Asked, reply: &Reply<'_>) -> Result<State, BadMessage> {
        let Asked { chosen, sequence, challenge, pair } = asked;
        if reply.response.len() != chosen.hash.len_bytes() {
            return Err(payload("a response has another length than its hash (HL)"));
        }
        let value = |rule| BadMessage { rule, explanation: Explanation::GROUP };
        let shared = match pair {
            Some(pair) => Some(pair.shared(reply.value).ok_or(value("the host's value is none that may be used"))?),
            None if reply.value.is_empty() => None,
            None => return Err(payload("a value without a group (DHVLEN)")),
        };
        let session = shared.map(|shared| digest(chosen.hash, &shared));
        let session = session.as_ref().map(|session| session.as_slice());
        let (transaction, hash) = (self.transaction, chosen.hash);
        let question = Question { hash, session, challenge, sequence: sequence.get(), transaction };
        let failed = |rule| BadMessage { rule, explanation: Explanation::FAILED };
        if !same(&question.of_host(&self.key, &self.parties), reply.response) {
            return Err(failed("the response of the host is wrong"));
        }
        let Some(theirs) = reply.challenge else { return Ok(State::Success1(*chosen, None)) };
        if reply.sequence == 0 {
            return Err(payload("a challenge has no number (SEQNUM)"));
        }
        if same(theirs, challenge) {
            return Err(failed("the host sends our own challenge back"));
        }
        let key = self.controller_key.as_ref().ok_or(failed("the controller has no key that it could show"))?;
        let question = Question { challenge: theirs, sequence: reply.sequence, ..question };
        Ok(State::Success1(*chosen, Some(question.of_controller(key, &self.parties))))
    }
}
