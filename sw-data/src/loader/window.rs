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
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, OnceLock},
};

use straightway::{Buffer, Destination, Memory};

use super::{
    clock,
    deal::{AHEAD_MAX, Coming, Dealer, LoaderState, Seen, Spot, WindowId},
    error::{LoadError, SampleId, Why},
    plan::{Job, Key, Owner, Piece, Placing, Run, owners_of, place},
    planner::locate,
    pool::{Ask, Patience, Pool},
    shared::Shared,
    stats::Apart,
};
use crate::samples::Place;

/// Samples of a window whose places are asked for at once: 64 Ki, of which places are 4 MiB.
const ASK_MAX: usize = 64 << 10;

/// A window of which samples of this rank are read together.
pub(super) struct Window {
    /// The number of the job that reads it.
    pub(super) turn: u64,
    /// By number.
    members: Vec<Member>,
    landed: OnceLock<Landed>,
    home: Arc<Pool>,
    /// Bytes that it has beside those that are read.
    beside: u64,
}

/// A sample that is read with its window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    number: u64,
    pub(super) place: Place,
    /// Where its bytes are in the window's memory.
    at: u64,
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
        let at = member.at;
        if member.place.extent.len == 0 {
            // Nothing is read for it.
            return Ok(&[]);
        }
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
        self.home.forget(self.beside);
    }
}

/// What is known of a window that is not over.
struct Known {
    how: How,
    /// The number of its last sample, in the order in which they are dealt.
    last: u64,
    /// The dataset's next one.
    after: Option<WindowId>,
}

enum How {
    /// It is read, or being read, with so many bytes of memory in all: a device that keeps some gets as many others for it.
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
    room: u64,
}

/// The windows of the planner. See the module documentation.
pub(super) struct Windows {
    known: BTreeMap<WindowId, Known>,
    /// Those of the batch that was entered last.
    touched: Vec<WindowId>,
    /// By dataset: why none of its windows is read as a whole.
    apart: Vec<Option<Apart>>,
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
    /// Those of what a dealer deals out.
    pub(super) fn new(dealer: &Dealer) -> Self {
        Self { known: BTreeMap::new(), touched: Vec::new(), apart: dealer.apart().to_vec() }
    }

    fn apart(&self, dataset: u32) -> Option<Apart> {
        *usize::try_from(dataset).ok().and_then(|dataset| self.apart.get(dataset))?
    }

    /// Sees to it that the windows of a batch are read or being read, as far as they can be; `false` if everything ends.
    pub(super) fn enter(&mut self, now: &Moment<'_>, spots: &[Spot], turn: &mut u64) -> Result<bool, LoadError> {
        self.touched.clear();
        if now.shared.options.into != Destination::Host {
            return Ok(true);
        }
        for window in spots.iter().filter_map(|spot| spot.window) {
            // Most have the same as the one before.
            if self.touched.last() != Some(&window) && self.apart(window.dataset).is_none() {
                self.touched.push(window);
            }
        }
        self.touched.sort_unstable();
        self.touched.dedup();
        for at in 0..self.touched.len() {
            if let Some(&window) = self.touched.get(at)
                && !self.load(now, window, turn, Patience::Wait)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets go of windows that are over after a batch, and begins to read the next ones if there is memory.
    pub(super) fn leave(&mut self, now: &Moment<'_>, turn: &mut u64) {
        self.known.retain(|_, known| known.last >= now.dealer.dealt());
        let nexts: Vec<WindowId> = self.touched.iter().filter_map(|id| self.known.get(id)?.after).collect();
        for window in nexts {
            // What fails is tried again, and told, once a batch needs it.
            let _ = self.load(now, window, turn, Patience::Try);
        }
    }

    /// The epoch is over: what is left of its windows never comes.
    pub(super) fn end_epoch(&mut self) {
        self.known.clear();
        self.touched.clear();
    }

    /// Where a sample of a batch is in its window, or why it is not read with one. `None` for samples of other orders, and for
    /// those whose place is to be asked for first.
    pub(super) fn find(&self, shared: &Shared, spot: &Spot) -> Option<Found<'_>> {
        let id = spot.window?;
        if shared.options.into != Destination::Host {
            return Some(Found::Apart(Apart::Device));
        }
        if let Some(why) = self.apart(id.dataset) {
            return Some(Found::Apart(why));
        }
        match &self.known.get(&id)?.how {
            How::Together { window, .. } => match window.member(spot.id.number) {
                Some((index, member)) => Some(Found::In { window, index, member }),
                None => Some(Found::Apart(Apart::Unknown)),
            },
            How::Apart(why) => Some(Found::Apart(*why)),
            How::Draft(_) => None,
        }
    }

    /// Bytes that the windows of a dataset hold.
    fn held(&self, dataset: u32) -> u64 {
        let first = WindowId { dataset, epoch: 0, start: 0 };
        let of_it = self.known.range(first..).take_while(|(id, _)| id.dataset == dataset);
        of_it.map(|(_, known)| known.bytes()).fold(0, u64::saturating_add)
    }

    /// Begins to read a window unless that was decided already; `false` if everything ends.
    fn load(&mut self, now: &Moment<'_>, id: WindowId, turn: &mut u64, patience: Patience) -> Result<bool, LoadError> {
        let held = self.held(id.dataset);
        let known = self.known.entry(id).or_insert_with(|| {
            let start = clock::now();
            let known = decide(now, id);
            now.shared.counts.planning.since(start);
            known
        });
        let How::Draft(draft) = &known.how else { return Ok(true) };
        let (pool, max) = (&now.shared.windows, now.shared.window_max());
        // Of its dataset's share of the budget, and no more, even if earlier memory is larger than what is needed: the shares of
        // all datasets fill the budget, so whoever keeps to its own waits only for windows that are over, and they end by themselves.
        let left = max.saturating_mul(2).saturating_sub(held).min(max);
        if draft.bytes() > left {
            if patience == Patience::Wait {
                // It would wait for what this very batch needs.
                known.how = How::Apart(Apart::Spans);
            }
            return Ok(true);
        }
        let start = clock::now();
        let beside = if draft.room == 0 { 0 } else { draft.beside() };
        let ask = Ask { bytes: draft.room, most: left.saturating_sub(beside), beside };
        let memory = if draft.room == 0 { None } else { pool.acquire_for(ask, patience)? };
        now.shared.counts.planning_held.since(start);
        if memory.is_none() && draft.room > 0 {
            // Not now, or never again.
            return Ok(patience == Patience::Try);
        }
        let How::Draft(draft) = std::mem::replace(&mut known.how, How::Apart(Apart::Spans)) else { return Ok(true) };
        let bytes = memory.as_ref().map_or(0, Memory::len).saturating_add(draft.beside());
        let Draft { members, runs, room } = *draft;
        let window = Arc::new(Window { turn: *turn, members, landed: OnceLock::new(), home: Arc::clone(pool), beside });
        known.how = How::Together { window: Arc::clone(&window), bytes };
        let Some(memory) = memory else {
            window.land(None, Vec::new());
            return Ok(true);
        };
        let mut job = Box::new(Job::new(0, *turn, now.epoch, now.after.clone()));
        (job.runs, job.room, job.memory) = (runs, room, Some(memory));
        job.reads = Some((window, Vec::new()));
        *turn += 1;
        now.shared.inbox.job(job);
        Ok(true)
    }
}

impl Draft {
    /// Bytes of what is known of its samples and reads: of many small samples they are most of it.
    fn beside(&self) -> u64 {
        (std::mem::size_of_val(&self.members[..]) + std::mem::size_of_val(&self.runs[..])) as u64
    }

    /// Bytes of memory that it needs.
    fn bytes(&self) -> u64 {
        let memory = if self.room == 0 { 0 } else { Pool::size_of(self.room).unwrap_or(u64::MAX) };
        memory.saturating_add(self.beside())
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
    let max_bytes = now.shared.window_max();
    let each = std::mem::size_of::<Member>() as u64;
    let most = max_bytes / each;
    let Coming { mut numbers, last, after, seen } =
        now.dealer.of_window(id, usize::try_from(most).unwrap_or(usize::MAX));
    let draft = match seen {
        Seen::Whole => {
            now.shared.bad.sift(&mut numbers, |number| SampleId { dataset: id.dataset, number: *number });
            draft(now.shared, id.dataset, numbers)
        }
        Seen::More => Err(Apart::TooLarge { need_bytes: (most + 1).saturating_mul(each), max_bytes }),
        Seen::Long => Err(Apart::TooLong { samples: AHEAD_MAX }),
    };
    let how = match draft {
        Ok(draft) => How::Draft(Box::new(draft)),
        Err(why) => How::Apart(why),
    };
    Known { how, last, after }
}

/// Plans the reads of a window.
fn draft(shared: &Shared, dataset: u32, mut numbers: Vec<u64>) -> Result<Draft, Apart> {
    numbers.sort_unstable();
    let mut members = members_of(shared, dataset, &numbers)?;
    drop(numbers);
    let mut pieces = Vec::with_capacity(members.len());
    for (index, Member { place: Place { object, extent, .. }, .. }) in (0u32..).zip(&members) {
        if extent.len > 0 {
            let key = Key { dataset, object: *object };
            pieces.push(Piece { key, extent: *extent, owner: Owner::Item(index) });
        }
    }
    let (gap_bytes, join_bytes) = (shared.options.gap_bytes, shared.options.join_bytes);
    let placing = Placing::Joined { gap_bytes, join_bytes };
    let (mut runs, owners, room) = place(&mut pieces, placing).ok_or(Apart::Unknown)?;
    let alone = runs.iter().filter(|run| run.owners.1 - run.owners.0 == 1).count();
    if alone * 2 > pieces.len() {
        return Err(Apart::Alone);
    }
    for run in &runs {
        for owner in owners_of(&owners, run) {
            if let Owner::Item(index) = owner
                && let Some(member) = usize::try_from(*index).ok().and_then(|index| members.get_mut(index))
            {
                member.at = run.at + (member.place.extent.offset - run.extent.offset);
            }
        }
    }
    runs.shrink_to_fit();
    let draft = Draft { members, runs, room };
    let (need_bytes, max_bytes) = (draft.bytes(), shared.window_max());
    if need_bytes > max_bytes { Err(Apart::TooLarge { need_bytes, max_bytes }) } else { Ok(draft) }
}

/// The samples that can be read with their window, without where. What does not fit is summed up, so that it can be told, and not
/// kept.
fn members_of(shared: &Shared, dataset: u32, numbers: &[u64]) -> Result<Vec<Member>, Apart> {
    let (mut members, mut need_bytes, max_bytes) = (Vec::new(), 0u64, shared.window_max());
    let mut last: Option<(u32, u64)> = None;
    for numbers in numbers.chunks(ASK_MAX) {
        let ids: Vec<SampleId> = numbers.iter().map(|number| SampleId { dataset, number: *number }).collect();
        // What is wrong with the table is told by the batch that asks it.
        for (id, place) in ids.iter().zip(locate(shared, &ids).map_err(|_| Apart::Unknown)?) {
            let Place { object, extent, row, .. } = place;
            let object_len = match last {
                Some((known, len)) if known == object => Some(len),
                _ => shared.entry(Key { dataset, object }).ok().map(|entry| entry.len),
            };
            last = object_len.map(|len| (object, len));
            let inside = extent.offset.checked_add(extent.len).zip(object_len).is_some_and(|(end, len)| end <= len);
            if row.is_some() || !inside {
                continue;
            }
            let more = extent.len.saturating_add(std::mem::size_of::<Member>() as u64);
            need_bytes = need_bytes.saturating_add(more);
            if need_bytes <= max_bytes {
                members.push(Member { number: id.number, place, at: 0 });
            } else {
                members = Vec::new();
            }
        }
    }
    members.shrink_to_fit();
    match (need_bytes > max_bytes, members.is_empty()) {
        (true, _) => Err(Apart::TooLarge { need_bytes, max_bytes }),
        // Decoded blocks, or nothing that is where the table says.
        (false, true) => Err(Apart::Unknown),
        (false, false) => Ok(members),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;
    use crate::{
        formats::Extent,
        loader::{LoaderOptions, deal::Dealt, shared::Mail, source::AnySamples},
        order::Method,
        samples::{Format, ObjectEntry},
        table::Table,
    };

    /// Samples of one length in one object, which nobody opens.
    fn table(len: u64) -> Arc<dyn AnySamples> {
        let place = |number| {
            let extent = Extent { offset: number * len, len };
            Place { object: 0, extent, row: None, crc32c: None }
        };
        let entry = ObjectEntry {
            uri: "/nowhere".to_owned(),
            len: 2000 * len,
            version: String::new(),
            format: Format::Tar,
            coding: String::new(),
        };
        Arc::new(Table::new(vec![entry], (0..2000).map(place).collect()).unwrap())
    }

    /// A planner whose windows are read at once and let go of late. When it waits for memory, all windows that are over are let go
    /// of: that must be enough.
    fn deal_out(seed: u64) {
        let mut word = seed;
        let mut among = |least: u64, most: u64| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            least + (word >> 33) % (most - least + 1)
        };
        let weights = [(); 3].map(|()| u32::try_from(among(1, 8)).unwrap());
        let options = LoaderOptions {
            method: Method::Blocks { samples: 2, blocks: 4 },
            batch: u32::try_from(among(3, 8) * 8).unwrap(),
            block_bytes: 24 << 16,
            seed,
            ..LoaderOptions::default()
        };
        let tables = weights.map(|_| table(among(19_000, 62_000)));
        let mut dealer = Dealer::new(&weights.map(|weight| (2000, weight)), &options, None).unwrap();
        let engine = straightway::Engine::builder().build().unwrap();
        let shared = Shared::new(&engine, tables.to_vec(), options, dealer.state());
        let (mut windows, mut turn, mut late) = (Windows::new(&dealer), 0, Vec::new());
        // As if batches of many windows were none to give up at once: so more of them are held.
        windows.apart = vec![None; 3];
        for _ in 0..100 {
            let Dealt::Batch { epoch, samples, after } = dealer.next() else { panic!("a mixture ended") };
            let now = Moment { shared: &shared, dealer: &dealer, epoch, after: &after };
            std::thread::scope(|scope| {
                let (done, told) = mpsc::channel();
                let (windows, turn, samples, now) = (&mut windows, &mut turn, &samples, &now);
                scope.spawn(move || {
                    assert!(windows.enter(now, samples, turn).unwrap(), "it ended");
                    windows.leave(now, turn);
                    done.send(()).unwrap();
                });
                if told.recv_timeout(Duration::from_millis(15)).is_err() {
                    late.clear();
                    if told.recv_timeout(Duration::from_secs(10)).is_err() {
                        shared.stop(None);
                        panic!("seed {seed}: it waits for itself");
                    }
                }
            });
            assert!(shared.windows.used().held_bytes <= 48 << 16);
            assert!((0..3).all(|dataset| windows.held(dataset) <= 2 * shared.window_max()));
            let mut mail = Mail::default();
            shared.inbox.take(&mut mail);
            for mut job in mail.jobs {
                let (window, _) = job.reads.take().unwrap();
                window.land(job.memory.take().and_then(|memory| memory.into_buffer().ok()), Vec::new());
                late.push(window);
            }
            late.retain(|_| among(0, 3) > 0);
        }
        assert!(turn > 50, "{turn} windows were read together");
    }

    #[test]
    fn whatever_windows_datasets_have_none_waits_for_what_the_planner_holds() {
        (4..9).for_each(deal_out);
    }
}
