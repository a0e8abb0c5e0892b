//! What `doctor` says of RDMA: the system's libraries and their devices, which `nvme+rdma://` goes by; see `docs/rdma.md`.

use sw_engine::seam::verbs::{Ability, GidChoice, choose_gid};
use sw_verbs::library::{Found, Library, Port, Refusal};

use crate::doctor::{Fact, Health};

/// Not having RDMA is nothing that is missing.
pub(crate) fn facts() -> Vec<Fact> {
    let told = |name: &str, value: String, remedy: &str| Fact {
        name: name.to_owned(),
        health: Health::Neutral,
        value,
        remedy: remedy.to_owned(),
    };
    let refused = |name: &str, why: &Refusal| told(name, why.to_string(), why.remedy());
    let library = match Library::load() {
        Ok(library) => library,
        Err(why) => return vec![refused("rdma.library", &why)],
    };
    let mut facts = vec![told("rdma.library", "libibverbs and librdmacm are there".to_owned(), "")];
    match library.devices() {
        Err(why) => facts.push(refused("rdma.devices", &why)),
        Ok(devices) => {
            facts.push(told("rdma.devices", devices.len().to_string(), ""));
            for (number, device) in devices.iter().enumerate() {
                let name = format!("rdma{number}");
                facts.push(match device {
                    Ok(found) => told(&name, described(found), ""),
                    Err(why) => refused(&name, why),
                });
            }
        }
    }
    facts
}

fn described(found: &Found) -> String {
    let Found { facts, port, gids } = found;
    let port = if *port == Port::Active { "active" } else { "down" };
    let dma_buf = if facts.dma_buf == Ability::Yes { "registers dma-bufs" } else { "registers no dma-bufs" };
    let address = choose_gid(gids, GidChoice::Rule).map_or_else(|_| "no address".to_owned(), |gid| gid.to_string());
    format!("{}: {}, port {port}, {dma_buf}, {address}", facts.name, facts.kind.name())
}
