//! The bytes of a connection, by records (RFC 5531 §11 "Record Marking Standard"), each wait bounded.

use std::{
    io::{self, ErrorKind, IoSlice},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use tokio::{io::Interest, net::TcpStream, time::timeout};

use crate::land::Landing;

/// Bytes that are read ahead at most: the head of the answer to a READ, so that little of its bytes is copied once more.
const HEAD_BYTES: usize = 192;
/// Longest record. No answer is longer than what was asked for and its head.
const RECORD_MAX: u64 = 4 << 20;
/// Bytes that are read at once of what is no payload.
const PIECE_BYTES: usize = 64 << 10;
/// The flag of the last fragment of a record.
const LAST: u32 = 1 << 31;

/// The receiving half.
pub(super) struct Wire {
    stream: Arc<TcpStream>,
    /// Longest wait for the next byte within a record.
    silence: Duration,
    ahead: Box<[u8; HEAD_BYTES]>,
    from: usize,
    to: usize,
    /// The mark of a fragment, and how many bytes of it have come: a call that is given up among them leaves the rest to who is next.
    mark: (u32, usize),
    /// Bytes of the fragment that have not been taken.
    left: usize,
    is_last: bool,
    /// Bytes of the record so far, its further fragments included.
    total: u64,
    /// What is left out is read into; made with the first use.
    scratch: Vec<u8>,
}

fn lie(text: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text)
}

impl Wire {
    pub(super) fn new(stream: Arc<TcpStream>, silence: Duration) -> Self {
        let ahead = Box::new([0; HEAD_BYTES]);
        let mark = (0, 0);
        Self { stream, silence, ahead, from: 0, to: 0, mark, left: 0, is_last: true, total: 0, scratch: Vec::new() }
    }

    /// Waits until a record begins, for as long as nobody says otherwise. May be given up at any time.
    pub(super) async fn wait(&mut self) -> io::Result<()> {
        if self.from < self.to { Ok(()) } else { self.fill().await }
    }

    async fn fill(&mut self) -> io::Result<()> {
        (self.from, self.to) = (0, 0);
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut self.ahead[..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    self.to = len;
                    return Ok(());
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What is ahead, at most so much of it; waits if there is nothing.
    async fn ahead(&mut self, want: usize) -> io::Result<&[u8]> {
        if self.from == self.to {
            let silence = self.silence;
            timeout(silence, self.fill()).await.map_err(|_| ErrorKind::TimedOut)??;
        }
        let begin = self.from;
        self.from = self.to.min(begin.saturating_add(want));
        self.ahead.get(begin..self.from).ok_or_else(|| lie("nothing is ahead"))
    }

    /// Takes the head of a record, behind the whole of the one before.
    pub(super) async fn begin(&mut self) -> io::Result<()> {
        (self.left, self.is_last, self.total) = (0, false, 0);
        self.fragment().await.map(drop)
    }

    /// Bytes that may be taken at once; zero at the end of the record.
    async fn fragment(&mut self) -> io::Result<usize> {
        while self.left == 0 && !self.is_last {
            while let (before, have @ 0..4) = self.mark {
                let piece = self.ahead(4 - have).await?;
                self.mark = (piece.iter().fold(before, |mark, byte| mark << 8 | u32::from(*byte)), have + piece.len());
            }
            let (mark, _) = std::mem::take(&mut self.mark);
            self.is_last = mark & LAST != 0;
            let len = mark & !LAST;
            // An empty one that is not the last counts too: there is an end to them.
            self.total += u64::from(len) + 4;
            if self.total > RECORD_MAX {
                return Err(lie("an answer is longer than anything that was asked for"));
            }
            self.left = sw_mem::index(u64::from(len));
        }
        Ok(self.left)
    }

    /// Takes as many bytes of the record as `to` has. One that is given up has taken what it counted, and no more.
    pub(super) async fn take(&mut self, mut to: &mut [u8]) -> io::Result<()> {
        while !to.is_empty() {
            let left = self.fragment().await?.min(to.len());
            if left == 0 {
                return Err(lie("an answer ends before it is whole"));
            }
            let piece = self.ahead(left).await?;
            let gone = piece.len();
            let (filled, rest) = std::mem::take(&mut to).split_at_mut(gone);
            filled.copy_from_slice(piece);
            self.left -= gone;
            to = rest;
        }
        Ok(())
    }

    pub(super) async fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.take(&mut bytes).await?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Takes bytes of the record that nobody wants.
    pub(super) async fn skip(&mut self, mut len: usize) -> io::Result<()> {
        while len > 0 {
            let left = self.fragment().await?.min(len);
            if left == 0 {
                return Err(lie("an answer ends before it is whole"));
            }
            let gone = if self.from < self.to { self.ahead(left).await?.len() } else { self.discard(left).await? };
            self.left -= gone;
            len -= gone;
        }
        Ok(())
    }

    /// Takes bytes that nobody wants from the socket, in pieces that are larger than what is read ahead.
    async fn discard(&mut self, most: usize) -> io::Result<usize> {
        self.scratch.resize(PIECE_BYTES, 0);
        let most = most.min(PIECE_BYTES);
        let (stream, silence) = (self.stream.clone(), self.silence);
        some(&stream, silence, self.scratch.get_mut(..most).unwrap_or_default()).await
    }

    /// Takes what is left of the record.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        loop {
            let left = self.fragment().await?;
            if left == 0 {
                return Ok(());
            }
            self.skip(left).await?;
        }
    }

    /// What is left of the record, if it is not more than `most`. Room is made as bytes come, not as they are promised.
    pub(super) async fn rest(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            let left = self.fragment().await?;
            if left == 0 {
                return Ok(whole);
            }
            if left > most - whole.len() {
                return Err(lie("an answer is longer than anything that was asked for"));
            }
            let piece = self.ahead(left).await?;
            let gone = piece.len();
            whole.extend_from_slice(piece);
            self.left -= gone;
            if self.left > 0 {
                self.append(&mut whole).await?;
            }
        }
    }

    /// What the socket has of the fragment, behind what is there: in pieces, with less calls than by what is read ahead.
    async fn append(&mut self, whole: &mut Vec<u8>) -> io::Result<()> {
        let (at, want) = (whole.len(), self.left.min(PIECE_BYTES));
        whole.resize(at + want, 0);
        let got = some(&self.stream, self.silence, whole.get_mut(at..).unwrap_or_default()).await?;
        whole.truncate(at + got);
        self.left -= got;
        Ok(())
    }

    /// Puts the next `len` bytes of the record into `landing`: what is ahead is copied, the rest is put there by the kernel.
    pub(super) async fn land(&mut self, landing: &mut Landing, mut len: usize) -> io::Result<()> {
        while len > 0 {
            let left = self.fragment().await?.min(len);
            if left == 0 {
                return Err(lie("an answer ends before it is whole"));
            }
            let gone = if self.from < self.to {
                let piece = self.ahead(left).await?;
                landing.put(piece).map_err(|_| lie("an answer has more bytes than were asked for"))?;
                piece.len()
            } else {
                self.receive(landing, left).await?
            };
            self.left -= gone;
            len -= gone;
        }
        Ok(())
    }

    async fn receive(&self, landing: &mut Landing, most: usize) -> io::Result<usize> {
        loop {
            timeout(self.silence, self.stream.readable()).await.map_err(|_| ErrorKind::TimedOut)??;
            match self.stream.try_io(Interest::READABLE, || landing.receive(self.stream.as_fd(), most)) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                done => return done,
            }
        }
    }
}

/// Some bytes of a socket.
async fn some(stream: &TcpStream, silence: Duration, to: &mut [u8]) -> io::Result<usize> {
    loop {
        timeout(silence, stream.readable()).await.map_err(|_| ErrorKind::TimedOut)??;
        match stream.try_read(to) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            done => return done,
        }
    }
}

/// Writes all pieces, one behind the other; `moved` is told of each part that is taken of what is not taken at once.
pub(super) async fn send(stream: &TcpStream, pieces: &[&[u8]], silence: Duration, moved: impl Fn()) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        timeout(silence, stream.writable()).await.map_err(|_| ErrorKind::TimedOut)??;
        match stream.try_write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => {
                IoSlice::advance_slices(&mut left, len);
                if !left.is_empty() {
                    moved();
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A record of these words, in two fragments.
    fn record(words: &[u32]) -> Vec<u8> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let (first, second) = bytes.split_at(bytes.len() / 2 + 1);
        let mark = |len: usize, last: u32| (u32::try_from(len).unwrap() | last).to_be_bytes();
        [&mark(first.len(), 0), first, &mark(second.len(), LAST), second].concat()
    }

    #[test]
    fn a_call_that_is_given_up_among_the_bytes_of_a_head_leaves_the_next_record_where_it_is() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (first, second) = (record(&[1, 2, 3, 4, 5, 6]), record(&[7, 8]));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // How much of the record comes first, and whether words or all that is left are waited for.
        for came in 1..first.len() {
            for is_skipped in [false, true] {
                runtime.block_on(async {
                    let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    socket.set_nonblocking(true).unwrap();
                    let mut peer = listener.accept().unwrap().0;
                    let mut wire = Wire::new(Arc::new(TcpStream::from_std(socket).unwrap()), Duration::from_secs(20));
                    peer.write_all(&first[..came]).unwrap();
                    let given_up = async {
                        wire.begin().await?;
                        if is_skipped { wire.skip(24).await } else { wire.take(&mut [0; 24]).await }
                    };
                    assert!(timeout(Duration::from_millis(5), given_up).await.is_err(), "{came}");
                    peer.write_all(&[&first[came..], &second].concat()).unwrap();
                    wire.finish().await.unwrap();
                    wire.begin().await.unwrap();
                    assert_eq!((wire.u32().await.unwrap(), wire.u32().await.unwrap()), (7, 8), "{came}");
                    wire.finish().await.unwrap();
                });
            }
        }
    }
}
