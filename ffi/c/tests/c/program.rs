//! C and C++ programs: compiled with every warning an error, run against the shared library.

use std::path::PathBuf;

use straightway::{
    checksum::Algorithm,
    target::{Access, Backing, Target, TargetConfig},
};
use sw_testkit::{
    native::{Compiler, file_of},
    scratch::Scratch,
};

use crate::LIBRARY;

const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// Runs a program of the package under sanitizers where the compiler has them. Plain ones are built from the installation.
fn run_one(compiler: Compiler, source: &str, more: &[&str]) -> Option<String> {
    LIBRARY.run(&compiler.sanitized(SCRATCH), source, more, &[])
}

#[test]
fn misuse_is_a_clean_error() {
    run_one(Compiler::c(), "tests/c/programs/contract.c", &[]);
}

#[test]
fn bytes_go_where_they_belong_and_tell_their_way() {
    run_one(Compiler::c(), "tests/c/programs/transfer.c", &[]);
}

#[test]
fn what_is_started_ends_once() {
    run_one(Compiler::c(), "tests/c/programs/started.c", &[]);
    // At its own speed, other orders of events come up.
    LIBRARY.run(&Compiler::c(), "tests/c/programs/started.c", &[], &[]);
}

#[test]
fn a_process_may_fork_log_load_and_leave() {
    run_one(Compiler::c(), "tests/c/programs/life.c", &[LIBRARY.built().to_str().unwrap()]);
}

#[test]
fn the_example_that_reads_tells_the_way() {
    if let Some(said) = run_one(Compiler::c(), "examples/read.c", &[]) {
        assert!(said.starts_with("1048576 bytes by "), "{said}");
        assert!(said.contains(", crc64 "), "{said}");
    }
}

#[test]
fn the_example_that_reads_takes_an_address_of_a_namespace_behind_tcp() {
    let Some(program) = LIBRARY.compile(&Compiler::c(), &LIBRARY.in_package("examples/read.c")) else { return };
    let is_known = |name| std::fs::read(name).is_ok_and(|id| id.len() >= 32);
    if !["/etc/nvme/hostid", "/etc/machine-id"].into_iter().any(is_known) {
        println!("skip fabrics: the machine has no hostid and no machine-id");
        return;
    }
    let scratch = Scratch::new(SCRATCH, "tcp");
    let content = scratch.file("disk", 1 << 20);
    let namespaces = vec![Backing::File(scratch.path("disk"), Access::ReadOnly)];
    let target = Target::start(TargetConfig { namespaces, ..TargetConfig::default() }).unwrap();
    let uri = format!("nvme+tcp://{}/nqn.2026-11.io.straightway:target?nsid=1&offset=4096", target.address());
    let sum = Algorithm::Crc64Nvme.of(&content[4096..]);
    let said = program.run(&[&uri], &[]);
    assert_eq!(said, format!("1044480 bytes by nvme+tcp, 0 in place, 0 bounced (BEST), crc64 {sum:016x}\n"));
}

#[test]
fn the_example_that_overlaps_reads_all() {
    if let Some(said) = run_one(Compiler::c(), "examples/overlap.c", &[]) {
        assert_eq!(said, "1048576 bytes\n");
    }
}

#[test]
fn the_example_with_futures_reads_all() {
    if let Some(said) = run_one(Compiler::cpp(), "examples/futures.cpp", &[]) {
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
    let scratch = Scratch::new(SCRATCH, "stream");
    let (file, driver) = (file_of(&scratch), scratch.text("driver"));
    standin_libcuda::harness::install(driver.as_ref(), &[]).unwrap();
    let flags = format!("-isystem{} -Wl,--no-as-needed -L{driver} -l:libcuda.so.1", include.display());
    let compiler = Compiler::c().with(&flags);
    let Some(program) = LIBRARY.compile(&compiler, &LIBRARY.in_package("examples/stream.c")) else { return };
    let sum: u64 = std::fs::read(&file).unwrap().into_iter().map(u64::from).sum();
    let path = format!("{}:{driver}", LIBRARY.folder().display());
    for mode in ["lazy", "worker"] {
        let said = program.run(&[&file], &[("STANDIN_MODE", mode), ("LD_LIBRARY_PATH", &path)]);
        assert_eq!(said, format!("sum {sum}\n1048576 bytes\n"));
    }
}

#[test]
fn the_classes_of_cpp_hold_what_they_promise() {
    run_one(Compiler::cpp(), "tests/c/programs/classes.cpp", &[]);
}

#[test]
fn memory_and_streams_of_a_gpu_are_used_in_order() {
    let scratch = Scratch::new(SCRATCH, "gpu");
    let file = file_of(&scratch);
    let driver = scratch.path("driver");
    standin_libcuda::harness::install(&driver, &[]).unwrap();
    let driver = driver.join("libcuda.so.1");
    let Some(program) = LIBRARY.compile(&Compiler::c(), &LIBRARY.in_package("tests/c/programs/gpu.c")) else { return };
    // In mode lazy nothing runs that nobody waits for, so an order that is left to luck shows.
    for mode in ["lazy", "worker"] {
        program.run(&[&file, driver.to_str().unwrap()], &[("STANDIN_MODE", mode)]);
    }
}
