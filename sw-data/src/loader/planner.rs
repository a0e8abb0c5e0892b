//! The first stage: deals out batches, asks the tables, plans the reads and finds memory.

use std::sync::Arc;

use straightway::Destination;

use super::{
    clock,
    deal::{Dealer, Dealt, Spot},
    error::{BadSample, LoadError, SampleId, Why},
    options::{Layout, PadTo, Verify},
    plan::{BlockRead, From, Item, Job, Key, Placing},
    pool::Patience,
    shared::{Shared, Step},
    window::{Found, Moment, Windows},
};
use crate::samples::Place;

/// The thread of the stage.
pub(super) fn run(shared: &Shared, mut dealer: Dealer) {
    let (mut turn, mut line) = (0, 0);
    let mut windows = Windows::new(&dealer);
    for seq in 0.. {
        let start = clock::now();
        let room = shared.out.wait_room(seq);
        shared.counts.planning_held.since(start);
        if !room {
            return;
        }
        match dealer.next() {
            Dealt::End => return shared.out.put(seq, Step::End),
            Dealt::EpochEnd { epoch, after } => {
                windows.end_epoch();
                shared.out.put(seq, Step::EpochEnd { epoch, after });
            }
            Dealt::Batch { epoch, samples, after } => {
                let now = Moment { shared, dealer: &dealer, epoch, after: &after };
                match plan(&now, &mut windows, &samples, Head { seq, line, turn: &mut turn }) {
                    Ok(Some(job)) => {
                        line += u64::from(job.line.is_some());
                        shared.inbox.job(job);
                    }
                    Ok(None) => return,
                    Err(error) => shared.out.put(seq, Step::Failed(error)),
                }
                windows.leave(&now, &mut turn);
            }
        }
    }
}

/// The numbers of a batch.
struct Head<'a> {
    seq: u64,
    /// Its place in line, if it gets one.
    line: u64,
    /// The number of the next job.
    turn: &'a mut u64,
}

/// A batch with its reads and its memory; `None` if everything ends.
fn plan(
    now: &Moment<'_>,
    windows: &mut Windows,
    spots: &[Spot],
    head: Head<'_>,
) -> Result<Option<Box<Job>>, LoadError> {
    let shared = now.shared;
    let mut spots = spots.to_vec();
    shared.counts.quarantined.add(shared.bad.sift(&mut spots, |spot| spot.id));
    let Head { seq, line, turn } = head;
    if !windows.enter(now, &spots, turn)? {
        return Ok(None);
    }
    let start = clock::now();
    let mut job = Box::new(Job::new(seq, *turn, now.epoch, now.after.clone()));
    *turn += 1;
    let found: Vec<Option<Found<'_>>> = spots.iter().map(|spot| windows.find(shared, spot)).collect();
    let places = places_of(shared, &spots, &found)?;
    job.items.reserve(spots.len());
    for ((spot, found), place) in spots.into_iter().zip(found).zip(places) {
        match source_of(shared, &mut job, (spot.id, found), place) {
            Ok(from) => job.items.push(Item { id: spot.id, place, from, lost: false }),
            Err(why) => job.bad.push(shared.bad_sample(spot.id, &place, why)),
        }
    }
    job.line = job.items.iter().any(|item| matches!(item.from, From::Block(_))).then_some(line);
    if shared.options.into != Destination::Host {
        job.stride = fit(&shared.options.layout, &mut job.items, &mut job.bad, |item, why| {
            shared.bad_sample(item.id, &item.place, why)
        });
    }
    let planned = lay_out(shared, &mut job);
    shared.counts.planning.since(start);
    planned?;
    let start = clock::now();
    let found = find_memory(shared, &mut job, Patience::Wait);
    shared.counts.planning_held.since(start);
    Ok(found?.then_some(job))
}

/// Where each sample is: as its window knows, or as the table tells.
fn places_of(shared: &Shared, spots: &[Spot], found: &[Option<Found<'_>>]) -> Result<Vec<Place>, LoadError> {
    let known = |found: &Option<Found<'_>>| match found {
        Some(Found::In { member, .. }) => Some(member.place),
        _ => None,
    };
    let of_both = spots.iter().zip(found);
    let unknown: Vec<SampleId> = of_both.filter(|(_, found)| known(found).is_none()).map(|(spot, _)| spot.id).collect();
    let mut told = locate(shared, &unknown)?.into_iter();
    Ok(found.iter().filter_map(|found| known(found).or_else(|| told.next())).collect())
}

/// Where each sample is, in the order of `samples`.
pub(super) fn locate(shared: &Shared, samples: &[SampleId]) -> Result<Vec<Place>, LoadError> {
    let mut places = Vec::with_capacity(samples.len());
    let mut numbers = Vec::with_capacity(samples.len());
    let ask = |dataset: u32, numbers: &[u64], places: &mut Vec<Place>| {
        let before = places.len();
        let table = usize::try_from(dataset).ok().and_then(|index| shared.datasets.get(index));
        let Some(table) = table else { return Err(LoadError::Broken { stage: "planner" }) };
        table.locate(numbers, places).map_err(|cause| LoadError::Locate { dataset, cause })?;
        // A table is somebody else's code: a wrong number of places would shift all that follow.
        let told = places.len().checked_sub(before);
        if told == Some(numbers.len()) { Ok(()) } else { Err(LoadError::WrongPlaces { dataset }) }
    };
    if shared.datasets.len() == 1 {
        numbers.extend(samples.iter().map(|sample| sample.number));
        ask(0, &numbers, &mut places)?;
        return Ok(places);
    }
    // One question for each dataset, then back into the order of the batch.
    let mut order: Vec<usize> = (0..samples.len()).collect();
    order.sort_by_key(|&at| samples[at].dataset);
    for of_one in order.chunk_by(|&a, &b| samples[a].dataset == samples[b].dataset) {
        numbers.clear();
        numbers.extend(of_one.iter().map(|&at| samples[at].number));
        let dataset = of_one.first().map_or(0, |&at| samples[at].dataset);
        ask(dataset, &numbers, &mut places)?;
    }
    let mut back: Vec<(usize, Place)> = order.into_iter().zip(places).collect();
    back.sort_unstable_by_key(|(at, _)| *at);
    Ok(back.into_iter().map(|(_, place)| place).collect())
}

/// Whether a sample's place can be true, and where its bytes will come from.
fn source_of(
    shared: &Shared,
    job: &mut Job,
    (id, found): (SampleId, Option<Found<'_>>),
    place: Place,
) -> Result<From, Why> {
    let key = Key { dataset: id.dataset, object: place.object };
    let entry = shared.entry(key)?;
    let end = place.extent.offset.checked_add(place.extent.len);
    if end.is_none_or(|end| end > entry.len) {
        return Err(Why::OutOfObject { object_len: entry.len });
    }
    if place.row.is_none() {
        match found {
            Some(Found::In { window, index, .. }) => {
                if !job.waits.iter().any(|known| Arc::ptr_eq(known, window)) {
                    job.waits.push(Arc::clone(window));
                }
                shared.counts.window_samples.add(1);
                return Ok(From::Window(Arc::clone(window), index));
            }
            Some(Found::Apart(why)) => shared.counts.apart(why),
            None => {}
        }
        return Ok(From::Memory(0));
    }
    if shared.options.into != Destination::Host {
        return Err(Why::NoDecoder { format: entry.format });
    }
    let (slot, promise) = shared.blocks.want(key, place.extent);
    if let Some(promise) = promise {
        job.blocks.push(BlockRead { key, place, at: 0, promise, lost: false });
    }
    Ok(From::Block(slot))
}

/// How long the places of samples are, if all are equally long. Samples that do not fit are lost.
pub(super) fn fit(
    layout: &Layout,
    items: &mut [Item],
    bad: &mut Vec<BadSample>,
    named: impl Fn(&Item, Why) -> BadSample,
) -> Option<u64> {
    let lens = |items: &[Item]| -> Vec<u64> {
        items.iter().filter(|item| !item.lost).map(|item| item.place.extent.len).collect()
    };
    let stride = stride_of(layout, &lens(items))?;
    for item in items.iter_mut().filter(|item| !item.lost) {
        if let Err(why) = fits(layout, item.place.extent.len, stride) {
            item.lost = true;
            bad.push(named(item, why));
        }
    }
    Some(stride)
}

/// Bytes of each place for samples of these lengths; `None` where places are not equally long.
pub(super) fn stride_of(layout: &Layout, lens: &[u64]) -> Option<u64> {
    match layout {
        Layout::Ragged => None,
        Layout::Padded(PadTo::Longest) => Some(lens.iter().copied().max().unwrap_or(0)),
        Layout::Padded(PadTo::Bytes(bytes)) => Some(*bytes),
        Layout::Fixed { bytes } => Some(bytes.or_else(|| lens.first().copied()).unwrap_or(0)),
    }
}

/// Whether a sample may have a place of `stride` bytes.
pub(super) fn fits(layout: &Layout, len: u64, stride: u64) -> Result<(), Why> {
    match layout {
        Layout::Fixed { .. } if len != stride => Err(Why::NotFixed { len, want: stride }),
        Layout::Padded(_) if len > stride => Err(Why::TooLong { len, max: stride }),
        _ => Ok(()),
    }
}

/// Plans the reads of a batch, by where it lands.
pub(super) fn lay_out(shared: &Shared, job: &mut Job) -> Result<(), LoadError> {
    let options = &shared.options;
    let known = |item: &Item| item.place.crc32c.is_some();
    let placing = match (options.into, job.stride) {
        (Destination::Host, _) => Placing::Joined { gap_bytes: options.gap_bytes, join_bytes: options.join_bytes },
        (_, Some(stride)) => {
            // Places are counted in samples that are left.
            job.items.retain(|item| !item.lost);
            Placing::Strided { stride }
        }
        // The engine has one checksum for each read, so each sample is one.
        (_, None) if options.verify == Verify::Known && job.items.iter().any(known) => Placing::Alone,
        (_, None) => Placing::Joined { gap_bytes: options.gap_bytes, join_bytes: options.join_bytes },
    };
    let over = LoadError::OverBudget { need_bytes: u64::MAX, budget_bytes: options.memory_bytes };
    job.lay_out(placing).ok_or(over)?;
    if job.runs.is_empty() && !job.waits.is_empty() {
        // All of it is copied, into memory that is counted from now on. If places are larger than the budget, what other orders
        // would read is counted, and a worker finds the rest, as there.
        let copied = job.items.iter().filter(|item| !item.lost && matches!(item.from, From::Window(..)));
        let lens: Vec<u64> = copied.map(|item| item.place.extent.len).collect();
        let bytes = lens.iter().fold(0, |bytes: u64, len| bytes.saturating_add(*len));
        let places = stride_of(&options.layout, &lens).map(|stride| stride.saturating_mul(lens.len() as u64));
        job.room = places.filter(|places| *places <= options.memory_bytes).unwrap_or(bytes);
    }
    if let (Placing::Strided { stride }, false) = (placing, job.items.is_empty()) {
        job.room = stride.saturating_mul(job.items.len() as u64);
    }
    Ok(())
}

/// Finds the memory of a batch; `false` if everything ends.
pub(super) fn find_memory(shared: &Shared, job: &mut Job, patience: Patience) -> Result<bool, LoadError> {
    if job.room > 0 {
        job.memory = shared.pool.acquire(job.room, patience)?;
        return Ok(job.memory.is_some());
    }
    Ok(true)
}
