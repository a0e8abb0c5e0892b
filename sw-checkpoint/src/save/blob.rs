//! A tensor as `torch.save` writes it: a ZIP of stored entries, the bytes of the tensor aligned in the file.
//!
//! ```text
//!   archive/data.pkl │ archive/byteorder │ archive/version │ archive/data/0 header, pad │ bytes │ sizes, CRC │ directory
//!   └────────────────────────── head ─────────────────────────────────────────────────┘        └────── tail ──────┘
//! ```
//!
//! Everything but the bytes and their CRC-32 is known before the first byte passes, so a blob is a literal, the tensor, and
//! a tail with two holes for the CRC. The entry of the bytes has bit 3 set (PKWARE APPNOTE 6.3.9 §4.3.9 "Data descriptor"),
//! as all entries of torch have; sizes from 4 GiB on are ZIP64. Padding is an extra field `FB`, which is torch's own way to
//! align (`caffe2/serialize/inline_container.cc` `getPadding`): to 64 bytes there and here, and from 64 KiB of data on to
//! 4096, so that a reader can take the bytes directly from the device.

use crate::{Dtype, TensorSpec};

use super::{
    layout::{Content, Piece},
    pickle::Pickle,
};

/// Smaller tensors are packed as torch packs them.
const LARGE_BYTES: u64 = 64 << 10;
const LARGE_ALIGN_BYTES: u64 = 4096;
const SMALL_ALIGN_BYTES: u64 = 64;

/// Name of the archive inside, which a reader takes from the first entry.
const PREFIX: &str = "archive/";
/// From here on a size does not fit the fields of plain ZIP.
const ZIP64_BYTES: u64 = 0xffff_ffff;
/// Bit 3: CRC and sizes follow the data. Bit 11: names are UTF-8. As torch writes them.
const FLAGS: u16 = 0x0808;
const VERSION_PLAIN: u16 = 20;
const VERSION_ZIP64: u16 = 45;

/// What torch calls an element type: its name, and the class of a storage of it where there is one of that type.
pub(super) fn torch_name(dtype: Dtype) -> Option<(&'static str, Option<&'static str>)> {
    Some(match dtype {
        Dtype::Bool => ("bool", Some("BoolStorage")),
        Dtype::U8 => ("uint8", Some("ByteStorage")),
        Dtype::I8 => ("int8", Some("CharStorage")),
        Dtype::F8E5m2 => ("float8_e5m2", None),
        Dtype::F8E4m3 => ("float8_e4m3fn", None),
        Dtype::F8E8m0 => ("float8_e8m0fnu", None),
        Dtype::F8E4m3Fnuz => ("float8_e4m3fnuz", None),
        Dtype::F8E5m2Fnuz => ("float8_e5m2fnuz", None),
        Dtype::I16 => ("int16", Some("ShortStorage")),
        Dtype::U16 => ("uint16", None),
        Dtype::F16 => ("float16", Some("HalfStorage")),
        Dtype::Bf16 => ("bfloat16", Some("BFloat16Storage")),
        Dtype::I32 => ("int32", Some("IntStorage")),
        Dtype::U32 => ("uint32", None),
        Dtype::F32 => ("float32", Some("FloatStorage")),
        Dtype::C64 => ("complex64", Some("ComplexFloatStorage")),
        Dtype::C32 => ("complex32", None),
        Dtype::C128 => ("complex128", Some("ComplexDoubleStorage")),
        Dtype::F64 => ("float64", Some("DoubleStorage")),
        Dtype::I64 => ("int64", Some("LongStorage")),
        Dtype::U64 => ("uint64", None),
        // Packed types have no element that torch could count.
        Dtype::F4 | Dtype::F6E2m3 | Dtype::F6E3m2 => return None,
    })
}

/// Appends the pieces of the blob of tensor number `tensor` at `start` of the file, which is a multiple of 64; gives the
/// offset behind it. `None` for an element type that torch does not have.
pub(super) fn append(pieces: &mut Vec<Piece>, start: u64, tensor: usize, spec: &TensorSpec, len: u64) -> Option<u64> {
    let mut zip = Zip { start, bytes: Vec::new(), entries: Vec::new() };
    zip.literal("data.pkl", &rebuild(spec, len)?);
    zip.literal("byteorder", b"little");
    zip.literal("version", b"3\n");
    zip.header("data/0", len, if len < LARGE_BYTES { SMALL_ALIGN_BYTES } else { LARGE_ALIGN_BYTES });
    let head = std::mem::take(&mut zip.bytes);
    let data = start + head.len() as u64;
    pieces.push(Piece { offset: start, len: head.len() as u64, content: Content::Bytes(head) });
    if len > 0 {
        pieces.push(Piece { offset: data, len, content: Content::Tensor(tensor) });
    }
    zip.start = data + len;
    let holes = zip.tail(start, data + len);
    let mut rest = zip.bytes;
    let mut at = zip.start;
    let mut push = |bytes: Vec<u8>, content: Option<Content>| {
        let len = bytes.len() as u64;
        pieces.push(Piece { offset: at, len, content: content.unwrap_or(Content::Bytes(bytes)) });
        at += len;
    };
    let mut cut = 0;
    // Without bytes the CRC is 0, as it stands in the holes.
    for hole in holes.into_iter().filter(|_| len > 0) {
        let after = rest.split_off(hole - cut);
        push(rest, None);
        rest = after;
        let after = rest.split_off(4);
        push(rest, Some(Content::Crc32));
        rest = after;
        cut = hole + 4;
    }
    push(rest, None);
    Some(at)
}

/// `data.pkl`: how to make the tensor of its storage.
fn rebuild(spec: &TensorSpec, len: u64) -> Option<Vec<u8>> {
    let (name, storage) = torch_name(spec.dtype)?;
    let count = if storage.is_some() { len * 8 / spec.dtype.bits() } else { len };
    let mut strides = vec![1_u64; spec.shape.len()];
    for at in (1..spec.shape.len()).rev() {
        // As torch: a dimension of zero counts as one.
        strides[at - 1] = strides[at].saturating_mul(spec.shape[at].max(1));
    }
    let mut pickle = Pickle::new();
    pickle.global("torch._utils", if storage.is_some() { "_rebuild_tensor_v2" } else { "_rebuild_tensor_v3" });
    pickle.call(|pickle| {
        let class = storage.map_or(("torch.storage", "UntypedStorage"), |class| ("torch", class));
        pickle.tuple(|pickle| {
            pickle.text("storage").global(class.0, class.1).text("0").text("cpu").int(count);
        });
        pickle.persistent().int(0);
        pickle.ints(&spec.shape).ints(&strides);
        pickle.no().global("collections", "OrderedDict").call(|_| {});
        if storage.is_none() {
            pickle.global("torch", name);
        }
    });
    Some(pickle.finish())
}

struct Entry {
    name: String,
    crc: u32,
    len: u64,
    /// Of its local header, from the start of the blob.
    offset: u64,
}

/// Entries are written one after the other; `bytes` is what has no place in the file yet.
struct Zip {
    /// Where in the file `bytes` begins.
    start: u64,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Zip {
    fn u16(&mut self, value: u16) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// A size or offset in a field of four bytes, all ones if it does not fit.
    fn short(&mut self, value: u64) {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }

    fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn literal(&mut self, name: &str, data: &[u8]) {
        let len = data.len() as u64;
        self.header(name, len, 1);
        let crc = crate::checksums::low(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, data));
        if let Some(entry) = self.entries.last_mut() {
            entry.crc = crc;
        }
        self.bytes.extend(data);
        self.descriptor(crc, len);
    }

    /// A local header whose data starts at a multiple of `align` in the file.
    fn header(&mut self, name: &str, len: u64, align: u64) {
        let name = format!("{PREFIX}{name}");
        let zip64 = len >= ZIP64_BYTES;
        self.entries.push(Entry { name: name.clone(), crc: 0, len, offset: self.bytes.len() as u64 });
        self.u32(0x0403_4b50);
        self.u16(if zip64 { VERSION_ZIP64 } else { VERSION_PLAIN });
        self.u16(FLAGS);
        // Stored; no time, so that the same tensor is the same bytes.
        [0, 0, 0].into_iter().for_each(|word| self.u16(word));
        self.u32(0);
        let size = if zip64 { u32::MAX } else { 0 };
        self.u32(size);
        self.u32(size);
        self.u16(u16::try_from(name.len()).unwrap_or(u16::MAX));
        let fixed = self.bytes.len() as u64 + 2 + name.len() as u64 + if zip64 { 20 } else { 0 };
        let unpadded = self.start + fixed + 4;
        let pad = unpadded.next_multiple_of(align) - unpadded;
        let extra = if zip64 { 20 } else { 0 } + if align > 1 { 4 + pad } else { 0 };
        self.u16(u16::try_from(extra).unwrap_or(u16::MAX));
        self.bytes.extend(name.as_bytes());
        if zip64 {
            self.u16(1);
            self.u16(16);
            self.u64(len);
            self.u64(len);
        }
        if align > 1 {
            self.bytes.extend(b"FB");
            self.u16(u16::try_from(pad).unwrap_or(u16::MAX));
            self.bytes.extend((0..pad).map(|_| b'Z'));
        }
    }

    fn descriptor(&mut self, crc: u32, len: u64) {
        self.u32(0x0807_4b50);
        self.u32(crc);
        if len >= ZIP64_BYTES {
            self.u64(len);
            self.u64(len);
        } else {
            self.short(len);
            self.short(len);
        }
    }

    /// Everything after the data of the last entry: its descriptor, the directory, the end. `blob` and `here` are offsets
    /// in the file. Gives the places of the last entry's CRC in what it wrote.
    fn tail(&mut self, blob: u64, here: u64) -> [usize; 2] {
        let mut holes = [4, 0];
        let entries = std::mem::take(&mut self.entries);
        self.descriptor(0, entries.last().map_or(0, |entry| entry.len));
        let directory = here - blob + self.bytes.len() as u64;
        for entry in &entries {
            let zip64 = entry.len >= ZIP64_BYTES;
            self.u32(0x0201_4b50);
            let version = if zip64 { VERSION_ZIP64 } else { VERSION_PLAIN };
            self.u16(version);
            self.u16(version);
            self.u16(FLAGS);
            [0, 0, 0].into_iter().for_each(|word| self.u16(word));
            holes[1] = self.bytes.len();
            self.u32(entry.crc);
            self.short(if zip64 { ZIP64_BYTES } else { entry.len });
            self.short(if zip64 { ZIP64_BYTES } else { entry.len });
            self.u16(u16::try_from(entry.name.len()).unwrap_or(u16::MAX));
            self.u16(if zip64 { 20 } else { 0 });
            // No comment, disk 0, no attributes.
            [0, 0, 0].into_iter().for_each(|word| self.u16(word));
            self.u32(0);
            self.short(entry.offset);
            self.bytes.extend(entry.name.as_bytes());
            if zip64 {
                self.u16(1);
                self.u16(16);
                self.u64(entry.len);
                self.u64(entry.len);
            }
        }
        let end = here - blob + self.bytes.len() as u64;
        self.end(entries.len() as u64, directory, end);
        holes
    }

    fn end(&mut self, count: u64, directory: u64, end: u64) {
        let size = end - directory;
        let few = u16::try_from(count).unwrap_or(u16::MAX);
        if directory >= ZIP64_BYTES {
            self.u32(0x0606_4b50);
            self.u64(44);
            self.u16(VERSION_ZIP64);
            self.u16(VERSION_ZIP64);
            self.u32(0);
            self.u32(0);
            [count, count, size, directory].into_iter().for_each(|value| self.u64(value));
            self.u32(0x0706_4b50);
            self.u32(0);
            self.u64(end);
            self.u32(1);
        }
        self.u32(0x0605_4b50);
        self.u16(0);
        self.u16(0);
        self.u16(few);
        self.u16(few);
        self.short(size);
        self.short(directory);
        self.u16(0);
    }
}
