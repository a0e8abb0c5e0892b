//! Makes free memory cost the same for every side.
//!
//! A virtual machine may hand its free memory back to the host (virtio-balloon free page reporting, linux
//! mm/page_reporting.c). The next process that touches such a page pays for a fault in the host, in its own system time:
//! measured 1.3 to 1.8 CPU seconds per GiB, against 0.1 for memory that the host still backs. Who pays it is an accident of
//! what ran before. So before each timed run a process of its own touches as much memory as the job will need and ends;
//! the job starts at once. Every side gets the same.
// UNSAFETY: madvise on a mapping of our own.
#![expect(unsafe_code, reason = "mmap and madvise of memory that nothing else uses")]

use std::{path::Path, process::Command, time::Duration};

use crate::{fault::Fault, usage};

/// Passes at most: the first may find the host's pages missing, the second shows that they are there.
const PASSES_MAX: u32 = 4;
/// System CPU seconds per GiB under which memory counts as backed: between the two measured rates of the module's text.
const BACKED_CPU_S_PER_GIB: f64 = 0.3;
/// A pass over memory that the host lacks takes under two seconds per GiB; this allows for a loaded machine.
const PASS_LIMIT: Duration = Duration::from_secs(300);
const HUGE_PAGE: usize = 2 << 20;

/// Touches `bytes` of memory in passes until a pass is cheap. Too little free memory is an error, not an attempt.
pub(crate) fn prepare(bytes: u64) -> Result<(), Fault> {
    let free = available_bytes();
    if free < bytes + bytes / 8 {
        let what = format!("{} MiB of memory for this job ({} MiB are free)", bytes >> 20, free >> 20);
        return Err(Fault::Missing { what, remedy: "free some memory or choose the smoke size" });
    }
    let scratch = std::env::temp_dir().join(format!("straightway-backing-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).map_err(Fault::os("create", &scratch))?;
    let result = passes(bytes, &scratch);
    std::fs::remove_dir_all(&scratch).map_err(Fault::os("remove", &scratch))?;
    result
}

fn passes(bytes: u64, scratch: &Path) -> Result<(), Fault> {
    let me = std::env::current_exe().map_err(Fault::os("find", "our own program"))?;
    for _ in 0..PASSES_MAX {
        let mut command = Command::new(&me);
        command.args(["worker", "back", &bytes.to_string()]);
        let cost = usage::run(command, scratch, PASS_LIMIT)?.usage;
        #[expect(clippy::cast_precision_loss, reason = "memory sizes stay far below 2^52")]
        let gib = bytes as f64 / f64::from(1 << 30);
        if cost.sys_s / gib < BACKED_CPU_S_PER_GIB {
            break;
        }
    }
    Ok(())
}

/// Pages of the kernel's pool of huge pages, for a program that takes them from there only. Given back when it is dropped.
pub(crate) struct HugePool {
    before: u64,
}

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl HugePool {
    /// `bytes` more in the pool.
    pub(crate) fn grow(bytes: u64) -> Result<Self, Fault> {
        let count = || -> Result<u64, Fault> {
            let text = std::fs::read_to_string(POOL).map_err(Fault::os("read", POOL))?;
            Ok(text.trim().parse().unwrap_or(0))
        };
        let before = count()?;
        let wanted = before + bytes.div_ceil(HUGE_PAGE as u64);
        let refused = |_| Fault::Missing { what: format!("{POOL} cannot be raised"), remedy: "run as root" };
        std::fs::write(POOL, wanted.to_string()).map_err(refused)?;
        let pool = Self { before };
        match count()? {
            got if got < wanted => {
                let what = format!("{wanted} huge pages (the kernel found {got})");
                Err(Fault::Missing { what, remedy: "free some memory" })
            }
            _ => Ok(pool),
        }
    }
}

impl Drop for HugePool {
    fn drop(&mut self) {
        // Best effort: what a program still holds goes back when it ends.
        let _ = std::fs::write(POOL, self.before.to_string());
    }
}

fn available_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("MemAvailable"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The worker's part: touches `bytes` in huge pages where the kernel gives them, then ends.
pub(crate) fn touch(bytes: u64) -> Result<(), Fault> {
    let len = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_add(HUGE_PAGE);
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new anonymous mapping at a place of the kernel's choice touches nothing that exists.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if map == libc::MAP_FAILED {
        return Err(Fault::os("map", "memory")(std::io::Error::last_os_error()));
    }
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE] {
        // SAFETY: the range is the whole mapping made above, which nobody else knows.
        let rc = unsafe { libc::madvise(map, len, advice) };
        // Without huge pages it is touched in small ones all the same.
        if rc != 0 && advice == libc::MADV_POPULATE_WRITE {
            return Err(Fault::os("touch", "memory")(std::io::Error::last_os_error()));
        }
    }
    Ok(())
}
