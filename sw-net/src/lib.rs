//! NVMe over TCP: connections, controllers, the engine's transport, and a small target.
//!
//! ```text
//!   Controller ── admin connection ── attend: keep-alive, connections for queues
//!        │ asked for by lanes
//!   TcpTransport (one per lane) ── a connection per controller ── sw_nvme::tcp::host
//! ```
//!
//! The protocol itself is in [`sw_nvme::tcp`] and [`sw_nvme::fabrics`], which do no I/O; here are the sockets.

mod admin;
mod associate;
mod authenticate;
mod carrier;
mod clock;
mod connection;
mod controller;
mod directory;
mod discover;
mod entropy;
mod errands;
mod events;
mod facts;
mod family;
mod landing;
mod paths;
mod rdma;
mod relay;
mod socket;
pub mod target;
mod tls;
mod transport;
mod wait;

pub use authenticate::HostKeys;
pub use carrier::Way;
pub use connection::ConnectionCounters;
pub use controller::{Address, Controller, ControllerConfig, HostIdentity, Patient};
pub use directory::{Directory, face};
pub use discover::{DiscoverConfig, Discovered, ReachedBy, discover};
pub use entropy::random_bytes;
pub use facts::Facts;
pub use paths::{PathReport, PathState, Paths};
pub use rdma::RdmaWay;
pub use sw_nvme::directory::CONTROLLERS_MAX;
pub use sw_nvme::rdma::{Registering, Shelf};
pub use tls::{HostTls, KernelTls, Protection};
pub use transport::{NVME_RDMA, NVME_RDMA_EMULATED, NVME_TCP, QUEUE_DEPTH_MAX, TcpConfig, TcpTransport, Wire};
