//! Datasets: which sample comes when, and where its bytes are.
//!
//! So far the order alone: [`order`]. It does no I/O and knows no clock, thread or engine.
//!
//! ```text
//!   Cursor (epoch, taken) ──► Share of one rank ──► positions ──► Epoch::at / Mixture::at ──► sample numbers
//! ```

#![forbid(unsafe_code)]

pub mod order;
