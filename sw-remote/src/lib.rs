//! Remote systems in user space: what has its bytes behind a network.
//!
//! ```text
//!   straightway ──open, list, create──► System: objects::ObjectStores ──► object_store: names, signatures, retries, multipart
//!                                              │ makes                     │ asks
//!   lane ──submit, ring, poll──► RemoteTransport ──task──► Remote ─────────┤
//!                                              ▲                           ▼
//!                           done, with the bytes landed ◄── pieces ◄── http: connections, TLS, limits of time and number
//! ```
//!
//! Bytes of a range stay on their connection until the kernel copies them into their place (`http::straight`, `land`): routes say
//! `http/kernel-copy`. With TLS they come by a library's buffer: `http/staged`. Nothing here asks for the environment, the clock of the wall or a thread of the caller's:
//! work runs on the threads of one [`Runtime`].

mod address;
pub mod agent;
pub mod ceph;
mod chain;
mod copies;
pub mod daos;
mod directory;
mod foreign;
pub mod hdfs;
pub mod http;
mod intent;
pub mod juicefs;
mod land;
mod looks;
pub mod milvus;
pub mod nfs;
pub mod objects;
mod part;
mod random;
mod remote;
mod runtime;
mod sign;
mod system;
mod transport;

pub use address::{Address, Scheme, shown};
pub use runtime::Runtime;
pub use system::{Context, System, is_versioned, set_tee, stored_checksum, unchanged};
pub use transport::{RemoteConfig, RemoteTransport};

/// What goes by HTTP, in routes and reports.
pub const HTTP: &str = "http";
/// What goes by Ceph's client libraries, in routes and reports.
pub const CEPH: &str = "ceph";
/// What goes by DAOS's client libraries, in routes and reports.
pub const DAOS: &str = "daos";
