//! Memory that operations are given and give back.

use std::fmt;

use sw_engine::{Error, ErrorKind, Verb};
use sw_mem::{Buffer, ByteLen, DmaRegion, DmaSpan, Place};

use crate::policy::Destination;

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
        match self.span.place() {
            Place::Host(_) => Destination::Host,
            Place::Device(device, _) => Destination::Gpu(device.0),
        }
    }

    /// Address of its first byte, in the space of [`Memory::destination`].
    pub fn address(&self) -> u64 {
        self.span.place().raw()
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

    /// Makes it a region whose parts can be given to operations one by one, and the offset of its first byte there.
    /// [`Region::reclaim`] is the way back.
    pub fn share(self) -> (Region, u64) {
        (Region { region: self.span.region().clone() }, self.span.offset())
    }

    /// Copies host bytes out.
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

/// Memory of the caller's, known to the engine. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Region {
    region: DmaRegion,
}

impl Region {
    pub(crate) fn new(region: DmaRegion) -> Self {
        Self { region }
    }

    /// A part of it, to give to an operation. Parts may overlap; two operations on the same bytes race as two system calls do.
    ///
    /// # Errors
    /// `OutOfRange`.
    pub fn part(&self, at: u64, len: u64) -> Result<Memory, Error> {
        self.region.span(at, ByteLen(len)).map(|span| Memory { span }).map_err(|cause| mem_error(cause, Verb::Register))
    }

    /// The whole range back as memory of one owner, once no operation and no other handle holds it. Device memory and
    /// foreign memory come back as a shared part: nobody can have slices of those anyway.
    ///
    /// # Errors
    /// `InUse` if somebody still holds a part; `OutOfRange`.
    pub fn reclaim(self, at: u64, len: u64) -> Result<Memory, Error> {
        match self.region.reclaim(at, ByteLen(len)) {
            Ok(buffer) => Ok(buffer.into()),
            Err(region) if region.holders() == 1 => Self { region }.part(at, len),
            Err(region) => Err(Error::new(ErrorKind::InUse, Verb::Register)
                .at(format!("{region:?}"))
                .detail("a part of the region is still held by an operation or another handle")
                .remedy("wait for the operations on it first")),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.region.len().0
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        false
    }
}

pub(crate) fn mem_error(cause: sw_mem::MemError, verb: Verb) -> Error {
    let kind = match cause {
        sw_mem::MemError::OutOfRange { .. } => ErrorKind::OutOfRange,
        _ => ErrorKind::ApiMisuse,
    };
    Error::new(kind, verb).at("memory").detail(cause.to_string()).caused_by(cause)
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of {} memory", self.len(), self.destination())
    }
}
