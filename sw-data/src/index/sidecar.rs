//! Index files that lie beside a shard, as DALI's tools and DLIO write them: its samples come from there, and the shard is not walked.
//!
//! ```text
//!   names beside the shard ─► read: does it fit? ─► a few heads of the shard: do they agree? ─► read again: pass samples on
//!                                    └────────────── no ──────────────┴─► told, and the shard is walked
//! ```
//!
//! It is read twice, so that nothing was passed on when it turns out not to fit, and memory is bounded whatever its length. What the
//! walk would have held against checksums and this does not (heads of records and members) is counted; checksums that TFRecord
//! stores behind its payloads are not read, so that samples from a side-car have none.

use straightway::{Error, ErrorKind, Object, Uri, Verb};

use crate::{
    formats::{
        FormatError, Grouping, Member, Record, Sample, Scan as _, TarScan, TfRecordIndexScan, WdsIndexScan, Wrong,
    },
    samples::Format,
};

use super::scan::{Collect, Window, grouped, malformed};

/// Whether index files beside shards are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideCars {
    /// Where they fit, and only if no checksums are computed: then every byte is read anyhow.
    Use,
    /// Every shard is walked.
    Ignore,
}

/// What came of the side-cars of an object.
#[derive(Debug)]
pub(super) enum Aside {
    /// There is none, or it was not looked for.
    Nothing,
    /// The samples are from it.
    Used(Used),
    /// It does not fit.
    Unfit {
        /// Its address.
        sidecar: String,
        /// Why.
        error: Error,
    },
}

/// Samples from a side-car.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    /// How many.
    pub samples: u64,
    /// Heads in the shard that were not looked at.
    pub heads_unchecked: u64,
    /// Members that belong to no sample, as far as the side-car names them.
    pub passed: u64,
}

/// Heads of a shard that are looked at: the first, the last, and between 7 and 15 in between.
const SPOTS_MAX: usize = 16;
/// Bytes of a unit of a tar archive.
const TAR_BLOCK: u64 = 512;

/// Takes the samples of a shard from a side-car, if one lies beside it and fits.
///
/// # Errors
/// `Cancelled`; what passing on returns, and a side-car that changes meanwhile. One that does not fit is no error.
pub(super) fn samples(
    shard: &mut Window<'_>,
    (uri, format): (&Uri, Format),
    collect: &mut Collect<'_, '_>,
) -> Result<Aside, Error> {
    let mut aside = Aside::Nothing;
    for name in names(uri, format) {
        let opened = match name.parse().and_then(|uri: Uri| shard.engine().open(&uri)) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            opened => opened,
        };
        let fit = opened.and_then(|index| Ok((fits(shard, &index, format)?, index)));
        match fit {
            Ok((spots, index)) => return take(shard, &index, (format, spots), collect).map(Aside::Used),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) if matches!(aside, Aside::Nothing) => aside = Aside::Unfit { sidecar: name, error },
            Err(_) => {}
        }
    }
    Ok(aside)
}

/// What side-cars of a shard are called, the surest first.
///
/// DALI's `wds2idx` names them by what precedes the first dot of the shard's name, `tfrecord2idx` as it is told: by its documentation
/// the shard's name with another ending, or with one more.
fn names(uri: &Uri, format: Format) -> Vec<String> {
    let Uri::File(path) = uri else { return Vec::new() };
    let mut names = vec![format!("{path}.idx"), format!("{path}.index")];
    let base = path.rfind('/').map_or(0, |slash| slash + 1);
    let mut other_ending = |dot: Option<usize>| {
        let name = dot.filter(|dot| *dot > 0).map(|dot| format!("{}.idx", &path[..base + dot]));
        names.extend(name.filter(|name| !names.contains(name) && name != path));
    };
    other_ending(path[base..].rfind('.'));
    if format == Format::Tar {
        other_ending(path[base..].find('.'));
    }
    names
}

/// How many heads a shard has, and how many of them were looked at.
struct Heads {
    all: u64,
    checked: u64,
}

/// Holds a shard against a side-car.
fn fits(shard: &mut Window<'_>, index: &Object, format: Format) -> Result<Heads, Error> {
    let mut lines = shard.beside(index);
    if format == Format::Tar { archive_fits(shard, &mut lines) } else { records_fit(shard, &mut lines) }
}

/// The records of a side-car fill their file from its first byte to its last, which its scan looks after; and heads of some agree.
fn records_fit(shard: &mut Window<'_>, lines: &mut Window<'_>) -> Result<Heads, Error> {
    let mut spots = Spots::default();
    lines.drive(&mut record_lines(shard, lines)?, |_, record| {
        spots.add(record);
        Ok(())
    })?;
    let all = spots.number;
    let checked = spots.into_each(|record: Record| {
        let mut head = Vec::with_capacity(12);
        shard.visit(record.head(), |bytes| head.extend_from_slice(bytes))?;
        record.check_head(&head).map_err(|error| malformed(shard.object().name(), &error))
    })?;
    Ok(Heads { all, checked })
}

fn record_lines(shard: &Window<'_>, lines: &Window<'_>) -> Result<TfRecordIndexScan, Error> {
    let scan = TfRecordIndexScan::new(lines.object().len(), shard.object().len());
    scan.map_err(|error| malformed(lines.object().name(), &error))
}

fn archive_lines(shard: &Window<'_>, lines: &Window<'_>) -> Result<WdsIndexScan, Error> {
    let scan = WdsIndexScan::new(lines.object().len(), shard.object().len());
    scan.map_err(|error| malformed(lines.object().name(), &error))
}

/// Where a member of an archive must be found.
#[derive(Clone, Debug)]
struct Spot {
    /// The first byte that belongs to no member before it.
    from: u64,
    member: Member,
}

/// The members of a side-car stand in the order of the archive with room for their headers, they are samples as the walk groups them,
/// headers of some agree, and no sample comes behind the last.
fn archive_fits(shard: &mut Window<'_>, lines: &mut Window<'_>) -> Result<Heads, Error> {
    let (mut spots, mut grouping, mut from) = (Spots::default(), Grouping::default(), 0);
    let name = lines.object().name().to_owned();
    let fail = |error: FormatError| malformed(&name, &error);
    let mut scan = archive_lines(shard, lines)?;
    lines.drive(&mut scan, |_, sample| {
        for member in members(sample) {
            grouping.add(&member).map_err(fail)?;
            let content = member.content;
            let place = Wrong::Differs { what: "the place of a member", here: from + TAR_BLOCK, index: content.offset };
            if content.offset % TAR_BLOCK != 0 || content.offset < from + TAR_BLOCK {
                return Err(fail(FormatError { offset: content.offset, wrong: place }));
            }
            spots.add(Spot { from, member });
            // Inside the archive, as the scan of the side-car looked after: no overflow.
            from = (content.offset + content.len).next_multiple_of(TAR_BLOCK);
        }
        Ok(())
    })?;
    if !scan.has_names() {
        let wrong = Wrong::Unsupported { what: "an index without names of members", name: "v1.1".to_owned() };
        return Err(fail(FormatError { offset: 0, wrong }));
    }
    let all = spots.number;
    let checked = spots.into_each(|spot: Spot| {
        let found = next_sample(shard, spot.from)?;
        let said = alone(&spot.member).map_err(fail)?;
        if said.is_none() || found == said { Ok(()) } else { Err(differs(shard, &spot, found.as_ref())) }
    })?;
    let end = from.min(shard.object().len());
    match next_sample(shard, end)? {
        None => Ok(Heads { all, checked }),
        Some(_) => Err(Error::new(ErrorKind::BadFormat, Verb::Parse)
            .at(name)
            .detail(format!("{} goes on behind its last sample, at byte {end}", shard.object().name()))
            .remedy("make the index again, or remove it")),
    }
}

fn differs(shard: &Window<'_>, spot: &Spot, found: Option<&Sample>) -> Error {
    let told = |sample: &Sample| sample.fields.first().map(|field| format!("{}.{}", sample.key, field.name));
    let here = found.and_then(told).unwrap_or_else(|| "no member".to_owned());
    Error::new(ErrorKind::BadFormat, Verb::Parse)
        .at(shard.object().name())
        .in_range(spot.member.content.offset, spot.member.content.len)
        .detail(format!("its index has {} there, and the archive {here}", String::from_utf8_lossy(&spot.member.name)))
        .remedy("make the index again, or remove it")
}

/// The fields of a sample as members, for the walk's own grouping to take: it may see them otherwise than who made the side-car.
fn members(sample: Sample) -> impl Iterator<Item = Member> {
    let Sample { key, fields } = sample;
    fields.into_iter().map(move |field| Member { name: format!("{key}.{}", field.name).into(), content: field.content })
}

/// A member as a sample of its own; `None` if it belongs to no sample.
fn alone(member: &Member) -> Result<Option<Sample>, FormatError> {
    let mut grouping = Grouping::default();
    grouping.add(member)?;
    Ok(grouping.finish())
}

/// The next member of an archive that belongs to a sample, from a header on.
fn next_sample(shard: &mut Window<'_>, from: u64) -> Result<Option<Sample>, Error> {
    let name = shard.object().name().to_owned();
    let fail = |error: FormatError| malformed(&name, &error);
    let mut scan = TarScan::starting_at(from, shard.object().len()).map_err(fail)?;
    loop {
        while let Some(member) = scan.next() {
            if let Some(sample) = alone(&member).map_err(fail)? {
                return Ok(Some(sample));
            }
        }
        let Some(need) = scan.need() else { return Ok(None) };
        scan.push(shard.bytes(need)?).map_err(fail)?;
    }
}

/// Passes on what a side-car says that fits.
fn take(
    shard: &mut Window<'_>,
    index: &Object,
    (format, heads): (Format, Heads),
    collect: &mut Collect<'_, '_>,
) -> Result<Used, Error> {
    let mut lines = shard.beside(index);
    let mut grouping = Grouping::default();
    if format == Format::Tar {
        let fail = |error: FormatError| malformed(index.name(), &error);
        lines.drive(&mut archive_lines(shard, &lines)?, |_, sample| {
            members(sample).try_for_each(|member| match grouping.add(&member).map_err(fail)? {
                Some(sample) => grouped(&sample, collect),
                None => Ok(()),
            })
        })?;
        if let Some(sample) = grouping.finish() {
            grouped(&sample, collect)?;
        }
    } else {
        lines.drive(&mut record_lines(shard, &lines)?, |_, record| collect.numbered(record.payload, None))?;
    }
    index.check_unchanged()?;
    let (samples, heads_unchecked) = (collect.count(), heads.all - heads.checked);
    Ok(Used { samples, heads_unchecked, passed: grouping.skipped() })
}

/// Some of many, spread evenly, whose number is not known before the last: every n-th, and the last.
#[derive(Debug)]
struct Spots<T> {
    kept: Vec<T>,
    /// Which of them are kept.
    every: u64,
    last: Option<T>,
    number: u64,
}

impl<T> Default for Spots<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), every: 1, last: None, number: 0 }
    }
}

impl<T> Spots<T> {
    fn add(&mut self, item: T) {
        if let Some(before) = self.last.replace(item)
            && (self.number - 1).is_multiple_of(self.every)
        {
            self.kept.push(before);
        }
        self.number += 1;
        if self.kept.len() == SPOTS_MAX {
            let mut number = 0;
            self.kept.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.every *= 2;
        }
    }

    /// Looks at each; returns how many there are.
    fn into_each(self, mut look: impl FnMut(T) -> Result<(), Error>) -> Result<u64, Error> {
        let mut looked = 0;
        for spot in self.kept.into_iter().chain(self.last) {
            look(spot)?;
            looked += 1;
        }
        Ok(looked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spots_are_the_first_the_last_and_some_between() {
        for count in [0u64, 1, 2, 15, 16, 17, 18, 100, 1000, 65_537] {
            let mut spots = Spots::default();
            (0..count).for_each(|number| spots.add(number));
            let mut seen = Vec::new();
            let looked = spots.into_each(|number| {
                seen.push(number);
                Ok(())
            });
            assert_eq!(looked.unwrap(), seen.len() as u64);
            assert_eq!(seen.first().copied(), (count > 0).then_some(0), "{count}");
            assert_eq!(seen.last().copied(), count.checked_sub(1), "{count}");
            assert!(seen.is_sorted() && seen.len() <= SPOTS_MAX + 1, "{count}: {seen:?}");
            assert!(count < 17 && seen.len() as u64 == count || seen.len() >= 9, "{count}: {seen:?}");
        }
    }

    #[test]
    fn names_are_those_that_the_tools_give() {
        let of = |path: &str, format| names(&path.parse().unwrap(), format);
        assert_eq!(of("/d.x/a.tar", Format::Tar), ["/d.x/a.tar.idx", "/d.x/a.tar.index", "/d.x/a.idx"]);
        assert_eq!(of("/a.b.tar", Format::Tar), ["/a.b.tar.idx", "/a.b.tar.index", "/a.b.idx", "/a.idx"]);
        assert_eq!(of("/d/.tfrecord", Format::TfRecord), ["/d/.tfrecord.idx", "/d/.tfrecord.index"]);
        assert_eq!(of("/a.tfrecord-0-of-1", Format::TfRecord).last().unwrap(), "/a.idx");
        assert!(of("nvme://0000:01:00.0/1", Format::Tar).is_empty());
    }
}
