//! DLIO, through `peers/dlio.py`: how many accelerators that it emulates a loader keeps busy.
//!
//! ```text
//!   run: 1 accelerator ─► double ─► … ─► bisect      each a run of DLIO in so many MPI processes, its files cold
//!              └ AU, DLIO's own number, is at the workload's threshold or above it, or not
//! ```

use std::path::PathBuf;

use crate::{
    data::{self, CacheState},
    fault::Fault,
    peers::python::Python,
    report::{Role, Sample},
    rounds::Subject,
};

/// AU that a run must have, percent: of unet3d and of resnet50 (MLPerf Storage).
pub(crate) const AU_PERCENT: f64 = 90.0;

/// A workload of DLIO with what is scaled of it.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// As DLIO calls it, without the accelerator's name.
    pub name: &'static str,
    /// Files of the training set.
    pub files: u32,
    /// Samples of a file.
    pub samples: u32,
    /// Bytes of a sample, and their standard deviation; `None`: as the workload has them.
    pub record: Option<(u64, u64)>,
    /// Bytes of a sample on average.
    pub record_bytes: u64,
    /// Samples of a batch.
    pub batch: u32,
    /// Seconds that an emulated accelerator computes a step.
    pub step_s: f64,
    /// Steps of each rank; the first is not counted by DLIO.
    pub steps: u32,
    /// Accelerators at most: for more the files do not suffice.
    pub max: u32,
}

impl Workload {
    /// Arguments that both verbs of the script take.
    pub(crate) fn args(&self) -> Vec<String> {
        let mut args = vec![format!("--files={}", self.files), format!("--samples={}", self.samples)];
        if let Some((bytes, spread)) = self.record {
            args.extend([format!("--record={bytes}"), format!("--spread={spread}")]);
        }
        args
    }
}

/// One loader under DLIO.
pub(crate) struct Emulated {
    /// Name of the side.
    pub side: &'static str,
    /// Name in `peers/dlio.py`.
    pub loader: &'static str,
    /// Whose side.
    pub role: Role,
    /// What is emulated.
    pub workload: Workload,
    /// DLIO's data folder.
    pub dir: PathBuf,
    /// What is read of it.
    pub files: Vec<PathBuf>,
    /// The folder that our package is in.
    pub package: PathBuf,
    /// Where it runs.
    pub python: Python,
    /// The most accelerators of an earlier round.
    pub before: Option<u32>,
}

impl Emulated {
    /// One run of DLIO.
    fn emulate(&self, accelerators: u32) -> Result<Sample, Fault> {
        data::set_cache(&self.files, CacheState::Cold)?;
        let workload = &self.workload;
        let mut args = vec!["train".to_owned(), workload.name.to_owned(), self.dir.to_string_lossy().into_owned()];
        args.extend(workload.args());
        args.extend([
            format!("--loader={}", self.loader),
            format!("--ranks={accelerators}"),
            format!("--step-s={}", workload.step_s),
            format!("--steps={}", workload.steps),
            format!("--batch={}", workload.batch),
            format!("--package={}", self.package.display()),
        ]);
        let mut sample = self.python.dlio(self.side, &args)?;
        sample.ops = u64::from(accelerators * (workload.steps - 1) * workload.batch);
        sample.bytes = sample.ops * workload.record_bytes;
        Ok(sample)
    }
}

impl Subject for Emulated {
    fn name(&self) -> String {
        self.side.to_owned()
    }

    fn role(&self) -> Role {
        self.role
    }

    fn run(&mut self) -> Result<Sample, Fault> {
        let au = |sample: &Sample| sample.more.get("au_percent").copied().unwrap_or(0.0);
        let alone = self.emulate(1)?;
        let (mut best, alone_au) = (alone.clone(), au(&alone));
        let mut seen = vec![(1, alone_au)];
        let most = most(self.before, self.workload.max, |accelerators| {
            let sample = if accelerators == 1 { alone.clone() } else { self.emulate(accelerators)? };
            let au = au(&sample);
            let holds = au >= AU_PERCENT;
            if accelerators > 1 {
                seen.push((accelerators, au));
            }
            if holds {
                best = sample;
            }
            Ok(holds)
        })?;
        self.before = Some(most);
        best.more.insert("accelerators".to_owned(), f64::from(most));
        best.more.insert("au_alone_percent".to_owned(), alone_au);
        best.more.extend(seen.into_iter().map(|(accelerators, au)| (format!("au_{accelerators}_percent"), au)));
        Ok(best)
    }
}

/// The largest number up to `max` that holds, 0 if 1 does not: by doubling and bisecting, or step by step from what was found
/// before. What holds is taken to hold for less as well.
fn most(before: Option<u32>, max: u32, mut holds: impl FnMut(u32) -> Result<bool, Fault>) -> Result<u32, Fault> {
    let (mut good, mut bad) = (0, max + 1);
    let mut next = before.unwrap_or(1).clamp(1, max);
    while bad - good > 1 {
        if holds(next)? {
            good = next;
        } else {
            bad = next;
        }
        next = match before {
            Some(_) if good == 0 => bad - 1,
            Some(_) if bad > max => good + 1,
            None if bad > max => (good * 2).min(max),
            _ => good.midpoint(bad),
        }
        .clamp(1, max);
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(before: Option<u32>, max: u32, truth: u32) -> Vec<u32> {
        let mut probes = Vec::new();
        let found = most(before, max, |at| {
            probes.push(at);
            Ok(at <= truth)
        });
        assert_eq!(found.unwrap(), truth, "{probes:?}");
        probes
    }

    #[test]
    fn the_most_is_found_with_few_runs() {
        for max in 1..20 {
            for truth in 0..=max {
                assert!(probes(None, max, truth).len() <= 9, "{truth} of {max}");
                for before in 0..=max {
                    probes(Some(before), max, truth);
                }
            }
        }
        assert_eq!(probes(None, 16, 5), [1, 2, 4, 8, 6, 5]);
        assert_eq!(probes(None, 8, 0), [1]);
        assert_eq!(probes(Some(3), 8, 3), [3, 4]);
        assert_eq!(probes(Some(3), 8, 2), [3, 2]);
    }
}
