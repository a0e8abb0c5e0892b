use sw_nvme::{
    fabrics::PropertySize,
    tcp::pdu::Digests,
    wire::{admin::Identify, identify, regs},
};

use super::*;

mod client;

use client::{Client, Done, Fail, Host, Move, SUCCESS, at};

const NONE: Digests = Digests { header: false, data: false };
const BOTH: Digests = Digests { header: true, data: true };

fn started(change: impl FnOnce(&mut TargetConfig)) -> (Target, TargetConfig) {
    let mut config = TargetConfig::default();
    change(&mut config);
    (Target::start(config.clone()).unwrap(), config)
}

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| ((at * 31 + at / 4096 * 7 + seed) % 251) as u8).collect()
}

#[test]
fn what_is_written_in_capsules_and_by_wishes_is_read_back() {
    for digests in [NONE, BOTH, Digests { header: true, data: false }, Digests { header: false, data: true }] {
        let (target, config) = started(|config| config.r2t_bytes_max = 300 << 10);
        let host = Host::new(&config.subsystem, digests);
        let (_admin, controller) = host.admin(target.address());
        let mut io = host.io(target.address(), controller, 1);
        let large = pattern(1 << 20, 1);
        assert_eq!(io.write(16, 256, &large).unwrap().outcome, SUCCESS);
        let small = pattern(4096, 2);
        assert_eq!(io.write(20, 1, &small).unwrap().outcome, SUCCESS);
        let Done { outcome, data, .. } = io.read(15, 256, 4096).unwrap();
        assert_eq!(outcome, SUCCESS);
        assert!(data[..4096].iter().all(|byte| *byte == 0));
        assert!(data[4096..5 * 4096] == large[..4 * 4096] && data[5 * 4096..6 * 4096] == small[..]);
        assert!(data[6 * 4096..] == large[5 * 4096..255 * 4096]);
        let counters = target.counters();
        assert_eq!((counters.reads, counters.writes), (1, 2));
        assert_eq!((counters.read_bytes, counters.written_bytes), (1 << 20, (1 << 20) + 4096));
        assert_eq!((counters.connections, counters.connections_open, counters.controllers), (2, 2, 1));
        target.stop();
    }
}

#[test]
fn the_product_reads_the_identify_pages_of_the_target() {
    let (target, config) = started(|config| {
        config.namespaces = vec![Backing::Memory(1 << 20), Backing::Memory(3 << 20)];
        config.block_bytes = 512;
    });
    let host = Host::new(&config.subsystem, BOTH);
    let (mut admin, id) = host.admin(target.address());
    let cap = regs::Cap::decode(admin.property(regs::CAP, PropertySize::Eight)).unwrap();
    assert_eq!((cap.queue_entries_max, cap.contiguous_queues_required), (128, true));
    assert_eq!(admin.property(regs::VS, PropertySize::Four), 0x1_0400);
    let page = identify::IdentifyController::decode(&admin.identify(Identify::Controller)).unwrap();
    assert_eq!((page.controller_id, page.mdts, page.namespaces, page.commands_max), (id, 8, 2, 128));
    assert_eq!((page.subsystem_nqn.as_str(), page.serial.as_str()), (config.subsystem.as_str(), "SWTARGET0001"));
    assert_eq!(page.keep_alive_unit, Some(std::time::Duration::from_millis(100)));
    assert_eq!(page.kind, identify::ControllerKind::Io);
    assert!(
        page.host_id_128() && page.nvm.write_zeroes() && page.nvm.dataset_management() && !page.volatile_write_cache
    );
    let list = identify::namespace_list("list", &admin.identify(Identify::ActiveNamespaces { after: 0 }), 0);
    assert_eq!(list, Ok(vec![1, 2]));
    let two = identify::IdentifyNamespace::decode(&admin.identify(Identify::Namespace { nsid: 2 })).unwrap().unwrap();
    assert_eq!((two.size_blocks, two.format.block_bytes, two.shared), (6144, 512, true));
    let names =
        identify::NamespaceDescriptors::decode(&admin.identify(Identify::NamespaceDescriptors { nsid: 2 })).unwrap();
    assert_eq!((names.nguid, names.csi), (Some(two.nguid), Some(0)));
}
