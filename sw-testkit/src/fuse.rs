//! A mount by FUSE with one file, which has the traits of whatever it stands for: what its type is called, what it says of `O_DIRECT`, and the
//! size of its blocks.
//!
//! ```text
//!   /dev/fuse ── given to mount(8) as its standard input ─► a mount of type fuse.NAME
//!       └─────── a thread of the test's that answers: linux include/uapi/linux/fuse.h, protocol 7.31
//! ```
//!
//! It needs the right to mount, as root has it. It is a stand-in: of the systems that have such mounts it has nothing but these traits.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

/// What the daemon says of `O_DIRECT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// `open` fails with `EINVAL`.
    Refused,
    /// Reads of such a file by other than multiples of this fail with `EINVAL`.
    Aligned(u64),
    /// Taken as it comes.
    Taken,
}

/// What it is like.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// Behind `fuse.` in the type.
    pub subtype: &'static str,
    /// What is mounted.
    pub source: &'static str,
    /// What it says of `O_DIRECT`.
    pub direct: Direct,
    /// `st_blksize`.
    pub block_bytes: u32,
    /// Option of that name.
    pub max_read: u32,
}

/// One, until it goes.
pub struct Mount {
    at: PathBuf,
    daemon: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

/// What it was asked.
#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    direct: AtomicU64,
    largest: AtomicU64,
}

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
/// As on x86-64; on aarch64 it is another.
const O_DIRECT: u32 = if cfg!(target_arch = "aarch64") { 0o200_000 } else { 0o40_000 };
const ROOT: u64 = 1;
const FILE: u64 = 2;
/// The most that one read is answered by.
const READ_MAX: usize = 1 << 20;

impl Mount {
    /// Mounts one at `at`, a directory, with a file `data` of these bytes.
    ///
    /// # Errors
    /// A sentence: no right to mount, no FUSE.
    pub fn new(at: &Path, traits: Traits, content: Vec<u8>) -> Result<Self, String> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.map_err(|error| format!("/dev/fuse: {error}"))?;
        let input = device.try_clone().map_err(|error| error.to_string())?;
        let options = format!("fd=0,rootmode=40000,user_id=0,group_id=0,max_read={}", traits.max_read);
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", &format!("fuse.{}", traits.subtype), "-o", &options, traits.source]).arg(at);
        let made = mount.stdin(Stdio::from(input)).output().map_err(|error| format!("mount: {error}"))?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).trim().to_owned());
        }
        let counts = Arc::<Counts>::default();
        let daemon = Daemon { device, traits, content, counts: counts.clone() };
        let daemon = thread::Builder::new().name("stand-in fuse".to_owned()).spawn(move || daemon.serve());
        let daemon = Some(daemon.map_err(|error| error.to_string())?);
        Ok(Self { at: at.to_owned(), daemon, counts })
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        self.at.join("data")
    }

    /// Reads that it answered, those of them by `O_DIRECT`, and the bytes of the largest.
    pub fn reads(&self) -> (u64, u64, u64) {
        let Counts { reads, direct, largest } = &*self.counts;
        (reads.load(Ordering::SeqCst), direct.load(Ordering::SeqCst), largest.load(Ordering::SeqCst))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What is gone already needs no unmounting. The daemon ends with the last that has a file open there.
        let gone = Command::new("umount").arg("-l").arg(&self.at).status();
        if let Some(daemon) = self.daemon.take().filter(|_| gone.is_ok_and(|status| status.success())) {
            let _ended = daemon.join();
        }
    }
}

/// What answers.
struct Daemon {
    device: File,
    traits: Traits,
    content: Vec<u8>,
    counts: Arc<Counts>,
}

/// A number of a request at a place.
fn word(request: &[u8], at: usize) -> u32 {
    let bytes = request.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

fn long(request: &[u8], at: usize) -> u64 {
    u64::from(word(request, at)) | u64::from(word(request, at + 4)) << 32
}

/// An answer in the making.
#[derive(Default)]
struct Answer(Vec<u8>);

impl Answer {
    fn words(mut self, words: &[u32]) -> Self {
        words.iter().for_each(|word| self.0.extend(word.to_le_bytes()));
        self
    }

    fn longs(mut self, longs: &[u64]) -> Self {
        longs.iter().for_each(|long| self.0.extend(long.to_le_bytes()));
        self
    }
}

impl Daemon {
    fn serve(mut self) {
        let mut request = vec![0; READ_MAX + 8192];
        // Reads fail when it is unmounted.
        while let Ok(len) = self.device.read(&mut request) {
            let Some(request) = request.get(..len).filter(|request| request.len() >= 40) else { return };
            let answer = match word(request, 4) {
                // FORGET, BATCH_FORGET, INTERRUPT: not answered.
                2 | 36 | 42 => continue,
                opcode => self.answer(opcode, request),
            };
            let (error, body) = match &answer {
                Ok(body) => (0, &body.0[..]),
                Err(errno) => (-errno, &[][..]),
            };
            let size = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
            let head = Answer::default().words(&[size, error.cast_unsigned()]).longs(&[long(request, 8)]);
            // One that nobody waits for any more is refused.
            let _wrote = self.device.write(&[&head.0[..], body].concat());
        }
    }

    /// What follows the head of the answer, or an errno.
    fn answer(&self, opcode: u32, request: &[u8]) -> Result<Answer, i32> {
        let node = long(request, 16);
        match opcode {
            // LOOKUP
            1 if node == ROOT && request.get(40..) == Some(&b"data\0"[..]) => {
                Ok(self.attributes(FILE, Answer::default().longs(&[FILE, 1, 60, 60, 0])))
            }
            1 => Err(ENOENT),
            // GETATTR
            3 => Ok(self.attributes(node, Answer::default().longs(&[60, 0]))),
            // OPEN, OPENDIR
            14 | 27 => match self.traits.direct {
                Direct::Refused if word(request, 40) & O_DIRECT != 0 => Err(EINVAL),
                _ => Ok(Answer::default().longs(&[7, 0])),
            },
            // READ
            15 => self.read(long(request, 48), word(request, 56), word(request, 72)),
            // STATFS
            17 => Ok(Answer::default()
                .longs(&[1 << 20, 1 << 19, 1 << 19, 1, 1])
                .words(&[4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0])),
            // RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY
            18 | 25 | 29 | 34 | 38 => Ok(Answer::default()),
            // INIT
            26 => {
                let background = 12 | 9 << 16;
                let most = u32::try_from(READ_MAX).unwrap_or(u32::MAX);
                // FUSE_MAX_PAGES
                let flags = word(request, 52) & (1 << 22);
                let head = Answer::default().words(&[7, 31, word(request, 48), flags, background, most, 1]);
                Ok(head.words(&[most / 4096, 0, 0, 0, 0, 0, 0, 0, 0]))
            }
            _ => Err(ENOSYS),
        }
    }

    fn attributes(&self, node: u64, before: Answer) -> Answer {
        let is_file = node == FILE;
        let (mode, len) = if is_file { (0o100_444, self.content.len() as u64) } else { (0o040_555, 0) };
        let times = 1_000_000_000;
        let head = before.longs(&[node, len, len.div_ceil(512), times, times, times]);
        head.words(&[0, 0, 0, mode, 1, 0, 0, 0, self.traits.block_bytes, 0])
    }

    fn read(&self, offset: u64, len: u32, flags: u32) -> Result<Answer, i32> {
        self.counts.reads.fetch_add(1, Ordering::SeqCst);
        self.counts.largest.fetch_max(len.into(), Ordering::SeqCst);
        if flags & O_DIRECT != 0 {
            self.counts.direct.fetch_add(1, Ordering::SeqCst);
            match self.traits.direct {
                Direct::Aligned(unit) if !(offset | u64::from(len)).is_multiple_of(unit) => return Err(EINVAL),
                Direct::Aligned(_) | Direct::Refused | Direct::Taken => {}
            }
        }
        let from = usize::try_from(offset).map_or(self.content.len(), |offset| offset.min(self.content.len()));
        let end = from.saturating_add(usize::try_from(len).unwrap_or(usize::MAX)).min(self.content.len());
        Ok(Answer(self.content.get(from..end).unwrap_or_default().to_vec()))
    }
}
