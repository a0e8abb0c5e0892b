//! The kernel's log, read from `/dev/kmsg` (Linux, `Documentation/ABI/testing/dev-kmsg`): a read gives one record,
//! `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT`, then lines of properties.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// Longest record (`PRINTK_MESSAGE_MAX` and properties).
const RECORD_BYTES_MAX: usize = 8192;
/// Records read at once, so that a kernel that logs without end does not hold us.
const RECORDS_MAX: usize = 20_000;

/// A place in the log.
#[derive(Debug)]
pub struct KernelLog {
    file: Option<File>,
}

impl KernelLog {
    /// All that the kernel still has.
    pub fn from_start() -> KernelLog {
        KernelLog::open(SeekFrom::Start(0))
    }

    /// What is logged from now on.
    pub fn from_now() -> KernelLog {
        KernelLog::open(SeekFrom::End(0))
    }

    fn open(from: SeekFrom) -> KernelLog {
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok();
        KernelLog { file: file.and_then(|mut file| file.seek(from).ok().map(|_| file)) }
    }

    /// Lines since the last call, each as `[SECONDS] TEXT`; none where the log may not be read.
    pub fn lines(&mut self) -> Vec<String> {
        let Some(file) = &mut self.file else { return Vec::new() };
        let mut record = vec![0; RECORD_BYTES_MAX];
        let mut lines = Vec::new();
        for _ in 0..RECORDS_MAX {
            match file.read(&mut record) {
                Ok(length) if length > 0 => {
                    lines.extend(line(&String::from_utf8_lossy(record.get(..length).unwrap_or_default())));
                }
                // Overwritten before it was read: the next read goes on behind it.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                _ => break,
            }
        }
        lines
    }
}

fn line(record: &str) -> Option<String> {
    let (head, text) = record.lines().next()?.split_once(';')?;
    let micros: u64 = head.split(',').nth(2)?.parse().ok()?;
    Some(format!("[{:5}.{:06}] {text}", micros / 1_000_000, micros % 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_becomes_a_line() {
        let record = "6,339,5140900,-;DMAR: DRHD: handling fault status reg 2\n SUBSYSTEM=pci\n";
        assert_eq!(line(record).unwrap(), "[    5.140900] DMAR: DRHD: handling fault status reg 2");
        assert_eq!(line("nonsense"), None);
    }
}
