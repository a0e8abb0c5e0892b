//! How much room the disk has: a test run writes gigabytes, and one that ends for lack of room must say so.

use std::path::Path;

use crate::Place;

/// A binary gigabyte, bytes.
const GIB: u64 = 1 << 30;
/// What a whole run writes, GiB: programs of the tests, the Python environment, packages of the small VMs. Measured on a
/// fresh clone, see `docs/status.md`.
const RUN_GIB: u64 = 12;

/// Free bytes for us in the target directory and in the temporary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    target: u64,
    temporary: u64,
}

impl Room {
    /// Asks the file systems. What cannot be asked counts as empty, as it can hardly be written either.
    pub fn now(place: &Place) -> Room {
        Room { target: free(&place.target), temporary: free(&std::env::temp_dir()) }
    }

    /// As in `3.1 GiB free in the target directory, 0.4 GiB in the temporary one`.
    pub fn shown(self) -> String {
        let [target, temporary] = [self.target, self.temporary].map(|bytes| {
            let tenths = bytes / (GIB / 10);
            format!("{}.{} GiB", tenths / 10, tenths % 10)
        });
        format!("{target} free in the target directory, {temporary} in the temporary one")
    }

    /// What to say before a run that may not fit.
    pub fn warning(self) -> Option<String> {
        let fits = self.target >= RUN_GIB * GIB && self.temporary >= GIB;
        (!fits).then(|| format!("{}; a whole run on a fresh clone writes up to {RUN_GIB} GiB", self.shown()))
    }
}

/// Of the nearest directory above that is there: the target directory may be still to be made.
fn free(dir: &Path) -> u64 {
    let known = dir.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok());
    known.map_or(0, |known| known.f_bavail.saturating_mul(known.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_told_and_too_little_is_said() {
        let room = Room { target: 13 * GIB + GIB / 2, temporary: GIB };
        assert_eq!(room.shown(), "13.5 GiB free in the target directory, 1.0 GiB in the temporary one");
        assert_eq!(room.warning(), None);
        assert!(Room { target: 11 * GIB, ..room }.warning().unwrap().contains("up to 12 GiB"));
        assert!(Room { temporary: GIB - 1, ..room }.warning().is_some());
    }

    #[test]
    fn a_directory_that_is_not_there_has_the_room_of_its_parent() {
        let dir = std::env::temp_dir();
        assert!(free(&dir.join("not/there")) > 0);
    }
}
