//! Objects whose bytes are known, read as a lane reads them.

use std::{fs::File, os::unix::fs::FileExt, path::Path, sync::Arc, time::Duration};

use sw_cache::{Cache, CacheConfig, Cached, Named};
use sw_engine::{
    Extent, Hold, Later, Resolve, Version,
    seam::{Landed, Part, Tee},
};

pub(crate) const BLOCK: u64 = 4096;
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Byte `at` of object `number` in a version.
pub(crate) fn byte(number: u64, version: u64, at: u64) -> u8 {
    let mixed =
        (at / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ (number << 32) ^ version.wrapping_mul(0xff51_afd7_ed55_8ccd));
    mixed.rotate_left(17).to_le_bytes()[usize::try_from(at % 8).unwrap()]
}

pub(crate) fn bytes_of(number: u64, version: u64, range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(|at| byte(number, version, at)).collect()
}

pub(crate) struct Bytes<'a>(&'a [u8]);

impl Landed for Bytes<'_> {
    fn skip(&mut self, bytes: u32) {
        self.0 = &self.0[bytes as usize..];
    }

    fn copy_to(&mut self, to: &mut [u8]) {
        let (now, rest) = self.0.split_at(to.len());
        to.copy_from_slice(now);
        self.0 = rest;
    }
}

/// An object that is read as a lane reads it.
pub(crate) struct Reader {
    pub(crate) cached: Arc<Cached>,
    pub(crate) data: File,
    pub(crate) number: u64,
    pub(crate) version: u64,
    pub(crate) len: u64,
}

/// What came of a read: bytes, and how many of them the cache had.
pub(crate) struct Got {
    pub(crate) bytes: Vec<u8>,
    pub(crate) hit: u64,
}

impl Reader {
    pub(crate) fn new(cache: &Cache, number: u64, version: u64, len: u64) -> Self {
        let named = Named {
            realm: String::new(),
            name: format!("s3://b/{number}"),
            version: Version { identity: (version, 0), stamp: 0 },
            len,
        };
        let data = File::open(cache.data_path()).unwrap();
        Self { cached: cache.object(named), data, number, version, len }
    }

    /// As a lane asks: again while another one brings it.
    pub(crate) fn resolve(&self, range: (u64, u64), extents: &mut Vec<Extent>) -> Hold {
        loop {
            match self.cached.resolve(&mut std::iter::once(range), extents) {
                Ok(hold) => return hold,
                Err(Later(wait)) => std::thread::park_timeout(wait),
            }
        }
    }

    /// In I/Os of at most `io` bytes.
    pub(crate) fn read_by(&self, offset: u64, len: u64, io: u64) -> Got {
        let mut extents = Vec::new();
        let hold = self.resolve((offset, len), &mut extents);
        let (mut bytes, mut hit) = (Vec::new(), 0);
        for extent in extents {
            if extent.member == 1 {
                let mut piece = vec![0; usize::try_from(extent.len).unwrap()];
                self.data.read_exact_at(&mut piece, extent.at).unwrap();
                bytes.extend(piece);
                hit += extent.len;
                continue;
            }
            let end = extent.at + extent.len;
            for start in (extent.at..end).step_by(usize::try_from(io).unwrap()) {
                let piece = bytes_of(self.number, self.version, start..end.min(start + io));
                let len = u32::try_from(piece.len()).unwrap();
                let part = Part { offset: start, len, of: start..start + u64::from(len) };
                self.cached.landed(part, &mut Bytes(&piece));
                bytes.extend(piece);
            }
        }
        drop(hold);
        Got { bytes, hit }
    }

    /// The bytes are right whatever they came from; gives how many the cache had.
    pub(crate) fn read(&self, offset: u64, len: u64) -> u64 {
        let got = self.read_by(offset, len, 3 * BLOCK);
        assert!(got.bytes == bytes_of(self.number, self.version, offset..offset + len), "wrong bytes");
        got.hit
    }

    pub(crate) fn read_all(&self) -> u64 {
        self.read(0, self.len)
    }
}

pub(crate) fn config(dir: &Path, blocks: u64) -> CacheConfig {
    CacheConfig { block_bytes: 4096, fill_bytes: 4 << 20, ..CacheConfig::new(dir, blocks * BLOCK) }
}

pub(crate) fn settle(cache: &Cache) {
    assert!(cache.wait_for_room(u64::MAX, LIMIT), "nothing was kept within {LIMIT:?}");
}
