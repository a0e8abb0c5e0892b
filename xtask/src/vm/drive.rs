//! One guest from power-on to its end: starts QEMU, reads what the tests say, does what they ask for, and keeps the
//! time. Nothing of a guest outlives this module: QEMU is killed by its process group when time is up or xtask ends.
//!
//! ```text
//! serial 0 ──► console.log            the kernel's and the tests' free text
//! serial 1 ◄─► QEMU's stdin/stdout    lines of [`super::wire`], answers to requests
//! monitor  ◄─► a socket               device removal and return
//! ```
//!
//! A guest with a [wire](machine::Device::Wire) has a *mate* at its other end, a second guest of the same row that has no tests: it serves, and
//! ends with the first.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::boots::Boot;
use super::host::{Answer, Host};
use super::kernels::Prepared;
use super::machine;
use super::packages::{Root, at};
use super::spent;
use super::wire::{Line, Test};
use crate::Stop;
use crate::proc::Lifeline;

/// The status that `init` leaves for success, as QEMU's exit port turns it into an exit status: (42 << 1) | 1.
const SUCCESS: i32 = 85;
/// SIGILL, SIGABRT, SIGBUS, SIGFPE and SIGSEGV (signal(7)): what a program ends by that goes wrong by itself.
const CRASHES: [i32; 5] = [4, 6, 7, 8, 11];
/// Lines of the guest that may wait for us.
const LINES_MAX: usize = 10_000;
/// How long QEMU may take to end after its serial port closed.
const REAP_LIMIT: Duration = Duration::from_secs(10);
/// Longest sleep between two looks at a child that is ending.
const REAP_POLL: Duration = Duration::from_millis(20);

/// Where the kernel's console is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Console {
    Log,
    /// The terminal that xtask runs in; nobody listens on the second port.
    Terminal,
}

/// Which of two guests that a wire joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// The one with the tests; there may be no other.
    First,
    Mate,
}

impl Which {
    fn other(self) -> Which {
        if self == Which::First { Which::Mate } else { Which::First }
    }

    /// For names of files.
    fn suffix(self, phase: u32) -> String {
        if self == Which::First { phase.to_string() } else { "mate".to_string() }
    }
}

/// What one guest needs, besides its row.
#[derive(Debug)]
pub struct Guest<'a> {
    pub boot: &'a Boot,
    pub root: &'a Root,
    pub kernel: &'a Prepared,
    /// Disks, logs and the initial file system.
    pub dir: &'a Path,
    pub initramfs: PathBuf,
    pub phase: u32,
    /// Words for the kernel command line, for the test program.
    pub words: Vec<String>,
    pub deadline: Instant,
}

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its tests ended and all passed or were skipped.
    Success,
    /// Its tests ended and one failed, or the kernel stopped, or QEMU did: QEMU's exit status.
    Status(i32),
    /// QEMU itself ended by this signal, which nobody sent: its own fault.
    Crashed(i32),
    /// A test asked for the power to be cut.
    PowerCut,
    /// Killed, over its time.
    OverTime,
}

/// What a guest left.
#[derive(Debug)]
pub struct Outcome {
    pub ended: Ended,
    /// Seconds until `init` ran, by the guest's clock; none if it never did.
    pub up_s: Option<f64>,
    /// Seconds at the end of the tests, by the guest's clock.
    pub end_s: Option<f64>,
    pub wall: Duration,
    /// Processor seconds of QEMU, and of that of a mate.
    pub cpu_s: f64,
    pub tests: Vec<Test>,
    pub facts: Vec<(String, Value)>,
    pub notes: Vec<String>,
    pub kernel_log: Vec<String>,
    /// What the host did on request, with its answers.
    pub requests: Vec<String>,
}

impl Outcome {
    fn new() -> Outcome {
        Outcome {
            ended: Ended::OverTime,
            up_s: None,
            end_s: None,
            wall: Duration::ZERO,
            cpu_s: 0.0,
            tests: Vec::new(),
            facts: Vec::new(),
            notes: Vec::new(),
            kernel_log: Vec::new(),
            requests: Vec::new(),
        }
    }
}

/// Boots and waits for the end.
///
/// # Errors
/// QEMU cannot be started; a guest that fails is an [`Outcome`].
pub fn run(guest: &Guest<'_>) -> Result<Outcome, Stop> {
    let start = Instant::now();
    let sockets = Sockets::make(guest.boot.name)?;
    let wired = guest.boot.devices.contains(&machine::Device::Wire);
    let mate = wired.then(|| Qemu::start(guest, &sockets, Which::Mate)).transpose()?;
    let mut qemu = Qemu::start(guest, &sockets, Which::First)?;
    let mut host = Host::new(guest.boot.devices, guest.dir, sockets.monitor(Which::First));
    let mut outcome = Outcome::new();
    let ended = loop {
        let left = guest.deadline.saturating_duration_since(Instant::now());
        match qemu.lines.recv_timeout(left) {
            Ok(text) => {
                if let Some(ended) = take(&text, &mut outcome, &mut host, &mut qemu.stdin) {
                    break Some(ended);
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => break Some(Ended::OverTime),
            Err(mpsc::RecvTimeoutError::Disconnected) => break None,
        }
    };
    outcome.ended = match ended {
        Some(ended) => {
            qemu.kill();
            ended
        }
        None => qemu.reap(),
    };
    outcome.cpu_s = qemu.cpu_s;
    if let Some(mut mate) = mate {
        mate.kill();
        outcome.cpu_s += mate.cpu_s;
    }
    outcome.wall = start.elapsed();
    Ok(outcome)
}

/// Boots a guest with its console on our terminal and waits until somebody ends it: `poweroff -f` inside, since Ctrl-C
/// goes to the guest.
///
/// # Errors
/// QEMU cannot be started.
pub fn shell(guest: &Guest<'_>) -> Result<(), Stop> {
    let sockets = Sockets::make(guest.boot.name)?;
    let (program, mut args, modules) = guest.root.qemu();
    args.extend(arguments(guest, &sockets, (Which::First, Console::Terminal)));
    // Not a group of its own: it must stay in the terminal's foreground to read from it.
    let ended = Command::new(&program).args(&args).env(modules.0, modules.1).status();
    ended.map(drop).map_err(|error| cannot_start(&error))
}

/// Takes in one line; gives an end if the line asks for one.
fn take(text: &str, outcome: &mut Outcome, host: &mut Host<'_>, stdin: &mut ChildStdin) -> Option<Ended> {
    match Line::parse(text)? {
        Line::Up(seconds) => outcome.up_s = Some(seconds),
        Line::Begin(_) => {}
        Line::Test(test) => {
            let reason = if test.reason.is_empty() { String::new() } else { format!(": {}", test.reason) };
            println!("    {:<4} {} ({:.1} s){reason}", test.end.word(), test.name, test.seconds);
            outcome.tests.push(test);
        }
        Line::Fact { test, value } => outcome.facts.push((test, value)),
        Line::Note(note) => outcome.notes.push(note),
        Line::Log(line) => outcome.kernel_log.push(line),
        Line::End { seconds, .. } => outcome.end_s = Some(seconds),
        Line::Host { verb, argument } => {
            let answer = host.answer(&verb, &argument);
            outcome.requests.push(format!("{verb} {argument} -> {answer:?}"));
            let line = match answer {
                Answer::PowerCut => return Some(Ended::PowerCut),
                Answer::Ok(text) => format!("ok {text}\n"),
                Answer::No(reason) => format!("no {reason}\n"),
            };
            // A guest that is gone does not read; its end is seen on the other pipe.
            drop(stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()));
        }
    }
    None
}

struct Qemu {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    lifeline: Option<Lifeline>,
    /// What it took, as far as it was looked at.
    cpu_s: f64,
}

impl Qemu {
    fn start(guest: &Guest<'_>, sockets: &Sockets, which: Which) -> Result<Qemu, Stop> {
        let (program, mut args, modules) = guest.root.qemu();
        args.extend(arguments(guest, sockets, (which, Console::Log)));
        let log = guest.dir.join(format!("qemu-{}.log", which.suffix(guest.phase)));
        let stderr = std::fs::File::create(&log).map_err(|error| at(&log, "cannot make", &error))?;
        let mut child = Command::new(&program)
            .args(&args)
            .env(modules.0, modules.1)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|error| cannot_start(&error))?;
        let lifeline = Some(Lifeline::tie(child.id())?);
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Stop::new("QEMU has no pipes", "run it again"));
        };
        let (sender, lines) = mpsc::sync_channel(LINES_MAX);
        // Detached on purpose: it ends with the pipe, which closes when QEMU ends.
        std::thread::spawn(move || read_lines(stdout, &sender));
        Ok(Qemu { child, stdin, lines, lifeline, cpu_s: 0.0 })
    }

    fn kill(&mut self) {
        self.look_at_time();
        drop(self.child.kill());
        drop(self.child.wait());
        self.let_go();
    }

    /// The exit status of a QEMU that closed its output.
    fn reap(&mut self) -> Ended {
        let start = Instant::now();
        while start.elapsed() < REAP_LIMIT {
            self.look_at_time();
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    self.let_go();
                    return ended(status);
                }
                Ok(None) => std::thread::sleep(REAP_POLL),
                Err(_) => break,
            }
        }
        self.kill();
        Ended::Status(-1)
    }

    fn look_at_time(&mut self) {
        self.cpu_s = self.cpu_s.max(spent::cpu_s_of(self.child.id()));
    }

    fn let_go(&mut self) {
        if let Some(lifeline) = self.lifeline.take() {
            lifeline.cut();
        }
    }
}

/// What an exit status of QEMU means. Whatever kills it from outside does so by SIGKILL or SIGTERM.
fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(SUCCESS), _) => Ended::Success,
        (None, Some(signal)) if CRASHES.contains(&signal) => Ended::Crashed(signal),
        (code, _) => Ended::Status(code.unwrap_or(-1)),
    }
}

fn read_lines(stdout: ChildStdout, sender: &mpsc::SyncSender<String>) {
    let mut reader = BufReader::new(stdout);
    let mut raw = Vec::new();
    loop {
        raw.clear();
        match reader.read_until(b'\n', &mut raw) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if sender.send(String::from_utf8_lossy(&raw).trim_end().to_string()).is_err() {
            return;
        }
    }
}

fn cannot_start(error: &std::io::Error) -> Stop {
    Stop::new(format!("QEMU does not start ({error})"), "remove target/vm/root and try again")
}

fn arguments(guest: &Guest<'_>, sockets: &Sockets, (which, console): (Which, Console)) -> Vec<String> {
    let boot = guest.boot;
    let log = guest.dir.join(format!("console-{}.log", which.suffix(guest.phase)));
    let (console, wire) = match console {
        Console::Log => (format!("file,id=console,path={}", log.display()), "stdio,id=wire,signal=off"),
        Console::Terminal => ("stdio,id=console,signal=off".to_string(), "null,id=wire"),
    };
    let mut append = vec![
        // Without `no_timer_check` one boot in ten dies in early start-up on a loaded machine.
        "console=ttyS0 quiet panic=-1 no_timer_check".to_string(),
        format!("sw.suites={} sw.phase={}", boot.suites.join(","), guest.phase),
        match boot.iommu {
            machine::Iommu::On => "intel_iommu=on".to_string(),
            machine::Iommu::Off => "intel_iommu=off".to_string(),
        },
    ];
    append.push(boot.append.to_string());
    append.extend(machine::facts_for_guest(boot.devices));
    append.extend(guest.words.iter().cloned());
    if which == Which::Mate {
        append.push("sw.mate".to_string());
    }
    let fixed = "-accel tcg,thread=multi -cpu max -M q35 -smp 2 -nodefaults -no-user-config -no-reboot -display none \
                 -device isa-debug-exit,iobase=0x501,iosize=1 -serial chardev:console \
                 -serial chardev:wire -mon chardev=monitor,mode=control";
    let mut args: Vec<String> = vec![
        "-chardev".to_string(),
        console,
        "-chardev".to_string(),
        wire.to_string(),
        "-chardev".to_string(),
        format!("socket,id=monitor,path={},server=on,wait=off", sockets.monitor(which).display()),
    ];
    args.extend(fixed.split_whitespace().map(String::from));
    args.extend(["-m".to_string(), boot.memory_mib.to_string()]);
    args.extend(["-kernel".to_string(), guest.kernel.image.display().to_string()]);
    args.extend(["-initrd".to_string(), guest.initramfs.display().to_string()]);
    args.extend(["-append".to_string(), append.join(" ")]);
    if boot.devices.contains(&machine::Device::Wire) {
        args.extend(machine::wire(&sockets.wire(which), &sockets.wire(which.other())));
    }
    args.extend(machine::arguments(boot.devices, boot.iommu, guest.dir));
    args
}

/// A directory for sockets, with a short path: the address of a socket holds about a hundred bytes.
struct Sockets {
    dir: PathBuf,
}

impl Sockets {
    fn make(boot: &str) -> Result<Sockets, Stop> {
        let dir = std::env::temp_dir().join(format!("sw-vm-{}-{boot}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|error| at(&dir, "cannot make", &error))?;
        let sockets = Sockets { dir };
        for which in [Which::First, Which::Mate] {
            drop(std::fs::remove_file(sockets.monitor(which)));
            drop(std::fs::remove_file(sockets.wire(which)));
        }
        Ok(sockets)
    }

    fn monitor(&self, which: Which) -> PathBuf {
        self.dir.join(if which == Which::First { "monitor" } else { "monitor-mate" })
    }

    /// An end of the wire.
    fn wire(&self, which: Which) -> PathBuf {
        self.dir.join(if which == Which::First { "wire" } else { "wire-mate" })
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_of_qemu_is_told_from_a_failed_test_and_from_being_killed() {
        // Wait statuses: the exit status in the second byte, or the signal, 128 more with a core (wait(2)).
        let of = |raw| ended(ExitStatus::from_raw(raw));
        assert_eq!([of(85 << 8), of(3 << 8), of(0)], [Ended::Success, Ended::Status(3), Ended::Status(0)]);
        assert_eq!([of(11), of(6 | 128), of(9)], [Ended::Crashed(11), Ended::Crashed(6), Ended::Status(-1)]);
    }
}
