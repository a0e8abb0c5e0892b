//! Tests that pages name: each is there, and each row of a checklist has a number of its own.
//!
//! A word in backticks is a guest's test if it is `SUITE.TEST` with a suite of `hwtests/guest`, and a test if it is written
//! like one (four underscores or more): a function, a case of a suite, or a mutant. What the sources have as a text (a setting, what `doctor`
//! looks at) may be named too.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Tree, line_of};

/// The pages that are checked.
const PAGES: [&str; 3] = ["docs/fabrics.md", "docs/rdma.md", "docs/testing.md"];
/// Where mutants are.
const MUTANTS: &str = "sw-sim/mutants/";
/// Where the guests' suites are.
const SUITES: &str = "hwtests/guest/src/suites/";
/// A name with fewer is a setting, a field or a command.
const UNDERSCORES_MIN: usize = 4;

/// Holds the pages against the suites and the tests of the tree.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let suites = suites(tree);
    PAGES
        .iter()
        .filter_map(|page| Some((*page, tree.text(page)?)))
        .flat_map(|page| of_page(tree, &suites, page))
        .collect()
}

fn of_page(tree: &Tree, suites: &BTreeMap<&str, BTreeSet<&str>>, (page, text): (&str, &str)) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, name) in code_spans(text) {
        let message = match name.split_once('.') {
            Some((suite, test)) => suites
                .get(suite)
                .filter(|tests| !tests.contains(test) && !is_text(tree, name))
                .map(|_| format!("no guest has the test {name}")),
            None => (is_function(name) && !is_test(tree, name)).then(|| format!("there is no test {name}")),
        };
        let remedy = "name the test that does it, or say that none does";
        findings.extend(message.map(|message| Finding::new(page, line_of(text, at), message, remedy)));
    }
    findings.extend(numbers((page, text)));
    findings
}

/// The rows `| 007 | …` have rising numbers.
fn numbers((page, text): (&str, &str)) -> Vec<Finding> {
    let mut before = 0u32;
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let cell = line.strip_prefix("| ").and_then(|rest| rest.split(" | ").next());
        let Some(number) = cell.filter(|cell| cell.len() == 3).and_then(|cell| cell.parse().ok()) else { continue };
        if number <= before {
            let message = format!("row {number:03} stands behind row {before:03}");
            findings.push(Finding::new(page, index + 1, message, "one row for each number, in order"));
        }
        before = number;
    }
    findings
}

/// Words in single backticks, with the offset of each.
fn code_spans(page: &str) -> Vec<(usize, &str)> {
    let mut at = 0;
    let mut spans = Vec::new();
    for (index, part) in page.split('`').enumerate() {
        if index % 2 == 1 {
            spans.push((at, part));
        }
        at += part.len() + 1;
    }
    spans
}

fn is_function(name: &str) -> bool {
    let fits = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    fits && name.matches('_').count() >= UNDERSCORES_MIN
}

fn is_test(tree: &Tree, name: &str) -> bool {
    let head = format!("fn {name}(");
    let python = format!("def {name}(");
    tree.ending(".rs").any(|(_, text)| text.contains(&head))
        || tree.ending(".py").any(|(_, text)| text.contains(&python))
        || tree.text(&format!("{MUTANTS}{name}.patch")).is_some()
        || is_text(tree, name)
}

/// Whether the sources have it as a text: a case of a suite, a setting, a name that `doctor` prints.
fn is_text(tree: &Tree, name: &str) -> bool {
    let quoted = format!("\"{name}\"");
    tree.ending(".rs").any(|(_, text)| text.contains(&quoted))
}

/// The suites of the guests and their tests, as their tables have them.
fn suites(tree: &Tree) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut suites = BTreeMap::new();
    for (_, text) in tree.ending(".rs").filter(|(path, _)| path.starts_with(SUITES)) {
        let Some(name) = text.split_once("Suite = Suite {").and_then(|(_, rest)| first_string(rest)) else { continue };
        let tests = text.split("Test::new(").skip(1).filter_map(first_string).collect();
        suites.insert(name, tests);
    }
    suites
}

fn first_string(text: &str) -> Option<&str> {
    text.split('"').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITE: &str = "pub const SUITE: Suite = Suite {\n name: \"net\",\n tests: &[Test::new(\"copy\", \"x\", copy), Test::new(\n \"lost\",\n";
    const CODE: &str =
        "#[test]\nfn a_thing_that_is_tested() {}\nCase { name: \"a_case_of_a_suite\" }, check(\"net.cable\")";

    fn found_in(name: &str, page: &str) -> Vec<String> {
        let mutant = ("sw-sim/mutants/a_mistake_made_on_purpose.patch", "-a\n+b\n");
        let tree =
            Tree::of(&[(name, page), ("hwtests/guest/src/suites/net.rs", SUITE), ("one/src/lib.rs", CODE), mutant]);
        check(&tree).iter().map(Finding::to_string).collect()
    }

    fn found(page: &str) -> Vec<String> {
        found_in("docs/testing.md", page)
    }

    #[test]
    fn tests_that_are_there_may_be_named() {
        let page = "| 002 | x | `net.copy`, `net.lost` |\n| 003 | `a_thing_that_is_tested`, `a_setting_in_bytes`, `tests/a.rs` |\n";
        assert_eq!(found(page), Vec::<String>::new());
        assert_eq!(found(""), Vec::<String>::new());
        let others = "`a_case_of_a_suite`, `a_mistake_made_on_purpose`, `net.cable`, `is_no_test_of_ours()`\n";
        assert_eq!(found(others), Vec::<String>::new());
    }

    #[test]
    fn each_page_is_looked_at() {
        for page in PAGES {
            let found = found_in(page, "`a_thing_that_is_not_tested`\n");
            assert!(found.len() == 1 && found[0].starts_with(page), "{found:?}");
        }
        assert_eq!(found_in("docs/other.md", "`a_thing_that_is_not_tested`\n"), Vec::<String>::new());
    }

    #[test]
    fn tests_that_are_not_and_rows_out_of_order_are_found() {
        let page = "`net.lose`\n| 002 | `a_thing_that_is_not_tested` |\n| 002 | x |\n";
        let found = found(page);
        assert!(found[0].starts_with("docs/testing.md:1: no guest has the test net.lose"), "{found:?}");
        assert!(found[1].starts_with("docs/testing.md:2: there is no test a_thing"), "{found:?}");
        assert!(found[2].starts_with("docs/testing.md:3: row 002 stands behind row 002"), "{found:?}");
        assert_eq!(found.len(), 3);
    }
}
