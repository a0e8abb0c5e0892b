//! A server of S3 that costs little: ranges of one file in the page cache by sendfile, a thread for each connection. It serves what the
//! case `s3` reads, lists it, and looks at no signature.
//!
//! ```text
//!   bucket/large            all of the file
//!   bucket/small/00000000   16 KiB of it each
//! ```

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
};

use crate::{data::splitmix64, fault::Fault};

/// The bucket.
pub(crate) const BUCKET: &str = "bucket";
/// Keys of nobody, which it looks at as little as at any, for all clients: none is to look for others, be it at an instance's metadata service.
pub(crate) const KEYS: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "example"),
    ("AWS_REGION", "us-east-1"),
    ("AWS_EC2_METADATA_DISABLED", "true"),
];
/// Bytes of a small object.
pub(crate) const SMALL_BYTES: u64 = 16 << 10;
/// When all of them were written last.
const MODIFIED: &str = "Tue, 01 Dec 2026 08:00:00 GMT";
/// The same in a listing.
const MODIFIED_LISTED: &str = "2026-12-01T08:00:00.000Z";
/// Names of a page of a listing.
const PAGE: u64 = 1000;
/// Words of a piece of the file while it is made.
const PIECE_WORDS: u64 = 128 << 10;

/// Where it listens and what it serves.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct S3Server {
    /// The port, on the loopback.
    #[arg(long)]
    pub port: u16,
    /// The file.
    #[arg(long)]
    pub file: PathBuf,
}

/// Makes the file, if it is not there with this length. Its words are those of a generator.
pub(crate) fn make(path: &Path, bytes: u64) -> Result<(), Fault> {
    if path.metadata().is_ok_and(|meta| meta.len() == bytes) {
        return Ok(());
    }
    let failed = || Fault::os("write", path);
    let mut file = File::create(path).map_err(failed())?;
    for piece in 0..bytes.div_ceil(PIECE_WORDS * 8) {
        let words = (piece * PIECE_WORDS..).take(sw_mem::index(PIECE_WORDS));
        let mut piece: Vec<u8> = words.flat_map(|word| splitmix64(word).to_le_bytes()).collect();
        let at = file.stream_position().map_err(failed())?;
        piece.truncate(sw_mem::index(bytes.saturating_sub(at)));
        file.write_all(&piece).map_err(failed())?;
    }
    Ok(())
}

/// The sum of the first words at these places of the file.
pub(crate) fn sum(places: impl Iterator<Item = u64>) -> u64 {
    places.fold(0, |sum, at| sum.wrapping_add(splitmix64(at / 8)))
}

/// The name of a small object.
pub(crate) fn small(number: u64) -> String {
    format!("small/{number:08}")
}

impl S3Server {
    /// Serves until whoever started it ends it.
    pub(crate) fn run(self) -> Result<(), Fault> {
        let len = self.file.metadata().map_err(Fault::os("look at", &self.file))?.len();
        let at = (Ipv4Addr::LOCALHOST, self.port);
        let listener = TcpListener::bind(at).map_err(Fault::os("listen at", "127.0.0.1"))?;
        std::thread::scope(|scope| {
            for connection in listener.incoming() {
                let connection = connection.map_err(Fault::os("listen at", "127.0.0.1"))?;
                let path = &self.file;
                // One that ends is as good as one that is closed.
                scope.spawn(move || drop(serve(connection, path, len)));
            }
            Ok(())
        })
    }
}

/// A request, as far as it is looked at.
#[derive(Debug, Default)]
struct Asked {
    method: String,
    path: String,
    query: String,
    range: Option<(u64, Option<u64>)>,
}

fn read_head(from: &mut impl BufRead) -> io::Result<Option<Asked>> {
    let (mut line, mut asked) = (String::new(), Asked::default());
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    asked.method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (asked.path, asked.query) = (path.replace("%2F", "/"), query.replace("%2F", "/"));
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
            return Ok(Some(asked));
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("range") {
            let range = value.trim().trim_start_matches("bytes=").split_once('-').unwrap_or_default();
            asked.range = range.0.parse().ok().map(|from| (from, range.1.parse().ok()));
        }
    }
}

/// Where an object lies in the file: first byte and length.
fn place(key: &str, len: u64) -> Option<(u64, u64)> {
    if key == "large" {
        return Some((0, len));
    }
    let number: u64 = key.strip_prefix("small/")?.parse().ok()?;
    let at = number.checked_mul(SMALL_BYTES)?;
    (at.checked_add(SMALL_BYTES)? <= len).then_some((at, SMALL_BYTES))
}

fn serve(connection: TcpStream, path: &Path, len: u64) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let (mut file, mut to) = (File::open(path)?, connection.try_clone()?);
    let mut from = BufReader::new(connection);
    while let Some(asked) = read_head(&mut from)? {
        let key = asked.path.trim_start_matches('/').strip_prefix(BUCKET).map(|key| key.trim_start_matches('/'));
        match key {
            Some("") => {
                let body = listing(&asked.query, len);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                to.write_all((head + &body).as_bytes())?;
            }
            key => match key.and_then(|key| place(key, len)) {
                Some(whole) => object(&mut to, &mut file, &asked, whole)?,
                None => to.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
            },
        }
    }
    Ok(())
}

fn object(to: &mut TcpStream, file: &mut File, asked: &Asked, (at, len): (u64, u64)) -> io::Result<()> {
    let (first, last) =
        asked.range.map_or((0, len), |(first, last)| (first, last.map_or(len, |last| len.min(last + 1))));
    let (status, range) = match asked.range {
        Some(_) if first >= last => {
            return to.write_all(b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n");
        }
        Some(_) => ("206 Partial Content", format!("Content-Range: bytes {first}-{}/{len}\r\n", last - 1)),
        None => ("200 OK", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{range}ETag: {}\r\nLast-Modified: {MODIFIED}\r\nAccept-Ranges: bytes\r\n\
         Content-Type: application/octet-stream\r\nServer: bench\r\nx-amz-request-id: 0000000000000001\r\n\r\n",
        last - first,
        tag(at, len),
    );
    to.write_all(head.as_bytes())?;
    if asked.method == "HEAD" {
        return Ok(());
    }
    file.seek(SeekFrom::Start(at + first))?;
    // By sendfile.
    io::copy(&mut Read::take(&*file, last - first), to).map(drop)
}

fn tag(at: u64, len: u64) -> String {
    format!("\"{:016x}{:016x}\"", splitmix64(at), splitmix64(len))
}

/// A page of a listing of version 2 (Amazon S3 API, "ListObjectsV2").
fn listing(query: &str, len: u64) -> String {
    let of =
        |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default();
    let after = [of("continuation-token"), of("start-after")].into_iter().find(|text| !text.is_empty());
    let first = after.and_then(|name| name.strip_prefix("small/")?.parse::<u64>().ok()).map_or(0, |last| last + 1);
    let end = (first + PAGE).min(len / SMALL_BYTES);
    let mut body = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">",
    );
    body += &format!(
        "<Name>{BUCKET}</Name><Prefix>small/</Prefix><KeyCount>{}</KeyCount><MaxKeys>1000</MaxKeys>",
        end.saturating_sub(first)
    );
    if end < len / SMALL_BYTES {
        body += &format!(
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>",
            small(end - 1)
        );
    } else {
        body += "<IsTruncated>false</IsTruncated>";
    }
    for number in first..end {
        body += &format!(
            "<Contents><Key>{}</Key><LastModified>{MODIFIED_LISTED}</LastModified><ETag>{}</ETag><Size>{SMALL_BYTES}</Size>\
             <StorageClass>STANDARD</StorageClass></Contents>",
            small(number),
            tag(number * SMALL_BYTES, SMALL_BYTES).replace('"', "&quot;"),
        );
    }
    body + "</ListBucketResult>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_places_are_read() {
        let text = "GET /bucket/small/00000002?a=b HTTP/1.1\r\nHost: h\r\nRANGE: bytes=1-2\r\n\r\n";
        let asked = read_head(&mut text.as_bytes()).unwrap().unwrap();
        assert_eq!((asked.path.as_str(), asked.range), ("/bucket/small/00000002", Some((1, Some(2)))));
        assert_eq!(place("small/00000002", 3 * SMALL_BYTES), Some((2 * SMALL_BYTES, SMALL_BYTES)));
        assert_eq!(place("small/00000003", 3 * SMALL_BYTES), None);
        assert_eq!(place("large", 7), Some((0, 7)));
        assert!(read_head(&mut &b""[..]).unwrap().is_none());
    }

    #[test]
    fn pages_follow_each_other() {
        let len = SMALL_BYTES * (PAGE + 5);
        let first = listing("list-type=2&prefix=small/", len);
        assert!(first.contains("<NextContinuationToken>small/00000999</NextContinuationToken>"));
        let next = listing("list-type=2&continuation-token=small/00000999", len);
        assert!(next.contains("<Key>small/00001000</Key>") && next.contains("<IsTruncated>false"));
        assert_eq!(next.matches("<Contents>").count(), 5);
    }
}
