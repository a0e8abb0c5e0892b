//! `cargo xtask peers`: other people's NVMe/TCP programs in user space, at the other end of ours, without root.
//!
//! ```text
//!   straightway cp, cat ──► nvmed (go-nvme, Go)            bytes compared with the file that it offers
//!   nvmf-check (libnvmf, C) ──► straightway target         writes, reads back and compares; its image is checked here
//!   pynvmeof (Python) ──► straightway target               the same, with a log of its own
//! ```
//!
//! Each is one commit of a repository, whose name is its hash, fetched into `target/peers`. No registry has them. Where a repository cannot
//! be reached its peer is skipped with the reason. None is linked or copied: they are programs of their own, under their own licences.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::proc::{Echo, Ended, Job};
use crate::{Place, Stop};

/// A repository at one commit.
struct Peer {
    owner: &'static str,
    name: &'static str,
    commit: &'static str,
    run: fn(&Bench<'_>) -> Result<(), Stop>,
}

const PEERS: [Peer; 3] = [
    Peer { owner: "thirdmartini", name: "go-nvme", commit: "4c0531339161c6e509a2553819b384877c2fd17f", run: go_nvme },
    Peer { owner: "bytedance", name: "libnvmf", commit: "c4003cd5e4a538fd95176f6a381ec4fb1281e109", run: libnvmf },
    Peer {
        owner: "truenas",
        name: "truenas_pynvmeof_client",
        commit: "72a79ac8a9bb9232433ab05ebf3f96e0cebd300d",
        run: pynvmeof,
    },
];
/// Names a folder with clones of the repositories, where the network does not reach them.
const CLONES_VARIABLE: &str = "STRAIGHTWAY_PEERS";
const FETCH_LIMIT: Duration = Duration::from_secs(60);
const BUILD_LIMIT: Duration = Duration::from_secs(600);
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// How long nvmf-check, which has no end of its own, writes and compares.
const CHECK_TIME: Duration = Duration::from_secs(3);
const UP_LIMIT: Duration = Duration::from_secs(10);
const NAMESPACE_BYTES: usize = 8 << 20;
const BLOCK: usize = 4096;
const OURS: &str = "nqn.2026-11.io.straightway:target";
const THEIRS: &str = "nqn.2020-20.com.thirdmartini.nvme:file";
/// Where nvmed listens: its port is fixed, so that it has an address of the loopback of its own.
const THEIR_ADDRESS: &str = "127.77.0.1";
const NVMED_TARGETS: &str = "targets:
 - name: \"nqn.2020-20.com.thirdmartini.nvme:file\"
   uuid: \"39e92c9c-f486-41e2-812b-4ebbc56665ee\"
   type: \"file\"
   modelname: \"ThirdMartini NVME\"
   firmwareversion: \"1.0\"
   serialnumber: \"0000000003\"
   options:
     image: \"namespace.img\"
";

struct Bench<'a> {
    place: &'a Place,
    /// The clone.
    dir: PathBuf,
    /// For files of this run.
    work: PathBuf,
    straightway: &'a Path,
}

/// Runs the command.
///
/// # Errors
/// Our own program does not build; a peer that fails is an exit status.
pub fn run(place: &Place) -> Result<ExitCode, Stop> {
    let straightway = place.build("straightway", BUILD_LIMIT * 3)?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for peer in &PEERS {
        let base = place.root.join("target/peers");
        let bench = Bench {
            place,
            dir: base.join(peer.name),
            work: base.join(format!("{}.run", peer.name)),
            straightway: &straightway,
        };
        if let Err(stop) = fetch(&bench, peer) {
            skipped += 1;
            println!("skipped peer {}: {}", peer.name, stop.what);
            continue;
        }
        let start = Instant::now();
        let fresh = || {
            // What is left of an earlier run; none is as good.
            let _ = std::fs::remove_dir_all(&bench.work);
            std::fs::create_dir_all(&bench.work).map_err(|error| wrong(&bench.work, &error))
        };
        match fresh().and_then(|()| (peer.run)(&bench)) {
            Ok(()) => {
                passed += 1;
                println!("peer {} ok, {:.1} s", peer.name, start.elapsed().as_secs_f64());
            }
            Err(stop) => {
                failed += 1;
                println!("peer {} FAILED: {stop}", peer.name);
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; {skipped} ignored");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn wrong(path: &Path, error: &std::io::Error) -> Stop {
    Stop::new(format!("{}: {error}", path.display()), "free some space below target/peers, or remove it")
}

/// Has the commit in the bench's folder.
fn fetch(bench: &Bench<'_>, peer: &Peer) -> Result<(), Stop> {
    let from = match std::env::var(CLONES_VARIABLE) {
        Ok(folder) => format!("{folder}/{}", peer.name),
        Err(_) => format!("https://github.com/{}/{}", peer.owner, peer.name),
    };
    std::fs::create_dir_all(&bench.dir).map_err(|error| wrong(&bench.dir, &error))?;
    let git = |args: &[&str]| quiet(bench, "git", args, FETCH_LIMIT);
    if git(&["cat-file", "-e", &format!("{}^{{commit}}", peer.commit)]).is_err() {
        git(&["init", "-q"])?;
        git(&["-c", "credential.helper=", "fetch", "-q", "--depth", "1", &from, peer.commit])
            .map_err(|_| Stop::new(format!("{from} cannot be reached"), ""))?;
    }
    // A hash that fits is the commit, whoever gave it.
    git(&["checkout", "-q", "--force", peer.commit])
}

/// Runs a program in the clone, quietly.
fn quiet(bench: &Bench<'_>, program: &str, args: &[&str], limit: Duration) -> Result<(), Stop> {
    let words: Vec<String> = args.iter().map(|arg| (*arg).to_string()).collect();
    let job = Job::program(bench.place, Path::new(program), &words).dir(&bench.dir);
    // Git asks nobody for a name, and looks at no repository around this one.
    let job = job.env("GIT_TERMINAL_PROMPT", "0").env("GIT_CEILING_DIRECTORIES", bench.dir.display().to_string());
    let outcome = job.merge_stderr().echo(Echo::Hidden).limit(limit).run()?;
    if outcome.ok() {
        return Ok(());
    }
    let last: Vec<&str> = outcome.lines.iter().rev().take(3).map(String::as_str).collect();
    Err(Stop::new(
        format!("{program} {} ({:?}): {}", args.join(" "), outcome.ended, last.join(" | ")),
        "see its output",
    ))
}

/// A process that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Our target over a file of zeroes: the process, its port, the file.
fn our_target(bench: &Bench<'_>) -> Result<(Running, u16, PathBuf), Stop> {
    let image = bench.work.join("namespace.img");
    let made = std::fs::File::create(&image).and_then(|file| file.set_len(NAMESPACE_BYTES as u64));
    made.map_err(|error| wrong(&image, &error))?;
    let mut command = Command::new(bench.straightway);
    command.arg("target").arg(&image).args(["--listen", "127.0.0.1:0"]);
    let child = command.stdout(Stdio::piped()).spawn().map_err(|error| wrong(bench.straightway, &error))?;
    let mut running = Running(child);
    let mut line = String::new();
    let said = running.0.stdout.take().map(|said| BufReader::new(said).read_line(&mut line));
    // listening at 127.0.0.1:PORT, serial …
    let port = line.split([':', ',']).nth(1).and_then(|port| port.parse().ok());
    match (said, port) {
        (Some(Ok(_)), Some(port)) => Ok((running, port, image)),
        _ => Err(Stop::new(format!("our target says {line:?}"), "run it by hand")),
    }
}

fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(len).collect()
}

/// Ours at its target: read what it has, write, read again, compare with its file.
fn go_nvme(bench: &Bench<'_>) -> Result<(), Stop> {
    let program = bench.work.join("nvmed");
    quiet(bench, "go", &["build", "-o", &program.display().to_string(), "./cmd/nvmed"], BUILD_LIMIT)?;
    let (image, source) = (bench.work.join("namespace.img"), bench.work.join("content"));
    let before = pattern(NAMESPACE_BYTES);
    let content: Vec<u8> = pattern(NAMESPACE_BYTES + 1).split_off(1).into_iter().take(5 * BLOCK * 100).collect();
    let write = |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).map_err(|error| wrong(path, &error));
    write(&image, &before)?;
    write(&source, &content)?;
    write(&bench.work.join("targets.yaml"), NVMED_TARGETS.as_bytes())?;
    let mut command = Command::new(&program);
    command.args(["-bind", THEIR_ADDRESS]).current_dir(&bench.work).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = Running(command.spawn().map_err(|error| wrong(&program, &error))?);
    let start = Instant::now();
    while TcpStream::connect((THEIR_ADDRESS, 4420)).is_err() {
        if start.elapsed() > UP_LIMIT {
            return Err(Stop::new("nvmed does not listen", "run it by hand"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let uri = format!("nvme+tcp://{THEIR_ADDRESS}/{THEIRS}?nsid=1");
    let read = |part: &str| {
        let output = Command::new(bench.straightway).args(["cat", &format!("{uri}{part}")]).output();
        let output = output.map_err(|error| wrong(bench.straightway, &error))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(output.stdout) } else { Err(Stop::new(said, "see the target's log")) }
    };
    same("what it offers", &read("")?[..], &before[..])?;
    same("an odd part of it", &read("&offset=513&len=70001")?[..], &before[513..][..70001])?;
    let to = format!("{uri}&serial=0000000003&offset=1MiB");
    let args = ["cp".to_string(), source.display().to_string(), to];
    let copied = Job::program(bench.place, bench.straightway, &args).limit(RUN_LIMIT).watch()?;
    same("the status of cp", &copied, &0)?;
    let mut after = before;
    after[1 << 20..][..content.len()].copy_from_slice(&content);
    same("its file", &std::fs::read(&image).map_err(|error| wrong(&image, &error))?, &after)?;
    same("what it offers then", &read("")?, &after)
}

/// Its check of an initiator, at our target. It writes letters: block `n` of the namespace is of the `n`-th letter, or was not written.
fn libnvmf(bench: &Bench<'_>) -> Result<(), Stop> {
    quiet(bench, "make", &["-C", "lib"], BUILD_LIMIT)?;
    quiet(bench, "make", &["-C", "examples", "check"], BUILD_LIMIT)?;
    let (_target, port, image) = our_target(bench)?;
    let uri = format!("nvmf-tcp://127.0.0.1:{port}/{OURS}/1");
    let check = Job::program(bench.place, &bench.dir.join("examples/nvmf-check"), &[uri]);
    let outcome = check.merge_stderr().echo(Echo::Hidden).limit(CHECK_TIME).run()?;
    let last = outcome.lines.iter().rev().take(3).cloned().collect::<Vec<_>>().join(" | ");
    if outcome.ended != Ended::OverLimit {
        return Err(Stop::new(format!("nvmf-check ended by itself: {:?}: {last}", outcome.ended), "run it by hand"));
    }
    let bytes = std::fs::read(&image).map_err(|error| wrong(&image, &error))?;
    let mut written = 0;
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        let letter = b'A' + u8::try_from(number % 26).unwrap_or(0);
        let is_its = block.iter().rev().skip(1).all(|byte| *byte == letter) && block.last() == Some(&b'\n');
        let is_untouched = block.iter().all(|byte| *byte == 0);
        same(&format!("block {number}"), &(is_its || is_untouched), &true)?;
        written += usize::from(is_its);
    }
    println!("    nvmf-check wrote {written} of {} blocks", bytes.len() / BLOCK);
    same("that most blocks were written", &(written > bytes.len() / BLOCK / 2), &true)
}

/// A Python program over its client, at our target.
fn pynvmeof(bench: &Bench<'_>) -> Result<(), Stop> {
    let (_target, port, image) = our_target(bench)?;
    let script = bench.place.root.join("hwtests/peers/pynvmeof.py").display().to_string();
    let (port, log) = (port.to_string(), bench.work.join("written"));
    let args = [script, port, OURS.to_string(), log.display().to_string()];
    let job = Job::program(bench.place, Path::new("python3"), &args);
    let job = job.env("PYTHONPATH", bench.dir.join("src").display().to_string());
    let outcome = job.merge_stderr().echo(Echo::Hidden).limit(RUN_LIMIT).run()?;
    let last = outcome.lines.iter().rev().take(3).cloned().collect::<Vec<_>>().join(" | ");
    if !outcome.ok() {
        return Err(Stop::new(format!("pynvmeof.py ({:?}): {last}", outcome.ended), "run it by hand"));
    }
    let expected = std::fs::read(&log).map_err(|error| wrong(&log, &error))?;
    let bytes = std::fs::read(&image).map_err(|error| wrong(&image, &error))?;
    same("that it wrote something", &expected.iter().any(|byte| *byte != 0), &true)?;
    same("our file", &bytes, &expected)
}

fn same<T: PartialEq + ?Sized>(what: &str, got: &T, expected: &T) -> Result<(), Stop> {
    if got == expected {
        Ok(())
    } else {
        Err(Stop::new(format!("{what}: another one than expected"), "see xtask/src/peers.rs"))
    }
}
