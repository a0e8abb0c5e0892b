//! RDMA devices: those of the system's libraries, and the emulated one. The only module that knows both.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use sw_engine::{Error, seam::verbs::Device};
use sw_net::{RdmaWay, Registering, Shelf, Way};
use sw_verbs::{
    budget::{Budget, Budgeted},
    emulated::EmulatedDevice,
    library::{Library, LibraryFabric},
};

use crate::uri::{FabricWire, RdmaPort};

/// The system's devices, with a budget of registered memory for each. The libraries are loaded when they are needed first.
#[derive(Default)]
pub(crate) struct Devices(Mutex<Known>);

#[derive(Default)]
struct Known {
    fabric: Option<Arc<LibraryFabric>>,
    /// By the device's name: what all connections by it share.
    shared: BTreeMap<String, (Arc<Budgeted>, Arc<Shelf>)>,
}

impl Devices {
    fn fabric(&self) -> Result<Arc<LibraryFabric>, Error> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fabric) = &known.fabric {
            return Ok(Arc::clone(fabric));
        }
        let fabric = Arc::new(LibraryFabric::new(Library::load().map_err(|refusal| refusal.error())?));
        Ok(Arc::clone(known.fabric.insert(fabric)))
    }

    /// By what connections to `HOST:PORT` go. *Blocking*, some seconds at most.
    ///
    /// # Errors
    /// Those of the libraries; as [`LibraryFabric::towards`].
    fn towards(&self, to: &str, port: &RdmaPort, registering: Registering) -> Result<RdmaWay, Error> {
        let device = self.fabric()?.towards(to, port)?;
        let name = device.facts().name.clone();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || (Budgeted::new(Arc::clone(&device), Budget::default()), Arc::default());
        let (budget, shelf) = known.shared.entry(name).or_insert_with(fresh);
        Ok(RdmaWay { device: budget.beside(Arc::clone(&device)), registering, shelf: Arc::clone(shelf) })
    }

    /// The device whose address it is.
    ///
    /// # Errors
    /// Those of the libraries; as [`LibraryFabric::at`].
    pub(crate) fn at(&self, listen: SocketAddr) -> Result<Arc<dyn Device>, Error> {
        self.fabric()?.at(&listen.to_string())
    }
}

/// By what subsystems and services of a wire are reached.
pub(crate) enum Ways {
    /// All by the same.
    One(Way),
    /// Each by a device that has the route.
    Devices(Devices, Registering),
}

impl Ways {
    /// Those of a wire.
    pub(crate) fn of(wire: &FabricWire, registering: Registering) -> Self {
        match wire {
            FabricWire::Tcp => Self::One(Way::Tcp),
            FabricWire::EmulatedRdma => {
                Self::One(Way::rdma(Budgeted::new(EmulatedDevice::open(), Budget::default()), registering))
            }
            FabricWire::Rdma(_) => Self::Devices(Devices::default(), registering),
        }
    }

    /// The one to `HOST:PORT`. *Blocking* where the route is asked for.
    ///
    /// # Errors
    /// As [`Devices::towards`].
    pub(crate) fn to(&self, place: &str, wire: &FabricWire) -> Result<Way, Error> {
        match (self, wire) {
            (Self::One(way), _) => Ok(way.clone()),
            (Self::Devices(devices, registering), FabricWire::Rdma(port)) => {
                devices.towards(place, port, *registering).map(Way::Rdma)
            }
            (Self::Devices(devices, registering), _) => {
                devices.towards(place, &RdmaPort::default(), *registering).map(Way::Rdma)
            }
        }
    }
}
