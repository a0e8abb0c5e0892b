//! Admin commands: identify, features, queues, abort, asynchronous events, log pages, doorbell buffer.

use super::{
    Step,
    command::{
        Entry, INVALID_FIELD, INVALID_NAMESPACE, INVALID_OPCODE, NEVER, SEQUENCE_ERROR, SQ_DELETED, SUCCESS, Sqe,
        status,
    },
    identify,
    iommu::Reached,
    rings::{CompletionQueue, DoorbellBuffer, SubmissionQueue},
};
use crate::log::Mark;

const DELETE_SQ: u8 = 0x00;
const CREATE_SQ: u8 = 0x01;
const GET_LOG: u8 = 0x02;
const DELETE_CQ: u8 = 0x04;
const CREATE_CQ: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const ABORT: u8 = 0x08;
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0A;
pub(super) const EVENT_REQUEST: u8 = 0x0C;
const KEEP_ALIVE: u8 = 0x18;
const DOORBELL_BUFFER: u8 = 0x7C;

const CQ_INVALID: u16 = NEVER | status(1, 0x00);
const QID_INVALID: u16 = NEVER | status(1, 0x01);
const QUEUE_SIZE: u16 = NEVER | status(1, 0x02);
const ABORT_LIMIT: u16 = status(1, 0x03);
const EVENT_LIMIT: u16 = NEVER | status(1, 0x05);
const VECTOR_INVALID: u16 = NEVER | status(1, 0x08);
const LOG_PAGE: u16 = NEVER | status(1, 0x09);
const QUEUE_DELETION: u16 = NEVER | status(1, 0x0C);

const QUEUES_FEATURE: u8 = 0x07;
const EVENTS_FEATURE: u8 = 0x0B;
/// Host Behavior Support; its first byte is ACRE.
pub(super) const HOST_BEHAVIOR: u8 = 0x16;
/// Features that are kept as they are set: arbitration, power, temperature, error recovery, write cache, coalescing, vector
/// configuration, atomicity.
const PLAIN_FEATURES: [u8; 8] = [0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0A];
/// Bytes of identify data and of each half of the doorbell buffer.
const PAGE: u64 = 4096;

/// An answer: status and DW0.
type Answer = (u16, u32);

impl Step<'_> {
    pub(super) fn admin_data_len(&mut self, sqe: &Sqe) -> Result<u64, u16> {
        match sqe.opcode() {
            IDENTIFY => Ok(PAGE),
            GET_LOG => Ok(4 * ((u64::from(sqe.low(11)) << 16 | u64::from(sqe.high(10))) + 1)),
            // The queue's own memory, and the buffers: addresses, not data.
            CREATE_SQ | CREATE_CQ | DOORBELL_BUFFER => Ok(0),
            SET_FEATURES | GET_FEATURES if sqe.word(10) & 0xFF == u32::from(HOST_BEHAVIOR) => Ok(512),
            DELETE_SQ | DELETE_CQ | ABORT | KEEP_ALIVE | SET_FEATURES | GET_FEATURES => Ok(0),
            _ => Err(INVALID_OPCODE),
        }
    }

    pub(super) fn execute_admin(&mut self, name: u64, sqe: &Sqe) -> Answer {
        match sqe.opcode() {
            IDENTIFY => self.identify(name, sqe),
            GET_LOG => self.get_log(name, sqe),
            SET_FEATURES => self.set_features(name, sqe),
            GET_FEATURES => self.get_features(sqe),
            CREATE_CQ => (self.create_cq(sqe), 0),
            CREATE_SQ => (self.create_sq(sqe), 0),
            DELETE_CQ => (self.delete_cq(sqe), 0),
            DELETE_SQ => (self.delete_sq(sqe), 0),
            ABORT => self.abort(sqe),
            DOORBELL_BUFFER => (self.set_doorbell_buffer(sqe), 0),
            _ => (SUCCESS, 0),
        }
    }

    fn identify(&mut self, name: u64, sqe: &Sqe) -> Answer {
        let (cns, nsid) = (sqe.word(10) & 0xFF, sqe.nsid());
        let namespaces = self.ctrl.params.namespaces.clone();
        let named = namespaces.iter().find(|namespace| namespace.nsid == nsid);
        let highest = namespaces.iter().map(|namespace| namespace.nsid).max().unwrap_or(0);
        let mut bytes = match cns {
            0x00 => match named {
                Some(namespace) => identify::namespace(namespace, self.blocks(namespace)),
                // In range and not active: all zero.
                None if nsid > 0 && nsid <= highest => vec![0; 4096],
                None => return (INVALID_NAMESPACE, 0),
            },
            0x01 => identify::controller(&self.ctrl.params, self.number),
            0x02 => identify::active(&namespaces, nsid),
            0x03 => match named {
                Some(namespace) => identify::descriptors(namespace, self.number),
                None => return (INVALID_NAMESPACE, 0),
            },
            _ => return (INVALID_FIELD, 0),
        };
        self.put_data(name, &mut bytes);
        (SUCCESS, 0)
    }

    fn get_log(&mut self, name: u64, sqe: &Sqe) -> Answer {
        let (lid, len) = (sqe.word(10) & 0xFF, 4 * ((sqe.word(11) & 0xFFFF) << 16 | sqe.word(10) >> 16) + 4);
        let offset = sqe.wide(12);
        let Some(page) = identify::log(lid, &self.ctrl.params) else { return (LOG_PAGE, 0) };
        if offset > page.len() as u64 {
            return (INVALID_FIELD, 0);
        }
        let mut bytes: Vec<u8> = page.into_iter().skip(sw_mem::index(offset)).collect();
        bytes.resize(len as usize, 0);
        self.put_data(name, &mut bytes);
        // RAE clear: the event that points to this page may come again.
        if sqe.word(10) & 0x8000 == 0 {
            self.ctrl.features.remove(&masked_name(lid));
            self.deliver_events();
        }
        (SUCCESS, 0)
    }

    fn set_features(&mut self, name: u64, sqe: &Sqe) -> Answer {
        let feature = u8::try_from(sqe.word(10) & 0xFF).unwrap_or(0);
        match feature {
            HOST_BEHAVIOR => {
                if self.take_data(name).first() == Some(&1) {
                    self.ctrl.features.insert(feature, 1);
                }
                (SUCCESS, 0)
            }
            QUEUES_FEATURE => {
                if self.ctrl.sqs.len() > 1 || self.ctrl.cqs.len() > 1 {
                    self.violate("wire", "the number of queues is set while there are I/O queues".to_string());
                    return (SEQUENCE_ERROR, 0);
                }
                if sqe.low(11) == 0xFFFF || sqe.high(11) == 0xFFFF {
                    return (INVALID_FIELD, 0);
                }
                let most = self.ctrl.params.queue_pairs.max(1) - 1;
                if sqe.low(11) > most {
                    self.mark(Mark::NvmeFewerQueues);
                }
                let (given, heads) = (sqe.low(11).min(most), sqe.high(11).min(most));
                self.ctrl.granted = Some(given.min(heads) + 1);
                // A controller may give more than was asked for: all it has.
                (SUCCESS, u32::from(most) | u32::from(most) << 16)
            }
            EVENTS_FEATURE => {
                self.ctrl.features.insert(feature, sqe.word(11));
                (SUCCESS, 0)
            }
            _ if PLAIN_FEATURES.contains(&feature) => {
                self.ctrl.features.insert(feature, sqe.word(11));
                (SUCCESS, 0)
            }
            _ => (INVALID_FIELD, 0),
        }
    }

    fn get_features(&mut self, sqe: &Sqe) -> Answer {
        let feature = u8::try_from(sqe.word(10) & 0xFF).unwrap_or(0);
        let most = u32::from(self.ctrl.params.queue_pairs.max(1) - 1);
        match feature {
            QUEUES_FEATURE => (SUCCESS, most | most << 16),
            0x06 => {
                (SUCCESS, self.ctrl.features.get(&feature).copied().unwrap_or(u32::from(self.ctrl.params.write_cache)))
            }
            _ if feature == EVENTS_FEATURE || PLAIN_FEATURES.contains(&feature) => {
                (SUCCESS, self.ctrl.features.get(&feature).copied().unwrap_or(0))
            }
            _ => (INVALID_FIELD, 0),
        }
    }

    /// The part of creating a queue that both kinds share: its number and size, from CDW10.
    fn new_queue(&mut self, sqe: &Sqe, taken: Taken) -> Result<(u16, u32), u16> {
        let (queue, entries) = (sqe.low(10), u32::from(sqe.high(10)) + 1);
        let granted = self.ctrl.granted.unwrap_or(1);
        let refused = if queue == 0 || queue > granted || taken == Taken::Yes {
            Some((QID_INVALID, format!("queue {queue} of {granted} is created ({taken:?} in use)")))
        } else if entries < 2 || entries > self.ctrl.params.entries_max {
            Some((QUEUE_SIZE, format!("a queue of {entries} entries, {} are allowed", self.ctrl.params.entries_max)))
        } else if sqe.word(11) & 1 == 0 || !sqe.wide(6).is_multiple_of(self.ctrl.registers.page()) {
            Some((INVALID_FIELD, format!("queue {queue} at {:#x} that is not contiguous pages", sqe.wide(6))))
        } else {
            None
        };
        match refused {
            Some((status, text)) => {
                self.violate("limits", text);
                Err(status)
            }
            None => Ok((queue, entries)),
        }
    }

    fn create_cq(&mut self, sqe: &Sqe) -> u16 {
        let taken = self.ctrl.cqs.get(&sqe.low(10)).map_or(Taken::No, |_| Taken::Yes);
        let (queue, entries) = match self.new_queue(sqe, taken) {
            Ok(new) => new,
            Err(status) => return status,
        };
        let vector = (sqe.word(11) & 2 != 0).then_some(sqe.high(11));
        if vector.is_some_and(|vector| vector >= self.ctrl.params.vectors) {
            self.violate("limits", format!("vector {vector:?} of {} for queue {queue}", self.ctrl.params.vectors));
            return VECTOR_INVALID;
        }
        self.check_ring("a completion queue", sqe.wide(6), 16 * u64::from(entries));
        self.ctrl.cqs.insert(queue, CompletionQueue::new(sqe.wide(6), entries, vector));
        SUCCESS
    }

    fn create_sq(&mut self, sqe: &Sqe) -> u16 {
        let taken = self.ctrl.sqs.get(&sqe.low(10)).map_or(Taken::No, |_| Taken::Yes);
        let (queue, entries) = match self.new_queue(sqe, taken) {
            Ok(new) => new,
            Err(status) => return status,
        };
        let cq = sqe.high(11);
        if cq == 0 || !self.ctrl.cqs.contains_key(&cq) {
            self.violate("limits", format!("submission queue {queue} on completion queue {cq}, which is not there"));
            return CQ_INVALID;
        }
        self.check_ring("a submission queue", sqe.wide(6), 64 * u64::from(entries));
        self.ctrl.sqs.insert(queue, SubmissionQueue::new(sqe.wide(6), entries, cq));
        SUCCESS
    }

    /// All of a ring must be mapped when it is created, not just what is used first.
    fn check_ring(&mut self, what: &str, at: u64, len: u64) {
        if self.translate(at, len).is_none() {
            self.sent_astray(what, at);
        }
    }

    fn delete_cq(&mut self, sqe: &Sqe) -> u16 {
        let queue = sqe.low(10);
        if queue == 0 || !self.ctrl.cqs.contains_key(&queue) {
            self.violate("limits", format!("completion queue {queue} is deleted and is not there"));
            return QID_INVALID;
        }
        if self.ctrl.sqs.values().any(|sq| sq.cq == queue) {
            self.violate("state", format!("completion queue {queue} is deleted before its submission queue"));
            return QUEUE_DELETION;
        }
        self.ctrl.cqs.remove(&queue);
        SUCCESS
    }

    fn delete_sq(&mut self, sqe: &Sqe) -> u16 {
        let queue = sqe.low(10);
        if queue == 0 || !self.ctrl.sqs.contains_key(&queue) {
            self.violate("limits", format!("submission queue {queue} is deleted and is not there"));
            return QID_INVALID;
        }
        // Commands of the queue end before it does: with an entry, or with the answer to this command alone.
        let tells = self.ctrl.moods.per_mille(500);
        let open = self.ctrl.commands.iter().filter(|(_, open)| open.queue == queue && !open.late);
        for name in open.map(|(name, _)| *name).collect::<Vec<_>>() {
            self.mark(Mark::NvmeDeletedInFlight);
            if tells {
                self.finish(name, SQ_DELETED, 0);
            } else if let Some(open) = self.ctrl.commands.remove(&name) {
                open.owned.iter().for_each(|name| self.shadow.end(*name));
            }
        }
        self.ctrl.sqs.remove(&queue);
        SUCCESS
    }

    fn abort(&mut self, sqe: &Sqe) -> Answer {
        self.ctrl.counts.aborts += 1;
        let open = self.ctrl.commands.values().filter(|open| open.queue == 0 && open.sqe.opcode() == ABORT).count();
        if open > usize::from(self.ctrl.params.aborts_max) {
            self.violate("limits", format!("{open} aborts at once, ACL allows {}", self.ctrl.params.aborts_max));
            return (ABORT_LIMIT, 1);
        }
        let (queue, cid) = (sqe.low(10), sqe.high(10));
        let found = self.ctrl.commands.iter_mut().find(|(_, open)| {
            open.queue == queue && open.sqe.cid() == cid && !open.late && !open.aborted && open.sqe.opcode() != ABORT
        });
        let wins = self.ctrl.moods.per_mille(self.ctrl.params.abort_wins);
        match found {
            Some((name, open)) if wins => {
                open.aborted = true;
                let name = *name;
                // Its own Execute event may come first, and then it ends there.
                self.plan(1, super::NvmeEvent::Execute { command: name });
                (SUCCESS, 0)
            }
            _ => {
                self.mark(Mark::NvmeAbortLost);
                (SUCCESS, 1)
            }
        }
    }

    fn set_doorbell_buffer(&mut self, sqe: &Sqe) -> u16 {
        let (shadow, events) = (sqe.wide(6), sqe.wide(8));
        if !self.ctrl.params.doorbell_buffer {
            return INVALID_OPCODE;
        }
        if !shadow.is_multiple_of(PAGE) || !events.is_multiple_of(PAGE) {
            self.violate("wire", format!("a doorbell buffer at {shadow:#x} and {events:#x}"));
            return INVALID_FIELD;
        }
        let len = PAGE.min(u64::from(self.ctrl.params.queue_pairs + 1) * (8 << self.ctrl.params.stride));
        let places = (self.translate(shadow, len), self.translate(events, len));
        match (places.0.as_deref(), places.1.as_deref()) {
            (Some([Reached::Queue(a, a_at, _)]), Some([Reached::Queue(b, b_at, _)])) => {
                self.memories.watch_doorbells((*a, *a_at), (*b, *b_at), len);
            }
            _ => self.sent_astray("a doorbell buffer", shadow),
        }
        self.mark(Mark::NvmeDoorbellBuffer);
        self.ctrl.doorbell_buffer = Some(DoorbellBuffer { shadow, events });
        SUCCESS
    }

    /// An asynchronous event request waits until something happens.
    pub(super) fn take_event_request(&mut self, name: u64) {
        if self.ctrl.event_requests.len() >= usize::from(self.ctrl.params.events_max) {
            self.violate("limits", format!("more event requests than {}", self.ctrl.params.events_max));
            return self.finish(name, EVENT_LIMIT, 0);
        }
        self.ctrl.event_requests.push_back(name);
        self.deliver_events();
    }

    /// Something happens: the namespaces changed, or the health got worse, in turn.
    pub(super) fn raise_event(&mut self, nth: u8) {
        let notice = nth.is_multiple_of(2);
        // Type 2 (notice), information 0 (namespace attribute changed), log page 4; or type 1 (health), 1, log page 2.
        let (bit, event) = if notice { (8, 0x0004_0002) } else { (1, 0x0002_0101) };
        let enabled = self.ctrl.features.get(&EVENTS_FEATURE).is_some_and(|set| set >> bit & 1 == 1);
        if enabled && self.ctrl.events.len() < 16 {
            self.ctrl.events.push_back(event);
            self.deliver_events();
        }
    }

    /// One event of each type until its log page was read.
    fn deliver_events(&mut self) {
        for _ in 0..self.ctrl.events.len() {
            let Some(event) = self.ctrl.events.pop_front() else { return };
            let name = masked_name(event >> 16);
            if self.ctrl.features.contains_key(&name) || self.ctrl.event_requests.is_empty() {
                self.ctrl.events.push_back(event);
                continue;
            }
            self.ctrl.features.insert(name, 1);
            if let Some(request) = self.ctrl.event_requests.pop_front() {
                self.mark(Mark::NvmeEvent);
                let cid = self.ctrl.commands.remove(&request).map(|open| open.sqe.cid());
                if let Some(cid) = cid {
                    self.give(Entry { queue: 0, cid, status: SUCCESS, dw0: event, act: None });
                }
            }
        }
    }
}

/// Where it is kept that an event of a log page was sent and its page not read: above all features that there are.
fn masked_name(lid: u32) -> u8 {
    0xE0 | u8::try_from(lid & 0x1F).unwrap_or(0)
}

/// Whether a queue's number is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Yes,
    No,
}
