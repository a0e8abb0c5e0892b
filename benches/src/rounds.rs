//! Runs the sides of a case in turn, round after round.
//!
//! The machine is shared and its disk is throttled in bursts, so a side is compared with what ran next to it in time. The
//! first side of a round changes from round to round: nobody always runs on the disk's fresh budget.

use std::path::PathBuf;

use crate::{
    backing,
    data::{self, CacheState},
    fault::Fault,
    report::{Case, Role, Sample, Side},
};

/// Someone who can do the job of a case.
pub(crate) trait Subject {
    /// Stable name.
    fn name(&self) -> String;

    /// Whose side it is.
    fn role(&self) -> Role;

    /// Whether the caller gets memory of its own; `None` where that has no meaning.
    fn own_memory(&self) -> Option<bool> {
        None
    }

    /// Files that the job reads, whose place in the page cache is set before each run.
    fn reads(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Does the job once. The cost of getting ready is not in the sample.
    ///
    /// # Errors
    /// Why there is no result; the side is then absent from the case, with these words.
    fn run(&mut self) -> Result<Sample, Fault>;
}

/// What is made equal for every side before it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Before {
    /// Bring the files that the side reads into this state.
    pub cache: Option<CacheState>,
    /// Have this many bytes of free memory backed by the host (see [`backing`]).
    pub back_bytes: u64,
    /// Digest that every sample with one must have.
    pub digest: Option<String>,
}

/// Runs every subject `rounds` times. `tell` hears one line per run.
pub(crate) fn run(
    name: &str,
    what: &str,
    mut subjects: Vec<Box<dyn Subject>>,
    rounds: u32,
    before: &Before,
    tell: &mut dyn FnMut(&str),
) -> Case {
    let side = |subject: &dyn Subject| Side {
        name: subject.name(),
        role: subject.role(),
        own_memory: subject.own_memory(),
        absent: None,
        failed: false,
        samples: Vec::new(),
    };
    let mut sides: Vec<Side> = subjects.iter().map(|subject| side(subject.as_ref())).collect();
    for round in 0..rounds as usize {
        for turn in 0..subjects.len() {
            let at = (turn + round) % subjects.len();
            let (Some(subject), Some(side)) = (subjects.get_mut(at), sides.get_mut(at)) else { continue };
            if side.absent.is_some() {
                continue;
            }
            match one(subject.as_mut(), before) {
                Ok(sample) => {
                    tell(&format!(
                        "{name} round {} {}: {:.3} s, {:.3} CPU s",
                        round + 1,
                        side.name,
                        sample.seconds,
                        sample.cpu_s()
                    ));
                    side.samples.push(sample);
                }
                // A side that fails once has no complete set of rounds to be compared in.
                Err(fault) => {
                    tell(&format!("{name} round {} {}: absent: {}", round + 1, side.name, fault.line()));
                    side.leave_out(&fault);
                }
            }
        }
    }
    Case { name: name.to_owned(), what: what.to_owned(), sides, goals: Vec::new() }
}

fn one(subject: &mut dyn Subject, before: &Before) -> Result<Sample, Fault> {
    let mut cached = None;
    if let Some(state) = before.cache {
        cached = data::set_cache(&subject.reads(), state)?;
    }
    if before.back_bytes > 0 {
        backing::prepare(before.back_bytes)?;
    }
    let mut sample = subject.run()?;
    if let Some(bytes) = cached {
        #[expect(clippy::cast_precision_loss, reason = "file sizes stay far below 2^52")]
        sample.more.insert("cached_bytes_before".to_owned(), bytes as f64);
    }
    match (&sample.checksum, &before.digest) {
        (Some(got), Some(want)) if got != want => {
            Err(Fault::WrongBytes { side: subject.name(), got: got.clone(), want: want.clone() })
        }
        _ => Ok(sample),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;

    struct Fake {
        name: &'static str,
        order: Rc<RefCell<Vec<&'static str>>>,
        fails_at: usize,
        checksum: &'static str,
        runs: usize,
    }

    impl Subject for Fake {
        fn name(&self) -> String {
            self.name.to_owned()
        }

        fn role(&self) -> Role {
            if self.name == "ours" { Role::Ours } else { Role::Peer }
        }

        fn run(&mut self) -> Result<Sample, Fault> {
            self.order.borrow_mut().push(self.name);
            self.runs += 1;
            if self.runs == self.fails_at {
                return Err(Fault::Missing { what: "luck".into(), remedy: "try again" });
            }
            Ok(Sample { seconds: 1.0, checksum: Some(self.checksum.to_owned()), ..Sample::default() })
        }
    }

    fn go(fails_at: usize, checksum: &'static str, digest: Option<String>) -> (Case, Vec<&'static str>) {
        let order = Rc::new(RefCell::new(Vec::new()));
        let fake = |name, fails_at, checksum| {
            Box::new(Fake { name, order: Rc::clone(&order), fails_at, checksum, runs: 0 }) as Box<dyn Subject>
        };
        let subjects = vec![fake("a", 0, "x"), fake("b", fails_at, checksum)];
        let case = run("case", "a case", subjects, 3, &Before { digest, ..Before::default() }, &mut |_| ());
        let order = order.borrow().clone();
        (case, order)
    }

    #[test]
    fn sides_take_turns_and_the_first_changes() {
        let (case, order) = go(0, "x", None);
        assert_eq!(order, ["a", "b", "b", "a", "a", "b"]);
        assert!(case.sides.iter().all(|side| side.samples.len() == 3));
    }

    #[test]
    fn side_that_fails_is_absent_with_its_reason_and_not_run_again() {
        let (case, order) = go(2, "x", None);
        assert_eq!(order.iter().filter(|name| **name == "b").count(), 2);
        assert_eq!(case.sides[1].absent.as_deref(), Some("luck; try again"));
        assert!(case.sides[1].samples.is_empty());
    }

    #[test]
    fn only_our_own_side_fails_and_not_for_what_is_missing() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let failed = |name, fails_at, checksum| {
            let fake = Fake { name, order: Rc::clone(&order), fails_at, checksum, runs: 0 };
            let before = Before { digest: Some("x".to_owned()), ..Before::default() };
            let case = run("case", "a case", vec![Box::new(fake)], 1, &before, &mut |_| ());
            assert!(case.sides[0].absent.is_some());
            case.sides[0].failed
        };
        assert!(failed("ours", 0, "wrong"));
        assert!(!failed("peer", 0, "wrong"));
        assert!(!failed("ours", 1, "x"), "not on this machine");
    }

    #[test]
    fn side_that_delivers_other_bytes_is_absent() {
        let (case, _) = go(0, "y", Some("x".to_owned()));
        assert!(case.sides[1].absent.as_deref().unwrap().contains("wrong bytes"));
        assert_eq!(case.sides[0].samples.len(), 3);
    }
}
