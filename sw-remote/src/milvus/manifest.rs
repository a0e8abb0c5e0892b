//! The manifest of a collection: what its API says of it, and the objects that its flushed segments are.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use serde_json::{Value, json};
use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{Entry, EntryKind, Hidden, Store},
};

use super::{
    call::{About, Api},
    messages::{
        DROPPED, Described, FLUSHED, Field, LEVEL_ZERO, Named, Nothing, Partitions, Segment, Segments, Version,
        type_name,
    },
};

/// Binlogs of a collection, at most.
const LOGS_MAX: usize = 1_000_000;
/// Times that a collection is looked at whose segments change meanwhile.
const LOOKS_MAX: usize = 5;
/// What a manifest is.
const SCHEMA: &str = "straightway.milvus/1";

/// What the API says of a collection.
pub(super) struct Facts {
    version: String,
    described: Described,
    partitions: Partitions,
    segments: Vec<Segment>,
}

impl Facts {
    /// Asks for them.
    pub async fn ask(api: &mut Api, of: &Named, about: &About) -> Result<Self, Error> {
        let version: Version = api.ask("GetVersion", &Nothing {}, about).await?;
        let described: Described = api.ask("DescribeCollection", of, about).await?;
        let partitions: Partitions = api.ask("ShowPartitions", of, about).await?;
        let segments: Segments = api.ask("GetPersistentSegmentInfo", of, about).await?;
        if partitions.names.len() != partitions.ids.len() {
            return Err(about.fail(ErrorKind::Protocol, "partitions have other names than numbers"));
        }
        Ok(Self { version: version.version, described, partitions, segments: segments.infos })
    }

    /// Flushed segments of partitions that are there: those of a partition that was dropped stay listed for a while.
    fn flushed(&self) -> impl Iterator<Item = &Segment> {
        let there: BTreeSet<i64> = self.partitions.ids.iter().copied().collect();
        self.segments.iter().filter(move |segment| segment.state == FLUSHED && there.contains(&segment.partition))
    }

    /// Whether both say the same of what is flushed.
    fn is_state_of(&self, other: &Self) -> bool {
        let flushed = |facts: &Self| -> BTreeSet<_> {
            facts.flushed().map(|one| (one.id, one.partition, one.rows, one.level, one.storage_version)).collect()
        };
        self.described == other.described && flushed(self) == flushed(other)
    }
}

/// What `list` makes of a collection, of one state: it is asked again when all is listed, and is to say the same.
pub(super) fn settled<T>(
    ask: &mut dyn FnMut() -> Result<Facts, Error>,
    list: &mut dyn FnMut(&Facts) -> Result<T, Error>,
    about: &About,
) -> Result<T, Error> {
    let mut facts = ask()?;
    for _ in 0..LOOKS_MAX {
        // An object that went meanwhile is no error of a state that went with it.
        let made = list(&facts);
        let now = ask()?;
        if now.is_state_of(&facts) {
            return made;
        }
        facts = now;
    }
    let detail = format!("its segments changed each of {LOOKS_MAX} times that they were listed");
    Err(about.fail(ErrorKind::Changed, detail).remedy("wait until flushes and compactions have ended, and try again"))
}

/// A field as the manifest has it.
fn field(field: &Field) -> Value {
    let number = |key: &str| {
        let found = field.type_params.iter().find(|pair| pair.key == key);
        found.and_then(|pair| pair.value.parse::<u64>().ok())
    };
    json!({
        "id": field.id,
        "name": field.name,
        "type": type_name(field.data_type).map_or_else(|| field.data_type.to_string(), str::to_owned),
        "primary": field.is_primary_key,
        "dim": number("dim"),
    })
}

/// An object of a segment: its path below the collection's folder is `PARTITION/SEGMENT/FIELD/LOG`, or `PARTITION/SEGMENT/LOG` of deletes.
fn numbers<const N: usize>(name: &str, folder: &str) -> Option<[i64; N]> {
    let below = name.strip_prefix(folder)?.trim_start_matches('/');
    let mut parts = below.split('/');
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Objects below a folder; none if it is not there.
fn listed(store: &dyn Store, folder: &str, about: &About) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    let walked = store.walk(&format!("{folder}/"), Hidden::Given, &mut |entry| {
        found.push(entry);
        if found.len() < LOGS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    match walked {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::new(error.kind(), Verb::List)
            .at(about.name.clone())
            .detail(format!("its segments cannot be listed: {error}"))
            .remedy("say where Milvus keeps them: milvus_root=s3://BUCKET/ROOT, and who may read there (AWS_ACCESS_KEY_ID and so on)")
            .caused_by(error)),
        Ok(()) if found.len() == LOGS_MAX => {
            Err(about.fail(ErrorKind::TooLarge, format!("{LOGS_MAX} binlogs or more")).remedy("compact the collection"))
        }
        Ok(()) => Ok(found),
    }
}

/// A log of deletes. One that is left out would bring rows back.
fn delete_log(entry: &Entry, folder: &str, about: &About) -> Result<Value, Error> {
    let Some([partition, _, _]) = numbers(&entry.name, folder) else {
        let detail = format!("{} is below the logs of deletes, and none of PARTITION/SEGMENT/LOG", entry.name);
        let error = about.fail(ErrorKind::Unsupported, detail);
        return Err(error.remedy("remove it from there if it is no log of deletes, or export the collection"));
    };
    Ok(json!({ "partition": partition, "uri": entry.name, "len": entry.len }))
}

/// Binlogs of a segment: of each field, by their numbers, which grow.
type Logs = BTreeMap<i64, BTreeMap<i64, Entry>>;

/// Makes the manifest of a collection whose objects lie below `root`.
pub(super) fn make(
    facts: &Facts,
    of: &Named,
    (store, root): (&dyn Store, &str),
    about: &About,
) -> Result<Vec<u8>, Error> {
    let id = facts.described.id;
    let fields = facts.described.schema.as_ref().map_or(&[][..], |schema| &schema.fields);
    let wanted = facts.flushed().filter(|segment| segment.level != LEVEL_ZERO && segment.rows > 0);
    let is_waiting = |segment: &&Segment| segment.state != FLUSHED && segment.state != DROPPED;
    let waiting: Vec<&Segment> = facts.segments.iter().filter(is_waiting).collect();
    let mut segments: BTreeMap<i64, (&Segment, Logs)> = BTreeMap::new();
    for segment in wanted {
        if segment.storage_version > 1 {
            return Err(about
                .fail(
                    ErrorKind::Unsupported,
                    format!("segment {} is of storage version {}", segment.id, segment.storage_version),
                )
                .remedy("binlogs of version 1 are read: set common.storage.enablev2 to false and compact, or export the collection"));
        }
        segments.insert(segment.id, (segment, BTreeMap::new()));
    }
    let folder = format!("{root}/insert_log/{id}");
    let logs = if segments.is_empty() { Vec::new() } else { listed(store, &folder, about)? };
    for entry in logs {
        let Some([partition, segment, field, log]) = numbers(&entry.name, &folder) else { continue };
        if let Some((_, fields)) = segments.get_mut(&segment).filter(|(facts, _)| facts.partition == partition) {
            fields.entry(field).or_default().insert(log, entry);
        }
    }
    if let Some((segment, _)) = segments.values().find(|(_, fields)| fields.is_empty()) {
        let detail = format!("nothing of segment {} is below {folder}, and it has {} rows", segment.id, segment.rows);
        return Err(about.fail(ErrorKind::NotFound, detail).remedy(
            "say where Milvus keeps segments: milvus_root=s3://BUCKET/ROOT; if they were compacted meanwhile, try again",
        ));
    }
    let folder = format!("{root}/delta_log/{id}");
    let deletes = listed(store, &folder, about)?.into_iter().filter(|entry| entry.kind == EntryKind::Object);
    let deletes = deletes.map(|entry| delete_log(&entry, &folder, about)).collect::<Result<Value, Error>>()?;
    let segments = segments.into_values().map(|(segment, fields)| {
        let fields = fields.into_iter().map(|(field, logs)| {
            let logs = logs.into_values().map(|log| json!({ "uri": log.name, "len": log.len }));
            (field.to_string(), logs.collect::<Value>())
        });
        json!({
            "id": segment.id,
            "partition": segment.partition,
            "rows": segment.rows,
            "fields": fields.collect::<serde_json::Map<_, _>>(),
        })
    });
    let partitions = facts.partitions.ids.iter().zip(&facts.partitions.names);
    let waiting_rows: i64 = waiting.iter().map(|segment| segment.rows.max(0)).fold(0, i64::saturating_add);
    let manifest = json!({
        "schema": SCHEMA,
        "server": facts.version,
        "database": of.database,
        "collection": of.collection,
        "id": id,
        "fields": fields.iter().map(field).collect::<Value>(),
        "partitions": partitions.map(|(id, name)| json!({ "id": id, "name": name })).collect::<Value>(),
        "segments": segments.collect::<Value>(),
        "deletes": deletes,
        "not_flushed": { "segments": waiting.len(), "rows": waiting_rows },
    });
    let bytes = serde_json::to_vec_pretty(&manifest);
    bytes.map_err(|error| about.fail(ErrorKind::Protocol, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About { verb: Verb::Open, name: "milvus://h/c".to_owned() }
    }

    fn facts(segments: &[(i64, i64)]) -> Facts {
        let segment = |(id, partition): &(i64, i64)| Segment {
            id: *id,
            partition: *partition,
            rows: 1,
            state: FLUSHED,
            ..Segment::default()
        };
        Facts {
            version: String::new(),
            described: Described::default(),
            partitions: Partitions { ids: vec![1, 2], names: vec!["a".into(), "b".into()], ..Partitions::default() },
            segments: segments.iter().map(segment).collect(),
        }
    }

    #[test]
    fn a_manifest_is_of_one_state() {
        let mut said = [facts(&[(1, 1)]), facts(&[(2, 1)]), facts(&[(2, 1), (9, 3)])].into_iter();
        let mut lists = 0;
        let mut list = |facts: &Facts| {
            lists += 1;
            // The first is compacted meanwhile, and its objects are gone.
            if lists == 1 { Err(about().fail(ErrorKind::NotFound, "gone")) } else { Ok(facts.segments[0].id) }
        };
        let made = settled(&mut || Ok(said.next().unwrap()), &mut list, &about());
        assert_eq!((made.unwrap(), lists), (2, 2), "a segment of a partition that was dropped is none");
        let mut id = 0;
        let mut ask = || {
            id += 1;
            Ok(facts(&[(id, 1)]))
        };
        let error = settled(&mut ask, &mut |_| Ok(()), &about()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Changed, "{error}");
        let mut list = |_: &Facts| Err::<(), _>(about().fail(ErrorKind::NotFound, "gone"));
        let error = settled(&mut || Ok(facts(&[(1, 1)])), &mut list, &about()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    }

    #[test]
    fn segments_of_a_partition_that_was_dropped_are_none() {
        let facts = facts(&[(1, 1), (2, 3), (3, 2)]);
        assert_eq!(facts.flushed().map(|segment| segment.id).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_log_of_deletes_is_never_left_out() {
        let log = |name: &str| {
            let version = sw_engine::Version::default();
            let entry = Entry { name: name.to_owned(), kind: EntryKind::Object, len: 1, version };
            delete_log(&entry, "s3://b/files/delta_log/1", &about())
        };
        assert_eq!(log("s3://b/files/delta_log/1/-1/3/4").unwrap()["partition"], -1);
        for other in
            ["s3://b/files/delta_log/1/2/3/4/5", "s3://b/files/delta_log/1/2/3", "s3://b/files/delta_log/1/2/3/x"]
        {
            let error = log(other).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains(other), "{error}");
        }
    }

    #[test]
    fn paths_of_binlogs_are_numbers() {
        assert_eq!(numbers("s3://b/files/insert_log/1/2/3/4/5", "s3://b/files/insert_log/1"), Some([2, 3, 4, 5]));
        for other in [
            "s3://b/files/insert_log/1/2/3/4",
            "s3://b/files/insert_log/1/2/3/4/x",
            "s3://b/files/insert_log/1/2/3/4/5/6",
            "s3://c",
        ] {
            assert_eq!(numbers::<4>(other, "s3://b/files/insert_log/1"), None, "{other}");
        }
    }
}
