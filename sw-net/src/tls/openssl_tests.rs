//! Two sessions against each other, over a pair of sockets.

use std::{
    io::{Read as _, Write as _},
    os::fd::AsRawFd,
    os::unix::net::UnixStream,
};

use sw_nvme::{
    auth::RANDOM_BYTES,
    fabrics::Nqn,
    psk::{ConfiguredPsk, Derivation, Form, Transform},
};

use super::*;

fn nqn(text: &str) -> Nqn {
    Nqn::new(text).unwrap()
}

fn psk(byte: u8, suite: Suite) -> ConfiguredPsk {
    ConfiguredPsk::from_random(&[byte; RANDOM_BYTES], suite, Transform::ByHash)
}

/// Two ends, and their sockets.
struct Pair {
    host: Session,
    target: Session,
    sockets: [UnixStream; 2],
}

/// Two ends that know the keys of these bytes, before the handshake. `None`: there is no OpenSSL 3, which is told.
fn pair(suite: Suite, [mine, theirs]: [u8; 2], secrets: Secrets) -> Option<Pair> {
    let told = |error: sw_engine::Error| eprintln!("skipped: {error}");
    let [client, server] = [Role::Client, Role::Server].map(|role| Context::new(suite, role).map_err(told).ok());
    let (client, server) = (client?, server?);
    let (near, far) = UnixStream::pair().unwrap();
    for socket in [&near, &far] {
        socket.set_nonblocking(true).unwrap();
    }
    let key = psk(mine, suite).tls_psk(&nqn("nqn.host"), &nqn("nqn.subsystem"), Form::default()).unwrap();
    let find: Find = Arc::new(move |identity| psk(theirs, suite).answer(identity, Derivation::Standard, |_| true));
    let host = Session::new(&client, near.as_raw_fd(), Keys::Mine(key), secrets).unwrap();
    let target = Session::new(&server, far.as_raw_fd(), Keys::Theirs(find), secrets).unwrap();
    Some(Pair { host, target, sockets: [near, far] })
}

/// Both handshakes, by turns.
fn shake(pair: &Pair) -> [Result<Step, Fault>; 2] {
    let mut ends = [Ok(Step::WantsToRead); 2];
    for _ in 0..8 {
        for (end, session) in ends.iter_mut().zip([&pair.host, &pair.target]) {
            if matches!(end, Ok(Step::WantsToRead | Step::WantsToWrite)) {
                *end = session.handshake();
            }
        }
    }
    ends
}

fn connected(suite: Suite) -> Option<Pair> {
    let pair = pair(suite, [7, 7], Secrets::Hidden)?;
    assert_eq!(shake(&pair), [Ok(Step::Done); 2]);
    pair.host.read_ahead();
    Some(pair)
}

fn piece(bytes: &mut [u8]) -> Piece {
    Piece { base: bytes.as_mut_ptr(), len: bytes.len() }
}

/// As many bytes as come, until the session says that there are none.
fn all(session: &Session, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; most];
    let mut have = 0;
    while have < most {
        match session.receive(&[piece(&mut bytes[have..])]) {
            Ok(0) => break,
            Ok(got) => have += got,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                break;
            }
        }
    }
    bytes.truncate(have);
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

/// Sends all of the pieces, and gives what came at the other end meanwhile.
fn carry(from: &Session, pieces: &mut [Vec<u8>], to: &Session) -> Vec<u8> {
    let total: usize = pieces.iter().map(Vec::len).sum();
    let (mut sent, mut came) = (0, Vec::new());
    while came.len() < total {
        let listed: Vec<Piece> = pieces.iter_mut().map(|bytes| piece(bytes)).collect();
        let left: Vec<Piece> = rest(&listed, sent).collect();
        match from.send(&left) {
            Ok(bytes) => sent += bytes,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
        }
        came.extend(all(to, total - came.len()));
    }
    assert_eq!(sent, total);
    came
}

#[test]
fn bytes_of_all_lengths_come_as_they_were_sent_in_both_suites() {
    for suite in Suite::ALL {
        let Some(pair) = connected(suite) else { return };
        for lens in [&[1][..], &[72, 4096, 4], &[72, 100, 8], &[1 << 20], &[24, 16384, 24, 16385, 4, 0, 24, 3]] {
            let mut pieces: Vec<Vec<u8>> = lens.iter().map(|len| pattern(*len)).collect();
            let expected = pieces.concat();
            assert!(carry(&pair.host, &mut pieces, &pair.target) == expected, "{lens:?}");
            assert!(carry(&pair.target, &mut pieces, &pair.host) == expected, "{lens:?}");
        }
    }
}

#[test]
fn what_a_library_holds_is_not_slept_over() {
    let Some(pair) = connected(Suite::Aes128GcmSha256) else { return };
    let mut bytes = pattern(10_000);
    assert_eq!(pair.target.send(&[piece(&mut bytes)]).unwrap(), 10_000);
    assert!(pair.host.is_dry());
    let mut first = [0; 100];
    assert_eq!(pair.host.receive(&[piece(&mut first)]).unwrap(), 100);
    // The record is inside, and the socket has nothing.
    assert!(!pair.host.is_dry());
    let mut none = [0; 1];
    let mut socket = &pair.sockets[0];
    assert_eq!(socket.read(&mut none).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(all(&pair.host, 20_000), bytes[100..]);
    assert!(pair.host.is_dry());
}

#[test]
fn a_socket_without_room_is_waited_for_and_nothing_is_sent_twice() {
    let Some(pair) = connected(Suite::Aes256GcmSha384) else { return };
    let mut pieces = [pattern(72), pattern(3 << 20), pattern(4), pattern(72)];
    let expected = pieces.concat();
    let mut sent = 0;
    let listed: Vec<Piece> = pieces.iter_mut().map(|bytes| piece(bytes)).collect();
    // Until nothing goes any more, several times over: the record that was made stays the first.
    for _ in 0..3 {
        while let Ok(bytes) = pair.host.send(&rest(&listed, sent).collect::<Vec<_>>()) {
            sent += bytes;
        }
    }
    assert!(sent < expected.len());
    let mut came = all(&pair.target, sent);
    while came.len() < expected.len() {
        sent += pair.host.send(&rest(&listed, sent).collect::<Vec<_>>()).unwrap_or(0);
        came.extend(all(&pair.target, expected.len() - came.len()));
    }
    assert!(came == expected);
}

#[test]
fn other_keys_in_the_midst_are_followed_both_ways() {
    let Some(pair) = connected(Suite::Aes128GcmSha256) else { return };
    for _ in 0..3 {
        for (from, to) in [(&pair.host, &pair.target), (&pair.target, &pair.host)] {
            assert!(from.change_keys());
            assert!(carry(from, &mut [pattern(5000)], to) == pattern(5000));
            assert!(carry(to, &mut [pattern(5000)], from) == pattern(5000));
        }
    }
}

#[test]
fn an_end_is_told_from_a_cut() {
    for is_closed in [true, false] {
        let Some(pair) = connected(Suite::Aes128GcmSha256) else { return };
        assert_eq!(pair.target.send(&[piece(&mut pattern(10))]).unwrap(), 10);
        if is_closed {
            pair.target.close();
        }
        pair.sockets[1].shutdown(std::net::Shutdown::Both).unwrap();
        let mut room = [0; 100];
        assert_eq!(pair.host.receive(&[piece(&mut room)]).unwrap(), 10);
        assert!(!pair.host.is_dry());
        for _ in 0..2 {
            match pair.host.receive(&[piece(&mut room)]) {
                Ok(got) => assert!(is_closed && got == 0),
                Err(error) => {
                    assert!(!is_closed && error.to_string().contains("cut off"), "{error}");
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                }
            }
        }
    }
}

#[test]
fn a_record_that_somebody_changed_ends_the_connection() {
    let Some(pair) = connected(Suite::Aes128GcmSha256) else { return };
    let [mut near, mut far] = pair.sockets.each_ref();
    assert_eq!(pair.target.send(&[piece(&mut pattern(100))]).unwrap(), 100);
    let mut record = vec![0; 4096];
    let bytes = near.read(&mut record).unwrap();
    record[bytes - 1] ^= 1;
    far.write_all(&record[..bytes]).unwrap();
    let mut room = [0; 100];
    for _ in 0..2 {
        let error = pair.host.receive(&[piece(&mut room)]).unwrap_err();
        assert!(error.to_string().contains("tls failed"), "{error}");
    }
    assert!(room == [0; 100] && pair.host.send(&[piece(&mut room)]).is_err());
}

#[test]
fn a_key_that_differs_is_found_out_by_both() {
    // Identities of version 1 differ with the key: the target does not know it.
    let Some(other) = pair(Suite::Aes128GcmSha256, [7, 8], Secrets::Hidden) else { return };
    let [host, target] = shake(&other);
    assert!(matches!(host, Err(Fault::Alert(40))) && target.is_err(), "{host:?} {target:?}");
    assert!(other.target.take_answer().is_none());
}

#[test]
fn secrets_are_kept_where_they_are_wanted_and_nowhere_else() {
    for (secrets, is_kept) in [(Secrets::Hidden, false), (Secrets::Kept, true)] {
        let Some(pair) = pair(Suite::Aes256GcmSha384, [7, 7], secrets) else { return };
        assert_eq!(shake(&pair), [Ok(Step::Done); 2]);
        let [mine, theirs] = [&pair.host, &pair.target].map(Session::take_traffic);
        assert_eq!(mine.client.as_ref().map(|secret| secret.len()), is_kept.then_some(48));
        assert!(
            mine.client == theirs.client && mine.server == theirs.server && (mine.client != mine.server || !is_kept)
        );
        assert!(pair.host.take_traffic().client.is_none());
        assert_eq!(pair.target.take_answer().unwrap().host, nqn("nqn.host"));
        assert!(!pair.host.has_pending() && !pair.target.has_pending());
    }
}

#[test]
fn what_is_no_tls_is_told_as_such() {
    for noise in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[3, 0, 24, 0, 24, 0, 0, 0], &[1; 128]] {
        let Some(pair) = pair(Suite::Aes128GcmSha256, [7, 7], Secrets::Hidden) else { return };
        assert_eq!(pair.host.handshake(), Ok(Step::WantsToRead));
        let mut far = &pair.sockets[1];
        far.write_all(noise).unwrap();
        assert_eq!(pair.host.handshake(), Err(Fault::NoTls), "{noise:?}");
    }
    let Some(pair) = pair(Suite::Aes128GcmSha256, [7, 7], Secrets::Hidden) else { return };
    assert_eq!(pair.host.handshake(), Ok(Step::WantsToRead));
    pair.sockets[1].shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(pair.host.handshake(), Err(Fault::Cut));
}

#[test]
fn what_went_before_a_peer_was_gone_counts_and_what_did_not_stays_unsent() {
    let Some(pair) = connected(Suite::Aes128GcmSha256) else { return };
    let mut pieces = [pattern(72), pattern(40_000), pattern(40_000)];
    let listed: Vec<Piece> = pieces.iter_mut().map(|bytes| piece(bytes)).collect();
    pair.host.cut_after(2);
    let sent = pair.host.send(&listed).unwrap();
    assert!(sent > 72 && sent < 80_072, "{sent}");
    assert_eq!(all(&pair.target, 80_072).len(), sent, "the other end has what is told as sent, and nothing else");
    let error = pair.host.send(&rest(&listed, sent).collect::<Vec<_>>()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPIPE), "{error}");
}

#[test]
fn a_record_that_found_no_room_is_owed_and_goes_with_whatever_is_sent_next() {
    let Some(pair) = connected(Suite::Aes128GcmSha256) else { return };
    let mut unit = pattern(72);
    let mut sent = 0;
    while let Ok(more) = pair.host.send(&[piece(&mut unit)]) {
        assert!(!pair.host.owes());
        sent += more;
    }
    assert!(pair.host.owes());
    assert_eq!(all(&pair.target, sent).len(), sent);
    // Four bytes are sent, and the seventy-two come that are told as unsent: whoever counts on that sends nothing.
    pair.host.send(&[piece(&mut pattern(4))]).unwrap();
    assert_eq!(all(&pair.target, 1000)[..72], unit);
    assert!(!pair.host.owes());
}
