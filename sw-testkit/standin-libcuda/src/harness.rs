//! The tests' side: finds the built library, installs it where a child process will look, and steers it.
//!
//! The dynamic loader reads `LD_LIBRARY_PATH` once, at process start. A test that wants the stand-in therefore starts
//! itself again as a child, with the variable set:
//!
//! ```no_run
//! use standin_libcuda::harness;
//! # fn main() -> Result<(), String> {
//! let dir = std::env::temp_dir().join("standin");
//! harness::install(&dir, &[])?;
//! // … Command::new(current_exe).env("LD_LIBRARY_PATH", &dir) …, and in the child:
//! let control = harness::Control::open()?;
//! control.set_fault("cuMemAlloc_v2", 1, 2);
//! assert_eq!(control.stat("live"), 0);
//! # Ok(()) }
//! ```
// UNSAFETY: calls the control functions of the loaded library through the loader.
#![expect(unsafe_code, reason = "calls functions of a library loaded at run time")]

use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub use crate::fault::{COPY, KERNEL, SILENT_DAMAGE, SILENT_SHORT};

/// File names that clients of the driver ask the loader for.
pub const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// The shared library that cargo built, looked for beside and above the running program.
///
/// # Errors
/// A sentence that says where it was looked for.
pub fn built_library() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|e| format!("the running program has no path: {e}"))?;
    let mut looked = Vec::new();
    for folder in program.ancestors().skip(1).take(3) {
        for place in [folder.to_path_buf(), folder.join("deps")] {
            let file = place.join("libstandin_libcuda.so");
            if file.is_file() {
                return Ok(file);
            }
            looked.push(place.display().to_string());
        }
    }
    Err(format!(
        "libstandin_libcuda.so is not in {}; build it with `cargo build -p standin-libcuda`",
        looked.join(", ")
    ))
}

/// Puts the library into `dir` under the names that clients look for. They are links to one file: the hundreds of child
/// processes of a test run must not fill the disk with copies. Each name in `missing` is taken out of the symbol table of
/// a copy, so that looking it up fails as with an older driver.
///
/// # Errors
/// A sentence: the library was not built, the folder cannot be written, or a name to take out is not in it.
pub fn install(dir: &Path, missing: &[&str]) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut library = built_library()?;
    if !missing.is_empty() {
        let bytes = without(&library, missing)?;
        library = dir.join("libcuda-older.so");
        std::fs::write(&library, &bytes).map_err(|e| format!("{}: {e}", library.display()))?;
    }
    for name in NAMES {
        let link = dir.join(name);
        // A folder may be installed into twice.
        let _absent = std::fs::remove_file(&link);
        symlink(&library, &link).map_err(|e| format!("{}: {e}", link.display()))?;
    }
    Ok(())
}

/// The code of kernels for the stand-in (`STANDIN_KERNELS`): the sources in `kernels`, compiled for this machine and kept beside the
/// built library under a name that changes with them. `None` if there is no g++.
///
/// # Errors
/// A sentence: the sources cannot be read, or do not compile.
pub fn kernel_code() -> Result<Option<PathBuf>, String> {
    static BUILDS: AtomicU32 = AtomicU32::new(0);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let flags = "-std=c++17 -O2 -shared -fPIC -Wno-unknown-pragmas -Icuda -Iemulate emulate/emulate.cpp -o";
    let mut hash = DefaultHasher::new();
    flags.hash(&mut hash);
    for folder in ["cuda", "emulate"] {
        let entries = std::fs::read_dir(sources.join(folder)).map_err(|e| format!("kernels/{folder}: {e}"))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?.hash(&mut hash);
        }
    }
    let built = built_library()?;
    let beside = built.parent().ok_or("the built library has no folder")?;
    let library = beside.join(format!("libstandin_kernels-{:016x}.so", hash.finish()));
    if library.is_file() {
        return Ok(Some(library));
    }
    // Renamed when it is whole: several tests may build it at a time, in this process too.
    let build = BUILDS.fetch_add(1, Ordering::Relaxed);
    let fresh = library.with_extension(format!("{}-{build}.new", std::process::id()));
    let mut compile = std::process::Command::new("g++");
    match compile.current_dir(&sources).args(flags.split_whitespace()).arg(&fresh).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("g++: {error}")),
        Ok(output) if !output.status.success() => {
            return Err(format!("the kernels do not compile:\n{}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(_) => {}
    }
    std::fs::rename(&fresh, &library).map_err(|e| format!("{}: {e}", library.display()))?;
    Ok(Some(library))
}

/// The bytes of the library `source` with the names in `missing` taken out of its symbol table.
fn without(source: &Path, missing: &[&str]) -> Result<Vec<u8>, String> {
    let mut bytes = std::fs::read(source).map_err(|e| format!("{}: {e}", source.display()))?;
    for name in missing {
        // The loader finds a name by its hash and then compares texts; a text that differs is "not found".
        let text = [&[0], name.as_bytes(), &[0]].concat();
        let mut found = false;
        while let Some(at) = bytes.windows(text.len()).position(|w| w == text) {
            if let Some(last) = bytes.get_mut(at + name.len()) {
                *last = b'#';
            }
            found = true;
        }
        if !found {
            return Err(format!("{name} is not a symbol of {}", source.display()));
        }
    }
    Ok(bytes)
}

/// The control functions of the stand-in that this process has loaded.
pub struct Control {
    library: libloading::Library,
}

impl Control {
    /// Opens it through the loader's search path, as a client of the driver does.
    ///
    /// # Errors
    /// The loader's sentence, or "not the stand-in" if a real driver was found.
    pub fn open() -> Result<Self, String> {
        // cudarc asks for "libcuda.so" first; the loader keeps one copy for both names only if the file is the same.
        // SAFETY: loading runs the library's initialisers; the stand-in has none, and a real driver's are made for this.
        let library = unsafe { libloading::Library::new(NAMES[1]) }.map_err(|e| e.to_string())?;
        let control = Self { library };
        if control.call1::<u64>("standin_stat", "live").is_none() {
            return Err("the libcuda that was found is not the stand-in".to_owned());
        }
        Ok(control)
    }

    /// See `standin_set_fault` in `control.rs`: the `nth` call of `name` answers `code`.
    pub fn set_fault(&self, name: &str, nth: u64, code: u32) {
        if let (Ok(text), Some(function)) = (
            CString::new(name),
            self.get::<unsafe extern "C" fn(*const libc::c_char, u64, u32) -> u32>("standin_set_fault"),
        ) {
            // SAFETY: the signature is that of `control.rs`; the text outlives the call.
            unsafe { function(text.as_ptr(), nth, code) };
        }
    }

    /// Forgets the faults that have not been played.
    pub fn clear_faults(&self) {
        if let Some(function) = self.get::<unsafe extern "C" fn()>("standin_clear_faults") {
            // SAFETY: the signature is that of `control.rs`.
            unsafe { function() };
        }
    }

    /// Every context of the device answers `code` from now on.
    pub fn lose_device(&self, ordinal: u32, code: u32) {
        if let Some(function) = self.get::<unsafe extern "C" fn(u32, u32)>("standin_lose_device") {
            // SAFETY: the signature is that of `control.rs`.
            unsafe { function(ordinal, code) };
        }
    }

    /// Changes a setting; see `standin_set` in `control.rs`.
    pub fn set(&self, name: &str, value: u64) {
        if let (Ok(text), Some(function)) =
            (CString::new(name), self.get::<unsafe extern "C" fn(*const libc::c_char, u64) -> u32>("standin_set"))
        {
            // SAFETY: the signature is that of `control.rs`; the text outlives the call.
            unsafe { function(text.as_ptr(), value) };
        }
    }

    /// A counter; see `standin_stat` in `control.rs`. `u64::MAX` for one that does not exist.
    pub fn stat(&self, name: &str) -> u64 {
        self.call1("standin_stat", name).unwrap_or(u64::MAX)
    }

    fn call1<R: Copy>(&self, function: &str, text: &str) -> Option<R> {
        let text = CString::new(text).ok()?;
        let function = self.get::<unsafe extern "C" fn(*const libc::c_char) -> R>(function)?;
        // SAFETY: the only caller passes the name and result type of `control.rs`; the text outlives the call.
        Some(unsafe { function(text.as_ptr()) })
    }

    fn get<F: Copy>(&self, name: &str) -> Option<F> {
        // SAFETY: every caller in this file states the signature that `control.rs` exports under that name.
        unsafe { self.library.get::<F>(name) }.ok().map(|symbol| *symbol)
    }
}
