//! `cargo xtask kernels`: the PTX of `kernels/` from its sources, with a compiler library out of a wheel.
//!
//! ```text
//! target/kernels-py   a Python environment with the one package of kernels/compiler.txt, pinned by version and digest (24 MB to fetch)
//!   └─ kernels/compile.py ──► target/kernels-ptx/*.ptx ──► compared with kernels/ptx, or put there
//! ```
//!
//! The compiler gives the same bytes in every folder and at every time, so a byte that differs is a source that was changed without its
//! PTX, or the other way round.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::proc::{Echo, Job};
use crate::{Place, Stop, pyenv};

const REQUIREMENTS: &str = "kernels/compiler.txt";
const COMMITTED: &str = "kernels/ptx";
const USAGE: &str = "write cargo xtask kernels, or cargo xtask kernels --check";
/// Six seconds alone on one core.
const COMPILE_LIMIT: Duration = Duration::from_secs(300);

/// What is done with the fresh PTX.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Replace,
    Compare,
}

/// Compiles, and replaces or compares.
pub fn run(place: &Place, args: &[String]) -> Result<ExitCode, Stop> {
    let purpose = match args {
        [] => Purpose::Replace,
        [word] if word == "--check" => Purpose::Compare,
        _ => return Err(Stop::new("kernels takes one word at most", USAGE)),
    };
    compiler(place).map_err(|reason| Stop::new(reason, "make the package index reachable"))?;
    let fresh = compile(place)?;
    let committed = place.root.join(COMMITTED);
    let differing = differing(&fresh, &committed)?;
    match purpose {
        Purpose::Compare if differing.is_empty() => {
            println!("kernels: the committed PTX is what the sources give");
            Ok(ExitCode::SUCCESS)
        }
        Purpose::Compare => {
            println!(
                "kernels: {} in {COMMITTED} is not what the sources give; run cargo xtask kernels",
                differing.join(", ")
            );
            Ok(ExitCode::FAILURE)
        }
        Purpose::Replace => {
            for name in &differing {
                let _absent_is_fine = fs::remove_file(committed.join(name));
                if fresh.join(name).is_file() {
                    let copied = fs::copy(fresh.join(name), committed.join(name));
                    copied.map_err(|error| failed(&committed.join(name), &error))?;
                }
                println!("kernels: {COMMITTED}/{name} is new");
            }
            println!("kernels: {} changed", differing.len());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The compiler's library, or why there is none. Fetched once; again when the pin changed.
pub fn compiler(place: &Place) -> Result<(), String> {
    pyenv::pinned(place, REQUIREMENTS, &environment(place))
}

fn environment(place: &Place) -> PathBuf {
    place.root.join("target/kernels-py")
}

/// The folder with the fresh PTX.
fn compile(place: &Place) -> Result<PathBuf, Stop> {
    let out = place.root.join("target/kernels-ptx");
    let _absent_is_fine = fs::remove_dir_all(&out);
    fs::create_dir_all(&out).map_err(|error| failed(&out, &error))?;
    let python = environment(place).join("bin/python");
    let script = "import importlib.util as u; print(u.find_spec('nvidia.cuda_nvrtc').submodule_search_locations[0])";
    let found = Job::program(place, &python, &["-c".to_string(), script.to_string()]).echo(Echo::Hidden).run()?;
    let Some(package) = found.lines.first().map(PathBuf::from) else {
        return Err(Stop::new("the compiler was installed and is not found", "remove target/kernels-py and try again"));
    };
    let libraries = package.join("lib");
    let args = [
        "kernels/compile.py".into(),
        libraries.join("libnvrtc.so.12").display().to_string(),
        out.display().to_string(),
    ];
    // It loads a companion by name.
    let job = Job::program(place, &python, &args).env("LD_LIBRARY_PATH", libraries.display().to_string());
    match job.limit(COMPILE_LIMIT).watch()? {
        0 => Ok(out),
        status => Err(Stop::new(format!("the kernels did not compile: {status}"), "see the compiler's words above")),
    }
}

/// Names of files that are not the same in both folders.
fn differing(fresh: &Path, committed: &Path) -> Result<Vec<String>, Stop> {
    let mut names = Vec::new();
    for folder in [fresh, committed] {
        for entry in fs::read_dir(folder).map_err(|error| failed(folder, &error))? {
            let entry = entry.map_err(|error| failed(folder, &error))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    names.dedup();
    let read = |folder: &Path, name: &str| fs::read(folder.join(name)).ok();
    names.retain(|name| read(fresh, name) != read(committed, name));
    Ok(names)
}

fn failed(path: &Path, error: &std::io::Error) -> Stop {
    Stop::new(format!("{}: {error}", path.display()), "check who may write there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_differs_or_is_in_one_folder_only_is_told() {
        let root = std::env::temp_dir().join(format!("xtask-kernels-{}", std::process::id()));
        let (a, b) = (root.join("a"), root.join("b"));
        for (folder, files) in [(&a, ["same", "other", "fresh"]), (&b, ["same", "other", "gone"])] {
            fs::create_dir_all(folder).unwrap();
            for name in files {
                let text = if name == "other" { folder.display().to_string() } else { name.to_string() };
                fs::write(folder.join(name), text).unwrap();
            }
        }
        let found = differing(&a, &b);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found.unwrap_or_else(|stop| panic!("{stop}")), ["fresh", "gone", "other"]);
    }
}
