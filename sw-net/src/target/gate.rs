//! What stands before a queue until its host has shown who it is.
//!
//! ```text
//!   Open                                 the target has no keys
//!   Shut ──(the exchange is done)──► Passed     commands of all kinds are taken from there on
//!     └────────(it failed)──► the connection ends, once the host was told    ◄── Passed, when the host begins anew and fails
//! ```
//!
//! Until the host asks what it is told nothing but authentication is taken, also behind a gate that was passed before.

use std::num::NonZeroU32;

use sw_nvme::{
    auth::{
        Offer,
        controller::{ControllerConfig, ControllerRandom, Exchange, Given, Progress},
        message::MESSAGE_BYTES_MAX,
        secret::Secret,
    },
    fabrics::{Demand, FabricsCommand, Nqn, SECURITY, Security},
    keyring::Keys,
    status::Status,
};

use super::subsystem::{Answer, says};
use crate::entropy::random_bytes;

/// Bytes of Authentication Send at most: no message is longer, and hosts may round up.
pub(super) const SEND_BYTES_MAX: u32 = 4096;
const _: () = assert!(MESSAGE_BYTES_MAX <= SEND_BYTES_MAX as usize, "every message fits");
/// Bytes of Authentication Receive at most.
const RECEIVE_BYTES_MAX: u32 = 4096;

/// The keys that a target demands of its hosts. A host that has none is not let in.
#[derive(Clone, Debug)]
pub struct Authentication {
    /// What hosts must know, each its own or all the same.
    pub secret: Keys<Secret>,
    /// What the target shows to hosts that ask for it.
    pub controller_secret: Option<Keys<Secret>>,
    /// Hashes and groups that may be used, the best first; at least one of each.
    pub offer: Offer,
}

/// See the module documentation.
pub(super) enum Gate {
    Open,
    Shut(Box<Exchange>),
    Passed(Box<Exchange>),
}

impl Gate {
    /// For a queue that `host` just connected; `None`: it has no key, and cannot show who it is.
    pub(super) fn shut(keys: &Authentication, host: &Nqn, subsystem: &Nqn) -> Option<Self> {
        let Authentication { secret, controller_secret, offer } = keys;
        let (secret, controller_secret) = (secret.of(host)?, controller_secret.as_ref().and_then(|keys| keys.of(host)));
        let config = ControllerConfig { host, subsystem, secret, controller_secret, offer };
        Some(Self::Shut(Box::new(Exchange::new(config))))
    }

    /// What the answer to Connect says.
    pub(super) fn demand(&self) -> Demand {
        match self {
            Self::Shut(_) => Demand::Authentication,
            Self::Open | Self::Passed(_) => Demand::None,
        }
    }

    /// Whether a command may come.
    pub(super) fn lets(&self, fabrics: Option<&FabricsCommand>) -> bool {
        use FabricsCommand::{AuthenticationReceive, AuthenticationSend, Disconnect};
        let always = matches!(fabrics, Some(AuthenticationSend(_) | AuthenticationReceive(_) | Disconnect));
        always
            || match self {
                Self::Open => true,
                Self::Shut(_) => false,
                Self::Passed(exchange) => matches!(exchange.progress(), Progress::Under | Progress::Done(_)),
            }
    }

    fn exchange(&mut self) -> Option<&mut Exchange> {
        match self {
            Self::Open => None,
            Self::Shut(exchange) | Self::Passed(exchange) => Some(exchange),
        }
    }

    /// Whether the connection ends: the host is not who it says, and knows that we know.
    pub(super) fn has_failed(&mut self) -> bool {
        self.exchange().is_some_and(|exchange| matches!(exchange.progress(), Progress::Failed(_)))
    }

    /// Lets the host in, if it has shown who it is; whether it just did.
    pub(super) fn settle(&mut self) -> bool {
        match std::mem::replace(self, Self::Open) {
            Self::Shut(exchange) if matches!(exchange.progress(), Progress::Done(_)) => {
                *self = Self::Passed(exchange);
                true
            }
            other => {
                *self = other;
                false
            }
        }
    }

    /// Authentication Send, with its data. `number`: for a challenge; `None`: the system gave no randomness.
    pub(super) fn send(&mut self, security: Security, data: &[u8], number: Option<NonZeroU32>) -> Answer {
        let Some(exchange) = self.exchange() else { return Status::INVALID_OPCODE.with_dnr().into() };
        if security.protocol != SECURITY || security.bytes as usize != data.len() {
            return says::INVALID_FIELD.into();
        }
        let random = || {
            Some(ControllerRandom {
                sequence: number?,
                challenge: random_bytes().ok()?,
                exponent: random_bytes().ok()?,
            })
        };
        let Some(random) = random() else { return Status::INTERNAL.into() };
        exchange.handle_message(data, random);
        Answer::SUCCESS
    }

    /// Authentication Receive, with room for `out_bytes`.
    pub(super) fn receive(&mut self, security: Security, out: &mut Vec<u8>, out_bytes: u32) -> Answer {
        let Some(exchange) = self.exchange() else { return Status::INVALID_OPCODE.with_dnr().into() };
        let fits = security.bytes == out_bytes && (1..=RECEIVE_BYTES_MAX).contains(&out_bytes);
        if security.protocol != SECURITY || !fits {
            return says::INVALID_FIELD.into();
        }
        match exchange.poll_message(out_bytes as usize) {
            Given::Message(message) => {
                out.extend_from_slice(&message);
                out.resize(out_bytes as usize, 0);
                Answer::SUCCESS
            }
            Given::NoRoom => says::INVALID_FIELD.into(),
            Given::Nothing => says::SEQUENCE.into(),
        }
    }
}
