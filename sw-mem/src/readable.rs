//! Whether this process can read at an address.
// UNSAFETY: one system call that is given the address and never writes.
#![expect(unsafe_code, reason = "asks the kernel about an address")]

use crate::addr::HostVa;

/// Bytes of a signal set as the kernel has it (linux `include/uapi/asm-generic/signal.h`, `_NSIG` 64).
const SET_BYTES: usize = 8;

/// Whether the processor can read the eight bytes around `address` in this process: memory of a device, reserved ranges and freed
/// mappings are not readable. Half a microsecond at most; nothing is changed, and no signal is raised.
///
/// The kernel copies a signal set from the address before it looks at what is to be done with it, which is nothing that there is: linux
/// `kernel/signal.c`, `rt_sigprocmask`. Sandboxes that forbid reading other processes' memory allow this call.
pub fn is_readable(address: HostVa) -> bool {
    const NO_SUCH_THING: libc::c_int = -1;
    let at = address.raw() & !(SET_BYTES as u64 - 1);
    // SAFETY: the kernel only reads at the address and answers EFAULT if it cannot; nothing is written: the old set is not asked for,
    // and the first argument is none that changes a mask.
    let told = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, NO_SUCH_THING, at, core::ptr::null_mut::<libc::c_void>(), SET_BYTES)
    };
    // NULL is "no set" to the call, and would be no error of the address.
    at != 0 && (told == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT))
}

// Miri has neither of the system calls.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::addr::{ByteLen, PAGE_BYTES};
    use crate::host::{HostMapping, HugePages, Populate};

    #[test]
    fn what_is_mapped_is_readable_and_what_was_is_not() {
        let mapping = HostMapping::map(ByteLen(2 * PAGE_BYTES), 1, HugePages::Never, Populate::Lazy).unwrap();
        let base = mapping.base();
        for at in [0, 1, 2 * PAGE_BYTES - 1] {
            assert!(is_readable(base.checked_add(ByteLen(at)).unwrap()), "{at}");
        }
        let at = core::ptr::with_exposed_provenance_mut::<libc::c_void>(crate::index(base.raw()));
        // SAFETY: a page of ours to which no reference is.
        let answer = unsafe { libc::mprotect(at, crate::index(PAGE_BYTES), libc::PROT_NONE) };
        assert_eq!(answer, 0);
        assert!(!is_readable(base) && is_readable(base.checked_add(ByteLen(PAGE_BYTES)).unwrap()));
        for nothing in [0, 8, 1 << 47, 0xcf00_0000_0000_0001, u64::MAX] {
            assert!(!is_readable(HostVa::new(nothing)), "{nothing:#x}");
        }
    }

    #[test]
    fn asking_changes_no_mask() {
        let word = u64::MAX;
        assert!(is_readable(HostVa::new((&raw const word).expose_provenance() as u64)));
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
        assert_eq!(u64::from_str_radix(blocked, 16), Ok(0));
    }
}
