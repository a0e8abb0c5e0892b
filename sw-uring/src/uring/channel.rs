//! One ring with its tables: builds submission entries from I/Os.
// UNSAFETY: submission entries carry raw addresses that the kernel reads and writes.
#![expect(unsafe_code, reason = "submission entries carry addresses")]

use std::ptr;

use io_uring::{opcode, squeue, types};
use sw_engine::{
    ErrorKind, Fault,
    seam::{Io, IoKind, MAX_SEGMENTS},
};

use crate::handle;

use super::{UringConfig, ring::Completions, ring::Ring, tables::Tables};

const UNREACHABLE: Fault = Fault::new(ErrorKind::Unsupported, 0);

/// A ring, what is registered with it, and the memory that its entries point to.
pub(super) struct Channel {
    pub(super) ring: Ring,
    pub(super) tables: Tables,
    /// Vectors of multi-piece I/Os, one per submission entry: an entry is reused only after the kernel took it, and the
    /// kernel copies the vectors then (`IORING_FEAT_SUBMIT_STABLE`).
    vectors: Box<[[libc::iovec; MAX_SEGMENTS]]>,
    next_vector: usize,
}

// SAFETY: the raw addresses inside `vectors` are only handed to the kernel, never followed here; everything else is
// `Send` by itself. The ring is used by one thread at a time because every method takes `&mut self`.
unsafe impl Send for Channel {}

impl Channel {
    /// # Errors
    /// The errno of the kernel that refuses the ring.
    pub(super) fn new(config: &UringConfig, completions: Completions) -> Result<Self, i32> {
        let ring = Ring::new(config, completions)?;
        let tables = Tables::new(&ring.uring.submitter(), config.files_max, config.buffers_max);
        let entries = sw_mem::index(u64::from(ring.uring.params().sq_entries()));
        let unused = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Ok(Self { ring, tables, vectors: vec![[unused; MAX_SEGMENTS]; entries].into_boxed_slice(), next_vector: 0 })
    }

    /// Stages an I/O. False: the submission queue is full.
    ///
    /// # Errors
    /// An I/O that the kernel cannot do; nothing is staged.
    #[inline]
    pub(super) fn push(&mut self, io: &Io) -> Result<bool, Fault> {
        let entry = self.entry(io)?;
        // SAFETY: the entry's memory stays valid and unreferenced until its completion or a quiet fence: the contract of
        // `Transport` puts that on the caller. Its vector, if it has one, lives in `self.vectors`.
        Ok(unsafe { self.ring.uring.submission().push(&entry) }.is_ok())
    }

    /// The submission entry of an I/O.
    #[inline]
    fn entry(&mut self, io: &Io) -> Result<squeue::Entry, Fault> {
        let raw_fd = handle::fd(io.handle);
        let (fd, flags) = match self.tables.file(io.object, raw_fd) {
            // A registered file travels in the descriptor's field, told apart by the flag.
            Some(slot) => (types::Fd(slot.cast_signed()), squeue::Flags::FIXED_FILE),
            None => (types::Fd(raw_fd), squeue::Flags::empty()),
        };
        let entry = match io.kind {
            IoKind::FlushData => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            IoKind::FlushAll => opcode::Fsync::new(fd).build(),
            IoKind::Read | IoKind::Write => self.transfer(io, fd)?,
        };
        Ok(entry.flags(flags).user_data(io.token.raw()))
    }

    #[inline]
    fn transfer(&mut self, io: &Io, fd: types::Fd) -> Result<squeue::Entry, Fault> {
        let write = io.kind == IoKind::Write;
        let [segment] = io.segments() else { return self.vectored(io, fd) };
        let va = segment.place.host().ok_or(UNREACHABLE)?;
        let base: *mut u8 = ptr::with_exposed_provenance_mut(sw_mem::index(va.raw()));
        Ok(match (self.tables.buffer(segment), write) {
            (Some(slot), false) => opcode::ReadFixed::new(fd, base, segment.len, slot).offset(io.offset).build(),
            (Some(slot), true) => opcode::WriteFixed::new(fd, base, segment.len, slot).offset(io.offset).build(),
            (None, false) => opcode::Read::new(fd, base, segment.len).offset(io.offset).build(),
            (None, true) => opcode::Write::new(fd, base, segment.len).offset(io.offset).build(),
        })
    }

    fn vectored(&mut self, io: &Io, fd: types::Fd) -> Result<squeue::Entry, Fault> {
        let segments = io.segments();
        if segments.is_empty() {
            return Err(Fault::new(ErrorKind::ApiMisuse, libc::EINVAL));
        }
        let place = self.next_vector % self.vectors.len();
        let vector = self.vectors.get_mut(place).ok_or(Fault::new(ErrorKind::ApiMisuse, 0))?;
        for (part, segment) in vector.iter_mut().zip(segments) {
            let va = segment.place.host().ok_or(UNREACHABLE)?;
            part.iov_base = ptr::with_exposed_provenance_mut(sw_mem::index(va.raw()));
            part.iov_len = sw_mem::index(u64::from(segment.len));
        }
        self.next_vector = place + 1;
        let (parts, count) = (vector.as_ptr(), u32::from(io.segment_count));
        Ok(match io.kind {
            IoKind::Write => opcode::Writev::new(fd, parts, count).offset(io.offset).build(),
            _ => opcode::Readv::new(fd, parts, count).offset(io.offset).build(),
        })
    }
}
