//! The files that jobs read: made once from a seed, kept, checked before use; and their place in the page cache.
// UNSAFETY: posix_fadvise, cachestat and statx have no safe face in the standard library.
#![expect(unsafe_code, reason = "system calls on the page cache")]

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::Write,
    os::fd::AsRawFd,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::fault::Fault;

/// Shards of the checkpoint.
const SHARDS: u64 = 2;
/// Bytes of a large tensor. With the tensors around it they start at odd places in the file, as real ones do.
const LARGE_TENSOR_BYTES: u64 = 32 << 20;
/// Bytes of the small tensor that follows each large one.
const SMALL_TENSOR_BYTES: u64 = 8200;
/// Samples per tensor of the digest, and bytes of each: as `peers/load.py` has them.
const SAMPLES: u64 = 8;
pub(crate) const SAMPLE_BYTES: usize = 16;
/// Bytes written at a time.
const PIECE: usize = 1 << 20;
/// `cachestat(2)`, the same number on every architecture (linux include/uapi/asm-generic/unistd.h).
const SYS_CACHESTAT: libc::c_long = 451;

/// Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", the output for `state`.
pub(crate) fn splitmix64(state: u64) -> u64 {
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

/// A checkpoint on disk.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    /// Its shards, in order.
    pub shards: Vec<PathBuf>,
    /// The index file that names them.
    pub index: PathBuf,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Digest of sampled bytes, as `peers/load.py` takes it.
    pub digest: String,
}

/// A tensor's place.
struct Tensor {
    name: String,
    shard: usize,
    at: u64,
    len: u64,
}

/// A file of `len` bytes that follow from `seed`; made if it is not there yet.
pub(crate) fn plain(dir: &Path, len: u64, seed: u64) -> Result<PathBuf, Fault> {
    let path = dir.join(format!("plain-{seed:x}-{len}.bin"));
    if fs::metadata(&path).is_ok_and(|found| found.len() == len) {
        return Ok(path);
    }
    write_new(&path, |file| fill(file, len, seed))?;
    Ok(path)
}

/// What lies in a folder, by name.
pub(crate) fn files_in(folder: &Path) -> Result<Vec<PathBuf>, Fault> {
    let entries = fs::read_dir(folder).map_err(Fault::os("list", folder))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

/// A sharded safetensors checkpoint with about `bytes` of tensors; made if it is not there yet.
pub(crate) fn checkpoint(dir: &Path, bytes: u64, seed: u64) -> Result<Checkpoint, Fault> {
    let dir = dir.join(format!("checkpoint-{seed:x}-{bytes}"));
    fs::create_dir_all(&dir).map_err(Fault::os("create", &dir))?;
    let pairs = (bytes / SHARDS / LARGE_TENSOR_BYTES).max(1);
    let (mut shards, mut tensors) = (Vec::new(), Vec::new());
    for shard in 0..SHARDS {
        let path = dir.join(format!("model-{:05}-of-{SHARDS:05}.safetensors", shard + 1));
        let (header, places) = header(shard, pairs);
        let data = pairs * (LARGE_TENSOR_BYTES + SMALL_TENSOR_BYTES);
        let len = header.len() as u64 + data;
        if !fs::metadata(&path).is_ok_and(|found| found.len() == len) {
            write_new(&path, |file| {
                file.write_all(&header)?;
                fill(file, data, splitmix64(seed ^ shard))
            })?;
        }
        tensors.extend(places);
        shards.push(path);
    }
    let index = dir.join("model.safetensors.index.json");
    write_index(&index, &tensors, &shards)?;
    let tensor_bytes = tensors.iter().map(|tensor| tensor.len).sum();
    let digest = digest(&shards, &mut tensors, seed)?;
    Ok(Checkpoint { shards, index, tensor_bytes, digest })
}

/// Header of a shard with `pairs` of a large and a small tensor (safetensors format: length, JSON, data), and their places.
fn header(shard: u64, pairs: u64) -> (Vec<u8>, Vec<Tensor>) {
    #[derive(Serialize)]
    struct Entry {
        dtype: &'static str,
        shape: Vec<u64>,
        data_offsets: [u64; 2],
    }
    let (mut entries, mut tensors, mut at) = (serde_json::Map::new(), Vec::new(), 0);
    for pair in 0..pairs {
        let layer = shard * pairs + pair;
        let rows = [
            (format!("layers.{layer:03}.weight"), "BF16", vec![4096, LARGE_TENSOR_BYTES / 8192], LARGE_TENSOR_BYTES),
            (format!("layers.{layer:03}.norm"), "F32", vec![SMALL_TENSOR_BYTES / 4], SMALL_TENSOR_BYTES),
        ];
        for (name, dtype, shape, len) in rows {
            let entry = Entry { dtype, shape, data_offsets: [at, at + len] };
            entries.insert(name.clone(), serde_json::to_value(entry).unwrap_or_default());
            tensors.push(Tensor { name, shard: usize::try_from(shard).unwrap_or(0), at, len });
            at += len;
        }
    }
    let mut json = serde_json::to_vec(&entries).unwrap_or_default();
    // The writer of the safetensors package pads to eight bytes and no further.
    json.resize(json.len().next_multiple_of(8), b' ');
    let base = json.len() as u64 + 8;
    tensors.iter_mut().for_each(|tensor| tensor.at += base);
    ([&(json.len() as u64).to_le_bytes()[..], &json].concat(), tensors)
}

fn write_index(path: &Path, tensors: &[Tensor], shards: &[PathBuf]) -> Result<(), Fault> {
    let file = |tensor: &Tensor| shards.get(tensor.shard)?.file_name()?.to_str().map(str::to_owned);
    let map: serde_json::Map<_, _> =
        tensors.iter().filter_map(|tensor| Some((tensor.name.clone(), file(tensor)?.into()))).collect();
    let total: u64 = tensors.iter().map(|tensor| tensor.len).sum();
    let text = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map }).to_string();
    fs::write(path, text).map_err(Fault::os("write", path))
}

/// SHA-256 over name and samples of each tensor in order of name.
fn digest(shards: &[PathBuf], tensors: &mut [Tensor], seed: u64) -> Result<String, Fault> {
    let open = |path: &PathBuf| File::open(path).map_err(Fault::os("open", path));
    let files = shards.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut sha = Sha256::new();
    for (index, tensor) in (0_u64..).zip(tensors.iter()) {
        sha.update(tensor.name.as_bytes());
        let Some(file) = files.get(tensor.shard) else { continue };
        for place in sample_places(tensor.len, index, seed) {
            let mut bytes = [0; SAMPLE_BYTES];
            file.read_exact_at(&mut bytes, tensor.at + place).map_err(Fault::os("read", "a shard"))?;
            sha.update(bytes);
        }
    }
    Ok(hex(&sha.finalize()))
}

/// SHA-256 over samples of each part of `part_bytes` of `len` bytes: both ends, where transfers go wrong, and places
/// between, as `peers/gpu_read.py` takes it. `read` is given the part, the place in it, and what to fill.
pub(crate) fn digest_of_parts<E>(
    len: u64,
    part_bytes: u64,
    seed: u64,
    mut read: impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
) -> Result<String, E> {
    let mut sha = Sha256::new();
    for (part, start) in (0_u64..).zip((0..len).step_by(usize::try_from(part_bytes).unwrap_or(usize::MAX))) {
        let here = part_bytes.min(len - start);
        let ends = [0, here.saturating_sub(SAMPLE_BYTES as u64)];
        for place in ends.into_iter().chain(sample_places(here, part, seed)) {
            let mut bytes = [0; SAMPLE_BYTES];
            read(usize::try_from(part).unwrap_or(usize::MAX), place, &mut bytes)?;
            sha.update(bytes);
        }
    }
    Ok(hex(&sha.finalize()))
}

/// [`digest_of_parts`] of a file.
pub(crate) fn digest_of_file(path: &Path, part_bytes: u64, seed: u64) -> Result<String, Fault> {
    let file = File::open(path).map_err(Fault::os("open", path))?;
    let len = file.metadata().map_err(Fault::os("look at", path))?.len();
    digest_of_parts(len, part_bytes, seed, |part, at, to| {
        file.read_exact_at(to, part as u64 * part_bytes + at).map_err(Fault::os("read", path))
    })
}

/// Where the samples of the `index`-th tensor (in order of name) of `len` bytes start. `len` is a sample's or more.
pub(crate) fn sample_places(len: u64, index: u64, seed: u64) -> impl Iterator<Item = u64> {
    let places = (len + 1).saturating_sub(SAMPLE_BYTES as u64).max(1);
    (0..SAMPLES).map(move |sample| splitmix64(seed.wrapping_add(index * SAMPLES + sample)) % places)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes beside and renames, so that a file of the right name is whole.
fn write_new(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<(), Fault> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let mut file = File::create(&partial).map_err(Fault::os("create", &partial))?;
    write(&mut file).and_then(|()| file.sync_all()).map_err(Fault::os("write", &partial))?;
    fs::rename(&partial, path).map_err(Fault::os("rename", path))
}

fn fill(file: &mut File, len: u64, seed: u64) -> std::io::Result<()> {
    let (mut state, mut left) = (splitmix64(seed) | 1, len);
    let mut piece = vec![0_u8; PIECE];
    while left > 0 {
        for word in piece.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let now = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        file.write_all(piece.get(..now).unwrap_or(&piece))?;
        left -= now as u64;
    }
    Ok(())
}

/// Takes the files' pages out of the page cache, or brings all of them in. Returns the bytes that are cached afterwards,
/// `None` where the kernel does not tell.
pub(crate) fn set_cache(files: &[PathBuf], state: CacheState) -> Result<Option<u64>, Fault> {
    let mut cached = Some(0);
    for path in files {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(Fault::os("open", path))?;
        match state {
            CacheState::Cold => {
                file.sync_all().map_err(Fault::os("flush", path))?;
                // SAFETY: plain integers and a descriptor that `file` holds open.
                let rc = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
                if rc != 0 {
                    return Err(Fault::os("uncache", path)(std::io::Error::from_raw_os_error(rc)));
                }
            }
            CacheState::Warm => {
                let mut piece = vec![0; PIECE];
                let mut at = 0;
                while let Ok(got @ 1..) = file.read_at(&mut piece, at) {
                    at += got as u64;
                }
            }
        }
        cached = cached.and_then(|sum| Some(sum + cached_bytes(&file)?));
    }
    Ok(cached)
}

/// Bytes of the blocks that O_DIRECT wants on this file (statx(2), STATX_DIOALIGN, linux 6.1); 512 where it does not tell.
pub(crate) fn direct_block(path: &Path) -> Result<u32, Fault> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| Fault::os("name", path)(error.into()))?;
    // SAFETY: statx is plain integers, for which all zero bits are a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends in NUL and `stat` is writable; both live across the call.
    let rc = unsafe { libc::statx(libc::AT_FDCWD, name.as_ptr(), 0, libc::STATX_DIOALIGN, &raw mut stat) };
    Ok(if rc == 0 && stat.stx_dio_offset_align > 0 { stat.stx_dio_offset_align } else { 512 })
}

/// What the page cache shall hold of a file before a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheState {
    /// Nothing.
    Cold,
    /// Everything.
    Warm,
}

impl CacheState {
    pub(crate) const ALL: [Self; 2] = [Self::Cold, Self::Warm];

    /// For names of cases.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }

    /// Where the bytes come from then.
    pub(crate) fn source(self) -> &'static str {
        match self {
            Self::Cold => "the device",
            Self::Warm => "the page cache",
        }
    }
}

/// Bytes of the file in the page cache (linux mm/filemap.c `cachestat`, 6.5 and later).
fn cached_bytes(file: &File) -> Option<u64> {
    #[repr(C)]
    struct Range {
        offset: u64,
        len: u64,
    }
    let range = Range { offset: 0, len: 0 };
    let mut stat = [0_u64; 5];
    // SAFETY: `range` and `stat` have the layout that the call reads and writes, and live across it.
    let rc = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, stat.as_mut_ptr(), 0) };
    (rc == 0).then(|| stat.first().copied().unwrap_or(0) * 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("straightway-bench-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn splitmix_gives_the_published_first_output() {
        // First output for seed 0 of the reference implementation at prng.di.unimi.it/splitmix64.c.
        assert_eq!(splitmix64(0), 0xE220_A839_7B1D_CDAF);
    }

    #[test]
    fn same_seed_gives_the_same_file_and_a_torn_one_is_made_again() {
        let dir = scratch("plain");
        let path = plain(&dir, 3 * 1024 * 1024 + 17, 5).unwrap();
        let first = fs::read(&path).unwrap();
        fs::write(&path, b"torn").unwrap();
        assert!(fs::read(plain(&dir, 3 * 1024 * 1024 + 17, 5).unwrap()).unwrap() == first);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn header_places_tensors_without_holes() {
        let (header, tensors) = header(1, 3);
        let mut at = header.len() as u64;
        for tensor in &tensors {
            assert_eq!(tensor.at, at, "{}", tensor.name);
            at += tensor.len;
        }
        assert_eq!(tensors.len(), 6);
        assert_eq!(u64::from_le_bytes(header[..8].try_into().unwrap()), header.len() as u64 - 8);
    }

    #[test]
    fn samples_stay_inside_a_tensor_of_any_size() {
        for len in [16, 17, 40, 8200] {
            assert!(sample_places(len, 3, 9).all(|at| at + 16 <= len), "{len}");
        }
    }
}
