//! Rows of the conformance suite, what differs between the libraries, and what explains it.

use std::collections::{BTreeMap, BTreeSet};

use crate::Stop;

/// One pass of the suite: a library and a kind of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    RealHost,
    OursHost,
    RealDevice,
    OursDevice,
}

impl Column {
    pub const ALL: [Column; 4] = [Column::RealHost, Column::OursHost, Column::RealDevice, Column::OursDevice];
    /// NVIDIA's and ours in the same memory.
    pub const PAIRS: [(Column, Column); 2] =
        [(Column::RealHost, Column::OursHost), (Column::RealDevice, Column::OursDevice)];

    pub fn is_ours(self) -> bool {
        matches!(self, Column::OursHost | Column::OursDevice)
    }

    /// As the suite takes it.
    pub fn memory(self) -> &'static str {
        match self {
            Column::RealHost | Column::OursHost => "host",
            Column::RealDevice | Column::OursDevice => "device",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Column::RealHost => "NVIDIA's, host memory",
            Column::OursHost => "ours, host memory",
            Column::RealDevice => "NVIDIA's, GPU memory",
            Column::OursDevice => "ours, GPU memory",
        }
    }

    /// Where its cases write.
    pub fn folder(self) -> &'static str {
        match self {
            Column::RealHost => "real-host",
            Column::OursHost => "ours-host",
            Column::RealDevice => "real-device",
            Column::OursDevice => "ours-device",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Fail,
    Skip,
}

/// What became of a case in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    pub verdict: Verdict,
    /// What the library answered, with `; ` between.
    answers: String,
    /// What it should have answered, or how its process ended.
    complaints: String,
}

/// A case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub source: String,
    pub rule: String,
    pub cells: BTreeMap<Column, Cell>,
}

/// All cases, by name.
#[derive(Debug, Default)]
pub struct Rows(pub BTreeMap<String, Row>);

/// Whether every case was run, so that an explanation without a difference is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Whole,
    Part,
}

impl Rows {
    /// Adds a pass.
    ///
    /// # Errors
    /// A line that is none of the suite's.
    pub fn take(&mut self, column: Column, lines: &[String]) -> Result<(), Stop> {
        for line in lines {
            let fields: Vec<&str> = line.split('\t').collect();
            let fields: [&str; 8] = match fields.try_into() {
                Ok(fields) => fields,
                Err(_) => [line.as_str(), "", "", "", "", "", "", ""],
            };
            let [word, name, verdict, source, rule, answers, complaints, end] = fields;
            let verdict = match (word, verdict, end) {
                ("case", "PASS", "end") => Verdict::Pass,
                ("case", "FAIL", "end") => Verdict::Fail,
                ("case", "SKIP", "end") => Verdict::Skip,
                _ => {
                    return Err(Stop::new(
                        format!("not a line of the suite: {line}"),
                        "see ffi/cufile/conformance/suite.c",
                    ));
                }
            };
            let row = self.0.entry(name.into()).or_insert_with(|| Row {
                source: source.into(),
                rule: rule.into(),
                cells: BTreeMap::new(),
            });
            let cell = Cell { verdict, answers: answers.into(), complaints: complaints.into() };
            if row.cells.insert(column, cell).is_some() {
                return Err(Stop::new(format!("two cases are called {name}"), "rename one of them"));
            }
        }
        Ok(())
    }

    /// What is wrong: differences that nothing explains, and explanations of none.
    pub fn findings(&self, explained: &Explained, extent: Extent) -> Vec<String> {
        let mut findings = Vec::new();
        for (name, row) in &self.0 {
            let differences = row.differences();
            for column in
                Column::PAIRS.iter().filter(|_| explained.why(name).is_none()).filter_map(|pair| row.fails_alone(*pair))
            {
                findings.push(format!("{name}: {} fails: {}", column.title(), row.complaints(column)));
            }
            for (real, ours) in differences.iter().filter(|_| explained.why(name).is_none()) {
                findings.push(format!("{name}: not explained: {} told {real}; ours told {ours}", "NVIDIA's"));
            }
            if differences.is_empty() && explained.why(name).is_some() && extent == Extent::Whole {
                findings.push(format!("{name}: explained, but there is no difference any more"));
            }
        }
        let unknown = explained.0.keys().filter(|name| extent == Extent::Whole && !self.0.contains_key(*name));
        findings.extend(unknown.map(|name| format!("{name}: explained, but there is no such case")));
        findings
    }

    /// Cases of ours that are as they should be, or whose difference is explained.
    pub fn well(&self, explained: &Explained) -> usize {
        let right = |row: &Row| {
            row.differences().is_empty() && Column::PAIRS.iter().all(|pair| row.fails_alone(*pair).is_none())
        };
        let well = |(name, row): &(&String, &Row)| right(row) || explained.why(name).is_some();
        let cells =
            self.0.iter().filter(well).map(|(_, row)| row.cells.keys().filter(|column| column.is_ours()).count());
        cells.sum()
    }

    /// Cases of a column with that verdict.
    pub fn count(&self, column: Column, verdict: Verdict) -> usize {
        self.0.values().filter(|row| row.cells.get(&column).is_some_and(|cell| cell.verdict == verdict)).count()
    }
}

impl Row {
    /// Ours, if it fails where NVIDIA's library was not run.
    fn fails_alone(&self, (real, ours): (Column, Column)) -> Option<Column> {
        let fails = self.cells.get(&ours).is_some_and(|cell| cell.verdict == Verdict::Fail);
        (fails && !self.cells.contains_key(&real)).then_some(ours)
    }

    fn complaints(&self, column: Column) -> &str {
        self.cells.get(&column).map_or("", |cell| &cell.complaints)
    }

    /// What NVIDIA's library told and what ours told, where they differ or ours fails: once for all kinds of memory if it is the
    /// same in them.
    pub fn differences(&self) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        for (real, ours) in Column::PAIRS {
            let (Some(real), Some(ours)) = (self.cells.get(&real), self.cells.get(&ours)) else { continue };
            if real == ours && ours.verdict != Verdict::Fail {
                continue;
            }
            let pair = (real.told(ours), ours.told(real));
            if !found.contains(&pair) {
                found.push(pair);
            }
        }
        found
    }
}

impl Cell {
    /// What it told, as far as the other told something else.
    fn told(&self, other: &Cell) -> String {
        let (own, others): (Vec<&str>, Vec<&str>) =
            (self.answers.split("; ").collect(), other.answers.split("; ").collect());
        let differing: Vec<&str> = if own.len() == others.len() {
            own.iter().zip(&others).filter(|(a, b)| a != b).map(|(a, _)| *a).collect()
        } else {
            own
        };
        // An end of the process is not among the answers.
        let ended = ["killed by", "hangs", "ended the process", "no event", "not there"];
        let ended = self.complaints.split("; ").filter(|text| ended.iter().any(|word| text.contains(word)));
        let mut parts: Vec<&str> = differing.into_iter().filter(|text| !text.is_empty()).chain(ended).collect();
        if parts.is_empty() {
            parts.extend(self.complaints.split("; ").filter(|text| !text.is_empty()));
        }
        if parts.is_empty() { "as it should be".into() } else { parts.join("; ") }
    }
}

/// Why cases differ, by name.
#[derive(Debug, Default)]
pub struct Explained(BTreeMap<String, String>);

impl Explained {
    /// Reads the table: a line of names with commas between, then its text, indented. `#` begins a comment.
    ///
    /// # Errors
    /// A text without names, names without a text, a name that comes twice.
    pub fn read(text: &str) -> Result<Explained, Stop> {
        let broken = |what: &str| Stop::new(what.to_string(), "see the head of ffi/cufile/conformance/differences.txt");
        let (mut found, mut names) = (BTreeMap::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            if !line.starts_with(' ') {
                names = line.split(',').map(|name| name.trim().to_string()).collect();
                if let Some(twice) = names.iter().find(|name| !seen.insert((*name).clone())) {
                    return Err(broken(&format!("{twice} is explained twice")));
                }
                continue;
            }
            if names.is_empty() {
                return Err(broken(&format!("a text without names: {}", line.trim())));
            }
            for name in &names {
                let why: &mut String = found.entry(name.clone()).or_default();
                if !why.is_empty() {
                    why.push(' ');
                }
                why.push_str(line.trim());
            }
        }
        match seen.iter().find(|name| !found.contains_key(*name)) {
            Some(name) => Err(broken(&format!("{name} has no text"))),
            None => Ok(Explained(found)),
        }
    }

    pub fn why(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(real: &str, ours: &str) -> Rows {
        let mut rows = Rows::default();
        for (column, text) in [(Column::RealHost, real), (Column::OursHost, ours)] {
            let lines: Vec<String> = text.lines().map(|line| line.replace('|', "\t")).collect();
            rows.take(column, &lines).unwrap();
        }
        rows
    }

    fn explained(text: &str) -> Explained {
        Explained::read(text).unwrap()
    }

    const SAME: &str = "case|a.b|PASS|documented|a rule|open 0; close 0||end";

    #[test]
    fn what_is_the_same_is_no_finding() {
        assert_eq!(rows(SAME, SAME).findings(&explained(""), Extent::Whole), Vec::<String>::new());
        assert_eq!(rows(SAME, SAME).well(&explained("")), 1);
    }

    #[test]
    fn a_difference_wants_an_explanation() {
        let other = "case|a.b|PASS|documented|a rule|open 0; close 5001||end";
        let rows = rows(SAME, other);
        let findings = rows.findings(&explained(""), Extent::Whole);
        assert!(findings.len() == 1 && findings[0].contains("close 0; ours told close 5001"), "{findings:?}");
        assert_eq!(rows.well(&explained("")), 0);
        assert_eq!(rows.findings(&explained("a.b\n    because"), Extent::Whole), Vec::<String>::new());
    }

    #[test]
    fn the_same_failure_wants_one_too() {
        let both = "case|a.b|FAIL|documented|a rule|open 5|open: 5, wanted 0|end";
        let findings = rows(both, both).findings(&explained(""), Extent::Whole);
        assert!(findings.len() == 1 && findings[0].contains("wanted 0"), "{findings:?}");
    }

    #[test]
    fn a_failure_of_ours_alone_is_a_finding() {
        let mut rows = Rows::default();
        let line = "case|a.b|FAIL|documented|a rule|open 5|open: 5, wanted 0|end".replace('|', "\t");
        rows.take(Column::OursHost, &[line]).unwrap();
        let findings = rows.findings(&explained(""), Extent::Part);
        assert!(findings.len() == 1 && findings[0].contains("open: 5, wanted 0"), "{findings:?}");
        assert_eq!((rows.well(&explained("")), rows.well(&explained("a.b\n    because"))), (0, 1));
    }

    #[test]
    fn a_crash_is_told() {
        let crash = "case|a.b|FAIL|documented|a rule||killed by signal 11|end";
        let findings = rows(crash, SAME).findings(&explained(""), Extent::Whole);
        assert!(findings[0].contains("told killed by signal 11; ours told open 0; close 0"), "{findings:?}");
    }

    #[test]
    fn an_explanation_of_nothing_is_stale() {
        let both = rows(SAME, SAME);
        let table = explained("a.b\n    because\nc.d\n    because");
        assert_eq!(both.findings(&table, Extent::Whole).len(), 2);
        assert_eq!(both.findings(&table, Extent::Part).len(), 0);
    }

    #[test]
    fn broken_tables_and_lines_are_refused() {
        for text in ["    a text", "a.b\nc.d\n    text", "a.b\n    text\na.b\n    text"] {
            assert!(Explained::read(text).is_err(), "{text}");
        }
        assert_eq!(explained("# a\na.b, c.d\n  one\n  two\n").why("c.d"), Some("one two"));
        let mut rows = Rows::default();
        assert!(rows.take(Column::RealHost, &["noise".into()]).is_err());
        assert!(rows.take(Column::RealHost, &[SAME.replace('|', "\t"), SAME.replace('|', "\t")]).is_err());
    }
}
