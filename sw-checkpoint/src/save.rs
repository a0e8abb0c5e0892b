//! Saves tensors by an engine: each file appears whole or not at all, the index last.

use std::path::Path;

use straightway::{ByPath, Destination, Engine, Error, ErrorKind, Memory, NewObject, Pending, Policy, Verb};

use crate::{
    FileLayout, LayoutOptions, TensorSpec, WritePlan,
    load::{malformed, uri},
};

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

/// Writes `tensors` into `directory`, which exists.
///
/// Every file is written under a temporary name, made durable, then renamed; the index comes last. A crash leaves the old
/// checkpoint or the new one if both have the same file names, else the old index with the old files.
///
/// # Errors
/// `ApiMisuse` if a tensor's memory does not have the length of its shape; `BadFormat` for a layout that the format cannot
/// hold; `NoSpace` before anything is written where the file system can reserve; what writing returns.
pub fn save(
    engine: &Engine,
    directory: &Path,
    tensors: Vec<(TensorSpec, Memory)>,
    options: &SaveOptions,
) -> Result<Saved, Error> {
    let (specs, memory): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
    let plan = WritePlan::new(&specs, &options.layout).map_err(|cause| malformed(directory, cause))?;
    let mut memory: Vec<Option<Memory>> = memory.into_iter().map(Some).collect();
    let mut saved = Saved { files: Vec::new(), bytes: ByPath::default(), memory: Vec::new() };
    let mut ready = Vec::with_capacity(plan.files.len());
    for file in &plan.files {
        ready.push(write_file(engine, directory, file, &specs, &mut memory, options, &mut saved)?);
        saved.files.push(file.name.clone());
    }
    ready.into_iter().try_for_each(NewObject::commit)?;
    if let Some((name, bytes)) = &plan.index {
        let new = engine.create(&uri(&directory.join(name))?, bytes.len() as u64)?;
        engine.write(new.object(), 0, host_bytes(engine, bytes)?).wait().ok()?;
        new.commit()?;
        saved.files.push(name.clone());
    }
    saved.memory = memory.into_iter().flatten().collect();
    Ok(saved)
}

/// Tensors of one file that are written at once: the queues of a few reactors, and no more memory than the caller's own.
const WRITES_IN_FLIGHT: usize = 8;

#[expect(clippy::too_many_arguments, reason = "one file's part of `save`, which owns all of these")]
fn write_file(
    engine: &Engine,
    directory: &Path,
    file: &FileLayout,
    specs: &[TensorSpec],
    memory: &mut [Option<Memory>],
    options: &SaveOptions,
    saved: &mut Saved,
) -> Result<NewObject, Error> {
    let new = engine.create(&uri(&directory.join(&file.name))?, file.len_bytes)?;
    let head = engine.write(new.object(), 0, host_bytes(engine, &file.head)?).wait().ok()?;
    saved.bytes += head.path.bytes;
    let mut running: Vec<(usize, Pending)> = Vec::with_capacity(WRITES_IN_FLIGHT);
    let mut failed = None;
    for tensor in &file.tensors {
        let Some(slot) = memory.get_mut(tensor.spec) else { continue };
        let Some(bytes) = slot.take() else { continue };
        if bytes.len() != tensor.len_bytes {
            let name = specs.get(tensor.spec).map_or("", |spec| spec.name.as_str());
            let detail = format!("{} bytes of memory for a tensor of {}", bytes.len(), tensor.len_bytes);
            failed = Some(
                Error::new(ErrorKind::ApiMisuse, Verb::Write).at(name).detail(detail).remedy("pass the whole tensor"),
            );
            *slot = Some(bytes);
            break;
        }
        if running.len() == WRITES_IN_FLIGHT {
            failed = settle(running.remove(0), memory, saved);
            if failed.is_some() {
                break;
            }
        }
        let request = engine.write(new.object(), tensor.file_offset, bytes).policy(options.policy);
        running.push((tensor.spec, request.start()));
    }
    for part in running {
        failed = settle(part, memory, saved).or(failed);
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
