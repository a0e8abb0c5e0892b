//! Datasets: which sample comes when, and where its bytes are.
//!
//! Pure so far: [`order`], [`formats`] of files, [`decode`] of what lies in them compressed, and the seam [`samples`] between a table of them and its readers.
//!
//! ```text
//!   Cursor (epoch, taken) ──► Share of one rank ──► positions ──► Epoch::at / Mixture::at ──► sample numbers
//!   file ──► Scan (tar, TFRecord, MDS, npy, npz, Parquet, token index) ──► extents of samples, or blocks and rows in them
//! ```

#![forbid(unsafe_code)]

pub mod decode;
pub mod formats;
pub mod order;
pub mod samples;
