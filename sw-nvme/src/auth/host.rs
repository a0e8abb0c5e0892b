//! The host's end of an exchange.
//!
//! Order of calls, until [`Exchange::outcome`] says how it ended: [`poll_transmit`](Exchange::poll_transmit), and what it gives is
//! sent by Authentication Send; if it gives nothing, Authentication Receive, and [`handle_message`](Exchange::handle_message).

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
pub struct HostConfig<'a> {
    /// HOSTNQN, as Connect has it.
    pub host: &'a Nqn,
    /// SUBNQN, as Connect has it.
    pub subsystem: &'a Nqn,
    /// The host's secret.
    pub secret: &'a Secret,
    /// The controller's, if it shall show who it is.
    pub controller_secret: Option<&'a Secret>,
    /// What is offered.
    pub offer: &'a Offer,
}

/// What is new in each exchange.
pub struct HostRandom {
    /// T_ID.
    pub transaction: u16,
    /// S2; see [`Sequence`](super::Sequence).
    pub sequence: NonZeroU32,
    /// C2.
    pub challenge: Zeroizing<[u8; RANDOM_BYTES]>,
    /// The exponent.
    pub exponent: Zeroizing<[u8; RANDOM_BYTES]>,
}

/// Why an exchange failed, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The controller says so.
    #[error("the controller refuses this host: {0}")]
    Refused(Explanation),
    /// The controller's response is another one than its secret gives.
    #[error("the controller does not know its own key: its response is wrong")]
    WrongController,
    /// The controller was asked for a response, and gave none.
    #[error("the controller does not show that it knows its own key")]
    NoResponse,
    /// The controller chose a hash that was not offered.
    #[error("the controller chose hash {0}, which was not offered")]
    Hash(u8),
    /// The controller chose a group that was not offered.
    #[error("the controller chose group {0}, which was not offered")]
    Group(u8),
    /// The controller's value would give the shared secret away.
    #[error("the controller's diffie-hellman value is none that may be used")]
    Value,
    /// The controller broke the protocol.
    #[error("the controller broke the protocol of authentication: {0}")]
    Message(BadMessage),
}

impl HostError {
    /// What the controller is told; `None`: it knows.
    fn explanation(&self) -> Option<Explanation> {
        match self {
            Self::Refused(_) => None,
            Self::WrongController | Self::NoResponse => Some(Explanation::FAILED),
            Self::Hash(_) => Some(Explanation::HASH),
            Self::Group(_) | Self::Value => Some(Explanation::GROUP),
            Self::Message(bad) => Some(bad.explanation),
        }
    }
}

impl From<BadMessage> for HostError {
    fn from(bad: BadMessage) -> Self {
        Self::Message(bad)
    }
}

enum State {
    /// AUTH_Negotiate is to be sent.
    Negotiate,
    /// The challenge is awaited.
    Challenge,
    /// The reply is to be sent; what R2 must be.
    Reply(Vec<u8>, Awaited),
    /// DH-HMAC-CHAP_Success1 is awaited.
    Success1(Awaited),
    /// DH-HMAC-CHAP_Success2 is to be sent.
    Success2(Chosen),
    /// AUTH_Failure2 is to be sent.
    Failure2(Explanation, HostError),
    Over(Result<Chosen, HostError>),
}

struct Awaited {
    chosen: Chosen,
    /// R2, if the controller was asked for it.
    response: Option<Zeroizing<Vec<u8>>>,
}

/// See the module documentation.
pub struct Exchange {
    parties: Parties,
    key: Zeroizing<Vec<u8>>,
    controller_key: Option<Zeroizing<Vec<u8>>>,
    offer: Offer,
    random: HostRandom,
    state: State,
}

impl Exchange {
    /// Begins.
    pub fn new(config: HostConfig<'_>, random: HostRandom) -> Self {
        let HostConfig { host, subsystem, secret, controller_secret, offer } = config;
        Self {
            parties: Parties { host: host.clone(), subsystem: subsystem.clone() },
            key: secret.key_of(host),
            controller_key: controller_secret.map(|secret| secret.key_of(subsystem)),
            offer: offer.clone(),
            random,
            state: State::Negotiate,
        }
    }

    /// How it ended; `None` as long as it goes on.
    pub fn outcome(&self) -> Option<Result<Chosen, HostError>> {
        match self.state {
            State::Over(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// The data of Authentication Receive came. Not before [`poll_transmit`](Self::poll_transmit) gives nothing.
    pub fn handle_message(&mut self, raw: &[u8]) {
        let next = self.next(raw).unwrap_or_else(|error| match error.explanation() {
            Some(explanation) => State::Failure2(explanation, error),
            None => State::Over(Err(error)),
        });
        self.state = next;
    }

    /// The data of Authentication Send that is due.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        let (next, message) = match core::mem::replace(&mut self.state, State::Negotiate) {
            State::Negotiate => {
                let (hashes, groups) = self.offer.ids();
                let offer = Message::Negotiate(Negotiate { concatenation: 0, hashes: &hashes, groups: &groups });
                (State::Challenge, Some(self.envelope(offer)))
            }
            State::Reply(reply, awaited) => (State::Success1(awaited), Some(reply)),
            State::Success2(chosen) => (State::Over(Ok(chosen)), Some(self.envelope(Message::Success2))),
            State::Failure2(explanation, error) => {
                (State::Over(Err(error)), Some(self.envelope(Message::Failure2(explanation))))
            }
            waits @ (State::Challenge | State::Success1(_) | State::Over(_)) => (waits, None),
        };
        self.state = next;
        message
    }

    fn envelope(&self, message: Message<'_>) -> Vec<u8> {
        Envelope { transaction: self.random.transaction, message }.encode()
    }

    fn next(&mut self, raw: &[u8]) -> Result<State, HostError> {
        let Envelope { transaction, message } = Envelope::decode(raw)?;
        if let Message::Failure1(explanation) = message {
            // Whatever its transaction: the exchange is over for the controller.
            return Err(HostError::Refused(explanation));
        }
        if transaction != self.random.transaction {
            return Err(payload("a message of another transaction (T_ID)").into());
        }
        match (&self.state, message) {
            (State::Challenge, Message::Challenge(challenge)) => self.challenged(&challenge),
            (State::Success1(awaited), Message::Success1(success)) => Self::accepted(awaited, &success),
            _ => Err(unexpected("a message that is not due").into()),
        }
    }

    /// Chooses nothing, checks what was chosen, and makes the reply.
    fn challenged(&self, challenge: &Challenge<'_>) -> Result<State, HostError> {
        let hash = Hash::of(challenge.hash).filter(|hash| self.offer.hashes.contains(hash));
        let hash = hash.ok_or(HostError::Hash(challenge.hash))?;
        let group = Group::of(challenge.group).filter(|group| self.offer.groups.contains(group));
        let group = group.ok_or(HostError::Group(challenge.group))?;
        if challenge.challenge.len() != hash.len_bytes() {
            return Err(payload("a challenge has another length than its hash (HL)").into());
        }
        if challenge.sequence == 0 {
            return Err(payload("a challenge has no number (SEQNUM)").into());
        }
        let pair = Pair::new(group, &self.random.exponent);
        let shared = match &pair {
            Some(pair) => Some(pair.shared(challenge.value).ok_or(HostError::Value)?),
            None if challenge.value.is_empty() => None,
            None => return Err(payload("a value without a group (DHVLEN)").into()),
        };
        let session = shared.map(|shared| digest(hash, &shared));
        let session = session.as_ref().map(|session| session.as_slice());
        let question = Question {
            hash,
            session,
            challenge: challenge.challenge,
            sequence: challenge.sequence,
            transaction: self.random.transaction,
        };
        let own = self.random.challenge.get(..hash.len_bytes()).unwrap_or_default();
        let own_sequence = self.random.sequence.get();
        let awaited = self.controller_key.as_ref().map(|key| {
            let question = Question { challenge: own, sequence: own_sequence, ..question };
            question.of_controller(key, &self.parties)
        });
        let response = question.of_host(&self.key, &self.parties);
        let reply = self.envelope(Message::Reply(Reply {
            response: &response,
            challenge: awaited.as_ref().map(|_| own),
            sequence: if awaited.is_some() { own_sequence } else { 0 },
            value: pair.as_ref().map_or(&[], |pair| &pair.value),
        }));
        Ok(State::Reply(reply, Awaited { chosen: Chosen { hash, group }, response: awaited }))
    }

    fn accepted(awaited: &Awaited, success: &Success1<'_>) -> Result<State, HostError> {
        let chosen = awaited.chosen;
        if usize::from(success.hash_bytes) != chosen.hash.len_bytes() {
            return Err(payload("a success has another length than its hash (HL)").into());
        }
        match (&awaited.response, success.response) {
            (None, None) => Ok(State::Over(Ok(chosen))),
            (Some(right), Some(told)) if same(right, told) => Ok(State::Success2(chosen)),
            (Some(_), Some(_)) => Err(HostError::WrongController),
            (Some(_), None) => Err(HostError::NoResponse),
            (None, Some(_)) => Err(payload("a response that was not asked for (RVALID)").into()),
        }
    }
}
