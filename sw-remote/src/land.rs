//! Bytes into the memory of an I/O and out of it.
// UNSAFETY: memory of a caller is read and written by its address.
#![expect(unsafe_code, reason = "copies to and from memory that a transport was given")]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use sw_engine::seam::{Io, MAX_SEGMENTS, MemorySegment};
use sw_mem::{ByteLen, Place};
use tokio::io::{AsyncRead, ReadBuf};

use crate::copies::Copies;

/// The memory of one I/O, filled or emptied from its first byte on. It is that of a task that has not ended yet: the contract of
/// [`Transport`](sw_engine::seam::Transport) gives the memory to the transport until the I/O's end is told.
#[derive(Debug)]
pub(crate) struct Landing {
    segments: [MemorySegment; MAX_SEGMENTS],
    count: usize,
    /// The segment that is next, and how much of it is done.
    at: (usize, u32),
    done: u32,
    len: u32,
    /// Who gets copies of what comes, from [`Remote::read`](crate::remote::Remote::read)s that give them.
    pub(crate) copies: Option<Copies>,
}

/// More bytes came than were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Landing {
    /// That of an I/O; `None` if a piece of it is not memory of this process.
    pub(crate) fn of(io: &Io) -> Option<Self> {
        let count = io.segments().len();
        let is_host = |segment: &MemorySegment| segment.place.host().is_some();
        let whole = Self { segments: io.segments, count, at: (0, 0), done: 0, len: io.len, copies: None };
        io.segments().iter().all(is_host).then_some(whole)
    }

    /// Bytes that it has in all.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Bytes that were put into it.
    pub(crate) fn done(&self) -> u32 {
        self.done
    }

    /// That of its next `want` bytes alone, fewer if it has fewer left: what is put into it counts here once [`Landing::join`] takes it back.
    /// It belongs to the same task, which must not keep it longer than this one.
    pub(crate) fn window(&self, want: u32) -> Self {
        let (mut segments, mut count, mut len) = (self.segments, 0, 0);
        let left = self.segments.get(..self.count).unwrap_or_default().iter().skip(self.at.0);
        for (n, segment) in left.enumerate() {
            let begun = if n == 0 { self.at.1 } else { 0 };
            let part = (segment.len - begun).min(want - len);
            let place = segment.place.checked_add(ByteLen(begun.into()));
            let (Some(place), Some(to), 1..) = (place, segments.get_mut(count), part) else { break };
            *to = MemorySegment { place, len: part, region: segment.region };
            (count, len) = (count + 1, len + part);
        }
        Self { segments, count, at: (0, 0), done: 0, len, copies: None }
    }

    /// Takes what was put into a window of it: its first bytes that are next here.
    pub(crate) fn join(&mut self, window: &Self) {
        let mut done = window.done;
        while done > 0 {
            let before = self.done;
            self.advance(done);
            match self.done - before {
                0 => return,
                moved => done -= moved,
            }
        }
    }

    /// Puts at most `want` zeros behind what is there. Gives how many.
    pub(crate) fn zeros(&mut self, want: u32) -> u32 {
        let before = self.done;
        while let Some((to, len)) =
            self.next(sw_mem::index(u64::from(want - (self.done - before)))).filter(|(_, len)| *len > 0)
        {
            // SAFETY: the segment is mapped memory that belongs to this I/O until its end is told, which happens behind this call; `next` gives
            // no byte outside of it and none twice.
            unsafe { std::ptr::write_bytes(to, 0, len) };
        }
        self.done - before
    }

    /// The next piece of at most `want` bytes. Nothing of it is taken yet.
    fn peek(&self, want: usize) -> Option<(*mut u8, usize)> {
        let segment = self.segments.get(..self.count)?.get(self.at.0)?;
        let Place::Host(base) = segment.place else { return None };
        let len = (segment.len - self.at.1).min(u32::try_from(want).unwrap_or(u32::MAX));
        let to = std::ptr::with_exposed_provenance_mut(sw_mem::index(base.raw() + u64::from(self.at.1)));
        Some((to, sw_mem::index(u64::from(len))))
    }

    /// Takes so many bytes of the piece that [`Landing::peek`] gave.
    fn advance(&mut self, len: u32) {
        let left = self.segments.get(self.at.0).map_or(0, |segment| segment.len - self.at.1);
        self.at = if len >= left { (self.at.0 + 1, 0) } else { (self.at.0, self.at.1 + len) };
        self.done += len.min(left);
    }

    /// The next piece of at most `want` bytes.
    fn next(&mut self, want: usize) -> Option<(*mut u8, usize)> {
        let (to, len) = self.peek(want)?;
        self.advance(u32::try_from(len).unwrap_or(u32::MAX));
        Some((to, len))
    }

    /// Lets the kernel put at most `want` bytes that a socket has behind those that are there: by one copy, its own. Without waiting.
    ///
    /// # Errors
    /// What the system says; `WouldBlock` if the socket has none; `UnexpectedEof` if none come any more; `InvalidInput` if all of it is full.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, want: usize) -> io::Result<usize> {
        let (to, len) = self.peek(want).filter(|(_, len)| *len > 0).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the descriptor is open while it is borrowed; the kernel writes at most `len` bytes, all of them within the segment that
        // `peek` gave, which is mapped memory of this I/O until its end is told, behind this call.
        let got = unsafe { libc::recv(socket.as_raw_fd(), to.cast(), len, libc::MSG_DONTWAIT) };
        match usize::try_from(got) {
            Err(_negative) => Err(io::Error::last_os_error()),
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => {
                self.advance(u32::try_from(got.min(len)).unwrap_or(u32::MAX));
                Ok(got.min(len))
            }
        }
    }

    /// Has `from` read at most `want` bytes into their place, behind those that are there, and shows them to `seen`. Gives how many came: 0
    /// at the end of `from`, or where there is no place left.
    pub(crate) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        want: u64,
        seen: &mut impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        let Some((to, len)) = self.peek(usize::try_from(want).unwrap_or(usize::MAX)) else { return Poll::Ready(Ok(0)) };
        // SAFETY: the segment is mapped memory that belongs to this I/O until its end is told, which happens behind this call, and nobody
        // else writes to it or reads it meanwhile; `peek` gives no byte outside of it. The reference ends with this call.
        let place = unsafe { std::slice::from_raw_parts_mut(to.cast::<MaybeUninit<u8>>(), len) };
        let mut place = ReadBuf::uninit(place);
        ready!(Pin::new(from).poll_read(context, &mut place))?;
        let came = place.filled();
        seen(came);
        let came = came.len();
        self.advance(u32::try_from(came).unwrap_or(u32::MAX));
        Poll::Ready(Ok(came))
    }

    /// Puts `bytes` behind those that are there.
    pub(crate) fn put(&mut self, mut bytes: &[u8]) -> Result<(), TooMany> {
        while !bytes.is_empty() {
            let (to, len) = self.next(bytes.len()).ok_or(TooMany)?;
            let (piece, rest) = bytes.split_at(len.min(bytes.len()));
            // SAFETY: the segment is mapped memory that belongs to this I/O until its end is told, which happens behind this call; `next`
            // gives no byte outside of it and none twice. The source is a buffer of the HTTP client's.
            unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), to, piece.len()) };
            bytes = rest;
        }
        Ok(())
    }

    /// Copies its next bytes over `to`; fewer if it ends before.
    pub(crate) fn take(&mut self, mut to: &mut [u8]) {
        while !to.is_empty() {
            let Some((from, len)) = self.next(to.len()) else { return };
            let (piece, rest) = to.split_at_mut(len);
            // SAFETY: as in `put`, with the roles exchanged.
            unsafe { std::ptr::copy_nonoverlapping(from, piece.as_mut_ptr(), piece.len()) };
            to = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use sw_engine::{ObjectId, Token, seam::IoKind};
    use sw_mem::{Buffer, ByteLen};

    use super::*;

    /// Three pieces of one buffer, of 3, 1 and 5 bytes.
    fn io(buffer: &Buffer) -> Io {
        let base = buffer.region().base();
        let region = buffer.region().id();
        let piece = |at, len| MemorySegment { place: base.checked_add(ByteLen(at)).unwrap(), len, region };
        Io {
            token: Token::from_raw(1),
            kind: IoKind::Read,
            object: ObjectId(1),
            handle: 0,
            offset: 0,
            len: 9,
            segment_count: 3,
            segments: [piece(10, 3), piece(20, 1), piece(30, 5)],
        }
    }

    #[test]
    fn a_socket_fills_the_pieces_and_nothing_else() {
        use std::{io::Write, os::fd::AsFd, os::unix::net::UnixStream};
        let mut buffer = Buffer::allocate(ByteLen(64)).unwrap();
        let mut landing = Landing::of(&io(&buffer)).unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        assert_eq!(landing.receive(near.as_fd(), 9).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        far.write_all(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).unwrap();
        let got: Vec<usize> = (0..4).map(|_| landing.receive(near.as_fd(), 2).unwrap()).collect();
        assert_eq!((got, landing.done()), (vec![2, 1, 1, 2], 6));
        assert_eq!(landing.receive(near.as_fd(), 100).unwrap(), 3);
        assert_eq!(landing.receive(near.as_fd(), 100).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let mut want = [0; 64];
        want[10..13].copy_from_slice(&[1, 2, 3]);
        want[20] = 4;
        want[30..35].copy_from_slice(&[5, 6, 7, 8, 9]);
        assert_eq!(buffer.as_mut_slice()[..64], want);
        drop(far);
        let mut again = Landing::of(&io(&buffer)).unwrap();
        assert_eq!(again.receive(near.as_fd(), 9).unwrap(), 1);
        assert_eq!(again.receive(near.as_fd(), 9).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_window_is_the_bytes_that_are_next_and_no_others() {
        let mut buffer = Buffer::allocate(ByteLen(64)).unwrap();
        let mut landing = Landing::of(&io(&buffer)).unwrap();
        landing.put(&[1, 2]).unwrap();
        let mut window = landing.window(3);
        assert_eq!(window.len(), 3);
        window.put(&[3, 4]).unwrap();
        landing.join(&window);
        assert_eq!(window.put(&[5, 6]), Err(TooMany), "it has a byte left");
        assert_eq!(landing.done(), 4, "what came behind the join is not counted");
        assert_eq!(landing.zeros(3), 3);
        assert_eq!(landing.window(9).len(), 2, "no longer than what is left");
        assert_eq!(landing.zeros(9), 2);
        assert_eq!((landing.zeros(1), landing.done(), landing.window(1).len()), (0, 9, 0));
        let mut want = [0; 64];
        want[10..13].copy_from_slice(&[1, 2, 3]);
        want[20] = 4;
        assert_eq!(buffer.as_mut_slice()[..64], want);
    }

    #[test]
    fn bytes_go_where_the_pieces_are_and_nowhere_else() {
        let mut buffer = Buffer::allocate(ByteLen(64)).unwrap();
        let mut landing = Landing::of(&io(&buffer)).unwrap();
        assert_eq!(landing.put(&[1, 2]), Ok(()));
        assert_eq!(landing.put(&[3, 4, 5, 6, 7]), Ok(()));
        assert_eq!((landing.done(), landing.len()), (7, 9));
        assert_eq!(landing.put(&[8, 9, 10]), Err(TooMany));
        let mut want = [0; 64];
        want[10..13].copy_from_slice(&[1, 2, 3]);
        want[20] = 4;
        want[30..35].copy_from_slice(&[5, 6, 7, 8, 9]);
        assert_eq!(buffer.as_mut_slice()[..64], want);
        let mut again = Landing::of(&io(&buffer)).unwrap();
        let (mut first, mut rest) = ([0; 4], [0; 7]);
        again.take(&mut first);
        again.take(&mut rest);
        assert_eq!((first, rest), ([1, 2, 3, 4], [5, 6, 7, 8, 9, 0, 0]), "what it has not is left as it was");
    }
}
