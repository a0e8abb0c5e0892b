//! Writes the tensors of a checkpoint of any format in another one, a bounded part at a time: what is read feeds a save.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use straightway::{ByPath, Destination, Engine, Error, ErrorKind, Uri, Verb};

use crate::batches::batches;
use crate::open::{malformed, read_range};
use crate::save::{Bytes, Contents, Layout, NewTensor, SaveOptions, Saver, SaverOptions, Source};
use crate::{Checkpoint, Format, LayoutOptions, LeafValue, LoadOptions, Loaded, TensorSpec, Want};

/// Bytes that are in memory at a time on the reading side, and as many on the writing side.
const BATCH_BYTES: u64 = 64 << 20;

/// Most bytes of values that are no tensors, which are in memory together.
const OBJECTS_MAX_BYTES: u64 = 64 << 20;

/// A converted checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Converted {
    /// Names of the files in the directory: those with tensors, then metadata, then checksums.
    pub files: Vec<String>,
    /// Tensors written.
    pub tensors: u64,
    /// Values that are no tensors and were written.
    pub objects: u64,
    /// Bytes written, by who moved them finally.
    pub bytes: ByPath,
}

impl Checkpoint {
    /// Writes `tensors` (positions in the catalog) as the checkpoint `directory`, which is not there or empty, as
    /// [`Saver::save`] does: whole or not at all, with checksums. Checksums of the source are compared as by
    /// [`Verify::Auto`](crate::Verify::Auto). Values that are no tensors come along from DCP to DCP, up to 64 MiB; others are
    /// left behind.
    ///
    /// Memory: 128 MiB, and one row of a tensor if that is longer than 64 MiB. `step` is called with the bytes of each part
    /// that was read; its error ends the work and leaves nothing behind.
    ///
    /// # Errors
    /// `BadFormat` for what the layout cannot hold; `Unsupported` for a tensor that cannot be loaded; what reading and saving
    /// return; what `step` returns.
    pub fn convert<E: From<Error> + Send>(
        &self,
        engine: &Engine,
        tensors: &[usize],
        (directory, layout): (&Path, &Layout),
        mut step: impl FnMut(u64) -> Result<(), E> + Send,
    ) -> Result<Converted, E> {
        let known: Vec<(usize, &crate::Tensor)> =
            tensors.iter().filter_map(|&at| Some((at, self.catalog().tensors().get(at)?))).collect();
        let spec = |(_, tensor): &(usize, &crate::Tensor)| TensorSpec {
            name: tensor.name.to_string(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
        };
        let specs: Vec<TensorSpec> = known.iter().map(spec).collect();
        let layout = match layout {
            Layout::Safetensors(options) => {
                Layout::from(LayoutOptions { metadata: self.kept_metadata(options), ..options.clone() })
            }
            Layout::Dcp(_) => layout.clone(),
        };
        let at = Uri::from_path(directory)?;
        let order = layout.order(&specs).map_err(|cause| malformed(&at, cause))?;
        let order: Vec<usize> = order.iter().filter_map(|&spec| Some(known.get(spec)?.0)).collect();
        let failed = Mutex::new(None);
        let mut tell = |bytes: u64| {
            step(bytes).map_err(|error| {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Error::new(ErrorKind::Cancelled, Verb::Copy).detail("the conversion was stopped")
            })
        };
        let feed = Feed::new(self, engine, &order, &mut tell);
        let sources: Vec<FedTensor<'_, '_>> = known
            .iter()
            .map(|&(tensor, known)| FedTensor { feed: &feed, tensor, len_bytes: known.len_bytes })
            .collect();
        let fed = specs.into_iter().zip(&sources).map(|(spec, source)| NewTensor::new(spec, Bytes::Source(source)));
        let objects = self.kept_objects(engine, &layout)?;
        let (tensors, objects_len) = (known.len() as u64, objects.len() as u64);
        let contents = Contents { tensors: fed.collect(), objects };
        // One thread, which asks in the order of the files: what is read is there once.
        let how = SaverOptions { staging_bytes: BATCH_BYTES, capture_threads: 1, ..SaverOptions::default() };
        let saver = Saver::new(engine, how)?;
        let saving = saver.save(directory, contents, &SaveOptions { layout, ..SaveOptions::default() });
        match saving.and_then(crate::Saving::wait) {
            Ok(saved) => Ok(Converted { files: saved.files, tensors, objects: objects_len, bytes: saved.moved.bytes }),
            Err(error) => {
                let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
                Err(failed.unwrap_or_else(|| Error::from(error).into()))
            }
        }
    }

    /// What the options say, else what a single safetensors file has, else what readers for torch look for.
    fn kept_metadata(&self, options: &LayoutOptions) -> BTreeMap<String, String> {
        match (options.metadata.is_empty(), self.catalog().format(), self.catalog().files()) {
            (false, ..) => options.metadata.clone(),
            (true, Format::Safetensors, [file]) => file.metadata.clone(),
            _ => BTreeMap::from([("format".to_owned(), "pt".to_owned())]),
        }
    }

    /// Values that are no tensors, as the bytes that torch made of them, where source and layout have those.
    fn kept_objects(&self, engine: &Engine, layout: &Layout) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let mut objects = Vec::new();
        let mut room = OBJECTS_MAX_BYTES;
        for leaf in self.catalog().leaves() {
            let (LeafValue::Stored { file, file_offset, len_bytes }, Layout::Dcp(_)) = (&leaf.value, layout) else {
                continue;
            };
            let Some(object) = self.objects().get(*file).filter(|_| *len_bytes <= room) else { continue };
            room -= len_bytes;
            objects.push((leaf.name.clone(), read_range(engine, object, *file_offset, *len_bytes)?));
        }
        Ok(objects)
    }
}

/// Gives the bytes of tensors in about the order in which a save asks for them, from one part of the checkpoint at a time.
struct Feed<'c> {
    checkpoint: &'c Checkpoint,
    engine: &'c Engine,
    batches: Vec<Vec<(Want, u64)>>,
    /// By tensor: first byte of each of its pieces, its batch and its place there.
    pieces: BTreeMap<usize, Vec<(u64, usize, usize)>>,
    now: Mutex<Now<'c>>,
}

/// The part that is in memory.
struct Now<'c> {
    loaded: Option<(usize, Loaded)>,
    tell: &'c mut (dyn FnMut(u64) -> Result<(), Error> + Send),
}

impl<'c> Feed<'c> {
    fn new(
        checkpoint: &'c Checkpoint,
        engine: &'c Engine,
        order: &[usize],
        tell: &'c mut (dyn FnMut(u64) -> Result<(), Error> + Send),
    ) -> Self {
        let batches = batches(checkpoint.catalog(), order, BATCH_BYTES);
        let mut pieces: BTreeMap<usize, Vec<(u64, usize, usize)>> = BTreeMap::new();
        for (batch, wants) in batches.iter().enumerate() {
            for (number, (want, at)) in wants.iter().enumerate() {
                pieces.entry(want.tensor).or_default().push((*at, batch, number));
            }
        }
        Self { checkpoint, engine, batches, pieces, now: Mutex::new(Now { loaded: None, tell }) }
    }

    /// Bytes of a tensor from `at` on: as many as its piece has, at most `into`. Gives how many.
    fn some(&self, tensor: usize, at: u64, into: &mut [u8]) -> Result<usize, Error> {
        let lost = || Error::new(ErrorKind::OutOfRange, Verb::Copy).in_range(at, into.len() as u64);
        let pieces = self.pieces.get(&tensor).map_or(&[][..], Vec::as_slice);
        let piece = pieces.partition_point(|piece| piece.0 <= at).checked_sub(1).and_then(|piece| pieces.get(piece));
        let &(start, batch, number) = piece.ok_or_else(lost)?;
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let Now { loaded, tell } = &mut *now;
        if loaded.as_ref().is_none_or(|(there, _)| *there != batch) {
            // Before the next one is there, so that there is one at a time.
            *loaded = None;
            let wants: Vec<Want> = self.batches[batch].iter().map(|(want, _)| want.clone()).collect();
            let options = LoadOptions { into: Destination::Host, ..LoadOptions::default() };
            let read = self.checkpoint.load(self.engine, &wants, &options)?;
            tell(read.tensor_bytes)?;
            *loaded = Some((batch, read));
        }
        let loaded = loaded.as_ref().map(|(_, loaded)| loaded).ok_or_else(lost)?;
        let view = loaded.tensors.get(number).ok_or_else(lost)?;
        let memory = view.place.and_then(|(region, offset)| Some((loaded.regions.get(region)?, offset)));
        let (memory, offset) = memory.ok_or_else(lost)?;
        let skip = at - start;
        let len = view.len_bytes.checked_sub(skip).filter(|len| *len > 0).ok_or_else(lost)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(into.len());
        memory.read(offset + skip, &mut into[..len])?;
        Ok(len)
    }
}

/// One tensor of a feed.
struct FedTensor<'f, 'c> {
    feed: &'f Feed<'c>,
    tensor: usize,
    len_bytes: u64,
}

impl Source for FedTensor<'_, '_> {
    fn len(&self) -> u64 {
        self.len_bytes
    }

    fn copy_to(&self, at: u64, into: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < into.len() {
            done += self.feed.some(self.tensor, at + done as u64, &mut into[done..])?;
        }
        Ok(())
    }
}
