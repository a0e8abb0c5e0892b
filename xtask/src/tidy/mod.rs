//! The project's own checks over the tree, for what rustc and clippy cannot know.
//!
//! ```text
//! git ls-files ──► Tree (paths, texts) ─┬─ layers    table of docs/ARCHITECTURE.md against the manifests
//! cargo metadata ──► Workspace ─────────┤  unsafety  forbid where the table says so, UNSAFETY lines elsewhere
//!                                       ├─ form      lengths, marks, suppressions, vendor words
//!                                       ├─ links     relative links and anchors in *.md
//!                                       └─ licences  of third-party crates
//!                                            └──► findings: `path:line: message; remedy`
//! ```
//!
//! Every check is a pure function over values, so that its tests plant a violation and see it found; but for lock files of workspaces of their
//! own, which cargo looks at.

mod form;
mod layers;
mod licences;
mod links;
mod named_tests;
mod source;
mod unsafety;
mod workspace;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::proc::{Echo, Job};
use crate::{Place, Stop};

/// One violation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    path: String,
    /// From 1; 0 for the file as a whole.
    line: usize,
    message: String,
    remedy: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { path: path.to_string(), line, message: message.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", self.path, self.line.max(1), self.message, self.remedy)
    }
}

/// The files that git knows or would add: every path, and the text of those that are text.
#[derive(Debug, Default)]
pub struct Tree {
    paths: BTreeSet<String>,
    texts: BTreeMap<String, String>,
}

/// Larger files are data, not text to check. In bytes.
const TEXT_MAX: u64 = 4 << 20;

impl Tree {
    fn read(place: &Place) -> Result<Tree, Stop> {
        let args = ["ls-files", "--cached", "--others", "--exclude-standard"].map(String::from);
        let listed = Job::program(place, Path::new("git"), &args).echo(Echo::Hidden).run()?;
        if !listed.ok() {
            return Err(Stop::new("git ls-files failed", "run tidy inside a git clone"));
        }
        let mut tree = Tree::default();
        for path in listed.lines {
            let full = place.root.join(&path);
            // A file that git tracks and that was just removed is not there to be checked.
            let Ok(meta) = std::fs::symlink_metadata(&full) else { continue };
            if meta.is_file()
                && meta.len() <= TEXT_MAX
                && let Ok(text) = std::fs::read_to_string(&full)
            {
                tree.texts.insert(path.clone(), text);
            }
            tree.paths.insert(path);
        }
        Ok(tree)
    }

    /// Text files whose path ends in `suffix`.
    fn ending<'a>(&'a self, suffix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.texts.iter().filter(move |(path, _)| path.ends_with(suffix)).map(|(path, text)| (&**path, &**text))
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// Whether a file or a directory has this path.
    fn has(&self, path: &str) -> bool {
        let below = format!("{path}/");
        path.is_empty()
            || self.paths.contains(path)
            || self.paths.range(below.clone()..).next().is_some_and(|next| next.starts_with(&below))
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Tree {
        let texts: BTreeMap<String, String> = files.iter().map(|(p, t)| (p.to_string(), t.to_string())).collect();
        Tree { paths: texts.keys().cloned().collect(), texts }
    }
}

/// Runs every check, prints each finding on a line, fails if there is one.
pub fn run(place: &Place) -> Result<ExitCode, Stop> {
    let tree = Tree::read(place)?;
    let members = members(place)?;
    let everything = workspace::Workspace::parse(&metadata(place, &[])?)?;
    let mut findings = check(&tree, &members);
    findings.extend(licences::check(&everything));
    findings.extend(locks(place, &tree)?);
    findings.sort();
    findings.dedup();
    for finding in &findings {
        println!("{finding}");
    }
    let checked = format!("{} files, {} crates", tree.paths.len(), everything.packages.len());
    if findings.is_empty() {
        println!("tidy: {checked}, nothing found");
        return Ok(ExitCode::SUCCESS);
    }
    println!("tidy: {checked}, {} findings", findings.len());
    Ok(ExitCode::FAILURE)
}

/// Workspaces of their own (fuzzers) whose lock file does not know what a crate of ours needs by now: their builds refuse it, an hour later.
fn locks(place: &Place, tree: &Tree) -> Result<Vec<Finding>, Stop> {
    let mut findings = Vec::new();
    for path in tree.paths.iter().filter(|path| path.ends_with("/Cargo.lock")) {
        let manifest = format!("{}toml", path.trim_end_matches("lock"));
        let args = ["update", "--workspace", "--locked", "--manifest-path", &manifest].map(String::from);
        if !Job::cargo(place, &args).echo(Echo::Hidden).limit(Duration::from_secs(300)).run()?.ok() {
            let remedy = format!("run cargo update --workspace --manifest-path {manifest}, and commit what it changes");
            findings.push(Finding::new(path, 0, "is not what its workspace needs", remedy));
        }
    }
    Ok(findings)
}

/// The workspace's own crates.
pub fn members(place: &Place) -> Result<workspace::Workspace, Stop> {
    workspace::Workspace::parse(&metadata(place, &["--no-deps"])?)
}

fn check(tree: &Tree, members: &workspace::Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    match layers::Table::parse(tree) {
        Ok(table) => {
            findings.extend(layers::check(&table, members, tree));
            findings.extend(unsafety::check(&table, members, tree));
        }
        Err(finding) => findings.push(finding),
    }
    findings.extend(form::check(tree));
    findings.extend(links::check(tree));
    findings.extend(named_tests::check(tree));
    findings
}

fn metadata(place: &Place, extra: &[&str]) -> Result<String, Stop> {
    let mut args = ["metadata", "--format-version", "1"].map(String::from).to_vec();
    args.extend(extra.iter().map(|arg| arg.to_string()));
    let outcome = Job::cargo(place, &args).echo(Echo::Hidden).limit(Duration::from_secs(300)).run()?;
    if !outcome.ok() {
        return Err(Stop::new("cargo metadata failed", "run `cargo metadata` to see why"));
    }
    Ok(outcome.lines.join("\n"))
}

/// Line number, from 1, of a byte offset in `text`.
fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}
