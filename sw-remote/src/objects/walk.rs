//! All objects below a prefix, at any depth, in the order of their names, with memory that is bounded whatever their number.
//!
//! ```text
//!   a page ── that is all ─► done
//!     └ there is more: names of the next level cut what is left into ranges
//!         range 1 ─► page, page, …   ┐
//!         range 2 ─► page, …         ├ some at a time, a few pages ahead ─► each, in order
//!         …                          ┘
//! ```
//!
//! A listing gives a thousand names an answer, and one answer after the other where nobody says where to begin
//! ("ListObjectsV2", `start-after`). So many answers at a time come from so many beginnings.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use object_store::{ListResult, ObjectMeta, path::DELIMITER, path::Path};
use sw_engine::{
    Error, Verb,
    seam::{Entry, Hidden, WALK_DEPTH_MAX},
};
use tokio::sync::mpsc;

use super::{ObjectStores, PAGES_MAX, bucket::Bucket, entries_of, listing::Depth};
use crate::address::{Address, Scheme};

/// Ranges that are listed at a time.
const TOGETHER: usize = 8;
/// Pages of a range that wait to be taken.
const AHEAD: usize = 2;
/// Ranges that names of the next level cut the rest into: more than are listed at a time, as they are of unequal lengths.
const CUTS_MAX: usize = 4 * TOGETHER;
/// Pages that a range should have: its last one is asked for whole and used in part.
const RANGE_PAGES: usize = 3;
/// Objects that a name of a level stands for, at least, where names are asked for to cut.
const OBJECTS_PER_NAME_MIN: usize = 4;
/// Pages of names that cut, at most.
const LEVEL_PAGES_MAX: usize = 16;
/// Levels that are looked into for one with several names.
const LEVELS_MAX: usize = 16;

/// Names behind the first one, up to the second one, which belongs to them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    after: Option<String>,
    until: Option<String>,
}

/// What is behind the last name that cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// A range of its own.
    Range,
    /// More names that cut.
    Names,
}

/// Objects of a page.
type Page = object_store::Result<Vec<ObjectMeta>>;

/// A listing that is not what listings are.
#[derive(Debug)]
struct OutOfOrder;

impl std::fmt::Display for OutOfOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the names of the listing are not in their order, or a page has itself for the next")
    }
}

impl std::error::Error for OutOfOrder {}

impl From<OutOfOrder> for object_store::Error {
    fn from(why: OutOfOrder) -> Self {
        Self::Generic { store: "listing", source: Box::new(why) }
    }
}

/// Whether names rise.
fn rises(objects: &[ObjectMeta]) -> bool {
    objects.is_sorted_by(|a, b| a.location.as_ref() < b.location.as_ref())
}

/// Lists a range, page by page, as long as somebody takes them.
async fn list(bucket: Arc<Bucket>, prefix: Option<Path>, range: Range, to: mpsc::Sender<Page>) {
    let (mut token, mut last) = (None, range.after.clone());
    loop {
        let page = bucket.page(prefix.clone(), (Depth::All, range.after.clone()), token.clone()).await;
        let (mut page, next) = match page {
            Ok((page, next)) => (page.objects, next),
            // Whoever takes them is gone, or takes the error.
            Err(error) => return drop(to.send(Err(error)).await),
        };
        let is_again = next.is_some() && next == token;
        // A store that does not begin where it is told begins at the first name.
        page.retain(|meta| range.after.as_deref().is_none_or(|after| meta.location.as_ref() > after));
        let is_behind =
            page.first().is_none_or(|first| last.as_deref().is_none_or(|last| first.location.as_ref() > last));
        if is_again || !is_behind || !rises(&page) {
            return drop(to.send(Err(OutOfOrder.into())).await);
        }
        last = page.last().map(|meta| meta.location.to_string()).or(last);
        let all = page.len();
        page.retain(|meta| range.until.as_deref().is_none_or(|until| meta.location.as_ref() <= until));
        let is_over = page.len() < all || next.is_none();
        if to.send(Ok(page)).await.is_err() || is_over {
            return;
        }
        token = next;
    }
}

/// Some of so many names, so that each range has a fair part of `objects`.
fn cuts(mut names: Vec<String>, objects: usize, page: usize) -> Vec<String> {
    names.sort_unstable();
    names.dedup();
    let ranges = (objects / (RANGE_PAGES * page.max(1))).min(CUTS_MAX).min(names.len());
    let step = names.len().div_ceil(ranges.max(1)).max(1);
    // The last one of each group, so that the very last name is one.
    let mut cut: Vec<String> = names.rchunks(step).filter_map(|group| group.last().cloned()).collect();
    cut.reverse();
    if ranges > 1 { cut } else { Vec::new() }
}

/// How many names of the level below a prefix objects have.
fn width(objects: &[ObjectMeta], prefix: Option<&Path>) -> usize {
    let above = prefix.map_or(0, |prefix| prefix.as_ref().len() + 1);
    let names = objects.iter().filter_map(|meta| meta.location.as_ref().get(above..)?.split(DELIMITER).next());
    let mut names: Vec<&str> = names.collect();
    names.dedup();
    names.len()
}

/// The ranges between names.
fn ranges(after: String, cuts: Vec<String>, rest: Rest) -> Vec<Range> {
    let mut ranges = Vec::with_capacity(cuts.len() + 1);
    let mut after = after;
    for cut in cuts {
        ranges.push(Range { after: Some(after), until: Some(cut.clone()) });
        after = cut;
    }
    if rest == Rest::Range {
        ranges.push(Range { after: Some(after), until: None });
    }
    ranges
}

impl ObjectStores {
    /// Each object below an address, as long as `each` wants them.
    /// How many there were, those that were left out included.
    pub(super) fn walk_below(
        &self,
        at: &Address,
        hidden: Hidden,
        each: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<u64, Error> {
        let bucket = self.bucket(at)?;
        if bucket.pages.is_none() {
            return Err(super::no_listing(at));
        }
        let prefix = bucket.prefix(at, Verb::List)?;
        let is_by_levels = bucket.ais.is_some();
        let mut walk = Walk { stores: self, at, bucket, prefix: prefix.clone(), hidden, each, found: 0 };
        if is_by_levels {
            let _wanted = walk.by_levels(prefix, 0)?;
        } else {
            walk.run()?;
        }
        Ok(walk.found)
    }
}

struct Walk<'a> {
    stores: &'a ObjectStores,
    at: &'a Address,
    bucket: Arc<Bucket>,
    prefix: Option<Path>,
    hidden: Hidden,
    each: &'a mut dyn FnMut(Entry) -> ControlFlow<()>,
    /// Objects that were found.
    found: u64,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let mut after: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let (page, next) = self.page((Depth::All, after.clone()), None, self.prefix.clone())?;
            let objects = page.objects;
            let begins = objects.first().is_none_or(|first| Some(first.location.as_ref()) > after.as_deref());
            let last = objects.last().map(|meta| meta.location.to_string());
            let last = last.filter(|_| begins && rises(&objects) && self.begins_anywhere());
            let first = objects.clone();
            if self.give(objects, after.as_deref()).is_break() || next.is_none() {
                return Ok(());
            }
            let Some(last) = last else { return self.one_by_one(next, after.as_deref()) };
            let (cut, rest) = self.cut(&last, &first)?;
            after = cut.last().cloned();
            if self.take(ranges(last, cut, rest))?.is_break() || rest == Rest::Range {
                return Ok(());
            }
        }
        Err(super::too_long(self.at))
    }

    /// All below a prefix, of a store whose pages are not to be relied on where there are several (AIStore): what does not come on one page is
    /// asked for level by level.
    fn by_levels(&mut self, prefix: Option<Path>, depth: usize) -> Result<ControlFlow<()>, Error> {
        let (mut page, next) = self.page((Depth::All, None), None, prefix.clone())?;
        if next.is_none() {
            page.objects.sort_by(|a, b| a.location.cmp(&b.location));
            return Ok(self.give(page.objects, None));
        }
        if depth > WALK_DEPTH_MAX {
            return Err(super::too_long(self.at));
        }
        drop(page);
        let (mut level, mut token) = (BTreeMap::new(), None);
        for _ in 0..PAGES_MAX {
            let (page, next) = self.page((Depth::Level, None), token.clone(), prefix.clone())?;
            level.extend(page.common_prefixes.into_iter().map(|path| (format!("{path}{DELIMITER}"), Err(path))));
            level.extend(page.objects.into_iter().map(|meta| (meta.location.to_string(), Ok(meta))));
            if next.is_none() {
                break;
            }
            if next == token {
                return Err(super::endless(self.at));
            }
            token = next;
        }
        for one in level.into_values() {
            let wanted = match one {
                Ok(meta) => self.give(vec![meta], None),
                Err(below) => self.by_levels(Some(below), depth + 1)?,
            };
            if wanted.is_break() {
                return Ok(wanted);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The pages behind one, of a store that begins nowhere else, or whose names are in no order. Names up to `known` were given.
    fn one_by_one(&mut self, mut token: Option<String>, known: Option<&str>) -> Result<(), Error> {
        for _ in 0..PAGES_MAX {
            let (page, next) = self.page((Depth::All, None), token.clone(), self.prefix.clone())?;
            if self.give(page.objects, known).is_break() || next.is_none() {
                return Ok(());
            }
            if next == token {
                return Err(super::endless(self.at));
            }
            token = next;
        }
        Err(super::too_long(self.at))
    }

    /// Whether listings begin at a name that is no object's too.
    fn begins_anywhere(&self) -> bool {
        matches!(self.at.scheme, Scheme::S3 | Scheme::Gcs)
    }

    fn page(
        &self,
        (depth, after): (Depth, Option<String>),
        token: Option<String>,
        prefix: Option<Path>,
    ) -> Result<(ListResult, Option<String>), Error> {
        let bucket = self.bucket.clone();
        let work = async move { bucket.page(prefix, (depth, after), token).await };
        self.stores.ask(self.at, Verb::List, work)
    }

    /// Names behind `last` that cut what is left, in parts that are not small by what a page of objects shows.
    fn cut(&self, last: &str, first: &[ObjectMeta]) -> Result<(Vec<String>, Rest), Error> {
        let mut prefix = self.prefix.clone();
        for _ in 0..LEVELS_MAX {
            let width = width(first, prefix.as_ref()).max(1);
            // A page of names costs as much as one of objects.
            if first.len() / width < OBJECTS_PER_NAME_MIN {
                break;
            }
            let (mut names, mut token) = (Vec::new(), None);
            for _ in 0..LEVEL_PAGES_MAX {
                let (page, next) = self.page((Depth::Level, Some(last.to_owned())), token, prefix.clone())?;
                let ends = |path: &Path| format!("{path}{DELIMITER}");
                let objects = page.objects.iter().map(|meta| meta.location.to_string());
                let all = page.common_prefixes.iter().map(ends).chain(objects);
                names.extend(all.filter(|name| name.as_str() > last));
                token = next;
                if token.is_none() || names.len() * first.len() / width >= CUTS_MAX * RANGE_PAGES * first.len() {
                    break;
                }
            }
            if !names.is_empty() {
                let objects = names.len().saturating_mul(first.len()) / width;
                let cut = cuts(names, objects, first.len());
                let rest = if token.is_none() || cut.is_empty() { Rest::Range } else { Rest::Names };
                return Ok((cut, rest));
            }
            // All that is left lies below the name that `last` is below, if it is below one: that level has more.
            let above = prefix.as_ref().map_or(0, |prefix| prefix.as_ref().len() + 1);
            let slash = last.get(above..).and_then(|below| below.find(DELIMITER));
            let Some(below) = slash.and_then(|slash| Path::parse(last.get(..above + slash)?).ok()) else { break };
            prefix = Some(below);
        }
        Ok((Vec::new(), Rest::Range))
    }

    /// Gives what ranges have, in order, while the next ones are listed.
    fn take(&mut self, ranges: Vec<Range>) -> Result<ControlFlow<()>, Error> {
        let runtime = self.stores.context.runtime().handle()?;
        let mut begun = std::collections::VecDeque::new();
        let mut ranges = ranges.into_iter();
        loop {
            while begun.len() < TOGETHER
                && let Some(range) = ranges.next()
            {
                let (to, pages) = mpsc::channel(AHEAD);
                runtime.spawn(list(self.bucket.clone(), self.prefix.clone(), range, to));
                begun.push_back(pages);
            }
            let Some(mut pages) = begun.pop_front() else { return Ok(ControlFlow::Continue(())) };
            loop {
                let next = async move {
                    let page = pages.recv().await.transpose()?;
                    Ok((page, pages))
                };
                let (page, left) = self.stores.ask(self.at, Verb::List, next)?;
                pages = left;
                let Some(page) = page else { break };
                if self.give(page, None).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }

    /// Gives objects, but for those whose names are `known` or before it.
    fn give(&mut self, mut objects: Vec<ObjectMeta>, known: Option<&str>) -> ControlFlow<()> {
        objects.retain(|meta| known.is_none_or(|known| meta.location.as_ref() > known));
        let page = ListResult { common_prefixes: Vec::new(), objects, extensions: http::Extensions::default() };
        let above = self.at.to_string().trim_end_matches('/').len();
        for entry in entries_of(self.at, page) {
            self.found += 1;
            let is_hidden = entry.name.get(above..).is_some_and(|below| below.contains("/."));
            if self.hidden == Hidden::Given || !is_hidden {
                (self.each)(entry)?;
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_cut_into_ranges_of_some_pages_and_the_last_one_is_among_them() {
        assert_eq!(cuts(names(&["b/", "a", "b/"]), 9_000, 1000), ["a", "b/"]);
        assert!(cuts(Vec::new(), 0, 1000).is_empty());
        let many: Vec<String> = (0..1000).map(|number| format!("{number:04}")).collect();
        for (objects, least, most) in [(1_300_000, CUTS_MAX - 1, CUTS_MAX), (9_000, 3, 3), (3_000, 0, 0), (0, 0, 0)] {
            let cut = cuts(many.clone(), objects, 1000);
            assert!((least..=most).contains(&cut.len()), "{objects}: {}", cut.len());
            assert!(cut.is_sorted() && cut.last().is_none_or(|last| last == "0999"));
        }
    }

    #[test]
    fn ranges_have_each_name_once() {
        let range =
            |after: &str, until: Option<&str>| Range { after: Some(after.into()), until: until.map(Into::into) };
        let all = ranges("a".into(), names(&["c", "f/"]), Rest::Range);
        assert_eq!(all, [range("a", Some("c")), range("c", Some("f/")), range("f/", None)]);
        assert_eq!(ranges("a".into(), names(&["c"]), Rest::Names), [range("a", Some("c"))]);
        assert_eq!(ranges("a".into(), Vec::new(), Rest::Range), [range("a", None)]);
    }
}
