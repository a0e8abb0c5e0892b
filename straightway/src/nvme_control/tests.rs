use std::{
    fmt::Debug,
    sync::{Mutex, PoisonError},
};

use sw_nvme::controller::ControllerConfig;
use sw_sim::{Hub, Mishap, NamespaceParams, NvmeParams};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use super::*;

/// Keeps level and fields of what is logged.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<(Level, String)>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!("{}={value:?} ", field.name());
    }
}

impl Subscriber for Said {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.push((*event.metadata().level(), fields.0));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Events of a modelled controller: each once, at the level of what it is.
#[test]
fn what_a_controller_reports_is_told_once() {
    let hub = Hub::new();
    let disk = hub.add_disk(vec![0; 1 << 20]);
    let namespaces = vec![NamespaceParams { nsid: 1, disk, block: 512, metadata: 0, boundary_blocks: 0 }];
    let bus = hub.add_controller(NvmeParams::calm(namespaces), 1);
    let controller = Controller::open(Arc::new(bus), ControllerConfig::default()).unwrap();
    let said = Said::default();
    tracing::subscriber::with_default(said.clone(), || {
        turn(&controller);
        hub.befall(0, 0, Mishap::Events(4));
        // An event of a kind comes again once the log page of the last one was read.
        for _ in 0..6 {
            hub.run_until(sw_engine::Time(hub.now().0 + 1_000_000));
            controller.service().unwrap();
            turn(&controller);
        }
    });
    let said: Vec<_> = said.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
    let told: Vec<_> = said.iter().filter(|(_, text)| text.contains("the controller")).collect();
    assert_eq!(told.len(), 4, "{said:?}");
    assert!(told.iter().all(|(_, text)| text.contains(&format!("pci={:?}", controller.name()))), "{told:?}");
    for (level, text) in told {
        let notice = ["NamespaceAttribute", "FirmwareActivation", "AnaChange"].iter().any(|kind| text.contains(kind));
        assert_eq!(*level, if notice { Level::INFO } else { Level::WARN }, "{text}");
    }
    assert_eq!(hub.violations(), []);
}
