//! QEMU's monitor protocol, as far as the bed speaks it: one command, one answer, events in between.
//! QEMU 7.2 documentation, "QEMU Machine Protocol Specification".

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long an answer may take. A command that QEMU holds longer than this has failed.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Lines read while something is waited for, and events kept for later.
const EVENTS_MAX: usize = 1000;

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Monitor {
    reader: BufReader<UnixStream>,
    /// Devices that QEMU has let go of, by id, until somebody asks.
    deleted: Vec<String>,
}

impl Monitor {
    /// Connects and leaves the negotiation mode.
    ///
    /// # Errors
    /// A sentence: QEMU is gone or does not answer.
    pub fn connect(socket: &Path) -> Result<Monitor, String> {
        let stream = UnixStream::connect(socket).map_err(|error| format!("no monitor ({error})"))?;
        let limits = stream.set_read_timeout(Some(ANSWER_LIMIT)).and(stream.set_write_timeout(Some(ANSWER_LIMIT)));
        limits.map_err(|error| format!("no limits on the monitor ({error})"))?;
        let mut monitor = Monitor { reader: BufReader::new(stream), deleted: Vec::new() };
        monitor.line()?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs one command and gives what it returns.
    ///
    /// # Errors
    /// QEMU's own description, or that it did not answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let request = json!({"execute": command, "arguments": arguments});
        let sent = self.reader.get_mut().write_all(format!("{request}\n").as_bytes());
        sent.map_err(|error| format!("{command} could not be sent ({error})"))?;
        for _ in 0..EVENTS_MAX {
            let mut answer = self.line()?;
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            if let Some(error) = answer.get("error") {
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("no description");
                return Err(format!("{command}: {text}"));
            }
            self.keep(&answer);
        }
        Err(format!("{command}: more than {EVENTS_MAX} events and no answer"))
    }

    /// Waits until QEMU has let go of a device that was removed; only then may its id and its disk be used again.
    ///
    /// # Errors
    /// It did not within the limit of an answer.
    pub fn wait_deleted(&mut self, id: &str) -> Result<(), String> {
        for _ in 0..EVENTS_MAX {
            if let Some(index) = self.deleted.iter().position(|other| other == id) {
                self.deleted.remove(index);
                return Ok(());
            }
            let event = self.line().map_err(|reason| format!("{id} is still there: {reason}"))?;
            self.keep(&event);
        }
        Err(format!("{id} is still there after {EVENTS_MAX} events"))
    }

    fn keep(&mut self, event: &Value) {
        if event.get("event").and_then(Value::as_str) == Some("DEVICE_DELETED")
            && let Some(id) = event.pointer("/data/device").and_then(Value::as_str)
            && self.deleted.len() < EVENTS_MAX
        {
            self.deleted.push(id.to_string());
        }
    }

    fn line(&mut self) -> Result<Value, String> {
        let mut text = String::new();
        match self.reader.read_line(&mut text) {
            Ok(0) => Err("the monitor closed".to_string()),
            Ok(_) => serde_json::from_str(&text).map_err(|error| format!("the monitor sent no JSON ({error})")),
            Err(error) => Err(format!("the monitor did not answer ({error})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_behind_events_and_an_error_keeps_its_words() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor { reader: BufReader::new(ours), deleted: Vec::new() };
        theirs.write_all(b"{\"event\": \"RESET\"}\n{\"return\": {\"n\": 3}}\n").unwrap();
        assert_eq!(monitor.execute("x", &json!({})).unwrap(), json!({"n": 3}));
        theirs.write_all(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such device\"}}\n").unwrap();
        assert_eq!(monitor.execute("device_del", &json!({})).unwrap_err(), "device_del: no such device");
        let deleted = |id| format!("{{\"event\": \"DEVICE_DELETED\", \"data\": {{\"device\": \"{id}\"}}}}\n");
        theirs.write_all((deleted("one") + "{\"return\": {}}\n" + &deleted("two")).as_bytes()).unwrap();
        monitor.execute("x", &json!({})).unwrap();
        monitor.wait_deleted("two").unwrap();
        monitor.wait_deleted("one").unwrap();
        drop(theirs);
        assert!(monitor.wait_deleted("one").is_err());
        assert!(monitor.execute("x", &json!({})).is_err());
    }
}
