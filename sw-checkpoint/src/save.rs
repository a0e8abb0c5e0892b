//! Saves tensors by an engine: each file appears whole or not at all, the index last.

use std::{fmt, path::Path};

use straightway::{ByPath, Destination, Engine, Error, ErrorKind, Memory, NewObject, Pending, Policy, Uri, Verb};

use crate::{FileLayout, LayoutOptions, TensorSpec, WritePlan, load::malformed};

/// How to save.
#[derive(Clone, Debug, Default)]
pub struct SaveOptions {
    /// Names, shard size, alignment, metadata.
    pub layout: LayoutOptions,
    /// Which routes are accepted.
    pub policy: Policy,
}

/// A saved checkpoint.
#[derive(Debug)]
pub struct Saved {
    /// Names of the files in the directory, the index last if there is one.
    pub files: Vec<String>,
    /// Bytes written, by who moved them finally.
    pub bytes: ByPath,
    /// The tensors' memory, in the order it was given.
    pub memory: Vec<Memory>,
}

/// A save that failed, with what was given to it.
#[derive(Debug)]
pub struct SaveError {
    /// Why.
    pub error: Error,
    /// The tensors' memory, in the order it was given; `None` where a device may still read it.
    pub memory: Vec<Option<Memory>>,
}

impl fmt::Display for SaveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for SaveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<SaveError> for Error {
    /// Lets the memory go.
    fn from(failed: SaveError) -> Error {
        failed.error
    }
}

/// Writes `tensors` into `directory`, which exists.
///
/// Every file is written under a temporary name, made durable, then renamed; the index comes last. A crash leaves the old
/// checkpoint or the new one if both have the same file names, else the old index with the old files.
///
/// # Errors
/// [`SaveError`] with the tensors' memory. `ApiMisuse` if a tensor's memory does not have the length of its shape, and
/// `BadFormat` for a layout that the format cannot hold, before any file is made; `NoSpace` before anything is written
/// where the file system can reserve; what writing returns.
pub fn save(
    engine: &Engine,
    directory: &Path,
    tensors: Vec<(TensorSpec, Memory)>,
    options: &SaveOptions,
) -> Result<Saved, SaveError> {
    let (specs, memory): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
    let mut memory: Vec<Option<Memory>> = memory.into_iter().map(Some).collect();
    match save_all(engine, directory, &specs, &mut memory, options) {
        // Every write succeeded, so every one is back.
        Ok(saved) => Ok(Saved { memory: memory.into_iter().flatten().collect(), ..saved }),
        Err(error) => Err(SaveError { error, memory }),
    }
}

fn save_all(
    engine: &Engine,
    directory: &Path,
    specs: &[TensorSpec],
    memory: &mut [Option<Memory>],
    options: &SaveOptions,
) -> Result<Saved, Error> {
    let at = Uri::from_path(directory)?;
    let plan = WritePlan::new(specs, &options.layout).map_err(|cause| malformed(&at, cause))?;
    plan.files.iter().try_for_each(|file| check_lengths(file, specs, memory))?;
    let mut saved = Saved { files: Vec::new(), bytes: ByPath::default(), memory: Vec::new() };
    let mut ready = Vec::with_capacity(plan.files.len());
    for file in &plan.files {
        ready.push(write_file(engine, directory, file, memory, options, &mut saved)?);
        saved.files.push(file.name.clone());
    }
    ready.into_iter().try_for_each(NewObject::commit)?;
    if let Some((name, bytes)) = &plan.index {
        let new = engine.create(&Uri::from_path(&directory.join(name))?, bytes.len() as u64)?;
        engine.write(new.object(), 0, host_bytes(engine, bytes)?).wait().ok()?;
        new.commit()?;
        saved.files.push(name.clone());
    }
    Ok(saved)
}

fn check_lengths(file: &FileLayout, specs: &[TensorSpec], memory: &[Option<Memory>]) -> Result<(), Error> {
    for tensor in &file.tensors {
        let Some(Some(bytes)) = memory.get(tensor.spec) else { continue };
        if bytes.len() != tensor.len_bytes {
            let name = specs.get(tensor.spec).map_or("", |spec| spec.name.as_str());
            let detail = format!("{} bytes of memory for a tensor of {}", bytes.len(), tensor.len_bytes);
            let error = Error::new(ErrorKind::ApiMisuse, Verb::Write);
            return Err(error.at(name).detail(detail).remedy("pass the whole tensor"));
        }
    }
    Ok(())
}

/// Tensors of one file that are written at once: the queues of a few reactors, and no more memory than the caller's own.
const WRITES_IN_FLIGHT: usize = 8;

fn write_file(
    engine: &Engine,
    directory: &Path,
    file: &FileLayout,
    memory: &mut [Option<Memory>],
    options: &SaveOptions,
    saved: &mut Saved,
) -> Result<NewObject, Error> {
    let new = engine.create(&Uri::from_path(&directory.join(&file.name))?, file.len_bytes)?;
    let head = engine.write(new.object(), 0, host_bytes(engine, &file.head)?).wait().ok()?;
    saved.bytes += head.path.bytes;
    let mut running: Vec<(usize, Pending)> = Vec::with_capacity(WRITES_IN_FLIGHT);
    let mut failed = None;
    for tensor in &file.tensors {
        if running.len() == WRITES_IN_FLIGHT {
            failed = settle(running.remove(0), memory, saved);
            if failed.is_some() {
                break;
            }
        }
        let Some(bytes) = memory.get_mut(tensor.spec).and_then(Option::take) else { continue };
        let request = engine.write(new.object(), tensor.file_offset, bytes).policy(options.policy);
        running.push((tensor.spec, request.start()));
    }
    for part in running {
        let later = settle(part, memory, saved);
        failed = failed.or(later);
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(new),
    }
}

fn settle((spec, pending): (usize, Pending), memory: &mut [Option<Memory>], saved: &mut Saved) -> Option<Error> {
    let mut done = pending.wait();
    saved.bytes += done.path.bytes;
    let failed = std::mem::replace(&mut done.result, Ok(0)).err();
    if let Some(slot) = memory.get_mut(spec) {
        *slot = done.into_memory();
    }
    failed
}

fn host_bytes(engine: &Engine, bytes: &[u8]) -> Result<Memory, Error> {
    let memory = engine.allocate(Destination::Host, bytes.len() as u64, 0)?;
    let misuse =
        |memory: Memory| Error::new(ErrorKind::ApiMisuse, Verb::Write).detail(format!("{memory} has no slices"));
    let mut buffer = memory.into_buffer().map_err(misuse)?;
    buffer.as_mut_slice().copy_from_slice(bytes);
    Ok(buffer.into())
}
