//! Whether the whole of a group was fast enough.

use super::record::RUN_LIMIT_S;
use super::spent::Spent;

/// Share of the processors that others may have had while a run is held to its limit: with more, the clock says nothing of the run.
const OTHERS_SHARE_MAX: f64 = 0.25;

/// How the wall clock of the whole of a group compares with what it may take.
#[derive(Debug, PartialEq, Eq)]
pub enum Pace {
    /// It is within the limit.
    InTime,
    /// It is not, and had the machine: the run failed.
    Late(String),
    /// It is not, and others had much of the machine: told, and held against nobody.
    Crowded(String),
}

impl Pace {
    /// Of what the whole took, on so many processors.
    pub fn of(all: Spent, processors: f64) -> Pace {
        if all.wall_s <= RUN_LIMIT_S {
            return Pace::InTime;
        }
        let share = all.others_cpu_s / (all.wall_s * processors);
        let late = format!("the group took {:.0} s, it may take {RUN_LIMIT_S:.0} s", all.wall_s);
        if share <= OTHERS_SHARE_MAX {
            return Pace::Late(late);
        }
        Pace::Crowded(format!(
            "{late}; others had {:.0} % of the processors meanwhile, so it is no failure",
            share * 100.0
        ))
    }

    /// The result, as the table has it.
    pub fn word(&self) -> &'static str {
        match self {
            Pace::InTime => "",
            Pace::Late(_) => "failed",
            Pace::Crowded(_) => "late",
        }
    }

    /// Why.
    pub fn text(&self) -> &str {
        match self {
            Pace::InTime => "",
            Pace::Late(text) | Pace::Crowded(text) => text,
        }
    }

    /// How much of it failed.
    pub fn failures(&self) -> usize {
        usize::from(matches!(self, Pace::Late(_)))
    }
}

/// Processors that the bed may use.
pub fn processors() -> f64 {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(count).map_or(1.0, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_over_its_limit_fails_unless_others_had_the_machine() {
        let pace = |wall_s, others_cpu_s| Pace::of(Spent { wall_s, cpu_s: 500.0, others_cpu_s }, 2.0);
        assert_eq!((pace(720.0, 0.0), pace(700.0, 1400.0)), (Pace::InTime, Pace::InTime));
        let late = pace(1000.0, 499.0);
        assert_eq!((late.failures(), late.text()), (1, "the group took 1000 s, it may take 720 s"));
        let crowded = pace(1000.0, 900.0);
        assert_eq!((crowded.failures(), crowded.word()), (0, "late"));
        assert!(crowded.text().contains("others had 45 % of the processors"), "{crowded:?}");
    }
}
