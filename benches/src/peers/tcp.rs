//! Peers of NVMe over TCP: a bare stream on the loopback, iperf3, and clients of nbdkit.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::{
    fault::Fault,
    peers::{
        fio::Fio,
        served::{Client, Program, Served, per_gib},
    },
    report::{Role, Sample},
    rounds::Subject,
    usage::{self, Usage},
};

const LIMIT: Duration = Duration::from_secs(300);
const HOW_TO_GET_NBD: &str = "install nbdkit and libnbd (Debian: apt-get install nbdkit libnbd-bin)";
const HOW_TO_GET_IPERF: &str = "install iperf3 (Debian: apt-get install iperf3)";

/// Which way the bytes go, seen from the side that is metered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// To it.
    Read,
    /// From it.
    Write,
}

/// A bare stream: one thread sends memory, block after block, one receives into memory of the same size.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Stream {
    /// Which thread is metered.
    #[arg(long)]
    pub way: Way,
    /// Bytes of a block.
    #[arg(long)]
    pub block: usize,
    /// Blocks of the memory.
    #[arg(long)]
    pub depth: usize,
    /// Milliseconds.
    #[arg(long)]
    pub time_ms: u64,
}

/// What one end did.
struct EndOf {
    bytes: u64,
    usage: (Usage, Usage),
}

/// Runs it.
pub(crate) fn stream(job: Stream) -> Result<Sample, Fault> {
    let failed = || Fault::os("make a stream at", "127.0.0.1");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    let sender = TcpStream::connect(listener.local_addr().map_err(failed())?).map_err(failed())?;
    let (receiver, _) = listener.accept().map_err(failed())?;
    sender.set_nodelay(true).map_err(failed())?;
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    let (sent, received) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(sender, job, start));
        let received = receive(receiver, job);
        (sending.join(), received)
    });
    let seconds = start.elapsed().as_secs_f64();
    let received = received.map_err(Fault::os("receive at", "127.0.0.1"))?;
    let sent = match sent {
        Ok(sent) => sent.map_err(Fault::os("send at", "127.0.0.1"))?,
        Err(_) => return Err(Fault::Loader("the thread that sends panicked".to_owned())),
    };
    let (metered, other) = if job.way == Way::Read { (&received, &sent) } else { (&sent, &received) };
    let mut sample =
        Sample { ops: received.bytes / job.block as u64, bytes: received.bytes, seconds, ..Sample::default() };
    let mut beside = Sample::default();
    metered.usage.1.charge(metered.usage.0, &mut sample);
    other.usage.1.charge(other.usage.0, &mut beside);
    per_gib(&mut sample, beside.cpu_s());
    Ok(sample)
}

fn send(mut to: TcpStream, job: Stream, start: Instant) -> std::io::Result<EndOf> {
    let memory = vec![0x5A; job.block * job.depth];
    let (before, mut bytes) = (Usage::of_this_thread(), 0);
    while start.elapsed() < Duration::from_millis(job.time_ms) {
        for block in memory.chunks(job.block) {
            to.write_all(block)?;
            bytes += block.len() as u64;
        }
    }
    to.shutdown(Shutdown::Write)?;
    Ok(EndOf { bytes, usage: (before, Usage::of_this_thread()) })
}

fn receive(mut from: TcpStream, job: Stream) -> std::io::Result<EndOf> {
    let mut memory = vec![0; job.block * job.depth];
    let (before, mut bytes) = (Usage::of_this_thread(), 0);
    'all: loop {
        for block in memory.chunks_mut(job.block) {
            let mut rest = block;
            while !rest.is_empty() {
                let got = from.read(rest)?;
                if got == 0 {
                    break 'all;
                }
                bytes += got as u64;
                rest = rest.get_mut(got..).unwrap_or_default();
            }
        }
    }
    Ok(EndOf { bytes, usage: (before, Usage::of_this_thread()) })
}

#[derive(Deserialize)]
struct Iperf {
    end: IperfEnd,
}

#[derive(Deserialize)]
struct IperfEnd {
    sum_received: IperfSum,
}

#[derive(Deserialize)]
struct IperfSum {
    bytes: f64,
    seconds: f64,
}

/// One stream of iperf3, the metered end its client.
pub(crate) fn iperf3(way: Way, time_ms: u64, scratch: &Path) -> Served {
    let scratch = scratch.to_owned();
    let seconds = time_ms.div_ceil(1000);
    let client: Client = Box::new(move |port| {
        let mut command = Command::new("iperf3");
        command.args(["-c", "127.0.0.1", "-J", "-l", "128K", "-p", &port.to_string(), "-t", &seconds.to_string()]);
        command.args((way == Way::Read).then_some("-R"));
        let finished = usage::run(command, &scratch, LIMIT)?;
        iperf_sample(&finished)
    });
    let args = ["-s", "-B", "127.0.0.1", "-p", "PORT"].map(str::to_owned).into();
    let server = Program { path: "iperf3".to_owned(), args, remedy: HOW_TO_GET_IPERF };
    Served { name: "iperf3".to_owned(), role: Role::Peer, server, prepare: None, client }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of bytes, below 2^53")]
fn iperf_sample(finished: &usage::Finished) -> Result<Sample, Fault> {
    let told: Option<Iperf> = serde_json::from_str(&finished.stdout).ok();
    let Some(Iperf { end: IperfEnd { sum_received: IperfSum { bytes, seconds } } }) = told else {
        let words = finished.stdout.chars().take(200).collect();
        return Err(Fault::Output { program: "iperf3".to_owned(), words });
    };
    let bytes = bytes as u64;
    let (cpu_user_s, cpu_sys_s) = (finished.usage.user_s, finished.usage.sys_s);
    Ok(Sample { ops: bytes / (128 << 10), bytes, seconds, cpu_user_s, cpu_sys_s, ..Sample::default() })
}

/// A job of a client of nbdkit.
#[derive(Clone, Debug)]
pub(crate) struct Nbd {
    /// Bytes of the server's memory.
    pub bytes: u64,
    /// Which way they go.
    pub way: Way,
    /// Bytes of a request.
    pub block: u32,
    /// Requests in flight.
    pub depth: u32,
    /// Milliseconds.
    pub time_ms: u64,
    /// Seed of random offsets; none for rising ones.
    pub random: Option<u64>,
    /// Where outputs are kept for a moment.
    pub scratch: PathBuf,
}

impl Nbd {
    fn server(&self) -> Program {
        let args = ["-f", "-i", "127.0.0.1", "-p", "PORT", "memory", &self.bytes.to_string()];
        Program { path: "nbdkit".to_owned(), args: args.map(str::to_owned).into(), remedy: HOW_TO_GET_NBD }
    }

    fn fio(&self, rw: &str, more: &[String], port: u16) -> Result<Sample, Fault> {
        let mut args = [
            "--ioengine=nbd".to_owned(),
            format!("--uri=nbd://127.0.0.1:{port}"),
            format!("--rw={rw}"),
            format!("--size={}", self.bytes),
        ]
        .to_vec();
        args.extend_from_slice(more);
        let scratch = self.scratch.clone();
        Fio { name: "fio-nbd".to_owned(), role: Role::Peer, args, files: Vec::new(), scratch }.run()
    }

    /// Writes all of the memory: what was never written is read more cheaply.
    fn fill(&self) -> Client {
        let job = self.clone();
        Box::new(move |port| job.fio("write", &["--bs=1M".to_owned(), "--iodepth=4".to_owned()], port))
    }

    /// fio's own client of NBD (libnbd), one thread, one connection.
    pub(crate) fn by_fio(&self) -> Served {
        let job = self.clone();
        let client: Client = Box::new(move |port| {
            let rw = match (job.way, job.random) {
                (Way::Read, None) => "read",
                (Way::Write, None) => "write",
                (Way::Read, Some(_)) => "randread",
                (Way::Write, Some(_)) => "randwrite",
            };
            let more = [
                format!("--bs={}", job.block),
                format!("--iodepth={}", job.depth),
                "--time_based".to_owned(),
                format!("--runtime={}ms", job.time_ms),
                "--norandommap".to_owned(),
                format!("--randseed={}", job.random.unwrap_or(0)),
            ];
            job.fio(rw, &more, port)
        });
        let (server, prepare) = (self.server(), Some(self.fill()));
        Served { name: "fio-nbd".to_owned(), role: Role::Peer, server, prepare, client }
    }

    /// nbdcopy of all of the memory to nowhere, by one connection; its start and end are in the time.
    pub(crate) fn by_nbdcopy(&self) -> Served {
        let job = self.clone();
        let client: Client = Box::new(move |port| {
            let mut command = Command::new("nbdcopy");
            command.args(["--connections=1", "--threads=1", &format!("--requests={}", job.depth)]);
            command.args([&format!("--request-size={}", job.block), &format!("nbd://127.0.0.1:{port}"), "null:"]);
            #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
            let start = Instant::now();
            let finished = usage::run(command, &job.scratch, LIMIT)?;
            let (cpu_user_s, cpu_sys_s) = (finished.usage.user_s, finished.usage.sys_s);
            let (bytes, seconds) = (job.bytes, start.elapsed().as_secs_f64());
            let ops = bytes / u64::from(job.block);
            Ok(Sample { ops, bytes, seconds, cpu_user_s, cpu_sys_s, ..Sample::default() })
        });
        let (server, prepare) = (self.server(), Some(self.fill()));
        Served { name: "nbdcopy".to_owned(), role: Role::Peer, server, prepare, client }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_moves_whole_blocks_and_both_ends_are_metered() {
        for way in [Way::Read, Way::Write] {
            let sample = stream(Stream { way, block: 64 << 10, depth: 4, time_ms: 30 }).unwrap();
            assert!(sample.bytes > 0 && sample.bytes.is_multiple_of(64 << 10), "{}", sample.bytes);
            assert!(sample.more.contains_key("server_cpu_s_per_gib"));
        }
    }

    #[test]
    fn what_iperf3_says_is_read() {
        let stdout = r#"{"start": {}, "end": {"sum_received": {"start": 0, "seconds": 2.5, "bytes": 1048576, "sender": false}}}"#;
        let usage = Usage { user_s: 0.25, ..Usage::default() };
        let sample = iperf_sample(&usage::Finished { stdout: stdout.to_owned(), usage }).unwrap();
        assert_eq!((sample.bytes, sample.ops, sample.seconds, sample.cpu_user_s), (1 << 20, 8, 2.5, 0.25));
        assert!(iperf_sample(&usage::Finished { stdout: String::new(), usage }).is_err());
    }
}
