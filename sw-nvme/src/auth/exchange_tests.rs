//! Both ends against each other, and against the computations of another program.

use core::num::NonZeroU32;

use zeroize::Zeroizing;

use super::{
    Chosen, Hash, Offer, RANDOM_BYTES, Sequence,
    controller::{self, ControllerConfig, ControllerRandom, Given, Progress},
    group::Group,
    host::{self, HostConfig, HostError, HostRandom},
    message::{Explanation, MESSAGE_BYTES_MAX},
    response::digest,
    secret::Secret,
};
use crate::fabrics::Nqn;

pub(super) fn name(text: &str) -> Nqn {
    Nqn::new(text).unwrap()
}

/// Both ends of one exchange, with what they know.
pub(super) struct Rig {
    pub(super) host: Nqn,
    pub(super) subsystem: Nqn,
    pub(super) host_knows: (Secret, Option<Secret>),
    pub(super) controller_knows: (Secret, Option<Secret>),
    pub(super) host_offers: Offer,
    pub(super) controller_offers: Offer,
}

pub(super) fn secret(byte: u8) -> Secret {
    Secret::from_random(&[byte; RANDOM_BYTES], Hash::Sha256, Some(Hash::Sha256))
}

pub(super) fn only(hash: Hash, group: Group) -> Offer {
    Offer { hashes: vec![hash], groups: vec![group] }
}

impl Rig {
    /// Both ends know both secrets; the hash and the group are what the controller chooses.
    pub(super) fn new(hash: Hash, group: Group) -> Self {
        let both = || (secret(0x11), Some(secret(0x22)));
        Self {
            host: name("nqn.2026-11.io.example:host"),
            subsystem: name("nqn.2026-11.io.example:one"),
            host_knows: both(),
            controller_knows: both(),
            host_offers: Offer::default(),
            controller_offers: only(hash, group),
        }
    }

    pub(super) fn host(&self) -> host::Exchange {
        let config = HostConfig {
            host: &self.host,
            subsystem: &self.subsystem,
            secret: &self.host_knows.0,
            controller_secret: self.host_knows.1.as_ref(),
            offer: &self.host_offers,
        };
        let random = HostRandom {
            transaction: 0x1234,
            sequence: NonZeroU32::new(0x0A0B_0C0D).unwrap(),
            challenge: Zeroizing::new([0xC2; RANDOM_BYTES]),
            exponent: Zeroizing::new([0x3D; RANDOM_BYTES]),
        };
        host::Exchange::new(config, random)
    }

    pub(super) fn controller(&self) -> controller::Exchange {
        controller::Exchange::new(ControllerConfig {
            host: &self.host,
            subsystem: &self.subsystem,
            secret: &self.controller_knows.0,
            controller_secret: self.controller_knows.1.as_ref(),
            offer: &self.controller_offers,
        })
    }

    /// Runs an exchange to its end; the messages of both.
    fn run(&self) -> (Result<Chosen, HostError>, Progress, Vec<Vec<u8>>) {
        let (mut host, mut controller) = (self.host(), self.controller());
        let mut told = Vec::new();
        for _ in 0..10 {
            while let Some(message) = host.poll_transmit() {
                controller.handle_message(&message, random());
                told.push(message);
            }
            if let Some(outcome) = host.outcome() {
                return (outcome, controller.progress(), told);
            }
            let Given::Message(message) = controller.poll_message(MESSAGE_BYTES_MAX) else { panic!("nothing to say") };
            host.handle_message(&message);
            told.push(message);
        }
        panic!("it has no end");
    }
}

pub(super) fn random() -> ControllerRandom {
    ControllerRandom {
        sequence: NonZeroU32::new(0x0102_0304).unwrap(),
        challenge: Zeroizing::new([0xC1; RANDOM_BYTES]),
        exponent: Zeroizing::new([0x5E; RANDOM_BYTES]),
    }
}

#[test]
fn both_ends_agree_for_every_hash_and_group_in_one_way_and_in_both() {
    for hash in Hash::ALL {
        for group in Group::ALL {
            let rig = Rig::new(hash, group);
            let chosen = Chosen { hash, group };
            let (host, controller, told) = rig.run();
            assert_eq!((host, controller, told.len()), (Ok(chosen), Progress::Done(chosen), 5));
            let rig = Rig { host_knows: (secret(0x11), None), ..rig };
            let (host, controller, told) = rig.run();
            assert_eq!((host, controller, told.len()), (Ok(chosen), Progress::Done(chosen), 4));
        }
    }
}

#[test]
fn the_controller_takes_the_best_of_what_is_offered() {
    let mut rig = Rig::new(Hash::Sha256, Group::Null);
    rig.controller_offers = Offer {
        hashes: vec![Hash::Sha512, Hash::Sha384, Hash::Sha256],
        groups: vec![Group::Ffdhe4096, Group::Ffdhe2048, Group::Null],
    };
    rig.host_offers = Offer { hashes: vec![Hash::Sha256, Hash::Sha384], groups: vec![Group::Null, Group::Ffdhe2048] };
    assert_eq!(rig.run().0, Ok(Chosen { hash: Hash::Sha384, group: Group::Ffdhe2048 }));
    rig.host_offers = only(Hash::Sha256, Group::Ffdhe8192);
    assert_eq!(rig.run().0, Err(HostError::Refused(Explanation::GROUP)));
    rig.host_offers = only(Hash::Sha256, Group::Null);
    rig.controller_offers.hashes.pop();
    assert_eq!(rig.run().0, Err(HostError::Refused(Explanation::HASH)));
}

#[test]
fn a_secret_that_is_another_one_is_found_out_by_whoever_is_lied_to() {
    for group in [Group::Null, Group::Ffdhe2048] {
        let rig = || Rig::new(Hash::Sha384, group);
        let wrong = Rig { host_knows: (secret(0x12), Some(secret(0x22))), ..rig() };
        let (host, controller, _) = wrong.run();
        assert_eq!(host, Err(HostError::Refused(Explanation::FAILED)));
        assert_eq!(controller, Progress::Failed(Explanation::FAILED));
        let wrong = Rig { controller_knows: (secret(0x11), Some(secret(0x23))), ..rig() };
        let (host, controller, _) = wrong.run();
        assert_eq!(host, Err(HostError::WrongController));
        assert_eq!(controller, Progress::Failed(Explanation::FAILED));
        let none = Rig { controller_knows: (secret(0x11), None), ..rig() };
        assert_eq!(none.run().0, Err(HostError::Refused(Explanation::FAILED)));
        // A secret that is transformed is another one under another name.
        let mut other = rig();
        let mut controller = other.controller();
        other.host = name("nqn.2026-11.io.example:other");
        let mut host = other.host();
        controller.handle_message(&host.poll_transmit().unwrap(), random());
        let Given::Message(challenge) = controller.poll_message(MESSAGE_BYTES_MAX) else { panic!("no challenge") };
        host.handle_message(&challenge);
        controller.handle_message(&host.poll_transmit().unwrap(), random());
        assert_eq!(controller.progress(), Progress::Failing);
    }
}

#[test]
fn a_number_of_a_challenge_is_never_zero_and_comes_again_behind_all_others_only() {
    let mut near = Sequence::from_random(u32::MAX - 1);
    let told: Vec<u32> = (0..4).map(|_| near.take().get()).collect();
    assert_eq!(told, [u32::MAX - 1, u32::MAX, 1, 2]);
    assert_eq!(Sequence::from_random(0).take(), NonZeroU32::MIN);
}

/// SHA-256 of all messages of an exchange, one behind the other, by Python 3.11's hashlib, hmac and pow, which know nothing of this
/// code: `testdata/auth/exchange.py` makes them.
const PYTHON: [(Hash, Group, &str); 5] = [
    (Hash::Sha256, Group::Null, "e9ac2fd74b0ca3e93322fba47a8f154bba4748534870bc93e8f9852ceaf69571"),
    (Hash::Sha384, Group::Null, "c1c2edf0627018bbd6f6695fd5a9188616d32c2a6e311c69e470868c93362970"),
    (Hash::Sha512, Group::Ffdhe2048, "fcf301c7c169af9fd8af762b8b9425db318c8c70a48d7e7d525bc8a4ffe0007e"),
    (Hash::Sha256, Group::Ffdhe3072, "5080157995291165107f982626d9729e94bec05b3b4e1cc0feabf5a50d977f2b"),
    (Hash::Sha384, Group::Ffdhe8192, "8228be353f3c1e38db804fc39904ae02733632417a3a63ac17e79a800e1dca9c"),
];

#[test]
fn every_byte_of_an_exchange_is_what_another_program_makes() {
    for (hash, group, sum) in PYTHON {
        let (_, _, told) = Rig::new(hash, group).run();
        let bytes = digest(Hash::Sha256, &told.concat());
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, sum, "{} {}", hash.name(), group.name());
    }
}
