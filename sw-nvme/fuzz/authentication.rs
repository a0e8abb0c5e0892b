//! Authentication under attack: what the fuzz target does with its bytes. Used by the libFuzzer target and by the bounded in-tree run.
//!
//! ```text
//!   raw: [shape] then steps of 6 bytes: what to do with the next message of the exchange ([how, place, place, byte, more, more]);
//!        the rest, as it is, for every decoder
//! ```
//!
//! Somebody between host and controller changes, cuts, repeats and makes up messages:
//! - nothing panics, and the exchange has an end;
//! - a message that is decoded is the same when it was encoded again;
//! - a controller that has another secret never lets the host in, and a host never believes a controller that has another one;
//! - a host and a controller that are left alone with the same secrets believe each other.

use core::num::NonZeroU32;

use sw_nvme::{
    auth::{
        Hash, Offer, RANDOM_BYTES,
        controller::{self, ControllerConfig, ControllerRandom, Given, Progress},
        group::Group,
        host::{self, HostConfig, HostRandom},
        message::{Envelope, MESSAGE_BYTES_MAX},
        secret::Secret,
    },
    fabrics::Nqn,
};

/// Bytes of one step.
const STEP_BYTES: usize = 6;
/// Messages of one exchange that are tampered with at most.
const STEPS_MAX: usize = 12;

fn secret(byte: u8) -> Secret {
    Secret::from_random(&[byte; RANDOM_BYTES], Hash::Sha256, None)
}

/// What of the input says how messages are changed.
struct Attack<'a> {
    steps: &'a [u8],
    seen: Vec<Vec<u8>>,
    touched: bool,
}

impl Attack<'_> {
    /// A message on its way.
    fn pass(&mut self, mut message: Vec<u8>) -> Vec<u8> {
        let Some((step, rest)) = self.steps.split_at_checked(STEP_BYTES) else { return message };
        self.steps = rest;
        self.seen.push(message.clone());
        let at = usize::from(u16::from_le_bytes([step[1], step[2]])) % message.len().max(1);
        self.touched |= step[0] % 8 != 0;
        match step[0] % 8 {
            0 => {}
            1 => message[at] ^= step[3] | 1,
            2 => message.truncate(at),
            3 => message.resize(MESSAGE_BYTES_MAX, step[3]),
            4 => message = self.seen[usize::from(step[3]) % self.seen.len()].clone(),
            5 => message[..2].copy_from_slice(&step[4..6]),
            6 => message = rest.to_vec(),
            _ => message.fill(step[3]),
        }
        message
    }
}

/// Takes the bytes; a word for what came out.
pub fn authentication(raw: &[u8]) -> &'static str {
    decoders(raw.get(1..).unwrap_or_default());
    let shape = raw.first().copied().unwrap_or(0);
    let (same, both_ways) = (shape & 1 == 0, shape & 2 == 0);
    let hash = Hash::ALL[usize::from(shape >> 2) % 3];
    // One in sixteen: milliseconds each.
    let group = if shape >> 4 == 15 { Group::Ffdhe2048 } else { Group::Null };
    let name = |text: &str| Nqn::new(text).expect("a name");
    let (host_name, subsystem) = (name("nqn.2026-11.io.example:host"), name("nqn.2026-11.io.example:one"));
    let (one, other) = (secret(1), secret(2));
    let (wrong_one, wrong_other) = (secret(3), secret(4));
    let mut host = host::Exchange::new(
        HostConfig {
            host: &host_name,
            subsystem: &subsystem,
            secret: &one,
            controller_secret: both_ways.then_some(&other),
            offer: &Offer::default(),
        },
        HostRandom {
            transaction: u16::from(shape),
            sequence: NonZeroU32::MIN,
            challenge: [7; RANDOM_BYTES].into(),
            exponent: [8; RANDOM_BYTES].into(),
        },
    );
    let mut controller = controller::Exchange::new(ControllerConfig {
        host: &host_name,
        subsystem: &subsystem,
        secret: if same { &one } else { &wrong_one },
        controller_secret: Some(if same { &other } else { &wrong_other }),
        offer: &Offer { hashes: vec![hash], groups: vec![group] },
    });
    let mut attack = Attack { steps: raw.get(1..).unwrap_or_default(), seen: Vec::new(), touched: false };
    for turn in 0..STEPS_MAX {
        if let Some(message) = host.poll_transmit() {
            let random = ControllerRandom {
                sequence: NonZeroU32::MIN.saturating_add(turn as u32),
                challenge: [9; RANDOM_BYTES].into(),
                exponent: [10; RANDOM_BYTES].into(),
            };
            controller.handle_message(&attack.pass(message), random);
        } else if host.outcome().is_none() {
            let message = match controller.poll_message(MESSAGE_BYTES_MAX) {
                Given::Message(message) => message,
                Given::Nothing => vec![0; 16],
                Given::NoRoom => panic!("a message is longer than there are"),
            };
            host.handle_message(&attack.pass(message));
        } else {
            break;
        }
    }
    let let_in = matches!(controller.progress(), Progress::Done(_));
    let believes = host.outcome().expect("it has an end").is_ok();
    assert!(same || !let_in, "a host without the secret was let in");
    assert!(same || !both_ways || !believes, "a controller without the secret was believed");
    assert!(!same || attack.touched || (let_in && believes), "they know each other, and nobody came between");
    match (let_in, believes, attack.touched) {
        (true, true, true) => "touched in vain",
        (true, true, false) => "agreed",
        (false, true, _) => "only the host",
        (true, false, _) => "only the controller",
        (false, false, _) => "failed",
    }
}

fn decoders(raw: &[u8]) {
    if let Ok(envelope) = Envelope::decode(raw) {
        let again = envelope.encode();
        assert!(again.len() <= MESSAGE_BYTES_MAX);
        assert_eq!(Envelope::decode(&again), Ok(envelope));
    }
    if let Ok(secret) = Secret::parse(&String::from_utf8_lossy(raw)) {
        assert!(Secret::parse(&secret.to_text()).is_ok());
    }
}
