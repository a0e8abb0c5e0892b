//! Records of TFRecord files.
//!
//! Source: tensorflow `core/lib/io/record_writer.h`, `core/lib/hash/crc32c.h`.

/// A running CRC-32C.
pub(super) struct Sum(crc_fast::Digest);

impl Sum {
    pub fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }

    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// As it is stored.
    pub fn masked(&self) -> u32 {
        u32::try_from(self.0.finalize()).unwrap_or(u32::MAX).rotate_right(15).wrapping_add(0xa282_ead8)
    }
}

/// What stands before a payload of so many bytes.
pub(super) fn head(len: u64) -> [u8; 12] {
    let mut head = [0; 12];
    let (bytes, stored) = head.split_at_mut(8);
    bytes.copy_from_slice(&len.to_le_bytes());
    let mut sum = Sum::new();
    sum.add(bytes);
    stored.copy_from_slice(&sum.masked().to_le_bytes());
    head
}
