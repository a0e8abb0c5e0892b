//! Calls as they are sent (RFC 5531 §9 "The RPC Message Protocol", RFC 1813).

use bytes::Bytes;
use nfs3_types::{
    nfs3::{self, NFS_PROGRAM, nfs_fh3, stable_how},
    rpc::{RPC_VERSION_2, auth_unix, call_body, msg_body, opaque_auth, rpc_msg},
    xdr_codec::{Pack, Void},
};

/// Who asks: AUTH_SYS (RFC 5531 §8.2 "Message Authentication"); nobody proves it.
#[derive(Clone, Debug)]
pub(super) struct Credential(opaque_auth<'static>);

impl Credential {
    pub(super) fn new(uid: u32, gid: u32, gids: &[u32]) -> Self {
        let gids = gids.iter().copied().take(16).collect();
        let auth = auth_unix { stamp: 0, machinename: b"straightway"[..].into(), uid, gid, gids };
        Self(opaque_auth::auth_unix(&auth))
    }

    pub(super) fn none() -> Self {
        Self(opaque_auth::default())
    }
}

/// A procedure of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Procedure {
    pub(super) program: u32,
    pub(super) version: u32,
    pub(super) number: u32,
}

impl From<NFS_PROGRAM> for Procedure {
    fn from(number: NFS_PROGRAM) -> Self {
        Self { program: nfs3::PROGRAM, version: nfs3::VERSION, number: number as u32 }
    }
}

/// Where the number of a call stands: behind the mark of the record.
const NUMBER: std::ops::Range<usize> = 4..8;

/// A call. Cloning it copies its head.
#[derive(Clone, Debug)]
pub(super) struct Message {
    head: Vec<u8>,
    payload: Bytes,
}

impl Message {
    /// A call with these arguments.
    pub(super) fn new(credential: &Credential, procedure: impl Into<Procedure>, args: &impl Pack) -> Self {
        let procedure = procedure.into();
        let call = call_body {
            rpcvers: RPC_VERSION_2,
            prog: procedure.program,
            vers: procedure.version,
            proc: procedure.number,
            cred: credential.0.borrow(),
            verf: opaque_auth::default(),
        };
        let call = rpc_msg { xid: 0, body: msg_body::CALL(call) };
        let mut head = vec![0; 4];
        head.reserve(call.packed_size() + args.packed_size());
        // Into memory all of it goes.
        drop(call.pack(&mut head).and_then(|_| args.pack(&mut head)));
        Self { head, payload: Bytes::new() }.marked()
    }

    /// A WRITE, whose bytes stay where they are.
    pub(super) fn write(
        credential: &Credential,
        (file, offset): (&nfs_fh3, u64),
        how: stable_how,
        bytes: Bytes,
    ) -> Self {
        let mut message = Self::new(credential, NFS_PROGRAM::NFSPROC3_WRITE, &Void);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let head = &mut message.head;
        let packed = file.pack(head).and_then(|_| offset.pack(head)).and_then(|_| len.pack(head));
        drop(packed.and_then(|_| how.pack(head)).and_then(|_| len.pack(head)));
        message.payload = bytes;
        message.marked()
    }

    /// Bytes behind the payload.
    fn padding(&self) -> &'static [u8] {
        &[0; 3][..self.payload.len().wrapping_neg() % 4]
    }

    /// With the mark of a record of one fragment.
    fn marked(mut self) -> Self {
        let len = self.head.len() - 4 + self.payload.len() + self.padding().len();
        let mark = u32::try_from(len).unwrap_or(u32::MAX) | 1 << 31;
        if let Some(place) = self.head.first_chunk_mut() {
            *place = mark.to_be_bytes();
        }
        self
    }

    pub(super) fn number(&mut self, xid: u32) {
        if let Some(place) = self.head.get_mut(NUMBER) {
            place.copy_from_slice(&xid.to_be_bytes());
        }
    }

    pub(super) fn pieces(&self) -> [&[u8]; 3] {
        [&self.head, &self.payload, self.padding()]
    }
}

#[cfg(test)]
mod tests {
    use nfs3_types::{
        nfs3::WRITE3args,
        xdr_codec::{Opaque, Unpack},
    };

    use super::*;

    #[test]
    fn a_write_is_what_the_protocol_has_and_its_mark_counts_it() {
        let credential = Credential::new(1, 2, &[3; 40]);
        let file = nfs_fh3 { data: Opaque::owned(vec![7; 33]) };
        for len in 0..6 {
            let bytes = Bytes::from(vec![5; len]);
            let mut message = Message::write(&credential, (&file, 9), stable_how::UNSTABLE, bytes.clone());
            message.number(0x0102_0304);
            let whole = message.pieces().concat();
            assert_eq!(whole[..4], (u32::try_from(whole.len() - 4).unwrap() | 1 << 31).to_be_bytes());
            let mut rest = &whole[4..];
            let (call, _) = rpc_msg::unpack(&mut rest).unwrap();
            let msg_body::CALL(body) = call.body else { panic!("{call:?}") };
            assert_eq!((call.xid, body.prog, body.vers, body.proc), (0x0102_0304, 100_003, 3, 7));
            let (auth, _) = auth_unix::unpack(&mut &body.cred.body[..]).unwrap();
            assert_eq!((auth.uid, auth.gid, auth.gids.len()), (1, 2, 16));
            let (args, _) = WRITE3args::unpack(&mut rest).unwrap();
            assert_eq!(
                (args.offset, args.count, &args.data[..], rest.len()),
                (9, u32::try_from(len).unwrap(), &bytes[..], 0)
            );
        }
    }
}
