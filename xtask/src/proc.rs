//! Child processes with a limit: none outlives its time budget, and none outlives xtask.
//!
//! Each child leads its own process group, so that a kill reaches its grandchildren (cargo → test binary → helper).
//! That takes the child out of the terminal's foreground group: Ctrl-C would end xtask and leave the child running.
//! Hence the *lifeline*: a small shell that reads from a pipe which only xtask holds. However xtask ends, the pipe
//! closes, and the shell kills the group.
//!
//! ```text
//! xtask ──stdout pipe◄── child (group leader) ── its children
//!   └────pipe──► lifeline: on end of file, kill -KILL -group
//! ```

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::{Place, Stop};

/// Longest wait between two looks at a running child.
const POLL_MAX: Duration = Duration::from_millis(50);
/// How long the reader of stdout may still drain after the child has ended. A grandchild that keeps the pipe open
/// beyond this is killed.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Lines of stdout kept for the caller; older ones are dropped.
const LINES_MAX: usize = 100_000;

/// A command to run under a limit.
#[derive(Debug)]
pub struct Job {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    dir: PathBuf,
    limit: Duration,
    echo: Echo,
    merged: bool,
}

/// Whether the child's stdout is shown while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// Passed on line by line.
    Shown,
    /// Only collected; stderr is dropped too.
    Hidden,
}

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Exit status 0 to 255, or 128 + the signal's number.
    Exit(i32),
    /// The limit passed and the process group was killed.
    OverLimit,
}

/// What a finished child leaves.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// Wall time.
    pub elapsed: Duration,
    /// Its stdout, line by line, without line ends.
    pub lines: Vec<String>,
}

impl Outcome {
    /// Exit status 0.
    pub fn ok(&self) -> bool {
        self.ended == Ended::Exit(0)
    }
}

impl Job {
    /// A program in the workspace root, with a limit of ten minutes until [`Job::limit`] says otherwise.
    pub fn program(place: &Place, program: &Path, args: &[String]) -> Job {
        Job {
            program: program.to_path_buf(),
            args: args.to_vec(),
            env: Vec::new(),
            dir: place.root.clone(),
            limit: Duration::from_secs(600),
            echo: Echo::Shown,
            merged: false,
        }
    }

    /// Cargo, as `PATH` finds it, so that `+nightly` works where rustup is installed.
    pub fn cargo(place: &Place, args: &[String]) -> Job {
        Job::program(place, Path::new("cargo"), args)
    }

    /// Sets one environment variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Job {
        self.env.push((name.to_string(), value.into()));
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: &Path) -> Job {
        self.dir = dir.to_path_buf();
        self
    }

    /// Sets the time budget.
    pub fn limit(mut self, limit: Duration) -> Job {
        self.limit = limit;
        self
    }

    /// Chooses whether output is shown.
    pub fn echo(mut self, echo: Echo) -> Job {
        self.echo = echo;
        self
    }

    /// Folds stderr into stdout, for programs that report on stderr what is to be read.
    pub fn merge_stderr(mut self) -> Job {
        self.merged = true;
        self
    }

    /// Runs with stdout passed through (stdin is empty: the child is not in the terminal's foreground group and may
    /// not read from it) and gives the exit status; over the limit is an error.
    pub fn watch(self) -> Result<i32, Stop> {
        let name = self.program.display().to_string();
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::inherit());
        let child = command.spawn().map_err(|error| cannot_start(&name, &error))?;
        match wait(child, None, self.limit, self.echo)?.ended {
            Ended::Exit(status) => Ok(status),
            Ended::OverLimit => Err(Stop::new(
                format!("{name} ran longer than {} s and was killed", self.limit.as_secs()),
                "see its last output",
            )),
        }
    }

    /// Runs and collects stdout.
    ///
    /// # Errors
    /// Only if the program cannot be started or waited for; a failing program is an [`Outcome`].
    pub fn run(self) -> Result<Outcome, Stop> {
        let name = self.program.display().to_string();
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        if self.echo == Echo::Hidden {
            command.stderr(Stdio::null());
        }
        let mut child = command.spawn().map_err(|error| cannot_start(&name, &error))?;
        let stdout = child.stdout.take();
        wait(child, stdout, self.limit, self.echo)
    }

    fn command(&self) -> Command {
        let mut command = if self.merged {
            let mut shell = Command::new("sh");
            shell.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(&self.program);
            shell
        } else {
            Command::new(&self.program)
        };
        command.args(&self.args).current_dir(&self.dir).process_group(0);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

fn cannot_start(name: &str, error: &std::io::Error) -> Stop {
    Stop::new(format!("cannot start {name} ({error})"), "install it or put it on PATH")
}

fn wait(mut child: Child, stdout: Option<ChildStdout>, limit: Duration, echo: Echo) -> Result<Outcome, Stop> {
    let start = Instant::now();
    let group = child.id();
    let lifeline = Lifeline::tie(group)?;
    let (done, drained) = mpsc::channel();
    if let Some(stdout) = stdout {
        // Detached on purpose: it ends with the pipe, and the bounded receive below does not wait for it for ever.
        std::thread::spawn(move || drop(done.send(read_lines(stdout, echo))));
    } else {
        drop(done);
    }
    let mut pause = Duration::from_millis(1);
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ended::Exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))),
            Ok(None) => {}
            Err(error) => {
                kill_group(group);
                return Err(Stop::new(format!("cannot wait for process {group} ({error})"), "run the step again"));
            }
        }
        if start.elapsed() >= limit {
            kill_group(group);
            // SIGKILL cannot be caught; what remains is the kernel's own clean-up, which this wait reaps.
            drop(child.wait());
            break Ended::OverLimit;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
    };
    let elapsed = start.elapsed();
    let lines = match drained.recv_timeout(DRAIN_LIMIT) {
        Ok(lines) => lines,
        Err(mpsc::RecvTimeoutError::Disconnected) => Vec::new(),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            kill_group(group);
            drained.recv_timeout(DRAIN_LIMIT).unwrap_or_default()
        }
    };
    lifeline.cut();
    Ok(Outcome { ended, elapsed, lines })
}

fn read_lines(stdout: ChildStdout, echo: Echo) -> Vec<String> {
    let mut lines = std::collections::VecDeque::new();
    let mut reader = BufReader::new(stdout);
    let mut raw = Vec::new();
    loop {
        raw.clear();
        match reader.read_until(b'\n', &mut raw) {
            Ok(0) | Err(_) => return lines.into(),
            Ok(_) => {}
        }
        if echo == Echo::Shown {
            // Our own stdout may be a closed pipe (`| head`); the step's verdict does not depend on it.
            drop(std::io::stdout().write_all(&raw));
        }
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(&raw).trim_end().to_string());
    }
}

/// `kill` is a shell built-in everywhere; calling it spares xtask its only unsafe line.
fn kill_group(group: u32) {
    drop(Command::new("sh").arg("-c").arg(format!("kill -KILL -{group}")).stderr(Stdio::null()).status());
}

/// Kills a process group when xtask ends before the group does. See the module's picture.
#[derive(Debug)]
pub struct Lifeline {
    shell: Child,
}

impl Lifeline {
    /// Binds the group to us.
    ///
    /// # Errors
    /// No shell can be started.
    pub fn tie(group: u32) -> Result<Lifeline, Stop> {
        let script = format!("read -r line; kill -KILL -{group}");
        Command::new("sh")
            .args(["-c", &script])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(|shell| Lifeline { shell })
            .map_err(|error| cannot_start("sh", &error))
    }

    /// The group has ended: the shell goes first, and only then the pipe, so that it kills nothing.
    pub fn cut(mut self) {
        drop(self.shell.kill());
        drop(self.shell.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Job {
        let here = std::env::temp_dir();
        let place = Place { root: here.clone(), target: here, profile: crate::Profile::Release };
        Job::program(&place, Path::new("sh"), &["-c".into(), script.into()]).echo(Echo::Hidden)
    }

    #[test]
    fn collects_lines_and_status() {
        let outcome = sh("echo one; echo two; exit 3").run().unwrap();
        assert_eq!(outcome.ended, Ended::Exit(3));
        assert_eq!(outcome.lines, ["one", "two"]);
    }

    #[test]
    fn stderr_can_be_read_with_stdout() {
        let outcome = sh("echo one >&2; echo two").merge_stderr().run().unwrap();
        assert_eq!(outcome.lines, ["one", "two"]);
        assert_eq!(sh("echo one >&2; echo two").run().unwrap().lines, ["two"]);
    }

    #[test]
    fn a_signal_is_not_success() {
        assert_eq!(sh("kill -TERM $$").run().unwrap().ended, Ended::Exit(128 + 15));
    }

    #[test]
    fn kills_the_whole_group_over_the_limit() {
        let start = Instant::now();
        let outcome = sh("sleep 60 & echo $!; wait").limit(Duration::from_millis(300)).run().unwrap();
        assert_eq!(outcome.ended, Ended::OverLimit);
        assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
        let grandchild = outcome.lines.first().unwrap().clone();
        // A killed process runs until it is scheduled once more, then it is a zombie until init reaps it.
        let state = || std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
        let gone = || state().is_empty() || state().contains(") Z");
        while !gone() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(gone(), "the grandchild still runs: {}", state());
    }

    #[test]
    fn a_grandchild_holding_stdout_does_not_hang_the_step() {
        let start = Instant::now();
        let outcome = sh("sleep 60 & echo parent done").run().unwrap();
        assert_eq!(outcome.ended, Ended::Exit(0));
        assert_eq!(outcome.lines, ["parent done"]);
        assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
    }

    #[test]
    fn the_lifeline_kills_the_group_when_its_pipe_closes() {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        let mut lifeline = Lifeline::tie(child.id()).unwrap();
        // What the end of xtask does: its side of the pipe is gone.
        drop(lifeline.shell.stdin.take());
        let start = Instant::now();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9));
        assert!(start.elapsed() < Duration::from_secs(20));
        lifeline.cut();
    }

    #[test]
    fn a_missing_program_names_itself() {
        let place =
            Place { root: std::env::temp_dir(), target: std::env::temp_dir(), profile: crate::Profile::Release };
        let stop = Job::program(&place, Path::new("no-such-program-here"), &[]).run().unwrap_err();
        assert!(stop.to_string().contains("no-such-program-here"), "{stop}");
    }
}
