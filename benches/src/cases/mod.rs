//! The cases: which job, who does it, what is asked of the ratios.
//!
//! The goals are those of the project's first milestone; a report says of each whether it held.

pub(crate) mod ais;
pub(crate) mod c_call;
pub(crate) mod cache;
pub(crate) mod ceph;
pub(crate) mod counts;
pub(crate) mod cufile;
pub(crate) mod dlio;
pub(crate) mod gpu;
pub(crate) mod gpu_cufile;
pub(crate) mod hdfs;
pub(crate) mod index;
pub(crate) mod load;
pub(crate) mod load_dcp;
pub(crate) mod nfs;
pub(crate) mod null;
pub(crate) mod nvme_driver;
pub(crate) mod nvme_tcp;
pub(crate) mod openclose;
pub(crate) mod order;
pub(crate) mod raw;
pub(crate) mod restore;
pub(crate) mod s3;
pub(crate) mod samples;
pub(crate) mod save;
