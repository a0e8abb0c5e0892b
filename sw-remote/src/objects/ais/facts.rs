//! What AIStore's headers say of an object.

use std::ops::Range;

use http::{
    HeaderMap,
    header::{CONTENT_LENGTH, CONTENT_RANGE},
};
use object_store::{ObjectMeta, path::Path};

use super::super::stored::Stored;

const VERSION: &str = "ais-version";
const SUM_TYPE: &str = "ais-checksum-type";
const SUM: &str = "ais-checksum-value";

/// It.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) version: Option<String>,
    /// A checksum, and by what it is made.
    pub(super) sum: Option<(String, String)>,
    /// Bytes of the body, or of the object where there is no body.
    pub(super) len: Option<u64>,
    /// Which bytes of how many, where it is a part.
    pub(super) range: Option<(Range<u64>, u64)>,
}

impl Facts {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let said = |name: &str| text(name).filter(|text| !text.is_empty());
        let range = headers.get(CONTENT_RANGE).and_then(|range| range_of(range.to_str().ok()?));
        let len = headers.get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
        Self { version: said(VERSION), sum: said(SUM_TYPE).zip(said(SUM)), len, range }
    }

    /// By what the object is known again: its version, which begins anew where an object was removed, and its checksum. A listing says both,
    /// but not by what the checksum is made.
    pub(super) fn tag(&self) -> Option<String> {
        tag(self.version.as_deref().unwrap_or_default(), self.sum.as_ref().map_or("", |(_, value)| value))
    }

    pub(super) fn meta(&self, location: Path, size: u64) -> ObjectMeta {
        ObjectMeta { location, last_modified: Default::default(), size, e_tag: self.tag(), version: None }
    }

    /// The checksum that bytes are compared with.
    pub(super) fn stored(&self) -> Option<Stored> {
        let (kind, value) = self.sum.as_ref()?;
        let number = || u64::from_str_radix(value, 16).ok();
        match (kind.as_str(), value.len()) {
            ("xxhash" | "xxhash2", 16) => Some(Stored::Xxh64(number()?)),
            ("crc32c", 8) => Some(Stored::Crc32c(number()?)),
            ("sha256", 64) => {
                let mut bytes = [0; 32];
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(value.get(2 * at..2 * at + 2)?, 16).ok()?;
                }
                Some(Stored::Sha256(bytes))
            }
            _ => None,
        }
    }
}

/// That of a version and a checksum; `None` where there is neither.
pub(super) fn tag(version: &str, sum: &str) -> Option<String> {
    (!version.is_empty() || !sum.is_empty()).then(|| format!("\"{version}-{sum}\""))
}

/// The bytes that a `Content-Range` names, and how many there are.
fn range_of(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, len) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?, len.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&'static str, &'static str)]) -> Facts {
        let name = http::HeaderName::from_static;
        Facts::of(&headers.iter().map(|(key, value)| (name(key), http::HeaderValue::from_static(value))).collect())
    }

    #[test]
    fn an_object_is_known_by_its_version_and_its_checksum() {
        let both = of(&[(VERSION, "3"), (SUM_TYPE, "xxhash2"), (SUM, "00000000000000ff")]);
        assert_eq!(both.tag().as_deref(), Some("\"3-00000000000000ff\""));
        assert_eq!(both.stored(), Some(Stored::Xxh64(255)));
        assert_eq!(of(&[(VERSION, "3")]).tag().as_deref(), Some("\"3-\""));
        assert_eq!(of(&[]).tag(), None);
        for (kind, value) in [("crc32c", "ff"), ("md5", "00000000000000ff"), ("xxhash2", "00000000000000fg")] {
            assert_eq!(Facts { sum: Some((kind.into(), value.into())), ..Facts::default() }.stored(), None);
        }
        let sha = Facts { sum: Some(("sha256".into(), "01".repeat(32))), ..Facts::default() };
        assert_eq!(sha.stored(), Some(Stored::Sha256([1; 32])));
    }

    #[test]
    fn a_part_says_which() {
        assert_eq!(of(&[("content-range", "bytes 5-9/20"), ("content-length", "5")]).range, Some((5..10, 20)));
        assert_eq!(of(&[("content-range", "bytes 0-18446744073709551615/5")]).range, None);
    }
}
