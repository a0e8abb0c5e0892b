//! Runs the command in a directory of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

/// A directory that goes with its owner.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A fresh one below the build directory: on a disk, unlike the system's own temporary directory in many places.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file of `len` bytes that differ from place to place.
    pub fn file(&self, name: &str, len: usize) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content(len)).unwrap();
        path
    }

    /// Every name in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The command, to run here.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_straightway"));
        command.args(arguments).current_dir(&self.0).env_remove("COLUMNS").env("TMPDIR", &self.0).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(arguments, self.command(arguments).output().unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What a failed test leaves is below the build directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `len` bytes, each the high byte of a multiple of its place: no two blocks are equal.
pub fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|place| place.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect()
}

/// A run that ended.
pub struct Ran {
    line: String,
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn of(arguments: &[&str], output: Output) -> Self {
        Self {
            line: arguments.join(" "),
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}: {}", self.line, self.stderr);
        self
    }

    /// Asserts a failure: its code, and one line on stderr that holds `words`.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}: {}{}", self.line, self.text(), self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}: {}", self.line, self.stderr);
        assert!(self.stderr.starts_with("straightway: error: "), "{}: {}", self.line, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{}: no `{word}` in {}", self.line, self.stderr);
        }
        self
    }

    /// The objects on stdout, one a line.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        lines(self.text())
    }

    /// The only object on stdout, of that schema.
    #[track_caller]
    pub fn document(&self, schema: &str) -> Value {
        let mut all = self.json();
        assert_eq!(all.len(), 1, "{}: {}", self.line, self.text());
        assert_eq!(all[0]["schema"], schema, "{}", self.line);
        all.remove(0)
    }
}

/// JSON lines.
#[track_caller]
pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))).collect()
}
