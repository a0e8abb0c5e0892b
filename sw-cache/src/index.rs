//! The index on disk: which block lies in which slot of the data file.
//!
//! A word in it is believed for as long as its checksum holds, and a block for as long as its bytes have the checksum that the word says:
//! whatever a crash or a failing disk left, a word leads to the bytes of its block or to none.

use std::{
    fs::File,
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
};

use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, backends::InMemoryBackend};
use sw_engine::{Version, checksum::Algorithm};

use crate::key::{BlockKey, KEY_BYTES, Named, ObjectKey};

const BLOCKS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("blocks");
const OBJECTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("objects");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

/// The form of all this; another one is not read.
const FORM: u64 = 2;
/// Memory for pages of the index.
const PAGES_BYTES: usize = 8 << 20;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) slot: u32,
    pub(crate) len: u32,
    /// CRC-64/NVME of its bytes.
    pub(crate) sum: u64,
}

/// An object of which there are blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) named: Named,
    pub(crate) pinned: bool,
    /// When some of it was read, or came, last: seconds since 1970.
    pub(crate) used_s: u64,
    /// How many. Not in the index: it is counted.
    pub(crate) blocks: u64,
}

/// Sums over the life of the directory, in the order in which they are kept.
pub(crate) const TALLIES: usize = 7;
pub(crate) type Tally = [u64; TALLIES];

/// What an index holds.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) blocks: Vec<(BlockKey, Word)>,
    pub(crate) objects: Vec<(ObjectKey, Known)>,
    pub(crate) tally: Tally,
    /// Words whose checksums do not hold.
    pub(crate) damaged: u64,
}

/// What changes together.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// First.
    pub(crate) gone: Vec<BlockKey>,
    pub(crate) come: Vec<(BlockKey, Word)>,
    pub(crate) objects: Vec<(ObjectKey, Known)>,
    pub(crate) objects_gone: Vec<ObjectKey>,
    pub(crate) tally: Tally,
}

impl Change {
    /// Whether nothing changes but sums.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { gone, come, objects, objects_gone, tally: _ } = self;
        gone.is_empty() && come.is_empty() && objects.is_empty() && objects_gone.is_empty()
    }
}

impl Known {
    /// One that nobody pinned.
    pub(crate) fn new(named: &Named, used_s: u64) -> Self {
        Self { named: named.clone(), pinned: false, used_s, blocks: 0 }
    }
}

/// An index that is open. One process has it.
pub(crate) struct Index {
    /// There until it is dropped.
    database: Option<Database>,
    /// Its library stopped at something: what it holds is not touched any more.
    stopped: AtomicBool,
}

/// What the library says.
pub(crate) type Broken = String;

/// Why an index is not read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// Somebody has it open, who does not have the directory's lock.
    InUse,
    Broken(Broken),
}

impl From<Broken> for Unread {
    fn from(why: Broken) -> Self {
        Self::Broken(why)
    }
}

/// The library stops at some of what it finds in a file that somebody changed. The second one: it did.
fn contained<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> (Result<T, Broken>, bool) {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => (done.map_err(|error| error.to_string()), false),
        Err(_panic) => (Err("its library stopped at what it found".to_owned()), true),
    }
}

impl Index {
    /// Opens the index in a file, or makes one in an empty one.
    ///
    /// # Errors
    /// What is wrong with it. Whoever asked removes it then: what it leads to can be had again.
    pub(crate) fn open(file: File, block_bytes: u32) -> Result<(Self, Loaded), Unread> {
        let make = |file| {
            let backend = redb::backends::FileBackend::new(file)?;
            Database::builder().set_cache_size(PAGES_BYTES).create_with_backend(backend)
        };
        let (made, _) = contained(|| match make(file) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => Ok(None),
            made => Ok(Some(made?)),
        });
        let database = Some(made?.ok_or(Unread::InUse)?);
        let index = Self { database, stopped: AtomicBool::new(false) };
        let loaded = index.work(load)?;
        let Some((form, loaded)) = loaded else {
            index.begin(block_bytes)?;
            return Ok((index, Loaded::default()));
        };
        if form != facts(block_bytes) {
            return Err(Unread::Broken(another_form(&form)));
        }
        Ok((index, loaded))
    }

    /// Reads an index into memory: one that was not closed is mended there, and the file stays as it is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn look(mut file: File, block_bytes: u32) -> Result<Loaded, Broken> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|cause| cause.to_string())?;
        if bytes.is_empty() {
            return Ok(Loaded::default());
        }
        let backend = InMemoryBackend::new();
        let filled = backend.set_len(bytes.len() as u64).and_then(|()| backend.write(0, &bytes));
        filled.map_err(|cause| cause.to_string())?;
        let (made, _) = contained(|| Ok(Database::builder().create_with_backend(backend)?));
        let index = Self { database: Some(made?), stopped: AtomicBool::new(false) };
        match index.work(load)? {
            None => Ok(Loaded::default()),
            Some((form, loaded)) if form == facts(block_bytes) => Ok(loaded),
            Some((form, _)) => {
                Err(format!("its index begins anew with the next program that uses it: {}", another_form(&form)))
            }
        }
    }

    /// Does something with the database.
    fn work<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, Broken> {
        let database = self.database.as_ref().filter(|_| !self.stopped.load(Ordering::Relaxed));
        let database = database.ok_or("its library stopped at what it found")?;
        let (done, stopped) = contained(|| work(database));
        if stopped {
            self.stopped.store(true, Ordering::Relaxed);
        }
        done
    }

    fn begin(&self, block_bytes: u32) -> Result<(), Broken> {
        self.work(|database| {
            let write = database.begin_write()?;
            write.open_table(BLOCKS)?;
            write.open_table(OBJECTS)?;
            write.open_table(FACTS)?;
            Ok(write.commit()?)
        })?;
        self.set_facts(&facts(block_bytes))
    }

    fn set_facts(&self, facts: &[u8]) -> Result<(), Broken> {
        self.work(|database| {
            let write = database.begin_write()?;
            write.open_table(FACTS)?.insert("form", facts)?;
            Ok(write.commit()?)
        })
    }

    /// Makes a change durable, all of it or nothing.
    ///
    /// # Errors
    /// What the library says.
    pub(crate) fn commit(&self, change: &Change) -> Result<(), Broken> {
        self.work(|database| {
            let write = database.begin_write()?;
            {
                let mut blocks = write.open_table(BLOCKS)?;
                for key in &change.gone {
                    blocks.remove(key.bytes().as_slice())?;
                }
                for (key, word) in &change.come {
                    blocks.insert(key.bytes().as_slice(), word_bytes(key, word).as_slice())?;
                }
                let mut objects = write.open_table(OBJECTS)?;
                for key in &change.objects_gone {
                    objects.remove(key.as_slice())?;
                }
                for (key, known) in &change.objects {
                    objects.insert(key.as_slice(), object_bytes(key, known).as_slice())?;
                }
                write.open_table(FACTS)?.insert("tally", tally_bytes(&change.tally).as_slice())?;
            }
            Ok(write.commit()?)
        })
    }
}

/// `None` of one that was just made.
fn load(database: &Database) -> Result<Option<(Vec<u8>, Loaded)>, redb::Error> {
    let read = database.begin_read()?;
    let table = match read.open_table(FACTS) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let Some(form) = table.get("form")?.map(|form| form.value().to_vec()) else { return Ok(Some(Default::default())) };
    let mut loaded = Loaded::default();
    if let Some(tally) = table.get("tally")? {
        loaded.tally = read_tally(tally.value()).unwrap_or_default();
    }
    for entry in read.open_table(OBJECTS)?.iter()? {
        let (key, value) = entry?;
        match read_object(key.value(), value.value()) {
            Some(known) => loaded.objects.push(known),
            None => loaded.damaged += 1,
        }
    }
    for entry in read.open_table(BLOCKS)?.iter()? {
        let (key, value) = entry?;
        match read_word(key.value(), value.value()) {
            Some(word) => loaded.blocks.push(word),
            None => loaded.damaged += 1,
        }
    }
    Ok(Some((form, loaded)))
}

impl Drop for Index {
    /// Closing writes, and stops at the same things.
    #[expect(
        clippy::mem_forget,
        reason = "what the library stopped at half-way is not run further, by its destructors neither"
    )]
    fn drop(&mut self) {
        let Some(database) = self.database.take() else { return };
        if self.stopped.load(Ordering::Relaxed) {
            std::mem::forget(database);
            return;
        }
        let (_closed, _stopped) = contained(|| {
            drop(database);
            Ok(())
        });
    }
}

/// What an index is that has other facts.
fn another_form(facts: &[u8]) -> String {
    let form = unsealed(&[], facts).and_then(|facts| Rest(facts).u64());
    match form {
        Some(FORM) => "it is of blocks of another size".to_owned(),
        Some(form) => format!("it is of form {form}, and this version reads form {FORM}"),
        None => "what says its form is damaged".to_owned(),
    }
}

fn facts(block_bytes: u32) -> Vec<u8> {
    sealed(&[], [FORM.to_le_bytes().as_slice(), &block_bytes.to_le_bytes()].concat())
}

/// `value`, with a checksum of it and its key behind it.
fn sealed(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let sum = Algorithm::Crc64Nvme.of(&[key, &value].concat());
    value.extend(sum.to_le_bytes());
    value
}

/// What was sealed, if it is as it was.
fn unsealed<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (value, sum) = value.split_last_chunk::<8>()?;
    (Algorithm::Crc64Nvme.of(&[key, value].concat()) == u64::from_le_bytes(*sum)).then_some(value)
}

fn word_bytes(key: &BlockKey, word: &Word) -> Vec<u8> {
    let Word { slot, len, sum } = word;
    sealed(&key.bytes(), [slot.to_le_bytes().as_slice(), &len.to_le_bytes(), &sum.to_le_bytes()].concat())
}

fn read_word(key: &[u8], value: &[u8]) -> Option<(BlockKey, Word)> {
    let mut rest = Rest(unsealed(key, value)?);
    let word = Word { slot: rest.u32()?, len: rest.u32()?, sum: rest.u64()? };
    (key.len() == KEY_BYTES && rest.0.is_empty()).then_some((BlockKey::read(key)?, word))
}

fn object_bytes(key: &ObjectKey, known: &Known) -> Vec<u8> {
    let Known { named, pinned, used_s, .. } = known;
    let Version { identity, stamp } = named.version;
    let realm_len = u32::try_from(named.realm.len()).unwrap_or(u32::MAX);
    let parts = [
        &[u8::from(*pinned)][..],
        &used_s.to_le_bytes(),
        &named.len.to_le_bytes(),
        &identity.0.to_le_bytes(),
        &identity.1.to_le_bytes(),
        &stamp.to_le_bytes(),
        &realm_len.to_le_bytes(),
        named.realm.as_bytes(),
        named.name.as_bytes(),
    ];
    sealed(key, parts.concat())
}

fn read_object(key: &[u8], value: &[u8]) -> Option<(ObjectKey, Known)> {
    let mut rest = Rest(unsealed(key, value)?);
    let [pinned] = rest.take::<1>()?;
    let (used_s, len) = (rest.u64()?, rest.u64()?);
    let version = Version { identity: (rest.u64()?, rest.u64()?), stamp: i128::from_le_bytes(rest.take()?) };
    let realm_len = usize::try_from(rest.u32()?).ok()?;
    let (realm, name) = rest.0.split_at_checked(realm_len)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let named = Named { realm: text(realm)?, name: text(name)?, version, len };
    let key: ObjectKey = key.try_into().ok()?;
    (named.key() == key).then_some((key, Known { named, pinned: pinned != 0, used_s, blocks: 0 }))
}

fn tally_bytes(tally: &Tally) -> Vec<u8> {
    sealed(b"tally", tally.iter().flat_map(|sum| sum.to_le_bytes()).collect())
}

fn read_tally(value: &[u8]) -> Option<Tally> {
    let mut rest = Rest(unsealed(b"tally", value)?);
    let mut tally = Tally::default();
    for sum in &mut tally {
        *sum = rest.u64()?;
    }
    Some(tally)
}

/// What is left to read.
pub(crate) struct Rest<'a>(pub(crate) &'a [u8]);

impl Rest<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> (ObjectKey, Known) {
        let version = Version { identity: (1, 2), stamp: -3 };
        let named = Named { realm: "here".into(), name: name.into(), version, len: 9 };
        (named.key(), Known { named, pinned: true, used_s: 77, blocks: 0 })
    }

    #[test]
    fn what_was_committed_is_read_and_what_went_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let file = || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let object = known("s3://b/k");
        let key = |number| BlockKey { object: object.0, number };
        let word = |slot| Word { slot, len: 5, sum: 6 };
        {
            let (index, loaded) = Index::open(file(), 4096).unwrap();
            assert!(loaded.blocks.is_empty());
            let come = vec![(key(0), word(3)), (key(1), word(4))];
            let change =
                Change { come, objects: vec![object.clone()], tally: [1, 2, 3, 4, 5, 6, 7], ..Change::default() };
            index.commit(&change).unwrap();
            let change =
                Change { gone: vec![key(0)], come: vec![(key(7), word(3))], tally: change.tally, ..Change::default() };
            index.commit(&change).unwrap();
        }
        let (_, loaded) = Index::open(file(), 4096).unwrap();
        assert_eq!(loaded.blocks, [(key(1), word(4)), (key(7), word(3))]);
        assert_eq!((loaded.objects, loaded.tally, loaded.damaged), (vec![object], [1, 2, 3, 4, 5, 6, 7], 0));
        let why = |opened: Result<(Index, Loaded), Unread>| match opened {
            Err(Unread::Broken(why)) => why,
            other => panic!("{:?}", other.map(|(_, loaded)| loaded)),
        };
        assert!(why(Index::open(file(), 8192)).contains("another size"));
        assert!(Index::look(file(), 8192).unwrap_err().contains("begins anew"));
        {
            let (index, _) = Index::open(file(), 4096).unwrap();
            let before = sealed(&[], [1_u64.to_le_bytes().as_slice(), &4096_u32.to_le_bytes()].concat());
            index.set_facts(&before).unwrap();
        }
        assert!(why(Index::open(file(), 4096)).contains("form 1"));
        assert!(Index::look(file(), 4096).unwrap_err().contains("form 1"));
    }

    #[test]
    fn a_word_with_a_bit_turned_is_none() {
        let key = BlockKey { object: [9; 16], number: 1 };
        let word = Word { slot: 1, len: 2, sum: 3 };
        let bytes = word_bytes(&key, &word);
        assert_eq!(read_word(&key.bytes(), &bytes), Some((key, word)));
        for bit in 0..bytes.len() * 8 {
            let mut turned = bytes.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_word(&key.bytes(), &turned), None);
        }
        for bit in 0..KEY_BYTES * 8 {
            let mut turned = key.bytes();
            turned[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_word(&turned, &bytes), None);
        }
        let (key, object) = known("k");
        let bytes = object_bytes(&key, &object);
        assert_eq!(read_object(&key, &bytes), Some((key, object)));
        for bit in 0..bytes.len() * 8 {
            let mut turned = bytes.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_object(&key, &turned), None);
        }
    }
}
