//! What the demo tells.

use std::fmt;

use serde::Serialize;

use crate::{
    route::Way,
    size::{Bytes, Rate},
};

/// One read.
#[derive(Serialize)]
pub struct Read {
    pub schema: &'static str,
    pub name: String,
    #[serde(flatten)]
    pub way: Way,
    pub verified: bool,
}

/// The whole.
#[derive(Serialize)]
pub struct Summary {
    pub schema: &'static str,
    pub dir: String,
    pub kept: bool,
    pub into: String,
    /// Why host memory was taken although a GPU would have been; null if it was asked for, or there is a GPU.
    pub why_not_gpu: Option<String>,
    pub written_bytes: u64,
    pub read_bytes: u64,
    pub verified_bytes: u64,
    pub bounced_bytes: u64,
    pub read_seconds: f64,
    pub read_bytes_per_s: f64,
    pub seconds: f64,
    pub routes: Vec<Way>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "all: {} read into {} in {:.3} s ({}), {} bounced",
            Bytes(self.read_bytes),
            self.into,
            self.read_seconds,
            Rate(self.read_bytes_per_s),
            Bytes(self.bounced_bytes)
        )?;
        self.routes.iter().try_for_each(|way| write!(f, "\n  {way}"))?;
        write!(f, "\nverified {} of {} read; ", Bytes(self.verified_bytes), Bytes(self.read_bytes))?;
        if self.kept { write!(f, "files kept in {}", self.dir) } else { f.write_str("files removed") }
    }
}
