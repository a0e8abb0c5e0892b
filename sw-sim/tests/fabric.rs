//! The modelled RDMA fabric keeps the contract of the seam of verbs: the suite that every fabric runs.
#![forbid(unsafe_code)]

use std::{sync::Arc, time::Duration};

use sw_engine::seam::verbs::{Ability, Device, Fabric};
use sw_sim::{FabricParams, ModelFabric};
use sw_testkit::conformance::{End, verbs};

/// It has one thread.
const RACE: &str = "a_completion_that_races_with_the_arm_is_not_missed";
/// It has none.
const DMA_BUF: &str = "bytes_land_in_a_dma_buf_and_nowhere_beside";

struct Bed {
    what: &'static str,
    params: FabricParams,
    fabric: ModelFabric,
    made: u64,
}

impl Bed {
    fn new(what: &'static str, params: FabricParams) -> Self {
        Self { what, params, fabric: ModelFabric::new(0, params, 1), made: 0 }
    }
}

impl verbs::Bed for Bed {
    fn name(&self) -> String {
        self.what.to_owned()
    }

    fn device(&mut self) -> Result<Arc<dyn Device>, End> {
        // A fabric of its own for each case, with draws of its own.
        let now = self.fabric.now();
        self.made += 1;
        self.fabric = ModelFabric::new(self.made, self.params, 1);
        self.fabric.advance(now);
        self.fabric.open("model0").map_err(|error| End::Fail(error.to_string()))
    }

    fn address(&self) -> String {
        "10.0.0.1:0".to_owned()
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.fabric.now())
    }

    fn idle(&mut self) {
        if self.fabric.step(u64::MAX).is_none() {
            self.fabric.advance(1_000_000);
        }
    }
}

#[test]
fn the_model_is_what_the_seam_asks_for() {
    verbs::run(&mut Bed::new("model", FabricParams::default())).assert_green(&[RACE, DMA_BUF]);
}

#[test]
fn a_model_whose_answers_are_slow_and_packets_small_is_too() {
    let params = FabricParams {
        packet_bytes: 4096,
        delay_ns: (1, 100_000),
        ack_ns: (1, 1_000_000),
        remote_invalidate: Ability::No,
        sge_max: 1,
        ..FabricParams::default()
    };
    let skips = [RACE, DMA_BUF, "a_send_can_invalidate_a_key_of_the_peers", "a_key_is_not_invalidated_twice"];
    verbs::run(&mut Bed::new("model, slow answers", params)).assert_green(&skips);
}
