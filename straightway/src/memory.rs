//! Memory that operations are given and give back.

use std::fmt;

use sw_engine::{Error, ErrorKind, Verb};
use sw_mem::{Buffer, ByteLen, DmaRegion, DmaSpan, MemError, SharedSpan, SpanReader};

use crate::{policy::Destination, staging::Reader};

/// A range of host or device memory, owned by whoever holds it: you, or the operation that you gave it to.
#[derive(Debug)]
pub struct Memory {
    pub(crate) span: DmaSpan,
}

impl Memory {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.span.len().0
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.span.is_empty()
    }

    /// Where it is.
    pub fn destination(&self) -> Destination {
        Destination::of(self.span.region())
    }

    /// Address of its first byte, in the space of [`Memory::destination`].
    pub fn address(&self) -> u64 {
        self.span.place().raw()
    }

    /// Lends it to any number of threads that look at it; nobody writes it through this meanwhile.
    pub fn view(&mut self) -> MemoryView<'_> {
        MemoryView { span: self.span.reader() }
    }

    /// Whether nothing else holds its allocation: no other part of it, no operation, no handle of its region.
    pub fn is_sole(&self) -> bool {
        self.span.region().holders() == 1
    }

    /// As a buffer with slices: host memory that [`Engine::allocate`](crate::Engine::allocate) made.
    ///
    /// # Errors
    /// The memory itself, if it is device memory or registered by the caller.
    pub fn into_buffer(self) -> Result<Buffer, Memory> {
        self.span.into_buffer().map_err(|span| Memory { span })
    }

    /// Cuts it in two at byte `at`; both parts keep the allocation alive.
    ///
    /// # Errors
    /// The memory itself, if `at` is past its end.
    pub fn split_at(self, at: u64) -> Result<(Memory, Memory), Memory> {
        self.span
            .split_at(at)
            .map(|(left, right)| (Memory { span: left }, Memory { span: right }))
            .map_err(|span| Memory { span })
    }

    /// Makes it a region whose parts can be given to operations one by one, and the offset of its first byte there: parts
    /// count from the start of the allocation, of which the region is this memory and nothing else.
    /// [`Region::reclaim`] is the way back.
    pub fn share(self) -> (Region, u64) {
        let start = self.span.offset();
        (Region { shared: self.span.share(), start }, start)
    }

    /// Copies host bytes out.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for device memory.
    pub fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Error> {
        self.span.read(at, to).map_err(|cause| mem_error(cause, Verb::Copy))
    }

    /// Copies `len` host bytes of `from` (at `from_at`) to byte `at`. The ranges may overlap.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for device memory. Nothing is copied then.
    pub fn copy_from(&self, at: u64, from: &Memory, from_at: u64, len: u64) -> Result<(), Error> {
        self.span.copy_from(at, &from.span, from_at, len).map_err(|cause| mem_error(cause, Verb::Copy))
    }

    /// Shows `len` host bytes from `at` to `each`, in order, in copies of at most 16 KiB each: a hash needs no more.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for device memory. `each` is not called then.
    pub fn visit(&self, at: u64, len: u64, each: impl FnMut(&[u8])) -> Result<(), Error> {
        self.span.visit(at, len, each).map_err(|cause| mem_error(cause, Verb::Copy))
    }

    /// # Errors
    /// `OutOfRange` if `len` bytes from `at` are not inside.
    pub(crate) fn check_range(&self, at: u64, len: u64) -> Result<(), Error> {
        if at.checked_add(len).is_some_and(|end| end <= self.len()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::OutOfRange, Verb::Copy)
            .at(format!("{} memory", self.destination()))
            .in_range(at, len)
            .detail(format!("the range ends past the memory, which has {} bytes", self.len()))
            .remedy("ask for bytes that it has"))
    }
}

/// # Errors
/// `ApiMisuse` if a way in or out was made for memory of another kind.
fn check_kind(destination: Destination, made_for: Destination) -> Result<(), Error> {
    if destination == made_for {
        return Ok(());
    }
    Err(Error::new(ErrorKind::ApiMisuse, Verb::Copy)
        .at(format!("{destination} memory"))
        .detail(format!("it was made for {made_for} memory"))
        .remedy("make one for each kind of memory"))
}

/// Memory that several threads look at: see [`Memory::view`].
#[derive(Debug)]
pub struct MemoryView<'a> {
    span: SpanReader<'a>,
}

impl MemoryView<'_> {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.span.len().0
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.span.is_empty()
    }

    /// Where it is.
    pub fn destination(&self) -> Destination {
        Destination::of(self.span.region())
    }

    /// As [`Memory::read`].
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for device memory.
    pub fn read(&self, at: u64, to: &mut [u8]) -> Result<(), Error> {
        self.span.read(at, to).map_err(|cause| mem_error(cause, Verb::Copy))
    }
}

impl From<Buffer> for Memory {
    fn from(buffer: Buffer) -> Self {
        Self { span: buffer.into_span() }
    }
}

/// A region that did not become memory of one owner, and why. Try again when its operations have ended.
#[derive(Debug)]
pub struct NotReclaimed {
    /// The region, as it was.
    pub region: Region,
    /// `InUse` or `OutOfRange`.
    pub error: Error,
}

impl fmt::Display for NotReclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for NotReclaimed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<NotReclaimed> for Error {
    fn from(not: NotReclaimed) -> Self {
        not.error
    }
}

/// Looks at memory of one kind from the host, a piece at a time: see [`Engine::copy_out`](crate::Engine::copy_out). For device
/// memory it has a copy engine and a pinned slab of its own, for as long as it lives.
pub struct CopyOut {
    reader: Option<Reader>,
    destination: Destination,
}

impl CopyOut {
    pub(crate) fn new(reader: Option<Reader>, destination: Destination) -> Self {
        Self { reader, destination }
    }

    /// Shows `len` bytes from `at` to `each` in order; bytes of a device in pieces of at most 1 MiB.
    ///
    /// # Errors
    /// `OutOfRange`; `ApiMisuse` for memory of another kind; the copy engine's, after which it takes nothing more (`Closed`).
    pub fn visit(&mut self, memory: &Memory, at: u64, len: u64, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        memory.check_range(at, len)?;
        check_kind(memory.destination(), self.destination)?;
        match &mut self.reader {
            None => memory.visit(at, len, each),
            Some(reader) => {
                let span = &memory.span;
                reader.visit((span.place(), span.len()), span.region(), (at, len), &mut each)
            }
        }
    }

    /// Copies bytes of a view, from byte `at` on: what [`CopyOut::visit`] shows.
    ///
    /// # Errors
    /// As [`CopyOut::visit`].
    pub fn copy(&mut self, from: &MemoryView<'_>, at: u64, into: &mut [u8]) -> Result<(), Error> {
        check_kind(from.destination(), self.destination)?;
        let Some(reader) = &mut self.reader else { return from.read(at, into) };
        let mut filled = 0;
        reader.visit((from.span.place(), from.span.len()), from.span.region(), (at, into.len() as u64), &mut |bytes| {
            into[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        })
    }
}

/// Puts host bytes into memory of one kind: see [`Engine::copy_in`](crate::Engine::copy_in). For device memory it has a copy
/// engine and a pinned slab of its own, for as long as it lives.
pub struct CopyIn {
    writer: Option<Reader>,
    destination: Destination,
}

impl CopyIn {
    pub(crate) fn new(writer: Option<Reader>, destination: Destination) -> Self {
        Self { writer, destination }
    }

    /// Copies `bytes` to byte `at` of `memory`; they are there when it returns.
    ///
    /// # Errors
    /// As [`CopyOut::visit`]; a part of the bytes may be there then.
    pub fn put(&mut self, memory: &Memory, at: u64, bytes: &[u8]) -> Result<(), Error> {
        memory.check_range(at, bytes.len() as u64)?;
        check_kind(memory.destination(), self.destination)?;
        match &mut self.writer {
            None => memory.span.write(at, bytes).map_err(|cause| mem_error(cause, Verb::Copy)),
            Some(writer) => writer.put(&memory.span, at, bytes),
        }
    }
}

impl fmt::Debug for CopyIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyIn").field("destination", &self.destination).finish_non_exhaustive()
    }
}

impl fmt::Debug for CopyOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyOut").field("destination", &self.destination).finish_non_exhaustive()
    }
}

/// Memory of which parts are given to operations one by one. Cloning shares it.
///
/// Parts of host memory that the engine allocated never overlap while they live, so that two operations cannot write the
/// same bytes under each other. Parts of device memory and of memory that was registered may: two operations on the same
/// bytes then race as two system calls do.
#[derive(Clone, Debug)]
pub struct Region {
    shared: SharedSpan,
    /// Where it starts in its allocation.
    start: u64,
}

impl Region {
    /// All of a region that is not memory of the engine's.
    pub(crate) fn new(region: &DmaRegion) -> Result<Self, Error> {
        let whole = region.span(0, region.len()).map_err(|cause| mem_error(cause, Verb::Register))?;
        Ok(Self { shared: whole.share(), start: 0 })
    }

    /// A part of it, to give to an operation: `at` counts from the start of its allocation, as [`Memory::share`] told.
    ///
    /// # Errors
    /// `OutOfRange`; `InUse` if it overlaps a part that was given out before. A range is free again when all parts of the
    /// region are gone.
    pub fn part(&self, at: u64, len: u64) -> Result<Memory, Error> {
        let span = self.within(at, len).and_then(|at| self.shared.part(at, ByteLen(len)));
        span.map(|span| Memory { span }).map_err(|cause| mem_error(cause, Verb::Register))
    }

    fn within(&self, at: u64, len: u64) -> Result<u64, MemError> {
        at.checked_sub(self.start).ok_or_else(|| MemError::OutOfRange { at, len, have: self.shared.len() })
    }

    /// A range of it back as memory of one owner, once no operation, no part, no other handle and no other piece of the
    /// allocation is left. Device memory and registered memory come back as a shared part: nobody can have slices of
    /// those anyway.
    ///
    /// # Errors
    /// The region with the reason: `InUse` if somebody still holds a part; `OutOfRange`.
    pub fn reclaim(self, at: u64, len: u64) -> Result<Memory, NotReclaimed> {
        let have = self.shared.len();
        let from = match self.within(at, len) {
            Ok(from) if from.checked_add(len).is_some_and(|end| end <= have.0) => from,
            Ok(from) => return Err(self.kept(mem_error(MemError::OutOfRange { at: from, len, have }, Verb::Register))),
            Err(cause) => return Err(self.kept(mem_error(cause, Verb::Register))),
        };
        let start = self.start;
        self.shared.reclaim(from, ByteLen(len)).map(|span| Memory { span }).map_err(|shared| {
            let error = Error::new(ErrorKind::InUse, Verb::Register)
                .at(format!("{shared:?}"))
                .detail("a part of the region is still held by an operation or another handle")
                .remedy("wait for the operations on it first");
            NotReclaimed { region: Self { shared, start }, error }
        })
    }

    fn kept(self, error: Error) -> NotReclaimed {
        NotReclaimed { region: self, error }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.shared.len().0
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

pub(crate) fn mem_error(cause: MemError, verb: Verb) -> Error {
    let (kind, remedy) = match cause {
        MemError::OutOfRange { .. } => (ErrorKind::OutOfRange, "ask for bytes that it has"),
        MemError::InUse { .. } => {
            (ErrorKind::InUse, "give operations parts that do not overlap, or drop the parts first")
        }
        MemError::Owned => (ErrorKind::ApiMisuse, "give the memory itself, or share it and give parts"),
        MemError::NotHost(_) => (ErrorKind::ApiMisuse, "copy it to the host first"),
        MemError::BadAddress { .. } => (ErrorKind::ApiMisuse, "give the address and length of one allocation"),
    };
    Error::new(kind, verb).at("memory").detail(cause.to_string()).remedy(remedy).caused_by(cause)
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {} memory", self.len(), self.destination())
    }
}
