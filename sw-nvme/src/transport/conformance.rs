//! The engine's suite for transports, over the small model.

use std::{sync::Arc, time::Duration};

use sw_engine::{Object, Residency, seam::Transport};
use sw_testkit::conformance::{
    End,
    block_file::{Bed, Clock, Target, run},
};

use super::{Completion, NvmeConfig, NvmeTransport};
use crate::{
    controller::{Controller, ControllerConfig},
    directory::{Directory, face},
    testbus::{Model, ModelNamespace, TestBus},
};

struct Modelled {
    bus: Arc<TestBus>,
    directory: Arc<Directory<TestBus>>,
    config: NvmeConfig,
    next_nsid: u32,
}

#[derive(PartialEq, Eq)]
enum Medium {
    Good,
    Bad,
}

impl Modelled {
    fn new(model: Model, config: NvmeConfig) -> Self {
        let bus = TestBus::new(model);
        let directory = Arc::new(Directory::default());
        let controller = Controller::open(bus.clone(), ControllerConfig::default()).unwrap();
        directory.add(controller).unwrap();
        Self { bus, directory, config, next_nsid: 100 }
    }

    fn add(&mut self, content: &[u8], medium: Medium) -> Target {
        let nsid = self.next_nsid;
        self.next_nsid += 1;
        let mut namespace = ModelNamespace::new(nsid, 9, 1);
        (namespace.data, namespace.bad) = (content.to_vec(), medium == Medium::Bad);
        self.bus.model().namespaces.push(namespace);
        let controller = self.directory.get(0).unwrap();
        controller.rescan().unwrap();
        let namespace = controller.namespaces().into_iter().find(|one| one.nsid == nsid).unwrap();
        let object = Object {
            id: Object::next_id(),
            name: format!("{nsid}").into(),
            len: namespace.len_bytes(),
            version: namespace.version(),
            faces: vec![face(0, &namespace).unwrap()],
            residency: Residency::Unknown.into(),
            composed: None,
            keep: Box::new(()),
        };
        Target { object: Arc::new(object), face: 0 }
    }
}

impl Bed for Modelled {
    fn name(&self) -> String {
        format!("small model, {:?}", self.config.completion)
    }

    fn transport(&mut self) -> Result<Box<dyn Transport>, End> {
        Ok(Box::new(NvmeTransport::new(self.directory.clone(), self.bus.waiter(), self.config).unwrap()))
    }

    fn object(&mut self, content: &[u8]) -> Result<Target, End> {
        if !content.len().is_multiple_of(512) {
            return Err(End::Skip("a namespace has whole blocks".to_owned()));
        }
        Ok(self.add(content, Medium::Good))
    }

    fn content(&mut self, target: &Target) -> Result<Vec<u8>, End> {
        let nsid: u32 = target.object.name.parse().unwrap();
        let model = self.bus.model();
        Ok(model.namespaces.iter().find(|one| one.nsid == nsid).unwrap().data.clone())
    }

    fn failing_object(&mut self) -> Result<Target, End> {
        Ok(self.add(&[0; 64 << 10], Medium::Bad))
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.bus.model().now_ns)
    }

    fn clock(&self) -> Clock {
        Clock::Virtual
    }
}

/// Cases that mean nothing here, with their reasons in the report.
const SKIPS: &[&str] = &[
    "any_offset_and_address_on_a_bytewise_face",
    "a_wake_from_another_thread_ends_a_wait",
    "a_read_over_the_end_is_short_or_an_error",
];

#[test]
fn the_transport_conforms_in_every_completion_mode() {
    for completion in
        [Completion::Polled, Completion::Interrupt, Completion::Hybrid { spin: Duration::from_micros(50) }]
    {
        let config = NvmeConfig { completion, queue_depth: 16, ..NvmeConfig::default() };
        let mut bed = Modelled::new(Model::default(), config);
        run(&mut bed).assert_green(SKIPS);
    }
}

#[test]
fn the_transport_conforms_with_few_commands_of_few_bytes_in_reverse_order() {
    let config = NvmeConfig { commands_per_controller: 3, queue_depth: 16, ..NvmeConfig::default() };
    let model = Model { mdts: 1, order: crate::testbus::Order::Reverse, shadow_offered: true, ..Model::default() };
    run(&mut Modelled::new(model, config)).assert_green(SKIPS);
}
