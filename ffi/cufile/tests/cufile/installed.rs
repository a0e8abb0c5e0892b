//! An installation, and programs that take the library from it: by the search path, and by preloading.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use sw_testkit::scratch::Scratch;

use crate::{library, package, scratch};

/// A prefix that `cargo xtask install` filled, and that was moved afterwards.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let first = scratch().join(format!("cufile-install-{}", std::process::id()));
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(package().join("../.."));
        command.args(["xtask", "install", "--prefix"]).arg(&first).arg("--cufile").arg(library::built());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
        let moved = scratch().join(format!("cufile-moved-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&moved);
        std::fs::rename(first, &moved).unwrap();
        moved
    })
}

/// A program that finds cuFile as clients do, by `dlopen("libcufile.so.0")`, and reads its file.
fn client(scratch: &Scratch) -> Option<PathBuf> {
    let program = scratch.path("client");
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-I"]);
    command.arg(prefix().join("include/straightway-cufile"));
    command.arg(package().join("tests/cufile/programs/client.c")).arg("-ldl").arg("-o").arg(&program);
    match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
            Some(program)
        }
        Err(error) => {
            println!("skip: cc is not there ({error}); install gcc");
            None
        }
    }
}

#[test]
fn a_program_that_loads_cufile_by_name_gets_ours_from_either_variable() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cufile-client");
    let bytes = scratch.file("data", 300_000);
    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    let Some(program) = client(&scratch) else { return };
    let directory = prefix().join("lib/straightway-cufile");
    for (name, value) in [("LD_LIBRARY_PATH", directory.clone()), ("LD_PRELOAD", directory.join("libcufile.so.0"))] {
        let output = Command::new(&program).arg(scratch.path("data")).env(name, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        assert!(said.contains(&format!("sum {sum}")), "{name}: {said}");
        assert!(said.contains("straightway.cufile/1"), "{name}: {said}");
    }
    // Nothing of it lies where the loader looks by itself.
    assert!(!prefix().join("lib/libcufile.so.0").exists());
    assert!(prefix().join("share/doc/straightway/cufile.md").exists());
}
