//! Private data of the connection manager (RDMA Transport, "Fabric Dependent Settings": RDMA_CM request, accept, reject).

use core::fmt;

use crate::wire::WireError;

/// Bytes of a request and of an acceptance.
pub const PRIVATE_BYTES: usize = 32;
/// Bytes of a refusal.
pub const REJECT_BYTES: usize = 4;

fn word(raw: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([raw.get(at).copied().unwrap_or(0), raw.get(at + 1).copied().unwrap_or(0)])
}

/// A wish for a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// QID: 0 is the admin queue.
    pub qid: u16,
    /// HRQSIZE: entries of the host's receive queue.
    pub receive_entries: u16,
    /// HSQSIZE: entries of the host's send queue. From zero on the wire, which HRQSIZE is not.
    pub send_entries: u16,
    /// CNTLID of an I/O queue's controller; 0 for the admin queue.
    pub controller: u16,
}

impl Request {
    /// As bytes.
    pub fn encode(&self) -> [u8; PRIVATE_BYTES] {
        let mut out = [0; PRIVATE_BYTES];
        let words = [0, self.qid, self.receive_entries, self.send_entries.saturating_sub(1), self.controller];
        for (to, word) in out.chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// From bytes; a transport may have filled them up with zeroes.
    ///
    /// # Errors
    /// The reason that the host is to be told.
    pub fn decode(raw: &[u8]) -> Result<Self, Refused> {
        if raw.len() < PRIVATE_BYTES {
            return Err(Refused::LENGTH);
        }
        if word(raw, 0) != 0 {
            return Err(Refused::FORMAT);
        }
        let (receive_entries, send_z) = (word(raw, 4), word(raw, 6));
        if receive_entries == 0 {
            return Err(Refused::RECEIVE_SIZE);
        }
        // A size that does not fit into the type is the largest that does.
        let send_entries = send_z.saturating_add(1);
        Ok(Self { qid: word(raw, 2), receive_entries, send_entries, controller: word(raw, 8) })
    }
}

/// A queue was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// CRQSIZE: entries of the controller's receive queue; capsules under way at a time at most.
    pub receive_entries: u16,
}

impl Accept {
    /// As bytes.
    pub fn encode(&self) -> [u8; PRIVATE_BYTES] {
        let mut out = [0; PRIVATE_BYTES];
        out[2..4].copy_from_slice(&self.receive_entries.to_le_bytes());
        out
    }

    /// From bytes.
    ///
    /// # Errors
    /// Fewer than [`PRIVATE_BYTES`], another format, no entry.
    pub fn decode(raw: &[u8]) -> Result<Self, WireError> {
        crate::wire::whole("RDMA_CM accept", raw, PRIVATE_BYTES)?;
        let field = |field, got: u16, rule| WireError::Field { field, got: got.into(), rule };
        match (word(raw, 0), word(raw, 2)) {
            (0, 0) => Err(field("CRQSIZE", 0, "a queue has entries")),
            (0, receive_entries) => Ok(Self { receive_entries }),
            (other, _) => Err(field("RECFMT", other, "it is 0")),
        }
    }
}

/// Why a queue was refused (STS). Unknown numbers survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub u16);

impl Refused {
    /// The private data is too short.
    pub const LENGTH: Self = Self(1);
    /// RECFMT.
    pub const FORMAT: Self = Self(2);
    /// QID.
    pub const QUEUE: Self = Self(3);
    /// HSQSIZE.
    pub const SEND_SIZE: Self = Self(4);
    /// HRQSIZE.
    pub const RECEIVE_SIZE: Self = Self(5);
    /// No resources.
    pub const RESOURCES: Self = Self(6);
    /// IRD.
    pub const READS_IN: Self = Self(7);
    /// ORD.
    pub const READS_OUT: Self = Self(8);

    /// As bytes.
    pub fn encode(self) -> [u8; REJECT_BYTES] {
        let [low, high] = self.0.to_le_bytes();
        [0, 0, low, high]
    }

    /// From bytes; none, where the refusal came from the network and not from a controller, is 0.
    pub fn decode(raw: &[u8]) -> Self {
        Self(word(raw, 2))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::LENGTH => "the private data has the wrong length",
            Self::FORMAT => "the record format is not known",
            Self::QUEUE => "there is no such queue",
            Self::SEND_SIZE => "the size of the send queue is wrong (hsqsize)",
            Self::RECEIVE_SIZE => "the size of the receive queue is wrong (hrqsize)",
            Self::RESOURCES => "the target has no resources left",
            Self::READS_IN => "the number of incoming reads is wrong (ird)",
            Self::READS_OUT => "the number of outgoing reads is wrong (ord)",
            Self(0) => "no reason is given",
            Self(_) => "the reason is not known",
        };
        write!(f, "{text} (sts {})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_the_specification_lays_it_out() {
        let request = Request { qid: 3, receive_entries: 128, send_entries: 128, controller: 7 };
        let raw = request.encode();
        // RECFMT, QID, HRQSIZE, HSQSIZE from zero, CNTLID.
        assert_eq!(raw[..10], [0, 0, 3, 0, 128, 0, 127, 0, 7, 0]);
        assert_eq!(raw[10..], [0; 22]);
        assert_eq!(Request::decode(&raw), Ok(request));
        let mut longer = raw.to_vec();
        longer.resize(56, 0);
        assert_eq!(Request::decode(&longer), Ok(request));
        assert_eq!(Request::decode(&raw[..31]), Err(Refused::LENGTH));
        let but = |at: usize, byte| {
            let mut raw = raw;
            raw[at] = byte;
            Request::decode(&raw)
        };
        assert_eq!(but(0, 1), Err(Refused::FORMAT));
        assert_eq!(but(4, 0), Err(Refused::RECEIVE_SIZE));
        assert_eq!(Request::decode(&[&raw[..6], &[0xFF; 26]].concat()).unwrap().send_entries, u16::MAX);
    }

    #[test]
    fn answers_come_back_and_unknown_reasons_survive() {
        let accept = Accept { receive_entries: 33 };
        assert_eq!(Accept::decode(&accept.encode()), Ok(accept));
        assert!(Accept::decode(&[0; 32]).is_err() && Accept::decode(&[1; 32]).is_err());
        assert!(Accept::decode(&accept.encode()[..31]).is_err());
        for code in 0..20 {
            assert_eq!(Refused::decode(&Refused(code).encode()), Refused(code));
            assert!(Refused(code).to_string().ends_with(&format!("(sts {code})")));
        }
        assert_eq!(Refused::decode(&[]), Refused(0));
    }
}
