//! MinIO by its own program, on one folder; and once more with TLS.

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    process::{Command, Stdio},
};

use sw_testkit::{s3::KEY, scratch::Scratch};

use crate::{
    cluster::{Running, free_ports, wait_until},
    commands::told,
    s3_peer::{CERTIFICATE, Peer, Sum, Traits, everything, make_bucket},
};

/// Where the program is.
const MINIO: &str = "STRAIGHTWAY_MINIO";

const TRAITS: Traits = Traits {
    name: "minio",
    keeps: &[Sum::Crc64Nvme, Sum::Crc32c, Sum::Sha256],
    keeps_of_parts: true,
    odd: &["odd/marker/", "odd/"],
    put_if_none: 412,
    kills: 4,
};

struct Minio {
    // Before the folder that they work in.
    plain: Option<Running>,
    secure: Option<Running>,
    folder: Scratch,
    ports: [u16; 2],
}

impl Minio {
    fn start() -> Self {
        let folder = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "minio");
        for name in ["data", "secure", "none", "keys"] {
            fs::create_dir(folder.path(name)).unwrap();
        }
        let made = Command::new("openssl").args(CERTIFICATE).current_dir(folder.root()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        for (from, to) in [("cert.pem", "keys/public.crt"), ("key.pem", "keys/private.key")] {
            fs::copy(folder.path(from), folder.path(to)).unwrap();
        }
        let mut minio = Self { plain: None, secure: None, folder, ports: free_ports() };
        minio.plain = Some(minio.spawn("data", "none", minio.ports[0]));
        minio.secure = Some(minio.spawn("secure", "keys", minio.ports[1]));
        make_bucket(&minio);
        // The one with TLS has a bucket that is made in its folder: a directory.
        fs::create_dir(minio.folder.path("secure/bucket")).unwrap();
        minio
    }

    fn spawn(&self, data: &str, keys: &str, port: u16) -> Running {
        let log = fs::File::create(self.folder.path(&format!("{data}.log"))).unwrap();
        let mut command = Command::new(told(MINIO).expect("cargo xtask interop minio says where the program is"));
        command.args(["server", &self.folder.text(data), "--address", &format!("127.0.0.1:{port}")]);
        command.args(["--certs-dir", &self.folder.text(keys)]).current_dir(self.folder.root());
        command.env("MINIO_ROOT_USER", KEY.0).env("MINIO_ROOT_PASSWORD", KEY.1).env("MINIO_BROWSER", "off");
        // It asks nobody about itself.
        command.env("MINIO_UPDATE", "off").env("MINIO_CALLHOME_ENABLE", "off").env("HOME", self.folder.root());
        let running = Running::of(command.stdout(log).stderr(Stdio::null()).spawn().unwrap());
        assert!(
            wait_until(|| self.is_ready(port, data)),
            "minio does not listen: {}",
            fs::read_to_string(self.folder.path(&format!("{data}.log"))).unwrap_or_default()
        );
        running
    }

    fn is_ready(&self, port: u16, data: &str) -> bool {
        if TcpStream::connect(("127.0.0.1", port)).is_err() {
            return false;
        }
        // The one with TLS has begun when it has made what it keeps beside the objects, and listens.
        data == "secure" || crate::s3_peer::ask(port, "GET /minio/health/ready", "", b"").starts_with("HTTP/1.1 200")
    }
}

impl Peer for Minio {
    fn traits(&self) -> &'static Traits {
        &TRAITS
    }

    fn port(&self) -> u16 {
        self.ports[0]
    }

    fn tls(&self) -> Option<(u16, PathBuf)> {
        Some((self.ports[1], self.folder.path("cert.pem")))
    }

    fn key(&self) -> (String, String) {
        (KEY.0.to_owned(), KEY.1.to_owned())
    }

    fn data(&self) -> Option<PathBuf> {
        Some(self.folder.path("data"))
    }

    fn restart(&mut self) {
        self.plain = None;
        self.plain = Some(self.spawn("data", "none", self.ports[0]));
    }
}

#[test]
#[ignore = "needs MinIO: cargo xtask interop minio builds it and runs this"]
fn everything_holds_with_minio() {
    everything(&mut Minio::start());
}
