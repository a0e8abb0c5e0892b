//! Where the time of a run goes: wall clock and processor seconds of each step. On a machine that others use, too, only
//! the second says what the bed costs.

use std::time::Instant;

/// Clock ticks a second in `/proc/PID/stat` (USER_HZ of x86-64 and aarch64, Linux `include/asm-generic/param.h`).
const TICKS_PER_S: f64 = 100.0;
/// Fields of `/proc/PID/stat` behind the program's name: utime and stime, and cutime and cstime, of children that were
/// waited for, theirs included (proc(5)).
const CPU_FIELDS: std::ops::Range<usize> = 11..15;
/// Fields of the first line of `/proc/stat`: user, nice, system, irq, softirq, steal; time of guests is in the first two.
const BUSY_FIELDS: [usize; 6] = [0, 1, 2, 5, 6, 7];

/// What a step took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spent {
    pub wall_s: f64,
    /// Of all our processes; 0 where the system does not tell.
    pub cpu_s: f64,
    /// Of everybody else on the machine meanwhile, a hypervisor included; 0 where the system does not tell.
    pub others_cpu_s: f64,
}

/// Measures from its making on.
#[derive(Debug)]
pub struct Stopwatch {
    start: Instant,
    cpu_s: f64,
    machine_cpu_s: f64,
}

impl Stopwatch {
    pub fn start() -> Stopwatch {
        Stopwatch { start: Instant::now(), cpu_s: cpu_s(), machine_cpu_s: machine_cpu_s() }
    }

    pub fn spent(&self) -> Spent {
        let cpu_s = cpu_s() - self.cpu_s;
        // Ours are counted when they have ended, the machine's at once.
        let others_cpu_s = (machine_cpu_s() - self.machine_cpu_s - cpu_s).max(0.0);
        Spent { wall_s: self.start.elapsed().as_secs_f64(), cpu_s, others_cpu_s }
    }
}

fn cpu_s() -> f64 {
    parse(&std::fs::read_to_string("/proc/self/stat").unwrap_or_default()).unwrap_or(0.0)
}

/// Processor seconds of a process so far, one that has ended and was not waited for included; 0 where the system does not tell.
pub fn cpu_s_of(process: u32) -> f64 {
    parse(&std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default()).unwrap_or(0.0)
}

fn machine_cpu_s() -> f64 {
    busy(&std::fs::read_to_string("/proc/stat").unwrap_or_default()).unwrap_or(0.0)
}

/// Processor seconds in which the machine did something, or another guest of its hypervisor did (proc_stat(5)).
fn busy(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<f64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    Some(BUSY_FIELDS.iter().filter_map(|at| ticks.get(*at)).sum::<f64>() / TICKS_PER_S)
}

fn parse(stat: &str) -> Option<f64> {
    // The name may hold anything, parentheses included.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(CPU_FIELDS)?.iter().map(|field| field.parse::<f64>().ok());
    Some(ticks.sum::<Option<f64>>()? / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_and_childrens_ticks_are_added() {
        let stat = "1 (a) b) S 1 1 1 0 -1 4194560 0 0 0 0 100 50 25 25 20 0 1 0";
        assert_eq!(parse(stat), Some(2.0));
        assert_eq!(parse("1 (a"), None);
    }

    #[test]
    fn idle_time_is_nobodys_and_stolen_time_is_somebodys() {
        let stat = "cpu  100 200 300 4000 5000 6 7 87 40 50\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy(stat), Some(7.0));
        assert_eq!(busy("intr 1"), None);
    }
}
