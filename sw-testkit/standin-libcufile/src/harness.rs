//! The tests' side: finds the built library, makes a copy of it for one test, and steers that.
// UNSAFETY: loads the copy and calls its control functions.

use std::path::{Path, PathBuf};

use crate::{Count, Setting};

/// The shared library that cargo built, looked for beside and above the running program.
fn built_library() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|e| format!("the running program has no path: {e}"))?;
    let folders = program.ancestors().skip(1).take(3).flat_map(|folder| [folder.to_path_buf(), folder.join("deps")]);
    let files: Vec<PathBuf> = folders.map(|folder| folder.join("libstandin_libcufile.so")).collect();
    let found = files.iter().find(|file| file.is_file()).cloned();
    found.ok_or_else(|| format!("no {files:?}; build it with `cargo build -p standin-libcufile`"))
}

/// Copies the library to `dir/libcufile.so.0`, without the names in `missing`: looking them up fails, as with an older one.
///
/// # Errors
/// A sentence: it was not built, the folder cannot be written, or a name is not in it.
pub fn install(dir: &Path, missing: &[&str]) -> Result<PathBuf, String> {
    let source = built_library()?;
    let mut bytes = std::fs::read(&source).map_err(|e| format!("{}: {e}", source.display()))?;
    for name in missing {
        // The loader finds a name by its hash and then compares texts; a text that differs is "not found".
        let text = [&[0], name.as_bytes(), &[0]].concat();
        let mut found = false;
        while let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            if let Some(last) = bytes.get_mut(at + name.len()) {
                *last = b'#';
            }
            found = true;
        }
        if !found {
            return Err(format!("{name} is not a symbol of {}", source.display()));
        }
    }
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let copy = dir.join("libcufile.so.0");
    std::fs::write(&copy, bytes).map_err(|e| format!("{}: {e}", copy.display()))?;
    Ok(copy)
}

/// The control functions of one copy, loaded in this process. Looked up at once: a child of a fork may use them.
pub struct Control {
    set: extern "C" fn(i32, i64),
    count: extern "C" fn(i32) -> i64,
    _library: libloading::Library,
}

impl Control {
    /// Of the copy at `path`.
    ///
    /// # Errors
    /// The loader's sentence.
    pub fn open(path: &Path) -> Result<Self, String> {
        // SAFETY: the stand-in has no initialisers.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
        // SAFETY: the signature is that of `standin_cufile_set`.
        let set =
            *unsafe { library.get::<extern "C" fn(i32, i64)>(b"standin_cufile_set\0") }.map_err(|e| e.to_string())?;
        // SAFETY: the signature is that of `standin_cufile_count`.
        let count = unsafe { library.get::<extern "C" fn(i32) -> i64>(b"standin_cufile_count\0") };
        let count = *count.map_err(|e| e.to_string())?;
        Ok(Self { set, count, _library: library })
    }

    /// Sets something.
    pub fn set(&self, setting: Setting, value: i64) {
        (self.set)(setting as i32, value);
    }

    /// Looks at a count.
    pub fn count(&self, count: Count) -> i64 {
        (self.count)(count as i32)
    }
}
