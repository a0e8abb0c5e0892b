//! Which bytes to read, and where each lands.
//!
//! ```text
//!   file    ……│ A │ B │ (gap) │ C │……………………………│ D │…       chosen: A B C D
//!              └──── extent 0 ────┘              └ extent 1
//!   region  ░░│ A │ B │ (gap) │ C │░░ ░░░│ D │░░           ░: rest of the first and last block
//!   parts     │   0   │   1   │ 2 │     │  3  │            cut on aligned file offsets
//! ```
//!
//! Invariants:
//! - Destination and file offset of every byte are congruent modulo `align_bytes`, if the region's base is a multiple of
//!   it. A direct read lands in place; only the ragged ends of an extent need care.
//! - A region has room for the *whole* first and last block of each extent, and no two extents share a block of a region.
//!   So the ragged ends need no bounce either, if the reader may write to that room: [`LoadPlan::blocks_of`].
//! - Parts of one plan never share a block of a region, so they may be read in any order and at the same time.

use thiserror::Error;

use crate::catalog::Catalog;
use crate::pattern::Pattern;
use crate::quote::Quoted;

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

/// Memory to allocate: its base must be a multiple of the plan's alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Position of the file whose bytes it takes, in [`Catalog::shards`].
    pub file: usize,
    /// Length in bytes, a multiple of the alignment, never 0.
    pub len_bytes: u64,
}

/// One contiguous range of a file and its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Position of the file in [`Catalog::shards`].
    pub file: usize,
    /// First byte, from the start of the file.
    pub file_offset: u64,
    /// Length in bytes, never 0.
    pub len_bytes: u64,
    /// Position of the region in [`LoadPlan::regions`].
    pub region: usize,
    /// Where the first byte lands in the region.
    pub region_offset: u64,
}

/// A piece of an extent that one queue reads; same fields, same meaning.
pub type ReadPart = Extent;

/// Where a tensor's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Position of the region in [`LoadPlan::regions`].
    pub region: usize,
    /// First byte in the region.
    pub region_offset: u64,
}

/// A chosen tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView {
    /// Position of its file in [`Catalog::shards`].
    pub file: usize,
    /// Position in that file's [`Header::tensors`](crate::Header::tensors).
    pub tensor: usize,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Where its bytes are; `None` exactly if it has none.
    pub place: Option<Place>,
}

/// Sums over a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTotals {
    /// Bytes of the chosen tensors.
    pub tensor_bytes: u64,
    /// Unwanted bytes read because reading on is cheaper than a second read.
    pub gap_bytes: u64,
    /// Bytes that the parts read: tensors and gaps.
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
    views: Vec<TensorView>,
    totals: LoadTotals,
}

impl LoadPlan {
    /// Plans the load of the tensors of `catalog` that `pattern` matches.
    ///
    /// # Errors
    /// Every [`PlanError`]; `NoMatch` if *one* item of the pattern is idle, since that is most often a misspelt name.
    pub fn new(catalog: &Catalog, pattern: &Pattern, limits: LoadLimits) -> Result<Self, PlanError> {
        limits.validate()?;
        let items = pattern.idle_items(catalog.tensors().map(|(_, tensor)| tensor.name.as_ref()));
        // `*` over a checkpoint without tensors asks for nothing and gets it.
        if !items.is_empty() && catalog.tensors().next().is_some() {
            return Err(PlanError::NoMatch { items });
        }
        let mut build = Build::new(limits);
        for (file, shard) in catalog.shards().iter().enumerate() {
            for (at, tensor) in shard.header.tensors().iter().enumerate() {
                if pattern.matches(&tensor.name) {
                    let view = TensorView { file, tensor: at, len_bytes: tensor.len_bytes, place: None };
                    build.add(view, tensor.file_offset)?;
                }
            }
            build.flush()?;
        }
        let need_len_bytes = build.totals.memory_bytes;
        if need_len_bytes > limits.memory_max_bytes {
            return Err(PlanError::OverBudget { need_len_bytes, max_len_bytes: limits.memory_max_bytes });
        }
        let Build { regions, extents, views, totals, .. } = build;
        Ok(Self { limits, regions, extents, views, totals })
    }

    /// Memory to allocate, by file and then by offset.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Ranges to read, by file and then by offset.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Chosen tensors, by file and then by offset.
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
        let LoadLimits { align_bytes, part_len_bytes, .. } = self.limits;
        self.extents.iter().flat_map(move |extent| {
            let mut rest = Some(*extent);
            std::iter::from_fn(move || {
                let whole = rest.take()?;
                // The first part of a ragged extent is shorter by its head, so that every later cut is aligned.
                let len_bytes = part_len_bytes - whole.file_offset % align_bytes;
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

    /// `part` widened to whole blocks, on both sides. It stays inside its region and shares no block with another part.
    /// In the file it may reach past the end, where a direct read comes back short; never past the region's.
    #[must_use]
    pub fn blocks_of(&self, part: &ReadPart) -> ReadPart {
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

/// A plan in the making.
struct Build {
    limits: LoadLimits,
    regions: Vec<Region>,
    extents: Vec<Extent>,
    views: Vec<TensorView>,
    totals: LoadTotals,
    /// The extent that still grows: first byte and end in the file.
    open: Option<(u64, u64)>,
    /// File offsets of the views from `pending_from` on, which wait for the open extent's place.
    pending: Vec<u64>,
    pending_from: usize,
}

impl Build {
    const fn new(limits: LoadLimits) -> Self {
        Self {
            limits,
            regions: Vec::new(),
            extents: Vec::new(),
            views: Vec::new(),
            totals: LoadTotals { tensor_bytes: 0, gap_bytes: 0, read_bytes: 0, memory_bytes: 0 },
            open: None,
            pending: Vec::new(),
            pending_from: 0,
        }
    }

    /// Adds a tensor; offsets never go down within a file.
    fn add(&mut self, view: TensorView, file_offset: u64) -> Result<(), PlanError> {
        let end = file_offset.saturating_add(view.len_bytes);
        if view.len_bytes > 0 {
            let joined = self.open.filter(|&(start, open_end)| {
                file_offset - open_end <= self.limits.gap_max_bytes
                    && self.span(start, end).is_some_and(|len| len <= self.limits.region_len_max_bytes)
            });
            match joined {
                Some((start, open_end)) => {
                    self.totals.gap_bytes += file_offset - open_end;
                    self.open = Some((start, end));
                }
                None => {
                    self.flush()?;
                    self.open = Some((file_offset, end));
                }
            }
            self.totals.tensor_bytes = self.totals.tensor_bytes.saturating_add(view.len_bytes);
        }
        self.views.push(view);
        self.pending.push(file_offset);
        Ok(())
    }

    /// Bytes of the whole blocks from `start` to `end`.
    fn span(&self, start: u64, end: u64) -> Option<u64> {
        let align_bytes = self.limits.align_bytes;
        Some(end.checked_next_multiple_of(align_bytes)? - (start - start % align_bytes))
    }

    /// Gives the open extent and the views in it their place.
    fn flush(&mut self) -> Result<(), PlanError> {
        let pending = std::mem::take(&mut self.pending);
        let from = std::mem::replace(&mut self.pending_from, self.views.len());
        let Some((start, end)) = self.open.take() else { return Ok(()) };
        let Some(file) = self.views.get(from).map(|view| view.file) else { return Ok(()) };
        let too_much = PlanError::OverBudget { need_len_bytes: u64::MAX, max_len_bytes: self.limits.memory_max_bytes };
        let Some(span) = self.span(start, end) else { return Err(too_much) };
        let Some(memory_bytes) = self.totals.memory_bytes.checked_add(span) else { return Err(too_much) };
        self.totals.memory_bytes = memory_bytes;
        self.totals.read_bytes += end - start;
        let room = self.limits.region_len_max_bytes;
        let base = match self.regions.last_mut() {
            // Sums of all regions fit 64 bits, so this one does.
            Some(last) if last.file == file && last.len_bytes.checked_add(span).is_some_and(|len| len <= room) => {
                let base = last.len_bytes;
                last.len_bytes += span;
                base
            }
            _ => {
                self.regions.push(Region { file, len_bytes: span });
                0
            }
        };
        let region = self.regions.len() - 1;
        let region_offset = base + start % self.limits.align_bytes;
        self.extents.push(Extent { file, file_offset: start, len_bytes: end - start, region, region_offset });
        for (view, file_offset) in self.views[from..].iter_mut().zip(pending) {
            if view.len_bytes > 0 {
                view.place = Some(Place { region, region_offset: region_offset + (file_offset - start) });
            }
        }
        Ok(())
    }
}
