//! The discovery log page: which subsystems there are, and where. No I/O: bytes in, entries out.
//!
//! ```text
//!   header (1,024 bytes): GENCTR, NUMREC, RECFMT
//!   entry  (1,024 bytes) × NUMREC: transport, address, port, subsystem
//! ```
//!
//! [`read`] reads a page that may change meanwhile; [`walk`] follows the referrals to other discovery services.
//!
//! Source: NVM Express Base Specification 2.x, "Discovery Log Page (Log Page Identifier 70h)"; TSAS of TCP from the TCP Transport
//! Specification 1.x, "Transport Specific Address Subtype". Targets that pad text with zeroes instead of spaces exist (linux
//! `drivers/nvme/target/discovery.c`), so both are read.

pub mod read;
pub mod walk;

use core::{fmt, net::IpAddr};

use crate::{
    fabrics::Nqn,
    wire::{WireError, bytes, le16, le64, whole},
};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 1024;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 1024;
/// Entries of one page that are read; a page that says it has more is refused. Linux's `nvme-cli` has no limit; a site with more
/// than this many ports and subsystems has several discovery services.
pub const ENTRIES_MAX: u64 = 4096;
/// The port of discovery services (IANA `nvme-disc`).
pub const PORT: u16 = 8009;

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// GENCTR: counts the changes of the page.
    pub generation: u64,
    /// NUMREC, entries.
    pub entries: u64,
}

impl Header {
    /// As bytes.
    pub fn encode(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        put(&mut out, 0, &self.generation.to_le_bytes());
        put(&mut out, 8, &self.entries.to_le_bytes());
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// Fewer than [`HEADER_BYTES`]; RECFMT other than 0, which is the one format that there is; more than [`ENTRIES_MAX`] entries.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("discovery log page header", raw, HEADER_BYTES)?;
        let field = |field, got, rule| Err(WireError::Field { field, got, rule });
        match (le16(raw, 16), le64(raw, 8)) {
            (format @ 1.., _) => field("RECFMT", format.into(), "records have format 0"),
            (0, count) if count > ENTRIES_MAX => field("NUMREC", count, "at most 4,096 entries are read"),
            (0, entries) => Ok(Self { generation: le64(raw, 0), entries }),
        }
    }
}

/// TRTYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransportType {
    /// RDMA.
    Rdma,
    /// Fibre Channel.
    FibreChannel,
    /// TCP.
    Tcp,
    /// Within the host.
    IntraHost,
    /// Another number.
    Other(u8),
}

impl TransportType {
    const fn of(raw: u8) -> Self {
        match raw {
            1 => Self::Rdma,
            2 => Self::FibreChannel,
            3 => Self::Tcp,
            254 => Self::IntraHost,
            other => Self::Other(other),
        }
    }

    const fn raw(self) -> u8 {
        match self {
            Self::Rdma => 1,
            Self::FibreChannel => 2,
            Self::Tcp => 3,
            Self::IntraHost => 254,
            Self::Other(other) => other,
        }
    }
}

impl fmt::Display for TransportType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rdma => f.write_str("rdma"),
            Self::FibreChannel => f.write_str("fc"),
            Self::Tcp => f.write_str("tcp"),
            Self::IntraHost => f.write_str("loop"),
            Self::Other(other) => write!(f, "transport {other}"),
        }
    }
}

/// ADRFAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressFamily {
    /// An address of IPv4, as text.
    Ipv4,
    /// An address of IPv6, as text.
    Ipv6,
    /// Another number.
    Other(u8),
}

impl AddressFamily {
    const fn of(raw: u8) -> Self {
        match raw {
            1 => Self::Ipv4,
            2 => Self::Ipv6,
            other => Self::Other(other),
        }
    }

    const fn raw(self) -> u8 {
        match self {
            Self::Ipv4 => 1,
            Self::Ipv6 => 2,
            Self::Other(other) => other,
        }
    }
}

/// SUBTYPE: what is at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SubsystemType {
    /// Another discovery service, which knows more.
    Referral,
    /// A subsystem with namespaces.
    Nvme,
    /// The discovery service that gave the page.
    ThisDiscovery,
    /// Another number.
    Other(u8),
}

impl SubsystemType {
    const fn of(raw: u8) -> Self {
        match raw {
            1 => Self::Referral,
            2 => Self::Nvme,
            3 => Self::ThisDiscovery,
            other => Self::Other(other),
        }
    }

    const fn raw(self) -> u8 {
        match self {
            Self::Referral => 1,
            Self::Nvme => 2,
            Self::ThisDiscovery => 3,
            Self::Other(other) => other,
        }
    }
}

impl fmt::Display for SubsystemType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Referral => f.write_str("referral"),
            Self::Nvme => f.write_str("nvme"),
            Self::ThisDiscovery => f.write_str("discovery"),
            Self::Other(other) => write!(f, "type {other}"),
        }
    }
}

/// Bits 1:0 of TREQ: whether the connection has to be encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecureChannel {
    /// It is not said.
    Unspecified,
    /// It has to be.
    Required,
    /// It need not be.
    NotRequired,
    /// The number that means nothing.
    Reserved,
}

impl SecureChannel {
    const fn of(treq: u8) -> Self {
        match treq & 3 {
            0 => Self::Unspecified,
            1 => Self::Required,
            2 => Self::NotRequired,
            _ => Self::Reserved,
        }
    }

    const fn raw(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::Required => 1,
            Self::NotRequired => 2,
            Self::Reserved => 3,
        }
    }

    /// One word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Required => "required",
            Self::NotRequired => "not-required",
            Self::Reserved => "reserved",
        }
    }
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// TRTYPE.
    pub transport: TransportType,
    /// ADRFAM.
    pub family: AddressFamily,
    /// SUBTYPE.
    pub kind: SubsystemType,
    /// TREQ, its lower two bits.
    pub secure_channel: SecureChannel,
    /// TREQ bit 2: SQHD may mean nothing.
    pub may_leave_flow_control: FlowControl,
    /// PORTID.
    pub port_id: u16,
    /// CNTLID: [`crate::fabrics::ANY_CONTROLLER`] for controllers that are made when a host connects.
    pub controller: u16,
    /// ASQSZ, entries of an admin queue at most.
    pub admin_entries: u16,
    /// TRSVCID: the port for TCP; printable ASCII, 32 bytes at most.
    pub service: String,
    /// SUBNQN.
    pub subsystem: Nqn,
    /// TRADDR; printable ASCII, 256 bytes at most.
    pub address: String,
    /// SECTYPE of the TSAS of TCP: 0 none, 1 TLS 1.2, 2 TLS 1.3. 0 for other transports.
    pub security: u8,
}

/// TSAS of RDMA (RDMA Transport, "Transport Specific Address Subtype"): RDMA_QPTYPE 1, connected; RDMA_PRTYPE 1, none is said: InfiniBand, RoCE
/// and iWARP are reached alike by their address of IP; RDMA_CMS 1, by the connection manager.
const RDMA_TSAS: [u8; 3] = [1, 1, 1];

/// Whether SQ flow control may be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowControl {
    /// It may.
    MayBeLeft,
    /// It is not said that it may.
    Stays,
}

impl Entry {
    /// As bytes. Text longer than its field is cut, padded with spaces.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        let flow = if self.may_leave_flow_control == FlowControl::MayBeLeft { 1 << 2 } else { 0 };
        let treq = self.secure_channel.raw() | flow;
        put(&mut out, 0, &[self.transport.raw(), self.family.raw(), self.kind.raw(), treq]);
        put(&mut out, 4, &self.port_id.to_le_bytes());
        put(&mut out, 6, &self.controller.to_le_bytes());
        put(&mut out, 8, &self.admin_entries.to_le_bytes());
        put(&mut out, 32, &padded::<32>(&self.service));
        put(&mut out, 256, self.subsystem.as_str().as_bytes());
        put(&mut out, 512, &padded::<256>(&self.address));
        match self.transport {
            TransportType::Rdma => put(&mut out, 768, &RDMA_TSAS),
            _ => put(&mut out, 768, &[self.security]),
        }
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// Fewer than [`ENTRY_BYTES`]; text that is not printable ASCII; a subsystem whose name is none.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("discovery log page entry", raw, ENTRY_BYTES)?;
        let [transport, family, kind, treq] = bytes(raw, 0);
        let transport = TransportType::of(transport);
        let [security] = bytes(raw, 768);
        Ok(Self {
            transport,
            family: AddressFamily::of(family),
            kind: SubsystemType::of(kind),
            secure_channel: SecureChannel::of(treq),
            may_leave_flow_control: if treq & 1 << 2 == 0 { FlowControl::Stays } else { FlowControl::MayBeLeft },
            port_id: le16(raw, 4),
            controller: le16(raw, 6),
            admin_entries: le16(raw, 8),
            service: text("TRSVCID", &bytes::<32>(raw, 32))?,
            subsystem: Nqn::decode("SUBNQN", &bytes::<256>(raw, 256))?,
            address: text("TRADDR", &bytes::<256>(raw, 512))?,
            security: if transport == TransportType::Tcp { security } else { 0 },
        })
    }

    /// Where a connection by TCP or RDMA goes to; `None` for an entry of another transport than `by`, and for an address that is none of its
    /// family.
    pub fn endpoint(&self, by: TransportType) -> Option<Endpoint> {
        let ip: IpAddr = self.address.parse().ok()?;
        let is_family = match self.family {
            AddressFamily::Ipv4 => ip.is_ipv4(),
            AddressFamily::Ipv6 => ip.is_ipv6(),
            AddressFamily::Other(_) => false,
        };
        let port = self.service.parse().ok().filter(|port| *port != 0)?;
        let is_ip = matches!(by, TransportType::Tcp | TransportType::Rdma);
        (is_ip && self.transport == by && is_family).then_some(Endpoint { ip, port })
    }
}

/// A place that connections over TCP or RDMA go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The port, not 0.
    pub port: u16,
}

impl Endpoint {
    /// The address as addresses of objects have it: IPv6 in brackets.
    pub fn host(&self) -> String {
        match self.ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host(), self.port)
    }
}

/// Bytes past the end are dropped: offsets are constants of the specification.
fn put(out: &mut [u8], at: usize, from: &[u8]) {
    out.iter_mut().skip(at).zip(from).for_each(|(to, from)| *to = *from);
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [b' '; N];
    put(&mut out, 0, text.as_bytes());
    out
}

/// A field of ASCII: up to the first zero, without the spaces behind it.
fn text(field: &'static str, raw: &[u8]) -> Result<String, WireError> {
    let end = raw.iter().position(|byte| *byte == 0).unwrap_or(raw.len());
    let used = raw.get(..end).unwrap_or_default().trim_ascii_end();
    match used.iter().find(|byte| !byte.is_ascii_graphic()) {
        Some(byte) => {
            Err(WireError::Field { field, got: u64::from(*byte), rule: "it is printable ASCII without spaces" })
        }
        None => Ok(used.iter().map(|byte| char::from(*byte)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn entry(kind: SubsystemType, ip: &str, port: u16) -> Entry {
        Entry {
            transport: TransportType::Tcp,
            family: if ip.contains(':') { AddressFamily::Ipv6 } else { AddressFamily::Ipv4 },
            kind,
            secure_channel: SecureChannel::NotRequired,
            may_leave_flow_control: FlowControl::MayBeLeft,
            port_id: 7,
            controller: 0xFFFF,
            admin_entries: 32,
            service: port.to_string(),
            subsystem: Nqn::new("nqn.2026-11.io.example:one").unwrap(),
            address: ip.into(),
            security: 0,
        }
    }

    #[test]
    fn a_header_is_as_the_specification_lays_it_out() {
        let wire = Header { generation: 0x0102, entries: 3 }.encode();
        assert_eq!((&wire[..2], wire[8], wire.len()), (&[2, 1][..], 3, 1024));
        assert_eq!(Header::decode(&wire), Ok(Header { generation: 0x0102, entries: 3 }));
        assert!(Header::decode(&wire[..1023]).is_err());
        for (at, byte) in [(16, 1), (17, 1), (9, 0x11), (15, 1)] {
            let mut wrong = wire;
            wrong[at] = byte;
            assert!(Header::decode(&wrong).is_err(), "{at}");
        }
    }

    #[test]
    fn an_entry_is_as_the_specification_lays_it_out() {
        let told = entry(SubsystemType::Nvme, "192.0.2.1", 4420);
        let wire = told.encode();
        assert_eq!(wire[..10], [3, 1, 2, 0b110, 7, 0, 0xFF, 0xFF, 32, 0]);
        assert_eq!((&wire[32..38], wire[63]), (&b"4420  "[..], b' '));
        assert_eq!((&wire[256..260], &wire[512..523], wire[767]), (&b"nqn."[..], &b"192.0.2.1  "[..], b' '));
        assert_eq!(Entry::decode(&wire), Ok(told.clone()));
        assert_eq!(told.endpoint(TransportType::Tcp).unwrap().to_string(), "192.0.2.1:4420");
        assert!(Entry::decode(&wire[..1023]).is_err());
        // Linux's target pads with zeroes.
        let mut zeroes = wire;
        zeroes[36..64].fill(0);
        zeroes[521..768].fill(0);
        assert_eq!(Entry::decode(&zeroes), Ok(told));
        for (at, byte) in [(33, b' '), (32, 0x1B), (512, 0xFF), (256, b'x'), (262, b'\n')] {
            let mut wrong = wire;
            wrong[at] = byte;
            assert!(Entry::decode(&wrong).is_err(), "{at}");
        }
        // RDMA_QPTYPE, RDMA_PRTYPE, RDMA_CMS: as Linux's target says them, but for the kind of network.
        let rdma = Entry { transport: TransportType::Rdma, ..entry(SubsystemType::Nvme, "192.0.2.1", 4420) };
        assert_eq!((&rdma.encode()[768..772], Entry::decode(&rdma.encode())), (&[1, 1, 1, 0][..], Ok(rdma.clone())));
        assert_eq!(rdma.endpoint(TransportType::Rdma).unwrap().to_string(), "192.0.2.1:4420");
        assert_eq!((rdma.endpoint(TransportType::Tcp), rdma.endpoint(TransportType::FibreChannel)), (None, None));
        let mut endless = wire;
        endless[256..512].fill(b'x');
        assert!(Entry::decode(&endless).is_err());
    }

    #[test]
    fn only_what_can_be_connected_to_has_an_endpoint() {
        let good = entry(SubsystemType::Nvme, "2001:db8::1", 4420);
        assert_eq!(good.endpoint(TransportType::Tcp).unwrap().to_string(), "[2001:db8::1]:4420");
        let with = |change: fn(&mut Entry)| {
            let mut entry = good.clone();
            change(&mut entry);
            entry.endpoint(TransportType::Tcp)
        };
        assert_eq!(with(|entry| entry.transport = TransportType::Rdma), None);
        assert_eq!(with(|entry| entry.family = AddressFamily::Ipv4), None);
        assert_eq!(with(|entry| entry.family = AddressFamily::Other(254)), None);
        assert_eq!(with(|entry| entry.service = "0".into()), None);
        assert_eq!(with(|entry| entry.service = "65536".into()), None);
        assert_eq!(with(|entry| entry.address = "storage.example".into()), None);
    }

    #[test]
    fn numbers_that_nobody_knows_come_back_as_they_were() {
        for raw in 0..=u8::MAX {
            assert_eq!(TransportType::of(raw).raw(), raw);
            assert_eq!(AddressFamily::of(raw).raw(), raw);
            assert_eq!(SubsystemType::of(raw).raw(), raw);
            assert_eq!(SecureChannel::of(raw).raw(), raw & 3);
        }
    }
}
