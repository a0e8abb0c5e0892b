//! Identify data and log pages as bytes.

use std::net::SocketAddr;

use sw_engine::checksum::Algorithm;
use sw_nvme::{
    discovery::{
        AddressFamily, ENTRY_BYTES, Entry, FlowControl, HEADER_BYTES, Header, SecureChannel, SubsystemType,
        TransportType,
    },
    fabrics::{ADMIN_ENTRIES_MIN, ANY_CONTROLLER, Nqn},
    wire::{IDENTIFY_BYTES, ccr::Instance, feature::async_events, identify::NAMESPACE_LIST_LEN},
};

use super::{
    Access, CrossReset, TargetConfig, Tells,
    access::TRANSITION_S,
    backing::Disk,
    resets::RESETS_MAX,
    subsystem::{KEEP_ALIVE_UNITS, Role, VERSION},
    wire::length,
};

/// AERL: Asynchronous Event Requests that are held.
pub(super) const EVENT_REQUESTS_MAX: u8 = 4;
/// FR, and the one slot of the firmware log.
const FIRMWARE: &[u8; 8] = b"1.0     ";

/// A page under construction. Bytes past its end are dropped: offsets are constants of the specification.
struct Page<const N: usize>([u8; N]);

impl<const N: usize> Page<N> {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// ASCII, padded with spaces.
    fn text(&mut self, at: usize, len: usize, text: &str) {
        let padded = text.bytes().chain(core::iter::repeat(b' ')).take(len);
        self.0.iter_mut().skip(at).zip(padded).for_each(|(to, from)| *to = from);
    }
}

/// Identify Controller (CNS 01h). `files`: whether a namespace has a volatile cache.
pub(super) fn controller(
    config: &TargetConfig,
    of: Instance,
    (role, sgls): (Role, u32),
    disks: &[Disk],
) -> [u8; IDENTIFY_BYTES] {
    let (mut page, mut events) = (Page([0; IDENTIFY_BYTES]), 0);
    page.text(4, 20, &config.serial);
    page.text(24, 40, "Straightway NVMe-oF target");
    page.put(64, FIRMWARE);
    // CMIC: several controllers. Without it a Linux host refuses the second one.
    page.put(76, &[1 << 1, config.mdts]);
    page.put(78, &of.controller.to_le_bytes());
    page.put(80, &VERSION.to_le_bytes());
    // CTRATT: host identifiers of 128 bits.
    page.put(96, &1u32.to_le_bytes());
    page.put(111, &[if role == Role::Discovery { 2 } else { 1 }]);
    // ACL, AERL, FRMW (one slot, read only), LPA (offsets), from 258 on.
    page.put(258, &[3, EVENT_REQUESTS_MAX - 1, 0b11, 1 << 2]);
    if config.tells == Tells::Access && role == Role::Io {
        let groups = length(disks.len()).to_le_bytes();
        // CMIC: access is told. OAES: its changes. ANATT; ANACAP: every state, and a namespace stays in its group; ANAGRPMAX, NANAGRPID;
        // MNAN, without which Linux takes no second path.
        page.put(76, &[1 << 1 | 1 << 3]);
        events |= async_events::ANA_CHANGE;
        page.put(342, &[TRANSITION_S, 0x1F | 1 << 6]);
        page.put(344, &groups);
        page.put(348, &groups);
        page.put(540, &groups);
    }
    if config.cross_reset != CrossReset::Refused && role == Role::Io {
        // CIU, CIRN, CCRL. OAES: one is over.
        page.put(135, &[of.uniquifier]);
        page.put(136, &of.random.to_le_bytes());
        page.put(1807, &[RESETS_MAX]);
        events |= async_events::RESET_COMPLETED;
    }
    page.put(92, &events.to_le_bytes());
    page.put(320, &KEEP_ALIVE_UNITS.to_le_bytes());
    page.put(512, &[0x66, 0x44]);
    page.put(514, &config.queue_entries.to_le_bytes());
    if role == Role::Io {
        page.put(516, &length(disks.len()).to_le_bytes());
        // ONCS: Dataset Management, Write Zeroes.
        page.put(520, &(1u16 << 2 | 1 << 3).to_le_bytes());
        // VWC: Flush of all namespaces; a cache where there are files.
        page.put(525, &[0b110 | u8::from(disks.iter().any(Disk::is_file))]);
    }
    page.put(536, &sgls.to_le_bytes());
    let name = if role == Role::Discovery { Nqn::discovery() } else { config.subsystem.clone() };
    page.put(768, name.as_str().as_bytes());
    // IOCCSZ and IORCSZ in units of 16 bytes; ICDOFF 0; FCATT 0: dynamic controllers; MSDBD 1; OFCS: Disconnect.
    page.put(1792, &((64 + config.capsule_data_bytes) / 16).to_le_bytes());
    page.put(1796, &1u32.to_le_bytes());
    page.put(1803, &[1, 1]);
    page.0
}

/// NGUID of a namespace: the same for the same subsystem, serial number and NSID.
fn nguid(config: &TargetConfig, nsid: u32) -> [u8; 16] {
    let of = |text: &str| Algorithm::Crc64Nvme.of(format!("{text} {nsid}").as_bytes());
    let mut id = [0; 16];
    id[..8].copy_from_slice(&of(config.subsystem.as_str()).to_be_bytes());
    id[8..].copy_from_slice(&of(&config.serial).to_be_bytes());
    id
}

/// Identify Namespace (CNS 00h).
pub(super) fn namespace(config: &TargetConfig, nsid: u32, disk: &Disk) -> [u8; IDENTIFY_BYTES] {
    let mut page = Page([0; IDENTIFY_BYTES]);
    for at in [0, 8, 16] {
        page.put(at, &disk.blocks().to_le_bytes());
    }
    // NMIC: shared. DLFEAT: deallocated blocks read as zeroes, and Write Zeroes takes DEAC.
    page.put(30, &[1]);
    page.put(33, &[1 | 1 << 3]);
    let bytes = u128::from(disk.blocks()) * u128::from(disk.block_bytes());
    page.put(48, &bytes.to_le_bytes());
    // ANAGRPID.
    if config.tells == Tells::Access {
        page.put(92, &nsid.to_le_bytes());
    }
    page.put(99, &[u8::from(disk.access() == Access::ReadOnly)]);
    page.put(104, &nguid(config, nsid));
    // LBAF 0: LBADS.
    page.put(130, disk.block_bytes().trailing_zeros().to_le_bytes().get(..1).unwrap_or_default());
    page.0
}

/// Active namespaces above `after` (CNS 02h), of `count`.
pub(super) fn namespaces(count: u32, after: u32) -> [u8; IDENTIFY_BYTES] {
    let mut page = Page([0; IDENTIFY_BYTES]);
    for (index, nsid) in (after.saturating_add(1)..=count).take(NAMESPACE_LIST_LEN).enumerate() {
        page.put(4 * index, &nsid.to_le_bytes());
    }
    page.0
}

/// Namespace Identification Descriptors (CNS 03h): NGUID, and the NVM command set.
pub(super) fn descriptors(config: &TargetConfig, nsid: u32) -> [u8; IDENTIFY_BYTES] {
    let mut page = Page([0; IDENTIFY_BYTES]);
    page.put(0, &[2, 16, 0, 0]);
    page.put(4, &nguid(config, nsid));
    page.put(20, &[4, 1, 0, 0, 0]);
    page.0
}

/// Firmware Slot Information: slot 1 is active.
pub(super) fn firmware() -> [u8; 512] {
    let mut page = Page([0; 512]);
    page.put(0, &[1]);
    page.put(8, FIRMWARE);
    page.0
}

/// SMART / Health Information: all well, 300 K, nothing counted.
pub(super) fn smart() -> [u8; 512] {
    let mut page = Page([0; 512]);
    page.put(1, &300u16.to_le_bytes());
    page.put(3, &[100, 10]);
    page.0
}

/// The discovery log page with one entry: the subsystem at `at`, the address that the host reached the target by.
pub(super) fn discovery(
    config: &TargetConfig,
    transport: TransportType,
    at: SocketAddr,
) -> [u8; HEADER_BYTES + ENTRY_BYTES] {
    let mut page = Page([0; HEADER_BYTES + ENTRY_BYTES]);
    let entry = Entry {
        transport,
        family: if at.is_ipv4() { AddressFamily::Ipv4 } else { AddressFamily::Ipv6 },
        kind: SubsystemType::Nvme,
        secure_channel: if config.tls.is_some() { SecureChannel::Required } else { SecureChannel::NotRequired },
        may_leave_flow_control: FlowControl::MayBeLeft,
        port_id: 1,
        controller: ANY_CONTROLLER,
        admin_entries: ADMIN_ENTRIES_MIN,
        service: at.port().to_string(),
        subsystem: config.subsystem.clone(),
        address: at.ip().to_string(),
        // SECTYPE: TLS 1.3, or none.
        security: if config.tls.is_some() { 2 } else { 0 },
    };
    page.put(0, &Header { generation: 1, entries: 1 }.encode());
    page.put(HEADER_BYTES, &entry.encode());
    page.0
}
