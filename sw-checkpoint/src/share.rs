//! Who reads what: many ranks want parts of one checkpoint, each byte is read once and passed on.
//!
//! ```text
//!   wants of each rank ──► ranges of files ──► elementary ranges, each with the ranks that need it
//!                                                │ cut into pieces, each given to a reader, balanced by bytes
//!                                                ▼
//!   rank r:  reads │ sends (range, to whom) │ receives (range, from whom) │ where each range goes in its wants
//! ```
//!
//! Pure: no I/O, no communication. The same input gives the same result everywhere, so ranks that know the catalog and all
//! wants need not agree on anything else. A rank among those that need a piece reads it, unless that would load it by more
//! than a piece above the average; then the rank with the least does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::boxes::Runs;
use crate::catalog::{Catalog, Held};
use crate::load_plan::PlanError;
use crate::want::Want;

/// Among whom each byte is read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All ranks.
    Job,
    /// Ranks that follow each other, this many at a time.
    Node(usize),
}

/// Limits of a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareLimits {
    /// Longest piece that one rank reads and passes on, in bytes. Default 8 MiB.
    pub piece_max_bytes: u64,
    /// Pieces are cut on multiples of this many bytes of the file. Default 4096.
    pub align_bytes: u64,
    /// Runs of a slice with at most this many bytes between them are read and passed on with those bytes. Default 4096:
    /// below that a disk reads them anyway.
    pub gap_max_bytes: u64,
}

impl Default for ShareLimits {
    fn default() -> Self {
        Self { piece_max_bytes: 8 << 20, align_bytes: 4096, gap_max_bytes: 4096 }
    }
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileRange {
    /// Position of the file in [`Catalog::files`].
    pub file: usize,
    /// First byte.
    pub file_offset: u64,
    /// Length in bytes, never 0.
    pub len_bytes: u64,
}

impl FileRange {
    const fn end(&self) -> u64 {
        self.file_offset + self.len_bytes
    }
}

/// A range that passes between two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Transfer {
    /// The other rank.
    pub rank: usize,
    /// The bytes.
    pub range: FileRange,
}

/// Where bytes of a file go in a want: runs of `run_len` bytes, repeated along `steps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Position of the want in the rank's list.
    pub want: usize,
    /// Position of the file.
    pub file: usize,
    /// First byte of the first run in the file.
    pub file_offset: u64,
    /// Its place in the want's bytes, which are row-major and dense.
    pub want_offset: u64,
    /// Length of each run in bytes.
    pub run_len: u64,
    /// Repetitions, outermost first: count, bytes onwards in the file, bytes onwards in the want. Empty: one run.
    pub steps: Vec<(u64, u64, u64)>,
}

/// What one rank does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankShare {
    /// Ranges that it reads, by file and then by offset, neighbours joined.
    pub reads: Vec<FileRange>,
    /// Ranges of those that it passes on, and to whom; by file, offset and rank.
    pub sends: Vec<Transfer>,
    /// Ranges that it is given, and by whom; in the same order as the sender's.
    pub receives: Vec<Transfer>,
    /// Where the bytes go.
    pub cuts: Vec<Cut>,
}

impl RankShare {
    /// Bytes that it reads.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.reads.iter().map(|range| range.len_bytes).sum()
    }
}

/// What every rank does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// By rank.
    pub ranks: Vec<RankShare>,
}

/// Shares the reading of `wants`, one list for each rank.
///
/// # Errors
/// `OutsideTensor`, `PartialByte`, `Refused` as for a load plan; `BadPart` for a piece that is zero or no multiple of the
/// alignment.
pub fn share(catalog: &Catalog, wants: &[Vec<Want>], scope: Scope, limits: ShareLimits) -> Result<Share, PlanError> {
    let ShareLimits { piece_max_bytes, align_bytes, .. } = limits;
    if align_bytes == 0 || piece_max_bytes == 0 || !piece_max_bytes.is_multiple_of(align_bytes) {
        return Err(PlanError::BadPart { part_len_bytes: piece_max_bytes, align_bytes });
    }
    let mut ranks = vec![RankShare::default(); wants.len()];
    for (rank, wants) in ranks.iter_mut().zip(wants) {
        rank.cuts = cuts(catalog, wants)?;
    }
    let group = match scope {
        Scope::Job => wants.len(),
        Scope::Node(ranks) => ranks,
    };
    for (number, group_ranks) in ranks.chunks_mut(group.max(1)).enumerate() {
        share_group(group_ranks, number * group, limits);
    }
    Ok(Share { ranks })
}

/// Where the bytes of each want come from.
fn cuts(catalog: &Catalog, wants: &[Want]) -> Result<Vec<Cut>, PlanError> {
    let mut all = Vec::new();
    for (number, want) in wants.iter().enumerate() {
        let outside = || PlanError::OutsideTensor {
            tensor: catalog.tensors().get(want.tensor).map_or_else(String::new, |tensor| tensor.name.to_string()),
            shape: catalog.tensors().get(want.tensor).map_or_else(Vec::new, |tensor| tensor.shape.to_vec()),
            ranges: want.offsets.iter().zip(&want.sizes).map(|(at, len)| (*at, at.saturating_add(*len))).collect(),
        };
        let tensor = catalog.tensors().get(want.tensor).ok_or_else(outside)?;
        if !crate::boxes::inside(&tensor.shape, &want.offsets, &want.sizes) {
            return Err(outside());
        }
        if let Held::Refused(reason) = &tensor.held {
            return Err(PlanError::Refused { tensor: tensor.name.to_string(), reason: reason.to_string() });
        }
        for chunk in tensor.chunks() {
            let source = (&*chunk.offsets, &*chunk.sizes);
            let runs = Runs::between(source, (&want.offsets, &want.sizes), tensor.dtype.bits())
                .map_err(|_| PlanError::PartialByte { tensor: tensor.name.to_string(), dtype: tensor.dtype })?;
            all.extend(runs.map(|runs| Cut {
                want: number,
                file: chunk.file,
                file_offset: chunk.file_offset + runs.source,
                want_offset: runs.target,
                run_len: runs.run_len,
                steps: runs.steps,
            }));
        }
    }
    Ok(all)
}

/// Ranges of a file that hold the runs of a cut; runs with small gaps between them are one.
fn ranges_of(cut: &Cut, gap_max: u64) -> Vec<(u64, u64)> {
    let runs = Runs { source: cut.file_offset, target: 0, run_len: cut.run_len, steps: cut.steps.clone() };
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    // Steps from the innermost that leave no larger gap make one range, without looking at each run.
    let (mut len, mut outer) = (runs.run_len, runs.steps.clone());
    while let Some(&(count, from, _)) = outer.last() {
        if from.saturating_sub(len) > gap_max {
            break;
        }
        len += from * (count - 1);
        outer.pop();
    }
    let outer = Runs { run_len: len, steps: outer, ..runs };
    for (start, _) in outer.each() {
        match ranges.last_mut() {
            Some((_, end)) if start <= end.saturating_add(gap_max) => *end = (start + len).max(*end),
            _ => ranges.push((start, start + len)),
        }
    }
    ranges
}

/// Gives every byte that the ranks of a group need to one of them.
fn share_group(ranks: &mut [RankShare], first: usize, limits: ShareLimits) {
    let pieces = pieces(ranks, limits);
    let total: u64 = pieces.iter().map(|(range, _)| range.len_bytes).sum();
    let count = ranks.len().max(1) as u64;
    let fair = total.div_ceil(count).saturating_add(limits.piece_max_bytes);
    let mut load = vec![0_u64; ranks.len()];
    for (range, needing) in pieces {
        let least = needing.iter().copied().min_by_key(|&rank| (load[rank], rank));
        let fits = least.filter(|&rank| load[rank] + range.len_bytes <= fair);
        let anybody = || (0..load.len()).min_by_key(|&rank| (load[rank], rank));
        let Some(reader) = fits.or_else(anybody) else { continue };
        load[reader] += range.len_bytes;
        join(&mut ranks[reader].reads, range);
        for other in needing.into_iter().filter(|&other| other != reader) {
            pass(&mut ranks[reader].sends, first + other, range);
            pass(&mut ranks[other].receives, first + reader, range);
        }
    }
}

/// Every range that somebody needs, once, in pieces, with the ranks that need it.
fn pieces(ranks: &[RankShare], limits: ShareLimits) -> Vec<(FileRange, Vec<usize>)> {
    // By file: where a rank's need begins (+1) and ends (-1).
    let mut edges: BTreeMap<usize, Vec<(u64, usize, i64)>> = BTreeMap::new();
    for (rank, share) in ranks.iter().enumerate() {
        for cut in &share.cuts {
            let of_file = edges.entry(cut.file).or_default();
            for (start, end) in ranges_of(cut, limits.gap_max_bytes) {
                of_file.extend([(start, rank, 1), (end, rank, -1)]);
            }
        }
    }
    let mut all = Vec::new();
    for (file, mut edges) in edges {
        edges.sort_unstable();
        let mut needing: BTreeMap<usize, i64> = BTreeMap::new();
        let mut since = 0;
        for (at, rank, change) in edges {
            if at > since && !needing.is_empty() {
                let ranks: Vec<usize> = needing.keys().copied().collect();
                cut_range(&mut all, file, (since, at), &ranks, limits);
            }
            since = at;
            let depth = needing.entry(rank).or_default();
            *depth += change;
            if *depth == 0 {
                needing.remove(&rank);
            }
        }
    }
    all
}

/// Cuts a range on aligned offsets.
fn cut_range(
    all: &mut Vec<(FileRange, Vec<usize>)>,
    file: usize,
    (mut from, to): (u64, u64),
    ranks: &[usize],
    limits: ShareLimits,
) {
    while from < to {
        let len_bytes = (limits.piece_max_bytes - from % limits.align_bytes).min(to - from);
        all.push((FileRange { file, file_offset: from, len_bytes }, ranks.to_vec()));
        from += len_bytes;
    }
}

/// Appends a range, to the last one if it goes on there.
fn join(ranges: &mut Vec<FileRange>, range: FileRange) {
    match ranges.last_mut() {
        Some(last) if last.file == range.file && last.end() == range.file_offset => last.len_bytes += range.len_bytes,
        _ => ranges.push(range),
    }
}

/// The same for a transfer, which stays one piece for both ends.
fn pass(transfers: &mut Vec<Transfer>, rank: usize, range: FileRange) {
    transfers.push(Transfer { rank, range });
}
