use super::*;
use crate::{
    object::{Device, ObjectId, Residency, Version},
    seam::Regions,
};

#[derive(Clone, Copy, PartialEq)]
enum Direct {
    Offered,
    Refused,
}

fn caps(name: TransportName) -> TransportCaps {
    TransportCaps {
        name,
        queue_depth: 8,
        io_bytes_max: 1 << 20,
        segments_max: 3,
        host: Ok(()),
        device: Err(Reason::NoPeerPages),
        regions: Regions::Any,
    }
}

fn file(residency: Residency, direct: Direct) -> Object {
    let buffered = Face {
        transport: "io_uring",
        handle: 4,
        granularity: Granularity::ANY,
        write_unit: 1,
        landing: Landing::KernelCopy,
        because: (direct == Direct::Refused).then_some(Reason::DirectRefused),
    };
    let block = Granularity { block: 512, memory: 512 };
    let face =
        Face { handle: 3, granularity: block, write_unit: 4096, landing: Landing::Dma, because: None, ..buffered };
    Object {
        id: ObjectId(1),
        name: "f".into(),
        len: 1 << 20,
        version: Version::default(),
        faces: if direct == Direct::Offered { vec![face, buffered] } else { vec![buffered] },
        residency: residency.into(),
        composed: None,
        keep: Box::new(()),
    }
}

/// A class of rates on the device of [`file`], or on another one.
fn rated(other: u8, landing: Landing, face: Landing) -> RateClass {
    let device = Device(file(Residency::Unknown, Direct::Offered).device().0 ^ other);
    RateClass { transport: "io_uring", landing, face, resident: false, device }
}

fn planned(object: &Object, facts: MemoryFacts, policy: Policy, rates: &RateTable) -> Plan {
    plan(object, &facts, &[caps("io_uring")], &policy, rates, Verb::Read)
}

const GPU: MemoryFacts = MemoryFacts { device: Some(DeviceId(0)), ..MemoryFacts::HOST };

#[test]
fn a_cold_file_goes_direct_into_host_memory() {
    let choice = planned(&file(Residency::Unknown, Direct::Offered), MemoryFacts::HOST, Policy::Any, &RateTable::new())
        .choice
        .unwrap();
    assert_eq!(choice.route.to_string(), "io_uring/dma");
    assert_eq!(choice.main.reason, Reason::Best);
    assert!(choice.unaligned.is_some() && choice.ends.is_some());
}

/// [`file`] with one more face, of a library that tells nothing.
fn with_vendor(because: Option<Reason>) -> Object {
    let mut object = file(Residency::Cached(1 << 20), Direct::Offered);
    let buffered = object.faces[1];
    object.faces.push(Face { transport: "vendor", handle: 9, because, ..buffered });
    object
}

#[test]
fn what_a_library_moved_is_told_as_that_whatever_led_to_it() {
    let object = with_vendor(Some(Reason::VendorDecides));
    let vendor = RouteMatch { transport: Some("vendor"), landing: None };
    let caps = [caps("io_uring"), caps("vendor")];
    for policy in [Policy::Prefer(vendor), Policy::Require(vendor), Policy::RequireCore(vendor)] {
        let plan = plan(&object, &MemoryFacts::HOST, &caps, &policy, &RateTable::new(), Verb::Read);
        let choice = plan.choice.unwrap();
        assert_eq!(
            (choice.route.to_string().as_str(), choice.main.reason),
            ("vendor/kernel-copy", Reason::VendorDecides)
        );
        assert_eq!(plan.faces.len(), 3);
    }
}

#[test]
fn a_transport_without_host_memory_fills_no_slab() {
    let object = with_vendor(None);
    let refused =
        TransportCaps { host: Err(Reason::VendorNotAsked), device: Err(Reason::VendorNotAsked), ..caps("vendor") };
    for facts in [MemoryFacts::HOST, GPU] {
        for policy in [Policy::Any, Policy::Require(RouteMatch { landing: Some(Landing::Staged), transport: None })] {
            let plan = plan(&object, &facts, &[refused, caps("io_uring")], &policy, &RateTable::new(), Verb::Read);
            assert_eq!(plan.choice.unwrap().route.transport, "io_uring");
            let mut of_it = plan.candidates.iter().filter(|candidate| candidate.route.transport == "vendor");
            assert!(of_it.all(|candidate| candidate.verdict == Err(Reason::VendorNotAsked)));
        }
    }
}

#[test]
fn a_resident_file_is_copied_from_the_page_cache_and_says_why() {
    let object = file(Residency::Cached(1 << 20), Direct::Offered);
    let plan = planned(&object, MemoryFacts::HOST, Policy::Any, &RateTable::new());
    let choice = plan.choice.unwrap();
    assert_eq!(choice.route.to_string(), "io_uring/kernel-copy");
    assert_eq!(choice.main.reason, Reason::Resident);
    let direct = plan.candidates.iter().find(|c| c.route.landing == Landing::Dma).unwrap();
    assert_eq!(direct.verdict, Err(Reason::Resident));
}

#[test]
fn a_direct_face_that_stands_in_for_a_better_one_says_why() {
    let mut object = file(Residency::Unknown, Direct::Offered);
    object.faces[0].because = Some(Reason::UringBlocked);
    let reason = |policy| planned(&object, MemoryFacts::HOST, policy, &RateTable::new()).choice.unwrap().main.reason;
    assert_eq!(reason(Policy::Any), Reason::UringBlocked);
    let cached = RouteMatch { landing: Some(Landing::KernelCopy), transport: None };
    assert_eq!(reason(Policy::Prefer(cached)), Reason::Preferred);
    let other = RouteMatch { transport: Some("nvme"), landing: None };
    let refused = planned(&object, MemoryFacts::HOST, Policy::Require(other), &RateTable::new()).choice.unwrap_err();
    assert!(refused.reasons().contains(&Reason::UringBlocked), "{refused}");
}

#[test]
fn measurement_overrules_the_page_cache() {
    let mut rates = RateTable::new();
    let class = |landing, resident| RateClass { resident, ..rated(0, landing, landing) };
    rates.record(class(Landing::KernelCopy, true), 1 << 20, 1_000_000);
    rates.record(class(Landing::Dma, false), 1 << 20, 100_000);
    let object = file(Residency::Cached(1 << 20), Direct::Offered);
    let choice = planned(&object, MemoryFacts::HOST, Policy::Any, &rates).choice.unwrap();
    assert_eq!(choice.route.landing, Landing::Dma);
    // The rate of another device says nothing about this one.
    let mut rates = RateTable::new();
    rates.record(class(Landing::KernelCopy, true), 1 << 20, 1_000_000);
    rates.record(rated(1, Landing::Dma, Landing::Dma), 1 << 20, 100_000);
    let choice = planned(&object, MemoryFacts::HOST, Policy::Any, &rates).choice.unwrap();
    assert_eq!(choice.route.landing, Landing::KernelCopy);
}

#[test]
fn a_slab_that_the_kernel_fills_has_a_rate_of_its_own() {
    let class = |face, resident| RateClass { resident, ..rated(0, Landing::Staged, face) };
    let object = file(Residency::Cached(1 << 20), Direct::Offered);
    let choose = |rates: &RateTable| planned(&object, GPU, Policy::Any, rates).choice.unwrap();
    let mut rates = RateTable::new();
    rates.record(class(Landing::KernelCopy, true), 1 << 20, 100_000);
    rates.record(class(Landing::Dma, false), 1 << 20, 200_000);
    let cached = choose(&rates);
    assert_eq!(cached.main.copies, 1, "the cache was faster");
    assert_eq!(cached.face_landing(Landing::Staged), Landing::KernelCopy);
    let mut rates = RateTable::new();
    rates.record(class(Landing::KernelCopy, true), 1 << 20, 200_000);
    rates.record(class(Landing::Dma, false), 1 << 20, 100_000);
    let device = choose(&rates);
    assert_eq!(device.main.copies, 0, "the device was faster");
    assert_eq!(device.face_landing(Landing::Staged), Landing::Dma);
    // What lands in host memory says nothing about slabs.
    let mut rates = RateTable::new();
    let direct = |landing, resident| RateClass { resident, ..rated(0, landing, landing) };
    rates.record(direct(Landing::KernelCopy, true), 1 << 20, 200_000);
    rates.record(direct(Landing::Dma, false), 1 << 20, 100_000);
    assert_eq!(choose(&rates).main.copies, 1);
}

#[test]
fn device_memory_is_staged_and_says_why_not_direct() {
    let choice =
        planned(&file(Residency::Unknown, Direct::Offered), GPU, Policy::Any, &RateTable::new()).choice.unwrap();
    assert_eq!((choice.route.landing, choice.main.via), (Landing::Staged, Via::Staged));
    assert_eq!(choice.main.reason, Reason::NoPeerPages);
    assert_eq!(choice.main.copies, 0, "the slab is filled by the device, not from the page cache");
}

#[test]
fn memory_that_the_objects_device_cannot_reach_is_filled_by_the_cpu_and_says_why() {
    let facts = MemoryFacts { in_place: Err(Reason::P2pNoCommonSwitch), may_go: true, ..MemoryFacts::HOST };
    let object = file(Residency::Unknown, Direct::Offered);
    let plan = planned(&object, facts, Policy::Any, &RateTable::new());
    let choice = plan.choice.unwrap();
    assert_eq!((choice.route.landing, choice.main.reason), (Landing::KernelCopy, Reason::P2pNoCommonSwitch));
    let direct = plan.candidates.iter().find(|c| c.route.landing == Landing::Dma).unwrap();
    assert_eq!(direct.verdict, Err(Reason::P2pNoCommonSwitch));
    // An object with no other face goes through a slab, which any device reaches.
    let raw = Object { faces: vec![object.faces[0]], ..file(Residency::Unknown, Direct::Offered) };
    let choice = planned(&raw, facts, Policy::Any, &RateTable::new()).choice.unwrap();
    assert_eq!((choice.main.via, choice.main.reason), (Via::Staged, Reason::P2pNoCommonSwitch));
    let demand = RouteMatch { transport: None, landing: Some(Landing::Dma) };
    let error = planned(&object, facts, Policy::Require(demand), &RateTable::new()).choice.unwrap_err();
    assert!(error.reasons().contains(&Reason::P2pNoCommonSwitch), "{error}");
}

#[test]
fn misaligned_memory_is_read_through_a_slab_unless_the_cache_has_the_file() {
    let of = |facts: MemoryFacts, residency, verb| {
        let object = file(residency, Direct::Offered);
        let plan = plan(&object, &facts, &[caps("io_uring")], &Policy::Any, &RateTable::new(), verb);
        let leg = plan.choice.unwrap().unaligned.unwrap();
        (leg.landing, leg.copies == 1, leg.reason)
    };
    let leg = |residency, verb| of(MemoryFacts::HOST, residency, verb);
    let misaligned = Reason::MemoryMisaligned;
    assert_eq!(leg(Residency::Unknown, Verb::Read), (Landing::Staged, false, misaligned));
    assert_eq!(leg(Residency::Cached(0), Verb::Read), (Landing::Staged, false, misaligned));
    assert_eq!(leg(Residency::Cached(1 << 20), Verb::Read), (Landing::KernelCopy, true, misaligned));
    // Writes share pages with the ragged ends of others: they stay where those go.
    assert_eq!(leg(Residency::Unknown, Verb::Write), (Landing::KernelCopy, true, misaligned));
    // The kernel's copy into memory that is gone is an error, one of ours a signal.
    let peer = MemoryFacts { may_go: true, ..MemoryFacts::HOST };
    assert_eq!(of(peer, Residency::Unknown, Verb::Read), (Landing::KernelCopy, true, misaligned));
}

#[test]
fn no_route_leads_to_memory_that_is_not_there() {
    let facts = MemoryFacts { present: Err(Reason::NoSuchMemory), ..MemoryFacts::HOST };
    let plan = planned(&file(Residency::Unknown, Direct::Offered), facts, Policy::Any, &RateTable::new());
    assert!(plan.candidates.iter().all(|candidate| candidate.verdict == Err(Reason::NoSuchMemory)));
    assert_eq!(plan.choice.unwrap_err().reasons(), [Reason::NoSuchMemory]);
}

#[test]
fn a_file_system_without_direct_io_says_so() {
    let choice = planned(&file(Residency::Unknown, Direct::Refused), MemoryFacts::HOST, Policy::Any, &RateTable::new())
        .choice
        .unwrap();
    assert_eq!(choice.route.landing, Landing::KernelCopy);
    assert_eq!(choice.main.reason, Reason::DirectRefused);
}

#[test]
fn a_policy_that_cannot_be_met_lists_the_reasons() {
    let demand = RouteMatch { transport: None, landing: Some(Landing::Dma) };
    let error = planned(&file(Residency::Unknown, Direct::Offered), GPU, Policy::Require(demand), &RateTable::new())
        .choice
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PolicyUnmet);
    assert!(error.reasons().contains(&Reason::NoPeerPages), "{error}");
    let error = planned(
        &file(Residency::Unknown, Direct::Refused),
        MemoryFacts::HOST,
        Policy::Require(demand),
        &RateTable::new(),
    );
    assert!(error.choice.unwrap_err().reasons().contains(&Reason::DirectRefused));
}

#[test]
fn a_wish_is_granted_where_it_can_be() {
    let wish = |landing| Policy::Prefer(RouteMatch { transport: None, landing: Some(landing) });
    let object = file(Residency::Unknown, Direct::Offered);
    for landing in [Landing::KernelCopy, Landing::Staged, Landing::Dma] {
        let choice = planned(&object, MemoryFacts::HOST, wish(landing), &RateTable::new()).choice.unwrap();
        assert_eq!(choice.route.landing, landing);
    }
    let choice = planned(&object, GPU, wish(Landing::Dma), &RateTable::new()).choice.unwrap();
    assert_eq!((choice.route.landing, choice.main.reason), (Landing::Staged, Reason::NoPeerPages));
}

#[test]
fn no_transport_and_no_staging_are_reasons() {
    let object = file(Residency::Unknown, Direct::Offered);
    let facts = MemoryFacts { staging: Err(Reason::NoStaging), ..GPU };
    let error = planned(&object, facts, Policy::Any, &RateTable::new()).choice.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.reasons().contains(&Reason::NoStaging));
    let none = plan(&object, &MemoryFacts::HOST, &[caps("other")], &Policy::Any, &RateTable::new(), Verb::Read);
    assert!(none.choice.unwrap_err().reasons().contains(&Reason::MemoryUnreachable));
}

#[test]
fn a_wish_explains_itself() {
    let wish = |landing| Policy::Prefer(RouteMatch { transport: None, landing: Some(landing) });
    let cold = file(Residency::Unknown, Direct::Offered);
    let plan = planned(&cold, MemoryFacts::HOST, wish(Landing::KernelCopy), &RateTable::new());
    assert_eq!(plan.choice.unwrap().main.reason, Reason::Preferred, "nothing was measured");
    let direct = plan.candidates.iter().find(|c| c.route.landing == Landing::Dma).unwrap();
    assert_eq!(direct.verdict, Err(Reason::PolicyExcludes));
    // What would have been taken without the wish has the reason that it has without the wish.
    let choice = planned(&cold, MemoryFacts::HOST, wish(Landing::Dma), &RateTable::new()).choice.unwrap();
    assert_eq!(choice.main.reason, Reason::Best);
    let resident = file(Residency::Cached(1 << 20), Direct::Offered);
    let choice = planned(&resident, MemoryFacts::HOST, wish(Landing::KernelCopy), &RateTable::new()).choice.unwrap();
    assert_eq!(choice.main.reason, Reason::Resident);
    // A wish that cannot be granted says why, also where the direct route takes its place.
    let facts = MemoryFacts { staging: Err(Reason::NoStaging), ..MemoryFacts::HOST };
    let choice = planned(&cold, facts, wish(Landing::Staged), &RateTable::new()).choice.unwrap();
    assert_eq!((choice.route.landing, choice.main.reason), (Landing::Dma, Reason::NoStaging));
}

#[test]
fn ends_that_go_the_demanded_way_are_no_exception() {
    let object = file(Residency::Unknown, Direct::Offered);
    let demand = |transport, landing| RouteMatch { transport, landing };
    let chosen = |facts, policy| planned(&object, facts, policy, &RateTable::new()).choice.unwrap();
    let dma = demand(None, Some(Landing::Dma));
    let choice = chosen(MemoryFacts::HOST, Policy::Require(dma));
    assert!(!choice.ends_may_bounce && !choice.core_required);
    let choice = chosen(MemoryFacts::HOST, Policy::RequireCore(dma));
    assert!(choice.ends_may_bounce && choice.core_required);
    // Staged ends of a staged write, and any landing of the demanded transport.
    for (facts, demand) in
        [(GPU, demand(None, Some(Landing::Staged))), (MemoryFacts::HOST, demand(Some("io_uring"), None))]
    {
        assert!(chosen(facts, Policy::Require(demand)).ends_may_bounce);
        assert!(!chosen(facts, Policy::RequireCore(demand)).core_required);
    }
}

#[test]
fn the_write_unit_is_that_of_the_widest_face() {
    let mut object = file(Residency::Unknown, Direct::Offered);
    object.faces[0].write_unit = 16_384;
    let choice = planned(&object, MemoryFacts::HOST, Policy::Any, &RateTable::new()).choice.unwrap();
    assert_eq!(choice.write_unit, 16_384);
    let object = file(Residency::Unknown, Direct::Refused);
    let choice = planned(&object, MemoryFacts::HOST, Policy::Any, &RateTable::new()).choice.unwrap();
    assert_eq!(choice.write_unit, 1);
}
