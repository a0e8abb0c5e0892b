//! What other people's hosts said is answered as it was (`sw-nvme/testdata/wire`).

use std::path::Path;

use sw_nvme::{
    tcp::pdu::{self, Header, Kind},
    wire::admin::opcode,
};
use sw_testkit::wire::{From, Unit, recording};

use super::*;

/// Data of an answer that changes with the version of this program, and with the port: pages of the admin queue.
fn is_page(of: &Command) -> bool {
    [opcode::IDENTIFY, opcode::GET_LOG_PAGE].contains(&of.opcode()) && of.data_pointer() != DataPointer::None
}

/// Says again what the host of a connection said, and holds the answers against those that came.
fn replay(stream: &mut TcpStream, units: &[&Unit], digests: Digests, qid: u16) {
    let mut page = false;
    for Unit { from, bytes, .. } in units {
        let header = Header::decode(bytes[..8].try_into().unwrap(), digests, u32::MAX);
        // The first two say which digests there will be.
        let head = header.map_or(bytes.len(), |header| header.head_bytes());
        if *from == From::Host {
            page = qid == 0 && bytes[0] == Kind::CapsuleCmd as u8 && is_page(&pdu::command(bytes));
            stream.write_all(bytes).unwrap();
            continue;
        }
        let mut came = vec![0; bytes.len()];
        stream.read_exact(&mut came).unwrap();
        let compared = if page && bytes[0] == Kind::C2hData as u8 { head } else { bytes.len() };
        assert_eq!(came[..compared], bytes[..compared]);
    }
}

#[test]
fn what_other_hosts_said_is_answered_to_the_byte_as_it_was() {
    for (name, digests, queues) in [("libnvmf-digests.txt", BOTH, &[0, 1][..]), ("pynvmeof.txt", NONE, &[0, 1, 0])] {
        // As `straightway target` had it.
        let (target, _) = started(|config| config.namespaces = vec![Backing::Memory(8 << 20)]);
        let units = recording(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../sw-nvme/testdata/wire").join(name));
        assert!(units.len() >= 36);
        // The association lasts as long as its first connection.
        let mut open = Vec::new();
        for (connection, qid) in (0..).zip(queues) {
            let mut stream = TcpStream::connect(target.address()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let of: Vec<_> = units.iter().filter(|unit| unit.connection == connection).collect();
            replay(&mut stream, &of, digests, *qid);
            open.push(stream);
        }
    }
}
