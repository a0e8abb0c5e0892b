//! Pickles by hand, opcode by opcode; those of real software are in `tests/torch.rs`.

use super::*;

fn nobody(_: &str, _: &str) -> bool {
    false
}

fn code(bytes: &[u8]) -> &'static str {
    Pickle::read(bytes, nobody).unwrap_err().code()
}

#[test]
fn whole_numbers_of_every_length() {
    for (bytes, node) in [
        (&b"K\xff."[..], Node::Int(255)),
        (b"M\xff\xff.", Node::Int(65_535)),
        (b"J\xff\xff\xff\xff.", Node::Int(-1)),
        (b"\x8a\x00.", Node::Int(0)),
        (b"\x8a\x01\xff.", Node::Int(-1)),
        (b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f.", Node::Int(i64::MAX)),
        (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00.", Node::BigInt(9)),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\xff.", Node::Int(-1)),
        (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\xff.", Node::BigInt(9)),
    ] {
        let pickle = Pickle::read(bytes, nobody).unwrap();
        assert_eq!(pickle.node(pickle.root()), &node, "{bytes:?}");
    }
}

#[test]
fn hostile_pickles_are_refused_by_name() {
    let system = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.";
    let error = Pickle::read(system, nobody).unwrap_err();
    assert!(matches!(&error, PickleError::Global { name, at: 2 } if name == "os.system"), "{error}");
    assert_eq!(code(b"\x80\x04\x8c\x02os\x8c\x06system\x93."), "pickle-global");
    // Protocol 0, INST, EXT1, PERSID, NEXT_BUFFER.
    for opcode in [b'I', b'i', b'o', 0x82, b'P', 0x97, b'g', b'S', b'V', b'F', b'L', 0xff] {
        assert_eq!(code(&[opcode, b'.']), "pickle-opcode", "{opcode}");
    }
}

#[test]
fn counts_and_lengths_allocate_nothing() {
    assert_eq!(code(b"X\xff\xff\xff\xffabc."), "pickle-cut");
    assert_eq!(code(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc."), "pickle-cut");
    assert_eq!(code(b"\x8b\xff\xff\xff\x7f."), "pickle-cut");
    assert_eq!(code(b"j\xff\xff\xff\xff."), "pickle-malformed");
    // A memo entry of any number is one entry.
    assert!(Pickle::read(b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff.", nobody).is_ok());
}

#[test]
fn a_stack_is_never_read_below_its_bottom_or_a_mark() {
    for bytes in [
        &b"."[..],
        b"0.",
        b"N(0.",
        b"a.",
        b"]a.",
        b"N]a.",
        b"(e.",
        b"t.",
        b"N(a.",
        b"}(Nu.",
        b"Q.",
        b"NR.",
        b"NNR.",
        b"Nb.",
    ] {
        let outcome = Pickle::read(bytes, nobody).map(drop).map_err(|error| error.code());
        assert!(matches!(outcome, Ok(()) | Err("pickle-malformed" | "pickle-cut")), "{bytes:?} {outcome:?}");
    }
    assert_eq!(code(b"(."), "pickle-malformed");
}

#[test]
fn every_cut_is_told() {
    let whole = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00b]q\x01(G?\xf0\x00\x00\x00\x00\x00\x00Neu.";
    assert!(Pickle::read(whole, nobody).is_ok());
    for end in 0..whole.len() {
        assert_eq!(code(&whole[..end]), "pickle-cut", "{end}");
    }
}

#[test]
fn a_memo_bomb_is_small_and_a_walk_of_it_ends() {
    // Each list holds the one before twice: 2^60 leaves in a few hundred bytes.
    let mut bomb = b"]q\x00".to_vec();
    for level in 1..60_u8 {
        bomb.extend([b']', b'q', level, b'(', b'h', level - 1, b'h', level - 1, b'e']);
    }
    bomb.push(b'.');
    let pickle = Pickle::read(&bomb, nobody).unwrap();
    assert!(pickle.nodes.len() < 100);
    // A list that holds itself.
    let circle = Pickle::read(b"]q\x00h\x00a.", nobody).unwrap();
    let mut walk = Walk::default();
    let (mut at, mut depth) = (circle.root(), 0);
    while walk.step(depth).is_ok() {
        at = circle.as_items(at).unwrap()[0];
        depth += 1;
    }
    assert_eq!(depth, DEPTH_MAX + 1);
}

#[test]
fn a_million_nested_lists_do_not_recurse() {
    let mut deep = vec![b']'; 1_000_000];
    deep.extend(vec![b'a'; 999_999]);
    deep.push(b'.');
    drop(Pickle::read(&deep, nobody).unwrap());
}

fn anybody(_: &str, _: &str) -> bool {
    true
}

/// `BINUNICODE` of `len` letters, as memo entry 0.
fn long_text(len: u32) -> Vec<u8> {
    let mut bytes = vec![b'X'];
    bytes.extend(len.to_le_bytes());
    bytes.extend(vec![b'a'; len as usize]);
    bytes.extend(b"q\x00");
    bytes
}

#[test]
fn a_long_text_that_many_values_share_is_counted_each_time() {
    let many = |each: &[u8], end: &[u8]| {
        let bytes = [&b"("[..], &long_text(1 << 20), &each.repeat(2000), end, b"."].concat();
        crate::torch::State::of(&Pickle::read(&bytes, anybody).unwrap()).map(drop).map_err(|error| error.code())
    };
    // As leaves, and as one key that is a tuple.
    assert_eq!(many(b"h\x00", b"t"), Err("pickle-too-many"));
    let key = [&b"}("[..], &long_text(1 << 20), &b"h\x00".repeat(2000), b"tK\x01s."].concat();
    let read = crate::torch::State::of(&Pickle::read(&key, anybody).unwrap());
    assert_eq!(read.map(drop).map_err(|error| error.code()), Err("pickle-too-many"));
}

#[test]
fn a_long_shape_that_many_tensors_share_is_no_shape() {
    let mut bytes = b"(".to_vec();
    bytes.extend(b"K\x01".repeat(1000));
    bytes.extend(b"tq\x00.");
    let pickle = Pickle::read(&bytes, nobody).unwrap();
    assert_eq!(pickle.as_dims(pickle.root()), None);
}
