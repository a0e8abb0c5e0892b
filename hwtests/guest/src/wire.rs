//! Lines to the host over the second serial port, and its answers. `xtask/src/vm/wire.rs` has the list.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// The second serial port of the guest.
const PORT: &str = "/dev/ttyS1";
/// Characters of a line: the port is slow.
pub const LINE_CHARS_MAX: usize = 8000;

/// The way to the host. Outside of the bed there is none: lines then go to a file, or to stdout.
#[derive(Debug)]
pub struct Wire {
    port: Option<BufReader<File>>,
    file: Option<File>,
}

impl Wire {
    /// Opens the port, if this is a guest of the bed.
    pub fn open(in_bed: InBed) -> Wire {
        let open = || File::options().read(true).write(true).open(Path::new(PORT)).ok();
        let port = if in_bed == InBed::Yes { open() } else { None };
        Wire { port: port.map(BufReader::new), file: None }
    }

    /// Lines go to a file, which a test's parent reads afterwards.
    pub fn to_file(path: &Path) -> Wire {
        Wire { port: None, file: File::options().append(true).create(true).open(path).ok() }
    }

    /// Sends one line; what would break it is replaced.
    pub fn send(&mut self, line: &str) {
        let mut line: String =
            line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE_CHARS_MAX).collect();
        line.push('\n');
        let sent = match (&mut self.port, &mut self.file) {
            (Some(port), _) => port.get_mut().write_all(line.as_bytes()),
            (None, Some(file)) => file.write_all(line.as_bytes()),
            (None, None) => std::io::stdout().write_all(line.as_bytes()),
        };
        if let Err(error) = sent {
            // The console is all that is left; the host fails a guest without results.
            eprintln!("no way to the host ({error}): {line}");
        }
    }

    /// Asks the host and waits for its answer; the limit is the test's own.
    ///
    /// # Errors
    /// The host's reason, or that there is no host.
    pub fn ask(&mut self, verb: &str, argument: &str) -> Result<String, String> {
        self.send(&format!("SW-HOST {verb} {argument}"));
        let Some(port) = &mut self.port else { return Err("there is no host".to_string()) };
        let mut answer = String::new();
        port.read_line(&mut answer).map_err(|error| format!("the host did not answer ({error})"))?;
        let answer = answer.trim_end();
        match answer.split_once(' ').unwrap_or((answer, "")) {
            ("ok", text) => Ok(text.to_string()),
            ("no", reason) => Err(reason.to_string()),
            _ => Err(format!("the host answered {answer:?}")),
        }
    }
}

/// Whether the program runs in a guest of the bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InBed {
    Yes,
    No,
}
