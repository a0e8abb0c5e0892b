//! Windows of a block shuffle: read as a whole, in large reads, before samples are taken out of them.
//!
//! ```text
//!   dealer ─► the samples of a window that this rank gets ─► places ─► runs of neighbours ─► reader ─► Window ─► workers: copy out
//!                                                              └─ if most samples have no neighbours: read with batches, as ever
//! ```
//!
//! A batch has samples of every block of its window, so that there is no batch before most of a window is there: a window is the
//! unit of memory. There are two at most, one that samples are taken from and one that is read meanwhile.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use straightway::{Buffer, Destination, Memory};

use super::{
    clock,
    deal::{AHEAD_MAX, Coming, Dealer, LoaderState, Spot, WindowId},
    error::{LoadError, SampleId, Why},
    plan::{Job, Key, Owner, Piece, Placing, Run, owners_of, place},
    planner::locate,
    pool::{Patience, Pool},
    shared::Shared,
    stats::Apart,
};
use crate::samples::Place;

/// A window of which samples of this rank are read together.
pub(super) struct Window {
    /// The number of the job that reads it.
    pub(super) turn: u64,
    /// By number.
    members: Vec<Member>,
    landed: OnceLock<Landed>,
    home: Arc<Pool>,
}

/// A sample of a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    number: u64,
    pub(super) place: Place,
    /// Where its bytes are in the window's memory; `None`: it is not read with the window.
    pub(super) at: Option<u64>,
}

/// What became of the reads.
struct Landed {
    buffer: Option<Buffer>,
    lost: Vec<Lost>,
}

/// A run that was not read: its place in memory, and why.
pub(super) type Lost = (Range<u64>, Why);

impl Window {
    /// A sample of it, and its index.
    pub(super) fn member(&self, number: u64) -> Option<(usize, &Member)> {
        let index = self.members.binary_search_by_key(&number, |member| member.number).ok()?;
        Some((index, self.members.get(index)?))
    }

    /// All reads are over. The first word counts.
    pub(super) fn land(&self, buffer: Option<Buffer>, lost: Vec<Lost>) {
        let _ = self.landed.set(Landed { buffer, lost });
    }

    pub(super) fn is_there(&self) -> bool {
        self.landed.get().is_some()
    }

    /// The bytes of a sample by its index.
    pub(super) fn sample(&self, index: usize) -> Result<&[u8], Why> {
        let landed = self.landed.get().ok_or(Why::GivenUp)?;
        let member = self.members.get(index).ok_or(Why::GivenUp)?;
        let at = member.at.ok_or(Why::GivenUp)?;
        if let Some((_, why)) = landed.lost.iter().find(|(range, _)| range.contains(&at)) {
            return Err(why.clone());
        }
        let bytes = landed.buffer.as_ref().map_or(&[][..], Buffer::as_slice);
        super::shared::bytes_at(bytes, at, member.place.extent).ok_or(Why::GivenUp)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(Landed { buffer: Some(buffer), .. }) = self.landed.take() {
            self.home.put(Memory::from(buffer));
        }
    }
}

/// What is known of a window that is not over.
struct Known {
    id: WindowId,
    how: How,
    /// The number of its last sample, in the order in which they are dealt.
    last: u64,
    /// The dataset's next one.
    after: Option<WindowId>,
}

enum How {
    /// It is read, or being read, into so many bytes of memory: a device that keeps it gets as many others for it.
    Together { window: Arc<Window>, bytes: u64 },
    /// Planned, but there is no memory for it yet.
    Draft(Box<Draft>),
    /// Its samples are read one by one.
    Apart(Apart),
}

/// A window whose reads are planned.
struct Draft {
    members: Vec<Member>,
    runs: Vec<Run>,
    owners: Vec<Owner>,
    room: u64,
}

/// The windows of the planner. See the module documentation.
#[derive(Default)]
pub(super) struct Windows {
    known: Vec<Known>,
}

/// What there is of a sample.
pub(super) enum Found<'a> {
    In { window: &'a Arc<Window>, index: usize, member: &'a Member },
    Apart(Apart),
}

/// Where the batch is that windows are read for.
pub(super) struct Moment<'a> {
    pub(super) shared: &'a Shared,
    pub(super) dealer: &'a Dealer,
    pub(super) epoch: u64,
    pub(super) after: &'a LoaderState,
}

impl Windows {
    /// Sees to it that the windows of a batch are read or being read, as far as they can be; `false` if everything ends.
    pub(super) fn enter(&mut self, now: &Moment<'_>, spots: &[Spot], turn: &mut u64) -> Result<bool, LoadError> {
        if now.shared.options.into != Destination::Host {
            return Ok(true);
        }
        let mut before = None;
        for window in spots.iter().filter_map(|spot| spot.window) {
            // Most have the same as the one before.
            if before.replace(window) != Some(window) && !self.load(now, window, turn, Patience::Wait)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets go of windows that are over after a batch, and begins to read the next ones if there is memory.
    pub(super) fn leave(&mut self, now: &Moment<'_>, spots: &[Spot], turn: &mut u64) {
        self.known.retain(|known| known.last >= now.dealer.dealt());
        let mut nexts: Vec<WindowId> = Vec::new();
        for known in self.known.iter().filter(|known| spots.iter().any(|spot| spot.window == Some(known.id))) {
            nexts.extend(known.after.filter(|after| !nexts.contains(after)));
        }
        for window in nexts {
            // What fails is tried again, and told, once a batch needs it.
            let _ = self.load(now, window, turn, Patience::Try);
        }
    }

    /// Where a sample of a batch is in its window, or why it is not read with one. `None` for samples of other orders.
    pub(super) fn find(&self, shared: &Shared, spot: &Spot) -> Option<Found<'_>> {
        let id = spot.window?;
        if shared.options.into != Destination::Host {
            return Some(Found::Apart(Apart::Device));
        }
        match &self.known.iter().find(|known| known.id == id)?.how {
            How::Together { window, .. } => {
                window.member(spot.id.number).map(|(index, member)| Found::In { window, index, member })
            }
            How::Apart(why) => Some(Found::Apart(*why)),
            How::Draft(_) => None,
        }
    }

    /// Begins to read a window unless that was decided already; `false` if everything ends.
    fn load(&mut self, now: &Moment<'_>, id: WindowId, turn: &mut u64, patience: Patience) -> Result<bool, LoadError> {
        let at = match self.known.iter().position(|known| known.id == id) {
            Some(at) => at,
            None => {
                let start = clock::now();
                self.known.push(decide(now, id));
                now.shared.counts.planning.since(start);
                self.known.len() - 1
            }
        };
        let held: u64 = self.known.iter().filter(|known| known.id.dataset == id.dataset).map(Known::bytes).sum();
        let Some(known) = self.known.get_mut(at) else { return Ok(true) };
        let How::Draft(draft) = &known.how else { return Ok(true) };
        let pool = &now.shared.windows;
        let need = if draft.room == 0 { 0 } else { Pool::size_of(draft.room).unwrap_or(u64::MAX) };
        // Of its dataset's share of the budget, and no more, even if earlier memory is larger than what is needed: the shares of
        // all datasets fill the budget, so whoever keeps to its own waits only for windows that are over, and they end by themselves.
        let left = now.shared.window_max().saturating_mul(2).saturating_sub(held);
        let most = left.min(now.shared.window_max());
        if need > most {
            if patience == Patience::Wait {
                // It would wait for what this very batch needs.
                known.how = How::Apart(Apart::Spans);
            }
            return Ok(true);
        }
        let start = clock::now();
        let memory = if draft.room == 0 { None } else { pool.acquire_within(draft.room, most, patience)? };
        now.shared.counts.planning_held.since(start);
        if memory.is_none() && draft.room > 0 {
            // Not now, or never again.
            return Ok(patience == Patience::Try);
        }
        let How::Draft(draft) = std::mem::replace(&mut known.how, How::Apart(Apart::Spans)) else { return Ok(true) };
        let bytes = memory.as_ref().map_or(0, Memory::len);
        let Draft { members, runs, owners, room } = *draft;
        let window =
            Arc::new(Window { turn: *turn, members, landed: OnceLock::new(), home: Arc::clone(&now.shared.windows) });
        known.how = How::Together { window: Arc::clone(&window), bytes };
        let Some(memory) = memory else {
            window.land(None, Vec::new());
            return Ok(true);
        };
        let mut job = Box::new(Job::new(0, *turn, now.epoch, now.after.clone()));
        (job.runs, job.owners, job.room, job.memory) = (runs, owners, room, Some(memory));
        job.reads = Some((window, Vec::new()));
        *turn += 1;
        now.shared.counts.windows.add(1);
        now.shared.inbox.job(job);
        Ok(true)
    }
}

impl Known {
    fn bytes(&self) -> u64 {
        match &self.how {
            How::Together { bytes, .. } => *bytes,
            How::Draft(_) | How::Apart(_) => 0,
        }
    }
}

/// Whether a window is to be read as a whole.
fn decide(now: &Moment<'_>, id: WindowId) -> Known {
    let Some(Coming { mut spots, last, after }) = now.dealer.of_window(id) else {
        let last = now.dealer.dealt().saturating_add(AHEAD_MAX);
        return Known { id, how: How::Apart(Apart::TooLong { samples: AHEAD_MAX }), last, after: None };
    };
    now.shared.bad.sift(&mut spots);
    let how = match draft(now.shared, spots) {
        Ok(draft) => How::Draft(Box::new(draft)),
        Err(why) => How::Apart(why),
    };
    Known { id, how, last, after }
}

/// Plans the reads of a window.
fn draft(shared: &Shared, mut spots: Vec<Spot>) -> Result<Draft, Apart> {
    spots.sort_unstable_by_key(|spot| spot.id.number);
    let ids: Vec<SampleId> = spots.iter().map(|spot| spot.id).collect();
    // What is wrong with the table is told by the batch that asks it.
    let places = locate(shared, &ids).map_err(|_| Apart::Unknown)?;
    let mut members: Vec<Member> =
        ids.iter().zip(places).map(|(id, place)| Member { number: id.number, place, at: None }).collect();
    let mut pieces = Vec::with_capacity(members.len());
    let mut last: Option<(Key, u64)> = None;
    for (index, (member, id)) in (0u32..).zip(members.iter().zip(&ids)) {
        let Place { object, extent, row, .. } = member.place;
        let key = Key { dataset: id.dataset, object };
        let object_len = match last {
            Some((known, len)) if known == key => Some(len),
            _ => shared.entry(key).ok().map(|entry| entry.len),
        };
        last = object_len.map(|len| (key, len));
        let inside = extent.offset.checked_add(extent.len).zip(object_len).is_some_and(|(end, len)| end <= len);
        if row.is_none() && inside && extent.len > 0 {
            pieces.push(Piece { key, extent, owner: Owner::Item(index) });
        }
    }
    let (gap_bytes, join_bytes) = (shared.options.gap_bytes, shared.options.join_bytes);
    let placing = Placing::Joined { gap_bytes, join_bytes };
    let (runs, owners, room) = place(&mut pieces, placing).ok_or(Apart::Unknown)?;
    let alone = runs.iter().filter(|run| run.owners.1 - run.owners.0 == 1).count();
    if alone * 2 > pieces.len() {
        return Err(Apart::Alone);
    }
    let memory = if room == 0 { 0 } else { Pool::size_of(room).unwrap_or(u64::MAX) };
    // Places are memory too, of many small samples most of it.
    let need_bytes = memory.saturating_add(std::mem::size_of_val(&members[..]) as u64);
    let max_bytes = shared.window_max();
    if need_bytes > max_bytes {
        return Err(Apart::TooLarge { need_bytes, max_bytes });
    }
    for run in &runs {
        for owner in owners_of(&owners, run) {
            if let Owner::Item(index) = owner
                && let Some(member) = usize::try_from(*index).ok().and_then(|index| members.get_mut(index))
            {
                member.at = Some(run.at + (member.place.extent.offset - run.extent.offset));
            }
        }
    }
    Ok(Draft { members, runs, owners, room })
}
