//! The log of cuFile: a file, or standard error; off unless somebody asks for it.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::{
    code::{DRIVER_INVALID_PROPS, Failure},
    settings::{LOG_DIR, LOG_FILE, LOG_LEVEL, Origin, Values},
};

/// Names of levels; each says what those before it say.
const LEVELS: [&str; 7] = ["OFF", "ERROR", "WARN", "NOTICE", "INFO", "DEBUG", "TRACE"];
const ERROR: u8 = 1;
const WARN: u8 = 2;
/// What is logged if somebody says where to, and not how much.
const USUAL: u8 = ERROR;

/// Where lines go.
#[derive(Default)]
pub(crate) struct Log {
    level: AtomicU8,
    /// None: standard error.
    file: Mutex<Option<File>>,
}

/// The number of a level.
///
/// # Errors
/// What there is.
pub(crate) fn level_of(name: &str) -> Result<u8, String> {
    let known = LEVELS.iter().position(|known| known.eq_ignore_ascii_case(name.trim()));
    known.and_then(|at| u8::try_from(at).ok()).ok_or_else(|| format!("{name:?} is none of {}", LEVELS.join(", ")))
}

impl Log {
    /// # Errors
    /// `DRIVER_INVALID_PROPS` for a level that does not exist or a file that cannot be written.
    pub(crate) fn set_up(&self, values: &Values) -> Result<(), Failure> {
        let wrong = |what: String| Failure::new(DRIVER_INVALID_PROPS, what);
        let (level, origin) = &values.texts[LOG_LEVEL];
        let mut level = level_of(level).map_err(|what| wrong(format!("logging.level: {what}")))?;
        let (file, directory) = (&values.texts[LOG_FILE].0, &values.texts[LOG_DIR].0);
        let path = if !file.is_empty() {
            Some(PathBuf::from(file))
        } else if !directory.is_empty() {
            Some(PathBuf::from(directory).join(format!("cufile_{}.log", std::process::id())))
        } else {
            None
        };
        if path.is_some() && *origin == Origin::Default {
            level = USUAL;
        }
        let open = |path: &PathBuf| OpenOptions::new().append(true).create(true).open(path);
        let file = match &path {
            Some(path) if level > 0 => {
                Some(open(path).map_err(|error| wrong(format!("the log {}: {error}", path.display())))?)
            }
            _ => None,
        };
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        self.level.store(level, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn error(&self, text: &str) {
        self.line(ERROR, text);
    }

    pub(crate) fn warn(&self, text: &str) {
        self.line(WARN, text);
    }

    fn line(&self, level: u8, text: &str) {
        if level > self.level.load(Ordering::Relaxed) {
            return;
        }
        let name = LEVELS[usize::from(level)];
        let line = format!("{name} libcufile (straightway) {}: {text}\n", std::process::id());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk must not stop the program's work.
        let _ = match &mut *file {
            Some(file) => file.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names() {
        assert_eq!(level_of("warn"), Ok(WARN));
        assert!(level_of("loud").unwrap_err().contains("TRACE"));
    }
}
