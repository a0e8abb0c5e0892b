//! `straightway-guest`: the test program inside a guest of the bed. `cargo xtask vm` builds it, carries it in and reads
//! what it says.
//!
//! ```text
//! init ──► run ──► one process for each test ──► a result file
//!           │            └── asks the host: pull a device, cut the power
//!           └──► lines on the second serial port (wire.rs): ends of tests, facts, the kernel's log
//! ```
//!
//! A process for each test: a panic, a hang or a descriptor that is left open ends with the test that caused it, and
//! VFIO resets what the test had. What a test leaves behind otherwise is a device's driver binding; each test asks for
//! the binding that it needs ([`pci::Device::bind`]) and none relies on the one before.
//!
//! On a real machine `hwtest` does the same for devices that a profile names (`profile.rs`, `machine.rs`,
//! `docs/hardware.md`).
//!
//! **To add a test**: a function `fn(&Context) -> Verdict` and a row in a suite below `suites/`. A suite that is new also
//! needs a name in a row of `xtask/src/vm/boots.rs`. `?` turns any error into a failure; [`registry::skip`] is a skip
//! with a reason. A test counts as destructive unless it is marked [`registry::Test::harmless`]; one that expects
//! the bed's own devices, or its host, is marked [`registry::Test::bed_only`].
#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "a test program reads the clock and waits for devices; nothing links it"
)]

mod block;
mod context;
mod file_system;
mod fio;
mod io;
mod kernel_log;
mod machine;
mod pci;
mod profile;
mod registry;
mod run;
mod suites;
mod vfio_rig;
mod wire;

use std::process::ExitCode;

const USAGE: &str = "usage: straightway-guest run | list | test NAME RESULT-FILE
       straightway-guest hwtest --profile FILE [--destructive] [--only NAME] [--record FILE] [--json]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run"] => run::all(),
        ["list"] => {
            for suite in suites::all() {
                for test in suite.tests {
                    println!("{}.{}: {}", suite.name, test.name, test.why);
                }
            }
            ExitCode::SUCCESS
        }
        ["test", name, file] => run::one(name, std::path::Path::new(file), |_| context::Context::new(name)),
        ["test", name, file, more @ ..] => machine::one(name, std::path::Path::new(file), more),
        ["hwtest", more @ ..] => machine::all(more),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
