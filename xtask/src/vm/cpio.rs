//! The archive format of an initial file system: "newc" of cpio, as `Documentation/driver-api/early-userspace/buffer-format.rst`
//! of Linux writes it down. Archives may follow each other in one file; a later entry of the same name wins.
//!
//! ```text
//! entry: "070701", 13 numbers of 8 hex digits, name, NUL, padding to 4, data, padding to 4
//! ```

/// Padding of a whole archive, so that another may follow.
const BLOCK_BYTES: usize = 512;
/// Entries start at multiples of this.
const ALIGN_BYTES: usize = 4;
const TRAILER: &str = "TRAILER!!!";

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Whether a file may be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 0644.
    Data,
    /// 0755.
    Program,
}

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    directories: std::collections::BTreeSet<String>,
}

impl Archive {
    /// Adds a file of less than 4 GiB and the directories above it. `name` is relative to the root of the file system.
    pub fn file(&mut self, name: &str, mode: Mode, data: &[u8]) {
        self.parents(name);
        let bits = match mode {
            Mode::Data => 0o644,
            Mode::Program => 0o755,
        };
        self.entry(name, REGULAR | bits, (0, 0), data);
    }

    /// Adds a directory and those above it.
    pub fn directory(&mut self, name: &str) {
        self.parents(name);
        if self.directories.insert(name.to_string()) {
            self.entry(name, DIRECTORY | 0o755, (0, 0), &[]);
        }
    }

    /// Adds a character device: the kernel opens `dev/console` before anything is mounted.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.parents(name);
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// Closes the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry(TRAILER, 0, (0, 0), &[]);
        pad(&mut self.bytes, BLOCK_BYTES);
        self.bytes
    }

    fn parents(&mut self, name: &str) {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        self.inode += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let numbers =
            [self.inode, mode, 0, 0, links, 0, length(data.len()), 0, 0, device.0, device.1, length(name.len() + 1), 0];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        pad(&mut self.bytes, ALIGN_BYTES);
        self.bytes.extend_from_slice(data);
        pad(&mut self.bytes, ALIGN_BYTES);
    }
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: name, mode, data.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut at = 0;
        let mut found = Vec::new();
        loop {
            let number = |index: usize| {
                let start = at + 6 + 8 * index;
                let digits = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                usize::try_from(u32::from_str_radix(digits, 16).unwrap()).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (number(1), number(6), number(11));
            let name_at = at + 110;
            let name = String::from_utf8(bytes[name_at..name_at + name_size - 1].to_vec()).unwrap();
            let data_at = (name_at + name_size).next_multiple_of(4);
            if name == TRAILER {
                return found;
            }
            found.push((name, u32::try_from(mode).unwrap(), bytes[data_at..data_at + size].to_vec()));
            at = (data_at + size).next_multiple_of(4);
        }
    }

    #[test]
    fn files_come_after_their_directories_and_are_read_back() {
        let mut archive = Archive::default();
        archive.file("a/b/one", Mode::Program, b"12345");
        archive.file("a/two", Mode::Data, b"");
        archive.device("dev/console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        let found = entries(&bytes);
        let names: Vec<&str> = found.iter().map(|(name, _, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/two", "dev", "dev/console"]);
        assert_eq!(found[2], ("a/b/one".to_string(), 0o100_755, b"12345".to_vec()));
        assert_eq!(found[5].1, 0o020_600);
    }
}
