//! Shows a controller who the host is, and has it show who it is itself, on a queue that was just connected (DH-HMAC-CHAP).
//!
//! The exchange itself is [`sw_nvme::auth`]; here are the commands that carry it, the randomness, and what an operator is told.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sw_engine::{Error, ErrorKind};
use sw_nvme::{
    auth::{
        Offer, Sequence,
        host::{Exchange, HostConfig, HostError, HostRandom},
        message::Explanation,
        secret::Secret,
    },
    fabrics::{ConnectData, Demand, Nqn},
    inquiry::{ADMIN_DATA_BYTES, AdminQueue as _, Data},
    keyring::Keys,
    status::{Status, sct},
    wire::Command,
};

use crate::{
    admin::{Admin, after},
    entropy::{random_bytes, random_u32},
};

/// Authentication Required: the code of all errors that a host without the right key gets.
pub(crate) const REQUIRED: Status = Status::new(sct::COMMAND, 0x91);
/// Commands of one exchange at most: five messages, and a failure instead of one of them.
const COMMANDS_MAX: usize = 6;
/// Bytes that are asked for at a time: more than any message has, as Linux asks for.
const ROOM_BYTES: u32 = 4096;
const _: () = assert!(ADMIN_DATA_BYTES == ROOM_BYTES as usize, "the page takes it");

/// What a host knows, to show who it is.
pub struct HostKeys {
    secret: Keys<Secret>,
    controller_secret: Option<Keys<Secret>>,
    offer: Offer,
    sequence: Mutex<Option<Sequence>>,
}

impl HostKeys {
    /// `secret`: the host's own, for each subsystem. `controller_secret`: those of the subsystems, which must show that they know them;
    /// none: they need not. `offer`: hashes and groups that may be used, at least one of each.
    pub fn new<K: Into<Keys<Secret>>>(secret: K, controller_secret: Option<K>, offer: Offer) -> Self {
        let (secret, controller_secret) = (secret.into(), controller_secret.map(Into::into));
        Self { secret, controller_secret, offer, sequence: Mutex::default() }
    }

    /// The host's own key for a subsystem.
    pub(crate) fn own(&self, subsystem: &Nqn) -> Option<&Secret> {
        self.secret.of(subsystem)
    }

    /// The key that a subsystem must show that it knows.
    fn theirs(&self, subsystem: &Nqn) -> Option<&Secret> {
        self.controller_secret.as_ref()?.of(subsystem)
    }

    fn number(&self) -> std::io::Result<NonZeroU32> {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = match sequence.take() {
            Some(begun) => begun,
            None => Sequence::from_random(random_u32()?),
        };
        Ok(sequence.insert(begun).take())
    }

    fn random(&self) -> std::io::Result<HostRandom> {
        let sequence = self.number()?;
        let [low, high, ..] = random_u32()?.to_le_bytes();
        let transaction = u16::from_le_bytes([low, high]);
        Ok(HostRandom { transaction, sequence, challenge: random_bytes()?, exponent: random_bytes()? })
    }
}

impl fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { secret, controller_secret, offer, .. } = self;
        write!(f, "HostKeys({secret:?}, {controller_secret:?}, {offer:?})")
    }
}

/// Whether an error says that the host or the controller is not who it should be: trying again with the same keys will not mend it.
pub(crate) fn is_refusal(error: &Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied && error.code() == i32::from(REQUIRED.code())
}

fn refusal(admin: &Admin, text: String, remedy: String) -> Error {
    admin.error(ErrorKind::PermissionDenied, text).with_code(i32::from(REQUIRED.code())).remedy(remedy)
}

/// The error of a host without a key.
pub(crate) fn no_key(admin: &Admin, host: &ConnectData) -> Error {
    refusal(
        admin,
        "the subsystem demands authentication (dh-hmac-chap), and this host has no key for it".into(),
        format!("write the key that the target has for {} to a file, and set nvme_tcp_dhchap_key_file", host.host),
    )
}

/// Does what the answer to Connect demands of a queue; `limit`: how long it may take in all.
///
/// A subsystem that must show that it knows its key does so on each queue: somebody else may answer for it when the next one connects.
///
/// # Errors
/// `PermissionDenied` without keys, with wrong ones, and for a controller that does not show that it knows its own; `Unsupported` for
/// one that wants a secure channel; `Protocol`; those of the queue.
pub(crate) fn authenticate(
    admin: &mut Admin,
    data: &ConnectData,
    keys: Option<&HostKeys>,
    demand: Demand,
    limit: Duration,
) -> Result<(), Error> {
    match (demand, keys) {
        (Demand::SecureChannel, _) => Err(admin
            .error(
                ErrorKind::Unsupported,
                "the subsystem demands a secure channel behind authentication (ascr, tls), which is not built in",
            )
            .remedy("allow the host without tls there, on a network that may be trusted")),
        (Demand::None, Some(keys)) if keys.theirs(&data.subsystem).is_some() => Err(refusal(
            admin,
            "the target asks for no authentication of a queue, and so does not show that it knows the controller's key"
                .into(),
            "give the target the keys of host and controller, or leave nvme_tcp_dhchap_ctrl_key_file out".into(),
        )),
        (Demand::None, _) => Ok(()),
        (Demand::Authentication, None) => Err(no_key(admin, data)),
        (Demand::Authentication, Some(keys)) => {
            let Some(secret) = keys.own(&data.subsystem) else { return Err(no_key(admin, data)) };
            let before = admin.finish_within(after(limit));
            let done = exchange(admin, (keys, secret), data);
            admin.finish_by(before);
            done
        }
    }
}

fn exchange(admin: &mut Admin, (keys, secret): (&HostKeys, &Secret), data: &ConnectData) -> Result<(), Error> {
    let random = keys.random().map_err(|cause| {
        admin.error(ErrorKind::Io, "the system gives no random bytes for authentication").caused_by(cause)
    })?;
    let config = HostConfig {
        host: &data.host,
        subsystem: &data.subsystem,
        secret,
        controller_secret: keys.theirs(&data.subsystem),
        offer: &keys.offer,
    };
    let mut exchange = Exchange::new(config, random);
    for _ in 0..COMMANDS_MAX {
        if let Some(Ok(chosen)) = exchange.outcome() {
            let (hash, group) = (chosen.hash.name(), chosen.group.name());
            tracing::debug!(controller = admin.name(), hash, group, "authenticated");
            return Ok(());
        }
        let carried = carry(admin, &mut exchange);
        if let Some(Err(why)) = exchange.outcome() {
            // Whether the controller took the last word or not.
            return Err(told(admin, why, data));
        }
        carried?;
    }
    match exchange.outcome() {
        Some(Ok(_)) => Ok(()),
        _ => Err(admin.error(ErrorKind::Protocol, "authentication does not come to an end")),
    }
}

/// One command.
fn carry(admin: &mut Admin, exchange: &mut Exchange) -> Result<(), Error> {
    if let Some(message) = exchange.poll_transmit() {
        admin.fill_page(&message);
        // At most MESSAGE_BYTES_MAX, below a page.
        let bytes = u32::try_from(message.len()).unwrap_or(0);
        admin.expect("authentication send", Data::Out(message.len()), |_| Command::authentication_send(bytes))?;
        return Ok(());
    }
    // AL is room: some controllers fill it up, and some give the message alone, as SPDK does.
    let receive = Command::authentication_receive(ROOM_BYTES);
    let came = admin.expect_up_to("authentication receive", ADMIN_DATA_BYTES, receive)?;
    exchange.handle_message(admin.page().get(..came).unwrap_or_default());
    Ok(())
}

/// What an operator is told.
fn told(admin: &Admin, why: HostError, data: &ConnectData) -> Error {
    match why {
        HostError::Refused(Explanation::HASH | Explanation::GROUP) => refusal(
            admin,
            why.to_string(),
            "allow more in nvme_tcp_dhchap_hashes and nvme_tcp_dhchap_groups, or others at the target".into(),
        ),
        HostError::Refused(_) => refusal(
            admin,
            why.to_string(),
            format!("compare the file of nvme_tcp_dhchap_key_file with the target's key for {}", data.host),
        ),
        HostError::WrongController | HostError::NoResponse => refusal(
            admin,
            why.to_string(),
            "it may be another target than it says; compare nvme_tcp_dhchap_ctrl_key_file with its own key".into(),
        ),
        _ => admin.error(ErrorKind::Protocol, why.to_string()).remedy("report it to whoever makes the target"),
    }
}

#[cfg(test)]
#[path = "authenticate_tests.rs"]
mod tests;
