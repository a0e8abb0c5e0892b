//! C programs: compiled with every warning an error, run against the shared library, each a process of its own.

use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::OnceLock,
};

use sw_testkit::scratch::Scratch;

use crate::{library, package, scratch};

/// How a program is compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Build {
    Plain,
    /// With the address and undefined-behaviour sanitizers.
    Sanitized,
}

/// Whether the compiler has sanitizers.
fn has_sanitizers() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let source = scratch().join("cufile-sanitized.c");
        std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
        let program = scratch().join("cufile-sanitized");
        let built = Command::new("cc").arg("-fsanitize=address").arg(&source).arg("-o").arg(&program).output();
        built.is_ok_and(|output| output.status.success())
            && Command::new(program).output().is_ok_and(|output| output.status.success())
    })
}

/// A program; its file goes with it.
struct Program(PathBuf);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Compiles and links a program. None, with a word, without a compiler.
fn compile(source: &str, build: Build, defines: &[&str]) -> Option<Program> {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let program =
        scratch().join(format!("cufile-program-{}-{}-{number}", source.replace('.', "-"), std::process::id()));
    let mut command = Command::new("cc");
    command.args("-std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -Wpedantic -g".split(' ')).args(defines);
    if build == Build::Sanitized {
        command.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    }
    command.arg("-I").arg(package().join("include")).arg(package().join("tests/cufile/programs").join(source));
    command.arg("-L").arg(library::staged()).args(["-lcufile", "-pthread", "-ldl", "-o"]).arg(&program);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            println!("skip: cc is not there ({error}); install gcc");
            return None;
        }
    };
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    Some(Program(program))
}

/// Variables of a process.
type Settings<'a> = &'a [(&'a str, &'a str)];

impl Program {
    fn start(&self, args: &[&str], settings: Settings<'_>) -> Output {
        let mut command = Command::new(&self.0);
        command.args(args).env("LD_LIBRARY_PATH", library::staged());
        // A configuration of this machine's is none of the tests'.
        command.env("CUFILE_ENV_PATH_JSON", "/nonexistent/cufile.json").envs(settings.iter().copied());
        // What the library keeps for the process's life, and threads that an exit ends, are no leaks of the program's.
        command.env("ASAN_OPTIONS", "detect_leaks=0");
        command.output().unwrap()
    }

    fn run(&self, args: &[&str], settings: Settings<'_>) -> String {
        let output = self.start(args, settings);
        let (said, told) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{args:?} {settings:?} ended with {}:\n{said}{told}", output.status);
        told.into_owned()
    }
}

/// A file of 1 MiB with the bytes that `check.h` expects.
fn file_of(scratch: &Scratch) -> String {
    let bytes: Vec<u8> = (0..1_usize << 20).map(|at| (at * 31 + at / 4093).to_le_bytes()[0]).collect();
    std::fs::write(scratch.path("file"), bytes).unwrap();
    scratch.text("file")
}

/// Compiles a program with sanitizers where the compiler has them, and runs it with a file of 1 MiB; what it wrote.
fn run_one(source: &str, more: &[&str], settings: Settings<'_>) -> Option<String> {
    let build = if has_sanitizers() { Build::Sanitized } else { Build::Plain };
    if build == Build::Plain {
        println!("skip {source} under sanitizers: the compiler has none");
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), &format!("cufile-{}", source.replace('.', "-")));
    let file = file_of(&scratch);
    let args: Vec<&str> = std::iter::once(file.as_str()).chain(more.iter().copied()).collect();
    compile(source, build, &[]).map(|program| program.run(&args, settings))
}

#[test]
fn layouts_are_those_of_each_version() {
    for version in ["1110", "1150", "1180", "1190", "1200"] {
        let define = format!("-DCUFILE_LAYOUT={version}");
        let Some(program) = compile("layout.c", Build::Plain, &[&define]) else { return };
        program.run(&[version], &[("SW_CUFILE_VERSION", version)]);
    }
}

#[test]
fn misuse_is_an_error_in_either_form() {
    run_one("contract.c", &["documented"], &[]);
    run_one("contract.c", &["observed"], &[("SW_CUFILE_ERRORS", "observed")]);
}

#[test]
fn bytes_go_where_they_belong_and_tell_their_way() {
    run_one("transfer.c", &[], &[]);
    // Without io_uring, as in a container that forbids it.
    run_one("transfer.c", &[], &[("SW_CUFILE_ENGINE", "io_uring=off")]);
}

#[test]
fn batches_end_entry_by_entry() {
    run_one("batch.c", &[], &[]);
    // A queue of one place, and a lane of few operations: more entries than fit wait for a place.
    run_one("batch.c", &[], &[("SW_CUFILE_ENGINE", "queue_depth=1 ops_per_lane=2 reactors=1")]);
}

#[test]
fn a_process_may_load_fork_and_leave() {
    let library = library::staged().join("libcufile.so.0");
    run_one("life.c", &[library.to_str().unwrap()], &[]);
}

#[test]
fn a_call_is_above_the_environment_and_that_above_the_file() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cufile-json");
    let file = scratch.path("cufile.json");
    let text = r#"{ // as an installation has it
        "profile": { "cufile_stats": 3, "nvtx": true },
        "execution": { "max_io_queue_depth": 16 /* a call says otherwise */ },
        "properties": { "io_batchsize": 64, "rdma_dev_addr_list": ["::1"] } }"#;
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let settings = [("CUFILE_ENV_PATH_JSON", file), ("CUFILE_STATS_LEVEL", "1"), ("CUFILE_IB_SL", "3")];
    run_one("config.c", &["precedence"], &settings);
}

#[test]
fn a_broken_configuration_is_an_error_in_words() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cufile-broken");
    let Some(program) = compile("config.c", Build::Plain, &[]) else { return };
    for (number, (text, word)) in [
        ("{ \"profile\": ", "EOF while parsing"),
        ("{ /* \n", "the comment in line 1 does not end"),
        ("[]", "no object"),
        ("{ \"properties\": { \"io_batchsize\": \"many\" } }", "properties.io_batchsize is no whole number"),
        ("{ \"properties\": { \"io_batchsize\": 257 } }", "properties.io_batchsize is 257 by file; it is 1 to 256"),
        ("{ \"logging\": { \"level\": \"LOUD\" } }", "logging.level"),
        ("\u{0}", "expected value"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = scratch.path(&format!("{number}.json"));
        std::fs::write(&file, text).unwrap();
        program.run(&["-", "broken", word], &[("CUFILE_ENV_PATH_JSON", file.to_str().unwrap())]);
    }
    program.run(&["-", "broken", "directory"], &[("CUFILE_ENV_PATH_JSON", scratch.root().to_str().unwrap())]);
    // One that never ends.
    program.run(&["-", "broken", "too many for a configuration"], &[("CUFILE_ENV_PATH_JSON", "/dev/zero")]);
    for (name, value) in [
        ("SW_CUFILE_POLICY", "require=magic"),
        ("SW_CUFILE_ERRORS", "some"),
        ("SW_CUFILE_VERSION", "900"),
        ("SW_CUFILE_ENGINE", "queue_depth"),
        ("SW_CUFILE_ENGINE", "queue_depth=0"),
        ("CUFILE_STATS_LEVEL", "9"),
        ("CUFILE_STATS_LEVEL", "x"),
        ("CUFILE_LOGGING_LEVEL", "LOUD"),
        ("CUFILE_ALLOW_COMPAT_MODE", "perhaps"),
    ] {
        let word = match name {
            "CUFILE_STATS_LEVEL" if value == "9" => "profile.cufile_stats is 9",
            "CUFILE_LOGGING_LEVEL" => "logging.level",
            "SW_CUFILE_ENGINE" => "queue",
            name => name,
        };
        program.run(&["-", "broken", word], &[(name, value)]);
    }
}

#[test]
fn a_demanded_route_is_taken_or_refused() {
    run_one("config.c", &["demanded"], &[("SW_CUFILE_POLICY", "require=dma")]);
}

#[test]
fn memory_and_streams_of_a_gpu_are_used_in_order() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cufile-gpu");
    let file = file_of(&scratch);
    let driver = scratch.path("driver");
    standin_libcuda::harness::install(&driver, &[]).unwrap();
    let driver = driver.join("libcuda.so.1");
    let Some(program) = compile("gpu.c", Build::Plain, &[]) else { return };
    // In mode lazy nothing runs that nobody waits for, so an order that is left to luck shows.
    for mode in ["lazy", "worker"] {
        // A staging ring that is given is not measured first.
        let settings = [("STANDIN_MODE", mode), ("SW_CUFILE_ENGINE", "staging=256KiBx8")];
        program.run(&[&file, driver.to_str().unwrap()], &settings);
    }
}

#[test]
fn a_driver_that_lacks_names_leaves_host_memory_alone() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cufile-older");
    let file = file_of(&scratch);
    let driver = scratch.path("driver");
    standin_libcuda::harness::install(&driver, &["cuPointerGetAttributes"]).unwrap();
    let driver = driver.join("libcuda.so.1");
    let Some(program) = compile("old_driver.c", Build::Plain, &[]) else { return };
    program.run(&[&file, driver.to_str().unwrap()], &[]);
}

#[test]
fn the_log_says_what_failed_and_what_does_nothing() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cufile-log");
    let (file, log) = (file_of(&scratch), scratch.text("log"));
    let Some(program) = compile("config.c", Build::Plain, &[]) else { return };
    let settings = [
        ("CUFILE_LOGFILE_PATH", log.as_str()),
        ("CUFILE_LOGGING_LEVEL", "WARN"),
        ("CUFILE_FORCE_COMPAT_MODE", "true"),
        ("SW_CUFILE_POLICY", "require=dma"),
    ];
    program.run(&[&file, "demanded"], &settings);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("WARN") && text.contains("properties.force_compat_mode does nothing"), "{text}");
    assert!(text.contains("ERROR") && text.contains("RAGGED_ENDS"), "{text}");
}

#[test]
fn a_file_system_in_user_space_is_asked_by_its_functions() {
    run_one("userfs.c", &["used"], &[]);
    run_one("userfs.c", &["refused"], &[("SW_CUFILE_POLICY", "require=dma")]);
}
