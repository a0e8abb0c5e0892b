//! Where `unsafe` may stand: only in the crates that the layer table allows it, and there only in files that say why.
//!
//! Clippy holds the rest: a SAFETY comment on each block, one operation per block, a `# Safety` section on each
//! unsafe function.

use super::layers::{DOCUMENT, Row, Table, Unsafety};
use super::source::{Views, words};
use super::workspace::{Package, Workspace};
use super::{Finding, Tree, line_of};

/// The line that a file with unsafe code opens with.
const WHY: &str = "// UNSAFETY:";
/// How far down it may stand, in lines: below a module doc with its picture, above the code.
const WHY_LINE_MAX: usize = 60;
/// What the root of a crate without unsafe code says.
const FORBID: &str = "#![forbid(unsafe_code)]";

/// Holds every Rust file of every crate against the table.
pub fn check(table: &Table, members: &Workspace, tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &members.packages {
        let Some(row) = table.row(&package.name) else { continue };
        if row.unsafety != Unsafety::Allow {
            findings.extend(check_roots(package, tree));
        }
        for (path, text) in tree.ending(".rs").filter(|(path, _)| package.owns(path, members)) {
            findings.extend(check_file(row, package, path, text));
        }
    }
    findings
}

fn check_roots(package: &Package, tree: &Tree) -> Vec<Finding> {
    let roots = ["src/lib.rs", "src/main.rs"].map(|root| package.path(root));
    let lacks = |root: &&String| tree.text(root).is_some_and(|text| !Views::of(text).code.contains(FORBID));
    let finding = |root: &String| {
        let message = format!("{} is a crate without unsafe code and does not say so", package.name);
        Finding::new(root, 0, message, format!("add {FORBID}"))
    };
    roots.iter().filter(lacks).map(finding).collect()
}

fn check_file(row: &Row, package: &Package, path: &str, text: &str) -> Option<Finding> {
    let first = words(&Views::of(text).code, "unsafe").next()?;
    let line = line_of(text, first);
    let in_tests = path.starts_with(&package.path("tests/"));
    let allowed = row.unsafety == Unsafety::Allow || (row.unsafety == Unsafety::ForbidOutsideTests && in_tests);
    if !allowed {
        let message = format!("unsafe code in {}", package.name);
        return Some(Finding::new(path, line, message, format!("move it to a crate where {DOCUMENT} allows it")));
    }
    let says_why = text.lines().take(WHY_LINE_MAX).any(|line| line.trim_start().starts_with(WHY));
    (!says_why).then(|| {
        let remedy = format!("open the file with `{WHY} why this module exists`, within {WHY_LINE_MAX} lines");
        Finding::new(path, line, "unsafe code in a file that does not say why it exists", remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(unsafety: &str, files: &[(&str, &str)]) -> Vec<String> {
        let table = format!(
            "| Layer | Crate | One sentence | May use | unsafe |\n|---|---|---|---|---|\n| 0 | `mem` | x | | {unsafety} |\n"
        );
        let mut all = vec![(DOCUMENT, table.as_str())];
        all.extend_from_slice(files);
        let tree = Tree::of(&all);
        let package = Package { name: "mem".into(), dir: "mem".into(), ..Package::default() };
        let members = Workspace { packages: vec![package] };
        let table = Table::parse(&tree).unwrap();
        check(&table, &members, &tree).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_root_without_forbid_is_found() {
        let found_plain = found("forbid", &[("mem/src/lib.rs", "//! Doc.\n")]);
        assert!(found_plain[0].starts_with("mem/src/lib.rs:1: mem is a crate without"), "{found_plain:?}");
        // In a comment it does nothing, so it does not count.
        assert_eq!(found("forbid", &[("mem/src/lib.rs", "// #![forbid(unsafe_code)]\n")]).len(), 1);
        assert!(found("forbid", &[("mem/src/lib.rs", "#![forbid(unsafe_code)]\n")]).is_empty());
    }

    #[test]
    fn unsafe_in_a_forbidding_crate_is_found() {
        let file = ("mem/src/a.rs", "fn f() {\n    unsafe { g() }\n}\n");
        assert!(found("forbid", &[file])[0].starts_with("mem/src/a.rs:2: unsafe code in mem"));
        assert!(found("forbid, tests allow", &[file])[0].starts_with("mem/src/a.rs:2: unsafe code in mem"));
        assert!(found("forbid", &[("mem/tests/a.rs", "unsafe {}")])[0].contains("unsafe code in mem"));
    }

    #[test]
    fn a_file_that_does_not_say_why_is_found() {
        assert!(found("allow", &[("mem/src/a.rs", "unsafe { g() }")])[0].contains("does not say why"));
        assert!(found("forbid, tests allow", &[("mem/tests/a.rs", "unsafe {}")])[0].contains("does not say why"));
        let late = format!("{}// UNSAFETY: late\nunsafe {{}}", "\n".repeat(WHY_LINE_MAX));
        assert_eq!(found("allow", &[("mem/src/a.rs", &late)]).len(), 1);
    }

    #[test]
    fn allowed_unsafe_that_says_why_passes() {
        let text = "//! Doc.\n// UNSAFETY: it maps memory\nunsafe { g() }";
        assert!(found("allow", &[("mem/src/a.rs", text)]).is_empty());
        assert!(found("forbid, tests allow", &[("mem/tests/a.rs", text)]).is_empty());
    }

    #[test]
    fn the_word_in_prose_is_no_code() {
        let text = "#![forbid(unsafe_code)]\n// unsafe is not used\nconst S: &str = \"unsafe\";";
        assert!(found("forbid", &[("mem/src/lib.rs", text)]).is_empty());
    }
}
