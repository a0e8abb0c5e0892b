//! Members of an archive to samples, as the webdataset library groups them.
//!
//! Source: webdataset `src/webdataset/tariterators.py`, `base_plus_ext`, `tar_file_iterator`, `group_by_keys` (version 1.0).

use super::{Extent, FormatError, Member, Wrong, shown};

/// Most fields of a sample. Real ones have some ten.
const FIELDS_MAX: usize = 1024;

/// One part of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// What follows the first dot of the base name, in lower case: `jpg`, `seg.png`.
    pub name: String,
    /// Its bytes in the archive.
    pub content: Extent,
}

/// Members that follow each other and have one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The path up to the first dot of the base name.
    pub key: String,
    /// Its parts, in the archive's order.
    pub fields: Vec<Field>,
}

/// Groups members. Those without an extension, and those in or named `__…__`, belong to no sample.
#[derive(Debug, Default)]
pub struct Grouping {
    sample: Option<Sample>,
    /// Key of a sample that has a field twice: what is left of it is gone over.
    spoilt: Option<String>,
    skipped: u64,
}

impl Grouping {
    /// Takes the next member; returns the sample that is complete by it.
    ///
    /// # Errors
    /// `Field` for a name that is not UTF-8; `TwoFields` and `TooMany`: the sample is given up as a whole. Grouping can go on after
    /// any of them.
    pub fn add(&mut self, member: &Member) -> Result<Option<Sample>, FormatError> {
        let fail = |wrong| FormatError { offset: member.content.offset, wrong };
        let name =
            str::from_utf8(&member.name).map_err(|_| fail(Wrong::Field { field: "a member's name as UTF-8" }))?;
        let Some((key, extension)) = split(name).filter(|_| !is_meta(name)) else {
            self.skipped += 1;
            return Ok(None);
        };
        if self.spoilt.as_deref() == Some(key) {
            self.skipped += 1;
            return Ok(None);
        }
        self.spoilt = None;
        let field = Field { name: extension.to_lowercase(), content: member.content };
        let sample = self.sample.take();
        let (complete, mut sample) = match sample {
            Some(sample) if sample.key == key => (None, sample),
            other => (other, Sample { key: key.to_owned(), fields: Vec::new() }),
        };
        let twice = sample.fields.iter().any(|other| other.name == field.name);
        if twice || sample.fields.len() == FIELDS_MAX {
            self.skipped += sample.fields.len() as u64 + 1;
            let key = shown(sample.key.as_bytes());
            self.spoilt = Some(sample.key);
            return Err(fail(match twice {
                true => Wrong::TwoFields { key, field: shown(field.name.as_bytes()) },
                false => Wrong::TooMany { what: "the fields of a sample", max: FIELDS_MAX as u64 },
            }));
        }
        sample.fields.push(field);
        self.sample = Some(sample);
        Ok(complete)
    }

    /// The last sample, at the end of an archive: samples do not go on in the next one.
    pub fn finish(&mut self) -> Option<Sample> {
        self.sample.take()
    }

    /// Members that belong to no sample.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

/// Key and extension: the base name is cut at its first dot, which is neither its first byte nor absent.
pub(super) fn split(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name.get(base..)?.find('.')?;
    if dot == base { None } else { Some((&name[..dot], &name[dot + 1..])) }
}

/// Whether a name is in or of something like `__meta__`: webdataset keeps its own notes there.
fn is_meta(name: &str) -> bool {
    name.split('/').any(|part| part.len() >= 4 && part.starts_with("__") && part.ends_with("__"))
}
