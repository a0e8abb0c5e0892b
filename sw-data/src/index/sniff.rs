//! Which format a file has: by its name, else by its first bytes.

use straightway::{Error, ErrorKind, Verb};

use crate::samples::Format;

/// First bytes that tell a format.
pub(super) const FIRST_BYTES: u64 = 512;

/// What a name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByName {
    /// It is of that format.
    Is(Format),
    /// It belongs to another file, or is an index.
    Beside,
    /// Only its bytes tell.
    Unknown,
}

/// Endings of files that are a sample each, so that no folder of them is opened file by file.
const SAMPLES: [&str; 22] = [
    "jpg", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff", "ppm", "wav", "flac", "mp3", "ogg", "opus", "mp4",
    "mkv", "avi", "txt", "json", "cls", "pt", "pth",
];

/// What the name of a file says; names count without regard to case.
///
/// # Errors
/// `Unsupported` for archives that are compressed as a whole.
pub(super) fn by_name(path: &str) -> Result<ByName, Error> {
    let base = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| base.ends_with(ending));
    if ends(&[".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tfrecord.gz"]) {
        return Err(Error::new(ErrorKind::Unsupported, Verb::Parse)
            .at(path)
            .detail("samples inside of a compressed archive have no place that could be read")
            .remedy("write it without compression; compress the samples themselves"));
    }
    if ends(&[".index.arrow", ".tfrecord.idx", ".tfrecord.index", ".tar.idx", ".tar.index"]) {
        return Ok(ByName::Beside);
    }
    if ends(&[".milvus.json"]) {
        return Ok(ByName::Is(Format::Milvus));
    }
    let ending = base.rsplit_once('.').map_or("", |(_, ending)| ending);
    let format = match ending {
        "tar" => Format::Tar,
        "tfrecord" | "tfrecords" => Format::TfRecord,
        "mds" => Format::Mds,
        "npy" => Format::Npy,
        "npz" => Format::Npz,
        "parquet" => Format::Parquet,
        ending if SAMPLES.contains(&ending) => Format::Raw,
        // Compressed as a whole: the index of the folder says how.
        _ if base.contains(".mds.") => Format::Mds,
        // `train.tfrecord-00000-of-01024`.
        _ if base.contains(".tfrecord-") => Format::TfRecord,
        _ => return Ok(ByName::Unknown),
    };
    Ok(ByName::Is(format))
}

/// What the first bytes of a file of so many say. Nothing that is known: the file is a sample.
pub(super) fn by_bytes(first: &[u8], len: u64) -> Format {
    if first.get(257..262) == Some(b"ustar") {
        return Format::Tar;
    }
    if first.starts_with(b"\x93NUMPY") {
        return Format::Npy;
    }
    if first.starts_with(b"PAR1") {
        return Format::Parquet;
    }
    let record = first.split_first_chunk::<8>().and_then(|(len, rest)| Some((len, rest.first_chunk::<4>()?)));
    if let Some((bytes, stored)) = record {
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
        let masked = u32::try_from(sum).unwrap_or(u32::MAX).rotate_right(15).wrapping_add(0xa282_ead8);
        if masked == u32::from_le_bytes(*stored) && u64::from_le_bytes(*bytes) < len {
            return Format::TfRecord;
        }
    }
    Format::Raw
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_formats() {
        let is = |path| by_name(path).unwrap();
        assert_eq!(is("/a.b/c.TAR"), ByName::Is(Format::Tar));
        assert_eq!(is("x.tfrecord-00000-of-00010"), ByName::Is(Format::TfRecord));
        assert_eq!(is("x.tfrecord.index"), ByName::Beside);
        assert_eq!(is("/c/collection.milvus.json"), ByName::Is(Format::Milvus));
        assert_eq!(is("a.jpeg"), ByName::Is(Format::Raw));
        assert_eq!(is("/a.tar/README"), ByName::Unknown);
        assert_eq!(by_name("a.tar.gz").unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn first_bytes_tell_formats() {
        let file = |name: &str| {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
            std::fs::read(path).unwrap()
        };
        for (name, format) in [
            ("gnu.tar", Format::Tar),
            ("python-ustar.tar", Format::Tar),
            ("tensorflow.tfrecord", Format::TfRecord),
            ("numpy-f4.npy", Format::Npy),
            ("make.py", Format::Raw),
        ] {
            let bytes = file(name);
            assert_eq!(by_bytes(&bytes[..bytes.len().min(512)], bytes.len() as u64), format, "{name}");
        }
        assert_eq!(by_bytes(b"", 0), Format::Raw);
    }
}
