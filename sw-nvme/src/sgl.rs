//! Scatter gather lists: where the data of a command lies, by byte ranges (Base, "Scatter Gather List (SGL)").
//!
//! Only where Identify Controller's SGLS says so, and never for admin commands on PCIe (PCIe Transport). Keyed
//! descriptors belong to fabrics and are not here.

use sw_mem::Iova;

use crate::{prp::Segment, wire::DataPointer};

/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: usize = 16;

/// SGLS, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SglSupport {
    /// SGLS 1:0: whether I/O commands may use lists at all, and how data must lie.
    pub alignment: SglAlignment,
    /// SGLS 16: bit bucket descriptors.
    pub bit_bucket: bool,
    /// SGLS 18: a list may be longer than the data.
    pub longer_than_data: bool,
    /// SGLS 15:8: number of descriptors above which it gets slower; 0 if not reported.
    pub descriptor_threshold: u8,
}

/// SGLS 1:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SglAlignment {
    /// 00b, and 11b, which no revision defines: no lists.
    None,
    /// 01b: any address and length.
    Byte,
    /// 10b: addresses and lengths are multiples of 4.
    Dword,
}

impl SglSupport {
    /// Decodes the field.
    pub const fn decode(sgls: u32) -> Self {
        let alignment = match sgls & 3 {
            1 => SglAlignment::Byte,
            2 => SglAlignment::Dword,
            _ => SglAlignment::None,
        };
        Self {
            alignment,
            bit_bucket: sgls >> 16 & 1 != 0,
            longer_than_data: sgls >> 18 & 1 != 0,
            descriptor_threshold: (sgls >> 8 & 0xFF) as u8,
        }
    }
}

/// Why a list cannot describe some memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSgl {
    /// The controller takes no lists.
    #[error("the controller takes no scatter gather lists")]
    Unsupported,
    /// No bytes, or a segment without any.
    #[error("no bytes to describe")]
    Empty,
    /// An address or a length that is no multiple of 4, and the controller asks for it.
    #[error("the segment at {iova:?} is not aligned to 4 bytes")]
    Alignment {
        /// Its first byte.
        iova: Iova,
    },
    /// A segment of more than 2^32 - 1 bytes, or one that ends past 64 bits.
    #[error("the segment at {iova:?} is longer than a descriptor can say")]
    TooLong {
        /// Its first byte.
        iova: Iova,
    },
    /// The list's memory has no room for so many descriptors.
    #[error("the list has room for {room} descriptors, {wanted} are needed")]
    ListFull {
        /// Descriptors that it has room for.
        room: usize,
        /// Descriptors that are needed.
        wanted: usize,
    },
}

/// A descriptor: address, length, and type in the top half of the last byte (subtype 0, an address).
fn descriptor(kind: u8, address: u64, len: u32) -> [u8; DESCRIPTOR_BYTES] {
    let mut descriptor = [0; DESCRIPTOR_BYTES];
    descriptor[..8].copy_from_slice(&address.to_le_bytes());
    descriptor[8..12].copy_from_slice(&len.to_le_bytes());
    descriptor[15] = kind << 4;
    descriptor
}

/// Type 0h: bytes of data.
pub fn data_block(address: Iova, len: u32) -> [u8; DESCRIPTOR_BYTES] {
    descriptor(0x0, address.raw(), len)
}

/// Type 3h: `len` bytes of further descriptors, the last ones.
pub fn last_segment(address: Iova, len: u32) -> [u8; DESCRIPTOR_BYTES] {
    descriptor(0x3, address.raw(), len)
}

/// The data pointer for `data`: one descriptor in the command, or a last segment descriptor and a list, which goes to
/// `list` (its address, a multiple of 8, and the memory to fill). Gives the bytes written to the list, too.
///
/// # Errors
/// [`NotSgl`].
pub fn describe(
    support: SglSupport,
    data: &[Segment],
    list: (Iova, &mut [[u8; DESCRIPTOR_BYTES]]),
) -> Result<(DataPointer, u32), NotSgl> {
    if let [one] = data {
        return Ok((DataPointer::Sgl(block(support, one)?), 0));
    }
    let (address, room) = list;
    let full = NotSgl::ListFull { room: room.len(), wanted: data.len() };
    let room = room.get_mut(..data.len()).ok_or(full)?;
    let bytes = u32::try_from(data.len() * DESCRIPTOR_BYTES).ok().filter(|&bytes| bytes > 0).ok_or(NotSgl::Empty)?;
    for (to, from) in room.iter_mut().zip(data) {
        *to = block(support, from)?;
    }
    Ok((DataPointer::Sgl(last_segment(address, bytes)), bytes))
}

fn block(support: SglSupport, of: &Segment) -> Result<[u8; DESCRIPTOR_BYTES], NotSgl> {
    let unit = match support.alignment {
        SglAlignment::None => return Err(NotSgl::Unsupported),
        SglAlignment::Byte => 1,
        SglAlignment::Dword => 4,
    };
    let iova = of.iova;
    if of.len.0 == 0 {
        return Err(NotSgl::Empty);
    }
    if !(iova.raw() | of.len.0).is_multiple_of(unit) {
        return Err(NotSgl::Alignment { iova });
    }
    let len = u32::try_from(of.len.0).ok().filter(|_| iova.checked_add(of.len).is_some());
    Ok(data_block(iova, len.ok_or(NotSgl::TooLong { iova })?))
}

#[cfg(test)]
mod tests;
