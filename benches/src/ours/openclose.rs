//! What a short-lived program pays: an engine made, used once, and closed.

use std::{path::Path, time::Instant};

use straightway::{Destination, Engine, Error, Uri};

use crate::{report::Sample, usage::Usage};

/// Makes and closes an engine `times` times: bare, and with a first read of 4 KiB between. The sample is of the latter;
/// the bare median is in `bare_ms`.
pub(crate) fn run(file: &Path, times: u32) -> Result<Sample, Error> {
    let uri = Uri::File(file.to_string_lossy().into_owned());
    let mut bare_ms = Vec::new();
    for _ in 0..times {
        #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
        let start = Instant::now();
        let engine = Engine::builder().build()?;
        let lane = engine.lane(Destination::Host)?;
        drop(lane);
        engine.close()?;
        bare_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut sample = Sample::default();
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    for _ in 0..times {
        let engine = Engine::builder().build()?;
        let object = engine.open(&uri)?;
        let memory = engine.allocate(Destination::Host, 4096, 0)?;
        sample.bytes += engine.read(&object, 0, memory).wait().result?;
        drop(object);
        engine.close()?;
        sample.ops += 1;
    }
    sample.seconds = start.elapsed().as_secs_f64();
    Usage::now().charge(before, &mut sample);
    if let Some(ms) = crate::report::median(bare_ms) {
        sample.more.insert("bare_ms".to_owned(), ms);
    }
    Ok(sample)
}
