//! C and C++ programs: compiled with every warning an error, run against the shared library.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use sw_testkit::scratch::Scratch;

use crate::{library, package, scratch};

/// A compiler, with what it is called with.
#[derive(Clone)]
pub(crate) struct Compiler {
    name: &'static str,
    flags: Vec<String>,
}

impl Compiler {
    /// `cc`.
    pub(crate) fn c() -> Self {
        Self { name: "cc", flags: words("-std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -Wpedantic -g") }
    }

    /// `c++`.
    pub(crate) fn cpp() -> Self {
        Self { name: "c++", flags: words("-std=c++17 -Wall -Wextra -Werror -Wpedantic -g") }
    }

    /// The same with address sanitizer, if the compiler has it.
    fn sanitized(&self) -> Option<Self> {
        static HAS: OnceLock<bool> = OnceLock::new();
        let has = *HAS.get_or_init(|| {
            let source = scratch().join("sanitized.c");
            std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
            let program = scratch().join("sanitized");
            let built = Command::new("cc").arg("-fsanitize=address").arg(&source).arg("-o").arg(&program).output();
            built.is_ok_and(|output| output.status.success())
                && Command::new(program).output().is_ok_and(|output| output.status.success())
        });
        let mut flags = self.flags.clone();
        flags.push("-fsanitize=address,undefined".to_owned());
        flags.push("-fno-sanitize-recover=all".to_owned());
        has.then_some(Self { flags, ..self.clone() })
    }

    /// Compiles and links a program. None, with a word, without a compiler.
    pub(crate) fn compile(&self, source: &Path, name: &str) -> Option<Program> {
        let program = scratch().join(format!("{name}-{}", std::process::id()));
        let mut command = Command::new(self.name);
        command.args(&self.flags).arg("-I").arg(package().join("include")).arg(source);
        command.arg("-L").arg(library::staged()).args(["-lstraightway", "-pthread", "-ldl", "-o"]).arg(&program);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => {
                println!("skip: {} is not there ({error}); install gcc and g++", self.name);
                return None;
            }
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}:\n{said}");
        Some(Program(program))
    }
}

pub(crate) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A program; its file goes with it.
pub(crate) struct Program(PathBuf);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Program {
    /// Runs it; what it wrote.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        self.run_with(args, &[])
    }

    /// Runs it with variables of its environment.
    fn run_with(&self, args: &[&str], settings: &[(&str, &str)]) -> String {
        let mut command = Command::new(&self.0);
        command.args(args).env("LD_LIBRARY_PATH", library::staged()).envs(settings.iter().copied());
        // What the library keeps for the process's life, and threads that an exit ends, are no leaks of the program's.
        command.env("ASAN_OPTIONS", "detect_leaks=0");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?} ended with {}:\n{said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Compiles a program with sanitizers where the compiler has them, and runs it with a file of 1 MiB; what it wrote. Plain ones are
/// built from the installation.
fn run_one(compiler: &Compiler, source: &str, more: &[&str]) -> Option<String> {
    let sanitized = compiler.sanitized();
    if sanitized.is_none() {
        println!("skip {source} under sanitizers: the compiler has none");
    }
    run_as(sanitized.as_ref().unwrap_or(compiler), source, more)
}

fn run_as(compiler: &Compiler, source: &str, more: &[&str]) -> Option<String> {
    let name = source.replace(['/', '.'], "-");
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), &name);
    let file = file_of(&scratch);
    let args: Vec<&str> = std::iter::once(file.as_str()).chain(more.iter().copied()).collect();
    compiler
        .compile(&package().join(source), &format!("{name}-{}", compiler.flags.len()))
        .map(|program| program.run(&args))
}

/// A file of 1 MiB with the bytes that `check.h` expects.
pub(crate) fn file_of(scratch: &Scratch) -> String {
    let bytes: Vec<u8> = (0..1_usize << 20).map(|at| (at * 31 + at / 4093).to_le_bytes()[0]).collect();
    std::fs::write(scratch.path("file"), bytes).unwrap();
    scratch.text("file")
}

#[test]
fn misuse_is_a_clean_error() {
    run_one(&Compiler::c(), "tests/c/programs/contract.c", &[]);
}

#[test]
fn bytes_go_where_they_belong_and_tell_their_way() {
    run_one(&Compiler::c(), "tests/c/programs/transfer.c", &[]);
}

#[test]
fn what_is_started_ends_once() {
    run_one(&Compiler::c(), "tests/c/programs/started.c", &[]);
    // At its own speed, other orders of events come up.
    run_as(&Compiler::c(), "tests/c/programs/started.c", &[]);
}

#[test]
fn a_process_may_fork_log_load_and_leave() {
    let library = library::built();
    run_one(&Compiler::c(), "tests/c/programs/life.c", &[library.to_str().unwrap()]);
}

#[test]
fn the_example_that_reads_tells_the_way() {
    if let Some(said) = run_one(&Compiler::c(), "examples/read.c", &[]) {
        assert!(said.starts_with("1048576 bytes by "), "{said}");
        assert!(said.contains(", crc64 "), "{said}");
    }
}

#[test]
fn the_example_that_overlaps_reads_all() {
    if let Some(said) = run_one(&Compiler::c(), "examples/overlap.c", &[]) {
        assert_eq!(said, "1048576 bytes\n");
    }
}

#[test]
fn the_example_with_futures_reads_all() {
    if let Some(said) = run_one(&Compiler::cpp(), "examples/futures.cpp", &[]) {
        assert!(said.ends_with("1048576 bytes\n"), "{said}");
    }
}

/// A program of CUDA, against the official headers and, here, the stand-in driver.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test asks where the headers are")]
fn the_example_on_a_stream_reads_all_in_its_order() {
    let include = std::env::var_os("STRAIGHTWAY_CUDA_INCLUDE").map(PathBuf::from);
    let Some(include) = include.filter(|dir| dir.join("cuda.h").is_file()) else {
        println!("skip: no cuda.h; name its folder in STRAIGHTWAY_CUDA_INCLUDE");
        return;
    };
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "stream");
    let (file, driver) = (file_of(&scratch), scratch.path("driver"));
    std::fs::create_dir_all(&driver).unwrap();
    standin_libcuda::harness::install(&driver, &[]).unwrap();
    let mut compiler = Compiler::c();
    let driver = driver.display().to_string();
    compiler.flags.push(format!("-isystem{}", include.display()));
    compiler.flags.extend(words(&format!("-Wl,--no-as-needed -L{driver} -l:libcuda.so.1")));
    let Some(program) = compiler.compile(&package().join("examples/stream.c"), "stream") else { return };
    let sum: u64 = std::fs::read(&file).unwrap().into_iter().map(u64::from).sum();
    let path = format!("{}:{driver}", library::staged().display());
    for mode in ["lazy", "worker"] {
        let said = program.run_with(&[&file], &[("STANDIN_MODE", mode), ("LD_LIBRARY_PATH", &path)]);
        assert_eq!(said, format!("sum {sum}\n1048576 bytes\n"));
    }
}

#[test]
fn the_classes_of_cpp_hold_what_they_promise() {
    run_one(&Compiler::cpp(), "tests/c/programs/classes.cpp", &[]);
}

#[test]
fn memory_and_streams_of_a_gpu_are_used_in_order() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "gpu");
    let file = file_of(&scratch);
    let driver = scratch.path("driver");
    std::fs::create_dir_all(&driver).unwrap();
    standin_libcuda::harness::install(&driver, &[]).unwrap();
    let driver = driver.join("libcuda.so.1");
    let Some(program) = Compiler::c().compile(&package().join("tests/c/programs/gpu.c"), "gpu") else { return };
    // In mode lazy nothing runs that nobody waits for, so an order that is left to luck shows.
    for mode in ["lazy", "worker"] {
        program.run_with(&[&file, driver.to_str().unwrap()], &[("STANDIN_MODE", mode)]);
    }
}
