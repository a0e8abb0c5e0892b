//! NVMe/TCP: what goes over the connection, and the two ends of a queue. No sockets: bytes in, bytes out.
//!
//! ```text
//!   one queue = one connection
//!
//!   host                                                    controller
//!   ICReq ────────────────────────────────────────────────► ICResp          versions, digests, limits
//!   CapsuleCmd (Connect, its data in the capsule) ────────► CapsuleResp
//!   CapsuleCmd (Read) ────────────────────────────────────► C2HData …       the last one with SUCCESS, or a CapsuleResp
//!   CapsuleCmd (Write, small data in the capsule) ────────► CapsuleResp
//!   CapsuleCmd (Write) ──► R2T ──► H2CData … ─────────────► CapsuleResp     as much as was asked for
//! ```
//!
//! [`pdu`] has the units, [`host`] the host's end, [`ledger`] and [`works`] what becomes of I/Os, [`outgoing`] what of them was written,
//! [`association`] when what may be sent. Source: NVM Express TCP Transport Specification 1.x; what peers do beside it
//! is named where it matters.

pub mod association;
pub mod host;
pub mod ledger;
pub mod outgoing;
pub mod pdu;
pub mod works;
