//! The initiator and the target against each other, over sockets.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sw_engine::{Error, ErrorKind};
use sw_nvme::{
    auth::{Hash, Offer, RANDOM_BYTES, group::Group, secret::Secret},
    fabrics::{ConnectData, Demand, Nqn},
    keyring::Keys,
    status::Status,
    tcp::pdu::Digests,
};

use super::{Admin, HostKeys, after, authenticate};
use crate::{
    DiscoverConfig,
    carrier::{Carrier, QueueOf, Way},
    connection::ConnectionConfig,
    controller::{Address, Controller, ControllerConfig, HostIdentity},
    discover,
    target::{Authentication, Backing, Fault, Faults, Seen, Target, TargetConfig},
};

fn secret(byte: u8) -> Secret {
    Secret::from_random(&[byte; RANDOM_BYTES], Hash::Sha512, Some(Hash::Sha256))
}

fn only(hash: Hash, group: Group) -> Offer {
    Offer { hashes: vec![hash], groups: vec![group] }
}

/// A target that knows the secrets of these bytes.
fn target(host: u8, controller: Option<u8>, offer: Offer) -> TargetConfig {
    let authentication = Authentication {
        secret: secret(host).into(),
        controller_secret: controller.map(|byte| secret(byte).into()),
        offer,
    };
    let namespaces = vec![Backing::Memory(1 << 20)];
    TargetConfig { authentication: Some(authentication), namespaces, ..TargetConfig::default() }
}

fn keys(host: u8, controller: Option<u8>) -> Option<Arc<HostKeys>> {
    Some(Arc::new(HostKeys::new(secret(host), controller.map(secret), Offer::default())))
}

fn identity(keys: Option<Arc<HostKeys>>) -> HostIdentity {
    HostIdentity { nqn: Nqn::new("nqn.2026-11.io.straightway:host").unwrap(), id: [7; 16], keys, tls: None }
}

fn address(target: &Target) -> Address {
    let (at, subsystem) = (target.address(), TargetConfig::default().subsystem);
    Address { host: at.ip().to_string(), port: at.port(), subsystem }
}

fn open(target: &Target, keys: Option<Arc<HostKeys>>, config: ControllerConfig) -> Result<Arc<Controller>, Error> {
    Controller::open(address(target), identity(keys), config)
}

/// The association and one I/O queue.
fn both_queues(target: &Target, keys: Option<Arc<HostKeys>>) -> Result<(), Error> {
    let controller = open(target, keys, ControllerConfig::default())?;
    let queue = controller.connect_queue();
    let done = queue.map(drop);
    controller.shut_down();
    done
}

/// Waits for what the threads of a target count.
#[expect(clippy::disallowed_methods, reason = "a test that waits for another thread")]
fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn every_hash_without_and_with_a_group_opens_both_kinds_of_queues() {
    for hash in Hash::ALL {
        for group in [Group::Null, Group::Ffdhe2048] {
            let target = Target::start(target(1, Some(2), only(hash, group))).unwrap();
            both_queues(&target, keys(1, None)).unwrap();
            both_queues(&target, keys(1, Some(2))).unwrap();
            // The target counts behind its answer.
            until("four queues", || target.counters().authenticated == 4);
            let counters = target.counters();
            assert_eq!((counters.authentication_failed, counters.terminations), (0, 0));
        }
    }
}

#[test]
fn the_large_groups_work_too() {
    for group in [Group::Ffdhe3072, Group::Ffdhe4096, Group::Ffdhe6144, Group::Ffdhe8192] {
        let target = Target::start(target(1, Some(2), only(Hash::Sha256, group))).unwrap();
        both_queues(&target, keys(1, Some(2))).unwrap();
    }
}

#[test]
fn a_capsule_without_room_for_writes_has_room_for_authentication() {
    let config = TargetConfig { capsule_data_bytes: 0, ..target(1, Some(2), only(Hash::Sha512, Group::Ffdhe8192)) };
    let target = Target::start(config).unwrap();
    both_queues(&target, keys(1, Some(2))).unwrap();
}

#[test]
fn without_a_key_with_a_wrong_one_and_at_a_target_that_lies_it_is_said_which_setting_is_wrong() {
    let target = Target::start(target(1, Some(2), Offer::default())).unwrap();
    let refused = |keys, words: &str| {
        let error = both_queues(&target, keys).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{text}");
        assert!(text.contains(words) && super::is_refusal(&error), "{text}");
    };
    refused(None, "set nvme_tcp_dhchap_key_file");
    refused(keys(9, None), "compare the file of nvme_tcp_dhchap_key_file");
    refused(keys(1, Some(9)), "compare nvme_tcp_dhchap_ctrl_key_file");
    let narrow = HostKeys::new(secret(1), None, Offer { groups: vec![], ..Offer::default() });
    refused(Some(Arc::new(narrow)), "nvme_tcp_dhchap_groups");
    until("three failures", || target.counters().authentication_failed == 3);
    assert_eq!(target.counters().authenticated, 0);
    both_queues(&target, keys(1, Some(2))).unwrap();
    // The secrets are in no text.
    let told = format!("{:?}", keys(0x41, Some(0x42)).unwrap());
    assert!(!told.contains("65") && !told.contains("41") && !told.to_lowercase().contains("aaaa"), "{told}");
}

#[test]
fn a_host_that_has_a_key_and_is_refused_before_it_can_show_it_is_not_told_that_it_has_none() {
    let refuse = |seen: &Seen| (seen.fabrics_kind == 1).then_some(Fault::Status(super::REQUIRED.with_dnr()));
    let faults: Arc<dyn Faults> = Arc::new(refuse);
    let target = Target::start(TargetConfig { faults: Some(faults), ..TargetConfig::default() }).unwrap();
    for (keys, words) in [(None, "set nvme_tcp_dhchap_key_file"), (keys(1, None), "look in the target's log")] {
        let error = both_queues(&target, keys).unwrap_err();
        assert!(super::is_refusal(&error) && error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_target_that_demands_nothing_is_taken_only_by_hosts_that_do_not_want_to_know_it() {
    let target = Target::start(TargetConfig::default()).unwrap();
    both_queues(&target, None).unwrap();
    both_queues(&target, keys(1, None)).unwrap();
    let error = both_queues(&target, keys(1, Some(2))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("leave nvme_tcp_dhchap_ctrl_key_file out"), "{error}");
}

#[test]
fn discovery_is_for_everybody() {
    let target = Target::start(target(1, None, Offer::default())).unwrap();
    let told =
        discover(&|_| Ok(Way::Tcp), ("127.0.0.1", target.address().port()), &identity(None), DiscoverConfig::default())
            .unwrap();
    assert_eq!(told.entries.len(), 1);
}

#[test]
fn a_target_that_does_not_answer_is_not_waited_for() {
    for kind in [5, 6] {
        let mute = move |seen: &Seen| (seen.fabrics_kind == kind).then_some(Fault::NeverAnswer);
        let faults: Arc<dyn Faults> = Arc::new(mute);
        let config = TargetConfig { faults: Some(faults), ..target(1, None, only(Hash::Sha256, Group::Null)) };
        let target = Target::start(config).unwrap();
        let limit = Duration::from_millis(200);
        let quick = ControllerConfig { timeout: limit, ..ControllerConfig::default() };
        let error = open(&target, keys(1, None), quick).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    }
}

/// AL is how much there is room for: SPDK gives the message and no byte behind it.
#[test]
fn a_target_that_does_not_fill_the_room_for_its_messages_is_understood() {
    for digests in [Digests::default(), Digests { header: true, data: true }] {
        // The challenge has 48 bytes, and the success with its response, too.
        let bare = |seen: &Seen| (seen.fabrics_kind == 6).then_some(Fault::ShortData(4096 - 48));
        let faults: Arc<dyn Faults> = Arc::new(bare);
        let config = TargetConfig { faults: Some(faults), ..target(1, Some(2), only(Hash::Sha256, Group::Null)) };
        let target = Target::start(config).unwrap();
        let config = ControllerConfig { digests, ..ControllerConfig::default() };
        open(&target, keys(1, Some(2)), config).unwrap().shut_down();
    }
}

#[test]
fn an_answer_that_is_an_error_or_too_short_ends_the_association() {
    type Wrong = fn() -> Fault;
    let cases: [(Wrong, ErrorKind); 3] = [
        (|| Fault::Status(Status::INVALID_FIELD.with_dnr()), ErrorKind::Protocol),
        (|| Fault::ShortData(4096 - 47), ErrorKind::Protocol),
        (|| Fault::ShortData(4096), ErrorKind::Protocol),
    ];
    for (wrong, kind) in cases {
        let spoil = move |seen: &Seen| (seen.fabrics_kind == 6).then(wrong);
        let faults: Arc<dyn Faults> = Arc::new(spoil);
        let config = TargetConfig { faults: Some(faults), ..target(1, None, only(Hash::Sha256, Group::Null)) };
        let target = Target::start(config).unwrap();
        let error = open(&target, keys(1, None), ControllerConfig::default()).err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

/// A queue that was not connected, and what Connect would say.
fn unconnected(target: &Target, limit: Duration) -> (Admin, ConnectData) {
    let limits = ConnectionConfig { digests: Digests::default(), depth: 31, capsule_data_bytes: 8192 };
    let place = ("127.0.0.1", target.address().port());
    let connection = Carrier::open((&Way::Tcp, None), place, (QueueOf::ADMIN, limits), after(limit)).unwrap();
    let admin = Admin::new("a target".into(), connection, limit).unwrap();
    let HostIdentity { nqn, id, .. } = identity(None);
    (admin, ConnectData { host_id: id, controller: 0xFFFF, subsystem: nqn.clone(), host: nqn })
}

/// Somebody answers for the target when a lane connects its queue, behind an admin queue that was the target's own.
#[test]
fn an_io_queue_that_is_asked_for_nothing_is_none_of_a_subsystem_that_must_show_who_it_is() {
    let started = Target::start(TargetConfig::default()).unwrap();
    let limit = Duration::from_secs(10);
    let (mut admin, data) = unconnected(&started, limit);
    let both = keys(1, Some(2)).unwrap();
    let error = authenticate(&mut admin, &data, Some(&both), Demand::None, limit).unwrap_err();
    assert!(super::is_refusal(&error), "{error}");
    let one = keys(1, None).unwrap();
    authenticate(&mut admin, &data, Some(&one), Demand::None, limit).unwrap();
}

#[test]
fn a_secure_channel_is_refused_with_that_reason() {
    let started = Target::start(TargetConfig::default()).unwrap();
    let limit = Duration::from_secs(10);
    let (mut admin, data) = unconnected(&started, limit);
    let host = identity(keys(1, None));
    for keys in [None, host.keys.as_deref()] {
        let error = authenticate(&mut admin, &data, keys, Demand::SecureChannel, limit).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("tls"), "{error}");
    }
}

#[test]
fn a_host_that_does_not_go_on_is_left_by_the_target() {
    let limit = Duration::from_millis(300);
    let config = TargetConfig { connect_timeout: limit, ..target(1, None, only(Hash::Sha256, Group::Null)) };
    let started = Target::start(config).unwrap();
    let stream = std::net::TcpStream::connect(started.address()).unwrap();
    until("the end of a host that says nothing", || {
        started.counters().connections == 1 && started.counters().connections_open == 0
    });
    drop(stream);
}

/// A target that is gone and comes back, perhaps with other keys.
#[test]
fn an_association_that_is_made_again_is_authenticated_again_and_ends_at_once_where_the_key_is_wrong_now() {
    let (same, other) = (1, 9);
    for now in [same, other] {
        let first = Target::start(target(1, None, only(Hash::Sha256, Group::Null))).unwrap();
        let listen = first.address();
        let controller = open(&first, keys(1, None), ControllerConfig::default()).unwrap();
        let attended = Arc::clone(&controller);
        let attendant = std::thread::Builder::new().spawn(move || attended.attend()).unwrap();
        first.stop();
        let config = TargetConfig { listen, ..target(now, None, only(Hash::Sha256, Group::Null)) };
        let second = Target::start(config).unwrap();
        controller.suspect();
        if now == same {
            until("the next association", || {
                controller.is_up(&controller.facts()) && controller.facts().association == 2
            });
            assert_eq!(second.counters().authenticated, 1);
        } else {
            // Far below the patience of 60 s.
            until("the end of the association", || controller.is_gone());
            assert!(controller.lost().to_string().contains("compare the file"), "{}", controller.lost());
            until("one failure", || second.counters().authentication_failed == 1);
        }
        controller.shut_down();
        attendant.join().unwrap();
    }
}

#[test]
fn each_host_and_each_subsystem_has_a_key_of_its_own_and_who_has_none_is_not_let_in() {
    let nqn = |text| Nqn::new(text).unwrap();
    let (us, other) = (identity(None).nqn, nqn("nqn.2026-11.io.straightway:other"));
    let authentication = Authentication {
        secret: Keys::named(vec![(us.clone(), secret(1)), (other.clone(), secret(2))]),
        controller_secret: Some(Keys::named(vec![(us.clone(), secret(3))])),
        offer: only(Hash::Sha256, Group::Null),
    };
    let target =
        Target::start(TargetConfig { authentication: Some(authentication), ..TargetConfig::default() }).unwrap();
    let ours = TargetConfig::default().subsystem;
    let try_as = |name: &Nqn, own: Keys<Secret>, theirs: Option<Keys<Secret>>| {
        let keys = Some(Arc::new(HostKeys::new(own, theirs, Offer::default())));
        let identity = HostIdentity { nqn: name.clone(), ..identity(keys) };
        let made = Controller::open(address(&target), identity, ControllerConfig::default());
        made.map(|controller| controller.shut_down())
    };
    try_as(&us, secret(1).into(), Some(secret(3).into())).unwrap();
    try_as(&other, secret(2).into(), None).unwrap();
    // The host has keys for several subsystems.
    try_as(&us, Keys::named(vec![(nqn("nqn.another"), secret(9)), (ours, secret(1))]), None).unwrap();
    for (name, own, theirs, words) in [
        (&other, secret(1).into(), None, "compare the file of nvme_tcp_dhchap_key_file"),
        (&us, Keys::named(vec![(nqn("nqn.another"), secret(1))]), None, "no key for it"),
        // The target has nothing to show to this one.
        (&other, secret(2).into(), Some(secret(3).into()), "the controller refuses this host"),
        (&nqn("nqn.nobody"), secret(1).into(), None, "nqn.nobody"),
    ] {
        let error = try_as(name, own, theirs).unwrap_err();
        assert!(error.kind() == ErrorKind::PermissionDenied && error.to_string().contains(words), "{error}");
    }
}
