//! KvikIO into host memory, through `peers/kvikio_host.py`.

use std::path::PathBuf;

use crate::{
    fault::Fault,
    ours::reads::Reads,
    peers::python::Python,
    report::{Role, Sample},
    rounds::Subject,
};

/// KvikIO's POSIX path, one thread.
#[derive(Clone, Debug)]
pub(crate) struct KvikIoHost {
    /// Name of the side.
    pub name: &'static str,
    /// `on`: it opens the file with `O_DIRECT`, too; `off`: as it comes.
    pub direct: &'static str,
    /// What is read.
    pub reads: Reads,
    /// Where it runs.
    pub python: Python,
    /// What it gets for a driver on a machine without one: it asks the driver whose memory an address is.
    pub driver: PathBuf,
}

impl Subject for KvikIoHost {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn role(&self) -> Role {
        Role::Peer
    }

    fn reads(&self) -> Vec<PathBuf> {
        vec![self.reads.file.clone()]
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        let mut args = vec![format!("--direct={}", self.direct), format!("--driver={}", self.driver.display())];
        args.push(format!("--blocks={}", self.reads.blocks()?));
        args.extend(self.reads.args());
        self.python.peer_with_driver(self.name, "kvikio_host.py", &args)
    }
}
