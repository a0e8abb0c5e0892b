//! Small reads of AIStore's objects that go together, by a cluster that does as it is told.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use sw_engine::{
    ErrorKind, Object, Token,
    seam::{Fence, OpenMode, Store, Transport},
};
use sw_remote::objects::{ObjectStores, ObjectsConfig};
use sw_testkit::{
    pattern,
    scripted::{Scripted, head_of, part_of, say},
};

use crate::{
    ais::tar,
    ais_scripted::{host, map, on, stores_of},
    client::{Ask, Together, UNREAD, config, read_together},
};

const LEN: usize = 1 << 20;
const READS: usize = 306;

/// A piece of a batch as it is asked for.
struct Piece {
    name: String,
    bytes: Vec<u8>,
}

type Batch = dyn Fn(&[Piece]) -> Vec<u8> + Send + Sync;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| pattern::bytes(1, 0, LEN + 64 * 1000));

fn bytes_of(object: usize) -> &'static [u8] {
    &BYTES[object * 1000..][..LEN]
}

fn headers(version: usize) -> String {
    format!("Ais-Version: {version}\r\nAis-Checksum-Type: xxhash2\r\nAis-Checksum-Value: 8cb841db40e6ae83\r\n")
}

/// The archive that a good cluster answers with.
fn good(pieces: &[Piece]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = pieces.iter().map(|piece| (piece.name.as_str(), piece.bytes.as_slice())).collect();
    say("200 OK", "", &tar(&files))
}

/// The number at the end of the name of an object.
fn number_of(path: &str) -> usize {
    let path = path.split(['?', ' ']).next().unwrap();
    path.rsplit('/').next().unwrap().parse().unwrap()
}

/// A cluster with the objects `0`, `1` and so on, each in the version that `version` says at each look.
fn cluster_of(
    version: impl Fn(usize) -> String + Send + Sync + 'static,
    batch: impl Fn(&[Piece]) -> Vec<u8> + Send + Sync + 'static,
) -> Scripted {
    let batch: Box<Batch> = Box::new(batch);
    Scripted::start_with_bodies(move |request, body| {
        if request.contains("what=smap") {
            return map(host(request));
        }
        if !request.contains("pid=p") {
            return on(request, host(request));
        }
        let path = request.split(' ').nth(1).unwrap();
        if path.starts_with("/v1/ml/moss/b?") {
            let message: Value = serde_json::from_slice(body).unwrap();
            let piece = |asked: &Value| {
                let number = |name: &str| usize::try_from(asked[name].as_u64().unwrap()).unwrap();
                let (object, from) = (asked["objname"].as_str().unwrap(), number("start"));
                let bytes = bytes_of(object.parse().unwrap())[from..from + number("length")].to_vec();
                Piece { name: format!("b/{object}"), bytes }
            };
            let pieces: Vec<Piece> = message["in"].as_array().unwrap().iter().map(piece).collect();
            return batch(&pieces);
        }
        let number = number_of(path);
        if request.starts_with("head") {
            return head_of(LEN, &version(number));
        }
        part_of(request, &version(number), bytes_of(number))
    })
}

/// With more patience than a batch takes on a machine that does much else.
fn patient(server: &Scripted) -> ObjectsConfig {
    let mut config =
        config([("AIS_ENDPOINT", format!("http://{}", server.address())), ("", String::new()), ("", String::new())]);
    config.patience = Duration::from_secs(160);
    config.ais_batch = true;
    config
}

fn first(_: usize) -> String {
    headers(1)
}

fn open(stores: &ObjectStores, objects: usize) -> Vec<Arc<Object>> {
    (0..objects).map(|number| stores.open(&format!("ais://b/{number}"), OpenMode::Read).unwrap()).collect()
}

fn at(number: usize) -> usize {
    number * 3001
}

fn len(number: usize) -> usize {
    1000 + number
}

fn asks(objects: &[Arc<Object>], reads: usize) -> Vec<Ask<'_>> {
    let of = |number: usize| Ask {
        object: &objects[number % objects.len()],
        offset: at(number) as u64,
        len: u32::try_from(len(number)).unwrap(),
    };
    (0..reads).map(of).collect()
}

fn is_right(number: usize, objects: usize, read: &[u8]) -> bool {
    bytes_of(number % objects)[at(number)..at(number) + len(number)] == *read
}

/// Requests that a target has answered: batches, looks, and reads that went alone.
fn answered(server: &Scripted) -> (usize, usize, usize) {
    let of = |begin: &str| server.asked(begin).iter().filter(|request| request.contains("pid=p")).count();
    (of("get /v1/ml/moss"), of("head"), of("get /v1/objects"))
}

/// Reads all, which must be right.
fn all_right(stores: &ObjectStores, objects: &[Arc<Object>], reads: usize) {
    for (number, read) in read_together(stores, &asks(objects, reads)).into_iter().enumerate() {
        let read = read.unwrap_or_else(|error| panic!("{number}: {error}"));
        assert!(is_right(number, objects.len(), &read), "{number}");
    }
}

#[test]
fn reads_of_few_objects_go_together() {
    // On a machine that does much else they may come in more pieces.
    let is_fewest = (0..50).any(|_| {
        let server = cluster_of(first, good);
        let stores = crate::client::stores(patient(&server));
        let objects = open(&stores, 3);
        let (_, opened, _) = answered(&server);
        let before = server.asked("").len();
        all_right(&stores, &objects, READS);
        let (batches, heads, alone) = answered(&server);
        assert!(batches > 0 && heads - opened <= 3 * batches && alone < READS / 4, "{batches} {heads} {alone}");
        // Two batches, each by way of a proxy, and the objects of each.
        server.asked("").len() - before <= 10
    });
    assert!(is_fewest);
}

#[test]
fn reads_that_have_few_of_an_object_go_alone() {
    let server = cluster_of(first, good);
    let stores = stores_of(&server);
    let objects = open(&stores, 40);
    all_right(&stores, &objects, 120);
    all_right(&stores, &objects[..1], 7);
    assert_eq!((answered(&server).0, answered(&server).2), (0, 127));
    let stores = crate::client::stores(ObjectsConfig { ais_batch: false, ..patient(&server) });
    all_right(&stores, &open(&stores, 1), 40);
    assert_eq!(answered(&server).0, 0);
}

#[test]
fn what_is_replaced_behind_its_opening_is_changed() {
    // The first object is another one from its second look on.
    let looks = AtomicUsize::new(0);
    let version =
        move |number: usize| headers(if number == 0 && looks.fetch_add(1, Ordering::SeqCst) > 0 { 2 } else { 1 });
    let server = cluster_of(version, good);
    let stores = stores_of(&server);
    let objects = open(&stores, 3);
    for (number, read) in read_together(&stores, &asks(&objects, READS)).into_iter().enumerate() {
        match number % 3 {
            0 => assert_eq!(read.unwrap_err().kind(), ErrorKind::Changed, "{number}"),
            objects => assert!(is_right(number, 3, &read.unwrap()), "{number} {objects}"),
        }
    }
    assert!(answered(&server).0 > 0);
}

#[test]
fn an_object_without_a_version_is_read_alone() {
    let only_sum = |_| "Ais-Checksum-Type: xxhash2\r\nAis-Checksum-Value: 8cb841db40e6ae83\r\n".to_owned();
    let server = cluster_of(only_sum, good);
    let stores = stores_of(&server);
    all_right(&stores, &open(&stores, 1), 40);
    assert_eq!(answered(&server).2, 40);
}

#[test]
fn what_a_batch_does_not_bring_is_read_alone() {
    type Answer = fn(&[Piece]) -> Vec<u8>;
    fn some_missing(pieces: &[Piece]) -> Vec<u8> {
        let name = |(number, piece): (usize, &Piece)| match number % 5 {
            0 => (format!("__404__/{}", piece.name), Vec::new()),
            1 => (piece.name.clone(), vec![9; piece.bytes.len() - 1]),
            _ => (piece.name.clone(), piece.bytes.clone()),
        };
        let files: Vec<(String, Vec<u8>)> = pieces.iter().enumerate().map(name).collect();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        say("200 OK", "", &tar(&files))
    }
    fn cut(pieces: &[Piece]) -> Vec<u8> {
        let mut answer = good(pieces);
        answer.truncate(answer.len() / 2);
        answer
    }
    fn other_names(pieces: &[Piece]) -> Vec<u8> {
        let files: Vec<(&str, &[u8])> = pieces.iter().map(|piece| ("b/00", piece.bytes.as_slice())).collect();
        say("200 OK", "", &tar(&files))
    }
    fn other_order(pieces: &[Piece]) -> Vec<u8> {
        let files = pieces.iter().rev().map(|piece| (piece.name.as_str(), piece.bytes.as_slice()));
        say("200 OK", "", &tar(&files.collect::<Vec<_>>()))
    }
    fn endless(pieces: &[Piece]) -> Vec<u8> {
        let much = vec![7; 8 << 20];
        let files = pieces.iter().take(1).map(|piece| (piece.name.as_str(), much.as_slice()));
        say("200 OK", "", &tar(&files.collect::<Vec<_>>()))
    }
    fn too_few(pieces: &[Piece]) -> Vec<u8> {
        good(&pieces[..pieces.len() - 1])
    }
    let answers: [(&str, Answer); 11] = [
        ("some missing", some_missing),
        ("cut", cut),
        ("other names", other_names),
        ("other order", other_order),
        ("endless", endless),
        ("too few", too_few),
        ("no archive", |_| say("200 OK", "", &[7; 6000])),
        ("nothing", |_| say("200 OK", "", b"")),
        ("busy", |_| say("429 Too Many Requests", "", b"{}")),
        ("broken", |_| say("500 Internal Server Error", "", b"{}")),
        ("unknown", |_| say("404 Not Found", "", b"{}")),
    ];
    for (what, answer) in answers {
        let server = cluster_of(first, answer);
        let stores = stores_of(&server);
        let objects = open(&stores, 2);
        all_right(&stores, &objects, 60);
        let (batches, _, alone) = answered(&server);
        assert!(batches > 0 && alone > 0, "{what}: {batches} {alone}");
        if !["some missing", "cut", "too few"].contains(&what) {
            assert_eq!(alone, 60, "{what}");
        } else if what == "some missing" {
            assert!(alone < 60, "{what}: {alone}");
            continue;
        }
        // For a while nobody asks again.
        all_right(&stores, &objects, 60);
        assert_eq!(answered(&server).0, batches, "{what}");
    }
}

#[test]
fn a_batch_that_takes_too_long_is_given_up() {
    let server = cluster_of(first, |pieces| {
        std::thread::park_timeout(Duration::from_secs(4));
        good(pieces)
    });
    let stores = stores_of(&server);
    all_right(&stores, &open(&stores, 1), 40);
    assert_eq!(answered(&server).2, 40);
}

#[test]
fn reads_that_are_cancelled_touch_nothing_and_keep_nobody() {
    let server = cluster_of(first, |pieces| {
        std::thread::park_timeout(Duration::from_millis(300));
        good(pieces)
    });
    let stores = stores_of(&server);
    let objects = open(&stores, 1);
    let asks = asks(&objects, 40);
    let mut together = Together::start(&stores, &asks);
    // As soon as the batch is under way.
    for _ in 0..200 {
        if answered(&server).0 > 0 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    (0..10).for_each(|number| together.transport.cancel(Token::from_raw(number)));
    for (number, read) in together.end().into_iter().enumerate() {
        match read {
            Ok(read) => assert!(is_right(number, 1, &read), "{number}"),
            Err(error) => assert!(number < 10 && error.kind() == ErrorKind::Cancelled, "{number}: {error}"),
        }
    }
    // All of them.
    let mut together = Together::start(&stores, &asks);
    let mut done = Vec::with_capacity(64);
    assert_eq!(together.transport.fence(Duration::from_secs(20), &mut done), Fence::Quiet);
    let untouched = together.buffer.as_mut_slice().to_vec();
    std::thread::park_timeout(Duration::from_millis(600));
    assert!(together.buffer.as_mut_slice() == untouched && untouched.contains(&UNREAD));
}

#[test]
fn lanes_share_batches() {
    let server = cluster_of(first, good);
    let stores = crate::client::stores(patient(&server));
    let objects = open(&stores, 4);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..4).for_each(|_| all_right(&stores, &objects, 100)));
        }
    });
    let (batches, _, alone) = answered(&server);
    assert!(batches > 0 && batches + alone < 1600, "{batches} {alone}");
}
