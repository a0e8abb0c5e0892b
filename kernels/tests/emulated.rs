//! The kernels' own sources, compiled as host C++ under the address and undefined-behaviour sanitizers, against their twins.
//!
//! Evidence for the logic of the kernels: every load and store is fenced. None for speed, or for how a device orders memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use sw_kernels::{Entry, Launch};
use sw_mem::{GpuVa, index};
use sw_testkit::{
    conformance::{
        CaseResult, End, fail,
        kernels::{self, Bed},
    },
    scratch::Scratch,
};

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `emulate/emulate.cpp` as a program in `dir`; `None`, with a word, without a compiler.
fn build(dir: &Path) -> Option<PathBuf> {
    let program = dir.join("emulate");
    let flags = "-std=c++17 -O1 -g -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-clobbered -DEMULATE_PROGRAM \
        -fsanitize=address,undefined -fno-sanitize-recover=all -Icuda -Iemulate emulate/emulate.cpp -o";
    let mut compile = Command::new("g++");
    compile.current_dir(package()).args(flags.split_whitespace()).arg(&program);
    match compile.output() {
        Err(error) => {
            println!("skip: g++ is not there ({error}); install g++");
            None
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "the kernels do not compile as C++:\n{said}");
            Some(program)
        }
    }
}

/// The program, as a device.
struct Emulated {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Emulated {
    /// `said` is where the words of the sanitizers go.
    fn start(program: &Path, said: Stdio) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(said);
        let mut child = command.spawn().expect("the program starts");
        let to = child.stdin.take().expect("a pipe");
        let from = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, to, from }
    }

    fn say(&mut self, words: &str) -> CaseResult {
        writeln!(self.to, "{words}").or_else(|error| fail(format!("{words}: {error}; see what the sanitizer says")))
    }

    fn answer(&mut self) -> Result<String, End> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(1..) => Ok(line.trim_end().to_owned()),
            other => fail(format!("no answer ({other:?}); see what the sanitizer says")),
        }
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let _over = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Bed for Emulated {
    fn name(&self) -> String {
        "the sources as host C++ under sanitizers".to_owned()
    }

    fn allocate(&mut self, offset: u64, len: u64) -> Result<GpuVa, End> {
        self.say(&format!("alloc {offset} {len}"))?;
        let line = self.answer()?;
        line.parse().map(GpuVa::new).or_else(|_| fail(line))
    }

    fn write(&mut self, at: GpuVa, bytes: &[u8]) -> CaseResult {
        self.say(&format!("write {} {}", at.raw(), bytes.len()))?;
        self.to.write_all(bytes).or_else(|error| fail(error.to_string()))
    }

    fn read(&mut self, at: GpuVa, len: u64) -> Result<Vec<u8>, End> {
        self.say(&format!("read {} {len}", at.raw()))?;
        let mut bytes = vec![0; index(len)];
        self.from.read_exact(&mut bytes).or_else(|error| fail(error.to_string()))?;
        Ok(bytes)
    }

    fn launch(&mut self, launch: &Launch) -> CaseResult {
        let arguments: Vec<String> = launch.arguments().iter().map(u64::to_string).collect();
        let (entry, blocks, threads) = (launch.entry().name(), launch.blocks(), launch.threads());
        self.say(&format!("launch {entry} {blocks} {threads} {}", arguments.join(" ")))?;
        match self.answer()?.as_str() {
            "ok" => Ok(()),
            other => fail(format!("{entry}: {other}")),
        }
    }

    fn free(&mut self) -> CaseResult {
        self.say("free")
    }
}

/// One test: the compiler takes most of its time.
#[test]
fn kernels_do_what_their_twins_do_and_fences_hold() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "kernels");
    let Some(program) = build(scratch.root()) else { return };
    kernels::run(&mut Emulated::start(&program, Stdio::inherit())).assert_green(&[]);
    a_kernel_that_reads_beside_its_range_is_stopped(&program);
}

/// A kernel that is told a byte too many.
#[expect(clippy::unwrap_used, reason = "a part of a test")]
fn a_kernel_that_reads_beside_its_range_is_stopped(program: &Path) {
    for (entry, len) in [(Entry::Move, 64), (Entry::Crc64Sum, 64)] {
        let mut device = Emulated::start(program, Stdio::null());
        let at = device.allocate(0, len).unwrap();
        let target = device.allocate(0, 256).unwrap();
        let job: Vec<u8> = match entry {
            Entry::Move => [at.raw(), target.raw(), len + 1, 0],
            _ => [at.raw(), len + 1, 0, 0],
        }
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
        let jobs = device.allocate(0, 32).unwrap();
        device.write(jobs, &job).unwrap();
        let last = if entry == Entry::Move { " 1 1" } else { " 1 64 1" };
        device.say(&format!("launch {} 1 {} {}{last}", entry.name(), entry.threads(), jobs.raw())).unwrap();
        assert!(device.answer().is_err(), "{entry:?} read on and nobody saw");
    }
}
