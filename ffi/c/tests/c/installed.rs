//! An installation: programs are built from it as a user builds them, by pkg-config and by CMake.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use sw_testkit::scratch::Scratch;

use crate::{library, package, program, scratch};

/// A prefix that `cargo xtask install` filled, and that was moved afterwards.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let first = scratch().join(format!("install-{}", std::process::id()));
        let moved = scratch().join(format!("prefix-{}", std::process::id()));
        let root = package().join("../..");
        let mut command = Command::new(env!("CARGO"));
        command.args(["xtask", "install", "--prefix"]).arg(&first).arg("--library").arg(library::built());
        must(command.current_dir(root));
        std::fs::rename(&first, &moved).unwrap();
        moved
    })
}

/// Runs a command that must succeed; what it wrote.
fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}:\n{out}{err}");
    out.into_owned()
}

fn has(tool: &str, package: &str) -> bool {
    let has = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has {
        println!("skip: {tool} is not there; install {package}");
    }
    has
}

fn run(program: &Path, file: &str) -> String {
    must(Command::new(program).arg(file).env("LD_LIBRARY_PATH", prefix().join("lib")))
}

#[test]
fn a_plain_line_builds_the_examples() {
    if !has("cc", "gcc") || !has("c++", "g++") || !has("pkg-config", "pkg-config") {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "plain");
    let file = program::file_of(&scratch);
    for (line, ends) in [
        ("cc read.c $(pkg-config --cflags --libs straightway) -o", "\n"),
        ("cc overlap.c $(pkg-config --cflags --libs straightway) -o", "1048576 bytes\n"),
        ("c++ -std=c++17 futures.cpp $(pkg-config --cflags --libs straightway) -o", "1048576 bytes\n"),
    ] {
        let made = scratch.path("made");
        let mut command = Command::new("sh");
        command.arg("-ec").arg(format!("{line} {}", made.display()));
        command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
        must(command.current_dir(prefix().join("share/doc/straightway/examples")));
        let said = run(&made, &file);
        assert!(said.ends_with(ends) && said.contains("1048576 bytes"), "{line}: {said}");
    }
    let version = must(
        Command::new("pkg-config")
            .args(["--modversion", "straightway"])
            .env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")),
    );
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn cmake_builds_the_examples() {
    if !has("cc", "gcc") || !has("c++", "g++") || !has("cmake", "cmake") {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cmake");
    let file = program::file_of(&scratch);
    let build = scratch.path("build");
    let source = prefix().join("share/doc/straightway/examples");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(source).arg("-B").arg(&build);
    must(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display())));
    must(Command::new("cmake").arg("--build").arg(&build));
    for name in ["read", "overlap", "futures"] {
        assert!(run(&build.join(name), &file).contains("1048576 bytes"), "{name}");
    }
}
