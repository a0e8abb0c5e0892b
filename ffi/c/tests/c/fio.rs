//! fio's external engine: built against the headers of the fio that is here, and run by it.
//!
//! The headers are those of a configured source tree of the same version, which no package brings: `STRAIGHTWAY_FIO_SOURCE` names it.

use std::process::Command;

use sw_testkit::scratch::Scratch;

use crate::LIBRARY;

#[test]
#[expect(clippy::disallowed_methods, reason = "a test asks where the headers are")]
fn job_files_of_fio_run() {
    let source = std::env::var_os("STRAIGHTWAY_FIO_SOURCE").map(std::path::PathBuf::from);
    let Some(source) = source.filter(|source| source.join("config-host.h").is_file()) else {
        println!("skip: no headers of fio; configure its source and name it in STRAIGHTWAY_FIO_SOURCE");
        return;
    };
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "fio");
    let engine = scratch.path("straightway-fio.so");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O2", "-Wall", "-D_GNU_SOURCE", "-include"]).arg(source.join("config-host.h"));
    compile
        .arg("-I")
        .arg(&source)
        .arg("-I")
        .arg(LIBRARY.in_package("include"))
        .arg(LIBRARY.in_package("fio/straightway.c"));
    compile.arg("-L").arg(LIBRARY.folder()).args(["-lstraightway", "-o"]).arg(&engine);
    run(&mut compile);
    let fio = |job: &str| {
        let mut fio = Command::new("fio");
        fio.arg("--name=job").arg(format!("--ioengine=external:{}", engine.display()));
        fio.arg(format!("--filename={}", scratch.text("file"))).args(job.split(' '));
        // It leaves a file about what it verified where it runs.
        fio.current_dir(scratch.root()).env("LD_LIBRARY_PATH", LIBRARY.folder());
        fio
    };
    let written =
        "--size=4m --rw=randwrite --bs=4k --iodepth=16 --verify=crc32c --fsync=64 --settings=gpu=off,reactors=1";
    run(&mut fio(written));
    run(&mut fio("--size=4m --rw=randread --bs=4k --iodepth=32 --thread --numjobs=2"));
    run(&mut fio("--size=4m --rw=read --bs=1m --iodepth=1"));
    let refused = fio("--size=4m --rw=read --bs=1m --policy=require=nvme").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(!refused.status.success() && said.contains("no route meets the policy"), "{said}");
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !said.contains("failed:"), "{command:?}:\n{said}");
}
