//! Datasets: which sample comes when, and where its bytes are.
//!
//! Pure: [`order`], [`formats`] of files, and [`decode`] of what lies in them compressed. By the engine: [`index`], a table of samples
//! over existing objects, and [`pack`]. [`samples`] is the seam between a table of samples and its readers; [`loader`] has the threads.
//!
//! ```text
//!   Cursor (epoch, taken) ──► Share of one rank ──► positions ──► Epoch::at / Mixture::at ──► sample numbers
//!   file ──► Scan (tar, TFRecord, MDS, npy, npz, Parquet, token index) ──► extents, or blocks and rows in them ──► index
//!   sample numbers ──► Samples::locate ──► places ──► Loader ──► batches in memory
//! ```

#![forbid(unsafe_code)]

pub mod decode;
pub mod formats;
pub mod index;
pub mod loader;
pub mod order;
pub mod pack;
pub mod samples;
pub mod table;
