//! Files and block devices: the kernel's own reads, writes and flushes.
// UNSAFETY: vectors of raw addresses travel with the ring from thread to thread.
#![expect(unsafe_code, reason = "vectors of addresses that only the kernel follows")]

use std::{os::fd::RawFd, ptr};

use io_uring::{cqueue, opcode, squeue, types};
use sw_engine::{
    ErrorKind, Fault, Token, TransportName,
    seam::{Io, IoDone, IoKind, MAX_SEGMENTS},
};

use crate::{fault, handle, peer};

use super::{IO_URING, ring::Completions, shape::Shape, tables::Tables};

const UNREACHABLE: Fault = Fault::new(ErrorKind::Unsupported, 0);

/// Entries of 64 bytes; the user data is the token.
pub struct Files {
    /// Vectors of multi-piece I/Os, one per submission entry: an entry is reused only after the kernel took it, and the
    /// kernel copies the vectors then (`IORING_FEAT_SUBMIT_STABLE`).
    vectors: Box<[[libc::iovec; MAX_SEGMENTS]]>,
    next_vector: usize,
    /// Tokens of I/Os into peer memory, with room for all: where the kernel refuses those, its code means something else
    /// than for ordinary memory.
    peers: Vec<Token>,
}

// SAFETY: the raw addresses inside `vectors` are only handed to the kernel, never followed here; everything else is
// `Send` by itself.
unsafe impl Send for Files {}

impl Shape for Files {
    type Submission = squeue::Entry;
    type Completion = cqueue::Entry;

    const NAME: TransportName = IO_URING;
    const SEGMENTS_MAX: u8 = 3;
    const TOO_OLD: &'static str = "use Linux 5.11 or newer; the thread pool serves meanwhile";

    fn new(entries: u32, queue_depth: u32, _completions: Completions) -> Self {
        let unused = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Self {
            vectors: vec![[unused; MAX_SEGMENTS]; sw_mem::index(u64::from(entries))].into_boxed_slice(),
            next_vector: 0,
            peers: Vec::with_capacity(sw_mem::index(u64::from(queue_depth))),
        }
    }

    #[inline]
    fn fd(handle: u64) -> RawFd {
        handle::fd(handle)
    }

    #[inline]
    fn is_polled(io: &Io) -> bool {
        handle::is_direct(io.handle) && matches!(io.kind, IoKind::Read | IoKind::Write)
    }

    #[inline]
    fn entry(&mut self, io: &Io, tables: &Tables) -> Result<squeue::Entry, Fault> {
        let (fd, flags) = tables.target(io.object, handle::fd(io.handle));
        let entry = match io.kind {
            IoKind::FlushData => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            IoKind::FlushAll => opcode::Fsync::new(fd).build(),
            IoKind::Read | IoKind::Write => self.transfer(io, fd, tables)?,
        };
        if io.segments().iter().any(|segment| peer::is_peer(segment.region)) {
            self.peers.push(io.token);
        }
        Ok(entry.flags(flags).user_data(io.token.raw()))
    }

    #[inline]
    fn end(&mut self, word: u64, result: i32) -> Option<IoDone> {
        let token = Token::from_raw(word);
        let result = fault::outcome(result);
        let result = if self.peers.is_empty() { result } else { self.of_peer(token, result) };
        Some(IoDone { token, result, aside: 0 })
    }

    fn word(&self, token: Token) -> Option<u64> {
        Some(token.raw())
    }
}

impl Files {
    #[inline]
    fn transfer(&mut self, io: &Io, fd: types::Fd, tables: &Tables) -> Result<squeue::Entry, Fault> {
        let write = io.kind == IoKind::Write;
        let [segment] = io.segments() else { return self.vectored(io, fd) };
        let va = segment.place.host().ok_or(UNREACHABLE)?;
        let base: *mut u8 = ptr::with_exposed_provenance_mut(sw_mem::index(va.raw()));
        Ok(match (tables.buffer(segment), write) {
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

    /// The end of an I/O while some are into peer memory.
    #[cold]
    fn of_peer(&mut self, token: Token, result: Result<u32, Fault>) -> Result<u32, Fault> {
        let Some(at) = self.peers.iter().position(|peer| *peer == token) else { return result };
        self.peers.swap_remove(at);
        result.map_err(peer::as_refusal)
    }
}
