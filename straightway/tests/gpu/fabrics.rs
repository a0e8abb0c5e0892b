//! Namespaces on the network into device memory and out of it, through slabs, with the way told.

use std::fs;

use straightway::{
    Completed, Error, Landing, Reason, Uri,
    checksum::Algorithm,
    target::{Access, Backing, Nqn, Target, TargetConfig, start_rdma_emulated},
};

use crate::{Case, GPU0, LAZY, Outcome, WORKER, bytes_are, case, engine, holds, read, same, scratch, text};

pub fn cases() -> Vec<Case> {
    let with = |settings, name, run| Case { settings, ..case(name, run) };
    vec![
        with(LAZY, "a_namespace_behind_tcp_is_read_into_device_memory_and_written_from_it", by_tcp),
        with(WORKER, "a_namespace_behind_the_emulated_fabric_is_too", by_rdma),
    ]
}

fn by_tcp() -> Outcome {
    through(Target::start, "nvme+tcp", "")
}

fn by_rdma() -> Outcome {
    through(start_rdma_emulated, "nvme+rdma", "&fabric=emulated")
}

fn staged(done: &Completed, transport: &str, len: usize) -> Outcome {
    let path = &done.path;
    same("transport", path.route.transport, transport)?;
    // No route of these goes to a device by itself, so that none was refused.
    same("landing, reason", (path.route.landing, path.reason), (Landing::Staged, Reason::Best))?;
    same("bytes staged, all", (path.bytes.staged, path.bytes.total()), (len as u64, len as u64))?;
    same("bounced", path.bounced, len as u64)
}

/// Reads of every shape, and a write of whole blocks; the namespace is a file that is looked at besides.
fn through(start: fn(TargetConfig) -> Result<Target, Error>, scheme: &str, rest: &str) -> Outcome {
    if !["/etc/nvme/hostid", "/etc/machine-id"].iter().any(|name| fs::read(name).is_ok_and(|id| id.len() >= 32)) {
        println!("skip fabrics: the machine has no hostid and no machine-id");
        return Ok(());
    }
    let scratch = scratch();
    let mut content = scratch.file("disk", 3 << 20);
    let subsystem = Nqn::new("nqn.2026-11.io.straightway:gpu").ok_or("no name")?;
    let namespaces = vec![Backing::File(scratch.path("disk"), Access::ReadWrite)];
    let target = start(TargetConfig { subsystem: subsystem.clone(), namespaces, ..TargetConfig::default() });
    let target = target.map_err(text)?;
    let uri = format!("{scheme}://{}/{subsystem}?nsid=1{rest}&serial=SWTARGET0001", target.address());
    let transport = if rest.is_empty() { scheme } else { "nvme+rdma-emulated" };
    let engine = engine();
    let object = engine.open_for_update(&uri.parse::<Uri>().map_err(text)?).map_err(text)?;
    for (offset, len) in [(0, content.len()), (4096, 65_536), (1, 4095), (65_535, 131_074), (777_777, 1_500_001)] {
        let done = read(&engine, &object, offset, len)?;
        staged(&done, transport, len)?;
        bytes_are(&engine, &done.into_memory().ok_or("no memory")?, &content[offset..offset + len])?;
    }
    let (from, len, to) = (8192, 1 << 20, 1 << 20);
    let memory = read(&engine, &object, from, len)?.into_memory().ok_or("no memory")?;
    same("where it lies", memory.destination(), GPU0)?;
    let done = engine.write(&object, to as u64, memory).checksum(Algorithm::Crc64Nvme).wait().ok().map_err(text)?;
    staged(&done, transport, len)?;
    same("checksum", done.checksum, Some(Algorithm::Crc64Nvme.of(&content[from..from + len])))?;
    engine.flush(&object).wait().ok().map_err(text)?;
    content.copy_within(from..from + len, to);
    holds("the namespace's bytes", fs::read(scratch.path("disk")).map_err(text)? == content)?;
    same("bytes written at the target", target.counters().written_bytes, len as u64)?;
    drop(object);
    engine.close().map_err(text)
}
