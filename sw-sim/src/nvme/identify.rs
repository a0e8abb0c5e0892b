//! Identify data and log pages, byte by byte (NVMe Base, "Identify command" and "Get Log Page command").

use super::params::{NamespaceParams, NvmeParams};

/// A structure under construction.
struct Bytes(Vec<u8>);

impl Bytes {
    fn new(len: usize) -> Self {
        Self(vec![0; len])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        if let Some(to) = self.0.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
        self
    }

    /// ASCII, padded with spaces.
    fn text(&mut self, at: usize, len: usize, text: &str) -> &mut Self {
        let padded: Vec<u8> = text.bytes().chain(core::iter::repeat(b' ')).take(len).collect();
        self.put(at, &padded)
    }
}

/// CNS 01h.
pub(super) fn controller(params: &NvmeParams, number: usize) -> Vec<u8> {
    let mut bytes = Bytes::new(4096);
    let highest = params.namespaces.iter().map(|namespace| namespace.nsid).max().unwrap_or(0);
    let number16 = u16::try_from(number).unwrap_or(0);
    bytes.put(0, &0x1B36u16.to_le_bytes()).put(2, &0x1AF4u16.to_le_bytes());
    bytes.text(4, 20, &format!("sim{number}")).text(24, 40, "Modelled controller").text(64, 8, "1");
    bytes.put(77, &[params.mdts]).put(78, &number16.to_le_bytes()).put(80, &0x0001_0400u32.to_le_bytes());
    // RTD3E in microseconds: how long a shutdown may take.
    bytes.put(88, &2_000_000u32.to_le_bytes());
    // OAES: namespace attribute notices.
    bytes.put(92, &(1u32 << 8).to_le_bytes());
    // CNTRLTYPE: an I/O controller.
    bytes.put(111, &[1]);
    for (nth, delay) in params.retry_delays.iter().enumerate() {
        bytes.put(128 + 2 * nth, &delay.to_le_bytes());
    }
    // OACS bit 8: Doorbell Buffer Config.
    bytes.put(256, &(u16::from(params.doorbell_buffer) << 8).to_le_bytes());
    bytes.put(258, &[params.aborts_max - 1, params.events_max - 1]);
    // FRMW one slot, LPA extended data, ELPE 4 entries.
    bytes.put(260, &[2, 4, 3]);
    // SQES and CQES: 64 and 16 bytes, exactly.
    bytes.put(512, &[0x66, 0x44]).put(514, &0u16.to_le_bytes()).put(516, &highest.to_le_bytes());
    // ONCS: compare, dataset management, write zeroes, verify.
    bytes.put(520, &(1u16 | 1 << 2 | 1 << 3 | 1 << 7).to_le_bytes());
    bytes.put(525, &[u8::from(params.write_cache)]);
    // SGLS: 01b is any alignment, 10b that of a double word.
    bytes.put(536, &u32::from(params.lists.div_ceil(2)).to_le_bytes());
    bytes.put(768, format!("nqn.2024-01.sim:controller{number}").as_bytes());
    bytes.0
}

/// CNS 00h.
pub(super) fn namespace(params: &NamespaceParams, blocks: u64) -> Vec<u8> {
    let mut bytes = Bytes::new(4096);
    bytes.put(0, &blocks.to_le_bytes()).put(8, &blocks.to_le_bytes()).put(16, &blocks.to_le_bytes());
    // Two formats; FLBAS names the one in use.
    let in_use = u8::from(params.block == 4096);
    bytes.put(25, &[1, in_use]);
    // Metadata is a separate buffer where there is any.
    bytes.put(27, &[if params.metadata > 0 { 2 } else { 0 }]);
    bytes.put(46, &params.boundary_blocks.to_le_bytes());
    bytes.put(104, &[0x51; 8]).put(112, &u64::from(params.nsid).to_be_bytes());
    let format = |block: u32, metadata: u16| u32::from(metadata) | block.trailing_zeros() << 16;
    let (small, large) = if in_use == 0 { (params.metadata, 0) } else { (0, params.metadata) };
    bytes.put(128, &format(512, small).to_le_bytes()).put(132, &format(4096, large).to_le_bytes());
    bytes.0
}

/// CNS 02h: active namespaces above `after`.
pub(super) fn active(namespaces: &[NamespaceParams], after: u32) -> Vec<u8> {
    let mut bytes = Bytes::new(4096);
    let mut numbers: Vec<u32> =
        namespaces.iter().map(|namespace| namespace.nsid).filter(|nsid| *nsid > after).collect();
    numbers.sort_unstable();
    for (nth, nsid) in numbers.into_iter().take(1024).enumerate() {
        bytes.put(4 * nth, &nsid.to_le_bytes());
    }
    bytes.0
}

/// CNS 03h: a UUID and an NGUID.
pub(super) fn descriptors(params: &NamespaceParams, number: usize) -> Vec<u8> {
    let mut bytes = Bytes::new(4096);
    let id = ((number as u64) << 32 | u64::from(params.nsid)).to_be_bytes();
    bytes.put(0, &[3, 16, 0, 0]).put(4, &[0xA5; 8]).put(12, &id);
    bytes.put(20, &[2, 16, 0, 0]).put(24, &[0x51; 8]).put(32, &u64::from(params.nsid).to_be_bytes());
    bytes.0
}

/// A log page, or `None` for one that there is not.
pub(super) fn log(lid: u32, params: &NvmeParams) -> Option<Vec<u8>> {
    let mut bytes = match lid {
        0x01 => Bytes::new(4 * 64),
        0x02 | 0x03 => Bytes::new(512),
        0x04 | 0x05 => Bytes::new(4096),
        _ => return None,
    };
    match lid {
        // Temperature in kelvin, spare and its threshold in percent.
        0x02 => bytes.put(1, &310u16.to_le_bytes()).put(3, &[100, 10, 1]),
        0x03 => bytes.put(0, &[1]).text(8, 8, "1"),
        0x04 => {
            let nsid = params.namespaces.first().map_or(0, |namespace| namespace.nsid);
            bytes.put(0, &nsid.to_le_bytes())
        }
        _ => &mut bytes,
    };
    Some(bytes.0)
}
