//! The shared library: its names, what it shows, what it needs.

use std::{
    collections::BTreeSet,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{package, scratch};

/// The shared library as cargo leaves it beside this program.
pub(crate) fn built() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let path = deps.join("libstraightway_cufile.so");
    assert!(path.exists(), "{} is not there", path.display());
    path
}

/// A directory in which the library has its names, as an installation would have them.
pub(crate) fn staged() -> &'static Path {
    static STAGED: OnceLock<PathBuf> = OnceLock::new();
    STAGED.get_or_init(|| {
        let stage = scratch().join(format!("libcufile-{}", std::process::id()));
        std::fs::create_dir_all(&stage).unwrap();
        for name in ["libcufile.so", "libcufile.so.0"] {
            let link = stage.join(name);
            let _ = std::fs::remove_file(&link);
            symlink(built(), link).unwrap();
        }
        stage
    })
}

fn told_by(tool: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(tool).args(args).arg(built()).output().ok()?;
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

fn committed() -> BTreeSet<String> {
    std::fs::read_to_string(package().join("abi.txt")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn it_shows_the_committed_names_and_nothing_else() {
    let Some(text) = told_by("nm", &["-D", "--defined-only"]) else {
        println!("skip: nm is not there; install binutils");
        return;
    };
    let shown: BTreeSet<String> =
        text.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect();
    assert_eq!(shown, committed(), "a change of ffi/cufile/abi.txt is a change of the interface");
    let (own, official): (Vec<_>, Vec<_>) = shown.iter().partition(|name| name.starts_with("sw_cufile_"));
    assert_eq!(official.len(), 50, "the public names of 1.20");
    assert!(official.iter().all(|name| name.starts_with("cuFile")), "{official:?}");
    assert_eq!(own.len(), 4);
}

#[test]
fn every_name_is_in_a_header() {
    let header = |name: &str| std::fs::read_to_string(package().join("include").join(name)).unwrap();
    let headers = header("cufile.h") + &header("sw_cufile.h");
    for name in committed() {
        assert!(headers.contains(&format!("{name}(")), "{name} is in no header");
    }
}

#[test]
fn its_name_is_that_of_cufile_and_it_stays_once_it_is_loaded() {
    let Some(text) = told_by("readelf", &["-d"]) else {
        println!("skip: readelf is not there; install binutils");
        return;
    };
    assert!(text.contains("soname: [libcufile.so.0]"), "{text}");
    assert!(text.contains("NODELETE"), "{text}");
    // As of the official one: no versions of symbols.
    assert!(!text.contains("VERDEF"), "{text}");
    // What a machine may lack is loaded at run time.
    let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
    let needed: Vec<&str> = needed.filter_map(|line| line.split(['[', ']']).nth(1)).collect();
    let system = ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"];
    let strange: Vec<&&str> =
        needed.iter().filter(|name| !system.contains(name) && !name.starts_with("ld-linux")).collect();
    assert!(strange.is_empty(), "{strange:?}");
}
