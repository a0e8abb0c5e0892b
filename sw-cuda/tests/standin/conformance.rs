//! The suite of the engine's seam for copy engines, on the stand-in.

use std::time::{Duration, Instant};

use sw_cuda::{Context, CopyEngineConfig, CudaCopyEngine, DeviceBuffer};
use sw_engine::seam::CopyEngine;
use sw_mem::{ByteLen, DmaRegion};
use sw_testkit::conformance::{
    End,
    copy_engine::{self, Bed},
    fail,
};

use crate::{Case, Outcome, case, first_context, holds};

pub fn cases() -> Vec<Case> {
    let worker = &[("STANDIN_MODE", "worker"), ("STANDIN_DELAY_US", "200")];
    vec![
        case("the_copy_engine_conforms_when_streams_run_late", conforms),
        Case { settings: worker, ..case("the_copy_engine_conforms_when_streams_run_beside", conforms) },
        Case {
            settings: &[("STANDIN_MODE", "eager")],
            ..case("the_copy_engine_conforms_when_streams_run_at_once", conforms)
        },
    ]
}

struct CudaBed {
    context: Context,
    config: CopyEngineConfig,
    start: Instant,
}

impl Bed for CudaBed {
    fn name(&self) -> String {
        format!("{:?}", self.config)
    }

    fn engine(&mut self) -> Result<Box<dyn CopyEngine>, End> {
        match CudaCopyEngine::new(&self.context, self.config) {
            Ok(engine) => Ok(Box::new(engine)),
            Err(error) => fail(error.to_string()),
        }
    }

    fn device_memory(&mut self, len: ByteLen) -> Result<DmaRegion, End> {
        let region = DeviceBuffer::allocate(&self.context, len).and_then(DeviceBuffer::into_region);
        region.or_else(|error| fail(error.to_string()))
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn idle(&mut self) {
        std::thread::yield_now();
    }
}

fn conforms() -> Outcome {
    for (queue_depth, streams) in [(1, 1), (7, 1), (64, 1), (64, 4)] {
        let config = CopyEngineConfig { queue_depth, streams, ..CopyEngineConfig::default() };
        let report = copy_engine::run(&mut CudaBed { context: first_context()?, config, start: Instant::now() });
        holds(&report.to_string(), report.failed().next().is_none() && report.skipped().next().is_none())?;
    }
    Ok(())
}
