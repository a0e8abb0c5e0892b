//! The layer table: which crate may use which. The table in `docs/ARCHITECTURE.md` is the source; this file reads it.
//!
//! A product crate uses crates of lower layers only, and of those only the ones its row names. Crates of the layer
//! `–` (tests, tools) are used by nobody except tests, as the row of [`ANY_TEST`] says.

use super::workspace::{Package, Workspace};
use super::{Finding, Tree};

/// Where the table is.
pub const DOCUMENT: &str = "docs/ARCHITECTURE.md";
/// The row that says what `[dev-dependencies]` of any crate may name besides its own row.
const ANY_TEST: &str = "tests of any crate";
/// The layer whose crates must not know each other: each is one way to move bytes.
const BACKENDS: u32 = 3;

/// The parsed table.
#[derive(Debug)]
pub struct Table {
    pub rows: Vec<Row>,
    in_any_test: Vec<String>,
}

/// One crate's row.
#[derive(Debug)]
pub struct Row {
    /// Line in the document, from 1.
    pub line: usize,
    /// None is the layer `–`: tests and tools.
    pub layer: Option<u32>,
    pub name: String,
    pub may_use: Vec<String>,
    pub unsafety: Unsafety,
}

/// What a row says about unsafe code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsafety {
    /// `#![forbid(unsafe_code)]` in every crate root, none in tests either.
    Forbid,
    /// As `Forbid` in `src`; integration tests may contain some (a counting allocator, a system call).
    ForbidOutsideTests,
    /// Allowed in files that say why.
    Allow,
}

impl Table {
    /// Reads the table with the columns Layer, Crate, One sentence, May use, unsafe.
    pub fn parse(tree: &Tree) -> Result<Table, Finding> {
        let missing = |line, what: &str| {
            Finding::new(DOCUMENT, line, what.to_string(), "columns: Layer | Crate | One sentence | May use | unsafe")
        };
        let text = tree.text(DOCUMENT).ok_or_else(|| missing(0, "the document with the layer table is missing"))?;
        let mut lines = text.lines().enumerate().skip_while(|(_, line)| !line.starts_with("| Layer | Crate |"));
        if lines.next().is_none() {
            return Err(missing(0, "no layer table"));
        }
        let mut table = Table { rows: Vec::new(), in_any_test: Vec::new() };
        for (index, line) in lines.skip(1).take_while(|(_, line)| line.starts_with('|')) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let &[layer, name, _, may_use, unsafety] = cells.as_slice() else {
                return Err(missing(index + 1, "a row of the layer table has not five columns"));
            };
            let may_use = ticked(may_use);
            if name == ANY_TEST {
                table.in_any_test = may_use;
                continue;
            }
            let name = ticked(name).into_iter().next();
            let name = name.ok_or_else(|| missing(index + 1, "the crate of a row is not in backticks"))?;
            let layer = match layer {
                "–" => None,
                number => Some(number.parse().map_err(|_| missing(index + 1, "a layer is a number or –"))?),
            };
            let unsafety = match unsafety {
                "forbid" => Unsafety::Forbid,
                "forbid, tests allow" => Unsafety::ForbidOutsideTests,
                "allow" => Unsafety::Allow,
                _ => return Err(missing(index + 1, "the unsafe column says forbid, forbid, tests allow, or allow")),
            };
            table.rows.push(Row { line: index + 1, layer, name, may_use, unsafety });
        }
        Ok(table)
    }

    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }
}

/// The words in backticks of one cell.
fn ticked(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(String::from).collect()
}

/// Holds the manifests against the table.
pub fn check(table: &Table, members: &Workspace, tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for row in &table.rows {
        if members.find(&row.name).is_none() {
            let message = format!("the layer table names {}, which is no workspace member", row.name);
            findings.push(Finding::new(DOCUMENT, row.line, message, "remove the row or add the crate"));
        }
        findings.extend(row.may_use.iter().filter_map(|used| check_row(table, row, used)));
    }
    for package in &members.packages {
        match table.row(&package.name) {
            Some(row) => findings.extend(check_package(table, row, package, members, tree)),
            None => findings.push(Finding::new(
                &package.path("Cargo.toml"),
                0,
                format!("{} has no row in the layer table", package.name),
                format!("add it to {DOCUMENT}"),
            )),
        }
    }
    findings
}

/// The table itself points downwards.
fn check_row(table: &Table, row: &Row, used: &str) -> Option<Finding> {
    let at_fault = |message: String| {
        Some(Finding::new(DOCUMENT, row.line, message, "a crate uses lower layers only; move what both need downwards"))
    };
    let Some(target) = table.row(used) else {
        return at_fault(format!("{} may use {used}, which has no row", row.name));
    };
    match (row.layer, target.layer) {
        // Tests and tools stand beside the layers and may look at all of them.
        (None, _) => None,
        (Some(_), None) => at_fault(format!("{} may use {used}, which is for tests and tools", row.name)),
        (Some(BACKENDS), Some(BACKENDS)) => at_fault(format!("backend {} may use backend {used}", row.name)),
        (Some(own), Some(other)) if other >= own => {
            at_fault(format!("{} of layer {own} may use {used} of layer {other}", row.name))
        }
        _ => None,
    }
}

fn check_package(table: &Table, row: &Row, package: &Package, members: &Workspace, tree: &Tree) -> Vec<Finding> {
    let manifest = package.path("Cargo.toml");
    let text = tree.text(&manifest).unwrap_or_default();
    let mut findings = Vec::new();
    if !has_workspace_lints(text) {
        let message = format!("{} does not inherit the workspace lints", package.name);
        findings.push(Finding::new(&manifest, 0, message, "add [lints] workspace = true"));
    }
    for dependency in &package.dependencies {
        let ours = members.find(&dependency.name).is_some();
        let allowed = row.may_use.contains(&dependency.name)
            || dependency.name == package.name
            || (dependency.dev && table.in_any_test.contains(&dependency.name));
        if ours && !allowed {
            let table_name = if dependency.dev { "dev-dependencies" } else { "dependencies" };
            let line = line_of_dependency(text, table_name, &dependency.name);
            let message = format!("{} must not use {} in [{table_name}]", package.name, dependency.name);
            findings.push(Finding::new(&manifest, line, message, format!("see the layer table in {DOCUMENT}")));
        }
    }
    findings
}

fn has_workspace_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| line == "workspace = true")
}

/// Line, from 1, of a dependency in one table of a manifest; 0 if it is written in a way not looked for.
fn line_of_dependency(manifest: &str, table_name: &str, name: &str) -> usize {
    let header = format!("[{table_name}]");
    let own_header = format!("[{table_name}.{name}]");
    let mut in_table = false;
    for (index, line) in manifest.lines().map(str::trim).enumerate() {
        if line == own_header {
            return index + 1;
        }
        if line.starts_with('[') {
            in_table = line == header;
        }
        let key = line.split(['=', '.', ' ']).next();
        if in_table && key == Some(name) {
            return index + 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::super::workspace::Dependency;
    use super::*;

    const TABLE: &str = "# Title\n\n| Layer | Crate | One sentence | May use | unsafe |\n|---|---|---|---|---|\n\
        | 0 | `mem` | memory | | allow |\n\
        | 1 | `engine` | engine | `mem` | forbid |\n\
        | 3 | `uring` | files | `mem`, `engine` | allow |\n\
        | 3 | `gpu` | devices | `mem`, `engine` | allow |\n\
        | – | `kit` | suites | `engine` | forbid |\n\
        | – | tests of any crate | | `kit` | |\n";

    fn tree(table: &str, manifests: &[(&str, &str)]) -> Tree {
        let mut files = vec![(DOCUMENT, table)];
        files.extend_from_slice(manifests);
        Tree::of(&files)
    }

    fn workspace(packages: &[(&str, &[(&str, bool)])]) -> Workspace {
        let package = |(name, dependencies): &(&str, &[(&str, bool)])| Package {
            name: name.to_string(),
            dir: name.to_string(),
            dependencies: dependencies.iter().map(|(n, dev)| Dependency { name: n.to_string(), dev: *dev }).collect(),
            ..Package::default()
        };
        Workspace { packages: packages.iter().map(package).collect() }
    }

    const LINTS: &str = "[lints]\nworkspace = true\n";
    const CLEAN: &[(&str, &[(&str, bool)])] = &[
        ("mem", &[("libc", false), ("kit", true)]),
        ("engine", &[("mem", false), ("kit", true)]),
        ("uring", &[("mem", false), ("engine", false)]),
        ("gpu", &[("engine", false)]),
        ("kit", &[("engine", false)]),
    ];

    fn manifests() -> Vec<(&'static str, &'static str)> {
        ["mem/Cargo.toml", "engine/Cargo.toml", "uring/Cargo.toml", "gpu/Cargo.toml", "kit/Cargo.toml"]
            .map(|path| (path, LINTS))
            .to_vec()
    }

    fn found(table: &str, members: &Workspace, files: &[(&str, &str)]) -> Vec<String> {
        let tree = tree(table, files);
        match Table::parse(&tree) {
            Ok(table) => check(&table, members, &tree).iter().map(Finding::to_string).collect(),
            Err(finding) => vec![finding.to_string()],
        }
    }

    #[test]
    fn a_clean_workspace_has_no_finding() {
        assert_eq!(found(TABLE, &workspace(CLEAN), &manifests()), Vec::<String>::new());
    }

    /// Replaces one package's dependencies and gives what is found.
    fn with(name: &'static str, dependencies: &'static [(&'static str, bool)], manifest: &str) -> Vec<String> {
        let mut packages = CLEAN.to_vec();
        packages.retain(|(other, _)| *other != name);
        packages.push((name, dependencies));
        let path = format!("{name}/Cargo.toml");
        let mut files = manifests();
        files.retain(|(other, _)| *other != path);
        files.push((&path, manifest));
        found(TABLE, &workspace(&packages), &files)
    }

    #[test]
    fn a_backend_that_uses_a_backend_is_found_on_its_line() {
        let manifest = format!("[package]\nname = \"uring\"\n\n[dependencies]\ngpu.workspace = true\n{LINTS}");
        let found = with("uring", &[("gpu", false)], &manifest);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("uring/Cargo.toml:5: uring must not use gpu in [dependencies];"), "{found:?}");
    }

    #[test]
    fn an_upward_dependency_is_found() {
        let found = with("mem", &[("engine", false)], LINTS);
        assert!(found[0].contains("mem must not use engine"), "{found:?}");
    }

    #[test]
    fn the_test_kit_is_for_tests_only() {
        let found = with("engine", &[("kit", false)], LINTS);
        assert!(found[0].contains("engine must not use kit in [dependencies]"), "{found:?}");
        assert!(with("engine", &[("kit", true)], LINTS).is_empty());
    }

    #[test]
    fn a_dev_dependency_upwards_is_found() {
        let found = with("mem", &[("uring", true)], LINTS);
        assert!(found[0].contains("in [dev-dependencies]"), "{found:?}");
    }

    #[test]
    fn missing_workspace_lints_are_found() {
        let found = with("gpu", &[], "[lints]\n[other]\nworkspace = true\n");
        assert!(found[0].contains("does not inherit the workspace lints"), "{found:?}");
    }

    #[test]
    fn rows_and_members_must_match() {
        let found_without = found(TABLE, &workspace(CLEAN.get(1..).unwrap()), &manifests());
        assert!(found_without[0].contains("names mem, which is no workspace member"), "{found_without:?}");
        let mut more = CLEAN.to_vec();
        more.push(("stray", &[]));
        let found_more = found(TABLE, &workspace(&more), &manifests());
        assert!(found_more[0].contains("stray has no row"), "{found_more:?}");
    }

    #[test]
    fn a_table_that_points_upwards_is_found() {
        for (old, new, message) in [
            ("| memory | |", "| memory | `engine` |", "mem of layer 0 may use engine of layer 1"),
            ("| devices | `mem`, `engine` |", "| devices | `mem`, `engine`, `uring` |", "backend gpu may use backend"),
            ("| engine | `mem` |", "| engine | `mem`, `kit` |", "which is for tests and tools"),
            ("| engine | `mem` |", "| engine | `mem`, `ghost` |", "which has no row"),
        ] {
            let table = TABLE.replace(old, new);
            assert_ne!(table, TABLE, "the planted change must change something");
            let found = found(&table, &workspace(CLEAN), &manifests());
            assert!(found.iter().any(|f| f.contains(message)), "{message}: {found:?}");
        }
    }

    #[test]
    fn a_broken_table_is_a_finding_not_a_pass() {
        for (old, new) in [
            ("| Layer | Crate |", "| Ring | Crate |"),
            ("| engine | `mem` | forbid |", "| engine | `mem` |"),
            ("| engine | `mem` | forbid |", "| engine | `mem` | perhaps |"),
            ("| 1 | `engine`", "| one | `engine`"),
            ("| 1 | `engine`", "| 1 | engine"),
        ] {
            let table = TABLE.replace(old, new);
            assert_ne!(table, TABLE);
            assert_eq!(found(&table, &workspace(CLEAN), &manifests()).len(), 1, "{new}");
        }
    }
}
