//! Units over a blocking socket: whole heads in, whole units out, deadlines in between.
//!
//! Units that go out wait for others while more of the host's are here: what waits is sent before anything is waited for.

use std::{
    io::{self, IoSliceMut, Read},
    time::{Duration, Instant},
};

use sw_engine::checksum::{Algorithm, Running};
use sw_nvme::{
    tcp::pdu::{
        self, Breach, COMMON_BYTES, DIGEST_BYTES, Data, Digests, FatalStatus, HEAD_BYTES_MAX, Head, Header, Kind,
        Layout, R2t,
    },
    wire::Completion,
};

use super::secure::Wire;

/// How long the host may take to read what is sent to it, before the connection is given up.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long, and for how many bytes, what still comes is read after a termination, so that the host sees it before a reset.
pub(super) const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 << 20;
/// Bytes that are read ahead at a time.
const READ_BYTES: usize = 64 << 10;
/// As long as long data is awaited, only so many: a few heads. Data goes to its place, and is not copied there.
const HEADS_BYTES: usize = 512;
/// Data of so many bytes is long.
pub(super) const LONG_BYTES: usize = 16 << 10;

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The host closed it, or the socket failed.
    Closed,
    /// Nothing came until the deadline.
    Silent,
    /// The host broke a rule of the transport.
    Breach(Breach),
    /// A fault on purpose.
    Fault,
}

impl From<Breach> for End {
    fn from(breach: Breach) -> Self {
        Self::Breach(breach)
    }
}

/// A field of a header breaks a rule.
pub(super) const fn field(at: u32, rule: &'static str) -> End {
    End::Breach(Breach { status: FatalStatus::InvalidField, information: at, rule })
}

/// Something that may not come now, or not there.
pub(super) const fn breach(status: FatalStatus, rule: &'static str) -> End {
    End::Breach(Breach { status, information: 0, rule })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the target owns its threads, and their deadlines are in time of the machine"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// A length that is below 32 bits by the limits of [`TargetConfig`](super::TargetConfig).
pub(super) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// How much of what comes may be read before it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// As much as there is room for.
    All,
    /// A few heads: long data comes.
    Heads,
}

/// What comes from the host.
pub(super) struct Input<'s> {
    wire: &'s Wire<'s>,
    /// Bytes that came before they were asked for: `from` to `to` of them.
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
    pub(super) ahead: Ahead,
    /// When a read ends without bytes; the socket knows of it if `armed`.
    deadline: Option<Instant>,
    armed: bool,
}

impl<'s> Input<'s> {
    pub(super) fn new(wire: &'s Wire<'s>) -> Self {
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Self { wire, buffer, from: 0, to: 0, ahead: Ahead::All, deadline: None, armed: false }
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// Reads into `into`, and what comes behind that into the buffer, which is empty. How many bytes of `into`; 0 is the end.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let ahead = if into.len() >= LONG_BYTES { Ahead::Heads } else { self.ahead };
        let most = if ahead == Ahead::Heads { HEADS_BYTES } else { READ_BYTES };
        let buffer = self.buffer.get_mut(..most).unwrap_or_default();
        let wanted = into.len();
        let mut wire = self.wire;
        let got = wire.read_vectored(&mut [IoSliceMut::new(into), IoSliceMut::new(buffer)])?;
        (self.from, self.to) = (0, got.saturating_sub(wanted));
        Ok(got.min(wanted))
    }

    /// Until when bytes may take to come; `None`: for ever.
    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Gives the socket what is left until `until`. `Err`: nothing is left.
    fn arm(&mut self, until: Option<Instant>) -> Result<(), End> {
        let left = until.map(|until| until.saturating_duration_since(now()));
        if left == Some(Duration::ZERO) {
            return Err(End::Silent);
        }
        if left.is_some() || self.armed {
            self.wire.set_deadline(until, left).map_err(|_| End::Closed)?;
            self.armed = left.is_some();
        }
        Ok(())
    }

    /// Waits for the first byte of the next unit, until `until` at most. Whether it is there.
    pub(super) fn wait(&mut self, until: Option<Instant>) -> Result<bool, End> {
        loop {
            let until = match (until, self.deadline) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            if !self.is_empty() {
                return Ok(true);
            }
            match self.arm(until) {
                Err(End::Silent) if self.deadline.is_none_or(|deadline| deadline > now()) => return Ok(false),
                armed => armed?,
            }
            match self.read(&mut []) {
                Ok(_) if self.is_empty() => return Err(End::Closed),
                Ok(_) => return Ok(true),
                Err(error) if is_wait(&error) => {}
                Err(_) => return Err(End::Closed),
            }
        }
    }

    /// Fills all of `into`.
    pub(super) fn fill(&mut self, into: &mut [u8]) -> Result<(), End> {
        let mut rest = into;
        while !rest.is_empty() {
            if !self.is_empty() {
                let bytes = rest.len().min(self.to - self.from);
                let (into, behind) = rest.split_at_mut(bytes);
                into.copy_from_slice(self.buffer.get(self.from..self.from + bytes).unwrap_or_default());
                (self.from, rest) = (self.from + bytes, behind);
                continue;
            }
            self.arm(self.deadline)?;
            match self.read(rest) {
                Ok(0) => return Err(End::Closed),
                Ok(bytes) => rest = rest.get_mut(bytes..).unwrap_or_default(),
                Err(error) if is_wait(&error) => {}
                Err(_) => return Err(End::Closed),
            }
        }
        Ok(())
    }

    /// The head of the next unit: header, digest, padding, all checked.
    pub(super) fn head(&mut self, digests: Digests, plen_max: u32) -> Result<(Header, [u8; HEAD_BYTES_MAX]), End> {
        let mut raw = [0; HEAD_BYTES_MAX];
        let mut common = [0; COMMON_BYTES];
        self.fill(&mut common)?;
        let header = Header::decode(&common, digests, plen_max)?;
        raw[..COMMON_BYTES].copy_from_slice(&common);
        self.fill(raw.get_mut(COMMON_BYTES..header.head_bytes()).unwrap_or_default())?;
        let digest = digests.header && header.kind.has_header_digest();
        if digest && !pdu::header_digest_fits(&raw, header.kind.header_bytes()) {
            return Err(breach(FatalStatus::HeaderDigest, "a header does not fit its digest"));
        }
        Ok((header, raw))
    }

    /// Data of `into.len()` bytes, and its digest if `header` says that there is one. Whether it fits.
    pub(super) fn data(&mut self, header: &Header, into: &mut [u8]) -> Result<bool, End> {
        self.fill(into)?;
        if !header.data_digest {
            return Ok(true);
        }
        let mut digest = [0; DIGEST_BYTES];
        self.fill(&mut digest)?;
        Ok(u32::from_le_bytes(digest) == pdu::crc32c(into))
    }
}

/// Whether a read ended because it took too long, or was interrupted.
fn is_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// A digest that is made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Twist {
    /// None.
    No,
    /// That of the header.
    Header,
    /// That of the data.
    Data,
}

/// What goes to the host.
pub(super) struct Output<'s> {
    wire: &'s Wire<'s>,
    pub(super) layout: Layout,
    /// Nothing is sent any more.
    mute: bool,
    /// Of the next unit.
    pub(super) twist: Twist,
    /// The connection ends behind the next unit.
    pub(super) last_unit: bool,
}

impl<'s> Output<'s> {
    pub(super) fn new(wire: &'s Wire<'s>) -> Self {
        Self { wire, layout: Layout::default(), mute: false, twist: Twist::No, last_unit: false }
    }

    /// Sends what waits for more.
    pub(super) fn flush(&mut self) -> Result<(), End> {
        self.wire.flush().map_err(|_| End::Closed)
    }

    /// Closes this half; what would be sent is dropped.
    pub(super) fn half_close(&mut self) {
        self.wire.half_close();
        self.mute = true;
    }

    pub(super) fn response(&mut self, completion: &Completion) -> Result<(), End> {
        self.unit(&self.layout.response(completion))
    }

    pub(super) fn ready(&mut self, wish: R2t) -> Result<(), End> {
        self.unit(&self.layout.ready(wish))
    }

    /// A unit without data.
    pub(super) fn unit(&mut self, head: &Head) -> Result<(), End> {
        self.unit_with(head, core::iter::empty())
    }

    /// A unit of data, of which there are one or more parts.
    pub(super) fn data<'d>(
        &mut self,
        of: Data,
        flags: u8,
        data: impl Iterator<Item = &'d [u8]> + Clone,
    ) -> Result<(), End> {
        self.unit_with(&self.layout.controller_data(of, flags), data)
    }

    /// A head, data, and the data's digest.
    fn unit_with<'d>(&mut self, head: &Head, data: impl Iterator<Item = &'d [u8]> + Clone) -> Result<(), End> {
        let mut raw = [0; HEAD_BYTES_MAX];
        let len = head.as_bytes().len().min(raw.len());
        raw[..len].copy_from_slice(head.as_bytes());
        let digests = self.layout.digests;
        let (mut sum, mut has_data) = (Running::new(Algorithm::Crc32c), false);
        for part in data.clone() {
            has_data = true;
            if digests.data {
                sum.update(part);
            }
        }
        let mut digest = pdu::digest(&sum);
        match self.twist {
            Twist::Header if digests.header => raw[24] ^= 1,
            Twist::Data if digests.data && has_data => digest[0] ^= 1,
            _ => {}
        }
        let twisted = self.twist != Twist::Data || has_data;
        self.twist = if twisted { Twist::No } else { self.twist };
        let tail = if digests.data && has_data { DIGEST_BYTES } else { 0 };
        if !self.mute {
            self.wire.put(&raw[..len], data, &digest[..tail]).map_err(|_| End::Closed)?;
        }
        if self.last_unit { Err(End::Fault) } else { Ok(()) }
    }
}

/// Tells the host why the connection ends, and reads on for a moment: a socket closed with bytes unread sends a reset, which may
/// take the termination with it.
pub(super) fn terminate(input: &mut Input<'_>, output: &mut Output<'_>, breach: &Breach) {
    output.last_unit = false;
    // A host that is gone need not be told.
    output.unit(&pdu::termination(Kind::C2hTerm, breach)).ok();
    output.half_close();
    input.set_deadline(Some(now() + LINGER));
    let (mut left, mut drop) = (LINGER_BYTES_MAX, [0; 4096]);
    while left > 0 && input.wait(None).is_ok() {
        let bytes = (input.to - input.from).clamp(1, drop.len());
        if input.fill(&mut drop[..bytes]).is_err() {
            break;
        }
        left = left.saturating_sub(bytes);
    }
}
