//! NVMe: structures of the specification, controller and queues, and the engine's transport over them.
//!
//! ```text
//!   sw-vfio (a real function)  ─┐                 wire      registers, commands, completions, identify, logs
//!                               ├─► Bus ─► Controller ─► QueuePair ─► NvmeTransport (a `sw_engine::seam::Transport`)
//!   sw-sim (a modelled one)    ─┘                 prp, sgl   where the bytes of a command lie
//! ```
//!
//! Everything here is generic over a [`bus::Bus`]: registers, memory that the controller reaches, interrupts, time. The
//! crate itself does no I/O and knows no clock; the same code drives a device through VFIO and a model in the simulator.
//!
//! How the parts go together:
//!
//! ```text
//!   let controller = Controller::open(Arc::new(bus), ControllerConfig::default())?;       // reset, enable, identify
//!   let directory = Arc::new(Directory::default());                                       // one per engine
//!   let index = directory.add(controller)?;
//!   let face = directory::face(index, &controller.namespaces()[0])?;                       // for an Object
//!   let transport = NvmeTransport::new(directory, waiter, NvmeConfig::default())?;         // one per lane
//! ```
//!
//! A bus brings [`bus::Registers`], [`bus::QueueMemory`] (with `alias`, if shadow doorbells shall be used), a
//! [`bus::Waiter`], and the clock. A transport makes its queue pair on a controller when the first I/O asks for it, in the
//! ring or poll that follows.
//!
//! Invariants: what the device says is checked before it is used (identifier, generation, length, range); a wait has a
//! limit that the specification or the caller gives; memory of a command is let go of by its completion or by a controller
//! that was seen disabled, never by time alone.

#![forbid(unsafe_code)]

pub mod auth;
pub mod bus;
pub mod commands;
pub mod controller;
pub mod directory;
pub mod discovery;
pub mod fabrics;
mod fork;
pub mod inquiry;
pub mod keyring;
mod keytext;
pub mod life;
pub mod limits;
pub mod namespace;
pub mod paths;
pub mod prp;
pub mod psk;
pub mod queue;
pub mod rdma;
pub mod resets;
pub mod sgl;
pub mod status;
pub mod tcp;
pub mod transport;
pub mod wire;

#[cfg(test)]
mod testbus;
