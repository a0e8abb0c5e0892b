//! Writes the tensors of a checkpoint of any format as safetensors, a bounded part at a time.

use std::collections::BTreeMap;
use std::path::Path;

use straightway::{ByPath, Destination, Engine, Error, ErrorKind, Memory, NewObject, Uri, Verb};

use crate::batches::batches;
use crate::open::malformed;
use crate::{Checkpoint, FileLayout, Format, LayoutOptions, LoadOptions, TensorSpec, Want, WritePlan};

/// Bytes that are in memory at a time.
const BATCH_BYTES: u64 = 64 << 20;

/// A converted checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Converted {
    /// Names of the files in the directory, the index last if there is one.
    pub files: Vec<String>,
    /// Tensors written.
    pub tensors: u64,
    /// Bytes written, by who moved them finally.
    pub bytes: ByPath,
}

impl Checkpoint {
    /// Writes `tensors` (positions in the catalog) into `directory`, which exists, as safetensors: a file, or shards and
    /// their index. Every file appears whole or not at all, the index last. Values that are no tensors are left behind.
    ///
    /// Memory: 64 MiB, or one row of a tensor if that is longer. `step` is called between parts; its error ends the work
    /// and leaves nothing behind.
    ///
    /// # Errors
    /// `BadFormat` for what safetensors cannot hold; `Unsupported` for a tensor that cannot be loaded; what reading and
    /// writing return; what `step` returns.
    pub fn convert<E: From<Error>>(
        &self,
        engine: &Engine,
        tensors: &[usize],
        (directory, options): (&Path, &LayoutOptions),
        mut step: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<Converted, E> {
        let at = Uri::from_path(directory)?;
        let known: Vec<(usize, &crate::Tensor)> =
            tensors.iter().filter_map(|&at| Some((at, self.catalog().tensors().get(at)?))).collect();
        let spec = |(_, tensor): &(usize, &crate::Tensor)| TensorSpec {
            name: tensor.name.to_string(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
        };
        let specs: Vec<TensorSpec> = known.iter().map(spec).collect();
        let options = LayoutOptions { metadata: self.kept_metadata(options), ..options.clone() };
        let plan = WritePlan::new(&specs, &options).map_err(|cause| malformed(&at, cause))?;
        let positions: Vec<usize> = known.iter().map(|(at, _)| *at).collect();
        let mut done = Converted::default();
        let mut ready = Vec::with_capacity(plan.files.len());
        for file in &plan.files {
            ready.push(self.write_file(engine, directory, (file, &positions), &mut done, &mut step)?);
            done.files.push(file.name.clone());
        }
        ready.into_iter().try_for_each(NewObject::commit)?;
        if let Some((name, bytes)) = &plan.index {
            let new = engine.create(&Uri::from_path(&directory.join(name))?, bytes.len() as u64)?;
            engine.write(new.object(), 0, host_bytes(engine, bytes)?).wait().ok()?;
            new.commit()?;
            done.files.push(name.clone());
        }
        done.tensors = positions.len() as u64;
        Ok(done)
    }

    /// What the options say, else what a single safetensors file has, else what readers for torch look for.
    fn kept_metadata(&self, options: &LayoutOptions) -> BTreeMap<String, String> {
        match (options.metadata.is_empty(), self.catalog().format(), self.catalog().files()) {
            (false, ..) => options.metadata.clone(),
            (true, Format::Safetensors, [file]) => file.metadata.clone(),
            _ => BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
        }
    }

    fn write_file<E: From<Error>>(
        &self,
        engine: &Engine,
        directory: &Path,
        (file, positions): (&FileLayout, &[usize]),
        done: &mut Converted,
        step: &mut impl FnMut(u64) -> Result<(), E>,
    ) -> Result<NewObject, E> {
        let new = engine.create(&Uri::from_path(&directory.join(&file.name))?, file.len_bytes)?;
        let head = engine.write(new.object(), 0, host_bytes(engine, &file.head)?).wait().ok()?;
        done.bytes += head.path.bytes;
        let placed: BTreeMap<usize, u64> =
            file.tensors.iter().filter_map(|tensor| Some((*positions.get(tensor.spec)?, tensor.file_offset))).collect();
        let order: Vec<usize> = file.tensors.iter().filter_map(|tensor| positions.get(tensor.spec).copied()).collect();
        let load = LoadOptions { into: Destination::Host, ..LoadOptions::default() };
        for batch in batches(self.catalog(), &order, BATCH_BYTES) {
            let wants: Vec<Want> = batch.iter().map(|(want, _)| want.clone()).collect();
            let loaded = self.load(engine, &wants, &load)?;
            let mut bytes = 0;
            let mut regions: Vec<_> = loaded.regions.into_iter().map(Memory::share).collect();
            for ((want, at), tensor) in batch.iter().zip(&loaded.tensors) {
                let (Some((region, offset)), Some(base)) = (tensor.place, placed.get(&want.tensor)) else { continue };
                let Some((region, start)) = regions.get_mut(region) else { continue };
                let part = region.part(*start + offset, tensor.len_bytes)?;
                // One at a time: two tensors of one storage may lie over each other here.
                let written = engine.write(new.object(), base + at, part).wait().ok()?;
                done.bytes += written.path.bytes;
                bytes += tensor.len_bytes;
            }
            step(bytes)?;
        }
        Ok(new)
    }
}

fn host_bytes(engine: &Engine, bytes: &[u8]) -> Result<Memory, Error> {
    let memory = engine.allocate(Destination::Host, bytes.len() as u64, 0)?;
    let mut buffer = memory.into_buffer().map_err(|_| {
        Error::new(ErrorKind::Protocol, Verb::Write).detail("fresh host memory has no addresses of this process")
    })?;
    let to = buffer.as_mut_slice();
    let len = to.len().min(bytes.len());
    to[..len].copy_from_slice(&bytes[..len]);
    Ok(Memory::from(buffer))
}
