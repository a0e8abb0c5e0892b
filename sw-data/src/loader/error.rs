//! What can go wrong in a loader.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use straightway::Error;

use crate::{decode::DecodeError, formats::Extent, order::OrderError, samples::Format};

/// A failure of somebody else's code: a table's, a map function's.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// A sample of a loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleId {
    /// Its dataset, by its place in the loader's list; 0 where there is one.
    pub dataset: u32,
    /// Its number in that dataset.
    pub number: u64,
}

impl fmt::Display for SampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sample {}", self.number)?;
        if self.dataset > 0 {
            write!(f, " of dataset {}", self.dataset)?;
        }
        Ok(())
    }
}

/// Why a batch did not come. After any of them but those about the loader as a whole, the next batch can be asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A sample could not be had, and the policy is to say so.
    #[error(transparent)]
    Sample(#[from] Box<BadSample>),
    /// More bad samples than the policy allows.
    #[error("{bad} samples were left out and {max} is the most; the last one: {last}")]
    TooManyBad {
        /// Left out so far.
        bad: u64,
        /// The limit.
        max: u64,
        /// The last of them.
        last: Box<BadSample>,
    },
    /// A batch that cannot fit into the memory that the loader may use.
    #[error(
        "a batch needs {need_bytes} bytes and the loader may use {budget_bytes}; make batches smaller or raise memory_bytes"
    )]
    OverBudget {
        /// Bytes of the batch.
        need_bytes: u64,
        /// The limit.
        budget_bytes: u64,
    },
    /// The table of samples did not tell the places of a batch.
    #[error("the table of dataset {dataset} cannot be asked: {cause}")]
    Locate {
        /// Which dataset.
        dataset: u32,
        /// What it returned.
        cause: Cause,
    },
    /// The table of samples told another number of places than it was asked for.
    #[error("the table of dataset {dataset} did not tell one place for each sample; it has a bug")]
    WrongPlaces {
        /// Which dataset.
        dataset: u32,
    },
    /// An order that cannot be had, or a state that is of another one.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// A state of one dataset given to a mixture, or the reverse.
    #[error("the state is of {have}, and the loader goes through {want}; give the state of this loader")]
    OtherState {
        /// What the state is of.
        have: &'static str,
        /// What the loader has.
        want: &'static str,
    },
    /// The engine refuses memory, a lane or a thread.
    #[error("{0}")]
    Engine(Arc<Error>),
    /// An option out of its range.
    #[error("{option} is {value}; use {range}")]
    BadOption {
        /// Its name.
        option: &'static str,
        /// What was given.
        value: u64,
        /// What can be.
        range: &'static str,
    },
    /// Things that do not go together.
    #[error("{what}; {remedy}")]
    Unsupported {
        /// What.
        what: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The system refuses a thread.
    #[error("the system refuses a thread (errno {errno}); raise the limit of processes (ulimit -u)")]
    NoThread {
        /// As the kernel told it.
        errno: i32,
    },
    /// The process was forked after the loader was made: its threads are the parent's.
    #[error(
        "the process was forked after the loader was made, and its threads are the parent's; make a loader in the child, or start workers with spawn"
    )]
    Forked,
    /// The kernel does not come back from starting or awaiting reads, so that no deadline can end one of them. Nothing is
    /// loaded until it does.
    #[error(
        "no read has ended for {} ms and the kernel does not return; {reads} are in flight, the first of them {object}, bytes {}+{}; look at what it is stored on",
        after.as_millis(), extent.offset, extent.len
    )]
    Stuck {
        /// The object of a read in flight.
        object: Arc<str>,
        /// Its bytes.
        extent: Extent,
        /// Reads in flight.
        reads: u32,
        /// How long already.
        after: Duration,
    },
    /// A bug of ours, contained.
    #[error("a thread of the loader ({stage}) ended by a bug of ours; report its message and make a new loader")]
    Broken {
        /// Which.
        stage: &'static str,
    },
}

/// A sample that could not be had: which, where, why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{id} ({object}, bytes {}+{}): {why}", extent.offset, extent.len)]
pub struct BadSample {
    /// Which.
    pub id: SampleId,
    /// Its object.
    pub object: Arc<str>,
    /// Its bytes there.
    pub extent: Extent,
    /// Why.
    pub why: Why,
}

/// Why a sample could not be had.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// Its object could not be opened or read.
    #[error("{0}")]
    Storage(Arc<Error>),
    /// Its object did not answer in time. Nothing says that it ever will.
    #[error("{what} took longer than the deadline of {} ms; look at what the object is stored on", after.as_millis())]
    Stuck {
        /// What was waited for.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// Its object is not what was indexed.
    #[error("the object changed since it was indexed: {what} was {indexed} and is {found}; index it again")]
    Changed {
        /// What changed.
        what: &'static str,
        /// In the index.
        indexed: String,
        /// Now.
        found: String,
    },
    /// Its bytes are not those that were indexed.
    #[error("the CRC-32C of its bytes is {computed:#010x}, and {stored:#010x} was indexed; the object is damaged")]
    Checksum {
        /// In the table.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// The table says that it lies outside of its object.
    #[error("it lies outside of its object of {object_len} bytes; the table is damaged or of another dataset")]
    OutOfObject {
        /// Bytes of the object.
        object_len: u64,
    },
    /// The table names an object that it does not have.
    #[error("it lies in object {object}, which the table does not have")]
    NoObject {
        /// The object's number.
        object: u32,
    },
    /// The table cannot be read.
    #[error("the table does not tell what its object is: {0}")]
    Table(Cause),
    /// It must be decoded, and batches land in device memory.
    #[error("it must be decoded ({format}), which is done in host memory; load into the host")]
    NoDecoder {
        /// What its object holds.
        format: Format,
    },
    /// Its block cannot be decoded.
    #[error("{0}")]
    Decode(DecodeError),
    /// Its block was to be read with an earlier batch, which was an error.
    #[error(
        "its block was to come with an earlier batch, which failed; the next batch with a sample of it reads it again"
    )]
    GivenUp,
    /// The block has fewer items.
    #[error("its block has {have} items, and it would be item {row}")]
    NoRow {
        /// Its place in the block.
        row: u32,
        /// Items there are.
        have: u32,
    },
    /// The map function returned an error.
    #[error("the map function failed: {0}")]
    Map(Cause),
    /// The map function or the decoder panicked.
    #[error("the {who} panicked: {message}")]
    Panicked {
        /// Which.
        who: &'static str,
        /// What it said.
        message: String,
    },
    /// Not as long as all others must be.
    #[error("it has {len} bytes, and every sample must have {want}; use another layout")]
    NotFixed {
        /// Its length in bytes.
        len: u64,
        /// The length of all.
        want: u64,
    },
    /// Longer than what samples are padded to.
    #[error("it has {len} bytes, and samples are padded to {max}; pad to more, or leave it out")]
    TooLong {
        /// Its length in bytes.
        len: u64,
        /// The limit.
        max: u64,
    },
}
