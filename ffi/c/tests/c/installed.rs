//! An installation: programs are built from it as a user builds them, by pkg-config and by CMake.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use sw_testkit::{
    native::{file_of, has, must},
    scratch::Scratch,
};

use crate::LIBRARY;

static PREFIX: LazyLock<PathBuf> = LazyLock::new(|| LIBRARY.installed());

fn run(program: &Path, file: &str) -> String {
    must(Command::new(program).arg(file).env("LD_LIBRARY_PATH", PREFIX.join("lib")))
}

#[test]
fn a_plain_line_builds_the_examples() {
    if !has("cc", "gcc") || !has("c++", "g++") || !has("pkg-config", "pkg-config") {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "plain");
    let file = file_of(&scratch);
    for (line, ends) in [
        ("cc read.c $(pkg-config --cflags --libs straightway) -o", "\n"),
        ("cc overlap.c $(pkg-config --cflags --libs straightway) -o", "1048576 bytes\n"),
        ("c++ -std=c++17 futures.cpp $(pkg-config --cflags --libs straightway) -o", "1048576 bytes\n"),
    ] {
        let made = scratch.path("made");
        let mut command = Command::new("sh");
        command.arg("-ec").arg(format!("{line} {}", made.display()));
        command.env("PKG_CONFIG_PATH", PREFIX.join("lib/pkgconfig"));
        must(command.current_dir(PREFIX.join("share/doc/straightway/examples")));
        let said = run(&made, &file);
        assert!(said.ends_with(ends) && said.contains("1048576 bytes"), "{line}: {said}");
    }
    let version = must(
        Command::new("pkg-config")
            .args(["--modversion", "straightway"])
            .env("PKG_CONFIG_PATH", PREFIX.join("lib/pkgconfig")),
    );
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn cmake_builds_the_examples() {
    if !has("cc", "gcc") || !has("c++", "g++") || !has("cmake", "cmake") {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cmake");
    let file = file_of(&scratch);
    let build = scratch.path("build");
    let source = PREFIX.join("share/doc/straightway/examples");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(source).arg("-B").arg(&build);
    must(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", PREFIX.display())));
    must(Command::new("cmake").arg("--build").arg(&build));
    for name in ["read", "overlap", "futures"] {
        assert!(run(&build.join(name), &file).contains("1048576 bytes"), "{name}");
    }
}
