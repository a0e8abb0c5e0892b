//! Objects over the modelled disks, and where each byte of them lies.

use std::sync::Arc;

use sw_engine::{Face, Landing, Layout, Object, StripeGeometry};

use super::params::{Faces, Params, QUEUE_NAMES};
use crate::{hub::Hub, machine::FaceParams};

/// An object with the truth about its bytes.
#[derive(Clone, Debug)]
pub(crate) struct SimObject {
    pub(crate) object: Arc<Object>,
    /// Disks in stripe order; one for a plain object.
    disks: Vec<usize>,
    unit: u64,
}

impl SimObject {
    /// A disk of its own.
    pub(super) fn plain(object: Arc<Object>, disk: usize, len: u64) -> Self {
        Self { object, disks: vec![disk], unit: len.max(1) }
    }

    /// Disk and offset of byte `at`: the definition of a stripe set, without the product's arithmetic.
    pub(crate) fn locate(&self, at: u64) -> (usize, u64) {
        let width = self.disks.len() as u64;
        let (unit, inside) = (at / self.unit, at % self.unit);
        let disk = self.disks.get(usize::try_from(unit % width).unwrap_or(0)).copied().unwrap_or(0);
        (disk, unit / width * self.unit + inside)
    }

    pub(crate) fn is_striped(&self) -> bool {
        self.disks.len() > 1
    }

    /// Whether an odd range can be written: some face takes any offset.
    pub(crate) fn takes_odd_writes(&self, params: &Params) -> bool {
        self.object.len > 0 && params.faces != Faces::Direct
    }
}

/// An object for each disk, over modelled queues.
pub(crate) fn build(hub: &Hub, params: &Params) -> Vec<SimObject> {
    let plain = |disk| {
        let name = format!("sim:disk{disk}");
        SimObject::plain(hub.object(&name, params.disk_bytes, &faces(params, disk)), disk, params.disk_bytes)
    };
    (0..params.disks).map(plain).collect()
}

/// All objects of a run: the plain ones, and the stripe set over all of them.
pub(crate) fn with_stripe_set(plain: Vec<SimObject>, params: &Params) -> Vec<SimObject> {
    let mut all = plain.clone();
    let width = u32::try_from(plain.len()).unwrap_or(0);
    let geometry = params.stripe_unit.filter(|_| width > 1).and_then(|unit| StripeGeometry::new(unit, width).ok());
    if let Some(geometry) = geometry {
        let members: Vec<Arc<Object>> = plain.iter().map(|plain| Arc::clone(&plain.object)).collect();
        let object = Object {
            id: Object::next_id(),
            name: Arc::from("sim:stripe"),
            len: geometry.logical_len(params.disk_bytes),
            version: sw_engine::Version::default(),
            faces: Vec::<Face>::new(),
            residency: sw_engine::Residency::Unknown.into(),
            composed: Some((Layout::Stripe(geometry), members)),
            keep: Box::new(()),
        };
        let disks = plain.iter().flat_map(|plain| plain.disks.clone()).collect();
        all.push(SimObject { object: Arc::new(object), disks, unit: geometry.unit() });
    }
    all
}

fn faces(params: &Params, disk: usize) -> Vec<(&'static str, FaceParams)> {
    let queue = QUEUE_NAMES[if params.shared_queue { 0 } else { disk.min(3) }];
    let cache = if params.cache_queue { QUEUE_NAMES[4] } else { queue };
    let direct = FaceParams { disk, block: params.block, memory: params.memory, landing: Landing::Dma };
    let buffered = FaceParams { disk, block: 1, memory: 1, landing: Landing::KernelCopy };
    match params.faces {
        Faces::Direct => vec![(queue, direct)],
        Faces::Both => vec![(queue, direct), (cache, buffered)],
        Faces::Buffered => vec![(cache, buffered)],
    }
}
