//! The manifest of a collection: what its API says of it, and the objects that its flushed segments are.

use std::{collections::BTreeMap, ops::ControlFlow};

use serde_json::{Value, json};
use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{Entry, Hidden, Store},
};

use super::{
    call::{About, Api},
    messages::{
        DROPPED, Described, FLUSHED, Field, LEVEL_ZERO, Named, Nothing, Partitions, Segment, Segments, Version,
        type_name,
    },
};

/// Binlogs of a collection, at most.
const LOGS_MAX: usize = 10_000_000;
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
    let (is_wanted, others): (Vec<&Segment>, Vec<&Segment>) =
        facts.segments.iter().partition(|one| one.state == FLUSHED);
    let wanted = is_wanted.into_iter().filter(|segment| segment.level != LEVEL_ZERO && segment.rows > 0);
    let waiting: Vec<&Segment> = others.into_iter().filter(|segment| segment.state != DROPPED).collect();
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
    let deletes = listed(store, &folder, about)?.into_iter().filter_map(|entry| {
        let [partition, _, _] = numbers(&entry.name, &folder)?;
        Some(json!({ "partition": partition, "uri": entry.name, "len": entry.len }))
    });
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
        "deletes": deletes.collect::<Value>(),
        "not_flushed": { "segments": waiting.len(), "rows": waiting_rows },
    });
    let bytes = serde_json::to_vec_pretty(&manifest);
    bytes.map_err(|error| about.fail(ErrorKind::Protocol, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
