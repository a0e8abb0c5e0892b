//! Answers as they are read: each length is looked at before room is made for it, as a peer may say anything.

use bytes::{Buf, Bytes};
use nfs3_types::{
    nfs3::{NFS3_FHSIZE, fattr3, ftype3, nfs_fh3, nfstime3},
    xdr_codec::{Opaque, Unpack},
};
use sw_engine::Version;

/// An answer does not follow the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Garbled;

/// Bytes of the attributes of a file (RFC 1813 §2.6 "fattr3").
pub(super) const FATTR_BYTES: usize = 84;
/// Longest verifier (RFC 5531 §8.2).
pub(super) const VERIFIER_MAX: usize = 400;

/// What is left of an answer.
#[derive(Clone, Debug)]
pub(super) struct Reply(pub(super) Bytes);

impl Reply {
    pub(super) fn u32(&mut self) -> Result<u32, Garbled> {
        self.0.try_get_u32().map_err(|_| Garbled)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Garbled> {
        self.0.try_get_u64().map_err(|_| Garbled)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Garbled> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Garbled),
        }
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Garbled> {
        let mut bytes = [0; N];
        self.0.try_copy_to_slice(&mut bytes).map_err(|_| Garbled)?;
        Ok(bytes)
    }

    /// Bytes of a length that stands before them.
    pub(super) fn opaque(&mut self, most: usize) -> Result<Bytes, Garbled> {
        let len = sw_mem::index(u64::from(self.u32()?));
        let padded = len.checked_next_multiple_of(4).ok_or(Garbled)?;
        if len > most || padded > self.0.len() {
            return Err(Garbled);
        }
        let bytes = self.0.slice(..len);
        self.0.advance(padded);
        Ok(bytes)
    }

    pub(super) fn handle(&mut self) -> Result<nfs_fh3, Garbled> {
        let bytes = self.opaque(NFS3_FHSIZE)?;
        Ok(nfs_fh3 { data: Opaque::owned(bytes.to_vec()) })
    }

    pub(super) fn handle_if_any(&mut self) -> Result<Option<nfs_fh3>, Garbled> {
        if self.flag()? { self.handle().map(Some) } else { Ok(None) }
    }

    pub(super) fn facts(&mut self) -> Result<Facts, Garbled> {
        Facts::of(&self.bytes::<FATTR_BYTES>()?)
    }

    /// `post_op_attr`.
    pub(super) fn facts_if_any(&mut self) -> Result<Option<Facts>, Garbled> {
        if self.flag()? { self.facts().map(Some) } else { Ok(None) }
    }

    /// `wcc_data`: what it was before, and is.
    pub(super) fn change(&mut self) -> Result<Option<Facts>, Garbled> {
        if self.flag()? {
            self.bytes::<24>()?;
        }
        self.facts_if_any()
    }
}

/// What a server says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) kind: ftype3,
    /// What who may do with it.
    pub(super) mode: u32,
    pub(super) len: u64,
    fsid: u64,
    fileid: u64,
    modified: (u32, u32),
    /// When it, or something that is said of it, was last changed.
    changed: (u32, u32),
}

fn pair(time: nfstime3) -> (u32, u32) {
    (time.seconds, time.nseconds)
}

fn nanos((seconds, nanos): (u32, u32)) -> u64 {
    u64::from(seconds) * 1_000_000_000 + u64::from(nanos)
}

impl Facts {
    pub(super) fn of(bytes: &[u8; FATTR_BYTES]) -> Result<Self, Garbled> {
        let (all, _) = fattr3::unpack(&mut &bytes[..]).map_err(|_| Garbled)?;
        Ok(Self {
            kind: all.type_,
            mode: all.mode,
            len: all.size,
            fsid: all.fsid,
            fileid: all.fileid,
            modified: pair(all.mtime),
            changed: pair(all.ctime),
        })
    }

    /// The same file, whatever is in it.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.fsid, self.fileid) == (other.fsid, other.fileid)
    }

    /// File system, file, length, and both times: in the identity go those that have no place of their own.
    pub(super) fn version(&self) -> Version {
        // An odd number, so that no two times of a file come to one; of 2^64 and the golden ratio.
        let rest = nanos(self.changed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ self.len;
        Version { identity: (self.fsid ^ rest, self.fileid), stamp: i128::from(nanos(self.modified)) }
    }
}

#[cfg(test)]
mod tests {
    use nfs3_types::xdr_codec::Pack;

    use super::*;

    fn facts(change: impl Fn(&mut fattr3)) -> Facts {
        let mut all = fattr3 {
            type_: ftype3::NF3REG,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 10,
            used: 0,
            rdev: nfs3_types::nfs3::specdata3::default(),
            fsid: 5,
            fileid: 6,
            atime: nfstime3::default(),
            mtime: nfstime3 { seconds: 7, nseconds: 8 },
            ctime: nfstime3 { seconds: 7, nseconds: 9 },
        };
        change(&mut all);
        let mut bytes = Vec::new();
        all.pack(&mut bytes).unwrap();
        Facts::of(&bytes.try_into().unwrap()).unwrap()
    }

    #[test]
    fn each_change_is_another_version_and_being_read_is_none() {
        let first = facts(|_| {});
        assert_eq!(first.version().stamp, 7_000_000_008);
        assert_eq!(first, facts(|all| all.atime.seconds = 9));
        let others = [
            facts(|all| all.size = 11),
            facts(|all| all.fsid = 1),
            facts(|all| all.fileid = 1),
            facts(|all| all.mtime.nseconds = 1),
            facts(|all| all.ctime.nseconds = 1),
        ];
        for other in others {
            assert_ne!(first, other);
            assert_ne!(first.version(), other.version(), "{other:?}");
        }
    }

    #[test]
    fn a_length_that_lies_takes_no_room() {
        for (bytes, most) in [
            (&[0xff, 0xff, 0xff, 0xff, 1, 2][..], usize::MAX),
            (&[0, 0, 0, 5, 1, 2, 3, 4, 5], 100),
            (&[0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0], 4),
            (&[0, 0], 4),
        ] {
            assert_eq!(Reply(Bytes::copy_from_slice(bytes)).opaque(most), Err(Garbled), "{bytes:?}");
        }
        let mut good = Reply(Bytes::from_static(&[0, 0, 0, 1, 9, 0, 0, 0, 0, 0, 0, 1]));
        assert_eq!((good.opaque(1).unwrap(), good.flag()), (Bytes::from_static(&[9]), Ok(true)));
    }
}
