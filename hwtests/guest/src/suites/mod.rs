//! Every suite.

mod bed;
mod command;
mod driver_io;
mod driver_load;
mod engine;
mod fabrics;
mod fabrics_discovery;
mod fabrics_host;
mod fabrics_life;
mod fabrics_namespaces;
mod fabrics_pair;
mod fabrics_paths;
mod hwtest;
mod passthrough;
mod passthrough_load;
mod peer_command;
mod peer_dma;
mod peer_pages;
mod power;
mod power_driver;
mod rdma;
mod speed;
mod tls;
mod vfio;
mod vfio_transport;
mod ways;

use crate::registry::Suite;

/// Every suite, in no particular order: the host's rows choose.
pub fn all() -> &'static [Suite] {
    &[
        bed::SUITE,
        power::SUITE,
        power_driver::SUITE,
        peer_pages::SUITE,
        passthrough::SUITE,
        passthrough_load::SUITE,
        peer_dma::SUITE,
        peer_command::SUITE,
        ways::SUITE,
        vfio::SUITE,
        vfio_transport::SUITE,
        speed::SUITE,
        speed::SUITE_OVER_TCP,
        command::SUITE,
        driver_io::SUITE,
        driver_load::SUITE,
        engine::SUITE,
        fabrics::SUITE,
        fabrics_namespaces::SUITE,
        fabrics_paths::SUITE,
        fabrics_life::SUITE,
        fabrics_discovery::SUITE,
        fabrics_host::SUITE,
        fabrics_pair::SUITE,
        tls::SUITE,
        rdma::SUITE,
        hwtest::SUITE,
    ]
}
