//! Suites for real machines: what is claimed about hardware is shown here, and recorded.
//!
//! ```text
//!  hwtests list                               every test with what it needs and what it will do
//!  hwtests run                                all of them; those whose needs are not met are skipped with the reason
//!  hwtests run --record hwtests/records       and write one JSON record
//!  hwtests run --profile FILE                 a skip of something that the profile promises is a failure
//! ```
//!
//! Exit status: 0 all ran or were skipped with a reason, 1 a test failed or a promise was broken, 2 wrong usage.

mod caller;
mod gpu;
mod harness;
mod kernels;
mod machine;
mod record;
mod staged;
mod streams;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use harness::{End, Profile, Tag};
use machine::Machine;

/// Runs the project's hardware suites on this machine.
#[derive(Parser)]
#[command(name = "hwtests", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Shows the tests.
    List,
    /// Runs tests.
    Run {
        /// Only tests whose name contains this.
        #[arg(default_value = "")]
        name: String,
        /// Leaves out the tests that measure.
        #[arg(long)]
        quick: bool,
        /// Folder to write the record into.
        #[arg(long, value_name = "DIR")]
        record: Option<PathBuf>,
        /// JSON file {"promises": ["gpu", …]}: needs that this machine must meet.
        #[arg(long, value_name = "FILE")]
        profile: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().verb {
        Verb::List => {
            for test in tests() {
                let needs: Vec<&str> = test.needs.iter().map(|need| need.name()).collect();
                println!(
                    "{:<28} {:?}  needs {:<24} this test will {}",
                    test.name,
                    test.tag,
                    needs.join(", "),
                    test.will
                );
            }
            ExitCode::SUCCESS
        }
        Verb::Run { name, quick, record, profile } => {
            let tag = if quick { Some(Tag::Quick) } else { None };
            match run(&name, tag, record, profile) {
                Ok(code) => code,
                Err(sentence) => {
                    eprintln!("hwtests: {sentence}");
                    ExitCode::from(2)
                }
            }
        }
    }
}

fn run(name: &str, only: Option<Tag>, folder: Option<PathBuf>, profile: Option<PathBuf>) -> Result<ExitCode, String> {
    let profile = profile.map_or_else(|| Ok(Profile::default()), |path| Profile::read(&path))?;
    let machine = Machine::look();
    println!("{}", machine.summary());
    let wanted = tests().into_iter().filter(|t| t.name.contains(name) && only.is_none_or(|tag| t.tag == tag));
    let mut rows = Vec::new();
    for test in wanted {
        let row = harness::run(&test, &machine, &profile);
        println!("{}", row.line());
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(format!("no test is called {name:?}; `hwtests list` shows them"));
    }
    let failed = rows.iter().filter(|row| matches!(row.end, End::Fail { .. })).count();
    let skipped = rows.iter().filter(|row| matches!(row.end, End::Skip { .. })).count();
    println!("{} passed, {skipped} skipped, {failed} failed", rows.len() - skipped - failed);
    let log = machine.new_kernel_messages();
    if let machine::KernelLog::Lines(lines) = &log
        && !lines.is_empty()
    {
        println!("kernel log during the run:\n  {}", lines.join("\n  "));
    }
    if let Some(folder) = folder {
        let path = record::write(&folder, &machine, rows, log)?;
        println!("record: {}", path.display());
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every suite, in the order in which they run.
fn tests() -> Vec<harness::Test> {
    [gpu::tests(), caller::tests(), staged::tests(), kernels::tests(), streams::tests()].into_iter().flatten().collect()
}
