//! Which blocks the jobs of the case `cufile` read, the same for every side.

use std::{
    fs::OpenOptions,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    time::Instant,
};

use sha2::{Digest, Sha256};

use crate::{
    data::{hex, splitmix64},
    fault::Fault,
    report::Sample,
    usage::{self, Usage},
};

/// Random reads of a file: read `i` of them goes to slot `i % slots` of the memory.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Reads {
    /// The file.
    #[arg(long)]
    pub file: PathBuf,
    /// Bytes of a read, and what its offset is a multiple of.
    #[arg(long)]
    pub block: usize,
    /// Reads; a multiple of the slots.
    #[arg(long)]
    pub ops: u32,
    /// Places in memory.
    #[arg(long)]
    pub slots: u32,
    /// Seed of the offsets.
    #[arg(long)]
    pub seed: u64,
}

impl Reads {
    /// As arguments of a worker, or of a peer's script.
    pub(crate) fn args(&self) -> Vec<String> {
        let Self { file, block, ops, slots, seed } = self;
        let file = format!("--file={}", file.display());
        let numbers =
            [("block", *block as u64), ("ops", u64::from(*ops)), ("slots", u64::from(*slots)), ("seed", *seed)];
        std::iter::once(file).chain(numbers.map(|(name, value)| format!("--{name}={value}"))).collect()
    }

    /// Bytes of the memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.block * self.slots as usize
    }

    /// Whole blocks of the file, one at least.
    pub(crate) fn blocks(&self) -> Result<u64, Fault> {
        let len = std::fs::metadata(&self.file).map_err(Fault::os("look at", &self.file))?.len();
        Ok((len / self.block as u64).max(1))
    }

    /// Where read `op` starts in a file of so many blocks.
    pub(crate) fn offset(&self, op: u32, blocks: u64) -> u64 {
        splitmix64(self.seed.wrapping_add(u64::from(op))) % blocks * self.block as u64
    }

    /// Where read `op` lands in memory.
    pub(crate) fn place(&self, op: u32) -> usize {
        (op % self.slots) as usize * self.block
    }

    /// The file, past the page cache.
    pub(crate) fn open_direct(&self) -> Result<std::fs::File, Fault> {
        let options = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&self.file);
        options.map_err(Fault::os("open with O_DIRECT", &self.file))
    }

    /// What the memory holds at the end, by plain reads.
    pub(crate) fn expected(&self) -> Result<String, Fault> {
        let file = std::fs::File::open(&self.file).map_err(Fault::os("open", &self.file))?;
        let (blocks, mut bytes) = (self.blocks()?, vec![0; self.block]);
        let mut sha = Sha256::new();
        for op in self.ops.saturating_sub(self.slots)..self.ops {
            file.read_exact_at(&mut bytes, self.offset(op, blocks)).map_err(Fault::os("read", &self.file))?;
            sha.update(&bytes);
        }
        Ok(hex(&sha.finalize()))
    }

    /// Runs the job with the meters on. `memory` is looked at afterwards.
    pub(crate) fn measure(&self, mut job: impl FnMut() -> Result<(), Fault>) -> Result<Sample, Fault> {
        let mut sample = Sample { rss_before_bytes: usage::resident_bytes(), ..Sample::default() };
        let before = Usage::now();
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        job()?;
        sample.seconds = start.elapsed().as_secs_f64();
        Usage::now().charge(before, &mut sample);
        sample.ops = u64::from(self.ops);
        sample.bytes = sample.ops * self.block as u64;
        Ok(sample)
    }
}

/// SHA-256 of memory.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
