//! Datasets: which sample comes when, and where its bytes are.
//!
//! [`order`], [`formats`] of files and [`decode`] of what lies in them compressed are pure; [`samples`] is the seam between a table
//! of samples and its readers; [`loader`] has the threads.
//!
//! ```text
//!   Cursor (epoch, taken) ──► Share of one rank ──► positions ──► Epoch::at / Mixture::at ──► sample numbers
//!   file ──► Scan (tar, TFRecord, MDS, npy, npz, Parquet, token index) ──► extents of samples, or blocks and rows in them
//!   sample numbers ──► Samples::locate ──► places ──► Loader ──► batches in memory
//! ```

#![forbid(unsafe_code)]

pub mod decode;
pub mod formats;
pub mod loader;
pub mod order;
pub mod samples;
pub mod table;
