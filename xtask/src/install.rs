//! `cargo xtask install`: the C library, its headers, what tells pkg-config and CMake of them, and the library for programs that were
//! written for cuFile, below a prefix.
//!
//! ```text
//! PREFIX/lib/libstraightway.so.VERSION   ◄── libstraightway.so.0 ◄── libstraightway.so
//! PREFIX/include/straightway.h, straightway.hpp
//! PREFIX/lib/pkgconfig/straightway.pc
//! PREFIX/lib/cmake/straightway/straightway-config.cmake, straightway-config-version.cmake
//! PREFIX/share/doc/straightway/LICENSE, c-api.md, examples
//! PREFIX/share/straightway/fio/straightway.c
//! PREFIX/lib/straightway-cufile/libcufile.so.0 ◄── libcufile.so
//! PREFIX/include/straightway-cufile/cufile.h, sw_cufile.h
//! PREFIX/share/doc/straightway/cufile.md
//! ```
//!
//! The second library lies in a directory of its own, so that nobody gets it by accident instead of the one of CUDA.
//!
//! Nothing in it names the prefix: it may be moved.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::proc::Job;
use crate::{Place, Stop, WATCHED_LIMIT};

/// The version of all packages of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The name that programs note; `ffi/c/build.rs` puts it into the library.
const SONAME: &str = "libstraightway.so.0";
const USAGE: &str = "write cargo xtask install --prefix DIR [--library FILE] [--cufile FILE]";
/// Where the library for programs of cuFile lies.
const CUFILE: &str = "lib/straightway-cufile";

struct Options {
    prefix: PathBuf,
    /// Shared libraries that are there already, instead of building them. With one of them only that one is installed.
    library: Option<PathBuf>,
    cufile: Option<PathBuf>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, Stop> {
        let (mut prefix, mut library, mut cufile) = (None, None, None);
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let place = match word.as_str() {
                "--prefix" => &mut prefix,
                "--library" => &mut library,
                "--cufile" => &mut cufile,
                other => return Err(Stop::new(format!("install does not know {other}"), USAGE)),
            };
            let value = words.next().ok_or_else(|| Stop::new(format!("{word} wants a path"), USAGE))?;
            *place = Some(PathBuf::from(value));
        }
        let prefix = prefix.ok_or_else(|| Stop::new("install wants a prefix", USAGE))?;
        Ok(Self { prefix, library, cufile })
    }
}

/// Builds the library, unless it is given, and puts everything in place.
pub fn run(place: &Place, args: &[String]) -> Result<ExitCode, Stop> {
    let options = Options::parse(args)?;
    let (library, cufile) = match (options.library, options.cufile) {
        (None, None) => (Some(build(place, "straightway-c")?), Some(build(place, "straightway-cufile")?)),
        given => given,
    };
    let to = Files { prefix: options.prefix };
    if let Some(library) = library {
        install_c(place, &to, &library)?;
    }
    if let Some(library) = cufile {
        install_cufile(place, &to, &library)?;
    }
    to.copy(&place.root.join("LICENSE"), "share/doc/straightway/LICENSE")?;
    println!("installed in {}", to.prefix.display());
    Ok(ExitCode::SUCCESS)
}

fn install_cufile(place: &Place, to: &Files, library: &Path) -> Result<(), Stop> {
    to.copy(library, &format!("{CUFILE}/libcufile.so.0"))?;
    to.link("libcufile.so.0", &format!("{CUFILE}/libcufile.so"))?;
    for header in ["cufile.h", "sw_cufile.h"] {
        let from = place.root.join("ffi/cufile/include").join(header);
        to.copy(&from, &format!("include/straightway-cufile/{header}"))?;
    }
    to.copy(&place.root.join("docs/cufile.md"), "share/doc/straightway/cufile.md")
}

fn install_c(place: &Place, to: &Files, library: &Path) -> Result<(), Stop> {
    let source = place.root.join("ffi/c");
    to.copy(library, &format!("lib/libstraightway.so.{VERSION}"))?;
    to.link(&format!("libstraightway.so.{VERSION}"), &format!("lib/{SONAME}"))?;
    to.link(SONAME, "lib/libstraightway.so")?;
    for header in ["straightway.h", "straightway.hpp"] {
        to.copy(&source.join("include").join(header), &format!("include/{header}"))?;
    }
    to.filled(&source.join("install/straightway.pc"), "lib/pkgconfig/straightway.pc")?;
    for name in ["straightway-config.cmake", "straightway-config-version.cmake"] {
        to.filled(&source.join("install").join(name), &format!("lib/cmake/straightway/{name}"))?;
    }
    to.copy(&place.root.join("docs/c-api.md"), "share/doc/straightway/c-api.md")?;
    for name in ["read.c", "overlap.c", "stream.c", "futures.cpp", "CMakeLists.txt"] {
        to.copy(&source.join("examples").join(name), &format!("share/doc/straightway/examples/{name}"))?;
    }
    to.copy(&source.join("fio/straightway.c"), "share/straightway/fio/straightway.c")
}

/// Builds both libraries, and the stand-in driver for programs that want one, as they are installed. Gives the folder.
pub fn build_all(place: &Place) -> Result<PathBuf, Stop> {
    for package in ["straightway-c", "straightway-cufile", "standin-libcuda"] {
        build(place, package)?;
    }
    Ok(place.target.join(place.profile.name()))
}

/// Optimised, and as a shared library only: with the other kind beside it, nothing is optimised across crates.
fn build(place: &Place, package: &str) -> Result<PathBuf, Stop> {
    let args =
        ["rustc", "--profile", place.profile.name(), "--quiet", "-p", package, "--lib", "--crate-type", "cdylib"];
    match Job::cargo(place, &args.map(String::from)).limit(WATCHED_LIMIT).watch()? {
        0 => Ok(place.built(&format!("lib{}.so", package.replace('-', "_")))),
        status => Err(Stop::new(format!("{package} did not build: {status}"), "see its output above")),
    }
}

struct Files {
    prefix: PathBuf,
}

impl Files {
    fn path(&self, name: &str) -> Result<PathBuf, Stop> {
        let path = self.prefix.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| failed(parent, &error))?;
        }
        Ok(path)
    }

    /// Replaced by its name, so that a program that runs keeps the library that it has loaded.
    fn copy(&self, from: &Path, name: &str) -> Result<(), Stop> {
        let path = self.path(name)?;
        let fresh = path.with_extension("new");
        fs::copy(from, &fresh).map_err(|error| failed(from, &error))?;
        fs::rename(&fresh, &path).map_err(|error| failed(&path, &error))
    }

    fn link(&self, target: &str, name: &str) -> Result<(), Stop> {
        let path = self.path(name)?;
        let fresh = path.with_extension("new");
        let _ = fs::remove_file(&fresh);
        symlink(target, &fresh).map_err(|error| failed(&fresh, &error))?;
        fs::rename(&fresh, &path).map_err(|error| failed(&path, &error))
    }

    /// A template with the version filled in.
    fn filled(&self, from: &Path, name: &str) -> Result<(), Stop> {
        let text = fs::read_to_string(from).map_err(|error| failed(from, &error))?;
        let path = self.path(name)?;
        fs::write(&path, text.replace("@VERSION@", VERSION)).map_err(|error| failed(&path, &error))
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Stop {
    Stop::new(format!("{}: {error}", path.display()), "check the prefix and who may write there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_asked_for() {
        let parse = |args: &[&str]| Options::parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(parse(&[]).is_err() && parse(&["--prefix"]).is_err() && parse(&["/usr"]).is_err());
        let options = parse(&["--prefix", "/opt/sw", "--library", "x.so"]).unwrap_or_else(|stop| panic!("{stop}"));
        assert_eq!((options.prefix, options.library), (PathBuf::from("/opt/sw"), Some(PathBuf::from("x.so"))));
        let options = parse(&["--cufile", "y.so", "--prefix", "/opt/sw"]).unwrap_or_else(|stop| panic!("{stop}"));
        assert_eq!((options.library, options.cufile), (None, Some(PathBuf::from("y.so"))));
    }
}
