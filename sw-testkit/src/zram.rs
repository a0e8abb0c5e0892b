//! A zram block device of its own: memory behind the kernel's block layer, so that what a job costs is software alone.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufWriter, Write},
    path::PathBuf,
    time::Duration,
};

/// Tries to take a device away, [`PAUSE`] apart: 5 s in all.
const TRIES_MAX: u32 = 50;
/// The kernel closes the last descriptor of a dropped ring a moment later, and until then the device is busy.
const PAUSE: Duration = Duration::from_millis(100);
/// Its block and the unit of [`Zram::fill`], bytes.
const PAGE: usize = 4096;

/// A zram device, taken away when it is dropped, also by a panic. Making one wants root and a kernel that has zram.
#[derive(Debug)]
pub struct Zram {
    number: u32,
    len: u64,
}

impl Zram {
    /// An empty device of `len` bytes, rounded up to whole pages by the kernel.
    ///
    /// # Errors
    /// Why there is none, in words for whoever skips: no zram in the kernel, or no right to make a device.
    pub fn new(len: u64) -> Result<Self, String> {
        let add = "/sys/class/zram-control/hot_add";
        let text = fs::read_to_string(add).map_err(|error| format!("no zram device ({add}: {error})"))?;
        let number = text.trim().parse().map_err(|_| format!("{add} says {text:?}, which is no number"))?;
        let zram = Self { number, len };
        let size = zram.sys("disksize");
        fs::write(&size, len.to_string()).map_err(|error| format!("no zram device ({size}: {error})"))?;
        Ok(zram)
    }

    /// Its node.
    pub fn device(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.number))
    }

    /// Writes its number, counted from 1, into each word of every page: the kernel keeps one word for such a page, so the
    /// device takes next to no memory, and a read of it costs no decompression.
    ///
    /// # Errors
    /// What the kernel says to a write.
    pub fn fill(&self) -> io::Result<()> {
        let mut device = BufWriter::with_capacity(1 << 20, OpenOptions::new().write(true).open(self.device())?);
        for page in 1..=self.len / PAGE as u64 {
            let word = page.to_le_bytes();
            device.write_all(&[word; PAGE / size_of::<u64>()].concat())?;
        }
        device.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }

    fn sys(&self, name: &str) -> String {
        format!("/sys/block/zram{}/{name}", self.number)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let undone = (0..TRIES_MAX).any(|_| {
            let reset = fs::write(self.sys("reset"), "1");
            let removed = reset.and_then(|()| fs::write("/sys/class/zram-control/hot_remove", self.number.to_string()));
            removed.inspect_err(|_| std::thread::park_timeout(PAUSE)).is_ok()
        });
        if !undone {
            println!("zram{} stays: it is busy", self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn every_page_of_a_filled_device_says_which_it_is_and_the_device_goes_with_its_owner() {
        let zram = match Zram::new(1 << 20) {
            Ok(zram) => zram,
            Err(why) => return println!("skip zram: {why}"),
        };
        zram.fill().unwrap();
        let node = zram.device();
        let mut bytes = vec![0; 1 << 20];
        fs::File::open(&node).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        for (page, bytes) in (1u64..).zip(bytes.chunks(PAGE)) {
            assert!(bytes.chunks(8).all(|word| word == page.to_le_bytes()), "page {page}");
        }
        let sys = PathBuf::from(zram.sys(""));
        assert!(sys.exists());
        drop(zram);
        assert!(!sys.exists(), "{} is still there", node.display());
    }
}
