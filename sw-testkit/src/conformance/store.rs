//! The suite for [`Store`]: names to objects, and new objects in place as a whole or not at all.

use sw_engine::{
    Error, ErrorKind, Object,
    seam::{EntryKind, Names, OpenMode, Store},
};

use super::{Case, CaseResult, End, Report, fail, skip};
use crate::pattern;

/// Makes what the cases need. What it cannot make it refuses with [`End::Skip`] and the reason.
pub trait Bed {
    /// Printed in the report: the backend and its setting.
    fn name(&self) -> String;

    /// The store.
    ///
    /// # Errors
    /// [`End::Skip`] where there is none.
    fn store(&mut self) -> Result<Box<dyn Store>, End>;

    /// Makes a fresh, empty directory and gives its full name.
    ///
    /// # Errors
    /// [`End::Skip`] for a store without directories.
    fn directory(&mut self) -> Result<String, End>;

    /// Whether a directory is there with nothing in it, and nothing can be made in one that is not there.
    fn directories(&self) -> Directories {
        Directories::Made
    }

    /// The full name of `leaf` in a directory.
    fn join(&self, directory: &str, leaf: &str) -> String {
        format!("{directory}/{leaf}")
    }

    /// Writes all of `bytes` through a transport of the backend.
    ///
    /// # Errors
    /// [`End::Fail`] with the evidence.
    fn write(&mut self, object: &Object, offset: u64, bytes: &[u8]) -> CaseResult;

    /// Reads `len` bytes through a transport of the backend.
    ///
    /// # Errors
    /// [`End::Fail`] with the evidence.
    fn read(&mut self, object: &Object, offset: u64, len: u64) -> Result<Vec<u8>, End>;
}

/// What directories are in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directories {
    /// Things of their own.
    Made,
    /// What names of objects begin with.
    Prefixes,
}

/// A case of this suite.
pub type Run = fn(&mut dyn Bed) -> CaseResult;

/// The cases, in the order they run.
pub const CASES: &[Case<Run>] = &[
    Case { name: "what_was_committed_is_read_back", run: committed_is_read_back },
    Case { name: "what_was_not_committed_is_not_there", run: uncommitted_is_not_there },
    Case { name: "a_commit_replaces_as_a_whole", run: commit_replaces },
    Case { name: "an_open_object_can_be_updated_in_place", run: update_in_place },
    Case { name: "a_missing_name_is_not_found_and_named", run: missing_is_not_found },
    Case { name: "a_directory_is_of_the_wrong_kind", run: directory_is_wrong_kind },
    Case { name: "stat_tells_kind_and_length", run: stat_tells },
    Case { name: "list_is_in_byte_order_and_its_names_open", run: list_in_order },
    Case { name: "an_object_lists_as_itself", run: object_lists_as_itself },
    Case { name: "a_removed_object_is_gone", run: removed_is_gone },
    Case { name: "a_replaced_object_has_another_version", run: replaced_has_another_version },
    Case { name: "an_object_may_be_empty", run: empty_object },
];

/// Runs all cases on one bed.
pub fn run(bed: &mut dyn Bed) -> Report {
    let name = bed.name();
    Report::of("store", name, CASES, |run| run(bed))
}

fn told<T>(what: &str, result: Result<T, Error>) -> Result<T, End> {
    result.or_else(|error| fail(format!("{what}: {error}")))
}

fn must_be(what: &str, kind: ErrorKind, result: Result<(), Error>) -> CaseResult {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        Err(error) => fail(format!("{what}: {:?} instead of {kind:?}: {error}", error.kind())),
        Ok(()) => fail(format!("{what}: success instead of {kind:?}")),
    }
}

/// Makes an object with the content called `tag`.
fn make(bed: &mut dyn Bed, store: &dyn Store, name: &str, tag: u64, len: u64) -> CaseResult {
    let intent = told("create", store.create(name, len))?;
    let bytes = pattern::bytes(tag, 0, sw_mem::index(len));
    if !bytes.is_empty() {
        bed.write(intent.object(), 0, &bytes)?;
    }
    told("commit", intent.commit(Names::Durable))
}

fn check(bed: &mut dyn Bed, store: &dyn Store, name: &str, tag: u64, len: u64) -> CaseResult {
    let object = told("open", store.open(name, OpenMode::Read))?;
    if object.len != len {
        return fail(format!("{name} has {} bytes instead of {len}", object.len));
    }
    let got = if len == 0 { Vec::new() } else { bed.read(&object, 0, len)? };
    match pattern::first_difference(&got, &pattern::bytes(tag, 0, sw_mem::index(len))) {
        None if got.len() as u64 == len => Ok(()),
        other => fail(format!("{name}: {} of {len} bytes, first difference {other:?}", got.len())),
    }
}

fn setup(bed: &mut dyn Bed) -> Result<(Box<dyn Store>, String), End> {
    let store = bed.store()?;
    let directory = bed.directory()?;
    Ok((store, directory))
}

fn committed_is_read_back(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    for (n, len) in [1, 511, 4096, 100_001].into_iter().enumerate() {
        let name = bed.join(&directory, &format!("object {n}.bin"));
        make(bed, store.as_ref(), &name, n as u64, len)?;
        check(bed, store.as_ref(), &name, n as u64, len)?;
    }
    Ok(())
}

fn uncommitted_is_not_there(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "half");
    let intent = told("create", store.create(&name, 8192))?;
    bed.write(intent.object(), 0, &pattern::bytes(1, 0, 4096))?;
    must_be("open before the commit", ErrorKind::NotFound, store.open(&name, OpenMode::Read).map(drop))?;
    drop(intent);
    must_be("open after the drop", ErrorKind::NotFound, store.open(&name, OpenMode::Read).map(drop))?;
    let left = match store.list(&directory) {
        Err(error) if bed.directories() == Directories::Prefixes && error.kind() == ErrorKind::NotFound => Vec::new(),
        listed => told("list", listed)?,
    };
    if left.is_empty() { Ok(()) } else { fail(format!("a dropped intent left {left:?}")) }
}

fn commit_replaces(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "file");
    make(bed, store.as_ref(), &name, 1, 10_000)?;
    let intent = told("create over it", store.create(&name, 5_000))?;
    bed.write(intent.object(), 0, &pattern::bytes(2, 0, 5_000))?;
    check(bed, store.as_ref(), &name, 1, 10_000)?;
    told("commit", intent.commit(Names::Durable))?;
    check(bed, store.as_ref(), &name, 2, 5_000)?;
    let names = told("list", store.list(&directory))?;
    if names.len() == 1 { Ok(()) } else { fail(format!("a commit left {names:?}")) }
}

fn update_in_place(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "file");
    make(bed, store.as_ref(), &name, 1, 16_384)?;
    let object = match store.open(&name, OpenMode::Update) {
        Err(error) if error.kind() == ErrorKind::Unsupported => return skip("nothing is written in place here"),
        opened => told("open", opened)?,
    };
    bed.write(&object, 4096, &pattern::bytes(2, 4096, 4096))?;
    let got = bed.read(&object, 0, 16_384)?;
    let mut want = pattern::bytes(1, 0, 16_384);
    want.iter_mut().skip(4096).zip(pattern::bytes(2, 4096, 4096)).for_each(|(to, from)| *to = from);
    match pattern::first_difference(&got, &want) {
        None if got.len() == want.len() => Ok(()),
        other => fail(format!("after an update: {other:?}")),
    }
}

fn missing_is_not_found(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "nobody");
    must_be("open", ErrorKind::NotFound, store.open(&name, OpenMode::Read).map(drop))?;
    match store.open(&name, OpenMode::Update) {
        Err(error) if error.kind() == ErrorKind::Unsupported => {}
        opened => must_be("open to update", ErrorKind::NotFound, opened.map(drop))?,
    }
    must_be("stat", ErrorKind::NotFound, store.stat(&name).map(drop))?;
    must_be("list", ErrorKind::NotFound, store.list(&name).map(drop))?;
    must_be("remove", ErrorKind::NotFound, store.remove(&name))?;
    let nowhere = bed.join(&name, "child");
    if bed.directories() == Directories::Made {
        must_be("create below it", ErrorKind::NotFound, store.create(&nowhere, 1).map(drop))?;
    }
    match store.open(&name, OpenMode::Read) {
        Err(error) if error.to_string().contains("nobody") => Ok(()),
        Err(error) => fail(format!("the error does not name it: {error}")),
        Ok(_) => fail("it is there now"),
    }
}

fn directory_is_wrong_kind(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "file");
    make(bed, store.as_ref(), &name, 1, 10)?;
    must_be("open", ErrorKind::WrongKind, store.open(&directory, OpenMode::Read).map(drop))?;
    let entry = told("stat", store.stat(&directory))?;
    match entry.kind {
        EntryKind::Directory => Ok(()),
        other => fail(format!("a directory is {other:?}")),
    }
}

fn stat_tells(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "file");
    make(bed, store.as_ref(), &name, 1, 12_345)?;
    let entry = told("stat", store.stat(&name))?;
    match (entry.kind, entry.len) {
        (EntryKind::Object, 12_345) => Ok(()),
        other => fail(format!("{other:?}")),
    }
}

fn list_in_order(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    // Byte order puts capitals first and "a-" before "a0".
    for leaf in ["b", "a0", "a-", "Z", "ä"] {
        let name = bed.join(&directory, leaf);
        make(bed, store.as_ref(), &name, 1, 100)?;
    }
    let entries = told("list", store.list(&directory))?;
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    if names.len() != 5 || names != sorted {
        return fail(format!("listed {names:?}"));
    }
    entries.iter().try_for_each(|entry| check(bed, store.as_ref(), &entry.name, 1, 100))
}

fn object_lists_as_itself(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "file");
    make(bed, store.as_ref(), &name, 1, 77)?;
    let entries = told("list", store.list(&name))?;
    match entries.as_slice() {
        [one] if one.kind == EntryKind::Object && one.len == 77 => check(bed, store.as_ref(), &one.name, 1, 77),
        other => fail(format!("an object lists as {other:?}")),
    }
}

fn removed_is_gone(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "file");
    make(bed, store.as_ref(), &name, 1, 77)?;
    told("remove", store.remove(&name))?;
    must_be("open", ErrorKind::NotFound, store.open(&name, OpenMode::Read).map(drop))
}

fn replaced_has_another_version(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "file");
    make(bed, store.as_ref(), &name, 1, 4096)?;
    let before = told("open", store.open(&name, OpenMode::Read))?.version;
    if told("stat", store.stat(&name))?.version != before {
        return fail("stat and open disagree about the version of an unchanged object");
    }
    make(bed, store.as_ref(), &name, 2, 4096)?;
    let after = told("open", store.open(&name, OpenMode::Read))?.version;
    if before == after { fail(format!("both are {after:?}")) } else { Ok(()) }
}

fn empty_object(bed: &mut dyn Bed) -> CaseResult {
    let (store, directory) = setup(bed)?;
    let name = bed.join(&directory, "empty");
    make(bed, store.as_ref(), &name, 1, 0)?;
    check(bed, store.as_ref(), &name, 1, 0)
}
