//! Benchmarks: the product and its peers doing the same job in turn, compared as ratios inside each round.
//!
//! ```text
//!  cases/*  ── which job, which sides, which goals
//!     │
//!  rounds  ── interleaves the sides ──► Subject: worker.rs (ours, in a fresh process) │ peers/* (fio, Python loaders)
//!     │            └─ backing, data: memory and page cache made equal before each run
//!  report (JSON, the truth) ──► markdown (a view) │ compare (two reports, with noise bounds)
//! ```
//!
//! Nothing here is a timed test: it runs on demand, as `cargo xtask bench`. `--size smoke` is for CI, where it shows that
//! every side runs and delivers the right bytes. A run ends with 1 if a side of the product failed; what is not on this
//! machine is no failure, and neither is a goal that was missed.

mod allocations;
mod backing;
mod bench;
mod cases;
mod compare;
mod data;
mod fault;
mod machine;
mod markdown;
mod ours;
mod peers;
mod report;
mod rounds;
mod samples;
mod usage;
mod worker;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Parser, Subcommand, ValueEnum};

use bench::{Bench, Size};
use fault::Fault;
use peers::{fio, python::Python};
use report::{Case, Report, SCHEMA};

/// Runs the product beside its peers and reports ratios.
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    after_help = "Examples:\n  cargo xtask bench all --size smoke\n  cargo xtask bench peers && cargo xtask bench load --rounds 5\n  cargo xtask bench compare before.json after.json"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// How large the jobs are.
    #[arg(long, global = true, value_enum, default_value = "real")]
    size: Size,
    /// How often each side of a case runs.
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seed of file contents, offsets and sampled bytes.
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// Where files to read and write are kept, on the storage to be measured.
    #[arg(long, global = true, default_value = "target/bench-data")]
    dir: PathBuf,
    /// Virtual environment of the Python peers.
    #[arg(long, global = true, default_value = "target/bench-venv")]
    venv: PathBuf,
    /// Folder of the peers' scripts; for a program that was carried to another machine.
    #[arg(long, global = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/peers"))]
    peers: PathBuf,
    /// Folder of the shared libraries that `cargo xtask bench` built; without it the one that this program lies in.
    #[arg(long, global = true)]
    libraries: Option<PathBuf>,
    /// Run only the cases of `cache`, `loader`, `restore`, `nvme-tcp` and `s3` whose name contains one of these, such as `16KiB-tar,1MiB`.
    #[arg(long, global = true)]
    only: Option<String>,
    /// Where to write the report: NAME.json and NAME.md, in a folder that is made if need be. Without it the Markdown goes to stdout.
    #[arg(long, global = true)]
    out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Engine without a device, beside fio's null engine and bare io_uring no-ops.
    Null,
    /// NVMe commands against a queue in memory, beside an io_uring loop of no-ops
    NvmeDriver,
    /// Ceph by its libraries, beside `rados` and `rbd`: fills a pool of the cluster that is there, so it runs by its name alone.
    Ceph,
    /// Our initiator of NVMe over TCP on our target, loopback, beside a bare stream, iperf3 and clients of NBD.
    NvmeTcp,
    /// Small samples of NVIDIA's AIStore, together and alone, beside its Python SDK; by its name alone.
    Ais,
    /// A file of Apache's HDFS, beside its own `hdfs dfs -cat`; by its name alone.
    Hdfs,
    /// A file behind nfs-ganesha, beside libnfs's nfs-cat; by its name alone.
    Nfs,
    /// The cache of remote objects: hits beside reads of a local file, misses and warming beside no cache; by its name alone.
    Cache,
    /// Ranges and small objects of S3, beside boto3, obstore, s3torchconnector and s5cmd.
    S3,
    /// 4 KiB random reads at depth 1, 32, 128, beside fio.
    Randread,
    /// The same on a zram device, the software's own cost; skipped without root or zram.
    RandreadZram,
    /// 1 MiB sequential reads and writes, beside fio.
    Seq,
    /// Odd offsets and lengths beside aligned ones.
    Odd,
    /// A sharded safetensors checkpoint, cold and warm, beside the loaders of PyPI.
    Load,
    /// A torch.distributed.checkpoint directory by one process, cold and warm, beside torch.
    LoadDcp,
    /// The same on four local ranks, written by another number of them: read once, beside torch.
    Restore,
    /// A checkpoint from CPU memory, flushed, beside torch, safetensors and DCP.
    Save,
    /// Shuffled epochs of 16 KiB and 1 MiB samples, cold, beside the loaders of PyPI.
    Loader,
    /// Accelerators that DLIO's unet3d keeps busy, scaled, with our loader and with its own.
    #[command(name = "dlio-unet3d")]
    DlioUnet3d,
    /// The same with resnet50.
    #[command(name = "dlio-resnet50")]
    DlioResnet50,
    /// System calls, allocations and lock waits per 1,000 operations.
    Counts,
    /// An engine made and closed.
    Openclose,
    /// A file from the page cache into GPU memory, beside pinned copies and KvikIO, and by cuFile programs; skipped without a GPU.
    Gpu,
    /// A call of the C interface beside the same call in Rust.
    CCall,
    /// Programs written for cuFile on our library, host memory, beside pread and KvikIO.
    Cufile,
    /// Seeks into the shuffled order of 10⁸ samples.
    Order,
    /// Indexes of 10⁸ samples opened, and searched; the first batch from one of 10⁶.
    Index,
    /// All of the above.
    All,
    /// Make the virtual environment of the Python peers (network, minutes, 3.5 GB).
    Peers,
    /// Build the Python package from this tree and install it beside the peers (minutes).
    Package,
    /// What changed between two reports. Ends with 1 if something got worse.
    Compare {
        /// The older report.
        before: PathBuf,
        /// The newer report.
        after: PathBuf,
    },
    /// One job in a process of its own; for the harness.
    #[command(hide = true)]
    Worker {
        /// The job.
        #[command(subcommand)]
        job: worker::Job,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Worker { job } => job.run().map(|()| ExitCode::SUCCESS),
        Verb::Compare { ref before, ref after } => compare_files(before, after),
        _ => measure(&cli),
    };
    result.unwrap_or_else(|fault| {
        eprintln!("bench: {}", fault.line());
        ExitCode::from(2)
    })
}

fn compare_files(before: &Path, after: &Path) -> Result<ExitCode, Fault> {
    let load = |path: &Path| -> Result<Report, Fault> {
        let text = fs::read_to_string(path).map_err(Fault::os("read", path))?;
        let report: Option<Report> = serde_json::from_str(&text).ok();
        report.filter(|report| report.schema == SCHEMA).ok_or_else(|| Fault::Missing {
            what: format!("{} is no report of this form ({SCHEMA})", path.display()),
            remedy: "make it with --out NAME",
        })
    };
    let (text, worse) = compare::render(&load(before)?, &load(after)?);
    print!("{text}");
    Ok(if worse == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn measure(cli: &Cli) -> Result<ExitCode, Fault> {
    fs::create_dir_all(&cli.dir).map_err(Fault::os("create", &cli.dir))?;
    // A report that cannot be written is known before the minutes that it takes.
    if let Some(folder) = cli.out.as_deref().and_then(Path::parent) {
        fs::create_dir_all(folder).map_err(Fault::os("create", folder))?;
    }
    let absolute = |path: &Path| std::path::absolute(path).map_err(Fault::os("find", path));
    let dir = absolute(&cli.dir)?;
    let scratch = Bench::folders(&dir)?;
    let python = Python::new(absolute(&cli.venv)?, absolute(&cli.peers)?, scratch.clone());
    let mut tell = |line: &str| eprintln!("{line}");
    let mut bench = Bench {
        size: cli.size,
        rounds: cli.rounds,
        seed: cli.seed,
        dir,
        scratch: scratch.clone(),
        libraries: absolute(&libraries(cli)?)?,
        python,
        only: cli.only.clone(),
        tell: &mut tell,
    };
    let result = run_verb(cli, &mut bench);
    fs::remove_dir_all(&scratch).map_err(Fault::os("remove", &scratch))?;
    result
}

fn libraries(cli: &Cli) -> Result<PathBuf, Fault> {
    if let Some(given) = &cli.libraries {
        return Ok(given.clone());
    }
    let mut program = std::env::current_exe().map_err(Fault::os("find", "our own program"))?;
    program.pop();
    Ok(program)
}

fn run_verb(cli: &Cli, bench: &mut Bench<'_>) -> Result<ExitCode, Fault> {
    if matches!(cli.verb, Verb::Peers) {
        bench.python.install(bench.tell)?;
        return Ok(ExitCode::SUCCESS);
    }
    if matches!(cli.verb, Verb::Package) {
        bench.python.install_package(bench.tell)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut report = empty_report(cli, bench);
    for run in runs(&cli.verb) {
        report.cases.extend(run(bench)?);
    }
    if let (true, Some(only)) = (report.cases.is_empty(), &cli.only) {
        let what = format!("a case whose name contains one of `{only}`");
        return Err(Fault::Missing { what, remedy: "names are in the reports under benches/records" });
    }
    let text = markdown::render(&report);
    match &cli.out {
        None => print!("{text}"),
        Some(out) => {
            let json = serde_json::to_string_pretty(&report).unwrap_or_default() + "\n";
            for (ending, text) in [("json", json), ("md", text)] {
                let path = out.with_extension(ending);
                fs::write(&path, text).map_err(Fault::os("write", &path))?;
            }
        }
    }
    let sides = report.cases.iter().flat_map(|case| case.sides.iter().map(move |side| (case, side)));
    let failed: Vec<_> = sides.filter(|(_, side)| side.failed).collect();
    for (case, side) in &failed {
        let why = side.absent.as_deref().unwrap_or_default();
        eprintln!("bench: {}: {} failed: {why}", case.name, side.name);
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

type Run = fn(&mut Bench<'_>) -> Result<Vec<Case>, Fault>;

fn runs(verb: &Verb) -> Vec<Run> {
    match verb {
        Verb::Null => vec![cases::null::run],
        Verb::Ceph => vec![cases::ceph::run],
        Verb::NvmeDriver => vec![cases::nvme_driver::run],
        Verb::NvmeTcp => vec![cases::nvme_tcp::run],
        Verb::Ais => vec![cases::ais::run],
        Verb::Hdfs => vec![cases::hdfs::run],
        Verb::Nfs => vec![cases::nfs::run],
        Verb::Cache => vec![cases::cache::run],
        Verb::S3 => vec![cases::s3::run],
        Verb::Randread => vec![cases::raw::randread],
        Verb::RandreadZram => vec![cases::raw::randread_zram],
        Verb::Seq => vec![cases::raw::seq],
        Verb::Odd => vec![cases::raw::odd],
        Verb::Load => vec![cases::load::run],
        Verb::LoadDcp => vec![cases::load_dcp::run],
        Verb::Restore => vec![cases::restore::run],
        Verb::Save => vec![cases::save::run],
        Verb::Loader => vec![cases::samples::run],
        Verb::DlioUnet3d => vec![cases::dlio::run_unet3d],
        Verb::DlioResnet50 => vec![cases::dlio::run_resnet50],
        Verb::Counts => vec![cases::counts::run],
        Verb::Openclose => vec![cases::openclose::run],
        Verb::Order => vec![cases::order::run],
        Verb::Index => vec![cases::index::run],
        Verb::CCall => vec![cases::c_call::run],
        Verb::Cufile => vec![cases::cufile::run],
        Verb::Gpu => vec![cases::gpu::run, cases::gpu_cufile::run],
        Verb::All => vec![
            cases::null::run,
            cases::nvme_driver::run,
            cases::nvme_tcp::run,
            cases::s3::run,
            cases::raw::randread,
            cases::raw::randread_zram,
            cases::raw::seq,
            cases::raw::odd,
            cases::load::run,
            cases::load_dcp::run,
            cases::restore::run,
            cases::save::run,
            cases::samples::run,
            cases::dlio::run_unet3d,
            cases::dlio::run_resnet50,
            cases::counts::run,
            cases::openclose::run,
            cases::c_call::run,
            cases::cufile::run,
            cases::gpu::run,
            cases::gpu_cufile::run,
            cases::order::run,
            cases::index::run,
        ],
        Verb::Peers | Verb::Package | Verb::Compare { .. } | Verb::Worker { .. } => Vec::new(),
    }
}

fn empty_report(cli: &Cli, bench: &Bench<'_>) -> Report {
    #[expect(clippy::disallowed_methods, reason = "a report carries its date")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut tools: BTreeMap<String, String> =
        fio::version().map(|version| ("fio".to_owned(), version)).into_iter().collect();
    if matches!(
        cli.verb,
        Verb::Load
            | Verb::LoadDcp
            | Verb::Restore
            | Verb::Save
            | Verb::Loader
            | Verb::S3
            | Verb::Gpu
            | Verb::Cufile
            | Verb::All
            | Verb::DlioUnet3d
            | Verb::DlioResnet50
    ) {
        let versions = bench.python.versions();
        tools.extend(versions.found);
        if let Ok(commit) = bench.python.package() {
            tools.insert("straightway of the environment".to_owned(), commit);
        }
        tools.extend(versions.absent.into_iter().map(|(name, why)| (name, format!("absent: {why}"))));
    }
    let size = cli.size.to_possible_value().map_or(cli.size.name().to_owned(), |value| value.get_name().to_owned());
    Report {
        schema: SCHEMA.to_owned(),
        started_unix_s: now,
        started: machine::utc(now),
        command: std::env::args().skip(1).collect(),
        commit: machine::commit(),
        seed: cli.seed,
        size,
        rounds: cli.rounds,
        machine: machine::facts(&bench.dir),
        tools,
        cases: Vec::new(),
    }
}
