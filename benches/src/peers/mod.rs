//! The other sides: what people use today for the same jobs, run as they come.

pub(crate) mod dlio;
pub(crate) mod extents;
pub(crate) mod fio;
pub(crate) mod kvikio;
pub(crate) mod kvikio_host;
pub(crate) mod nop;
pub(crate) mod pread;
pub(crate) mod python;
pub(crate) mod restore;
pub(crate) mod s3_server;
pub(crate) mod served;
pub(crate) mod tcp;
