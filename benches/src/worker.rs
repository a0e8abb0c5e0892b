//! Jobs in a process of their own, so that memory, faults and CPU of one run are of that run alone.
//!
//! The program starts itself again as `worker JOB …`; the job prints one line, a [`Sample`] as JSON. Peers in other
//! languages print the same line.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    backing,
    fault::Fault,
    ours::{
        self,
        disk::Disk,
        gpu::{Copies, Staged},
        nvme_transport::Until,
        reads::Reads,
        save::Save,
    },
    peers::{extents, nop, pread, s3_server, tcp},
    report::{Role, Sample},
    rounds::Subject,
    usage::{self, Finished},
};

const LIMIT: Duration = Duration::from_secs(300);

/// What a worker process does.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Job {
    /// Touches memory and ends.
    Back {
        /// Bytes to touch.
        bytes: u64,
    },
    /// Has the host back free memory, for a peer whose own job is made after the harness did so.
    Prepare {
        /// Bytes.
        bytes: u64,
    },
    /// A bare io_uring loop of no-ops.
    Nop {
        /// Entries per submission.
        #[arg(long)]
        batch: u32,
        /// Milliseconds to run.
        #[arg(long)]
        time_ms: u64,
    },
    /// Our engine on the null transport.
    Null {
        /// Operations per poll.
        #[arg(long)]
        batch: u32,
        /// Milliseconds to run.
        #[arg(long)]
        time_ms: u64,
    },
    /// The NVMe driver's queue on a queue in memory.
    Nvme {
        /// Commands per doorbell.
        #[arg(long)]
        batch: u32,
        /// Milliseconds to run.
        #[arg(long)]
        time_ms: u64,
    },
    /// The NVMe transport on a controller in memory.
    NvmeTransport {
        /// I/Os per doorbell.
        #[arg(long)]
        batch: u32,
        /// Milliseconds to run, unless a number of I/Os is given.
        #[arg(long, default_value_t = 0)]
        time_ms: u64,
        /// I/Os to run.
        #[arg(long)]
        ops: Option<u64>,
    },
    /// Our engine on a file, or on what an address names.
    Disk(Disk),
    /// Our target of NVMe over TCP; it gives no sample.
    NvmeTcpTarget(ours::nvme_tcp::Serve),
    /// A server of S3 with little to do; it gives no sample.
    S3Server(s3_server::S3Server),
    /// Our engine on objects of a server of S3.
    S3(ours::s3::S3Read),
    /// A bare stream over the loopback.
    TcpStream(tcp::Stream),
    /// Our loader on a checkpoint.
    Load {
        /// The index file.
        index: PathBuf,
        /// Seed of the sampled places.
        #[arg(long)]
        seed: u64,
        /// Loads once before the clock starts, and keeps that memory for the load that counts.
        #[arg(long)]
        again: bool,
    },
    /// Our saver from host memory.
    Save(Save),
    /// Our loader on a dataset.
    Samples {
        /// Where its samples are.
        list: PathBuf,
        /// Samples of a batch.
        #[arg(long)]
        batch: u32,
        /// Seed of the order.
        #[arg(long)]
        seed: u64,
        /// The order: full or blocks.
        #[arg(long, default_value = "full")]
        order: ours::samples::Order,
    },
    /// Bare random reads of the samples of a dataset.
    Extents {
        /// Where its samples are.
        list: PathBuf,
        /// Reads in flight.
        #[arg(long)]
        depth: u32,
        /// Seed of the order.
        #[arg(long)]
        seed: u64,
    },
    /// Our index of a dataset.
    Index(ours::index::Look),
    /// Our loader from its index to its first batch.
    FirstBatch(ours::index::First),
    /// Our engine from a file into the first GPU's memory.
    GpuRead(Staged),
    /// Copies from pinned memory to the first GPU.
    GpuCopy(Copies),
    /// A call of the C interface beside the same in Rust.
    CCall(ours::c_call::Calls),
    /// cuFileRead of our library.
    CufileRead {
        /// The library.
        #[arg(long)]
        library: PathBuf,
        /// What is read.
        #[command(flatten)]
        reads: Reads,
    },
    /// Batches of our library for cuFile.
    CufileBatch {
        /// The library.
        #[arg(long)]
        library: PathBuf,
        /// What is read.
        #[command(flatten)]
        reads: Reads,
    },
    /// Batches of the engine.
    EngineBatch(Reads),
    /// Driver, handle and memory of our library for cuFile.
    CufileSetUp(ours::cufile::SetUp),
    /// cuFileRead of any library into the memory of the first GPU.
    CufileGpu(ours::cufile::OnGpu),
    /// Plain reads.
    Pread {
        /// With the page cache or without.
        #[arg(long)]
        way: pread::Way,
        /// What is read.
        #[command(flatten)]
        reads: Reads,
    },
    /// The order of samples.
    Order(ours::order::Seeks),
    /// Engines made, used once and closed.
    OpenClose {
        /// File for the first read.
        file: PathBuf,
        /// How many.
        #[arg(long)]
        times: u32,
    },
}

impl Job {
    /// Does it and prints the sample.
    pub(crate) fn run(self) -> Result<(), Fault> {
        let sample = match self {
            Self::Back { bytes } => return backing::touch(bytes),
            Self::Prepare { bytes } => return backing::prepare(bytes),
            Self::Nop { batch, time_ms } => nop::run(batch, Duration::from_millis(time_ms))?,
            Self::Null { batch, time_ms } => ours::null::run(batch, Duration::from_millis(time_ms))?,
            Self::Nvme { batch, time_ms } => ours::nvme::run(batch, Duration::from_millis(time_ms))?,
            Self::NvmeTransport { batch, time_ms, ops } => {
                let until = ops.map_or(Until::Time(Duration::from_millis(time_ms)), Until::Ops);
                ours::nvme_transport::run(batch, until)?
            }
            Self::NvmeTcpTarget(job) => return job.run(),
            Self::S3Server(job) => return job.run(),
            Self::S3(job) => ours::s3::run(&job)?,
            Self::TcpStream(job) => tcp::stream(job)?,
            Self::Disk(disk) => ours::disk::run(&disk)?,
            Self::Load { index, seed, again } => {
                let memory = if again { ours::load::Memory::Kept } else { ours::load::Memory::Fresh };
                ours::load::run(&index, seed, memory)?
            }
            Self::Save(job) => ours::save::run(&job)?,
            Self::Samples { list, batch, seed, order } => ours::samples::run(&list, batch, seed, order)?,
            Self::Extents { list, depth, seed } => extents::run(&list, depth, seed)?,
            Self::Index(job) => ours::index::look(&job)?,
            Self::FirstBatch(job) => ours::index::first(&job)?,
            Self::GpuRead(job) => ours::gpu::read(&job)?,
            Self::GpuCopy(job) => ours::gpu::copies(&job)?,
            Self::CCall(job) => ours::c_call::run(&job)?,
            Self::CufileRead { library, reads } => ours::cufile::read(&library, &reads)?,
            Self::CufileBatch { library, reads } => ours::cufile::batch(&library, &reads)?,
            Self::EngineBatch(reads) => ours::cufile::engine_batch(&reads)?,
            Self::CufileSetUp(job) => ours::cufile::set_up(&job)?,
            Self::CufileGpu(job) => ours::cufile::read_on_gpu(&job)?,
            Self::Pread { way, reads } => pread::run(&reads, way)?,
            Self::Order(job) => ours::order::run(&job)?,
            Self::OpenClose { file, times } => ours::openclose::run(&file, times)?,
        };
        println!("{}", serde_json::to_string(&sample).unwrap_or_default());
        Ok(())
    }
}

/// A side that is a worker process of this program.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    /// Name of the side.
    pub name: String,
    /// Whose side.
    pub role: Role,
    /// Whether the caller's memory is its own.
    pub own_memory: Option<bool>,
    /// Arguments after `worker`.
    pub args: Vec<String>,
    /// Files that it reads.
    pub files: Vec<PathBuf>,
    /// Where its output is kept for a moment.
    pub scratch: PathBuf,
}

impl Subject for Worker {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn role(&self) -> Role {
        self.role
    }

    fn own_memory(&self) -> Option<bool> {
        self.own_memory
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        let me = std::env::current_exe().map_err(Fault::os("find", "our own program"))?;
        let mut command = Command::new(me);
        command.arg("worker").args(&self.args).envs(s3_server::KEYS);
        keep_log(&mut command, &self.scratch);
        parse(&self.name, &usage::run(command, &self.scratch, LIMIT)?)
    }
}

/// NVIDIA's library writes a log where it is called, unless told where.
pub(crate) fn keep_log(command: &mut Command, scratch: &Path) {
    command.env("CUFILE_LOGFILE_PATH", scratch.join("cufile.log"));
}

/// The sample on the last line that a program printed, with what its whole life cost.
pub(crate) fn parse(program: &str, finished: &Finished) -> Result<Sample, Fault> {
    let line = finished.stdout.lines().last().unwrap_or_default();
    let mut sample: Sample = serde_json::from_str(line)
        .map_err(|_| Fault::Output { program: program.to_owned(), words: line.chars().take(200).collect() })?;
    sample.process_cpu_s = finished.usage.user_s + finished.usage.sys_s;
    if sample.peak_rss_bytes == 0 {
        // What tells its own peak leaves out what it did after the job, such as reading back.
        sample.peak_rss_bytes = finished.usage.peak_rss_bytes;
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_line_is_the_result_whatever_a_library_said_before() {
        let usage = usage::Usage { user_s: 1.0, sys_s: 0.5, ..usage::Usage::default() };
        let finished = Finished { stdout: "a library greets\n{\"ops\": 4, \"seconds\": 0.5}\n".to_owned(), usage };
        let sample = parse("x", &finished).unwrap();
        assert_eq!((sample.ops, sample.process_cpu_s), (4, 1.5));
        let silent = Finished { stdout: String::new(), usage };
        assert!(parse("x", &silent).is_err());
    }
}
