//! The bed of the copy-engine suite over modelled device memory.

use std::time::Duration;

use sw_engine::{Time, seam::CopyEngine};
use sw_mem::{ByteLen, DeviceId, DmaRegion, GpuVa};
use sw_sim::{Belongs, CopierParams, Hub};
use sw_testkit::conformance::{End, copy_engine::Bed, fail};

pub const DEVICE: DeviceId = DeviceId(DeviceId::MODEL_FIRST + 3);

pub struct DeviceBed {
    pub hub: Hub,
    pub params: CopierParams,
    /// How far time goes when the suite has nothing to do.
    pub idle_ns: u64,
    next: u64,
}

impl DeviceBed {
    pub fn new(params: CopierParams, idle_ns: u64) -> Self {
        Self { hub: Hub::new(), params, idle_ns, next: 0 }
    }
}

impl Bed for DeviceBed {
    fn name(&self) -> String {
        format!("{:?}", self.params)
    }

    fn engine(&mut self) -> Result<Box<dyn CopyEngine>, End> {
        Ok(Box::new(self.hub.add_copier(self.params.clone(), self.next)))
    }

    fn device_memory(&mut self, len: ByteLen) -> Result<DmaRegion, End> {
        self.next += 1;
        let base = GpuVa::new(self.next << 32);
        self.hub.device_memory(DEVICE, base, len, Belongs::Engine).or_else(|error| fail(error.to_string()))
    }

    fn memory(&mut self, region: &DmaRegion) {
        self.hub.memory(region, Belongs::Engine);
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.hub.now().0)
    }

    fn idle(&mut self) {
        self.hub.run_until(Time(self.hub.now().0 + self.idle_ns));
    }
}
