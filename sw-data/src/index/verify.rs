//! Holding an index against the objects that it is of.

use std::{
    num::NonZeroUsize,
    ops::ControlFlow,
    sync::{
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
};

use straightway::{Engine, Error, ErrorKind, Object, Uri, Verb};

use crate::samples::{ObjectEntry, Place, Samples as _};

use super::{Held, Index, build::no_thread, scan::Window};

/// Samples whose places are looked up at once.
const TURN: u64 = 4096;
/// Findings that wait to be told, for each thread.
const FINDINGS_AHEAD: usize = 16;

/// What verification tells.
#[derive(Debug)]
pub enum Finding {
    /// An object has the length and version that were indexed.
    Right {
        /// Its samples.
        samples: u64,
        /// Of them, whose bytes were compared.
        compared: u64,
        /// Bytes that were compared.
        bytes: u64,
    },
    /// An object is not what was indexed, or cannot be read; nothing more is known of its samples.
    Object {
        /// It.
        entry: ObjectEntry,
        /// Why: `Changed`, `NotFound`, and others.
        error: Error,
    },
    /// The bytes of a sample are not those that were indexed.
    Sample {
        /// Its number.
        sample: u64,
        /// Its key.
        key: String,
        /// Its object.
        uri: String,
        /// `ChecksumMismatch` with both sums, or why it cannot be read.
        error: Error,
    },
}

/// Sums over an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Objects that were looked at.
    pub objects: u64,
    /// Of them, not what was indexed: changed, gone, or not to be opened.
    pub bad_objects: u64,
    /// Samples of objects that could be looked at.
    pub samples: u64,
    /// Of them, whose bytes were compared with a checksum.
    pub compared: u64,
    /// Of them, different.
    pub bad_samples: u64,
    /// Bytes that were compared.
    pub bytes: u64,
}

/// Looks at every object, and compares every sample that has a checksum. *Blocking*.
///
/// `tell` is called by the calling thread, in no order; what it breaks with ends the verification.
///
/// # Errors
/// Those of reading the index; `Cancelled`. What is wrong with objects is told, not returned.
pub fn verify(
    engine: &Engine,
    index: &Index,
    threads: NonZeroUsize,
    tell: &mut dyn FnMut(Finding) -> ControlFlow<()>,
) -> Result<Verified, Error> {
    let objects = index.object_count();
    let threads = threads.get().min(usize::try_from(objects).unwrap_or(usize::MAX).max(1));
    let check = Check { engine, index, next: AtomicU32::new(0), stop: AtomicBool::new(false) };
    let mut verified = Verified::default();
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(threads * FINDINGS_AHEAD);
        for number in 0..threads {
            let thread = std::thread::Builder::new().name(format!("verify-{number}"));
            let send = send.clone();
            if let Err(error) = thread.spawn_scoped(scope, || check.work(send)) {
                check.stop.store(true, Ordering::Relaxed);
                return Err(no_thread(error));
            }
        }
        drop(send);
        for finding in receive {
            let finding = finding.inspect_err(|_| check.stop.store(true, Ordering::Relaxed))?;
            verified.count(&finding);
            if tell(finding).is_break() {
                check.stop.store(true, Ordering::Relaxed);
                return Err(Error::new(ErrorKind::Cancelled, Verb::Read).at("the verification"));
            }
        }
        Ok(verified)
    })
}

impl Verified {
    fn count(&mut self, finding: &Finding) {
        match finding {
            Finding::Right { samples, compared, bytes } => {
                self.objects += 1;
                self.samples += samples;
                self.compared += compared;
                self.bytes += bytes;
            }
            Finding::Object { .. } => {
                self.objects += 1;
                self.bad_objects += 1;
            }
            Finding::Sample { .. } => self.bad_samples += 1,
        }
    }
}

/// What threads share.
struct Check<'a> {
    engine: &'a Engine,
    index: &'a Index,
    next: AtomicU32,
    stop: AtomicBool,
}

type Tell = SyncSender<Result<Finding, Error>>;

impl Check<'_> {
    fn work(&self, tell: Tell) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.index.object_count() || self.stop.load(Ordering::Relaxed) {
                return;
            }
            let told = match self.object(number, &tell) {
                Ok(Some(finding)) => tell.send(Ok(finding)),
                Ok(None) => return,
                Err(error) => tell.send(Err(error)),
            };
            if told.is_err() {
                return;
            }
        }
    }

    /// One object; nothing once nobody listens.
    fn object(&self, number: u32, tell: &Tell) -> Result<Option<Finding>, Error> {
        let entry = self.index.object(number)?;
        let held = self.index.held(number)?;
        let opened = entry.uri.parse::<Uri>().and_then(|uri| self.engine.open(&uri));
        let object = match opened.and_then(|object| entry.check(&object).map(|()| object)) {
            Ok(object) => object,
            Err(error) => return Ok(Some(Finding::Object { entry, error })),
        };
        let Some((compared, bytes)) = self.samples(&entry, &object, held, tell)? else { return Ok(None) };
        Ok(Some(match object.check_unchanged() {
            Ok(()) => Finding::Right { samples: held.samples, compared, bytes },
            Err(error) => Finding::Object { entry, error },
        }))
    }

    /// Samples of an object whose bytes were compared, and those bytes; nothing once nobody listens.
    fn samples(
        &self,
        entry: &ObjectEntry,
        object: &Object,
        held: Held,
        tell: &Tell,
    ) -> Result<Option<(u64, u64)>, Error> {
        let (mut compared, mut bytes) = (0, 0);
        let mut window = Window::new(self.engine, object, &self.stop);
        let end = held.first + held.samples;
        let mut at = if held.checksums > 0 { held.first } else { end };
        // Rows of one block have its extent and sum in common.
        let mut last: Option<Place> = None;
        while at < end {
            let numbers: Vec<u64> = (at..end.min(at + TURN)).collect();
            at += numbers.len() as u64;
            let mut places = Vec::new();
            self.index.locate(&numbers, &mut places)?;
            for (sample, place) in numbers.iter().zip(places) {
                let Some(stored) = place.crc32c else { continue };
                compared += 1;
                if last.is_some_and(|last| last.extent == place.extent && last.crc32c == place.crc32c) {
                    continue;
                }
                let wrong = match window.crc32c(place.extent) {
                    Ok(sum) if sum == stored => None,
                    Ok(sum) => Some(differs(entry, &place, (stored, sum))),
                    Err(error) if error.kind() == ErrorKind::Cancelled => return Ok(None),
                    Err(error) => Some(error),
                };
                bytes += place.extent.len;
                last = wrong.is_none().then_some(place);
                if let Some(error) = wrong
                    && !self.tell_sample(*sample, entry, error, tell)?
                {
                    return Ok(None);
                }
            }
        }
        Ok(Some((compared, bytes)))
    }

    /// Whether anybody listens.
    fn tell_sample(&self, sample: u64, entry: &ObjectEntry, error: Error, tell: &Tell) -> Result<bool, Error> {
        let mut labels = Vec::new();
        self.index.labels(&[sample], &mut labels)?;
        let key = labels.pop().map(|label| label.key).unwrap_or_default();
        Ok(tell.send(Ok(Finding::Sample { sample, key, uri: entry.uri.clone(), error })).is_ok())
    }
}

pub(super) fn differs(entry: &ObjectEntry, place: &Place, (stored, sum): (u32, u32)) -> Error {
    Error::new(ErrorKind::ChecksumMismatch, Verb::Read)
        .at(entry.uri.as_str())
        .in_range(place.extent.offset, place.extent.len)
        .detail(format!("CRC-32C is {stored:#010x} in the index and {sum:#010x} of the bytes"))
        .remedy("the sample is damaged; restore the object, or index it again")
}
