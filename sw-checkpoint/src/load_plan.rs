//! Which bytes to read, and where each lands.
//!
//! ```text
//!   file    ……│ A │ B │ (gap) │ C │……………………………│ D │…       chosen: A B C D
//!              └──── extent 0 ────┘              └ extent 1
//!   region  ░░│ A │ B │ (gap) │ C │░░ ░░░│ D │░░           ░: rest of the first and last block
//!   parts     │   0   │   1   │ 2 │     │  3  │            cut on aligned file offsets
//!
//!   file 0  ……│ E rows 0..4 │……    file 1  ……│ E rows 4..8 │……   E: in two chunks, or a slice: put together
//!   region    │ E rows 0..4 │ E rows 4..8 │                      long runs are read in place (exact extents),
//!                                                                short ones through memory beside it (gathers)
//! ```
//!
//! A want whose bytes are one range of one file lies in a region as it lies in its file, neighbours and gaps included.
//! Every other want is put together, row-major and dense.
//!
//! Invariants:
//! - Destination and file offset of every byte of a [`Room::Blocks`] extent are congruent modulo `align_bytes`, if the
//!   region's base is a multiple of it. A direct read lands in place; only the ragged ends of an extent need care.
//! - A region has room for the *whole* first and last block of each such extent, and no two extents share a block of a
//!   region. So the ragged ends need no bounce either, if the reader may write to that room: [`LoadPlan::blocks_of`].
//! - Parts of one plan never share a byte of a region, and parts of block extents no block, so they may be read in any
//!   order and at the same time.

use thiserror::Error;

use crate::boxes::Runs;
use crate::catalog::{Catalog, Held, Tensor};
use crate::dtype::Dtype;
use crate::quote::Quoted;
use crate::want::Want;

/// Why there is no plan.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// Items of the pattern that match no tensor.
    #[error("no tensor matches {}; look at the names in the file and mend the pattern", shown(.items))]
    NoMatch {
        /// The items as written.
        items: Vec<String>,
    },
    /// No tensor has that name.
    #[error("the checkpoint has no tensor {}; `straightway checkpoint show` lists them", Quoted(.tensor))]
    NoTensor {
        /// The name asked for.
        tensor: String,
    },
    /// The tensor has another type or shape than was asked for.
    #[error("tensor {} is {} {:?}, asked for was {} {:?}; ask for what is there, or load another checkpoint", Quoted(.tensor), .found.0, .found.1, .asked.0, .asked.1)]
    OtherTensor {
        /// The tensor.
        tensor: String,
        /// Type and shape asked for.
        asked: (Dtype, Vec<u64>),
        /// Type and shape in the checkpoint.
        found: (Dtype, Vec<u64>),
    },
    /// A slice is not inside its tensor.
    #[error("the slice {ranges:?} is not inside tensor {} of shape {shape:?}; give one range for each dimension, inside it", Quoted(.tensor))]
    OutsideTensor {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// First element and one past the last in each dimension.
        ranges: Vec<(u64, u64)>,
    },
    /// A slice of a sub-byte type begins or ends inside a byte.
    #[error("the slice of tensor {} of {dtype} does not lie on whole bytes; move its ends", Quoted(.tensor))]
    PartialByte {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
    },
    /// The checkpoint does not hold the tensor in a way that ranges can give.
    #[error("tensor {} cannot be loaded: {reason}; leave it out by naming the others", Quoted(.tensor))]
    Refused {
        /// The tensor.
        tensor: String,
        /// Why.
        reason: String,
    },
    /// The plan needs more memory than allowed.
    #[error(
        "the chosen tensors need {need_len_bytes} bytes of memory, the limit is {max_len_bytes}; choose fewer tensors or raise the limit"
    )]
    OverBudget {
        /// Memory of all regions; `u64::MAX` if it does not fit 64 bits.
        need_len_bytes: u64,
        /// The limit.
        max_len_bytes: u64,
    },
    /// The alignment is not a power of two in range.
    #[error(
        "alignment of {align_bytes} bytes is not a power of two from 1 to {ALIGN_MAX_BYTES}; use what the file system reports, often 4096"
    )]
    BadAlign {
        /// The value given.
        align_bytes: u64,
    },
    /// The part length is zero or no multiple of the alignment.
    #[error(
        "part length of {part_len_bytes} bytes is not a positive multiple of the alignment of {align_bytes}; round it up"
    )]
    BadPart {
        /// The value given.
        part_len_bytes: u64,
        /// The alignment.
        align_bytes: u64,
    },
}

/// The first few items, quoted.
fn shown(items: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    let mut text = items.iter().take(SHOWN_MAX).map(|item| Quoted(item).to_string()).collect::<Vec<_>>().join(", ");
    if let Some(more) = items.len().checked_sub(SHOWN_MAX).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more items"));
    }
    text
}

impl PlanError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoMatch { .. } => "no-match",
            Self::NoTensor { .. } => "no-tensor",
            Self::OtherTensor { .. } => "other-tensor",
            Self::OutsideTensor { .. } => "outside-tensor",
            Self::PartialByte { .. } => "partial-byte",
            Self::Refused { .. } => "refused-tensor",
            Self::OverBudget { .. } => "over-budget",
            Self::BadAlign { .. } => "bad-align",
            Self::BadPart { .. } => "bad-part",
        }
    }
}

/// Largest alignment in bytes: a huge page.
const ALIGN_MAX_BYTES: u64 = 2 << 20;

/// What a plan must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadLimits {
    /// Congruence of file and destination offsets, in bytes: a power of two from 1 to 2 MiB. Default 4096, the largest
    /// block that direct I/O asks for on common file systems.
    pub align_bytes: u64,
    /// Two chosen tensors with at most this many unwanted bytes between them are read as one extent. Default 128 KiB:
    /// about what a disk of 1.4 GiB/s moves in the 80 µs that one more random read costs it at depth 1.
    pub gap_max_bytes: u64,
    /// Longest part in bytes, a positive multiple of `align_bytes`. Default 8 MiB.
    pub part_len_bytes: u64,
    /// Runs of at least this many bytes are read in place where a slice or a chunk is not contiguous; shorter ones are
    /// read together with what lies between them and gathered. Default 256 KiB: twice the gap that is read over anyway.
    pub run_min_bytes: u64,
    /// Longest region in bytes, but a tensor is never torn: one that is longer gets a region for itself. Default: no limit,
    /// one region per file.
    pub region_len_max_bytes: u64,
    /// Most bytes of all regions together. Default: no limit.
    pub memory_max_bytes: u64,
}

impl Default for LoadLimits {
    fn default() -> Self {
        Self {
            align_bytes: 4096,
            gap_max_bytes: 128 << 10,
            part_len_bytes: 8 << 20,
            run_min_bytes: 256 << 10,
            region_len_max_bytes: u64::MAX,
            memory_max_bytes: u64::MAX,
        }
    }
}

impl LoadLimits {
    fn validate(&self) -> Result<(), PlanError> {
        let Self { align_bytes, part_len_bytes, .. } = *self;
        if !align_bytes.is_power_of_two() || align_bytes > ALIGN_MAX_BYTES {
            return Err(PlanError::BadAlign { align_bytes });
        }
        if part_len_bytes == 0 || !part_len_bytes.is_multiple_of(align_bytes) {
            return Err(PlanError::BadPart { part_len_bytes, align_bytes });
        }
        Ok(())
    }
}

/// Memory to allocate: its base must be a multiple of the plan's alignment. For a plan into given memory: that memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Length in bytes, never 0; a multiple of the alignment if it is to be allocated.
    pub len_bytes: u64,
}

/// What lies around an extent in its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Room for its whole first and last block: a read may write there.
    Blocks,
    /// Other bytes: a read writes exactly the extent.
    Exact,
}

/// One contiguous range of a file and its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Position of the file in [`Catalog::files`].
    pub file: usize,
    /// First byte, from the start of the file.
    pub file_offset: u64,
    /// Length in bytes, never 0.
    pub len_bytes: u64,
    /// Position of the region in [`LoadPlan::regions`].
    pub region: usize,
    /// Where the first byte lands in the region.
    pub region_offset: u64,
    /// What lies around it.
    pub room: Room,
}

/// A piece of an extent that one queue reads; same fields, same meaning.
pub type ReadPart = Extent;

/// Short runs of one chunk that go to their places through memory beside the region.
#[derive(Clone, Debug)]
pub struct Gather {
    /// Position of the file in [`Catalog::files`].
    pub file: usize,
    /// Position of the view in [`LoadPlan::views`].
    pub view: usize,
    /// First byte of the chunk in the file.
    base: u64,
    runs: Runs,
}

/// Runs of a gather that one read fetches.
#[derive(Clone, Copy, Debug)]
pub struct Window<'p> {
    /// Which gather.
    pub gather: &'p Gather,
    /// First byte, from the start of the file.
    pub file_offset: u64,
    /// Length in bytes, never 0.
    pub len_bytes: u64,
    first: u64,
    count: u64,
}

impl Window<'_> {
    /// Each run: its place in the window, its place in the view's bytes, its length.
    pub fn copies(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let Gather { base, runs, .. } = self.gather;
        let from = self.file_offset - base;
        (self.first..self.first + self.count).map(move |number| {
            let (source, target) = runs.at(number);
            (source - from, target, runs.run_len)
        })
    }
}

/// Where a tensor's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Position of the region in [`LoadPlan::regions`].
    pub region: usize,
    /// First byte in the region.
    pub region_offset: u64,
}

/// A wanted tensor, or slice of one. Views of tensors that share bytes in a file may share memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView {
    /// Position of the tensor in [`Catalog::tensors`].
    pub tensor: usize,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Where its bytes are, row-major and dense; `None` exactly if it has none.
    pub place: Option<Place>,
}

/// Sums over a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTotals {
    /// Bytes of the wanted tensors and slices; shared bytes count for each.
    pub tensor_bytes: u64,
    /// Unwanted bytes read because reading on is cheaper than a second read. For gathers an upper bound.
    pub gap_bytes: u64,
    /// Bytes that are read: tensors and gaps, shared bytes once where they lie in one extent.
    pub read_bytes: u64,
    /// Bytes of all regions: what is read, and the rest of first and last blocks.
    pub memory_bytes: u64,
}

/// What to read and where it lands.
#[derive(Clone, Debug)]
pub struct LoadPlan {
    limits: LoadLimits,
    regions: Vec<Region>,
    extents: Vec<Extent>,
    gathers: Vec<Gather>,
    views: Vec<TensorView>,
    totals: LoadTotals,
}

impl LoadPlan {
    /// Plans the load of `wants` into regions to allocate.
    ///
    /// # Errors
    /// Every [`PlanError`] but `NoMatch`.
    pub fn new(catalog: &Catalog, wants: &[Want], limits: LoadLimits) -> Result<Self, PlanError> {
        let mut build = Build::new(limits)?;
        let mut in_files = Vec::with_capacity(wants.len());
        let mut put_together = Vec::new();
        for (view, want) in wants.iter().enumerate() {
            let mut pieces = build.want(catalog, want)?;
            match pieces.as_mut_slice() {
                [] => {}
                [one] if one.runs.steps.is_empty() => in_files.push((one.file, one.file_offset(), view)),
                _ => put_together.push((view, pieces)),
            }
        }
        // Offsets in order, so that neighbours meet; those of safetensors are in order already.
        in_files.sort();
        for (file, file_offset, view) in in_files {
            build.add(file, file_offset, view)?;
        }
        build.flush()?;
        for (view, pieces) in put_together {
            build.put_together(view, pieces)?;
        }
        build.finish()
    }

    /// Plans the load of `wants` into memory that is there: region `n` is the memory of the `n`th want that has bytes, and
    /// has exactly its length.
    ///
    /// # Errors
    /// As [`LoadPlan::new`].
    pub fn into_given(catalog: &Catalog, wants: &[Want], limits: LoadLimits) -> Result<Self, PlanError> {
        let mut build = Build::new(limits)?;
        for (view, want) in wants.iter().enumerate() {
            let pieces = build.want(catalog, want)?;
            if pieces.is_empty() {
                continue;
            }
            let len_bytes = build.views[view].len_bytes;
            build.reserve(len_bytes)?;
            build.regions.push(Region { len_bytes });
            let place = Place { region: build.regions.len() - 1, region_offset: 0 };
            build.fill(view, place, pieces);
        }
        build.finish()
    }

    /// Memory to allocate or to give.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Ranges to read in place.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Whether some bytes go through memory beside the regions.
    #[must_use]
    pub fn gathers(&self) -> &[Gather] {
        &self.gathers
    }

    /// Wanted tensors, in the order of the wants.
    #[must_use]
    pub fn views(&self) -> &[TensorView] {
        &self.views
    }

    /// Sums.
    #[must_use]
    pub const fn totals(&self) -> LoadTotals {
        self.totals
    }

    /// The limits that the plan keeps.
    #[must_use]
    pub const fn limits(&self) -> &LoadLimits {
        &self.limits
    }

    /// The extents in parts of at most `part_len_bytes`, cut on aligned file offsets. Made one by one: a plan for
    /// terabytes holds no list of them.
    pub fn parts(&self) -> impl Iterator<Item = ReadPart> {
        self.parts_in(u64::MAX)
    }

    /// [`LoadPlan::parts`], none of which reaches over a multiple of `chunk_bytes` of its file. That is a power of two and
    /// not below the alignment.
    pub fn parts_in(&self, chunk_bytes: u64) -> impl Iterator<Item = ReadPart> {
        let LoadLimits { align_bytes, part_len_bytes, .. } = self.limits;
        self.extents.iter().flat_map(move |extent| {
            let mut rest = Some(*extent);
            std::iter::from_fn(move || {
                let whole = rest.take()?;
                // The first part of a ragged extent is shorter by its head, so that every later cut is aligned.
                let len_bytes = part_len_bytes - whole.file_offset % align_bytes;
                let len_bytes = len_bytes.min(chunk_bytes - whole.file_offset % chunk_bytes);
                if len_bytes >= whole.len_bytes {
                    return Some(whole);
                }
                rest = Some(Extent {
                    file_offset: whole.file_offset + len_bytes,
                    len_bytes: whole.len_bytes - len_bytes,
                    region_offset: whole.region_offset + len_bytes,
                    ..whole
                });
                Some(Extent { len_bytes, ..whole })
            })
        })
    }

    /// The reads of one gather: runs with at most the allowed gap between them, at most `part_len_bytes` or one run.
    pub fn windows<'p>(&'p self, gather: &'p Gather) -> impl Iterator<Item = Window<'p>> + 'p {
        let LoadLimits { gap_max_bytes, part_len_bytes, .. } = self.limits;
        let Gather { base, runs, .. } = gather;
        let (total, mut next) = (runs.count(), 0);
        std::iter::from_fn(move || {
            let first = next;
            let start = (first < total).then(|| runs.at(first).0)?;
            let mut end = start + runs.run_len;
            next += 1;
            while next < total {
                let (source, _) = runs.at(next);
                if source - end > gap_max_bytes || source + runs.run_len - start > part_len_bytes {
                    break;
                }
                end = source + runs.run_len;
                next += 1;
            }
            Some(Window { gather, file_offset: base + start, len_bytes: end - start, first, count: next - first })
        })
    }

    /// `part` widened to whole blocks, on both sides, where there is room. It stays inside its region and shares no block
    /// with another part. In the file it may reach past the end, where a direct read comes back short; never past the
    /// region's.
    #[must_use]
    pub fn blocks_of(&self, part: &ReadPart) -> ReadPart {
        if part.room == Room::Exact {
            return *part;
        }
        let align_bytes = self.limits.align_bytes;
        let head = part.file_offset % align_bytes;
        Extent {
            file_offset: part.file_offset - head,
            // Room for the whole blocks was reserved, so this stays below the region's length.
            len_bytes: (part.len_bytes + head).next_multiple_of(align_bytes),
            region_offset: part.region_offset - head,
            ..*part
        }
    }
}

/// What one chunk has of a want.
struct Piece {
    file: usize,
    /// First byte of the chunk in the file.
    base: u64,
    runs: Runs,
}

impl Piece {
    fn file_offset(&self) -> u64 {
        self.base + self.runs.source
    }

    fn is_one_run(&self) -> bool {
        self.runs.steps.is_empty()
    }
}

/// A plan in the making.
struct Build {
    limits: LoadLimits,
    regions: Vec<Region>,
    extents: Vec<Extent>,
    gathers: Vec<Gather>,
    views: Vec<TensorView>,
    totals: LoadTotals,
    /// The file of the region that still grows.
    growing: Option<usize>,
    /// The extent that still grows: file, first byte and end.
    open: Option<(usize, u64, u64)>,
    /// File offset and view of each tensor in the open extent.
    pending: Vec<(u64, usize)>,
}

impl Build {
    fn new(limits: LoadLimits) -> Result<Self, PlanError> {
        limits.validate()?;
        Ok(Self {
            limits,
            regions: Vec::new(),
            extents: Vec::new(),
            gathers: Vec::new(),
            views: Vec::new(),
            totals: LoadTotals::default(),
            growing: None,
            open: None,
            pending: Vec::new(),
        })
    }

    fn finish(self) -> Result<LoadPlan, PlanError> {
        let Self { limits, regions, extents, gathers, views, totals, .. } = self;
        let need_len_bytes = totals.memory_bytes;
        if need_len_bytes > limits.memory_max_bytes {
            return Err(PlanError::OverBudget { need_len_bytes, max_len_bytes: limits.memory_max_bytes });
        }
        Ok(LoadPlan { limits, regions, extents, gathers, views, totals })
    }

    /// Adds the view of a want and gives the pieces of its bytes, by destination; neighbours in both are one piece.
    fn want(&mut self, catalog: &Catalog, want: &Want) -> Result<Vec<Piece>, PlanError> {
        let outside = || PlanError::OutsideTensor {
            tensor: catalog.tensors().get(want.tensor).map_or_else(String::new, |tensor| tensor.name.to_string()),
            shape: catalog.tensors().get(want.tensor).map_or_else(Vec::new, |tensor| tensor.shape.to_vec()),
            ranges: want.offsets.iter().zip(&want.sizes).map(|(at, len)| (*at, at.saturating_add(*len))).collect(),
        };
        let tensor = catalog.tensors().get(want.tensor).ok_or_else(outside)?;
        if !crate::boxes::inside(&tensor.shape, &want.offsets, &want.sizes) {
            return Err(outside());
        }
        let partial = || PlanError::PartialByte { tensor: tensor.name.to_string(), dtype: tensor.dtype };
        // A box of a tensor is no longer than it, so this can only be a part of a byte.
        let len_bytes = tensor.dtype.len_bytes(&want.sizes).map_err(|_| partial())?;
        let pieces = pieces(tensor, want).map_err(|Fault| partial());
        let pieces = match &tensor.held {
            Held::Refused(reason) => {
                return Err(PlanError::Refused { tensor: tensor.name.to_string(), reason: reason.to_string() });
            }
            Held::Chunks(_) if len_bytes == 0 => Vec::new(),
            Held::Chunks(_) => pieces?,
        };
        self.totals.tensor_bytes = self.totals.tensor_bytes.saturating_add(len_bytes);
        self.views.push(TensorView { tensor: want.tensor, len_bytes, place: None });
        Ok(pieces)
    }

    /// Adds a view that is one range of a file; files and offsets never go down.
    fn add(&mut self, file: usize, file_offset: u64, view: usize) -> Result<(), PlanError> {
        let end = file_offset.saturating_add(self.views[view].len_bytes);
        let joined = self.open.filter(|&(open_file, start, open_end)| {
            open_file == file
                && file_offset.saturating_sub(open_end) <= self.limits.gap_max_bytes
                && self.span(start, end.max(open_end)).is_some_and(|len| len <= self.limits.region_len_max_bytes)
        });
        match joined {
            Some((_, start, open_end)) => {
                self.totals.gap_bytes += file_offset.saturating_sub(open_end);
                self.open = Some((file, start, end.max(open_end)));
            }
            None => {
                self.flush()?;
                self.open = Some((file, file_offset, end));
            }
        }
        self.pending.push((file_offset, view));
        Ok(())
    }

    /// Bytes of the whole blocks from `start` to `end`.
    fn span(&self, start: u64, end: u64) -> Option<u64> {
        let align_bytes = self.limits.align_bytes;
        Some(end.checked_next_multiple_of(align_bytes)? - (start - start % align_bytes))
    }

    /// Counts memory of a region.
    fn reserve(&mut self, len_bytes: u64) -> Result<(), PlanError> {
        let sum = self.totals.memory_bytes.checked_add(len_bytes).ok_or_else(|| self.too_much())?;
        self.totals.memory_bytes = sum;
        Ok(())
    }

    const fn too_much(&self) -> PlanError {
        PlanError::OverBudget { need_len_bytes: u64::MAX, max_len_bytes: self.limits.memory_max_bytes }
    }

    /// Room for `span` bytes of whole blocks: in the last region if that is of the same file and short enough, else in a
    /// new one. Views that are put together belong to no file.
    fn room(&mut self, file: Option<usize>, span: u64) -> Result<Place, PlanError> {
        self.reserve(span)?;
        let max = self.limits.region_len_max_bytes;
        let same = self.growing == file;
        let region_offset = match self.regions.last_mut() {
            // Sums of all regions fit 64 bits, so this one does.
            Some(last) if same && last.len_bytes.checked_add(span).is_some_and(|len| len <= max) => {
                let base = last.len_bytes;
                last.len_bytes += span;
                base
            }
            _ => {
                self.regions.push(Region { len_bytes: span });
                self.growing = file;
                0
            }
        };
        Ok(Place { region: self.regions.len() - 1, region_offset })
    }

    /// Gives the open extent and the views in it their place.
    fn flush(&mut self) -> Result<(), PlanError> {
        let Some((file, start, end)) = self.open.take() else { return Ok(()) };
        let span = self.span(start, end).ok_or_else(|| self.too_much())?;
        let Place { region, region_offset: base } = self.room(Some(file), span)?;
        self.totals.read_bytes += end - start;
        let region_offset = base + start % self.limits.align_bytes;
        let len_bytes = end - start;
        self.extents.push(Extent { file, file_offset: start, len_bytes, region, region_offset, room: Room::Blocks });
        for (file_offset, view) in self.pending.drain(..) {
            self.views[view].place = Some(Place { region, region_offset: region_offset + (file_offset - start) });
        }
        Ok(())
    }

    /// Gives a view that is put together its place, congruent with its longest run.
    fn put_together(&mut self, view: usize, pieces: Vec<Piece>) -> Result<(), PlanError> {
        let align_bytes = self.limits.align_bytes;
        let longest = pieces.iter().filter(|piece| piece.is_one_run()).max_by_key(|piece| piece.runs.run_len);
        let phase = longest.map_or(0, |piece| piece.file_offset().wrapping_sub(piece.runs.target) % align_bytes);
        let end = phase.checked_add(self.views[view].len_bytes);
        let span = end.and_then(|end| end.checked_next_multiple_of(align_bytes)).ok_or_else(|| self.too_much())?;
        let Place { region, region_offset } = self.room(None, span)?;
        self.fill(view, Place { region, region_offset: region_offset + phase }, pieces);
        Ok(())
    }

    /// Adds the reads that fill a view.
    fn fill(&mut self, view: usize, place: Place, pieces: Vec<Piece>) {
        self.views[view].place = Some(place);
        let Place { region, region_offset } = place;
        for Piece { file, base, runs } in pieces {
            let len_bytes = runs.run_len;
            self.totals.read_bytes = self.totals.read_bytes.saturating_add(runs.len_bytes());
            if !runs.steps.is_empty() && len_bytes < self.limits.run_min_bytes {
                let gap_bytes = runs.gaps_up_to(self.limits.gap_max_bytes);
                self.totals.gap_bytes = self.totals.gap_bytes.saturating_add(gap_bytes);
                self.totals.read_bytes = self.totals.read_bytes.saturating_add(gap_bytes);
                self.gathers.push(Gather { file, view, base, runs });
                continue;
            }
            // The list is short: each run is long.
            self.extents.extend(runs.each().map(|(source, target)| Extent {
                file,
                file_offset: base + source,
                len_bytes,
                region,
                region_offset: region_offset + target,
                room: Room::Exact,
            }));
        }
    }
}

/// A slice that does not lie on whole bytes.
struct Fault;

/// What the chunks of a tensor have of a want, by destination.
fn pieces(tensor: &Tensor, want: &Want) -> Result<Vec<Piece>, Fault> {
    let wanted = (&*want.offsets, &*want.sizes);
    let mut pieces: Vec<Piece> = Vec::new();
    for chunk in tensor.chunks() {
        let runs = Runs::between((&chunk.offsets, &chunk.sizes), wanted, tensor.dtype.bits()).map_err(|_| Fault)?;
        pieces.extend(runs.map(|runs| Piece { file: chunk.file, base: chunk.file_offset, runs }));
    }
    pieces.sort_by_key(|piece| piece.runs.target);
    pieces.dedup_by(|next, last| {
        let meet = last.is_one_run()
            && next.is_one_run()
            && last.file == next.file
            && last.file_offset() + last.runs.run_len == next.file_offset()
            && last.runs.target + last.runs.run_len == next.runs.target;
        if meet {
            last.runs.run_len += next.runs.run_len;
        }
        meet
    });
    Ok(pieces)
}
