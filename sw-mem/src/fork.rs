//! Fork detection: a page that the kernel empties in a child.
// UNSAFETY: one page of memory whose contents the kernel changes in a forked child.
#![expect(unsafe_code, reason = "reads a page that madvise marked")]

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use crate::{
    addr::{ByteLen, PAGE_BYTES, index},
    host::{HostMapping, HugePages, Populate},
};

/// Tells a process from its forked children, in one memory read.
///
/// Rings, VFIO descriptors and pinned pages do not survive `fork` in a usable form; whoever owns such things asks this
/// first. Where the kernel lacks `MADV_WIPEONFORK` (before 4.14) the process id is compared, which costs a system call.
#[derive(Clone, Copy, Debug)]
pub struct ForkMark {
    pid: u32,
}

/// The word that holds the marking process's id; the kernel makes it zero in a child.
fn word() -> Option<&'static AtomicU32> {
    static PAGE: OnceLock<Option<HostMapping>> = OnceLock::new();
    let made = PAGE.get_or_init(|| {
        let mapping = HostMapping::map(ByteLen(PAGE_BYTES), 1, HugePages::Never, Populate::Lazy).ok()?;
        if cfg!(miri) {
            return None;
        }
        let at = core::ptr::with_exposed_provenance_mut(index(mapping.base().raw()));
        // SAFETY: the advice changes what a child sees, not what we see; the page is ours.
        let rc = unsafe { libc::madvise(at, index(PAGE_BYTES), libc::MADV_WIPEONFORK) };
        (rc == 0).then_some(mapping)
    });
    let at = core::ptr::with_exposed_provenance_mut::<u32>(index(made.as_ref()?.base().raw()));
    // SAFETY: mapped, zeroed, page aligned, never unmapped (it is in a static), and reached as this atomic only.
    Some(unsafe { AtomicU32::from_ptr(at) })
}

impl ForkMark {
    /// Marks this process.
    pub fn new() -> Self {
        let pid = std::process::id();
        if let Some(word) = word() {
            word.store(pid, Ordering::Relaxed);
        }
        Self { pid }
    }

    /// Whether this is a child of the process that made the mark.
    #[inline]
    pub fn is_child(&self) -> bool {
        // In a child the word is zero, or the child's own id if it marked itself since.
        self.pid != word().map_or_else(std::process::id, |word| word.load(Ordering::Relaxed))
    }
}

impl Default for ForkMark {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_marked_itself_is_no_child() {
        assert!(!ForkMark::new().is_child());
    }

    #[test]
    #[cfg_attr(miri, ignore = "forks")]
    fn a_forked_child_knows_even_after_it_marked_itself() {
        let mark = ForkMark::new();
        // SAFETY: the child calls only functions that are safe after fork (no locks, no allocation) and leaves by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let before = mark.is_child();
            let own = ForkMark::new();
            let fine = before && mark.is_child() && !own.is_child();
            // SAFETY: ends the child without running the parent's handlers.
            unsafe { libc::_exit(if fine { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: a child of ours and a writable status.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!((waited, status), (pid, 0));
    }
}
