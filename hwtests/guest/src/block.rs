//! Namespaces as the kernel's driver shows them, and direct reads and writes of them: the reference that our driver is
//! compared with.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::context::{Context, entries, name, read_text};
use crate::pci::Device;
use crate::registry::{Stop, Verdict, fail, skip};

/// Address and length of a direct transfer are multiples of this: the largest block of any namespace here.
pub const ALIGN_BYTES: usize = 4096;
/// How long a controller may take until the kernel shows its namespaces.
const SCAN_LIMIT: Duration = Duration::from_secs(10);

/// A namespace with a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    pub nsid: u32,
    pub node: PathBuf,
    pub block_bytes: u64,
    pub bytes: u64,
}

/// Gives the controller to the kernel's driver and waits for `count` namespaces. Sorted by their number: the kernel
/// numbers its nodes in the order in which a parallel scan finds them.
///
/// # Errors
/// A failure, also if there are more; a skip if a real machine's controller has another number of them.
pub fn namespaces(context: &Context, device: &Device, count: usize) -> Result<Vec<Namespace>, Stop> {
    device.bind("nvme")?;
    let what = format!("{count} namespaces of {}", device.address);
    let found = context.until(SCAN_LIMIT, &what, || Some(list(device)).filter(|found| found.len() == count));
    match found {
        Err(Stop::Fail(reason)) if context.is_real() && !list(device).is_empty() => skip(reason),
        found => found,
    }
}

/// Namespaces that are there now.
pub fn list(device: &Device) -> Vec<Namespace> {
    let below = device.path().display().to_string();
    let ours = |path: &PathBuf| {
        name(path).starts_with("nvme")
            && std::fs::canonicalize(path).is_ok_and(|target| target.display().to_string().starts_with(&below))
    };
    let mut found: Vec<Namespace> =
        entries(Path::new("/sys/block")).iter().filter(|path| ours(path)).filter_map(|path| namespace(path)).collect();
    found.sort_by_key(|namespace| namespace.nsid);
    found
}

fn namespace(path: &Path) -> Option<Namespace> {
    let number = |file: &str| read_text(&path.join(file)).ok()?.parse::<u64>().ok();
    let node = Path::new("/dev").join(name(path));
    Some(Namespace {
        nsid: u32::try_from(number("nsid")?).ok()?,
        block_bytes: number("queue/logical_block_size")?,
        // Always in units of 512 bytes (Linux, `Documentation/ABI/stable/sysfs-block`).
        bytes: number("size")? * 512,
        // The node appears a moment after the directory.
        node: node.exists().then_some(node)?,
    })
}

/// Memory that a direct transfer may use.
#[derive(Debug)]
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// `length` bytes of `fill`.
    pub fn of(length: usize, fill: u8) -> Aligned {
        let memory = vec![fill; length + ALIGN_BYTES];
        let start = memory.as_ptr().align_offset(ALIGN_BYTES);
        Aligned { memory, start, length }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Opens a node for direct transfers.
///
/// # Errors
/// A failure with the node.
pub fn open(node: &Path) -> Result<File, Stop> {
    let opened = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(node);
    opened.or_else(|error| fail(format!("{}: {error}", node.display())))
}

/// Bytes that name their place: no two blocks of a test are equal, nor two seeds.
pub fn pattern(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut at = offset;
    while bytes.len() < length {
        // The finaliser of MurmurHash3: every bit of the place reaches every byte.
        let mut word = at ^ seed.rotate_left(32);
        word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        bytes.extend_from_slice(&(word ^ (word >> 33)).to_le_bytes());
        at += 8;
    }
    bytes.truncate(length);
    bytes
}

/// Writes a pattern through the kernel and reads it back.
///
/// # Errors
/// A failure that names the first byte that differs.
pub fn write_and_check(namespace: &Namespace, seed: u64, offset: u64, length: usize) -> Verdict {
    let file = open(&namespace.node)?;
    let mut out = Aligned::of(length, 0);
    out.bytes_mut().copy_from_slice(&pattern(seed, offset, length));
    file.write_all_at(out.bytes(), offset)?;
    file.sync_data()?;
    check(namespace, seed, offset, length)
}

/// Reads through the kernel and compares with the pattern.
///
/// # Errors
/// A failure that names the first byte that differs.
pub fn check(namespace: &Namespace, seed: u64, offset: u64, length: usize) -> Verdict {
    let mut back = Aligned::of(length, 0xA5);
    open(&namespace.node)?.read_exact_at(back.bytes_mut(), offset)?;
    let wanted = pattern(seed, offset, length);
    match back.bytes().iter().zip(&wanted).position(|(got, wanted)| got != wanted) {
        None => Ok(()),
        Some(at) => {
            fail(format!("{}: byte {} differs from what was written", namespace.node.display(), offset + at as u64))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_depends_on_place_and_seed_only() {
        let whole = pattern(7, 0, 64);
        assert_eq!(pattern(7, 16, 24), whole[16..40]);
        assert_ne!(pattern(8, 0, 64), whole);
        assert_ne!(whole[..8], whole[8..16]);
    }

    #[test]
    fn memory_is_aligned_and_as_long_as_asked() {
        let mut memory = Aligned::of(1000, 7);
        assert_eq!(memory.bytes().len(), 1000);
        assert_eq!(memory.bytes().as_ptr().align_offset(ALIGN_BYTES), 0);
        memory.bytes_mut()[999] = 1;
        assert_eq!((memory.bytes()[0], memory.bytes()[999]), (7, 1));
    }
}
