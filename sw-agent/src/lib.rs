//! AGP/1, the agent protocol: what an engine (the *host*) and an agent say to each other, as bytes.
//!
//! ```text
//!   sw-remote-like transport ─► host::Host ──┐  control messages, descriptors   ┌── agent::Agent ◄─ whoever opens and moves bytes
//!        (not built)                         ├──────────── a carrier ───────────┤        (not built)
//!   memory, in leases          ◄─────────────┘  completions, payload            └──────────────
//! ```
//!
//! The protocol, byte by byte, with its rules and limits: `docs/agp.md`. [`wire`] is its bytes.
//! Neither does I/O, and neither knows a clock: `now` is an argument, and what is to be done comes out as actions. A carrier (a socket,
//! shared memory, a queue pair) moves what they say; there is none in this crate yet.

#![forbid(unsafe_code)]

pub mod credits;
pub mod failure;
pub mod id;
pub mod limits;
pub mod wire;
