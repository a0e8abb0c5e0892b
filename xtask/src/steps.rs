//! The steps of `cargo xtask test`, fastest first, but for one that runs beside those behind it. One row, one job, one line on why it exists.
//!
//! To add one: put a row where its time belongs. A need is something of the machine; one that cannot be met skips the step
//! with its reason.
//! Builds of one profile name the whole workspace and choose targets in it: a package chosen by `-p` gets the features that it
//! alone asks for, and everything below it is compiled once more.
//! `{target}` in arguments and environment is cargo's target directory, `{root}` that of the workspace.

use crate::needs::Need;

/// One step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// For `--only`.
    pub name: &'static str,
    /// What it catches, in one line.
    pub why: &'static str,
    pub program: Program,
    pub args: &'static [&'static str],
    pub env: &'static [(&'static str, &'static str)],
    pub needs: &'static [Need],
    /// Fewer passed tests than this fail the step: a filter that matches nothing must not look like success.
    pub tests_min: u64,
    /// Whether tests inside may say that they skip.
    pub skips: Skips,
    /// Wall time in seconds after which the step is killed and fails. Several times what it takes on two cores: it
    /// bounds a hang, it does not measure.
    pub limit_s: u64,
    pub turn: Turn,
}

/// How a step stands to those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// They wait until it has ended.
    Alone,
    /// They go on meanwhile, as it leaves a core idle for long. What it prints is shown when it has ended.
    Beside,
}

/// What runs a step.
#[derive(Debug, Clone, Copy)]
pub enum Program {
    Cargo,
    /// xtask itself.
    Xtask,
}

/// Whether tests inside a step may skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skips {
    /// They are listed at the end.
    Listed,
    /// The step's needs are met, so nothing is left to skip for.
    Refused,
}

/// Mount and format tools that tests on file systems use where they find them.
const FILE_SYSTEMS: &[Need] = &[
    Need::Helps { program: "mkfs.ext4", package: "e2fsprogs" },
    Need::Helps { program: "mkfs.xfs", package: "xfsprogs" },
    Need::Helps { program: "mkfs.btrfs", package: "btrfs-progs" },
];

/// Every step.
pub const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        why: "one layout of the code, so that diffs show changes",
        program: Program::Cargo,
        args: &["fmt", "--all", "--check"],
        env: &[],
        needs: &[],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 60,
        turn: Turn::Alone,
    },
    Step {
        name: "tidy",
        why: "layers, unsafe, lengths, marks, links and licences hold",
        program: Program::Xtask,
        args: &["tidy"],
        env: &[],
        needs: &[Need::Tool { program: "git", package: "git" }],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 300,
        turn: Turn::Alone,
    },
    Step {
        name: "clippy",
        why: "the workspace lints hold in code and tests",
        program: Program::Cargo,
        args: &["clippy", "--workspace", "--all-targets", "--quiet", "--keep-going", "--", "-D", "warnings"],
        env: &[],
        needs: &[],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 1200,
        turn: Turn::Alone,
    },
    Step {
        name: "kernels",
        why: "the committed PTX is what the sources give, byte for byte",
        program: Program::Xtask,
        args: &["kernels", "--check"],
        env: &[],
        needs: &[Need::Tool { program: "python3", package: "python3-venv" }, Need::KernelCompiler],
        tests_min: 0,
        skips: Skips::Refused,
        limit_s: 300,
        turn: Turn::Alone,
    },
    Step {
        name: "interop",
        why: "what safetensors, pyarrow and webdataset write is read, and they read ours",
        program: Program::Cargo,
        args: &["test", "--workspace", "--test", "interop", "--test", "index_interop", "--", "--nocapture"],
        env: &[],
        needs: &[Need::Tool { program: "python3", package: "python3-venv" }, Need::Python],
        tests_min: 6,
        skips: Skips::Refused,
        limit_s: 900,
        turn: Turn::Alone,
    },
    Step {
        name: "interop-torch",
        why: "checkpoints that torch writes now are read, and ours are read by it",
        program: Program::Cargo,
        args: &["test", "--workspace", "--test", "torch", "--test", "dcp", "--", "--nocapture"],
        env: &[],
        needs: &[
            Need::Tool { program: "python3", package: "python3-venv" },
            Need::Tool { program: "cc", package: "gcc" },
            Need::Torch,
        ],
        tests_min: 14,
        skips: Skips::Refused,
        limit_s: 900,
        turn: Turn::Alone,
    },
    Step {
        name: "cufile",
        why: "libcufile.so.0 answers as NVIDIA's does or says why not; its clients run",
        program: Program::Xtask,
        args: &["cufile"],
        env: &[],
        needs: &[
            Need::Tool { program: "cc", package: "gcc" },
            Need::Tool { program: "python3", package: "python3-venv" },
            Need::Helps { program: "fio", package: "fio" },
        ],
        tests_min: 250,
        skips: Skips::Listed,
        // About a minute with an empty target/cufile, half of it the network.
        limit_s: 900,
        turn: Turn::Alone,
    },
    Step {
        name: "unit",
        why: "unit, conformance, fault and integration tests of every crate; the model's seeds",
        program: Program::Cargo,
        // Without what the steps of interop ran, which starts Python some dozen times. `--skip=NAME` in one word: a test with a main
        // of its own takes a bare word for the one case to run.
        args: &[
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            // All that fails, not the first of it: a run takes most of an hour.
            "--no-fail-fast",
            "--",
            "--show-output",
            "--exact",
            "--skip=the_package_reads_our_files",
            "--skip=we_read_files_of_the_package",
            "--skip=files_written_by_the_package_load_with_the_digests_that_it_tells",
            "--skip=real_weights_load_with_the_digests_that_the_package_tells",
            "--skip=pyarrow_reads_the_same_rows",
            "--skip=webdataset_reads_what_was_packed",
            "--skip=what_torch_writes_now_loads_with_the_digests_that_it_tells",
            "--skip=torch_reads_every_type_and_shape_that_we_write",
            "--skip=torch_reads_a_tensor_that_ranks_hold_together",
        ],
        // A test's panic names its place; what it said would drown in frames of the test runner, twice where a test has a
        // process of its own.
        env: &[
            ("RUST_BACKTRACE", "0"),
            // Two on each of two cores: many wait for timers and other processes (those of sw-net are 8 s of work in a minute).
            ("RUST_TEST_THREADS", "4"),
            // What the step `cufile` brought.
            ("STRAIGHTWAY_FIO_SOURCE", "{root}/target/cufile/fio/configured"),
            ("STRAIGHTWAY_CUDA_INCLUDE", "{root}/target/cufile/real/nvidia/cu13/include"),
        ],
        needs: FILE_SYSTEMS,
        tests_min: 60,
        skips: Skips::Listed,
        limit_s: 1500,
        turn: Turn::Alone,
    },
    Step {
        name: "servers",
        why: "real servers of storage systems, those that start fast; they die and come back",
        program: Program::Xtask,
        args: &["interop", "--quick"],
        env: &[],
        // Each system has its own.
        needs: &[],
        tests_min: 1,
        skips: Skips::Listed,
        limit_s: 1500,
        // It waits for servers that are dead most of its time.
        turn: Turn::Beside,
    },
    Step {
        name: "doc",
        why: "the documentation builds and its links resolve",
        program: Program::Cargo,
        args: &["doc", "--workspace", "--no-deps", "--lib", "--document-private-items", "--quiet"],
        env: &[("RUSTDOCFLAGS", "-D warnings")],
        needs: &[],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 600,
        turn: Turn::Alone,
    },
    Step {
        name: "doctest",
        why: "examples in the documentation compile and run",
        program: Program::Cargo,
        args: &["test", "--workspace", "--doc"],
        env: &[],
        needs: &[],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 600,
        turn: Turn::Alone,
    },
    Step {
        name: "demo",
        why: "the README's first command: make data, load it, verify it, explain each route",
        program: Program::Xtask,
        args: &["demo"],
        env: &[],
        needs: &[],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 900,
        turn: Turn::Alone,
    },
    Step {
        name: "peers",
        why: "other people's NVMe/TCP programs at the other end: a target, two initiators",
        program: Program::Xtask,
        args: &["peers"],
        env: &[],
        needs: &[
            Need::Tool { program: "git", package: "git" },
            Need::Tool { program: "cc", package: "gcc" },
            Need::Helps { program: "make", package: "make" },
            Need::Helps { program: "go", package: "golang" },
        ],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 1800,
        turn: Turn::Alone,
    },
    Step {
        name: "python",
        why: "the Python package installs from the tree and holds with numpy, torch, forks",
        program: Program::Xtask,
        args: &["python"],
        env: &[],
        needs: &[
            Need::Tool { program: "python3", package: "python3-venv" },
            Need::Helps { program: "cc", package: "gcc" },
        ],
        tests_min: 20,
        skips: Skips::Listed,
        limit_s: 1800,
        turn: Turn::Alone,
    },
    Step {
        name: "vm",
        why: "drivers and direct routes on emulated NVMe controllers, under real kernels",
        program: Program::Xtask,
        args: &["vm", "nvme"],
        env: &[],
        needs: &[
            Need::Tool { program: "apt-get", package: "apt" },
            Need::Tool { program: "dpkg-deb", package: "dpkg" },
        ],
        tests_min: 30,
        skips: Skips::Listed,
        limit_s: 1800,
        // Guests have one processor each, and run one after another.
        turn: Turn::Beside,
    },
    Step {
        name: "loom",
        why: "every interleaving of the words by which waiting lanes and connections are woken",
        program: Program::Cargo,
        args: &["test", "-p", "sw-uring", "-p", "sw-net", "--profile", "quick", "--lib", "loom"],
        env: &[("RUSTFLAGS", "--cfg loom"), ("CARGO_TARGET_DIR", "{target}/loom")],
        needs: &[],
        tests_min: 9,
        skips: Skips::Listed,
        limit_s: 600,
        turn: Turn::Alone,
    },
    Step {
        name: "miri",
        why: "undefined behaviour in the memory types, which no ordinary test shows",
        program: Program::Cargo,
        args: &["+nightly", "miri", "test", "-p", "sw-mem", "--lib"],
        // Addresses are numbers here by design (`HostVa`), so pointers made from exposed ones are no news.
        env: &[("CARGO_TARGET_DIR", "{target}/miri"), ("MIRIFLAGS", "-Zmiri-permissive-provenance")],
        needs: &[Need::Miri],
        tests_min: 10,
        skips: Skips::Listed,
        limit_s: 900,
        turn: Turn::Alone,
    },
    Step {
        name: "aarch64",
        why: "the core and its barriers compile for the other processor that they are for",
        program: Program::Cargo,
        // With the unit tests, which call every barrier: what nobody calls is not assembled.
        args: &[
            "+nightly",
            "test",
            "--no-run",
            "-Zbuild-std=std,test",
            "--target",
            "aarch64-unknown-linux-gnu",
            "--lib",
            "-p",
            "sw-mem",
            "-p",
            "sw-engine",
            "-p",
            "sw-nvme",
        ],
        env: &[
            ("CARGO_TARGET_DIR", "{target}/aarch64"),
            ("CARGO_BUILD_WARNINGS", "deny"),
            // Linking would want a cross compiler's libraries; `true` takes everything and makes nothing.
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "true"),
        ],
        needs: &[Need::StdSource],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 900,
        turn: Turn::Alone,
    },
    Step {
        name: "fuzz",
        why: "decoders of outside bytes, with inputs that nobody wrote",
        program: Program::Xtask,
        args: &["fuzz", "--seconds", "5"],
        env: &[],
        needs: &[Need::Tool { program: "g++", package: "g++" }],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 1500,
        turn: Turn::Alone,
    },
    Step {
        name: "bench-smoke",
        why: "every benchmark runs small and its bytes are right; rates are not judged",
        program: Program::Xtask,
        args: &["bench", "all", "--size", "smoke", "--rounds", "1"],
        env: &[],
        needs: &[Need::Helps { program: "fio", package: "fio" }],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 900,
        turn: Turn::Alone,
    },
    Step {
        name: "fabrics",
        why: "NVMe over TCP, TLS and RDMA: both of our ends against the kernel's",
        program: Program::Xtask,
        // In one: programs are built once, and guests run two at a time.
        args: &["vm", "fabrics", "tls", "rdma"],
        env: &[],
        needs: &[
            Need::Tool { program: "apt-get", package: "apt" },
            Need::Tool { program: "dpkg-deb", package: "dpkg" },
        ],
        tests_min: 56,
        skips: Skips::Listed,
        limit_s: 2700,
        // Behind what runs beside the guests of `vm`, for which it would wait.
        turn: Turn::Beside,
    },
    Step {
        name: "mutants",
        why: "the simulator finds the bugs that it exists for, within their stated seeds",
        program: Program::Xtask,
        args: &["sim", "--mutants"],
        env: &[],
        needs: &[],
        tests_min: 0,
        skips: Skips::Listed,
        limit_s: 2400,
        turn: Turn::Alone,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_reasons_short() {
        for (index, step) in STEPS.iter().enumerate() {
            assert!(STEPS.iter().skip(index + 1).all(|other| other.name != step.name), "{}", step.name);
            assert!(!step.why.is_empty() && step.why.len() <= 80, "{}", step.name);
            assert!(step.limit_s > 0);
        }
    }

    #[test]
    fn what_unit_leaves_out_is_run_by_the_steps_of_interop() {
        let row = |name: &str| STEPS.iter().find(|step| step.name == name).unwrap();
        let targets = ["interop", "interop-torch"].map(row).into_iter().flat_map(|step| step.args.windows(2));
        let targets = targets.filter(|pair| pair[0] == "--test").map(|pair| pair[1]);
        let run: Vec<String> = targets.flat_map(tests_of).collect();
        let left_out: Vec<&str> = row("unit").args.iter().filter_map(|arg| arg.strip_prefix("--skip=")).collect();
        assert!(!left_out.is_empty());
        for name in left_out {
            assert!(run.iter().any(|test| test == name), "{name} is in no test of the steps of interop");
        }
    }

    /// Names of the tests of a test target, in any crate.
    fn tests_of(target: &str) -> Vec<String> {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let crates = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
        let texts: Vec<String> =
            crates.filter_map(|dir| std::fs::read_to_string(dir.join(format!("tests/{target}.rs"))).ok()).collect();
        assert!(!texts.is_empty(), "{target}");
        let tests = texts.iter().flat_map(|text| text.split("#[test]\nfn ").skip(1));
        tests.map(|test| test.split_once('(').unwrap().0.to_string()).collect()
    }
}
