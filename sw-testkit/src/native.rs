//! Shared libraries of ours, and programs in C and C++ that are compiled against them and run, each a process of its own.
//!
//! ```text
//!   cargo test ─► the library beside the test program ─► Library: its names in a folder ─► installed: moved prefix
//!                                                              └─► Compiler ─► Program ─► run
//! ```
//!
//! Headers that such programs share are in `sw-testkit/c`. What a machine lacks (a compiler, binutils) is said in a line `skip: …`, and
//! the answer is `None`. What fails otherwise is a failed test: every function here panics with the command and what it said.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use crate::scratch::Scratch;

/// What a library needs that every machine has.
const SYSTEM: [&str; 6] = ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"];

/// A library to test.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// `env!("CARGO_MANIFEST_DIR")`: its headers are in `include`.
    pub package: &'static str,
    /// `env!("CARGO_TARGET_TMPDIR")`: where this run may write.
    pub scratch: &'static str,
    /// The file that cargo leaves beside the test program.
    pub file: &'static str,
    /// The name that a linker looks for; programs note it with `.0` behind.
    pub name: &'static str,
    /// What `cargo xtask install` takes the library by.
    pub option: &'static str,
    /// Variables of each program's environment.
    pub environment: &'static [(&'static str, &'static str)],
}

/// A library under the names that programs ask for, as an installation would have them.
#[derive(Debug)]
pub struct Library {
    source: Source,
    built: PathBuf,
    stage: PathBuf,
}

/// Variables of a process.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

impl Library {
    /// Once for each test program.
    pub fn stage(source: Source) -> Self {
        let program = env::current_exe().unwrap_or_else(|error| panic!("this program has no path: {error}"));
        let built = program.with_file_name(source.file);
        assert!(built.exists(), "{} is not there", built.display());
        let stage = Path::new(source.scratch).join(format!("{}-{}", source.name, std::process::id()));
        let made = fs::create_dir_all(&stage).and_then(|()| {
            [source.name.to_owned(), format!("{}.0", source.name)].iter().try_for_each(|name| {
                // A process before this one may have had its number.
                let _absent = fs::remove_file(stage.join(name));
                symlink(&built, stage.join(name))
            })
        });
        made.unwrap_or_else(|error| panic!("{}: {error}", stage.display()));
        Self { source, built, stage }
    }

    /// The file that cargo left.
    pub fn built(&self) -> &Path {
        &self.built
    }

    /// The folder with the names.
    pub fn folder(&self) -> &Path {
        &self.stage
    }

    /// A file or folder of the package.
    pub fn in_package(&self, path: &str) -> PathBuf {
        Path::new(self.source.package).join(path)
    }

    /// What it shows. None without nm.
    pub fn shown(&self) -> Option<BTreeSet<String>> {
        let text = self.told_by("nm", &["-D", "--defined-only"])?;
        Some(text.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect())
    }

    /// Asserts that programs note a name with a version, that it stays once it is loaded, and that it needs nothing which a machine
    /// may lack: such is loaded at run time. What readelf told; None without it.
    pub fn assert_loads_anywhere_and_stays(&self) -> Option<String> {
        let text = self.told_by("readelf", &["-d"])?;
        assert!(text.contains(&format!("soname: [{}.0]", self.source.name)), "{text}");
        assert!(text.contains("NODELETE"), "{text}");
        let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
        let needed = needed.filter_map(|line| line.split(['[', ']']).nth(1));
        let strange: Vec<&str> =
            needed.filter(|name| !SYSTEM.contains(name) && !name.starts_with("ld-linux")).collect();
        assert!(strange.is_empty(), "{strange:?}");
        Some(text)
    }

    fn told_by(&self, tool: &str, args: &[&str]) -> Option<String> {
        has(tool, "binutils").then(|| must(Command::new(tool).args(args).arg(&self.built)))
    }

    /// A prefix that `cargo xtask install` filled with it, and that was moved afterwards.
    pub fn installed(&self) -> PathBuf {
        let (first, moved) = (self.stage.join("first"), self.stage.join("moved"));
        let mut install = Command::new(env!("CARGO"));
        install.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        must(install.args(["xtask", "install", "--prefix"]).arg(&first).arg(self.source.option).arg(&self.built));
        let _absent = fs::remove_dir_all(&moved);
        fs::rename(&first, &moved).unwrap_or_else(|error| panic!("{}: {error}", moved.display()));
        moved
    }

    /// Compiles a program of the package and runs it with a file of [`file_of`] and `more`; what it wrote. None
    /// without a compiler.
    pub fn run(&self, compiler: &Compiler, source: &str, more: &[&str], settings: Settings<'_>) -> Option<String> {
        let scratch = Scratch::new(self.source.scratch, &source.replace(['/', '.'], "-"));
        let file = file_of(&scratch);
        let args: Vec<&str> = std::iter::once(file.as_str()).chain(more.iter().copied()).collect();
        self.compile(compiler, &self.in_package(source)).map(|program| program.run(&args, settings))
    }

    /// Compiles and links a program. None without a compiler.
    pub fn compile(&self, compiler: &Compiler, source: &Path) -> Option<Program<'_>> {
        if !has(compiler.name, compiler.package) {
            return None;
        }
        let program = Program { library: self, home: Scratch::new(self.source.scratch, "program") };
        let mut command = Command::new(compiler.name);
        command.args(&compiler.flags).arg("-I").arg(self.in_package("include"));
        command.arg("-I").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/c")).arg(source).arg("-L").arg(&self.stage);
        command.args([&format!("-l:{}", self.source.name), "-pthread", "-ldl", "-o"]).arg(program.path());
        must(&mut command);
        Some(program)
    }
}

/// A compiler, with what it is called with: every warning is an error.
#[derive(Clone, Debug)]
pub struct Compiler {
    name: &'static str,
    package: &'static str,
    flags: Vec<String>,
}

impl Compiler {
    /// `cc`.
    pub fn c() -> Self {
        Self { name: "cc", package: "gcc", flags: Vec::new() }.with("-std=c11 -D_GNU_SOURCE").strict()
    }

    /// `c++`.
    pub fn cpp() -> Self {
        Self { name: "c++", package: "g++", flags: Vec::new() }.with("-std=c++17").strict()
    }

    fn strict(self) -> Self {
        self.with("-Wall -Wextra -Werror -Wpedantic -g")
    }

    /// The same with more flags, which have spaces between.
    #[must_use]
    pub fn with(mut self, flags: &str) -> Self {
        self.flags.extend(flags.split_whitespace().map(str::to_owned));
        self
    }

    /// The same with the address and undefined-behaviour sanitizers; as it is, with a word, if the compiler has none.
    #[must_use]
    pub fn sanitized(self, scratch: &str) -> Self {
        static HAS: OnceLock<bool> = OnceLock::new();
        let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let has = *HAS.get_or_init(|| {
            let scratch = Scratch::new(scratch, "sanitized");
            let (source, program) = (scratch.path("empty.c"), scratch.path("empty"));
            let written = fs::write(&source, "int main(void) { return 0; }\n");
            written.unwrap_or_else(|error| panic!("{}: {error}", source.display()));
            works(Command::new("cc").arg("-fsanitize=address").arg(&source).arg("-o").arg(&program))
                && works(&mut Command::new(program))
        });
        if has {
            return self.with("-fsanitize=address,undefined -fno-sanitize-recover=all");
        }
        println!("skip: nothing runs under sanitizers: the compiler has none");
        self
    }
}

/// A program; its file goes with it.
#[derive(Debug)]
pub struct Program<'a> {
    library: &'a Library,
    home: Scratch,
}

impl Program<'_> {
    fn path(&self) -> PathBuf {
        self.home.path("program")
    }

    /// Runs it; what it wrote.
    pub fn run(&self, args: &[&str], settings: Settings<'_>) -> String {
        let mut command = Command::new(self.path());
        command.args(args).env("LD_LIBRARY_PATH", &self.library.stage);
        // What the library keeps for the process's life, and threads that an exit ends, are no leaks of the program's.
        command.env("ASAN_OPTIONS", "detect_leaks=0");
        command.envs(self.library.source.environment.iter().copied()).envs(settings.iter().copied());
        must(&mut command)
    }
}

/// A file of 1 MiB with the bytes that `test.h` expects.
pub fn file_of(scratch: &Scratch) -> String {
    let bytes: Vec<u8> = (0..1_usize << 20).map(|at| (at * 31 + at / 4093).to_le_bytes()[0]).collect();
    let file = scratch.text("file");
    fs::write(&file, bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
    file
}

/// Runs a command that must succeed; what it wrote.
pub fn must(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?} ended with {status}:\n{err}{out}");
    out.into_owned()
}

/// Whether a tool is there; a word if not.
pub fn has(tool: &str, package: &str) -> bool {
    let has = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has {
        println!("skip: {tool} is not there; install {package}");
    }
    has
}
