//! Bounded mutation fuzz of every decoder, with a fixed seed: seconds in every test run, the same run each time.
//! The unbounded twin is `fuzz/`; both run the bodies in `fuzz/bodies.rs`.

#![expect(clippy::unwrap_used, reason = "a helper of a test may panic")]

#[path = "../fuzz/authentication.rs"]
#[expect(clippy::cast_possible_truncation, reason = "the turns of an exchange are few")]
mod authentication;
#[path = "../fuzz/bodies.rs"]
mod bodies;
#[path = "../fuzz/host_queue.rs"]
#[expect(clippy::cast_possible_truncation, reason = "numbers of a test, drawn below a bound that fits")]
mod host_queue;
#[path = "../fuzz/rdma_queue.rs"]
#[expect(clippy::expect_used, reason = "a helper of a test may panic")]
mod rdma_queue;

use std::collections::BTreeMap;
use std::path::Path;

const MUTATIONS: u32 = 10_000;

/// SplitMix64: enough for choosing bytes, and replays from its seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn roll(&mut self, below: usize) -> usize {
        usize::try_from(self.next() % below.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        // Ends of ranges more often than the rest.
        [0, 1, 8, 9, 0x7F, 0x80, 0xFF, self.next().to_le_bytes()[0]][self.roll(8)]
    }
}

/// Changes a few bytes, most of them among the first `busy` or where there is something already; seldom the length.
fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, busy: usize) {
    let used: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
    for _ in 0..=dice.roll(6) {
        let at = match dice.roll(3) {
            0 => dice.roll(busy),
            1 if !used.is_empty() => used[dice.roll(used.len())],
            _ => dice.roll(bytes.len()),
        };
        if let Some(byte) = bytes.get_mut(at) {
            *byte = if dice.roll(2) == 0 { *byte ^ 1 << dice.roll(8) } else { dice.byte() };
        }
    }
    if dice.roll(50) == 0 {
        bytes.truncate(dice.roll(bytes.len()));
    }
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden").join(name)).unwrap()
}

/// Runs `body` on mutations of the seeds and counts what came out.
fn run(seed: u64, seeds: &[Vec<u8>], busy: usize, body: fn(&[u8]) -> &'static str) -> BTreeMap<&'static str, u32> {
    let mut dice = Dice(seed);
    let mut outcomes = BTreeMap::new();
    for _ in 0..MUTATIONS {
        let mut bytes = seeds[dice.roll(seeds.len())].clone();
        mutate(&mut dice, &mut bytes, busy);
        *outcomes.entry(body(&bytes)).or_default() += 1;
    }
    println!("{outcomes:?}");
    outcomes
}

/// The run is worth its time only if it reaches past the first check.
fn reached(outcomes: &BTreeMap<&'static str, u32>, wanted: &[&str]) {
    for word in wanted {
        assert!(outcomes.get(word).is_some_and(|&count| count >= 20), "{word} in {outcomes:?}");
    }
}

#[test]
fn mutated_identify_data_is_decoded_or_refused() {
    let names = ["identify-controller.bin", "identify-namespace.bin", "identify-descriptors.bin"];
    let mut seeds: Vec<_> = names.iter().map(|name| golden(name)).collect();
    // A namespace of plain blocks, and one that is both a controller and a namespace, for the limits.
    let mut plain = vec![0; 4096];
    (plain[0], plain[130]) = (9, 9);
    let mut both = plain.clone();
    (both[512], both[513], both[77]) = (0x66, 0x44, 5);
    seeds.extend([plain, both]);
    let outcomes = run(1, &seeds, 136, bodies::identify);
    reached(&outcomes, &["plain", "stripped", "metadata", "FLBAS", "LBADS", "NLBAF", "NSZE"]);
}

#[test]
fn mutated_log_pages_are_decoded_or_refused() {
    let names = ["smart.bin", "error-entry.bin", "firmware.bin", "command-effects.bin"];
    let mut seeds: Vec<_> = names.iter().map(|name| golden(name)).collect();
    let mut changed = vec![0; 4096];
    (0..6).for_each(|n| changed[8 * n] = u8::try_from(10 * n + 1).unwrap());
    let mut all = vec![0; 4096];
    all[..4].fill(0xFF);
    seeds.extend([changed, all]);
    let outcomes = run(2, &seeds, 32, bodies::logs);
    reached(&outcomes, &["changed", "all changed", "effects with read", "entry", "no entry"]);
}

#[test]
fn mutated_registers_are_decoded_or_refused() {
    let mut raw = vec![0; 64];
    raw[..8].copy_from_slice(&0x0240_1820_0F01_07FF_u64.to_le_bytes());
    let mut memory = raw.clone();
    memory[44..52].copy_from_slice(&[2, 0, 0, 0, 0x1F, 0x40, 0, 0]);
    let gone = vec![0xFF; 64];
    let outcomes = run(3, &[raw, memory, gone], 8, bodies::registers);
    reached(&outcomes, &["ok", "with memory", "CAP", "CAP.MPSMAX", "CMBLOC.BIR", "CMBSZ.SZU"]);
}

#[test]
fn mutated_completions_have_a_class() {
    let good = vec![0; 96];
    let mut media = good.clone();
    (media[14], media[15]) = (0x02, 0x85);
    let mut path = good.clone();
    (path[14], path[15]) = (0x04, 0x06);
    let mut gone = good.clone();
    gone[14] = 0x0B << 1;
    let mut aborted = good.clone();
    aborted[14] = 0x07 << 1;
    let outcomes = run(4, &[good, media, path, gone, aborted], 16, bodies::completion);
    reached(&outcomes, &["success", "retryable", "not retryable", "media", "namespace gone", "aborted", "path"]);
}

#[test]
fn mutated_memory_is_described_or_refused() {
    // 4 KiB pages; two chunks of 16 entries, the first at the end of its page; two segments that meet on a page.
    let mut raw = vec![0, 2, 2, 0];
    for (at, room) in [(0x5000_0F80_u64, 16_u32), (0x6000_0000, 16)] {
        raw.extend(at.to_le_bytes());
        raw.extend(room.to_le_bytes());
    }
    let segment = |raw: &mut Vec<u8>, at: u64, len: u64| {
        raw.extend(at.to_le_bytes());
        raw.extend(len.to_le_bytes());
    };
    let mut few = raw.clone();
    segment(&mut few, 0x10_0200, 0x1E00);
    segment(&mut few, 0x20_0000, 0x800);
    let mut many = raw.clone();
    segment(&mut many, 0x10_0200, 0xFE00);
    segment(&mut many, 0x20_0000, 0x8800);
    let mut one = raw.clone();
    (one[2], one[3]) = (1, 0);
    let mut high = one.clone();
    segment(&mut one, 0x1234_5678_0000, 0x1800);
    segment(&mut high, u64::MAX - 0xFFFF, 0xF000);
    let outcomes = run(5, &[few, many, one, high], 64, bodies::pages);
    reached(&outcomes, &["pair", "list", "empty", "start", "ragged", "full", "chunk", "wraps"]);
}

#[test]
fn mutated_fabrics_data_is_decoded_or_refused() {
    use sw_nvme::{
        discovery::{AddressFamily, Entry, FlowControl, Header, SecureChannel, SubsystemType, TransportType},
        fabrics::{ConnectData, Nqn},
    };
    let name = Nqn::new("nqn.2026-11.io.example:one").unwrap();
    let connect = ConnectData { host_id: [7; 16], controller: 0xFFFF, subsystem: name.clone(), host: name.clone() };
    let entry = |kind, port: u16| {
        Entry {
            transport: TransportType::Tcp,
            family: AddressFamily::Ipv4,
            kind,
            secure_channel: SecureChannel::NotRequired,
            may_leave_flow_control: FlowControl::MayBeLeft,
            port_id: 1,
            controller: 0xFFFF,
            admin_entries: 32,
            service: port.to_string(),
            subsystem: name.clone(),
            address: "192.0.2.1".into(),
            security: 0,
        }
        .encode()
    };
    let page = |generation, kinds: &[SubsystemType]| {
        let mut page = Header { generation, entries: kinds.len() as u64 }.encode().to_vec();
        kinds.iter().zip(4420..).for_each(|(kind, port)| page.extend(entry(*kind, port)));
        page
    };
    let (nvme, referral) = (SubsystemType::Nvme, SubsystemType::Referral);
    let plain = page(3, &[nvme, nvme]);
    let refers = page(3, &[nvme, referral, referral]);
    let changes = [page(3, &[nvme, nvme, referral]), page(4, &[nvme, nvme, nvme])].concat();
    let seeds = [connect.encode().to_vec(), plain, refers, changes];
    let outcomes = run(6, &seeds, 1100, bodies::fabrics);
    reached(&outcomes, &["connect", "entries", "referrals", "not read", "NUMREC", "RECFMT"]);
}

#[test]
fn whatever_a_controller_sends_no_command_ends_twice_or_in_other_memory() {
    let mut dice = Dice(7);
    let seeds: Vec<Vec<u8>> = (0..64)
        .map(|shape| {
            // Units with nothing wrong, and success early or late.
            let step = |dice: &mut Dice| {
                let (kind, by) = (dice.next().to_le_bytes()[0] % 7, dice.next().to_le_bytes()[0]);
                let twist = if dice.roll(2) == 0 { 0x20 } else { 0 };
                [&[kind, by % 200, twist, 0][..], &[1; 12]].concat()
            };
            let steps: Vec<u8> = (0..12).flat_map(|_| step(&mut dice)).collect();
            let last: &[u8] = if shape % 8 == 0 { &[7, 0, 1] } else { &[] };
            [&[shape * 4 + shape % 4, shape][..], &steps, last].concat()
        })
        .collect();
    let outcomes = run(8, &seeds, 200, host_queue::host_queue);
    reached(&outcomes, &["breach", "terminated", "both", "only success"]);
}

#[test]
fn whoever_comes_between_host_and_controller_gets_nobody_in() {
    let nothing = [0; 6];
    let flip = |at: u8, bit: u8| [1, at, 0, bit, 0, 0];
    // Each hash, both secrets and others, one way and both.
    let shapes = [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x08, 0x09, 0x0A];
    let mut seeds: Vec<Vec<u8>> = shapes
        .iter()
        .flat_map(|&shape| {
            let quiet = [&[shape][..], &nothing, &nothing, &nothing, &nothing, &nothing].concat();
            let late = [&[shape][..], &nothing, &nothing, &nothing, &flip(20, 4)].concat();
            // Success2, which the host does not wait for.
            let last = [&[shape][..], &nothing, &nothing, &nothing, &nothing, &flip(4, 1)].concat();
            let replayed = [&[shape][..], &nothing, &nothing, &nothing, &[4, 0, 0, 1, 0, 0]].concat();
            [vec![shape], quiet, late, last, replayed]
        })
        .collect();
    // With a group; milliseconds each.
    seeds.push([&[0xF0][..], &nothing, &nothing, &nothing].concat());
    let outcomes = run(9, &seeds, 13, authentication::authentication);
    reached(&outcomes, &["agreed", "touched in vain", "only the host", "failed"]);
}

#[test]
fn a_queue_over_rdma_keeps_its_account_whatever_comes() {
    // Steps in the order of a life, many of them, for several commands at a time.
    let step = |what: u8, which: u8, key: u8| [what, which, 0, 0, key, 0, 0, 0];
    let life: Vec<u8> = [7]
        .into_iter()
        .chain((0..24).flat_map(|round: u8| {
            let which = round % 4;
            let steps =
                [step(0, 0, round), step(1, 0, round), step(2 + round % 2, which, 0), step(3 - round % 2, which, 0)];
            steps.into_iter().flatten()
        }))
        .collect();
    let accept = sw_nvme::rdma::cm::Accept { receive_entries: 32 }.encode().to_vec();
    let outcomes = run(10, &[life, accept], 200, rdma_queue::rdma_queue);
    reached(&outcomes, &["ended and refused", "ended", "refused"]);
}
