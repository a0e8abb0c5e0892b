//! The format of mutants: known bugs kept as patches, so that the product has no switch for them.
//!
//! ```text
//! file: sw-engine/src/slots.rs
//! worlds: disks
//! seeds: 40
//! why: memory of an expired operation is freed while the device may still write it
//! <<<<
//! exact old text
//! ====
//! new text
//! >>>>
//! ```
//!
//! Several blocks may follow each other; a further `file:` line names the file of the blocks after it. The old text
//! must occur exactly once in its file: a mutant that no longer fits the code fails loudly instead of testing nothing.
//! Lines that start with `#` before the first block are comments.

use crate::Stop;

/// One mutant.
#[derive(Debug, PartialEq, Eq)]
pub struct Mutant {
    /// Stem of the patch file.
    pub name: String,
    /// Where the simulator must find it.
    pub worlds: Worlds,
    /// Number of seeds within which the simulator must find it.
    pub seeds: u64,
    /// What is wrong with it, in one line.
    pub why: String,
    pub changes: Vec<Change>,
}

/// A kind of worlds that the simulator has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worlds {
    /// Modelled disks behind the transport seam.
    Disks,
    /// Modelled NVMe controllers.
    Nvme,
    /// A network, and a target behind it.
    Net,
    /// The same by two paths.
    Paths,
    /// The same by one or two, with a target that resets controllers.
    Resets,
    /// RDMA NICs, and a target behind them.
    Rdma,
}

impl Worlds {
    pub const ALL: [Self; 6] = [Self::Disks, Self::Nvme, Self::Net, Self::Paths, Self::Resets, Self::Rdma];

    /// Its name in a patch.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disks => "disks",
            Self::Nvme => "nvme",
            Self::Net => "net",
            Self::Paths => "paths",
            Self::Resets => "resets",
            Self::Rdma => "rdma",
        }
    }

    /// The test of the seed suite that runs their fixed seeds.
    pub fn test(self) -> &'static str {
        match self {
            Self::Disks => "fixed_seeds_hold_and_reach_every_mark",
            Self::Nvme => "fixed_nvme_seeds_hold_and_reach_every_mark",
            Self::Net => "fixed_net_seeds_hold_and_reach_every_mark",
            Self::Paths => "fixed_net_seeds_with_two_paths_hold",
            Self::Resets => "fixed_resets_seeds_hold_and_reach_every_mark",
            Self::Rdma => "fixed_rdma_seeds_hold_and_reach_every_mark",
        }
    }
}

/// One replacement.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// Relative to the workspace root.
    pub file: String,
    pub old: String,
    pub new: String,
}

/// What a line of a block belongs to.
enum At {
    Head,
    Old(Vec<String>),
    New(String, Vec<String>),
}

impl Mutant {
    /// Reads a patch.
    ///
    /// # Errors
    /// Unknown lines, unfinished blocks, and missing `file`, `worlds`, `seeds` or `why`; the message names patch and line.
    pub fn parse(name: &str, text: &str) -> Result<Mutant, Stop> {
        let wrong = |line: usize, what: &str| {
            Stop::new(format!("mutant {name}, line {}: {what}", line + 1), "the format is in xtask/src/patch.rs")
        };
        let mut mutant =
            Mutant { name: name.to_string(), worlds: Worlds::Disks, seeds: 0, why: String::new(), changes: Vec::new() };
        let (mut file, mut worlds) = (String::new(), None);
        let mut at = At::Head;
        for (index, line) in text.lines().enumerate() {
            at = match (at, line) {
                (At::Head, "<<<<") if file.is_empty() => return Err(wrong(index, "a block before file:")),
                (At::Head, "<<<<") => At::Old(Vec::new()),
                (At::Head, line) => {
                    mutant.head(line, &mut file, &mut worlds).map_err(|what| wrong(index, &what))?;
                    At::Head
                }
                (At::Old(lines), "====") => At::New(lines.join("\n"), Vec::new()),
                (At::Old(mut lines), line) => {
                    lines.push(line.to_string());
                    At::Old(lines)
                }
                (At::New(old, lines), ">>>>") => {
                    mutant.changes.push(Change { file: file.clone(), old, new: lines.join("\n") });
                    At::Head
                }
                (At::New(old, mut lines), line) => {
                    lines.push(line.to_string());
                    At::New(old, lines)
                }
            };
        }
        let end = text.lines().count();
        match at {
            At::Head if mutant.changes.is_empty() => Err(wrong(end, "no block")),
            At::Head if mutant.seeds == 0 => Err(wrong(end, "no seeds: line, or a bound of 0")),
            At::Head if mutant.why.is_empty() => Err(wrong(end, "no why: line")),
            At::Head => match worlds {
                Some(worlds) => Ok(Mutant { worlds, ..mutant }),
                None => Err(wrong(end, "no worlds: line")),
            },
            At::Old(_) | At::New(..) => Err(wrong(end, "the last block does not end")),
        }
    }

    fn head(&mut self, line: &str, file: &mut String, worlds: &mut Option<Worlds>) -> Result<(), String> {
        if line.trim().is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (key, value) = line.split_once(':').ok_or_else(|| format!("{line:?} is no key: value"))?;
        let value = value.trim().to_string();
        match key {
            "file" => *file = value,
            "why" => self.why = value,
            "worlds" => {
                let found = Worlds::ALL.into_iter().find(|worlds| worlds.name() == value);
                *worlds = Some(found.ok_or_else(|| format!("no such worlds: {value}"))?);
            }
            "seeds" => self.seeds = value.parse().map_err(|_| format!("seeds is no number: {value}"))?,
            other => return Err(format!("unknown key {other}")),
        }
        Ok(())
    }
}

impl Change {
    /// The file's text with the replacement made.
    ///
    /// # Errors
    /// Unless the old text occurs exactly once and the new text differs.
    pub fn apply(&self, mutant: &str, text: &str) -> Result<String, Stop> {
        let count = text.matches(&self.old).count();
        if self.old.is_empty() || self.old == self.new || count != 1 {
            return Err(Stop::new(
                format!(
                    "mutant {mutant}: the old text occurs {count} times in {}, not once, or changes nothing",
                    self.file
                ),
                format!("bring sw-sim/mutants/{mutant}.patch up to date with the code"),
            ));
        }
        Ok(text.replacen(&self.old, &self.new, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "# a comment\nfile: a/src/x.rs\nworlds: net\nseeds: 40\nwhy: it is wrong\n<<<<\n  if ok {\n====\n  if true {\n>>>>\n\
        file: b.rs\n<<<<\none\ntwo\n====\n>>>>\n";

    #[test]
    fn reads_blocks_of_several_files() {
        let mutant = Mutant::parse("m", PATCH).unwrap();
        assert_eq!((mutant.worlds, mutant.seeds, mutant.why.as_str()), (Worlds::Net, 40, "it is wrong"));
        assert_eq!(
            mutant.changes,
            [
                Change { file: "a/src/x.rs".into(), old: "  if ok {".into(), new: "  if true {".into() },
                Change { file: "b.rs".into(), old: "one\ntwo".into(), new: String::new() },
            ]
        );
    }

    #[test]
    fn a_broken_patch_is_refused() {
        for (old, new) in [
            ("seeds: 40", "seeds: many"),
            ("seeds: 40\n", ""),
            ("worlds: net", "worlds: seven"),
            ("worlds: net\n", ""),
            ("why: it is wrong\n", ""),
            ("file: a/src/x.rs\n", ""),
            ("why:", "because:"),
            ("====\n>>>>\n", "====\n"),
        ] {
            let text = PATCH.replacen(old, new, 1);
            assert_ne!(text, PATCH);
            assert!(Mutant::parse("m", &text).is_err(), "{new:?}");
        }
        assert!(Mutant::parse("m", "file: a\nworlds: net\nseeds: 1\nwhy: x\n").is_err());
    }

    #[test]
    fn the_old_text_must_occur_once() {
        let change = Change { file: "x.rs".into(), old: "if ok".into(), new: "if true".into() };
        assert_eq!(change.apply("m", "a if ok b").unwrap(), "a if true b");
        assert!(change.apply("m", "nothing").is_err());
        assert!(change.apply("m", "if ok if ok").is_err());
        let idle = Change { file: "x.rs".into(), old: "if ok".into(), new: "if ok".into() };
        assert!(idle.apply("m", "if ok").is_err());
    }
}
