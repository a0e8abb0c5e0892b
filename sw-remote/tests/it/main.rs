//! Object stores against a server of S3 in this process that is not ours, with a wire between that does what networks do, and against real
//! servers (Ceph's gateway, MinIO, Alluxio, HDFS, AIStore) where a step of `cargo xtask test` has brought it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests do")]

mod ais;
mod ais_batch;
mod ais_scripted;
mod alluxio;
mod ceph;
mod client;
mod cluster;
mod commands;
mod conformance;
mod daos;
mod faults;
mod fork;
mod hdfs;
mod hdfs_cluster;
mod hdfs_faults;
mod juicefs;
mod listings;
mod minio;
mod nfs;
mod nfs_made;
mod nfs_peer;
mod plain;
mod rgw;
mod s3_peer;
mod scripted;
mod straight;
mod uploads;
