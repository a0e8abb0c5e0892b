//! C programs: compiled with every warning an error, run against the shared library, each a process of its own.

use sw_testkit::{
    native::{Compiler, Program, Settings, file_of},
    scratch::Scratch,
};

use crate::LIBRARY;

const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

fn path(source: &str) -> String {
    format!("tests/cufile/programs/{source}")
}

/// Compiles a program, without sanitizers. None, with a word, without a compiler.
fn compile(source: &str, flags: &str) -> Option<Program<'static>> {
    LIBRARY.compile(&Compiler::c().with(flags), &LIBRARY.in_package(&path(source)))
}

/// Runs a program with a file of 1 MiB, under sanitizers where the compiler has them.
fn run_one(source: &str, more: &[&str], settings: Settings<'_>) {
    LIBRARY.run(&Compiler::c().sanitized(SCRATCH), &path(source), more, settings);
}

#[test]
fn layouts_are_those_of_each_version() {
    for version in ["1110", "1150", "1180", "1190", "1200"] {
        let Some(program) = compile("layout.c", &format!("-DCUFILE_LAYOUT={version}")) else { return };
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
    let library = LIBRARY.folder().join("libcufile.so.0");
    run_one("life.c", &[library.to_str().unwrap()], &[]);
}

#[test]
fn a_call_is_above_the_environment_and_that_above_the_file() {
    let scratch = Scratch::new(SCRATCH, "cufile-json");
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
    let scratch = Scratch::new(SCRATCH, "cufile-broken");
    let Some(program) = compile("config.c", "") else { return };
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
    let scratch = Scratch::new(SCRATCH, "cufile-gpu");
    let file = file_of(&scratch);
    let driver = scratch.path("driver");
    standin_libcuda::harness::install(&driver, &[]).unwrap();
    let driver = driver.join("libcuda.so.1");
    let Some(program) = compile("gpu.c", "") else { return };
    // In mode lazy nothing runs that nobody waits for, so an order that is left to luck shows.
    for mode in ["lazy", "worker"] {
        // A staging ring that is given is not measured first.
        let settings = [("STANDIN_MODE", mode), ("SW_CUFILE_ENGINE", "staging=256KiBx8")];
        program.run(&[&file, driver.to_str().unwrap()], &settings);
    }
}

#[test]
fn a_driver_that_lacks_names_leaves_host_memory_alone() {
    let scratch = Scratch::new(SCRATCH, "cufile-older");
    let file = file_of(&scratch);
    let driver = scratch.path("driver");
    standin_libcuda::harness::install(&driver, &["cuPointerGetAttributes"]).unwrap();
    let driver = driver.join("libcuda.so.1");
    let Some(program) = compile("old_driver.c", "") else { return };
    program.run(&[&file, driver.to_str().unwrap()], &[]);
}

#[test]
fn the_log_says_what_failed_and_what_does_nothing() {
    let scratch = Scratch::new(SCRATCH, "cufile-log");
    let (file, log) = (file_of(&scratch), scratch.text("log"));
    let Some(program) = compile("config.c", "") else { return };
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
