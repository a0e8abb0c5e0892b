//! What goes wrong on purpose, command by command.

use std::time::Duration;

use sw_nvme::status::Status;

/// A command as it came, for whoever decides about its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The connection, counted from 0 since the start of the target.
    pub connection: u64,
    /// The command on its connection, counted from 0, which is its Connect.
    pub number: u64,
    /// QID: 0 is the admin queue. Before Connect succeeded, the one that it asks for.
    pub qid: u16,
    /// OPC; 7Fh for fabrics commands.
    pub opcode: u8,
    /// FCTYPE of a fabrics command, 0 for another.
    pub fabrics_kind: u8,
    /// CID.
    pub cid: u16,
    /// NSID, where the command has one.
    pub nsid: u32,
    /// SLBA of commands that have one; dwords 10 and 11 of others.
    pub slba: u64,
}

/// What goes wrong. Where a command has nothing that could (no data, no digests), it is carried out as if there were no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is carried out and answered so much later; other commands pass it.
    Delay(Duration),
    /// The connection is closed; the command is not carried out.
    DropBefore,
    /// It is carried out and answered, then the connection is closed.
    DropAfter,
    /// It is carried out, its first unit is sent (data, a wish for data, or the answer), then the connection is closed.
    DropAfterUnit,
    /// Nothing ever comes. It is not carried out.
    NeverAnswer,
    /// It is not carried out and ends with this status.
    Status(Status),
    /// Success, with so many bytes less than were asked for: of a read, or of a write that goes by R2T.
    ShortData(u32),
    /// The header digest of the first unit is wrong.
    WrongHeaderDigest,
    /// The data digest of the first data is wrong.
    WrongDataDigest,
    /// The answer, data and wishes included, names an identifier that is not the command's.
    UnknownCid,
    /// It is carried out and answered, and its completion comes once more.
    AnswerTwice,
    /// A wish for data past the end of the write.
    R2tOutOfRange,
    /// The data of a read begins four bytes too late.
    WrongOffset,
    /// The target closes its half of the connection and goes on to read from it; nothing is sent any more.
    HalfClose,
}

/// What goes wrong with the beginning of a connection: with ICReq and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitializeFault {
    /// The connection is closed once ICReq came.
    Drop,
    /// Nothing ever comes.
    NeverAnswer,
    /// ICResp names a format that there is not (PFV 1).
    WrongFormat,
    /// ICResp uses the digests that the host did not ask for.
    UnaskedDigests,
    /// MAXH2CDATA is below what is allowed.
    SmallData,
}

/// Decides what goes wrong. Called by the threads of all connections, once a command, before anything else is done with it.
///
/// Closures are `Faults`: `|seen: &Seen| (seen.number == 3).then_some(Fault::DropBefore)`.
pub trait Faults: Send + Sync {
    /// The fault of a command; `None` for none.
    fn command(&self, seen: &Seen) -> Option<Fault>;

    /// The fault of a connection's beginning; `None`, which closures give, for none. Connections count from 0.
    fn initialize(&self, connection: u64) -> Option<InitializeFault> {
        let _ = connection;
        None
    }
}

impl<F: Fn(&Seen) -> Option<Fault> + Send + Sync> Faults for F {
    fn command(&self, seen: &Seen) -> Option<Fault> {
        self(seen)
    }
}
