//! NVMe over TCP: connections, controllers, the engine's transport, and a small target.
//!
//! The protocol itself is in [`sw_nvme::tcp`] and [`sw_nvme::fabrics`], which do no I/O; here are the sockets.

pub mod target;
