//! Bus errors on mapped BARs: what is not there any more reads as all ones.
//!
//! The kernel answers an access to a mapped BAR with SIGBUS when the function's memory space is off or the function is in a
//! low power state (Linux `drivers/vfio/pci/vfio_pci_core.c`, `vfio_pci_vmf_insert_pfn`), and so does an Arm machine when
//! nobody answers on the bus. Both can happen between two looks at the presence mark. The handler here puts a private page
//! of all ones in the place of the page that failed and marks the function as gone; the access is then repeated and reads
//! what PCI defines for a function that is gone. It touches only pages of BARs that are registered here. Any other bus error
//! goes to the handler that was there before.
//!
//! The handler uses system calls and atomics only. Ranges are found without a lock: a slot's base is stored last and cleared
//! first, and a range is unregistered only after its last user is gone.
// UNSAFETY: a signal handler, and mmap of a fixed page inside a range that this crate mapped.
#![expect(unsafe_code, reason = "a signal handler for bus errors on device memory")]

use std::{
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicI32, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::{
    presence::{Gone, Presence},
    sys,
};

/// BARs that can be mapped at a time: some 200 controllers and their peers.
const RANGES_MAX: usize = 512;

/// One registered range; free while `base` is zero.
struct Slot {
    base: AtomicUsize,
    len: AtomicUsize,
    /// The mark of its function. Kept alive by the [`Guarded`] of the slot.
    mark: AtomicPtr<AtomicU8>,
}

static SLOTS: [Slot; RANGES_MAX] =
    [const { Slot { base: AtomicUsize::new(0), len: AtomicUsize::new(0), mark: AtomicPtr::new(ptr::null_mut()) } };
        RANGES_MAX];
/// The file with one page of all ones; -1 before there is one.
static ONES: AtomicI32 = AtomicI32::new(-1);
/// Bytes of that page.
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// Pages that were replaced since the process began.
static REPLACED: AtomicU64 = AtomicU64::new(0);
/// What handled bus errors before, kept for ever.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// Pages of device memory that were gone when they were touched, since the process began.
pub fn replaced_pages() -> u64 {
    REPLACED.load(Ordering::Relaxed)
}

/// A range in which bus errors become all ones, until it is dropped.
#[derive(Debug)]
pub(crate) struct Guarded {
    slot: usize,
    _presence: Arc<Presence>,
}

impl Guarded {
    /// Registers `len` bytes from `base` (whole pages). Installs the handler at the first call.
    pub(crate) fn new(base: *mut u8, len: u64, presence: Arc<Presence>) -> Result<Self, i32> {
        install()?;
        static REGISTRY: Mutex<()> = Mutex::new(());
        let _one_at_a_time = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        let free = |slot: &Slot| slot.base.load(Ordering::Relaxed) == 0;
        let slot = SLOTS.iter().position(free).ok_or(libc::EMFILE)?;
        let entry = &SLOTS[slot];
        entry.len.store(sw_mem::index(len), Ordering::Relaxed);
        entry.mark.store(ptr::from_ref(presence.mark()).cast_mut(), Ordering::Relaxed);
        entry.base.store(base.expose_provenance(), Ordering::Release);
        Ok(Self { slot, _presence: presence })
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        SLOTS[self.slot].base.store(0, Ordering::Release);
    }
}

/// Once per process.
fn install() -> Result<(), i32> {
    static INSTALLED: OnceLock<Result<OwnedFd, i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let page = sys::page_bytes();
            let ones = sys::map::memory_file(page)?;
            sys::pwrite_exact(std::os::fd::AsFd::as_fd(&ones), &vec![0xFF; sw_mem::index(page)], 0)?;
            PAGE.store(sw_mem::index(page), Ordering::Relaxed);
            ONES.store(ones.as_raw_fd(), Ordering::Release);
            set_handler()?;
            Ok(ones)
        })
        .as_ref()
        .map(drop)
        .map_err(|errno| *errno)
}

fn set_handler() -> Result<(), i32> {
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the pointer names a live structure; nothing is set.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) } != 0 {
        return Err(sys::errno());
    }
    // SAFETY: zeroed at first, filled by the call; integers in every bit pattern.
    let before = unsafe { before.assume_init() };
    BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Release);
    // SAFETY: integers only, for which zero is a value.
    let mut ours: libc::sigaction = unsafe { core::mem::zeroed() };
    ours.sa_sigaction = handle as *const () as usize;
    // On the alternate stack if the thread has one, as Rust's own handlers are; other signals stay as they are.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the structure is complete, and the handler keeps to what a signal handler may do.
    let done = unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(sys::errno()) }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a live structure to a handler with SA_SIGINFO.
    let told = unsafe { info.as_ref() };
    // SAFETY: for SIGBUS the kernel fills in the address.
    let address = told.map_or(0, |told| unsafe { told.si_addr() }.expose_provenance());
    if replace(address) {
        return;
    }
    chain(signal, info, context);
}

/// Puts a page of all ones where the access failed, if that is in a registered range.
fn replace(address: usize) -> bool {
    let inside = |slot: &&Slot| {
        let base = slot.base.load(Ordering::Acquire);
        base != 0 && address.wrapping_sub(base) < slot.len.load(Ordering::Relaxed)
    };
    let Some(slot) = SLOTS.iter().find(inside) else { return false };
    let (page, ones) = (PAGE.load(Ordering::Relaxed), ONES.load(Ordering::Acquire));
    // SAFETY: the mark lives as long as the range is registered, and a range is used only while it is.
    if let Some(mark) = unsafe { slot.mark.load(Ordering::Relaxed).as_ref() } {
        let _ = mark.compare_exchange(0, Gone::Unmapped as u8, Ordering::AcqRel, Ordering::Acquire);
    }
    let at = ptr::with_exposed_provenance_mut(address & !(page - 1));
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED);
    // SAFETY: it takes nothing and gives the address of this thread's variable.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the variable lives as long as the thread.
    let saved = unsafe { errno.read() };
    // SAFETY: the page lies in a range that this crate mapped and holds device memory that is gone; nobody has a reference
    // into it.
    let got = unsafe { libc::mmap(at, page, protection, flags, ones, 0) };
    // SAFETY: as above; the interrupted code must not see an errno of ours.
    unsafe { errno.write(saved) };
    REPLACED.fetch_add(1, Ordering::Relaxed);
    got != libc::MAP_FAILED
}

/// Hands a foreign bus error to whoever had it before.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: stored once before the handler was installed, and never freed.
    let before = unsafe { BEFORE.load(Ordering::Acquire).as_ref() };
    match before {
        Some(before) if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN => {
            if before.sa_flags & libc::SA_SIGINFO != 0 {
                type Full = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: a handler that was installed with SA_SIGINFO has this signature.
                let call = unsafe { core::mem::transmute::<usize, Full>(before.sa_sigaction) };
                call(signal, info, context);
            } else {
                type Short = extern "C" fn(libc::c_int);
                // SAFETY: a handler that was installed without SA_SIGINFO has this signature.
                let call = unsafe { core::mem::transmute::<usize, Short>(before.sa_sigaction) };
                call(signal);
            }
        }
        // The default: the access is repeated without a handler and ends the process, as it would have without us. Ignoring
        // a bus error is no choice either: the kernel ends the process then.
        _ => {
            // SAFETY: a plain change of this signal's disposition.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::map::{Reserved, memory_file};

    const LEN: u64 = 64 << 10;

    /// A mapping whose file was cut short: every access is a bus error.
    fn cut() -> Reserved {
        let file = memory_file(LEN).unwrap();
        let range = Reserved::new(LEN).unwrap();
        range.put(0, file.as_fd(), 0, LEN).unwrap();
        std::fs::File::from(file).set_len(0).unwrap();
        range
    }

    #[test]
    fn a_bus_error_in_a_registered_range_reads_as_all_ones_and_marks() {
        let (range, presence) = (cut(), Arc::new(Presence::default()));
        let guard = Guarded::new(range.base(), LEN, Arc::clone(&presence)).unwrap();
        assert_eq!(presence.gone(), None);
        let before = replaced_pages();
        let far = range.base().wrapping_add(3 * 4096).cast::<u32>();
        // SAFETY: inside the reserved range and aligned.
        assert_eq!(unsafe { far.read_volatile() }, u32::MAX);
        assert_eq!(presence.gone(), Some(Gone::Unmapped));
        let near = range.base().cast::<u32>();
        // SAFETY: as above; a write that comes first is taken, too.
        unsafe { near.write_volatile(5) };
        assert!(replaced_pages() >= before + 2);
        drop(guard);
    }

    /// What the child of the next test does: dies of a bus error that is none of ours.
    #[test]
    #[ignore = "run by a_foreign_bus_error_still_ends_the_process"]
    fn foreign_bus_error() {
        let (ours, foreign) = (cut(), cut());
        let _guard = Guarded::new(ours.base(), LEN, Arc::default()).unwrap();
        // SAFETY: inside the reserved range and aligned.
        unsafe { foreign.base().cast::<u32>().read_volatile() };
    }

    #[test]
    fn a_foreign_bus_error_still_ends_the_process() {
        use std::os::unix::process::ExitStatusExt;
        let me = std::env::current_exe().unwrap();
        let name = "bus_error::tests::foreign_bus_error";
        let mut child = std::process::Command::new(me);
        let status =
            child.args(["--ignored", "--exact", name]).stderr(std::process::Stdio::null()).output().unwrap().status;
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    }
}
