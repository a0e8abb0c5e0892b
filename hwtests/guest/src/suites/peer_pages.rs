//! Peer-to-peer pages of the kernel: controller memory as the stand-in of a GPU's, reached with O_DIRECT.

use std::path::PathBuf;

use serde_json::json;

use crate::context::{Context, read_text};
use crate::registry::{Suite, Test, Verdict, fail, skip};

pub const SUITE: Suite = Suite {
    name: "peer-pages",
    tests: &[
        Test::new("published", "the kernel publishes controller memory as peer-to-peer pages", published).harmless()
    ],
};

fn published(context: &Context) -> Verdict {
    let device = context.device("nvme-cmb")?;
    device.bind("nvme")?;
    let dir: PathBuf = device.path().join("p2pmem");
    if !dir.exists() {
        return skip("this kernel has no peer-to-peer pages (CONFIG_PCI_P2PDMA)");
    }
    let (size, published) = (read_text(&dir.join("size"))?, read_text(&dir.join("published"))?);
    context.fact(&json!({"size": size, "published": published}));
    if published != "1" {
        return fail(format!("p2pmem of {} is not published", device.address));
    }
    if !dir.join("allocate").exists() {
        return fail("user space cannot allocate peer-to-peer pages here");
    }
    Ok(())
}
