//! Faults on demand: the n-th call of a function, or the n-th copy that runs, fails with a chosen code.

use crate::abi::Code;

/// As a code for the name [`COPY`]: the copy reports success and leaves its last byte out.
pub const SILENT_SHORT: Code = 0xffff_0001;
/// As a code for the name [`COPY`]: the copy reports success and flips one bit of its first byte.
pub const SILENT_DAMAGE: Code = 0xffff_0002;
/// The name under which the execution of copies (not their submission) fails. The code then sticks to the context.
pub const COPY: &str = "copy";

/// The name under which the execution of kernels fails.
pub const KERNEL: &str = "kernel";

#[derive(Debug)]
struct Fault {
    name: String,
    /// Calls still to let pass; `None`: every call fails.
    left: Option<u64>,
    code: Code,
}

/// The faults that are still to come.
#[derive(Debug, Default)]
pub struct Faults {
    list: Vec<Fault>,
    /// How many have been played.
    pub hits: u64,
}

impl Faults {
    /// Makes the `nth` call of `name` from now (1 is the next one, 0 is every one) answer `code`.
    pub fn add(&mut self, name: &str, nth: u64, code: Code) {
        let left = nth.checked_sub(1);
        self.list.push(Fault { name: name.to_owned(), left, code });
    }

    /// Forgets all faults that have not been played.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Counts one call of `name`; answers the code to fail with, if this is the one.
    pub fn due(&mut self, name: &str) -> Option<Code> {
        let mut played = None;
        self.list.retain_mut(|fault| {
            if fault.name != name {
                return true;
            }
            match &mut fault.left {
                None => {
                    played.get_or_insert(fault.code);
                    true
                }
                Some(0) if played.is_none() => {
                    played = Some(fault.code);
                    false
                }
                Some(0) => true,
                Some(left) => {
                    *left -= 1;
                    true
                }
            }
        });
        self.hits += u64::from(played.is_some());
        played
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_fails_once_and_others_pass() {
        let mut faults = Faults::default();
        faults.add("cuMemAlloc_v2", 3, 2);
        let answers: Vec<_> = (0..5).map(|_| faults.due("cuMemAlloc_v2")).collect();
        assert_eq!(answers, [None, None, Some(2), None, None]);
        assert_eq!(faults.due("cuMemFree_v2"), None);
        assert_eq!(faults.hits, 1);
    }

    #[test]
    fn nth_zero_fails_every_time_until_cleared() {
        let mut faults = Faults::default();
        faults.add(COPY, 0, 719);
        assert_eq!((faults.due(COPY), faults.due(COPY)), (Some(719), Some(719)));
        faults.clear();
        assert_eq!(faults.due(COPY), None);
    }
}
