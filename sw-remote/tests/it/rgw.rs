//! Ceph's gateway (RGW), as real as S3 is outside of Amazon, before a cluster of one monitor and one store in memory.

use std::{fs, net::TcpStream, path::PathBuf};

use sw_testkit::s3::KEY;

use crate::{
    cluster::{Cluster, Keys, Medium, Running, free_ports, wait_until},
    s3_peer::{CERTIFICATE, Peer, Traits, everything, make_bucket},
};

const TRAITS: Traits = Traits {
    name: "rgw",
    keeps: &[],
    keeps_of_parts: false,
    odd: &["odd//name", "odd/marker/", "odd/"],
    put_if_none: 412,
    kills: 1,
};

/// The cluster with its gateway.
struct Rgw {
    // Before what it works in.
    gateway: Option<Running>,
    cluster: Cluster,
    port: u16,
    tls_port: u16,
}

impl Rgw {
    fn start() -> Self {
        let ports = free_ports::<2>();
        let more = format!(
            "rgw data = {{at}}\nrgw frontends = beast endpoint=127.0.0.1:{} ssl_endpoint=127.0.0.1:{} ssl_certificate={{at}}/cert.pem \
             ssl_private_key={{at}}/key.pem tcp_nodelay=1\n",
            ports[0], ports[1],
        );
        let cluster = Cluster::start("rgw", Medium::Memory, Keys::None, &more);
        cluster.run("openssl", &CERTIFICATE);
        let mut made = Self { gateway: None, cluster, port: ports[0], tls_port: ports[1] };
        made.gateway();
        let names = ["user", "create", "--uid", "user", "--display-name", "user"];
        made.cluster.run("radosgw-admin", &[&names[..], &["--access-key", KEY.0, "--secret-key", KEY.1]].concat());
        make_bucket(&made);
        made
    }

    /// Starts the gateway, and waits until it answers.
    fn gateway(&mut self) {
        self.gateway = Some(self.cluster.spawn("radosgw", &["-n", "client.rgw", "-f"]));
        let port = self.port;
        assert!(
            wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok()),
            "the gateway does not listen: {}",
            fs::read_to_string(self.cluster.folder.path("client.rgw.log")).unwrap_or_default()
        );
    }
}

impl Peer for Rgw {
    fn traits(&self) -> &'static Traits {
        &TRAITS
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn tls(&self) -> Option<(u16, PathBuf)> {
        Some((self.tls_port, self.cluster.folder.path("cert.pem")))
    }

    fn key(&self) -> (String, String) {
        (KEY.0.to_owned(), KEY.1.to_owned())
    }

    fn data(&self) -> Option<PathBuf> {
        None
    }

    fn restart(&mut self) {
        self.gateway = None;
        self.gateway();
    }
}

#[test]
#[ignore = "needs Ceph's programs: cargo xtask interop rgw brings them and runs this"]
fn everything_holds_with_cephs_gateway() {
    everything(&mut Rgw::start());
}
