//! What a controller and a NIC say to the host's end of a queue over RDMA, with commands under way. Used as `bodies.rs` is.
//!
//! ```text
//!   raw: [depth] then steps of 8 bytes: [what][which][16 bits][key][the rest of a response]
//! ```
//!
//! Whatever comes: nothing panics; each command ends once, and only when its SEND's completion and its response came, the response with no other
//! key than its own; until then its place is nobody else's. A naive twin says what is to be refused. The private data of the connection manager and the
//! capsules, which a controller of ours reads, are decoded too.

use std::collections::BTreeMap;

use sw_engine::seam::verbs::RemoteKey;
use sw_mem::RemoteAddr;
use sw_nvme::{
    rdma::{
        capsule::{self, Descriptor, KeyEnd, Keyed, Source},
        cm::{Accept, Refused, Request},
        host::HostQueue,
    },
    status::Status,
    tcp::host::Transfer,
    wire::{Command, Completion, completion::CompletionFields},
};

const STEP_BYTES: usize = 8;

/// What the twin knows of a command.
#[derive(Clone, Copy, Default)]
struct Known {
    is_out: bool,
    is_sent: bool,
    is_answered: bool,
    key: Option<u32>,
}

fn decoders(raw: &[u8]) {
    if let Ok(request) = Request::decode(raw) {
        assert!(request.receive_entries > 0 && request.send_entries > 0);
        let again = Request::decode(&request.encode());
        assert!(again == Ok(request) || request.send_entries == u16::MAX);
    }
    if let Ok(accept) = Accept::decode(raw) {
        assert_eq!(Accept::decode(&accept.encode()), Ok(accept));
    }
    assert!(Refused::decode(raw).to_string().len() < 100);
    if let Some((command, data)) = capsule::decode(raw) {
        assert_eq!(data.len() + capsule::COMMAND_BYTES, raw.len());
        let found = capsule::descriptor(&command);
        let source = match found {
            Descriptor::Keyed(keyed) => Some(Source::Keyed(keyed)),
            Descriptor::InCapsule { at: 0, bytes } => Some(Source::Behind(bytes)),
            _ => None,
        };
        if let Some(source) = source {
            let again = capsule::encode(&command, command.cid(), source).map(Command::new);
            assert_eq!(again.map(|command| capsule::descriptor(&command)), Some(found));
        }
    }
}

/// A response; whether it is one that may be.
fn answer(queue: &mut HostQueue, (cid, dw0): (u16, u8), invalidated: Option<u32>, known: Option<&Known>) -> bool {
    let status = Status::SUCCESS;
    let fields = CompletionFields { dw0: dw0.into(), sq_head: 0, sq_id: 0, cid, phase: false, status };
    let may = known
        .is_some_and(|known| known.is_out && !known.is_answered && (invalidated.is_none() || invalidated == known.key));
    let told = queue.response(Completion::build(fields).bytes(), invalidated.map(RemoteKey));
    assert_eq!(told.is_ok(), may);
    may
}

/// See the module documentation.
pub fn rdma_queue(raw: &[u8]) -> &'static str {
    decoders(raw);
    let Some((first, steps)) = raw.split_first() else { return "empty" };
    let mut queue = HostQueue::new(u16::from(first % 8) + 1);
    let mut twin: BTreeMap<u16, Known> = BTreeMap::new();
    let (mut user, mut ended, mut refused) = (0u32, 0u32, false);
    for step in steps.chunks_exact(STEP_BYTES) {
        let &[what, which, low, high, key, dw0, ..] = step else { continue };
        let known = twin.keys().nth(usize::from(which) % twin.len().max(1)).copied();
        // Mostly one that is under way.
        let cid = known.filter(|_| which < 0xE0).unwrap_or(u16::from_le_bytes([low, high]));
        match what % 5 {
            0 => {
                let moves = [Transfer::In(512), Transfer::None, Transfer::Out(512)][usize::from(key % 3)];
                if let Some(cid) = queue.submit(&Command::keep_alive(), moves, user) {
                    user += 1;
                    assert!(twin.insert(cid, Known::default()).is_none(), "an identifier that is under way");
                }
            }
            1 => {
                let Some(next) = queue.next() else { continue };
                let end = if key & 2 == 0 { KeyEnd::Kept } else { KeyEnd::Invalidated };
                let at = RemoteAddr::new(4096, u32::from(key));
                let memory = (next.transfer != Transfer::None).then_some(Keyed { at, bytes: 512, end });
                let memory = memory.filter(|_| !matches!(next.transfer, Transfer::Out(_)) || key & 4 == 0);
                let source = match (memory, next.transfer) {
                    (Some(keyed), _) => Source::Keyed(keyed),
                    (None, Transfer::Out(bytes)) => Source::Behind(bytes),
                    (None, _) => Source::Nothing,
                };
                let capsule = queue.capsule(source).expect("memory that fits");
                assert_eq!(Command::new(capsule).cid(), next.cid);
                let asked = memory.filter(|keyed| keyed.end == KeyEnd::Invalidated).map(|keyed| keyed.at.rkey());
                twin.insert(next.cid, Known { is_out: true, key: asked, ..Known::default() });
            }
            2 => {
                let may = twin.get(&cid).is_some_and(|known| known.is_out && !known.is_sent);
                assert_eq!(queue.sent(cid).is_ok(), may);
                refused |= !may;
                twin.entry(cid).and_modify(|known| known.is_sent |= may);
            }
            3 => {
                let invalidated = (high & 1 == 1).then_some(u32::from(key));
                let may = answer(&mut queue, (cid, dw0), invalidated, twin.get(&cid));
                refused |= !may;
                twin.entry(cid).and_modify(|known| known.is_answered |= may);
            }
            _ => {
                assert!(queue.response(step, None).is_err(), "less than a completion");
                let may = twin.get(&cid).is_some_and(|known| !known.is_out);
                assert_eq!(queue.let_go(cid), may);
                if may {
                    twin.remove(&cid);
                    assert!(queue.pop_end().is_some_and(|ended| ended.place.is_none()));
                }
            }
        }
        let over = twin.iter().find(|(_, known)| known.is_sent && known.is_answered).map(|(cid, _)| *cid);
        if let Some(cid) = over {
            twin.remove(&cid);
            assert!(queue.pop_end().is_some_and(|ended| ended.end.user < user && ended.place.is_some()));
            ended += 1;
        }
        assert!(queue.pop_end().is_none(), "an end of something that is not over");
        assert_eq!(queue.under_way(), twin.len());
    }
    match (ended > 0, refused) {
        (true, true) => "ended and refused",
        (true, false) => "ended",
        (false, true) => "refused",
        (false, false) => "nothing",
    }
}
