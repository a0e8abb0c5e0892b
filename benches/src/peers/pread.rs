//! Plain `pread`, one after the other: past the page cache, or through it.

use std::os::unix::fs::FileExt;

use crate::{
    fault::Fault,
    ours::{
        cufile_library::Memory,
        reads::{Reads, digest},
    },
    report::Sample,
};

/// Whether the page cache is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// `O_DIRECT`.
    Direct,
    /// Through the page cache.
    Cached,
}

/// Reads what the job says.
pub(crate) fn run(reads: &Reads, way: Way) -> Result<Sample, Fault> {
    let file = match way {
        Way::Direct => reads.open_direct()?,
        Way::Cached => std::fs::File::open(&reads.file).map_err(Fault::os("open", &reads.file))?,
    };
    let mut memory = Memory::new(reads.memory_bytes());
    memory.bytes_mut().fill(0xA5);
    let blocks = reads.blocks()?;
    let mut sample = reads.measure(|| {
        for op in 0..reads.ops {
            let at = reads.place(op);
            let to = memory.bytes_mut().get_mut(at..at + reads.block).unwrap_or_default();
            file.read_exact_at(to, reads.offset(op, blocks)).map_err(Fault::os("read", &reads.file))?;
        }
        Ok(())
    })?;
    sample.checksum = Some(digest(memory.bytes()));
    Ok(sample)
}
