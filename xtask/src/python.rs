//! `cargo xtask python`: installs the Python package from the tree with pip, and runs its tests.
//!
//! ```text
//! {target}/python   a virtual environment: pip, maturin, pytest, numpy, safetensors; torch where it can be had
//!   └─ pip install ./ffi/python  (development profile)  ──►  pytest ffi/python/tests
//! ```
//!
//! torch comes without its 3 GB of NVIDIA libraries: `benches/peers/make_stubs.py` writes stand-ins beside its own
//! libraries, and CUDA is then "not available". Without torch its tests say that they skip.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::proc::{Echo, Job};
use crate::{Place, Stop};

/// Pinned: an oracle that changes by itself is no oracle.
const PINS: &[&str] = &["numpy==2.4.6", "safetensors==0.8.0", "pytest==9.2.0", "maturin==1.16.0", "ml_dtypes"];
const TORCH: &str = "torch==2.15.0";
/// What torch imports on a machine without a GPU.
const TORCH_NEEDS: &[&str] =
    &["filelock", "sympy", "networkx", "jinja2", "fsspec", "typing-extensions", "setuptools<81"];
/// torch alone is 1.4 GB unpacked.
const INSTALL_LIMIT: Duration = Duration::from_secs(1200);
/// Compiling the workspace's crates in the development profile, on two busy cores.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);
const TEST_LIMIT: Duration = Duration::from_secs(900);

/// Makes the environment, installs the package, runs `pytest` with `args`.
pub fn run(place: &Place, args: &[String]) -> Result<ExitCode, Stop> {
    let env = Env { place, dir: place.target.join("python") };
    env.prepare()?;
    if let Err(reason) = env.torch() {
        println!("skip torch: {reason}");
    }
    env.install_package()?;
    let package = place.root.join("ffi/python");
    let mut pytest = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"].map(String::from).to_vec();
    pytest.extend_from_slice(args);
    let job = Job::program(place, &env.program("python"), &pytest).dir(&package).limit(TEST_LIMIT);
    let passed = job.env("PYTHONDONTWRITEBYTECODE", "1").watch()?;
    Ok(crate::exit_code(passed))
}

struct Env<'a> {
    place: &'a Place,
    dir: PathBuf,
}

impl Env<'_> {
    fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    fn ask(&self, program: &Path, args: &[&str]) -> Option<Vec<String>> {
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        let job = Job::program(self.place, program, &args).echo(Echo::Hidden).limit(INSTALL_LIMIT);
        job.run().ok().filter(|outcome| outcome.ok()).map(|outcome| outcome.lines)
    }

    fn pip(&self, flags: &[&str], packages: &[&str]) -> Result<(), String> {
        let mut args = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        args.extend(flags);
        args.extend(packages);
        let installed = self.ask(&self.program("python"), &args);
        installed.map(drop).ok_or_else(|| format!("pip could not install {}", packages.join(" ")))
    }

    /// The environment with the pinned packages; made anew when the pins changed.
    fn prepare(&self) -> Result<(), Stop> {
        let (stamp, pins) = (self.dir.join("pins"), PINS.join(" "));
        if std::fs::read_to_string(&stamp).is_ok_and(|there| there == pins) {
            return Ok(());
        }
        let dir = self.dir.display().to_string();
        if self.ask(Path::new("python3"), &["-m", "venv", "--clear", &dir]).is_none() {
            return Err(Stop::new("python3 -m venv failed", "install python3 (3.11 or later) and python3-venv"));
        }
        self.pip(&[], PINS).map_err(|reason| Stop::new(reason, "make the package index reachable"))?;
        let written = std::fs::write(&stamp, &pins);
        written.map_err(|error| Stop::new(format!("cannot write {} ({error})", stamp.display()), "free some space"))
    }

    /// torch, or why there is none.
    fn torch(&self) -> Result<(), String> {
        let python = self.program("python");
        if self.ask(&python, &["-c", "import torch"]).is_some() {
            return Ok(());
        }
        self.pip(&[], TORCH_NEEDS)?;
        self.pip(&["--no-deps", "--no-cache-dir"], &[TORCH])?;
        let script =
            "import pathlib, importlib.util as u; print(pathlib.Path(u.find_spec('torch').origin).parent / 'lib')";
        let found = self.ask(&python, &["-c", script]).and_then(|lines| lines.into_iter().next());
        let libraries = PathBuf::from(found.ok_or("torch was installed and is not found")?);
        let entries = std::fs::read_dir(&libraries).map_err(|error| format!("{}: {error}", libraries.display()))?;
        let shared = entries.flatten().map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(".so"));
        let shared: Vec<String> = shared.map(|path| path.display().to_string()).collect();
        let stubs = self.place.root.join("benches/peers/make_stubs.py").display().to_string();
        let folder = libraries.display().to_string();
        let mut args = vec![stubs.as_str(), folder.as_str()];
        args.extend(shared.iter().map(String::as_str));
        self.ask(&python, &args).ok_or("stand-ins for NVIDIA's libraries need cc and binutils; install gcc")?;
        self.ask(&python, &["-c", "import torch"])
            .map(drop)
            .ok_or_else(|| "torch was installed and cannot be imported".into())
    }

    /// As a user installs it, in the development profile, with what cargo has built already.
    fn install_package(&self) -> Result<(), Stop> {
        let args =
            ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"];
        let mut args: Vec<String> = args.map(String::from).to_vec();
        args.extend(["--force-reinstall".to_string(), "./ffi/python".to_string()]);
        let job = Job::program(self.place, &self.program("python"), &args).limit(BUILD_LIMIT);
        let path = std::env::var("PATH").unwrap_or_default();
        let job = job
            .env("PATH", format!("{}:{path}", self.dir.join("bin").display()))
            .env("CARGO_TARGET_DIR", self.place.target.display().to_string())
            .env("MATURIN_PEP517_ARGS", "--profile dev");
        match job.watch()? {
            0 => Ok(()),
            status => Err(Stop::new(format!("pip install ./ffi/python ended with {status}"), "see its output above")),
        }
    }
}
