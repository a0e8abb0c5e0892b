//! Namespace Identification Descriptors (Base, "Namespace Identification Descriptor list", CNS 03h).

use crate::wire::{IDENTIFY_BYTES, WireError, byte, bytes, whole};

/// What a namespace is called. Byte arrays are in the order that they are printed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceDescriptors {
    /// NIDT 1.
    pub eui64: Option<[u8; 8]>,
    /// NIDT 2.
    pub nguid: Option<[u8; 16]>,
    /// NIDT 3.
    pub uuid: Option<[u8; 16]>,
    /// NIDT 4: the I/O command set; see [`csi`](crate::wire::admin::csi).
    pub csi: Option<u8>,
}

impl NamespaceDescriptors {
    /// Decodes the list; descriptors of unknown types are skipped.
    ///
    /// # Errors
    /// Fewer than 4,096 bytes; a descriptor that ends past them; a known type with another length than its own.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Namespace Identification Descriptor list", raw, IDENTIFY_BYTES)?;
        let (mut found, mut at) = (Self::default(), 0);
        // NIDL 0 ends the list; each step moves on by at least five bytes.
        while at + 4 <= IDENTIFY_BYTES && byte(raw, at + 1) != 0 {
            let (kind, len) = (byte(raw, at), byte(raw, at + 1));
            let value = at + 4;
            at = value + usize::from(len);
            let refuse = |rule| Err(WireError::Field { field: "NIDL", got: len.into(), rule });
            if at > IDENTIFY_BYTES {
                return refuse("a descriptor ends inside the list");
            }
            match (kind, len) {
                (1, 8) => found.eui64 = Some(bytes(raw, value)),
                (2, 16) => found.nguid = Some(bytes(raw, value)),
                (3, 16) => found.uuid = Some(bytes(raw, value)),
                (4, 1) => found.csi = Some(byte(raw, value)),
                (1..=4, _) => return refuse("EUI64 has 8 bytes, NGUID and UUID 16, CSI 1"),
                _ => {}
            }
        }
        Ok(found)
    }
}
