//! `cargo xtask python`: installs the Python package from the tree with pip, and runs its tests.
//!
//! ```text
//! target/pyenv   the environment of all tests, see `pyenv.rs`
//!   └─ pip install ./ffi/python  (development profile)  ──►  pytest ffi/python/tests, with the stand-in driver for GPUs
//! ```

use std::process::ExitCode;
use std::time::Duration;

use crate::proc::Job;
use crate::pyenv::Env;
use crate::{Place, Stop};

/// Compiling the workspace's crates in the development profile, on two busy cores.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
const TEST_LIMIT: Duration = Duration::from_secs(900);

/// Makes the environment, installs the package, runs `pytest` with `args`.
pub fn run(place: &Place, args: &[String]) -> Result<ExitCode, Stop> {
    let env = Env::new(place);
    env.packages().map_err(|reason| Stop::new(reason, "install what it names, or make the package index reachable"))?;
    if let Err(reason) = env.torch() {
        println!("skip torch: {reason}");
    }
    if let Err(reason) = env.adapted() {
        println!("skip Ray and DLIO: {reason}");
    }
    install_package(place, &env)?;
    let built = helpers(place)?;
    let package = place.root.join("ffi/python");
    let mut pytest = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"].map(String::from).to_vec();
    pytest.extend_from_slice(args);
    let job = Job::program(place, &env.program("python"), &pytest).dir(&package).limit(TEST_LIMIT);
    let job = built.into_iter().fold(job, |job, (name, path)| job.env(name, path));
    Ok(crate::exit_code(job.env("PYTHONDONTWRITEBYTECODE", "1").watch()?))
}

/// What tests have beside the package, by the variables that name it: the driver that plays a GPU in host memory, and the command line, whose
/// target is the other end of fabrics. With the features of the whole workspace, as the steps before built them.
fn helpers(place: &Place) -> Result<[(&'static str, String); 2], Stop> {
    let args = ["build", "--quiet", "--workspace", "--lib", "--bin", "straightway"].map(String::from);
    let job = Job::cargo(place, &args).limit(BUILD_LIMIT);
    match job.env("CARGO_TARGET_DIR", place.target.display().to_string()).watch()? {
        0 => {
            let built = |name: &str| place.target.join("debug").join(name).display().to_string();
            Ok([
                ("STRAIGHTWAY_STANDIN_DRIVER", built("libstandin_libcuda.so")),
                ("STRAIGHTWAY_PROGRAM", built("straightway")),
            ])
        }
        status => Err(Stop::new(format!("what the tests need did not build: {status}"), "see its output above")),
    }
}

/// As a user installs it, in the development profile, with what cargo has built already.
fn install_package(place: &Place, env: &Env<'_>) -> Result<(), Stop> {
    let args = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"];
    let mut args: Vec<String> = args.map(String::from).to_vec();
    args.extend(["--force-reinstall".to_string(), "./ffi/python".to_string()]);
    let job = Job::program(place, &env.program("python"), &args).limit(BUILD_LIMIT);
    let path = std::env::var("PATH").unwrap_or_default();
    let job = job
        .env("PATH", format!("{}:{path}", env.dir().join("bin").display()))
        .env("CARGO_TARGET_DIR", place.target.display().to_string())
        .env("MATURIN_PEP517_ARGS", "--profile dev");
    match job.watch()? {
        0 => Ok(()),
        status => Err(Stop::new(format!("pip install ./ffi/python ended with {status}"), "see its output above")),
    }
}
