//! Locks of processes on slots, in the data file: they go with the process, and a device's reads do not outlive those of its process.

use std::{
    collections::HashMap,
    fs::File,
    sync::{Mutex, PoisonError},
};

use nix::fcntl::{FcntlArg, fcntl};

/// Slots that operations of this process read as a guest. They are of an open file of their own, so this process, if it becomes the owner,
/// sees them as another one's.
#[derive(Debug)]
pub(crate) struct SlotLocks {
    file: File,
    block_bytes: u64,
    /// How many operations have each.
    held: Mutex<HashMap<u32, u32>>,
}

/// A lock of a kind (`F_RDLCK`, …) on a slot. The numbers of the slots are their places in the file: those of another block size collide
/// where the bytes do.
fn lock(kind: libc::c_int, slot: u32, block_bytes: u64) -> Option<libc::flock> {
    let start = u64::from(slot) * block_bytes;
    Some(libc::flock {
        l_type: libc::c_short::try_from(kind).ok()?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).ok()?,
        l_start: libc::off_t::try_from(start).ok()?,
        l_len: libc::off_t::try_from(block_bytes).ok()?,
        l_pid: 0,
    })
}

/// Whether a process reads a slot of `data`. Where it cannot be known, one may.
pub(crate) fn is_lent(data: &File, slot: u32, block_bytes: u64) -> bool {
    let Some(mut wanted) = lock(libc::F_WRLCK, slot, block_bytes) else { return true };
    let asked = fcntl(data, FcntlArg::F_OFD_GETLK(&mut wanted));
    asked.is_err() || i32::from(wanted.l_type) != libc::F_UNLCK
}

/// Whether a process reads something of `data` behind a byte.
pub(crate) fn is_tail_lent(data: &File, from: u64) -> bool {
    let whole = lock(libc::F_WRLCK, 0, 0);
    let Some((mut wanted, start)) = whole.zip(libc::off_t::try_from(from).ok()) else { return true };
    // Of no length: to the end, wherever it is.
    wanted.l_start = start;
    let asked = fcntl(data, FcntlArg::F_OFD_GETLK(&mut wanted));
    asked.is_err() || i32::from(wanted.l_type) != libc::F_UNLCK
}

impl SlotLocks {
    /// For a data file that nobody else has in this open file.
    pub(crate) fn new(file: File, block_bytes: u64) -> Self {
        Self { file, block_bytes, held: Mutex::default() }
    }

    fn set(&self, kind: libc::c_int, slot: u32) -> bool {
        lock(kind, slot, self.block_bytes).is_some_and(|lock| fcntl(&self.file, FcntlArg::F_OFD_SETLK(&lock)).is_ok())
    }

    /// Keeps a slot from being written. Whether that is so.
    pub(crate) fn hold(&self, slot: u32) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.contains_key(&slot) && !self.set(libc::F_RDLCK, slot) {
            return false;
        }
        *held.entry(slot).or_default() += 1;
        true
    }

    /// Lets go of what [`SlotLocks::hold`] took.
    pub(crate) fn release(&self, slot: u32) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = held.get_mut(&slot) else { return };
        *count -= 1;
        if *count == 0 {
            held.remove(&slot);
            self.set(libc::F_UNLCK, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_lent_until_the_last_operation_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let (owner, guest) = (open(), SlotLocks::new(open(), 4096));
        assert!(guest.hold(3) && guest.hold(3) && guest.hold(4));
        let lent = || [2, 3, 4, 5].map(|slot| is_lent(&owner, slot, 4096));
        assert_eq!(lent(), [false, true, true, false]);
        guest.release(3);
        guest.release(4);
        assert_eq!(lent(), [false, true, false, false]);
        // Blocks of another size lie on the same bytes.
        assert!(is_lent(&owner, 1, 8192) && !is_lent(&owner, 0, 8192));
        guest.release(3);
        assert!(!is_lent(&owner, 3, 4096));
        guest.hold(1);
        drop(guest);
        assert!(!is_lent(&owner, 1, 4096));
    }
}
