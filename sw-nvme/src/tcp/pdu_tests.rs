use super::*;
use crate::{status::Status, wire::completion::CompletionFields};

const BOTH: Digests = Digests { header: true, data: true };
const NONE: Digests = Digests { header: false, data: false };

fn common(head: &Head) -> [u8; COMMON_BYTES] {
    head.as_bytes()[..COMMON_BYTES].try_into().unwrap()
}

#[test]
fn a_read_capsule_is_laid_out_as_the_specification_says() {
    let head = Layout::default().command(&Command::keep_alive().with_cid(7), 0);
    assert_eq!(head.as_bytes()[..8], [4, 0, 72, 0, 72, 0, 0, 0]);
    assert_eq!((head.as_bytes().len(), command(head.as_bytes()).cid()), (72, 7));
    let header = Header::decode(&common(&head), NONE, u32::MAX).unwrap();
    assert_eq!((header.kind, header.head_bytes(), header.data_bytes), (Kind::CapsuleCmd, 72, 0));
}

#[test]
fn data_begins_where_the_receiver_wants_it_behind_the_digest() {
    // CPDA 31 is 128 bytes, the coarsest there is.
    for (alignment, digests, data_at) in [(0, NONE, 72), (0, BOTH, 76), (7, NONE, 96), (7, BOTH, 96), (31, BOTH, 128)] {
        let layout = Layout { digests, alignment };
        let head = layout.command(&Command::keep_alive(), 512);
        assert_eq!(head.as_bytes().len(), data_at, "{layout:?}");
        let header = Header::decode(&common(&head), digests, u32::MAX).unwrap();
        assert_eq!((header.head_bytes(), header.data_bytes, header.data_digest), (data_at, 512, digests.data));
        let whole = data_at as u64 + 512 + if digests.data { 4 } else { 0 };
        assert_eq!(layout.unit_bytes(Kind::CapsuleCmd, 512), whole);
        assert_eq!(u64::from(le32(head.as_bytes(), 4)), whole);
        assert!(!digests.header || header_digest_fits(head.as_bytes(), 72));
    }
}

#[test]
fn the_digest_is_that_of_the_specification() {
    // RFC 3720 B.4: 32 bytes of zeroes, of ones, and 0 to 31.
    assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
    let rising: Vec<u8> = (0..32).collect();
    assert_eq!(crc32c(&rising), 0x46DD_794E);
    let mut head = Layout { digests: BOTH, alignment: 0 }.command(&Command::keep_alive(), 0).as_bytes().to_vec();
    assert!(header_digest_fits(&head, 72) && !header_digest_fits(&head[..75], 72));
    head[20] ^= 1;
    assert!(!header_digest_fits(&head, 72));
}

#[test]
fn initialisation_comes_back_as_it_was_sent() {
    let asked = IcReq { format: 0, alignment: 0, digests: BOTH, r2t_max: 0 };
    let head = asked.encode();
    assert_eq!(head.as_bytes()[..16], [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]);
    assert_eq!(IcReq::decode(head.as_bytes()), asked);
    let answer = IcResp { format: 0, alignment: 3, digests: BOTH, h2c_bytes_max: 0x2_0000 };
    assert_eq!(IcResp::decode(answer.encode().as_bytes(), &asked), Ok(answer));
    for (wrong, at) in [
        (IcResp { format: 1, ..answer }, 8),
        (IcResp { alignment: 32, ..answer }, 10),
        (IcResp { h2c_bytes_max: 4095, ..answer }, 12),
        (IcResp { h2c_bytes_max: 4098, ..answer }, 12),
    ] {
        assert_eq!(IcResp::decode(wrong.encode().as_bytes(), &asked).unwrap_err().information, at, "{wrong:?}");
    }
    let plain = IcReq { digests: NONE, ..asked };
    assert_eq!(IcResp::decode(answer.encode().as_bytes(), &plain).unwrap_err().information, 11);
}

#[test]
fn what_is_not_a_unit_is_refused_with_the_offset_of_the_field() {
    let good = [7u8, 4, 24, 24, 24 + 16, 0, 0, 0];
    assert!(Header::decode(&good, NONE, 4096).is_ok());
    let with = |at: usize, value: u8| {
        let mut raw = good;
        raw[at] = value;
        raw
    };
    for (raw, information) in [
        (with(0, 8), 0),
        (with(0, 10), 0),
        (with(0, 255), 0),
        // A header length of its own (a kernel wrote past a buffer for that).
        (with(2, 72), 2),
        (with(2, 255), 2),
        (with(4, 23), 4),
        // Data that begins inside the header, at the end, behind it.
        (with(3, 23), 3),
        (with(3, 40), 3),
        (with(3, 129), 3),
        // A digest that nobody agreed on.
        (with(1, 1), 1),
        (with(1, 2), 1),
        // R2T and responses have no data.
        (with(0, 9), 4),
        (with(0, 5), 4),
    ] {
        let breach = Header::decode(&raw, NONE, 4096).unwrap_err();
        assert_eq!((breach.status, breach.information), (FatalStatus::InvalidField, information), "{raw:?}: {breach}");
    }
    assert_eq!(Header::decode(&good, BOTH, 4096).unwrap_err().information, 1);
    assert_eq!(Header::decode(&good, NONE, 39).unwrap_err().information, 4);
    // A termination has no digests, and little data.
    assert!(Header::decode(&[3, 0, 24, 0, 152, 0, 0, 0], BOTH, 4096).is_ok());
    assert_eq!(Header::decode(&[3, 0, 24, 0, 153, 0, 0, 0], BOTH, 4096).unwrap_err().information, 4);
    // A data digest without data.
    assert_eq!(Header::decode(&[7, 2, 24, 0, 24, 0, 0, 0], NONE, 4096).unwrap_err().information, 1);
}

#[test]
fn data_wishes_responses_and_terminations_come_back_as_they_were_sent() {
    let layout = Layout { digests: BOTH, alignment: 0 };
    let data = Data { cid: 0x0403, at: 0x1_0000, bytes: 8192 };
    assert_eq!(Data::decode(layout.controller_data(data, flags::LAST).as_bytes()), (data, 0));
    assert_eq!(Data::decode(layout.host_data(data, 9, 0).as_bytes()), (data, 9));
    let wish = R2t { cid: 5, tag: 0xFFFF, at: 4096, bytes: 131_072 };
    assert_eq!(R2t::decode(layout.ready(wish).as_bytes()), wish);
    let fields = CompletionFields { dw0: 3, sq_head: 0, sq_id: 1, cid: 0x1234, phase: false, status: Status::INTERNAL };
    let told = Completion::build(fields);
    assert_eq!(completion(layout.response(&told).as_bytes()), told);
    let breach = Breach::field(12, "rule");
    let head = termination(Kind::C2hTerm, &breach);
    assert_eq!((terminated(head.as_bytes()), head.as_bytes().len()), ((1, 12), 24));
}

#[test]
fn data_begins_where_every_alignment_wants_it() {
    let data = Data { cid: 1, at: 0, bytes: 512 };
    for alignment in 0..32 {
        for bits in 0..4 {
            let layout = Layout { digests: Digests::from_bits(bits), alignment };
            for head in [layout.command(&Command::ZERO, 512), layout.host_data(data, 0, 0)] {
                let raw = head.as_bytes();
                let every = 4 * (usize::from(alignment) + 1);
                assert!(raw.len() == usize::from(raw[3]) && raw.len() % every == 0, "{layout:?}: {head:?}");
                let common = raw[..COMMON_BYTES].try_into().unwrap();
                assert_eq!(
                    Header::decode(common, layout.digests, 1 << 20).map(|it| it.data_bytes),
                    Ok(512),
                    "{layout:?}"
                );
            }
        }
    }
}

proptest::proptest! {
    /// Whatever eight bytes say, a header that is taken has parts that add up to its whole.
    #[test]
    fn parts_of_a_header_add_up(raw: [u8; 8], header: bool, data: bool) {
        let digests = Digests { header, data };
        if let Ok(decoded) = Header::decode(&raw, digests, 1 << 24) {
            let tail = if decoded.data_digest { DIGEST_BYTES as u64 } else { 0 };
            let whole = decoded.head_bytes() as u64 + u64::from(decoded.data_bytes) + tail;
            proptest::prop_assert_eq!(whole, u64::from(le32(&raw, 4)));
            proptest::prop_assert!(decoded.head_bytes() >= decoded.kind.header_bytes());
            proptest::prop_assert!(decoded.head_bytes() <= 152);
        }
    }
}
