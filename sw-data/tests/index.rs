//! Indexes over files of other people's software, over many made-up ones, and over damaged ones.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

#[path = "../fuzz/index_body.rs"]
mod index_body;

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use serde_json::Value;
use straightway::{Destination, Engine, Error, ErrorKind, GpuUse, Uri};
use sw_data::{
    formats::{Extent, NpzContent, NpzScan, scan_slice},
    index::{BATCH_ROWS, BuildOptions, Built, Checksums, Event, Feed, Finding, Index, OnError, Want, build, verify},
    samples::{Format, Label, Place, Samples},
};
use sw_testkit::scratch::Scratch;

const THREADS: NonZeroUsize = NonZeroUsize::new(3).unwrap();
const OPTIONS: BuildOptions<'static> = BuildOptions::new(THREADS);

fn scratch(tag: &str) -> Scratch {
    Scratch::new(env!("CARGO_TARGET_TMPDIR"), tag)
}

fn engine() -> Engine {
    Engine::builder().gpu(GpuUse::Off).reactors(2).build().unwrap()
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn uri(path: &Path) -> Uri {
    Uri::from_path(path).unwrap()
}

fn make(engine: &Engine, sources: &[&str], to: &Path, options: &BuildOptions<'_>) -> Result<Built, Error> {
    let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
    build(engine, &sources, &uri(to), options, &mut |_| ControlFlow::Continue(()))
}

/// Every sample of an index: where, what, and its bytes by the engine.
fn all(engine: &Engine, index: &Index) -> Vec<(Place, Label, Vec<u8>)> {
    let numbers: Vec<u64> = (0..index.len()).collect();
    let (mut places, mut labels) = (Vec::new(), Vec::new());
    index.locate(&numbers, &mut places).unwrap();
    index.labels(&numbers, &mut labels).unwrap();
    let read = |place: &Place| {
        let entry = index.object(place.object).unwrap();
        let object = engine.open(&entry.uri.parse().unwrap()).unwrap();
        entry.check(&object).unwrap();
        if place.extent.len == 0 {
            return Vec::new();
        }
        let memory = engine.allocate(Destination::Host, place.extent.len, 0).unwrap();
        let memory = engine.read(&object, place.extent.offset, memory).wait().ok().unwrap().into_memory().unwrap();
        memory.into_buffer().unwrap().as_slice().to_vec()
    };
    let bytes: Vec<_> = places.iter().map(read).collect();
    places.into_iter().zip(labels).zip(bytes).map(|((place, label), bytes)| (place, label, bytes)).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn expected(name: &str) -> Vec<Value> {
    serde_json::from_slice(&fs::read(testdata(name)).unwrap()).unwrap()
}

/// Parts of a sample by name, in hexadecimal.
fn parts(label: &Label, bytes: &[u8]) -> serde_json::Map<String, Value> {
    let part = |part: &sw_data::samples::Part| {
        let from = usize::try_from(part.extent.offset).unwrap();
        (part.name.clone(), hex(&bytes[from..from + usize::try_from(part.extent.len).unwrap()]).into())
    };
    label.parts.iter().map(part).collect()
}

fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes)).unwrap()
}

#[test]
fn samples_of_an_archive_are_those_of_the_webdataset_library() {
    let (scratch, engine) = (scratch("webdataset"), engine());
    let to = scratch.path("x.index.arrow");
    let built = make(&engine, &[testdata("webdataset.tar").to_str().unwrap()], &to, &OPTIONS).unwrap();
    let index = Index::open(&engine, &uri(&to)).unwrap();
    let found: Vec<Value> = all(&engine, &index)
        .iter()
        .map(|(_, label, bytes)| serde_json::json!({"key": label.key, "fields": parts(label, bytes)}))
        .collect();
    assert_eq!(found, expected("webdataset.tar.json"));
    assert_eq!((built.samples, built.objects, built.checksums), (index.len(), 1, 0));
    assert_eq!(index.object(0).unwrap().format, Format::Tar);
}

#[test]
fn records_have_the_checksums_that_tensorflow_stored() {
    let (scratch, engine) = (scratch("tensorflow"), engine());
    for checksums in [Checksums::Stored, Checksums::Computed] {
        let to = scratch.path("x.index.arrow");
        let options = BuildOptions { checksums, ..OPTIONS };
        let built = make(&engine, &[testdata("tensorflow.tfrecord").to_str().unwrap()], &to, &options).unwrap();
        assert_eq!((built.samples, built.checksums), (5, 5));
        let index = Index::open(&engine, &uri(&to)).unwrap();
        let all = all(&engine, &index);
        let found: Vec<Value> = all.iter().map(|(_, _, bytes)| hex(bytes).into()).collect();
        assert_eq!(found, expected("tensorflow.tfrecord.json"));
        for (number, (place, label, bytes)) in all.iter().enumerate() {
            assert_eq!(place.crc32c, Some(crc32c(bytes)));
            assert_eq!(label.key, number.to_string());
        }
    }
}

#[test]
fn a_folder_of_mds_is_known_by_its_index() {
    let (scratch, engine) = (scratch("mds"), engine());
    let folder = testdata("mds");
    let index_json = folder.join("index.json");
    for named in [folder.to_str().unwrap(), index_json.to_str().unwrap()] {
        let to = scratch.path("x.index.arrow");
        let options = BuildOptions { checksums: Checksums::Computed, ..OPTIONS };
        make(&engine, &[named], &to, &options).unwrap();
        let index = Index::open(&engine, &uri(&to)).unwrap();
        let all = all(&engine, &index);
        let wanted = expected("mds.json");
        assert_eq!(all.len(), wanted.len());
        for ((place, label, bytes), wanted) in all.iter().zip(wanted) {
            assert_eq!(place.crc32c, Some(crc32c(bytes)));
            let found = parts(label, bytes);
            let wanted = wanted.as_object().unwrap();
            assert!(found.keys().eq(wanted.keys()));
            for (name, value) in wanted {
                let as_hex =
                    value.as_str().is_some_and(|text| found[name] == text || found[name] == hex(text.as_bytes()));
                let as_int = value.as_i64().is_some_and(|number| found[name] == hex(&number.to_le_bytes()));
                assert!(as_hex || as_int, "{name}: {value} is {}", found[name]);
            }
        }
    }
    // Compressed, each shard is a block that its samples are rows of.
    let to = scratch.path("y.index.arrow");
    make(&engine, &[testdata("mds-zstd").to_str().unwrap()], &to, &OPTIONS).unwrap();
    let compressed = Index::open(&engine, &uri(&to)).unwrap();
    // Neighbours come from different shards: each is read and decoded once all the same.
    let numbers = (0..compressed.len()).map(|at| (at * 5) % compressed.len());
    assert!(!compressed.len().is_multiple_of(5));
    let mut feed = Feed::new(&engine, &compressed, numbers, Want::Bytes);
    let (mut found, mut reads) = (vec![Vec::new(); usize::try_from(compressed.len()).unwrap()], 0);
    while let Some(fed) = feed.next_sample().unwrap() {
        assert!(fed.place.row.is_some());
        reads += u32::from(fed.path.is_some());
        let bytes = fed.bytes.unwrap();
        let sample = &mut found[usize::try_from(fed.number).unwrap()];
        bytes.visit(Extent { offset: 0, len: bytes.len() }, |piece| sample.extend_from_slice(piece)).unwrap();
    }
    assert_eq!(reads, compressed.object_count());
    make(&engine, &[folder.to_str().unwrap()], &to, &OPTIONS).unwrap();
    let plain: Vec<_> =
        all(&engine, &Index::open(&engine, &uri(&to)).unwrap()).into_iter().map(|(_, _, bytes)| bytes).collect();
    assert_eq!(found, plain);
}

#[test]
fn arrays_and_token_data_have_items_and_documents() {
    let (scratch, engine) = (scratch("arrays"), engine());
    let to = scratch.path("x.index.arrow");
    let array = testdata("numpy-f4.npy");
    let tokens = testdata("megatron-u16.bin");
    make(&engine, &[array.to_str().unwrap(), tokens.to_str().unwrap()], &to, &OPTIONS).unwrap();
    let index = Index::open(&engine, &uri(&to)).unwrap();
    assert_eq!(index.object_count(), 2);
    assert_eq!((index.object(0).unwrap().format, index.object(1).unwrap().format), (Format::Npy, Format::Tokens));
    let all = all(&engine, &index);
    let (items, documents): (Vec<_>, Vec<_>) = all.iter().partition(|(place, ..)| place.object == 0);
    let joined: Vec<u8> = items.iter().flat_map(|(_, _, bytes)| bytes.clone()).collect();
    assert!(fs::read(&array).unwrap().ends_with(&joined) && items.len() > 1);
    let joined: Vec<u8> = documents.iter().flat_map(|(_, _, bytes)| bytes.clone()).collect();
    assert_eq!(joined, fs::read(&tokens).unwrap());
    assert!(documents.iter().all(|(_, label, _)| label.group == 1));
    // Fortran's order, scalars, and objects have no items that are runs of bytes.
    for name in ["numpy-fortran.npy", "numpy-scalar.npy", "numpy-objects.npy"] {
        let error = make(&engine, &[testdata(name).to_str().unwrap()], &to, &OPTIONS).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
    }
}

#[test]
fn damage_of_an_array_is_found_by_the_checksum_of_its_archive() {
    let (scratch, engine) = (scratch("arrays-damaged"), engine());
    let to = scratch.path("x.index.arrow");
    let computed = BuildOptions { checksums: Checksums::Computed, ..OPTIONS };
    for name in ["stored.npz", "deflated.npz"] {
        let bytes = fs::read(testdata(name)).unwrap();
        let found = scan_slice(&mut NpzScan::new(bytes.len() as u64).unwrap(), &bytes).unwrap();
        let largest = found.into_iter().max_by_key(|array| array.member.len).unwrap();
        let path = scratch.path(name);
        fs::write(&path, &bytes).unwrap();
        make(&engine, &[path.to_str().unwrap()], &to, &computed).unwrap();
        let mut damaged = bytes;
        // A bit of the last element; of a deflated one, the checksum itself.
        let at = match largest.content {
            NpzContent::Stored(_) => largest.member.offset + largest.member.len - 1,
            NpzContent::Deflated(_) => largest.block.offset + 14,
        };
        damaged[usize::try_from(at).unwrap()] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let error = make(&engine, &[path.to_str().unwrap()], &to, &computed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChecksumMismatch, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn of_an_archive_the_array_that_is_named_is_the_sample() {
    let (scratch, engine) = (scratch("arrays-named"), engine());
    let to = scratch.path("x.index.arrow");
    for name in ["stored.npz", "deflated.npz"] {
        let path = testdata(name).to_str().unwrap().to_owned();
        make(&engine, &[&path], &to, &OPTIONS).unwrap();
        let every = all(&engine, &Index::open(&engine, &uri(&to)).unwrap());
        assert!(every.len() > 1, "{name}");
        for (place, label, bytes) in &every {
            let wish = BuildOptions { column: Some(&label.key), ..OPTIONS };
            make(&engine, &[&path], &to, &wish).unwrap();
            let named = all(&engine, &Index::open(&engine, &uri(&to)).unwrap());
            assert!(named.len() == 1 && (&named[0].0, &named[0].2) == (place, bytes), "{name} {}", label.key);
        }
        let error = make(&engine, &[&path], &to, &BuildOptions { column: Some("none"), ..OPTIONS }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(every.iter().all(|(_, label, _)| error.remedy_text().contains(&label.key)), "{}", error.remedy_text());
    }
}

#[test]
fn loose_files_are_a_sample_each_and_shards_hide_what_lies_beside_them() {
    let (scratch, engine) = (scratch("loose"), engine());
    fs::create_dir_all(scratch.path("set/cat")).unwrap();
    fs::create_dir_all(scratch.path("set/dog.v2")).unwrap();
    for name in ["set/cat/1.seg.PNG", "set/cat/2.jpg", "set/dog.v2/3", "set/.hidden"] {
        fs::write(scratch.path(name), name).unwrap();
    }
    let to = scratch.path("set/all.index.arrow");
    let set = scratch.text("set");
    let built = make(&engine, &[&set], &to, &OPTIONS).unwrap();
    let again = make(&engine, &[&set], &to, &OPTIONS).unwrap();
    assert_eq!((built.passed_files, again.passed_files), (0, 1), "the index is no sample of its own");
    let index = Index::open(&engine, &uri(&to)).unwrap();
    let found: Vec<_> = all(&engine, &index)
        .into_iter()
        .map(|(place, label, bytes)| {
            assert_eq!(place.extent.len, bytes.len() as u64);
            (label.key, label.parts.first().map(|part| part.name.clone()), String::from_utf8(bytes).unwrap())
        })
        .collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        found,
        [
            ("cat/1".to_owned(), some("seg.png"), "set/cat/1.seg.PNG".to_owned()),
            ("cat/2".to_owned(), some("jpg"), "set/cat/2.jpg".to_owned()),
            ("dog.v2/3".to_owned(), None, "set/dog.v2/3".to_owned()),
        ]
    );
    // Moved with its folder, an index still finds its objects.
    fs::rename(scratch.path("set"), scratch.path("moved")).unwrap();
    let index = Index::open(&engine, &uri(&scratch.path("moved/all.index.arrow"))).unwrap();
    assert!(index.object(0).unwrap().uri.ends_with("moved/cat/1.seg.PNG"));
    // With a shard among them, they are no samples.
    fs::copy(testdata("gnu.tar"), scratch.path("moved/a.tar")).unwrap();
    let built = make(&engine, &[&scratch.text("moved")], &to.with_file_name("../b.index.arrow"), &OPTIONS);
    assert_eq!(built.unwrap_err().kind(), ErrorKind::NotFound);
    let built = make(&engine, &[&scratch.text("moved")], &scratch.path("b.index.arrow"), &OPTIONS).unwrap();
    assert_eq!((built.objects, built.passed_files), (1, 4));
    let raw = BuildOptions { format: Some(Format::Raw), ..OPTIONS };
    assert_eq!(make(&engine, &[&scratch.text("moved")], &scratch.path("c.index.arrow"), &raw).unwrap().samples, 5);
}

/// A TFRecord file with so many records of odd lengths.
fn records(path: &Path, count: usize) {
    let masked = |bytes: &[u8]| crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    let mut file = Vec::new();
    for number in 0..count {
        let payload = vec![number.to_le_bytes()[0]; number % 7];
        let len = (payload.len() as u64).to_le_bytes();
        file.extend([len.as_slice(), &masked(&len), &payload, &masked(&payload)].concat());
    }
    fs::write(path, file).unwrap();
}

#[test]
fn the_same_objects_give_the_same_index_in_whatever_order_scans_end() {
    let (scratch, engine) = (scratch("order"), engine());
    // Larger than a batch, smaller ones, and many that are hardly anything: batches end inside of objects.
    for (number, count) in [BATCH_ROWS + 5, 3, 20_000, 0, 1, 50_000, 7].into_iter().enumerate() {
        records(&scratch.path(&format!("s-{number:02}.tfrecord")), count);
    }
    let named = scratch.text("s-{00..06}.tfrecord");
    let mut files = Vec::new();
    for threads in [1, 4] {
        let to = scratch.path(&format!("{threads}.index.arrow"));
        let options = BuildOptions { threads: NonZeroUsize::new(threads).unwrap(), ..OPTIONS };
        let built = make(&engine, &[&named], &to, &options).unwrap();
        assert_eq!(built.samples, BATCH_ROWS as u64 + 5 + 3 + 20_000 + 1 + 50_000 + 7);
        files.push(fs::read(&to).unwrap());
        assert_eq!(built.index_bytes, files[0].len() as u64);
    }
    assert!(files[0] == files[1]);
    let index = Index::open(&engine, &uri(&scratch.path("1.index.arrow"))).unwrap();
    let held: Vec<_> = (0..7).map(|object| index.held(object).unwrap()).collect();
    let mut places = Vec::new();
    for (object, held) in (0u32..).zip(&held) {
        for number in [0, held.samples / 2, held.samples.saturating_sub(1)] {
            if number < held.samples {
                places.clear();
                index.locate(&[held.first + number], &mut places).unwrap();
                assert_eq!((places[0].object, places[0].extent.len), (object, number % 7));
            }
        }
    }
    assert_eq!(held.iter().map(|held| held.samples).sum::<u64>(), index.len());
    let error = index.locate(&[0, index.len()], &mut places).unwrap_err();
    assert_eq!((error.kind(), places.len()), (ErrorKind::OutOfRange, 1));
}

#[test]
fn an_update_reads_what_changed_and_drops_what_went() {
    let (scratch, engine) = (scratch("update"), engine());
    for number in 0..4 {
        records(&scratch.path(&format!("s-{number}.tfrecord")), 10 + number);
    }
    let to = scratch.path("x.index.arrow");
    let folder = scratch.text("");
    make(&engine, &[&folder], &to, &OPTIONS).unwrap();
    let older = Index::open(&engine, &uri(&to)).unwrap();
    // Unreadable but unchanged: had it been read again, it would fail.
    let before = fs::metadata(scratch.path("s-0.tfrecord")).unwrap();
    let len = before.len();
    fs::write(scratch.path("s-0.tfrecord"), vec![0; usize::try_from(len).unwrap()]).unwrap();
    fs::File::open(scratch.path("s-0.tfrecord")).unwrap().set_modified(before.modified().unwrap()).unwrap();
    fs::remove_file(scratch.path("s-1.tfrecord")).unwrap();
    records(&scratch.path("s-2.tfrecord"), 50);
    records(&scratch.path("s-9.tfrecord"), 3);
    let options = BuildOptions { older: Some(&older), ..OPTIONS };
    let built = make(&engine, &[&folder], &to, &options).unwrap();
    assert_eq!((built.objects, built.taken_over, built.dropped, built.samples), (4, 2, 2, 10 + 50 + 13 + 3));
    let index = Index::open(&engine, &uri(&to)).unwrap();
    let names: Vec<_> = (0..4).map(|object| index.object(object).unwrap().uri).collect();
    assert!(names.iter().zip([0, 2, 3, 9]).all(|(name, number)| name.ends_with(&format!("s-{number}.tfrecord"))));
    let (mut old, mut new) = (Vec::new(), Vec::new());
    older.locate(&[3], &mut old).unwrap();
    index.locate(&[3], &mut new).unwrap();
    assert_eq!(old, new);
    let held = index.held(2).unwrap();
    index.locate(&[held.first + 6], &mut new).unwrap();
    assert_eq!((new[1].object, new[1].crc32c), (2, Some(crc32c(&[6; 6]))));
}

#[test]
fn what_is_wrong_with_an_object_ends_the_index_or_leaves_it_out() {
    let (scratch, engine) = (scratch("damaged"), engine());
    for number in 0..5 {
        records(&scratch.path(&format!("s-{number}.tfrecord")), if number == 1 { BATCH_ROWS * 2 + 9 } else { 100 });
    }
    // The last record of one larger than batches is cut; another has a wrong sum at its start.
    let path = scratch.path("s-1.tfrecord");
    let mut bytes = fs::read(&path).unwrap();
    bytes.pop();
    fs::write(&path, &bytes).unwrap();
    let path = scratch.path("s-3.tfrecord");
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let to = scratch.path("x.index.arrow");
    fs::write(&to, "old").unwrap();
    let named = scratch.text("s-{0..4}.tfrecord");
    let error = make(&engine, &[&named], &to, &OPTIONS).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShortData);
    assert!(error.to_string().contains("s-1.tfrecord"), "{error}");
    assert_eq!(fs::read(&to).unwrap(), b"old");
    assert_eq!(fs::read_dir(scratch.root()).unwrap().count(), 6, "nothing half is left");
    let mut told = Vec::new();
    let options = BuildOptions { on_error: OnError::Skip, ..OPTIONS };
    let built = build(&engine, &[named], &uri(&to), &options, &mut |event| {
        if let Event::Damaged { uri, error } = event {
            told.push((uri.to_owned(), error.kind()));
        }
        ControlFlow::Continue(())
    });
    let built = built.unwrap();
    assert_eq!((built.objects, built.damaged, built.samples), (3, 2, 300));
    let kinds: Vec<_> = told.iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, [ErrorKind::ShortData, ErrorKind::ChecksumMismatch]);
    let index = Index::open(&engine, &uri(&to)).unwrap();
    let all = all(&engine, &index);
    assert_eq!(all.iter().map(|(place, ..)| place.object).max(), Some(2));
    // The file ends where the smaller index ends, although a larger one was begun.
    let clean = scratch.path("y.index.arrow");
    make(&engine, &[&scratch.text("s-{0,2,4}.tfrecord")], &clean, &OPTIONS).unwrap();
    assert!(fs::read(&clean).unwrap() == fs::read(&to).unwrap());
}

#[test]
fn an_object_that_changed_since_is_told_with_both_versions() {
    let (scratch, engine) = (scratch("changed"), engine());
    for number in 0..3 {
        records(&scratch.path(&format!("s-{number}.tfrecord")), 100);
    }
    let to = scratch.path("x.index.arrow");
    make(&engine, &[&scratch.text("s-{0..2}.tfrecord")], &to, &OPTIONS).unwrap();
    let index = Index::open(&engine, &uri(&to)).unwrap();
    let look = || {
        let mut findings = Vec::new();
        let verified = verify(&engine, &index, THREADS, &mut |finding| {
            findings.push(finding);
            ControlFlow::Continue(())
        });
        findings.retain(|finding| !matches!(finding, Finding::Right { .. }));
        (verified.unwrap(), findings)
    };
    let (verified, findings) = look();
    assert!(findings.is_empty(), "{findings:?}");
    assert_eq!((verified.objects, verified.samples, verified.compared, verified.bad_samples), (3, 300, 300, 0));
    // Cut, replaced, gone.
    let path = scratch.path("s-0.tfrecord");
    fs::write(&path, &fs::read(&path).unwrap()[..50]).unwrap();
    records(&scratch.path("t"), 100);
    fs::rename(scratch.path("t"), scratch.path("s-1.tfrecord")).unwrap();
    fs::remove_file(scratch.path("s-2.tfrecord")).unwrap();
    let entry = index.object(0).unwrap();
    let error = entry.check(&engine.open(&entry.uri.parse().unwrap()).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
    assert!(error.to_string().contains(&format!("had {} bytes", entry.len)), "{error}");
    let entry = index.object(1).unwrap();
    let error = entry.check(&engine.open(&entry.uri.parse().unwrap()).unwrap()).unwrap_err();
    assert!(error.to_string().contains(&format!("was version {}", entry.version)), "{error}");
    let (verified, findings) = look();
    assert_eq!((verified.bad_objects, findings.len()), (3, 3));
    let mut kinds: Vec<_> = findings
        .iter()
        .map(|finding| match finding {
            Finding::Object { entry, error } => (entry.uri.clone(), error.kind()),
            other => panic!("{other:?}"),
        })
        .collect();
    kinds.sort_by(|one, other| one.0.cmp(&other.0));
    let kinds: Vec<_> = kinds.into_iter().map(|(_, kind)| kind).collect();
    assert_eq!(kinds, [ErrorKind::Changed, ErrorKind::Changed, ErrorKind::NotFound]);
}

#[test]
fn a_damaged_sample_is_named() {
    let (scratch, engine) = (scratch("sample"), engine());
    fs::create_dir(scratch.path("set")).unwrap();
    for name in ["a.jpg", "b.jpg", "c.jpg"] {
        fs::write(scratch.path("set").join(name), vec![7; 100_000]).unwrap();
    }
    let to = scratch.path("x.index.arrow");
    let options = BuildOptions { checksums: Checksums::Computed, ..OPTIONS };
    let built = make(&engine, &[&scratch.text("set")], &to, &options).unwrap();
    assert_eq!((built.samples, built.checksums), (3, 3));
    let index = Index::open(&engine, &uri(&to)).unwrap();
    // A byte rots: the file system's marks stay what they were.
    let path = scratch.path("set/b.jpg");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[99_999] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::File::open(&path).unwrap().set_modified(modified).unwrap();
    let mut bad = Vec::new();
    let verified = verify(&engine, &index, THREADS, &mut |finding| {
        match finding {
            Finding::Sample { sample, key, error, .. } => bad.push((sample, key, error.kind())),
            Finding::Right { .. } => {}
            Finding::Object { error, .. } => panic!("{error}"),
        }
        ControlFlow::Continue(())
    });
    assert_eq!(bad, [(1, "b".to_owned(), ErrorKind::ChecksumMismatch)]);
    assert_eq!(verified.unwrap().bytes, 300_000);
    let stopped = verify(&engine, &index, THREADS, &mut |_| ControlFlow::Break(()));
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
}

/// A small index as bytes: two objects with and without checksums, parts and keys.
fn small(scratch: &Scratch, engine: &Engine) -> Vec<u8> {
    let named = ["webdataset.tar", "tensorflow.tfrecord"];
    for name in named {
        fs::copy(testdata(name), scratch.path(name)).unwrap();
    }
    let to = scratch.path("two-objects.index.arrow");
    make(engine, &[&scratch.text("{webdataset.tar,tensorflow.tfrecord}")], &to, &OPTIONS).unwrap();
    fs::read(&to).unwrap()
}

#[test]
fn an_index_that_was_cut_is_no_index() {
    let scratch = scratch("cut");
    let whole = small(&scratch, &engine());
    assert_eq!(index_body::index(&whole), "ok");
    for len in 0..whole.len() {
        let error = Index::from_bytes(whole[..len].to_vec()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadFormat, "{len}: {error}");
        assert!(!error.remedy_text().is_empty());
    }
}

#[test]
fn any_damage_gives_an_error_or_places_inside_of_objects() {
    let scratch = scratch("damage");
    let whole = small(&scratch, &engine());
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= [0xff, 0x01, 0x80][at % 3];
        *outcomes.entry(index_body::index(&bytes)).or_default() += 1;
    }
    println!("{outcomes:?}");
    assert!(outcomes["ok"] > 100 && outcomes["bad_format"] > 100, "{outcomes:?}");
}

#[test]
fn an_index_of_an_earlier_build_is_read() {
    let bytes = fs::read(testdata("index/two-objects.index.arrow")).unwrap();
    assert_eq!(index_body::index(&bytes), "ok");
    let index = Index::from_bytes(bytes).unwrap();
    let mut labels = Vec::new();
    index.labels(&[0, index.len() - 1], &mut labels).unwrap();
    assert_eq!((index.len(), index.object(1).unwrap().uri.as_str()), (10, "tensorflow.tfrecord"));
    assert_eq!(labels[1].key, "4");
}

#[test]
fn an_index_that_is_cut_while_it_is_open_gives_an_error() {
    let (scratch, engine) = (scratch("shrinks"), engine());
    records(&scratch.path("a.tfrecord"), 3 * BATCH_ROWS);
    let to = scratch.path("x.index.arrow");
    make(&engine, &[&scratch.text("a.tfrecord")], &to, &OPTIONS).unwrap();
    let index = Index::open(&engine, &uri(&to)).unwrap();
    fs::File::options().write(true).open(&to).unwrap().set_len(1000).unwrap();
    let mut places = Vec::new();
    let error = index.locate(&[2 * BATCH_ROWS as u64], &mut places).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShortData, "{error}");
}

#[test]
fn whoever_breaks_off_leaves_what_was_there() {
    let (scratch, engine) = (scratch("break"), engine());
    for number in 0..20 {
        records(&scratch.path(&format!("s-{number:02}.tfrecord")), 30_000);
    }
    let to = scratch.path("x.index.arrow");
    let named = vec![scratch.text("s-{00..19}.tfrecord")];
    for after in [0, 1, 7] {
        let mut left = after;
        let error = build(&engine, &named, &uri(&to), &OPTIONS, &mut |_| {
            left -= 1;
            if left < 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(fs::read_dir(scratch.root()).unwrap().count(), 20);
    }
    let error = make(&engine, &[&scratch.text("absent")], &to, &OPTIONS).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let built = make(&engine, &[], &to, &OPTIONS).unwrap();
    assert_eq!((built.samples, built.objects), (0, 0));
    assert!(Index::open(&engine, &uri(&to)).unwrap().is_empty());
}
