//! Topology files of NCCL's (`NCCL_TOPO_FILE`; NCCL 2.x `src/graph/xml.cc`): nested `pci` elements below `cpu` elements.
//!
//! Each `pci` element with others inside it stands for a switch: for its upstream port, and for a downstream port of each. Providers make up
//! addresses of switches that a virtual machine does not see.

use std::collections::HashMap;

use roxmltree::{Document, Node, ParsingOptions};
use sw_engine::{Error, ErrorKind, PciAddress, Verb};
use sw_uring::pci::{Bridge, Function, Redirect};

/// Elements of a file at most.
const NODES_MAX: u32 = 65_536;
/// Switches above each other at most.
const DEPTH_MAX: usize = 32;

/// Where a function is.
pub(super) struct Place {
    above: Vec<Bridge>,
    numa_node: Option<u32>,
}

/// Where each function is that the text names.
pub(super) fn read(text: &str) -> Result<HashMap<PciAddress, Place>, Error> {
    let options = ParsingOptions { nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| bad(&error.to_string()))?;
    let root = document.root_element();
    if !root.has_tag_name("system") {
        return Err(bad("its first element is not <system>"));
    }
    let pci = root.descendants().filter(|node| node.has_tag_name("pci"));
    pci.map(|node| Ok((address(node)?, place(node)?))).collect()
}

fn place(node: Node<'_, '_>) -> Result<Place, Error> {
    let mut above = Vec::new();
    let mut numa_node = None;
    for parent in node.ancestors().skip(1) {
        if parent.has_tag_name("cpu") {
            numa_node = parent.attribute("numaid").and_then(|text| text.parse().ok());
        } else if parent.has_tag_name("pci") {
            // A downstream port and the upstream port, which the file does not tell apart.
            let bridge = Bridge { address: address(parent)?, redirect: Redirect::No };
            above.extend([bridge, bridge]);
            if above.len() > 2 * DEPTH_MAX {
                return Err(bad("its switches are nested too deep"));
            }
        }
    }
    Ok(Place { above, numa_node })
}

fn address(node: Node<'_, '_>) -> Result<PciAddress, Error> {
    let text = node.attribute("busid").ok_or_else(|| bad("a <pci> without busid"))?;
    text.to_ascii_lowercase().parse().map_err(|_| bad(&format!("busid {text:?} is no PCI address")))
}

/// Takes the file's word for the functions that it names.
pub(super) fn apply(functions: &mut [Function], mut told: HashMap<PciAddress, Place>) -> Result<(), Error> {
    let mut found = 0_usize;
    for function in functions {
        let Some(Place { above, numa_node }) = told.remove(&function.address) else { continue };
        found += 1;
        function.above = above;
        function.numa_node = numa_node.or(function.numa_node);
    }
    if found > 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, Verb::Open)
        .at("topology file")
        .detail("it names none of this machine's GPUs, NICs and drives")
        .remedy("give the file of this kind of machine; lspci -D tells the addresses"))
}

fn bad(detail: &str) -> Error {
    Error::new(ErrorKind::BadFormat, Verb::Open)
        .at("topology file")
        .detail(detail.to_owned())
        .remedy("give a topology file of NCCL's, as NCCL_TOPO_DUMP_FILE writes it")
}
