//! What a job cost: CPU, page faults, memory; of this process, and of programs that it runs.
// UNSAFETY: getrusage, wait4 and pidfd_open have no safe face in the standard library.
#![expect(unsafe_code, reason = "system calls that report what a process cost")]

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{fault::Fault, report::Sample};

/// Longest tail of a program's error output that is kept, bytes.
const WORDS_MAX: usize = 400;

/// A reading of the meters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User CPU seconds.
    pub user_s: f64,
    /// System CPU seconds.
    pub sys_s: f64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Largest resident set so far, bytes.
    pub peak_rss_bytes: u64,
}

impl Usage {
    /// Of this process, all threads; those count, too, that the kernel adds to it for I/O that would block.
    pub(crate) fn now() -> Self {
        Self::of(libc::RUSAGE_SELF)
    }

    /// Of the calling thread alone, as fio counts.
    pub(crate) fn of_this_thread() -> Self {
        Self::of(libc::RUSAGE_THREAD)
    }

    fn of(whom: libc::c_int) -> Self {
        let mut raw = zeroed();
        // SAFETY: `raw` is a writable rusage of this frame; a target that the kernel does not know is an error.
        let rc = unsafe { libc::getrusage(whom, &raw mut raw) };
        if rc == 0 { Self::from_raw(&raw) } else { Self::default() }
    }

    fn from_raw(raw: &libc::rusage) -> Self {
        let count = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
        Self {
            user_s: seconds(raw.ru_utime),
            sys_s: seconds(raw.ru_stime),
            minor_faults: count(raw.ru_minflt),
            major_faults: count(raw.ru_majflt),
            peak_rss_bytes: count(raw.ru_maxrss) * 1024,
        }
    }

    /// Writes what was spent since `before` into a sample.
    pub(crate) fn charge(self, before: Self, sample: &mut Sample) {
        sample.cpu_user_s = self.user_s - before.user_s;
        sample.cpu_sys_s = self.sys_s - before.sys_s;
        sample.minor_faults = self.minor_faults.saturating_sub(before.minor_faults);
        sample.major_faults = self.major_faults.saturating_sub(before.major_faults);
        sample.peak_rss_bytes = self.peak_rss_bytes;
    }
}

fn zeroed() -> libc::rusage {
    // SAFETY: rusage is plain integers, for which all zero bits are a value.
    unsafe { std::mem::zeroed() }
}

#[expect(clippy::cast_precision_loss, reason = "seconds and microseconds of a process's life fit a double")]
fn seconds(time: libc::timeval) -> f64 {
    time.tv_sec as f64 + time.tv_usec as f64 * 1e-6
}

/// Resident bytes of this process now; 0 where procfs does not tell.
pub(crate) fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.as_deref().and_then(|text| text.split_whitespace().nth(1)).and_then(|word| word.parse().ok());
    pages.unwrap_or(0_u64) * 4096
}

/// Largest resident set of this process since [`forget_peak`], or since its start where that is not possible; 0 where procfs
/// does not tell. Unlike [`Usage::peak_rss_bytes`] it knows nothing of the program that this process was before `exec`.
pub(crate) fn peak_resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Starts the peak anew from what is resident now (proc(5), `clear_refs`, 5). Where it cannot, the peak is that of the whole
/// life of the process, so a bound on it is only harder to keep.
pub(crate) fn forget_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// A program that ended well.
#[derive(Debug)]
pub(crate) struct Finished {
    /// What it printed.
    pub stdout: String,
    /// What its whole life cost.
    pub usage: Usage,
}

/// Runs a program to its end within `limit`. Its output goes through files in `scratch`, so a full pipe cannot stop it.
///
/// # Errors
/// It cannot be started, ends with another status than 0, or runs past `limit` (then it is killed).
pub(crate) fn run(mut command: Command, scratch: &Path, limit: Duration) -> Result<Finished, Fault> {
    let program = command.get_program().to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
    let (out, err) = (scratch.join("stdout"), scratch.join("stderr"));
    let create = |path: &Path| File::create(path).map_err(Fault::os("create", path));
    command.stdin(Stdio::null()).stdout(create(&out)?).stderr(create(&err)?);
    let child = command.spawn().map_err(Fault::os("start", program.as_str()))?;
    let pid = libc::pid_t::try_from(child.id()).unwrap_or(0);
    let in_time = wait_exit(pid, limit).map_err(Fault::os("wait for", program.as_str()))?;
    if !in_time {
        // SAFETY: `pid` is our own child and not yet reaped, so the number cannot name another process.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let (status, usage) = reap(pid).map_err(Fault::os("reap", program.as_str()))?;
    if !in_time {
        return Err(Fault::TooLong { program, limit_s: limit.as_secs() });
    }
    if status != 0 {
        let text = fs::read(&err).unwrap_or_default();
        let tail = text.get(text.len().saturating_sub(WORDS_MAX)..).unwrap_or_default();
        let words = String::from_utf8_lossy(tail).trim().replace('\n', " | ");
        let status = match libc::WIFSIGNALED(status) {
            true => format!("signal {}", libc::WTERMSIG(status)),
            false => format!("exit code {}", libc::WEXITSTATUS(status)),
        };
        return Err(Fault::Ended { program, status, words });
    }
    let stdout = fs::read_to_string(&out).map_err(Fault::os("read", &out))?;
    Ok(Finished { stdout, usage })
}

/// Waits until the child may be reaped; `false` when `limit` passed first.
fn wait_exit(pid: libc::pid_t, limit: Duration) -> io::Result<bool> {
    // SAFETY: plain integers go in; a new descriptor or -1 comes back.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = i32::try_from(raw).unwrap_or(-1);
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pidfd_open just gave us this descriptor, and nobody else has it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut entry = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `entry` is one writable pollfd of this frame.
    match unsafe { libc::poll(&raw mut entry, 1, limit_ms) } {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

fn reap(pid: libc::pid_t) -> io::Result<(i32, Usage)> {
    let (mut status, mut raw) = (0, zeroed());
    // SAFETY: both pointers are to writable values of this frame.
    let rc = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut raw) };
    if rc == pid { Ok((status, Usage::from_raw(&raw))) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Finished, Fault> {
        let scratch =
            std::env::temp_dir().join(format!("straightway-bench-usage-{}-{}", std::process::id(), script.len()));
        fs::create_dir_all(&scratch).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let result = run(command, &scratch, limit);
        fs::remove_dir_all(&scratch).unwrap();
        result
    }

    #[test]
    fn output_and_cost_of_a_program_come_back() {
        let done = shell("echo hello", Duration::from_secs(20)).unwrap();
        assert_eq!(done.stdout, "hello\n");
        assert!(done.usage.peak_rss_bytes > 0);
    }

    #[test]
    fn peak_is_that_since_it_was_forgotten() {
        let large = vec![1_u8; 64 << 20];
        assert!(peak_resident_bytes() > large.iter().filter(|byte| **byte == 1).count() as u64);
        let before = peak_resident_bytes();
        drop(large);
        forget_peak();
        assert!(peak_resident_bytes() <= before);
        assert!(resident_bytes() > 0);
    }

    #[test]
    fn bad_end_carries_code_and_last_words() {
        let fault = shell("echo no such thing >&2; exit 3", Duration::from_secs(20)).unwrap_err();
        assert_eq!(fault.to_string(), "sh ended with exit code 3: no such thing");
    }

    #[test]
    fn program_past_its_limit_is_killed() {
        let fault = shell("exec sleep 30", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(fault, Fault::TooLong { .. }), "{fault:?}");
    }
}
