//! Names of what is kept.

use sha2::{Digest, Sha256};
use sw_engine::Version;

/// A remote object in one version, as a cache is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// What tells it from objects of the same name elsewhere: the endpoint that names are looked up at.
    pub realm: String,
    /// Its address.
    pub name: String,
    /// Its version. Other bytes under the name have another one.
    pub version: Version,
    /// Bytes.
    pub len: u64,
}

/// Stands for a [`Named`]: 128 bits of SHA-256, so that no two that anybody makes are alike.
pub(crate) type ObjectKey = [u8; 16];

/// A block of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockKey {
    pub(crate) object: ObjectKey,
    /// Counted from its beginning.
    pub(crate) number: u32,
}

/// Bytes of a block's key in the index.
pub(crate) const KEY_BYTES: usize = 20;

impl Named {
    pub(crate) fn key(&self) -> ObjectKey {
        let Version { identity, stamp } = self.version;
        let mut digest = Sha256::new();
        // Lengths first: no two pairs of texts run together to the same bytes.
        for text in [&self.realm, &self.name] {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text.as_bytes());
        }
        digest.update(identity.0.to_le_bytes());
        digest.update(identity.1.to_le_bytes());
        digest.update(stamp.to_le_bytes());
        digest.update(self.len.to_le_bytes());
        let whole: [u8; 32] = digest.finalize().into();
        let mut key = ObjectKey::default();
        key.copy_from_slice(&whole[..16]);
        key
    }
}

impl BlockKey {
    pub(crate) fn bytes(&self) -> [u8; KEY_BYTES] {
        let mut bytes = [0; KEY_BYTES];
        bytes[..16].copy_from_slice(&self.object);
        bytes[16..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (object, number) = bytes.split_first_chunk::<16>()?;
        Some(Self { object: *object, number: u32::from_be_bytes(number.try_into().ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(realm: &str, name: &str) -> Named {
        Named { realm: realm.into(), name: name.into(), version: Version::default(), len: 1 }
    }

    #[test]
    fn whatever_differs_makes_another_key() {
        let first = named("a", "bc");
        let version = |identity, stamp| Named { version: Version { identity, stamp }, ..first.clone() };
        let others = [
            named("ab", "c"),
            named("", "abc"),
            version((1, 0), 0),
            version((0, 1), 0),
            version((0, 0), 1),
            Named { len: 2, ..first.clone() },
        ];
        let mut keys: Vec<_> = others.iter().chain([&first]).map(Named::key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 7);
        assert_eq!(first.key(), named("a", "bc").key());
    }

    #[test]
    fn keys_of_blocks_are_read_as_they_were_written() {
        let key = BlockKey { object: [7; 16], number: 0x0102_0304 };
        assert_eq!(BlockKey::read(&key.bytes()), Some(key));
        assert_eq!(BlockKey::read(&key.bytes()[..19]), None);
    }
}
