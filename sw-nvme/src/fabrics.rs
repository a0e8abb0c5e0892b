//! Commands and data of NVMe over fabrics, for any of its transports.
//!
//! Base 2.x, "Fabrics Command Set": every command has opcode 7Fh, and its type (FCTYPE) in byte 4. Registers are reached by
//! Property Get and Property Set under their offsets; the associations begin with Connect, whose data names host and subsystem.

use core::{fmt, time::Duration};

use crate::{
    discovery::TransportType,
    wire::{Command, SQE_BYTES, WireError, bytes, le16, le32, le64, whole},
};

/// OPC of every fabrics command.
pub const OPCODE: u8 = 0x7F;
/// Bytes of the data of Connect.
pub const CONNECT_DATA_BYTES: usize = 1024;
/// Bytes of an NQN at most, without the zero behind it (Base, "NVMe Qualified Names").
pub const NQN_BYTES_MAX: usize = 223;
/// CNTLID of a Connect that leaves the choice to the subsystem (dynamic controllers).
pub const ANY_CONTROLLER: u16 = 0xFFFF;
/// The subsystem that every discovery service answers to.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Entries of an admin queue at least.
pub const ADMIN_ENTRIES_MIN: u16 = 32;

/// FCTYPE.
pub mod kind {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send.
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    /// Authentication Receive.
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    /// Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}

/// CATTR bit 2 of Connect: SQHD of completions means nothing, so that a completion may be left out (SUCCESS of C2HData).
const NO_FLOW_CONTROL: u8 = 1 << 2;

/// SECP and SPSP of the authentication commands: the protocols of the Base specification (section 8.3.5 "In-band Authentication").
pub const SECURITY: (u8, u16) = (0xE9, 0x0101);

/// What the answer to Connect demands next: AUTHREQ, in the high half of its first dword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Nothing.
    None,
    /// Authentication (ATR, bit 17).
    Authentication,
    /// Authentication, and a secure channel made of it (ASCR, bit 18).
    SecureChannel,
}

impl Demand {
    /// From the first dword of a Connect that succeeded.
    pub fn decode(dw0: u32) -> Self {
        match dw0 >> 17 & 3 {
            0 => Self::None,
            1 => Self::Authentication,
            _ => Self::SecureChannel,
        }
    }

    /// The bits for that dword.
    pub const fn bits(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Authentication => 1 << 17,
            Self::SecureChannel => 1 << 17 | 1 << 18,
        }
    }
}

/// An NVMe qualified name: `nqn.` and more, 223 bytes of UTF-8 at most, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nqn(String);

impl Nqn {
    /// From text; `None` if it is no name.
    pub fn new(text: &str) -> Option<Self> {
        let fits = (5..=NQN_BYTES_MAX).contains(&text.len());
        let clean = text.starts_with("nqn.") && !text.chars().any(|c| c.is_control() || c.is_whitespace());
        (fits && clean).then(|| Self(text.to_owned()))
    }

    /// [`DISCOVERY_NQN`].
    pub fn discovery() -> Self {
        Self(DISCOVERY_NQN.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// From a field of 256 bytes, padded with zeroes.
    pub(crate) fn decode(field: &'static str, raw: &[u8]) -> Result<Self, WireError> {
        let end = raw.iter().position(|byte| *byte == 0);
        let text = end.and_then(|end| core::str::from_utf8(raw.get(..end)?).ok()).and_then(Self::new);
        let got = end.unwrap_or(raw.len()) as u64;
        text.ok_or(WireError::Field {
            field,
            got,
            rule: "a name begins with nqn., has 223 bytes at most, and ends with a zero",
        })
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What Connect makes: a queue of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRequest {
    /// QID: 0 is the admin queue.
    pub qid: u16,
    /// Entries, 2 to 65,536 on the wire; the admin queue has at least [`ADMIN_ENTRIES_MIN`]. Counts from zero there.
    pub entries: u16,
    /// KATO in milliseconds; 0 is none. Of the admin queue only.
    pub keep_alive_ms: u32,
}

/// The data of Connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectData {
    /// HOSTID: always the same one with the same host name, or subsystems refuse it.
    pub host_id: [u8; 16],
    /// CNTLID: [`ANY_CONTROLLER`] for the admin queue, the answer to that for I/O queues.
    pub controller: u16,
    /// SUBNQN.
    pub subsystem: Nqn,
    /// HOSTNQN.
    pub host: Nqn,
}

impl ConnectData {
    /// As bytes (Base, "Connect Command – Data").
    pub fn encode(&self) -> [u8; CONNECT_DATA_BYTES] {
        let mut out = [0; CONNECT_DATA_BYTES];
        let mut put = |at: usize, from: &[u8]| out.iter_mut().skip(at).zip(from).for_each(|(to, from)| *to = *from);
        put(0, &self.host_id);
        put(16, &self.controller.to_le_bytes());
        put(256, self.subsystem.as_str().as_bytes());
        put(512, self.host.as_str().as_bytes());
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// Fewer than [`CONNECT_DATA_BYTES`]; a name that is none.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        whole("Connect data", raw, CONNECT_DATA_BYTES)?;
        let name = |field, at: usize| Nqn::decode(field, raw.get(at..at + 256).unwrap_or_default());
        Ok(Self {
            host_id: bytes(raw, 0),
            controller: le16(raw, 16),
            subsystem: name("SUBNQN", 256)?,
            host: name("HOSTNQN", 512)?,
        })
    }
}

/// How many bytes a property has (ATTRIB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PropertySize {
    /// Four.
    Four,
    /// Eight: CAP is one.
    Eight,
}

/// What an authentication command says of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Security {
    /// SECP and SPSP; [`SECURITY`] is the only one that is known.
    pub protocol: (u8, u16),
    /// Bytes of the data: TL, or AL.
    pub bytes: u32,
}

/// A fabrics command as a target reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FabricsCommand {
    /// Property Set.
    PropertySet {
        /// Offset of the register.
        offset: u32,
        /// Its size.
        size: PropertySize,
        /// The value; the low half for four bytes.
        value: u64,
    },
    /// Property Get.
    PropertyGet {
        /// Offset of the register.
        offset: u32,
        /// Its size.
        size: PropertySize,
    },
    /// Connect, with its record format (RECFMT), which is 0.
    Connect {
        /// What is wanted.
        queue: QueueRequest,
        /// Whether SQHD means nothing (CATTR bit 2).
        no_flow_control: bool,
        /// RECFMT.
        format: u16,
    },
    /// Authentication Send.
    AuthenticationSend(Security),
    /// Authentication Receive.
    AuthenticationReceive(Security),
    /// Disconnect of an I/O queue.
    Disconnect,
    /// One of another FCTYPE.
    Other(u8),
}

impl FabricsCommand {
    /// What a command with opcode [`OPCODE`] asks for; `None` for another one.
    pub fn decode(command: &Command) -> Option<Self> {
        let raw = command.bytes();
        if command.opcode() != OPCODE {
            return None;
        }
        let size = if raw[40] & 7 == 1 { PropertySize::Eight } else { PropertySize::Four };
        let security = Security { protocol: (raw[43], le16(raw, 41)), bytes: le32(raw, 44) };
        Some(match raw[4] {
            kind::AUTHENTICATION_SEND => Self::AuthenticationSend(security),
            kind::AUTHENTICATION_RECEIVE => Self::AuthenticationReceive(security),
            kind::PROPERTY_SET => Self::PropertySet { offset: le32(raw, 44), size, value: le64(raw, 48) },
            kind::PROPERTY_GET => Self::PropertyGet { offset: le32(raw, 44), size },
            kind::CONNECT => Self::Connect {
                queue: QueueRequest {
                    qid: le16(raw, 42),
                    // A size that does not fit into the type is the largest that does.
                    entries: le16(raw, 44).saturating_add(1),
                    keep_alive_ms: le32(raw, 48),
                },
                no_flow_control: raw[46] & NO_FLOW_CONTROL != 0,
                format: le16(raw, 40),
            },
            kind::DISCONNECT => Self::Disconnect,
            other => Self::Other(other),
        })
    }
}

/// What Identify Controller says for fabrics (Base 2.1, "Identify Controller data structure": CQT; "NVMe over Fabrics").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FabricsFacts {
    /// Bytes of data in a capsule of an I/O queue at most: IOCCSZ, in units of 16 bytes, less the command itself.
    pub io_data_bytes: u32,
    /// ICDOFF: where data begins in a capsule, in units of 16 bytes behind the command.
    pub data_offset_16: u16,
    /// SGLS, bit 20 (Base 2.1, "Identify Controller data structure"): the address of a data block descriptor may be an offset into the capsule.
    pub takes_offsets: bool,
    /// CQT: how long the controller may take to end all commands once it has noticed that its host is gone; nothing if not reported.
    pub quiesce: Duration,
}

impl FabricsFacts {
    /// From the page of CNS 01h.
    ///
    /// # Errors
    /// Fewer than 4,096 bytes; a capsule that holds no command.
    pub fn decode(page: &[u8]) -> Result<Self, WireError> {
        whole("Identify Controller", page, crate::wire::IDENTIFY_BYTES)?;
        let capsule = u64::from(le32(page, 1792)) * 16;
        let data = capsule.checked_sub(SQE_BYTES as u64).and_then(|data| u32::try_from(data).ok());
        let rule = "a capsule holds a command of 64 bytes, and less than 4 GiB";
        let io_data_bytes = data.ok_or(WireError::Field { field: "IOCCSZ", got: capsule, rule })?;
        let quiesce = Duration::from_millis(le16(page, 386).into());
        let takes_offsets = le32(page, 536) >> 20 & 1 != 0;
        Ok(Self { io_data_bytes, data_offset_16: le16(page, 1800), takes_offsets, quiesce })
    }

    /// Bytes of data that a host sends in a capsule of an I/O queue at most. None where they would not begin right behind the command; nor over RDMA
    /// to a controller that does not say that it takes offsets, which Linux's host asks for there (`drivers/nvme/host/rdma.c`,
    /// `nvme_rdma_setup_ctrl` and `nvme_rdma_map_data`) and not over TCP.
    pub fn data_bytes(&self, transport: TransportType) -> u32 {
        let takes = self.takes_offsets || transport != TransportType::Rdma;
        if takes && self.data_offset_16 == 0 { self.io_data_bytes } else { 0 }
    }
}

/// A fabrics command of `kind` without its own fields.
fn fabrics(kind: u8, fill: impl FnOnce(&mut [u8; SQE_BYTES])) -> Command {
    let mut raw = [0; SQE_BYTES];
    raw[0] = OPCODE;
    raw[4] = kind;
    fill(&mut raw);
    Command::new(raw)
}

fn security(kind: u8, bytes: u32) -> Command {
    fabrics(kind, |raw| {
        let (secp, spsp) = SECURITY;
        raw[41..43].copy_from_slice(&spsp.to_le_bytes());
        raw[43] = secp;
        raw[44..48].copy_from_slice(&bytes.to_le_bytes());
    })
}

impl Command {
    /// Connect. Its data, [`CONNECT_DATA_BYTES`], lies in the capsule. SQHD is asked to mean nothing.
    pub fn connect(queue: QueueRequest) -> Self {
        fabrics(kind::CONNECT, |raw| {
            raw[42..44].copy_from_slice(&queue.qid.to_le_bytes());
            raw[44..46].copy_from_slice(&queue.entries.saturating_sub(1).to_le_bytes());
            raw[46] = NO_FLOW_CONTROL;
            raw[48..52].copy_from_slice(&queue.keep_alive_ms.to_le_bytes());
        })
    }

    /// Property Get of a register; the value comes in the completion's first eight bytes.
    pub fn property_get(offset: u32, size: PropertySize) -> Self {
        fabrics(kind::PROPERTY_GET, |raw| {
            raw[40] = u8::from(size == PropertySize::Eight);
            raw[44..48].copy_from_slice(&offset.to_le_bytes());
        })
    }

    /// Property Set of a register of four bytes.
    pub fn property_set(offset: u32, value: u32) -> Self {
        fabrics(kind::PROPERTY_SET, |raw| {
            raw[44..48].copy_from_slice(&offset.to_le_bytes());
            raw[48..52].copy_from_slice(&value.to_le_bytes());
        })
    }

    /// Authentication Send of so many bytes.
    pub fn authentication_send(bytes: u32) -> Self {
        security(kind::AUTHENTICATION_SEND, bytes)
    }

    /// Authentication Receive into so many bytes.
    pub fn authentication_receive(bytes: u32) -> Self {
        security(kind::AUTHENTICATION_RECEIVE, bytes)
    }

    /// Disconnect of the I/O queue that it is sent on.
    pub fn disconnect() -> Self {
        fabrics(kind::DISCONNECT, |_| {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Nqn {
        Nqn::new(text).unwrap()
    }

    #[test]
    fn names_follow_the_rules() {
        assert_eq!(name("nqn.2014-08.org.nvmexpress.discovery"), Nqn::discovery());
        let long = format!("nqn.{}", "x".repeat(NQN_BYTES_MAX - 4));
        assert!(Nqn::new(&long).is_some() && Nqn::new(&format!("{long}x")).is_none());
        for wrong in ["", "nqn.", "iqn.2001-04.com.example", "nqn.a b", "nqn.a\n"] {
            assert_eq!(Nqn::new(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn connect_is_as_the_specification_lays_it_out() {
        let request = QueueRequest { qid: 3, entries: 128, keep_alive_ms: 5000 };
        let command = Command::connect(request).with_cid(0x1234);
        let raw = command.bytes();
        // OPC, CID, FCTYPE; RECFMT, QID, SQSIZE (from zero), CATTR, KATO.
        assert_eq!((raw[0], &raw[2..5]), (0x7F, &[0x34, 0x12, 1][..]));
        assert_eq!(raw[40..52], [0, 0, 3, 0, 127, 0, 4, 0, 0x88, 0x13, 0, 0]);
        let told = FabricsCommand::Connect { queue: request, no_flow_control: true, format: 0 };
        assert_eq!(FabricsCommand::decode(&command), Some(told));
        let data = ConnectData {
            host_id: [7; 16],
            controller: ANY_CONTROLLER,
            subsystem: name("nqn.2026-11.io.example:one"),
            host: name("nqn.2026-11.io.example:host"),
        };
        let wire = data.encode();
        assert_eq!((&wire[..16], &wire[16..18], &wire[256..264]), (&[7; 16][..], &[0xFF, 0xFF][..], &b"nqn.2026"[..]));
        assert_eq!(ConnectData::decode(&wire), Ok(data));
        assert!(ConnectData::decode(&wire[..1023]).is_err());
        let mut endless = wire;
        endless[256..512].fill(b'x');
        assert!(ConnectData::decode(&endless).is_err());
    }

    #[test]
    fn facts_of_fabrics_are_where_the_specification_has_them() {
        let mut page = [0; 4096];
        page[386..388].copy_from_slice(&500u16.to_le_bytes());
        page[1792..1796].copy_from_slice(&1028u32.to_le_bytes());
        page[1800] = 2;
        let (io_data_bytes, quiesce) = (16384, Duration::from_millis(500));
        let facts = FabricsFacts { io_data_bytes, data_offset_16: 2, takes_offsets: false, quiesce };
        assert_eq!(FabricsFacts::decode(&page), Ok(facts));
        let sends = |facts: FabricsFacts| [TransportType::Tcp, TransportType::Rdma].map(|over| facts.data_bytes(over));
        assert_eq!(sends(facts), [0, 0]);
        page[1800] = 0;
        assert_eq!(FabricsFacts::decode(&page).map(sends), Ok([16384, 0]));
        page[538] = 1 << 4;
        assert_eq!(FabricsFacts::decode(&page).map(sends), Ok([16384, 16384]));
        page[1792..1796].copy_from_slice(&3u32.to_le_bytes());
        assert!(FabricsFacts::decode(&page).is_err() && FabricsFacts::decode(&page[..4095]).is_err());
    }

    #[test]
    fn properties_and_disconnect_come_back_as_they_were_sent() {
        let get = Command::property_get(0, PropertySize::Eight);
        assert_eq!(
            FabricsCommand::decode(&get),
            Some(FabricsCommand::PropertyGet { offset: 0, size: PropertySize::Eight })
        );
        let set = Command::property_set(0x14, 0x46_0001);
        let told = FabricsCommand::PropertySet { offset: 0x14, size: PropertySize::Four, value: 0x46_0001 };
        assert_eq!(FabricsCommand::decode(&set), Some(told));
        assert_eq!(FabricsCommand::decode(&Command::disconnect()), Some(FabricsCommand::Disconnect));
        assert_eq!(FabricsCommand::decode(&Command::keep_alive()), None);
    }

    #[test]
    fn authentication_is_demanded_and_spoken_of_as_the_specification_lays_it_out() {
        let send = Command::authentication_send(0x0123);
        assert_eq!((send.bytes()[4], &send.bytes()[40..48]), (5, &[0, 1, 1, 0xE9, 0x23, 1, 0, 0][..]));
        let of = |bytes| Security { protocol: SECURITY, bytes };
        assert_eq!(FabricsCommand::decode(&send), Some(FabricsCommand::AuthenticationSend(of(0x0123))));
        let receive = Command::authentication_receive(4096);
        assert_eq!(FabricsCommand::decode(&receive), Some(FabricsCommand::AuthenticationReceive(of(4096))));
        for (dw0, demand) in [(0x1_0003, Demand::None), (0x2_0003, Demand::Authentication)] {
            assert_eq!(Demand::decode(dw0), demand);
        }
        assert_eq!([0x4_0003, 0x6_0003].map(Demand::decode), [Demand::SecureChannel; 2]);
        for demand in [Demand::None, Demand::Authentication, Demand::SecureChannel] {
            assert_eq!(Demand::decode(demand.bits()), demand);
        }
    }
}
