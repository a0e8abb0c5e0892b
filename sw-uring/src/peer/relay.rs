//! Peer memory touched by system calls: should its device be gone, they return an errno where a load would be a signal.
// UNSAFETY: system calls that name memory by address.
#![expect(unsafe_code, reason = "write and read name memory by address")]

use std::{
    ffi::c_void,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::fd::AsRawFd,
    ptr,
};

use sw_mem::{ByteLen, DmaSpan};

use crate::sys;

/// Bytes that an empty pipe takes at once, however little the system grants it: a small page.
const PIECE: usize = 4096;

/// A pipe that bytes pass through on their way, a piece at a time. The kernel copies from and to memory with `EFAULT` for
/// what is not there (linux 7.3 `fs/pipe.c`, `pipe_write`); it does not pin pages, which it refuses for peer memory.
pub(super) struct Relay {
    from: PipeReader,
    to: PipeWriter,
}

/// The address of `len` bytes from byte `at` of a span.
///
/// # Errors
/// `EINVAL` for bytes outside, and for memory without an address of this process.
pub(super) fn address(span: &DmaSpan, at: u64, len: u64) -> Result<u64, i32> {
    let inside = at.checked_add(len).is_some_and(|end| end <= span.len().0);
    let place = span.place().host().and_then(|va| va.checked_add(ByteLen(at))).filter(|_| inside);
    place.map(|va| va.raw()).ok_or(libc::EINVAL)
}

impl Relay {
    pub(super) fn new() -> Result<Self, i32> {
        let (from, to) = io::pipe().map_err(|error| sys::code(&error))?;
        Ok(Self { from, to })
    }

    /// Copies bytes of `span` from byte `at` into `to`.
    ///
    /// # Errors
    /// `EFAULT` if the memory is gone. The relay is of no use then: it may hold bytes.
    pub(super) fn read(&mut self, span: &DmaSpan, mut at: u64, to: &mut [u8]) -> Result<(), i32> {
        for piece in to.chunks_mut(PIECE) {
            let from: *const c_void =
                ptr::with_exposed_provenance(sw_mem::index(address(span, at, piece.len() as u64)?));
            // SAFETY: the range was checked to lie in the span, which keeps its mapping; nobody has a reference into it, and
            // the kernel returns an error for pages that are not there.
            let done = sys::uninterrupted(|| unsafe { libc::write(self.to.as_raw_fd(), from, piece.len()) })?;
            whole(done, piece.len())?;
            self.from.read_exact(piece).map_err(|error| sys::code(&error))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes `byte` over `len` bytes of `span` from byte `at`.
    ///
    /// # Errors
    /// As for [`Relay::read`].
    pub(super) fn fill(&mut self, span: &DmaSpan, at: u64, len: u64, byte: u8) -> Result<(), i32> {
        let (piece, end) = ([byte; PIECE], at.checked_add(len).ok_or(libc::EINVAL)?);
        for at in (at..end).step_by(PIECE) {
            let len = sw_mem::index((end - at).min(PIECE as u64));
            let to: *mut c_void = ptr::with_exposed_provenance_mut(sw_mem::index(address(span, at, len as u64)?));
            self.to.write_all(&piece[..len]).map_err(|error| sys::code(&error))?;
            // SAFETY: as in `read`.
            let done = sys::uninterrupted(|| unsafe { libc::read(self.from.as_raw_fd(), to, len) })?;
            whole(done, len)?;
        }
        Ok(())
    }
}

/// A count that stops short met memory that is not there.
fn whole(done: isize, len: usize) -> Result<(), i32> {
    if usize::try_from(done) == Ok(len) { Ok(()) } else { Err(libc::EFAULT) }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::File;

    use sw_mem::{DmaRegion, HostVa, Place};

    use super::*;

    const PAGE: u64 = 4096;

    /// Two pages of a file that has one: the second is a signal to whoever touches it.
    pub(in crate::peer) fn half_there() -> DmaSpan {
        let path = std::env::temp_dir().join(format!(
            "straightway-relay-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(u64::from(sys::page_bytes())).unwrap();
        let len = 2 * u64::from(sys::page_bytes());
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no address is asked for, so nothing that is mapped is replaced.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), sw_mem::index(len), access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(base, libc::MAP_FAILED);
        let host = Place::Host(HostVa::new(base.expose_provenance() as u64));
        // SAFETY: the mapping was just made, is `len` long, is handed to nobody else, and stays until the process ends.
        let region = unsafe { DmaRegion::from_foreign(host, ByteLen(len), Box::new(())) }.unwrap();
        region.span(0, ByteLen(len)).unwrap()
    }

    #[test]
    fn memory_that_is_gone_is_an_errno_and_no_signal() {
        let (span, page) = (half_there(), u64::from(sys::page_bytes()));
        let relay = || Relay::new().unwrap();
        let mut got = [0; 1000];
        relay().fill(&span, 3000.min(page - 1000), 1000, 0xA5).unwrap();
        relay().read(&span, 3000.min(page - 1000), &mut got).unwrap();
        assert_eq!(got, [0xA5; 1000]);
        for at in [page, page - 500] {
            assert_eq!(relay().fill(&span, at, 1000, 1), Err(libc::EFAULT));
            assert_eq!(relay().read(&span, at, &mut got), Err(libc::EFAULT));
        }
        assert_eq!(relay().fill(&span, 2 * page - 1, PAGE, 1), Err(libc::EINVAL));
    }

    #[test]
    fn more_than_a_pipe_holds_passes_in_pieces() {
        let span = sw_mem::Buffer::allocate(ByteLen(300_001)).unwrap().into_span();
        let mut relay = Relay::new().unwrap();
        relay.fill(&span, 1, 300_000, 7).unwrap();
        let mut got = vec![0; 300_000];
        relay.read(&span, 1, &mut got).unwrap();
        assert!(got.iter().all(|byte| *byte == 7));
    }
}
