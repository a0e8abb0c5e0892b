//! An installation, and programs that take the library from it: by the search path, and by preloading.

use std::{path::PathBuf, process::Command, sync::LazyLock};

use sw_testkit::{
    native::{has, must},
    scratch::Scratch,
};

use crate::LIBRARY;

static PREFIX: LazyLock<PathBuf> = LazyLock::new(|| LIBRARY.installed());

/// A program that finds cuFile as clients do, by `dlopen("libcufile.so.0")`, and reads its file.
fn client(scratch: &Scratch) -> Option<PathBuf> {
    if !has("cc", "gcc") {
        return None;
    }
    let program = scratch.path("client");
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-I"]);
    command.arg(PREFIX.join("include/straightway-cufile"));
    command.arg(LIBRARY.in_package("tests/cufile/programs/client.c")).arg("-ldl").arg("-o").arg(&program);
    must(&mut command);
    Some(program)
}

#[test]
fn a_program_that_loads_cufile_by_name_gets_ours_from_either_variable() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "cufile-client");
    let bytes = scratch.file("data", 300_000);
    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    let Some(program) = client(&scratch) else { return };
    let directory = PREFIX.join("lib/straightway-cufile");
    for (name, value) in [("LD_LIBRARY_PATH", directory.clone()), ("LD_PRELOAD", directory.join("libcufile.so.0"))] {
        let output = Command::new(&program).arg(scratch.path("data")).env(name, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        assert!(said.contains(&format!("sum {sum}")), "{name}: {said}");
        assert!(said.contains("straightway.cufile/1"), "{name}: {said}");
    }
    // Nothing of it lies where the loader looks by itself.
    assert!(!PREFIX.join("lib/libcufile.so.0").exists());
    assert!(PREFIX.join("share/doc/straightway/cufile.md").exists());
}
