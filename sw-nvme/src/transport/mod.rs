//! The engine's transport over NVMe queue pairs: one per controller, made when the first I/O asks for it.
//!
//! ```text
//!   Directory ──► Link per controller { QueuePair, RegionTable, backlog }
//!   Io ─► Parent ─► one or more commands ─► … ─► one IoDone
//! ```
//!
//! An [`Io`] becomes several commands where MDTS, NOIOB or the joints of its memory ask for it. A status without DNR is
//! sent again by the transport, at most five times per I/O, after the delay that CRD names; a fault that it reports is
//! therefore final. If some commands of an I/O fail, the bytes before the first one that failed are reported; the engine
//! asks for the rest and gets the fault with its place.
//!
//! Ends of a controller: after a reset (by this transport or another one of the same controller) I/Os that were in flight
//! end with `Retry::Now`, because it was seen disabled: nothing of them can land any more. If the controller is given up
//! they end with `NoDevice`. If it could neither be disabled nor stopped, they end with a fault that keeps their memory
//! ([`Fault::kept`]); other controllers go on, and `fence` counts them.
//!
//! *Thread*: one at a time. On the data path nothing is allocated, locked or logged. The control plane is the controller's
//! own (`controller/work.rs`): `ring` and `poll` ask for queue pairs and resets, park the I/Os, and find what came of it; they
//! look at each controller every [`LOOK_EVERY`] and never wait for its admin queue, as long as somebody attends it.

mod ends;
mod link;
mod parents;
mod regions;
mod wait;

use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::{collections::VecDeque, sync::Arc};

use sw_engine::{
    Error, ErrorKind, Fault, Reason, Time, Token, Verb,
    seam::{Attach, Fence, Io, IoDone, IoKind, MAX_SEGMENTS, Regions, Submit, Transport, TransportCaps, Wait, Wake},
};
use sw_mem::{ByteLen, DmaRegion, RegionId, WeakRegion};

use crate::{
    bus::{Bus, Waiter},
    controller::{Controller, Notify, Pair, PairRequest, Ticket},
    directory::{self, Directory, split},
    fork::Origin,
    prp::Segment,
    queue::QueueCounters,
};
use link::Link;
use parents::Parents;

/// Its name in routes and reports.
pub const NVME: &str = "nvme";

/// I/Os in flight at most that a configuration may ask for.
pub const DEPTH_MAX: u32 = 1 << 14;
/// Bytes in one I/O at most that a configuration may ask for.
pub const IO_BYTES_MAX: u32 = 16 << 20;
/// How often controllers are looked at: events, silence, commands that are late.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Polls between two looks at the clock.
const POLLS_PER_CLOCK: u32 = 256;

/// How completions are noticed by a poll that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// By looking, all the time: lowest latency, a core in use while something is in flight.
    Polled,
    /// By interrupt.
    Interrupt,
    /// By looking for so long, then by interrupt.
    Hybrid {
        /// How long.
        spin: Duration,
    },
}

static LEAKED_PAIRS: AtomicU64 = AtomicU64::new(0);

/// Queue pairs of this process whose memory was never freed, because their controller could not be stopped.
pub fn leaked_pairs() -> u64 {
    LEAKED_PAIRS.load(Ordering::Relaxed)
}

/// Whether scatter gather lists are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScatterGather {
    /// Where the controller takes them and PRP entries do not do.
    WhereOffered,
    /// Never.
    Never,
}

/// What a transport is made with.
#[derive(Clone, Copy, Debug)]
pub struct NvmeConfig {
    /// I/Os in flight at most, over all controllers, 1 to [`DEPTH_MAX`]. Default 128.
    pub queue_depth: u32,
    /// Commands in flight at most on one controller, 1 to 4,095; fewer where the controller allows fewer. Default 128.
    pub commands_per_controller: u32,
    /// Bytes in one I/O at most: a multiple of 4096 up to [`IO_BYTES_MAX`]. Default 1 MiB. Commands are cut further by
    /// what the controller takes.
    pub io_bytes_max: u32,
    /// How completions are noticed. Default polled.
    pub completion: Completion,
    /// Whether device memory can be reached, and if not, why. Default no: `NO_P2PDMA`.
    pub device: Result<(), Reason>,
    /// Whether pieces of memory that meet inside a page may go in one command with a scatter gather list, where the
    /// controller takes such; otherwise they go in a command each. Default yes.
    pub scatter_gather: ScatterGather,
    /// After this long without an end, a command is aborted. Default 30 s, Linux's `nvme_core.io_timeout`.
    pub command_timeout: Duration,
    /// After so much longer without an end, the controller is reset. Default 10 s.
    pub abort_timeout: Duration,
}

impl Default for NvmeConfig {
    fn default() -> Self {
        Self {
            queue_depth: 128,
            commands_per_controller: 128,
            io_bytes_max: 1 << 20,
            completion: Completion::Polled,
            device: Err(Reason::NoPeerPages),
            scatter_gather: ScatterGather::WhereOffered,
            command_timeout: Duration::from_secs(30),
            abort_timeout: Duration::from_secs(10),
        }
    }
}

impl NvmeConfig {
    /// What a transport of this configuration can do.
    pub fn caps(&self) -> TransportCaps {
        TransportCaps {
            name: NVME,
            queue_depth: self.queue_depth,
            io_bytes_max: self.io_bytes_max,
            segments_max: MAX_SEGMENTS_U8,
            host: Ok(()),
            device: self.device,
            regions: Regions::Attached,
        }
    }

    fn validate(&self) -> Result<(), Error> {
        let misuse = |text: &'static str| Err(Error::new(ErrorKind::ApiMisuse, Verb::Setup).at(NVME).detail(text));
        if !(1..=DEPTH_MAX).contains(&self.queue_depth) {
            return misuse("queue_depth must be 1 to 16384");
        }
        if !(1..crate::queue::ENTRIES_MAX).contains(&self.commands_per_controller) {
            return misuse("commands_per_controller must be 1 to 4095");
        }
        if self.io_bytes_max == 0 || self.io_bytes_max > IO_BYTES_MAX || !self.io_bytes_max.is_multiple_of(4096) {
            return misuse("io_bytes_max must be a multiple of 4096 up to 16 MiB");
        }
        if self.command_timeout < LOOK_EVERY || self.abort_timeout < LOOK_EVERY {
            return misuse("timeouts must be at least 100 milliseconds");
        }
        Ok(())
    }
}

/// Counts since the transport was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmeCounters {
    /// Of the queue pairs, those that are gone included.
    pub queues: QueueCounters,
    /// Commands sent again after a status that allows it.
    pub retries: u64,
    /// Commands beyond the first of an I/O.
    pub splits: u64,
    /// Aborts asked for because a command was late or the engine cancelled.
    pub aborts: u64,
    /// Resets that this transport asked for.
    pub resets: u64,
    /// Queue pairs made.
    pub pairs: u64,
    /// Of those, how many have no interrupt although the configuration asks for some: their waits look instead.
    pub polled_pairs: u64,
    /// Waits that ended without an interrupt although completions were there.
    pub lost_interrupts: u64,
}

/// A controller, as far as this transport got with it.
enum Place<B: Bus> {
    /// Not used yet, or let go of: the next I/O asks for a queue pair. The identifier of the last one, 0 for none.
    Unlinked(u16),
    /// A queue pair was asked for: the I/Os wait. With the identifier of the last one.
    Asked(Ticket<B>, u16),
    /// In use.
    Linked(Box<Link<B>>),
    /// Given up: every I/O gets the fault.
    Dead(Fault),
}

/// See the module documentation.
pub struct NvmeTransport<B: Bus> {
    directory: Arc<Directory<B>>,
    config: NvmeConfig,
    /// I/Os at a time, those included whose end no poll has given out yet.
    depth: usize,
    waiter: B::Waiter,
    /// By controller index.
    places: Vec<Place<B>>,
    /// Why the last I/Os of a place got a fault without being sent, in the words of whoever refused the queue pair.
    whys: Vec<Option<Error>>,
    /// I/Os for controllers without a queue pair: they are sent once there is one.
    parked: VecDeque<Io>,
    parents: Parents,
    /// Attached regions.
    attached: Vec<WeakRegion>,
    /// Ends that no poll has given out yet, with room for all I/Os.
    ended: Vec<IoDone>,
    counters: NvmeCounters,
    watch: ends::Watch,
    /// Controllers and vectors whose interrupts the waiter watches.
    watched: Vec<(usize, u16)>,
    /// I/Os whose memory a controller may touch for ever.
    kept: u32,
    closed: bool,
    fork: Origin,
}

impl<B: Bus> NvmeTransport<B> {
    /// Makes a transport over the controllers of `directory`; `waiter` watches the interrupts of its queues.
    ///
    /// # Errors
    /// `ApiMisuse` for a configuration out of range.
    pub fn new(directory: Arc<Directory<B>>, waiter: B::Waiter, config: NvmeConfig) -> Result<Self, Error> {
        config.validate()?;
        let depth = sw_mem::index(u64::from(config.queue_depth));
        Ok(Self {
            depth,
            watch: ends::Watch::new(waiter.now()),
            directory,
            config,
            waiter,
            places: Vec::new(),
            whys: Vec::new(),
            parked: VecDeque::new(),
            parents: Parents::new(config.queue_depth),
            attached: Vec::new(),
            ended: Vec::with_capacity(depth),
            counters: NvmeCounters::default(),
            watched: Vec::new(),
            kept: 0,
            closed: false,
            fork: Origin::default(),
        })
    }

    /// Counts so far.
    pub fn counters(&self) -> NvmeCounters {
        self.links().fold(self.counters, |mut sum, link| {
            sum.queues += link.queue.counters();
            sum.retries += link.counters.retries;
            sum.splits += link.counters.splits;
            sum
        })
    }

    /// I/Os without their end.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.parents.live_count() + self.parked.len()
    }

    fn links(&self) -> impl Iterator<Item = &Link<B>> {
        self.places.iter().filter_map(|place| match place {
            Place::Linked(link) => Some(&**link),
            _ => None,
        })
    }

    /// Sends what waits for queue pairs, and asks for those.
    #[cold]
    fn send_parked(&mut self) {
        for _ in 0..self.parked.len() {
            let Some(io) = self.parked.pop_front() else { return };
            let index = sw_mem::index(split(io.handle).0);
            match self.link(index) {
                Ok(true) => self.send(&io, index),
                // It is on its way: the I/O waits.
                Ok(false) => self.parked.push_back(io),
                Err(fault) => self.ended.push(IoDone { token: io.token, result: Err(fault), aside: 0 }),
            }
        }
    }

    /// Asks for a queue pair on a controller, unless there is one. `Ok(false)`: not yet.
    fn link(&mut self, index: usize) -> Result<bool, Fault> {
        if index >= self.places.len() && index < self.directory.count() {
            self.places.resize_with(index + 1, || Place::Unlinked(0));
            self.whys.resize_with(index + 1, || None);
        }
        match self.places.get(index) {
            None => return Err(Fault::new(ErrorKind::NoDevice, 0)),
            Some(Place::Dead(fault)) => return Err(*fault),
            Some(Place::Linked(_)) => return Ok(true),
            Some(Place::Asked(ticket, _)) => ticket.controller().press(ticket),
            Some(Place::Unlinked(qid)) => {
                let qid = *qid;
                let controller = u32::try_from(index).ok().and_then(|index| self.directory.get(index));
                let controller = controller.ok_or(Fault::new(ErrorKind::NoDevice, 0))?;
                let ticket = controller.ask_for_pair(self.pair_request(), qid, self.waiter.waker());
                self.places[index] = Place::Asked(ticket, qid);
            }
        }
        self.take_pair(index)
    }

    fn pair_request(&self) -> PairRequest {
        let polled = self.config.completion == Completion::Polled;
        PairRequest {
            depth: self.config.commands_per_controller,
            data_bytes_max: self.config.io_bytes_max,
            notify: if polled { Notify::Polled } else { Notify::Interrupt },
        }
    }

    /// Takes the queue pair that was asked for, if it is there.
    fn take_pair(&mut self, index: usize) -> Result<bool, Fault> {
        let Some(Place::Asked(ticket, qid)) = self.places.get(index) else { return Ok(false) };
        let (controller, qid) = (ticket.controller().clone(), *qid);
        let Some(answer) = ticket.take() else { return Ok(false) };
        let (place, result) = match answer {
            Ok(pair) => {
                self.whys[index] = None;
                (Place::Linked(Box::new(self.make_link(index, controller, pair))), Ok(true))
            }
            Err(error) => {
                let fault = refusal(&error);
                let is_gone = fault.kind == ErrorKind::NoDevice;
                self.whys[index] = Some(error);
                // Perhaps the next I/O has more luck, unless the controller is gone.
                (if is_gone { Place::Dead(fault) } else { Place::Unlinked(qid) }, Err(fault))
            }
        };
        self.places[index] = place;
        result
    }

    fn make_link(&mut self, index: usize, controller: Arc<Controller<B>>, pair: Pair<B>) -> Link<B> {
        self.counters.pairs += 1;
        let interrupts = pair.interrupt.as_ref().is_some_and(|(vector, interrupt)| {
            // A waiter watches what it once watched.
            let name = (index, *vector);
            let watched = self.watched.contains(&name) || self.waiter.watch(interrupt).is_ok();
            if watched && !self.watched.contains(&name) {
                self.watched.push(name);
            }
            watched
        });
        self.counters.polled_pairs += u64::from(self.config.completion != Completion::Polled && !interrupts);
        let mut link = Link::new(controller, pair, self.config.queue_depth);
        link.interrupts = interrupts;
        if self.config.scatter_gather == ScatterGather::WhereOffered {
            link.queue.set_sgl(link.controller.facts().sgl);
        }
        link.queue.set_tick(self.watch.tick());
        for region in self.attached.iter().filter_map(WeakRegion::upgrade) {
            // A refusal is kept for I/Os into it, and the next attach asks again.
            let _ = link.attach(&region);
        }
        link
    }

    fn attach_region(&mut self, region: &DmaRegion) -> Result<(), Error> {
        self.attach_refused(region)?;
        if self.attached.iter().any(|known| known.id() == region.id()) {
            return Ok(());
        }
        // Every controller maps it now, so that a refusal is known before the first I/O; one that is gone has no say.
        for controller in self.directory.all() {
            if let crate::controller::Life::Up(_) = controller.life() {
                match controller.bus().map(region) {
                    // It was taken away a moment ago: its own I/Os tell.
                    Err(error) if error.kind() == ErrorKind::NoDevice => {}
                    other => drop(other?),
                }
            }
        }
        for place in &mut self.places {
            if let Place::Linked(link) = place {
                // One that is gone has no say; the others have it mapped.
                let _ = link.attach(region);
            }
        }
        self.forget_dead_regions();
        // No handle: memory goes when its owner lets go of it, and its mapping with it.
        self.attached.push(region.downgrade());
        Ok(())
    }

    /// Asks again for regions that a controller refused when its queue pair was made. An error is about `region`.
    fn attach_refused(&mut self, region: &DmaRegion) -> Result<(), Error> {
        let Self { attached, places, .. } = self;
        for place in places {
            let Place::Linked(link) = place else { continue };
            for missing in attached.iter().filter(|known| link.refused(known.id()).is_some()).collect::<Vec<_>>() {
                match missing.upgrade().map(|missing| link.attach(&missing)) {
                    Some(Err(error)) if missing.id() == region.id() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Takes regions whose memory is gone out of the tables. Their ids are never used again, so that nobody asks for them.
    fn forget_dead_regions(&mut self) {
        let Self { attached, places, .. } = self;
        attached.retain(|region| {
            let alive = region.is_alive();
            for place in places.iter_mut() {
                if let (Place::Linked(link), false) = (place, alive) {
                    link.detach(region.id());
                }
            }
            alive
        });
    }

    fn detach_region(&mut self, id: RegionId) {
        for place in &mut self.places {
            if let Place::Linked(link) = place {
                link.detach(id);
            }
        }
        self.attached.retain(|region| region.id() != id);
    }

    /// An I/O for a controller without a queue pair.
    #[cold]
    fn submit_unlinked(&mut self, io: &Io, index: usize) {
        match self.places.get(index) {
            Some(Place::Dead(fault)) => {
                return self.ended.push(IoDone { token: io.token, result: Err(*fault), aside: 0 });
            }
            // Refused before anybody needed it: it is asked for again.
            Some(Place::Asked(ticket, qid)) if self.parked.is_empty() && ticket.is_refused() => {
                self.places[index] = Place::Unlinked(*qid);
            }
            _ => {}
        }
        self.parked.push_back(*io);
    }

    /// Takes an I/O for a controller that has a queue pair.
    #[inline]
    fn send(&mut self, io: &Io, index: usize) {
        let Some(Place::Linked(link)) = self.places.get_mut(index) else {
            return self.submit_unlinked(io, index);
        };
        let moves = matches!(io.kind, IoKind::Read | IoKind::Write);
        if !moves && link.flushes_at_once() {
            return self.ended.push(IoDone { token: io.token, result: Ok(0), aside: 0 });
        }
        // There is always one: the depth was checked, and nobody else takes any.
        let Some((slot, parent)) = self.parents.take() else { return };
        parent.token = io.token;
        parent.kind = io.kind;
        // Below the number of controllers.
        parent.link = u32::try_from(index).unwrap_or(u32::MAX);
        parent.nsid = split(io.handle).1;
        parent.generation = directory::generation(io.handle);
        parent.offset = io.offset;
        parent.work = if moves { io.len } else { 1 };
        parent.segment_count = if moves { io.segment_count.min(MAX_SEGMENTS_U8) } else { 0 };
        for (to, from) in parent.segments.iter_mut().zip(io.segments()).take(usize::from(parent.segment_count)) {
            let Some(iova) = link.regions.iova(from.region, from.place, from.len) else {
                let fault = link.refused(from.region).unwrap_or(NOT_ATTACHED);
                self.parents.finish(slot);
                return self.ended.push(IoDone { token: io.token, result: Err(fault), aside: 0 });
            };
            *to = Segment { iova, len: ByteLen(u64::from(from.len)) };
        }
        if let Some(done) = link.begin(slot, &mut self.parents) {
            self.ended.push(done);
        }
    }
}

impl<B: Bus> Transport for NvmeTransport<B> {
    fn caps(&self) -> TransportCaps {
        self.config.caps()
    }

    fn attach(&mut self, hint: Attach<'_>) -> Result<(), Error> {
        match hint {
            Attach::Object(object) => {
                for face in object.faces.iter().filter(|face| face.transport == NVME) {
                    // A refusal is told to the first I/O.
                    let _ = self.link(sw_mem::index(split(face.handle).0));
                }
                Ok(())
            }
            Attach::Region(region) => self.attach_region(region),
            Attach::RegionGone(id) => {
                self.detach_region(id);
                Ok(())
            }
            Attach::ObjectGone(_) => Ok(()),
        }
    }

    #[inline]
    fn submit(&mut self, io: &Io) -> Submit {
        if self.fork.is_elsewhere() || self.closed || self.ended.len() + self.in_flight() >= self.depth {
            return Submit::Full;
        }
        self.send(io, sw_mem::index(split(io.handle).0));
        Submit::Accepted
    }

    #[inline]
    fn ring(&mut self) -> Result<(), Error> {
        if self.fork.is_elsewhere() {
            return Err(ends::forked());
        }
        if !self.parked.is_empty() {
            self.send_parked();
        }
        for place in &mut self.places {
            if let Place::Linked(link) = place {
                link.ring();
            }
        }
        Ok(())
    }

    #[inline]
    fn poll(&mut self, wait: Wait, out: &mut Vec<IoDone>) -> Result<usize, Error> {
        match wait {
            Wait::No => self.poll_now(out),
            Wait::For { timeout, min } => self.poll_waiting(timeout, min, out),
        }
    }

    fn cancel(&mut self, token: Token) {
        self.cancel_io(token);
    }

    fn fence(&mut self, timeout: Duration, out: &mut Vec<IoDone>) -> Fence {
        self.fence_all(timeout, out)
    }

    fn explain(&self, handle: u64, fault: Fault) -> Option<&Error> {
        let why = self.whys.get(sw_mem::index(split(handle).0))?.as_ref();
        let told = |why: &&Error| {
            let of = refusal(why);
            // Whether memory stays is the I/O's own.
            (of.kind, of.code) == (fault.kind, fault.code)
        };
        why.filter(told)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.waiter.waker()
    }
}

/// The fault of I/Os for a queue pair or a mapping that was refused. A limit without a code of the system gets one with
/// words of its own.
fn refusal(error: &Error) -> Fault {
    match (error.kind(), error.code()) {
        (ErrorKind::ResourceLimit, code) if code != Fault::NO_QUEUE_LEFT => {
            Fault::new(ErrorKind::ResourceLimit, Fault::NOT_MAPPED)
        }
        (kind, code) => Fault::new(kind, code),
    }
}

/// An I/O into memory that was never attached: nothing was sent.
const NOT_ATTACHED: Fault = Fault::new(ErrorKind::NotRegistered, 0);
const MAX_SEGMENTS_U8: u8 = 3;
const _: () = assert!(MAX_SEGMENTS == MAX_SEGMENTS_U8 as usize, "an I/O has as many pieces as the seam allows");

/// Time since `since`, as the waiter counts.
fn waited<W: Waiter>(waiter: &W, since: Time) -> Duration {
    waiter.now().since(since)
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;
