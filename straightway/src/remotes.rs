//! Remote systems: what an engine is told of them, and the environment's word where it is told nothing.
//!
//! ```text
//!   s3://BUCKET/KEY ─► System of its scheme: ObjectStores, Hdfs, Ceph, … ─► Context ◄── a RemoteTransport of every lane for each name of a transport
//! ```

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sw_engine::{
    Reason, TransportName,
    seam::{Transport, TransportCaps},
};
use sw_remote::{
    Address, CEPH, Context, DAOS, HTTP, RemoteConfig, Runtime, Scheme, System,
    agent::{AGP, AgentConfig, Agents},
    ceph::{Ceph, CephConfig},
    daos::{Daos, DaosConfig},
    hdfs::{HDFS, Hdfs, HdfsConfig},
    juicefs::{JUICEFS, JuiceFs, JuiceFsConfig},
    milvus::{Milvus, MilvusConfig},
    nfs::{NFS, NfsConfig, NfsStores},
    objects::{Again, ObjectStores, ObjectsConfig, Settings},
};

use crate::policy::Destination;

/// Bytes of a range of an object that one request asks for: a server's answer begins after a while, and goes on at its rate.
const RANGE_BYTES: u32 = 8 << 20;
/// Bytes of a file behind NFS that one I/O moves: most servers take a mebibyte in a call, and each call is a request of its own.
const NFS_BYTES: u32 = 1 << 20;
/// Bytes of a file of JuiceFS that one I/O moves: a block of most volumes.
const JUICEFS_BYTES: u32 = 4 << 20;
/// Bytes that one operation of an agent moves: a place in the memory that it is lent.
const AGP_BYTES: u32 = 1 << 20;
/// Threads that requests of an engine run on.
const THREADS: usize = 2;

/// How remote systems are reached: [`EngineBuilder::remote`](crate::EngineBuilder::remote). What is not said here the environment says, by
/// the names that the stores' own tools use (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `AWS_PROFILE`, `GOOGLE_SERVICE_ACCOUNT`,
/// `AZURE_STORAGE_ACCOUNT_NAME`, `AIS_ENDPOINT`, `AIS_AUTHN_TOKEN`, `HADOOP_USER_NAME`, `HADOOP_CONF_DIR`, `META_PASSWORD`, `MILVUS_TOKEN` and the others), and for S3 a profile in `~/.aws`.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where S3 is, as `https://HOST:PORT`. Default: Amazon's.
    pub s3_endpoint: Option<String>,
    /// The region that requests are signed for. Default: the environment's, else `us-east-1`.
    pub s3_region: Option<String>,
    /// The bucket's name is the first part of the host's (virtual-hosted style), and of the endpoint that is given. Default: no.
    pub s3_virtual_host: bool,
    /// Requests are not signed: for buckets that everybody reads.
    pub s3_anonymous: bool,
    /// Where AIStore is: a proxy of its, as `http://HOST:PORT`. Default: `AIS_ENDPOINT`.
    pub ais_endpoint: Option<String>,
    /// Small reads of AIStore's objects that come together go by one request. Default: no.
    pub ais_batch: bool,
    /// Who asks Alluxio. Default: the user of the process (`USER`, `LOGNAME`).
    pub alluxio_user: Option<String>,
    /// Who asks HDFS; with Kerberos, for whom is asked. Default: `HADOOP_USER_NAME`, else the user of the process.
    pub hdfs_user: Option<String>,
    /// The directory of `core-site.xml` and `hdfs-site.xml`. Default: `HADOOP_CONF_DIR`, else `etc/hadoop` below `HADOOP_HOME`.
    pub hdfs_conf_dir: Option<PathBuf>,
    /// Certificates to trust instead of the system's, a file of PEM. Default: `AWS_CA_BUNDLE`, else the system's.
    pub ca_file: Option<PathBuf>,
    /// Longest that an operation of the control plane, or the retries of a request, take. 1 s to an hour; default 60 s.
    pub patience: Duration,
    /// Longest that a server is silent. 10 ms to an hour; default 30 s.
    pub timeout: Duration,
    /// Requests under way at a time, 1 to 1,024; default 64. A store that refuses as it is asked too much is asked less.
    pub requests: u32,
    /// Bytes of a part of an upload, 5 MiB to 1 GiB; default 16 MiB.
    pub part_bytes: u64,
    /// Bytes that all uploads together hold beyond four parts each, at most 1 TiB; default 1 GiB. As many hold the objects of `rados://` that
    /// are written.
    pub upload_bytes: u64,
    /// The configuration of a cluster of Ceph's. Default: `CEPH_CONF`, else `/etc/ceph/ceph.conf` and where the libraries look further.
    pub ceph_conf: Option<PathBuf>,
    /// The user there, without `client.`. Default `admin`.
    pub ceph_user: Option<String>,
    /// The folder that Ceph's client libraries are in. Default: where the system has them.
    pub ceph_libraries: Option<PathBuf>,
    /// The name of the system of DAOS. Default: that of its agent on this machine.
    pub daos_system: Option<String>,
    /// The folder that DAOS's client libraries are in. Default: where the system has them.
    pub daos_libraries: Option<PathBuf>,
    /// Where Milvus keeps its segments. Default: `s3://a-bucket/files`, as its configuration has it.
    pub milvus_root: Option<String>,
    /// Who asks Milvus, as `USER:PASSWORD`. Default: `MILVUS_TOKEN`, else nobody.
    pub milvus_token: Option<Secret>,
    /// Whether the environment and `~/.aws` are looked at. Default: yes.
    pub environment: bool,
    /// Files behind `nfs://`.
    pub nfs: Nfs,
    /// Where the blocks of volumes of JuiceFS are, as `juicefs mount --bucket`. Default: where each says itself.
    pub juicefs_bucket: Option<String>,
    /// The user of the Redis that has their metadata. Default: its default user.
    pub juicefs_meta_user: Option<String>,
    /// A file of one line `TENANT:KEY`: who we are to agents behind TCP. Default: nobody.
    pub agent_key_file: Option<PathBuf>,
}

/// A word that nothing shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl From<String> for Secret {
    fn from(word: String) -> Self {
        Self(word)
    }
}

impl From<&str> for Secret {
    fn from(word: &str) -> Self {
        Self(word.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// How NFS servers are reached.
#[derive(Clone, Debug, Default)]
pub struct Nfs {
    /// The port of NFS, where an address has none. Default: the server's portmapper is asked.
    pub port: Option<u16>,
    /// The port of MOUNT. Default: the server's portmapper is asked.
    pub mount_port: Option<u16>,
    /// The export, for servers that do not list theirs. Default: the server is asked.
    pub export: Option<String>,
    /// Who asks. Default: the user of this process.
    pub uid: Option<u32>,
    /// Its group; no others are told then. Default: the groups of this process.
    pub gid: Option<u32>,
    /// Connections to a server, 1 to 64. Default 4.
    pub connections: Option<u32>,
}

impl Nfs {
    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        let port = || value.parse().ok().filter(|port| *port != 0);
        match name {
            "nfs_port" => self.port = Some(port()?),
            "nfs_mount_port" => self.mount_port = Some(port()?),
            "nfs_export" => self.export = Some(value.to_owned()).filter(|path| path.starts_with('/')).map(Some)?,
            "nfs_uid" => self.uid = Some(value.parse().ok()?),
            "nfs_gid" => self.gid = Some(value.parse().ok()?),
            "nfs_connections" => self.connections = Some(value.parse().ok().filter(|count| (1..=64).contains(count))?),
            _ => return None,
        }
        Some(())
    }

    fn config(&self, remote: &Remote) -> NfsConfig {
        let (uid, gid, gids) = asker(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        let mut config = NfsConfig {
            port: self.port,
            mount_port: self.mount_port,
            export: self.export.clone(),
            silence: remote.timeout,
            patience: remote.patience,
            ..NfsConfig::default()
        };
        config.uid = self.uid.or(uid).unwrap_or(config.uid);
        config.gids = if self.gid.is_some() { Vec::new() } else { gids };
        config.gid = self.gid.or(gid).unwrap_or(config.gid);
        if let Some(connections) = self.connections {
            config.connections = sw_mem::index(u64::from(connections));
        }
        config
    }
}

/// Who a process is for file systems: the last of four numbers of `Uid` and `Gid`, and its groups (proc_pid_status(5)).
fn asker(status: &str) -> (Option<u32>, Option<u32>, Vec<u32>) {
    let numbers = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>()
    };
    (numbers("Uid").last().copied(), numbers("Gid").last().copied(), numbers("Groups"))
}

impl Default for Remote {
    fn default() -> Self {
        let ObjectsConfig { http, patience, part_bytes, upload_bytes, ais_batch, .. } = ObjectsConfig::default();
        Self {
            s3_endpoint: None,
            s3_region: None,
            s3_virtual_host: false,
            s3_anonymous: false,
            ais_endpoint: None,
            ais_batch,
            alluxio_user: None,
            hdfs_user: None,
            hdfs_conf_dir: None,
            ca_file: None,
            patience,
            timeout: http.silence,
            requests: u32::try_from(http.requests_max).unwrap_or(u32::MAX),
            part_bytes,
            upload_bytes,
            ceph_conf: None,
            ceph_user: None,
            ceph_libraries: None,
            daos_system: None,
            daos_libraries: None,
            milvus_root: None,
            milvus_token: None,
            environment: true,
            nfs: Nfs::default(),
            juicefs_bucket: None,
            juicefs_meta_user: None,
            agent_key_file: None,
        }
    }
}

impl Remote {
    /// Sets one by the name that the command line uses. `None` if there is no such name, or the value is none of it.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Option<()> {
        let text = || (!value.is_empty()).then(|| value.to_owned());
        let flag = || match value {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        };
        let millis = || value.parse().ok().map(Duration::from_millis);
        match name {
            "s3_endpoint" => self.s3_endpoint = Some(text().filter(|text| text.contains("://"))?),
            "s3_region" => self.s3_region = Some(text()?),
            "s3_virtual_host" => self.s3_virtual_host = flag()?,
            "s3_anonymous" => self.s3_anonymous = flag()?,
            "ais_endpoint" => self.ais_endpoint = Some(text().filter(|text| text.contains("://"))?),
            "ais_batch" => self.ais_batch = flag()?,
            "alluxio_user" => self.alluxio_user = Some(text()?),
            "hdfs_user" => self.hdfs_user = Some(text()?),
            "hdfs_conf_dir" => self.hdfs_conf_dir = Some(text()?.into()),
            "remote_ca_file" => self.ca_file = Some(text()?.into()),
            "remote_patience_ms" => self.patience = millis()?,
            "remote_timeout_ms" => self.timeout = millis()?,
            "remote_requests" => self.requests = value.parse().ok()?,
            "remote_part_bytes" => self.part_bytes = crate::parse_bytes(value)?,
            "remote_upload_bytes" => self.upload_bytes = crate::parse_bytes(value)?,
            "ceph_conf" => self.ceph_conf = Some(text()?.into()),
            "ceph_user" => self.ceph_user = Some(text()?),
            "ceph_libraries" => self.ceph_libraries = Some(text()?.into()),
            "daos_system" => self.daos_system = Some(text()?),
            "daos_libraries" => self.daos_libraries = Some(text()?.into()),
            "juicefs_bucket" => self.juicefs_bucket = Some(text()?),
            "juicefs_meta_user" => self.juicefs_meta_user = Some(text()?),
            "agent_key_file" => self.agent_key_file = Some(text()?.into()),
            "milvus_root" => self.milvus_root = Some(text().filter(|text| text.contains("://"))?),
            "milvus_token" => self.milvus_token = Some(text()?.into()),
            "remote_environment" => self.environment = flag()?,
            _ => return self.nfs.set(name, value),
        }
        Some(())
    }

    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let hour = Duration::from_secs(3600);
        if !(Duration::from_secs(1)..=hour).contains(&self.patience) {
            return Err(format!("{:?} for operations of object stores; use 1 s to an hour", self.patience));
        }
        if !(Duration::from_millis(10)..=hour).contains(&self.timeout) {
            return Err(format!("{:?} for answers of object stores; use 10 ms to an hour", self.timeout));
        }
        if !(1..=1024).contains(&self.requests) {
            return Err(format!("{} requests to object stores at a time; use 1 to 1,024", self.requests));
        }
        if !(5 << 20..=1 << 30).contains(&self.part_bytes) {
            return Err(format!("{} bytes for parts of uploads; use 5 MiB to 1 GiB", self.part_bytes));
        }
        if self.upload_bytes > 1 << 40 {
            return Err(format!("{} bytes for all parts of uploads; use 1 TiB at most", self.upload_bytes));
        }
        Ok(())
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        if self.environment {
            settings = Settings::from_environment(std::env::vars_os());
            let said = |name: &str| settings.get(name).map(str::to_owned);
            let profile = said("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
            let file = |variable: &str, name: &str| {
                let in_home = || std::env::home_dir().map(|home| home.join(".aws").join(name));
                let path = said(variable).map(PathBuf::from).or_else(in_home);
                // A file that is not there says nothing.
                path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
            };
            let (credentials, config) =
                (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), file("AWS_CONFIG_FILE", "config"));
            settings.add_profile(&profile, &credentials, &config);
        }
        if let Some(endpoint) = &self.s3_endpoint {
            settings.set("AWS_ENDPOINT_URL_S3", endpoint);
        }
        if let Some(region) = &self.s3_region {
            settings.set("AWS_REGION", region);
        }
        if let Some(endpoint) = &self.ais_endpoint {
            settings.set("AIS_ENDPOINT", endpoint);
        }
        let of_process = || {
            let users =
                std::env::vars_os().filter(|(name, _)| self.environment && (name == "USER" || name == "LOGNAME"));
            // USER goes before LOGNAME.
            users.max().and_then(|(_, user)| user.into_string().ok()).filter(|user| !user.is_empty())
        };
        let user = self.alluxio_user.clone().or_else(of_process);
        if let Some(user) = user {
            settings.set("ALLUXIO_USER", user);
        }
        if self.s3_virtual_host {
            settings.set("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true");
        }
        if self.s3_anonymous {
            settings.set("AWS_SKIP_SIGNATURE", "true");
        }
        settings
    }

    fn config(&self) -> ObjectsConfig {
        let mut config = ObjectsConfig { settings: self.settings(), ..ObjectsConfig::default() };
        let bundle = || config.settings.get("AWS_CA_BUNDLE").map(|path| Path::new(path).to_owned());
        config.http.ca_file = self.ca_file.clone().or_else(bundle);
        config.http.silence = self.timeout;
        config.http.requests_max = sw_mem::index(u64::from(self.requests));
        config.patience = self.patience;
        config.part_bytes = self.part_bytes;
        config.upload_bytes = self.upload_bytes;
        config.ais_batch = self.ais_batch;
        let said = self.clone();
        config.again = Some(Again(Arc::new(move || said.settings())));
        config
    }

    fn hdfs(&self) -> HdfsConfig {
        let told = std::env::vars_os().filter(|(_, value)| self.environment && !value.is_empty());
        let told: HashMap<OsString, OsString> = told.collect();
        let said = |name: &str| told.get(OsStr::new(name)).cloned();
        let folder = || said("HADOOP_CONF_DIR").map(PathBuf::from);
        let home = || said("HADOOP_HOME").map(|home| PathBuf::from(home).join("etc/hadoop"));
        let user = |name| said(name).and_then(|user| user.into_string().ok());
        let mut config = HdfsConfig {
            user: self.hdfs_user.clone(),
            web_user: user("HADOOP_USER_NAME").or_else(|| user("USER")).or_else(|| user("LOGNAME")),
            conf_dir: self.hdfs_conf_dir.clone().or_else(folder).or_else(home),
            patience: self.patience,
            part_bytes: self.part_bytes,
            upload_bytes: self.upload_bytes,
            ..HdfsConfig::default()
        };
        config.http.silence = self.timeout;
        config.http.requests_max = sw_mem::index(u64::from(self.requests));
        config
    }

    /// The password is where JuiceFS's own programs look for it: `REDIS_PASSWORD`, `META_PASSWORD`, a file that `META_PASSWORD_FILE` names.
    fn juicefs(&self) -> JuiceFsConfig {
        let told = std::env::vars_os().filter(|(_, value)| self.environment && !value.is_empty());
        let told: HashMap<OsString, OsString> = told.collect();
        let said = |name: &str| told.get(OsStr::new(name)).cloned();
        let word = |name: &str| said(name).and_then(|word| word.into_string().ok());
        let file = || {
            let file = PathBuf::from(said("META_PASSWORD_FILE")?);
            // Not every Redis asks for one: it is told what it was asked without.
            let unread = |error: &std::io::Error| {
                tracing::warn!(file = %file.display(), %error, "META_PASSWORD_FILE names a file that is not read: the Redis of JuiceFS is asked without a password");
            };
            let text = std::fs::read_to_string(&file).inspect_err(unread).ok()?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        };
        JuiceFsConfig {
            user: self.juicefs_meta_user.clone(),
            password: word("REDIS_PASSWORD").or_else(|| word("META_PASSWORD")).or_else(file),
            bucket: self.juicefs_bucket.clone(),
            objects: self.config(),
        }
    }

    fn milvus(&self) -> MilvusConfig {
        let told = || {
            let (_, token) = std::env::vars_os().find(|(name, _)| self.environment && name == "MILVUS_TOKEN")?;
            token.into_string().ok().filter(|token| !token.is_empty())
        };
        MilvusConfig {
            root: self.milvus_root.clone().unwrap_or_else(|| MilvusConfig::default().root),
            token: self.milvus_token.clone().map(|Secret(token)| token).or_else(told),
            silence: self.timeout,
            patience: self.patience,
        }
    }

    fn ceph(&self) -> CephConfig {
        CephConfig {
            conf: self.ceph_conf.clone(),
            user: self.ceph_user.clone().unwrap_or_else(|| CephConfig::default().user),
            libraries: self.ceph_libraries.clone(),
            environment: self.environment,
            patience: self.patience,
            requests: sw_mem::index(u64::from(self.requests)),
            write_bytes: self.upload_bytes,
        }
    }

    fn agents(&self, context: Context) -> Agents {
        let config = AgentConfig { key: None, patience: self.patience, silence: self.timeout };
        let file = self.agent_key_file.clone();
        Agents::new(context, config, move || file.as_deref().map(crate::agent::read_key).transpose())
    }

    fn daos(&self) -> DaosConfig {
        DaosConfig {
            system: self.daos_system.clone(),
            libraries: self.daos_libraries.clone(),
            patience: self.patience,
            requests: sw_mem::index(u64::from(self.requests)),
        }
    }
}

/// Those of an engine.
pub(crate) struct Remotes {
    requests: u32,
    context: Context,
    objects: Arc<ObjectStores>,
    milvus: Milvus,
    hdfs: Hdfs,
    nfs: NfsStores,
    ceph: Ceph,
    daos: Daos,
    juicefs: JuiceFs,
    agents: Agents,
}

/// What they are called in routes, in the order of their transports.
pub(crate) const TRANSPORTS: [TransportName; 7] = [HTTP, HDFS, NFS, CEPH, DAOS, JUICEFS, AGP];

impl Remotes {
    pub(crate) fn new(said: Remote) -> Self {
        let (requests, context) = (said.requests, Context::new(Runtime::new(THREADS)));
        let (of_hdfs, of_nfs, of_juicefs, of_milvus) = (said.clone(), said.clone(), said.clone(), said.clone());
        let ceph = Ceph::new(context.clone(), said.ceph());
        let daos = Daos::new(context.clone(), said.daos());
        let agents = said.agents(context.clone());
        let objects = Arc::new(ObjectStores::new(context.clone(), move || said.config()));
        let milvus = Milvus::new(context.clone(), objects.clone(), move || of_milvus.milvus());
        let hdfs = Hdfs::new(context.clone(), move || of_hdfs.hdfs());
        let nfs = NfsStores::new(context.clone(), move || of_nfs.nfs.config(&of_nfs));
        let juicefs = JuiceFs::new(context.clone(), move || of_juicefs.juicefs());
        Self { requests, context, objects, milvus, hdfs, nfs, ceph, daos, juicefs, agents }
    }

    /// Those that an address is of.
    pub(crate) fn of(&self, at: &Address) -> &dyn System {
        match at.scheme {
            Scheme::S3 | Scheme::Gcs | Scheme::Azure | Scheme::Http | Scheme::Https | Scheme::Ais | Scheme::Alluxio => {
                &*self.objects
            }
            Scheme::Hdfs | Scheme::WebHdfs => &self.hdfs,
            Scheme::Nfs => &self.nfs,
            Scheme::Milvus => &self.milvus,
            Scheme::Rados | Scheme::Rbd | Scheme::CephFs => &self.ceph,
            Scheme::JuiceFs => &self.juicefs,
            Scheme::Daos => &self.daos,
            Scheme::Agent => &self.agents,
        }
    }

    pub(crate) fn caps(&self, destination: Destination) -> impl Iterator<Item = TransportCaps> {
        self.configs().map(move |config| match destination {
            Destination::Host => config.caps(),
            // Bytes are copied by this process, which has no addresses for those.
            Destination::Gpu(_) | Destination::Bar(_) | Destination::PeerMemory(_) => {
                TransportCaps { device: Err(Reason::MemoryUnreachable), ..config.caps() }
            }
        })
    }

    fn configs(&self) -> impl Iterator<Item = RemoteConfig> {
        let queue_depth = self.requests;
        let bytes = |name| match name {
            NFS => NFS_BYTES,
            AGP => AGP_BYTES,
            JUICEFS => JUICEFS_BYTES,
            _ => RANGE_BYTES,
        };
        TRANSPORTS.into_iter().map(move |name| RemoteConfig { name, queue_depth, io_bytes_max: bytes(name) })
    }

    pub(crate) fn transports(&self) -> impl Iterator<Item = Box<dyn Transport>> {
        self.configs().map(|config| Box::new(self.context.transport(config)) as Box<dyn Transport>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_who_the_process_is_for_file_systems() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n";
        assert_eq!(asker(status), (Some(4), Some(8), vec![9, 10]));
        assert_eq!(asker(""), (None, None, Vec::new()));
        let mut remote = Remote::default();
        for (name, value) in
            [("nfs_uid", "7"), ("nfs_gid", "8"), ("nfs_port", "2049"), ("nfs_export", "/a"), ("nfs_connections", "2")]
        {
            assert_eq!(remote.set(name, value), Some(()), "{name}");
        }
        let config = remote.nfs.config(&remote);
        assert_eq!((config.uid, config.gid, config.port, config.connections), (7, 8, Some(2049), 2));
        assert_eq!(config.gids, [0u32; 0]);
        for (name, value) in
            [("nfs_port", "0"), ("nfs_export", "a"), ("nfs_connections", "65"), ("nfs_uid", "-1"), ("nfs_other", "1")]
        {
            assert_eq!(remote.set(name, value), None, "{name}");
        }
    }

    #[test]
    fn settings_of_remote_systems_are_options_of_an_engine() {
        for (name, value) in [
            ("s3_region", "eu"),
            ("ais_endpoint", "http://h:1"),
            ("ais_batch", "on"),
            ("alluxio_user", "me"),
            ("hdfs_user", "me"),
            ("hdfs_conf_dir", "/etc"),
            ("ceph_user", "me"),
            ("nfs_port", "2049"),
            ("milvus_root", "s3://b/files"),
            ("milvus_token", "root:Milvus"),
            ("remote_requests", "3"),
        ] {
            crate::Engine::builder().set(name, value).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let word = "root:Mi1vus";
        let shown = format!("{:?}", crate::Engine::builder().set("milvus_token", word).unwrap());
        assert!(shown.contains("Secret(..)") && !shown.contains(word), "{shown}");
        for name in ["milvus_tokens", "milvus_root", "token"] {
            let error = crate::Engine::builder().set(name, word).unwrap_err();
            assert!(error.to_string().contains(name) && !error.to_string().contains(word), "{error}");
        }
        let mut remote = Remote { environment: false, ..Remote::default() };
        assert_eq!(remote.settings().get("ALLUXIO_USER"), None);
        assert_eq!(remote.set("alluxio_user", "me"), Some(()));
        assert_eq!(remote.settings().get("ALLUXIO_USER"), Some("me"));
    }
}
