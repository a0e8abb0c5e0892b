//! AGP/1, the agent protocol: what an engine (the *host*) and an agent say to each other, and the state machines of both ends.
//!
//! ```text
//!   sw-remote-like transport ─► host::Host ──┐  control messages, descriptors   ┌── agent::Agent ◄─ whoever opens and moves bytes
//!        (not built)                         ├──────────── a carrier ───────────┤        (not built)
//!   memory, in leases          ◄─────────────┘  completions, payload            └──────────────
//! ```
//!
//! The protocol, byte by byte, with its rules and limits: `docs/agp.md`. [`wire`] is its bytes; [`host`] and [`agent`] are the two ends.
//! Neither does I/O, and neither knows a clock: `now` is an argument, and what is to be done comes out as actions. A carrier (a socket,
//! shared memory, a queue pair) moves what they say; there is none in this crate yet.
//!
//! Calling order of both machines: tell what happened (`handle`) or what is wanted (`submit`, `grant`, …), then take all actions by
//! `poll_action`, then be back at `poll_timeout` at the latest.
//!
//! Invariants, explored exhaustively in small worlds (`explore`, a test):
//! - an operation ends once, and when it has ended nothing writes its memory;
//! - a lease comes back once, and nothing is written under it afterwards;
//! - credits are neither lost nor overdrawn;
//! - what belongs to an older epoch changes nothing.

#![forbid(unsafe_code)]

pub mod agent;
pub mod credits;
pub mod failure;
pub mod host;
pub mod id;
pub mod limits;
mod mutant;
pub mod psk;
pub mod wire;

#[cfg(test)]
mod explore;
