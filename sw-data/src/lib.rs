//! Datasets: which sample comes when, and where its bytes are.
//!
//! Pure so far: [`order`], and [`formats`] of files. No I/O, clock, thread or engine.
//!
//! ```text
//!   Cursor (epoch, taken) ──► Share of one rank ──► positions ──► Epoch::at / Mixture::at ──► sample numbers
//!   file ──► Scan (tar, TFRecord, MDS, npy, token index) ──► extents of samples
//! ```

#![forbid(unsafe_code)]

pub mod formats;
pub mod order;
