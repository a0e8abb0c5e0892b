//! Writing an index: samples in, batches out, objects and footer in the end.
//!
//! Memory: one batch of samples, the table of objects, and what is on its way to the file. What was written of an object that turns
//! out to be damaged is taken back: batches behind the place where it began are written over.

use std::collections::VecDeque;

use straightway::{Destination, Engine, Error, ErrorKind, Memory, OpenObject, Pending, Uri, Verb};

use crate::samples::ObjectEntry;

use super::{
    BATCH_ROWS,
    message::{self, Block, Footer, Message},
    objects::{Held, ObjectRows},
    rows::Rows,
};

/// Bytes that are written at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces on their way at most.
const PIECES_MAX: usize = 4;

/// Something that grows at its end and can be cut back.
pub(crate) trait Sink {
    /// Bytes so far.
    fn at(&self) -> u64;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error>;

    /// Forgets what was written behind byte `at`.
    fn back_to(&mut self, at: u64) -> Result<(), Error>;
}

impl Sink for Vec<u8> {
    fn at(&self) -> u64 {
        self.len() as u64
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn back_to(&mut self, at: u64) -> Result<(), Error> {
        self.truncate(usize::try_from(at).unwrap_or(usize::MAX));
        Ok(())
    }
}

/// A new object of the engine's.
pub(crate) struct Growing<'a> {
    engine: &'a Engine,
    new: OpenObject,
    /// Where the piece that is being filled begins.
    start: u64,
    piece: Vec<u8>,
    running: VecDeque<Pending>,
    spare: Vec<Memory>,
}

impl<'a> Growing<'a> {
    pub fn new(engine: &'a Engine, uri: &Uri) -> Result<Self, Error> {
        let new = engine.create_open(uri)?;
        Ok(Self { engine, new, start: 0, piece: Vec::new(), running: VecDeque::new(), spare: Vec::new() })
    }

    /// Bytes up to the next boundary of pieces.
    fn room(&self) -> usize {
        let until = PIECE_BYTES - self.start % PIECE_BYTES;
        usize::try_from(until).unwrap_or(usize::MAX) - self.piece.len()
    }

    fn send(&mut self) -> Result<(), Error> {
        if self.piece.is_empty() {
            return Ok(());
        }
        while self.running.len() >= PIECES_MAX {
            self.settle()?;
        }
        let len = self.piece.len() as u64;
        let memory = match self.spare.pop().filter(|memory| memory.len() == len) {
            Some(memory) => memory,
            None => self.engine.allocate(Destination::Host, len, self.start)?,
        };
        let misuse = |memory: Memory| {
            Error::new(ErrorKind::ApiMisuse, Verb::Write).at(memory.to_string()).detail("host memory without slices")
        };
        let mut buffer = memory.into_buffer().map_err(misuse)?;
        buffer.as_mut_slice().copy_from_slice(&self.piece);
        self.running.push_back(self.engine.write(self.new.object(), self.start, buffer).start());
        self.start += len;
        self.piece.clear();
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        if let Some(pending) = self.running.pop_front() {
            self.spare.extend(pending.wait().ok()?.into_memory());
        }
        Ok(())
    }

    fn settle_all(&mut self) -> Result<(), Error> {
        while !self.running.is_empty() {
            self.settle()?;
        }
        Ok(())
    }

    /// Makes it durable under its name.
    pub fn commit(mut self) -> Result<u64, Error> {
        self.send()?;
        self.settle_all()?;
        let len = self.start;
        self.new.commit(len)?;
        Ok(len)
    }
}

impl Sink for Growing<'_> {
    fn at(&self) -> u64 {
        self.start + self.piece.len() as u64
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.room()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.room() == 0 {
                self.send()?;
            }
        }
        Ok(())
    }

    fn back_to(&mut self, at: u64) -> Result<(), Error> {
        match at.checked_sub(self.start).and_then(|keep| usize::try_from(keep).ok()) {
            Some(keep) => self.piece.truncate(keep),
            None => {
                self.settle_all()?;
                self.piece.clear();
                self.start = at;
            }
        }
        Ok(())
    }
}

/// An index in the making. Objects come one after the other: their samples, then [`Writer::end`] or [`Writer::take_back`].
pub(super) struct Writer<S> {
    to: S,
    /// Of the next batch.
    pending: Rows,
    batches: Vec<Block>,
    objects: ObjectRows,
    samples: u64,
    /// Of the object that is being written.
    held: Held,
    /// Rows of `pending` when it began.
    before: usize,
    /// The batch that it was begun in, if that was written since: its rows of earlier objects, and its number.
    undo: Option<(Rows, usize)>,
}

impl<S: Sink> Writer<S> {
    pub fn new(mut to: S) -> Result<Self, Error> {
        to.write(&message::start())?;
        Ok(Self {
            to,
            pending: Rows::default(),
            batches: Vec::new(),
            objects: ObjectRows::default(),
            samples: 0,
            held: Held { first: 0, samples: 0, checksums: 0 },
            before: 0,
            undo: None,
        })
    }

    /// Adds samples of the object that is being written.
    pub fn add(&mut self, rows: &Rows, group: u32) -> Result<(), Error> {
        let object = self.next_object()?;
        for at in 0..rows.len() {
            self.pending.take(rows, at, object, group)?;
            self.held.checksums += u64::from(rows.crcs.get(at).is_some());
            self.held.samples += 1;
            if self.pending.len() == BATCH_ROWS {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn next_object(&self) -> Result<u32, Error> {
        u32::try_from(self.objects.len()).map_err(|_| {
            Error::new(ErrorKind::TooLarge, Verb::Write)
                .detail(format!("more than {} objects in one index", u32::MAX))
                .remedy("pack small files into shards: straightway dataset pack")
        })
    }

    /// The object is whole.
    pub fn end(&mut self, entry: &ObjectEntry) -> Result<Held, Error> {
        self.next_object()?;
        let held = self.held;
        self.objects.push(entry, held);
        self.samples += held.samples;
        self.begin();
        Ok(held)
    }

    /// The object is not to be in the index.
    pub fn take_back(&mut self) -> Result<(), Error> {
        match self.undo.take() {
            None => self.pending.truncate(self.before),
            Some((rows, number)) => {
                if let Some(block) = self.batches.get(number) {
                    self.to.back_to(block.offset)?;
                }
                self.batches.truncate(number);
                self.pending = rows;
            }
        }
        self.begin();
        Ok(())
    }

    fn begin(&mut self) {
        self.held = Held { first: self.samples, samples: 0, checksums: 0 };
        self.before = self.pending.len();
        self.undo = None;
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.pending);
        let number = self.batches.len();
        let block = put(&mut self.to, &message::samples(&rows))?;
        self.batches.push(block);
        if self.undo.is_none() {
            rows.truncate(self.before);
            self.undo = Some((rows, number));
        }
        self.before = 0;
        Ok(())
    }

    /// Writes what is left.
    pub fn finish(mut self) -> Result<S, Error> {
        self.flush()?;
        let objects = put(&mut self.to, &message::objects(&self.objects))?;
        let footer = Footer { samples: self.samples, batch: BATCH_ROWS as u64, objects, batches: self.batches };
        self.to.write(&footer.write())?;
        Ok(self.to)
    }
}

fn put(to: &mut impl Sink, message: &Message<'_>) -> Result<Block, Error> {
    let block = Block { offset: to.at(), head: message.head.len() as u64, body: message.body.len() };
    to.write(&message.head)?;
    message.body.pieces().try_for_each(|piece| to.write(piece))?;
    Ok(block)
}
