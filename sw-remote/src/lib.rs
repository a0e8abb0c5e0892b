//! Object stores in user space: what has its bytes behind HTTP.
//!
//! ```text
//!   straightway ──open, list, create──► objects::ObjectStores ──► object_store: names, signatures, retries, multipart
//!                                              │ makes                     │ asks
//!   lane ──submit, ring, poll──► RemoteTransport ──task──► Remote ─────────┤
//!                                              ▲                           ▼
//!                           done, with the bytes landed ◄── pieces ◄── http: connections, TLS, limits of time and number
//! ```
//!
//! Bytes go from the socket into a buffer of the HTTP client (the kernel copies), and from there into their place (one copy of ours,
//! `land`): routes say `http/staged`. Nothing here asks for the environment, the clock of the wall or a thread of the caller's:
//! work runs on the threads of one [`Runtime`].

mod chain;
mod directory;
pub mod http;
mod land;
pub mod objects;
mod remote;
mod runtime;
mod sign;
mod transport;

pub use runtime::Runtime;
pub use transport::{RemoteConfig, RemoteTransport};

/// Its name in routes and reports.
pub const HTTP: &str = "http";
