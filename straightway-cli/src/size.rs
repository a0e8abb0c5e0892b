//! Sizes and numbers as people write and read them.

use std::fmt;

/// A number of bytes from text such as `512`, `4k`, `1MiB` or `2G`: powers of 1024, case does not matter.
///
/// # Errors
/// A sentence with the forms that are understood.
pub fn parse(text: &str) -> Result<u64, String> {
    straightway::parse_bytes(text).ok_or_else(|| {
        format!("`{text}` is not a size; write whole bytes with an optional unit of 1024, such as 4096, 4k, 1MiB or 2G")
    })
}

/// As [`parse`], and not zero.
///
/// # Errors
/// As [`parse`]; a sentence for zero.
pub fn parse_positive(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err(format!("`{text}` is zero; write a size of at least one byte")),
        bytes => Ok(bytes),
    }
}

/// A duration from text such as `500ms`, `5s`, `2m` or `5` (seconds).
///
/// # Errors
/// A sentence with the forms that are understood.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let lower = text.trim().to_ascii_lowercase();
    let wrong = || format!("`{text}` is not a time; write a whole number with ms, s, m, h or d, such as 500ms or 5s");
    let (digits, unit_ms) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)]
        .into_iter()
        .find_map(|(unit, ms)| lower.strip_suffix(unit).map(|digits| (digits, ms)))
        .unwrap_or((lower.as_str(), 1_000));
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match number.checked_mul(unit_ms) {
        Some(0) => Err(format!("`{text}` is no time at all; write at least 1ms")),
        Some(ms) => Ok(std::time::Duration::from_millis(ms)),
        None => Err(wrong()),
    }
}

/// Bytes with a binary unit and three significant digits: `512 B`, `1.50 KiB`, `2.00 GiB`.
#[derive(Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0..1_024 => return f.pad(&format!("{} B", self.0)),
            1_024..1_048_576 => (1u64 << 10, "KiB"),
            1_048_576..1_073_741_824 => (1 << 20, "MiB"),
            1_073_741_824..1_099_511_627_776 => (1 << 30, "GiB"),
            _ => (1 << 40, "TiB"),
        };
        f.pad(&three(self.0 as f64 / unit as f64, name))
    }
}

/// Bytes per second with a binary unit.
#[derive(Clone, Copy)]
pub struct Rate(pub f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1024f64.powi(3), "GiB/s"), (1024f64.powi(2), "MiB/s"), (1024.0, "KiB/s")];
        let (unit, name) = units.into_iter().find(|(unit, _)| self.0 >= *unit).unwrap_or((1.0, "B/s"));
        f.pad(&three(self.0 / unit, name))
    }
}

/// Nanoseconds with the unit that leaves one to three digits before the point.
#[derive(Clone, Copy)]
pub struct Nanos(pub f64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1e9, "s"), (1e6, "ms"), (1e3, "us")];
        match units.into_iter().find(|(unit, _)| self.0 >= *unit) {
            Some((unit, name)) => f.pad(&three(self.0 / unit, name)),
            None => f.pad(&format!("{:.0} ns", self.0)),
        }
    }
}

fn three(value: f64, unit: &str) -> String {
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// `bytes` in `seconds`, as bytes per second; 0 for no time.
pub fn rate(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("4KiB", 4096),
            ("4kB", 4096),
            ("1MiB", 1 << 20),
            ("3g", 3 << 30),
            ("7B", 7),
            ("16T", 16 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "4x", "-1", "1.5k", "4kk", "0x10", "99999999999999999999", "17000000t", "4 4k"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse_positive("0k").is_err());
    }

    #[test]
    fn durations() {
        for (text, ms) in
            [("500ms", 500), ("5s", 5_000), ("2m", 120_000), ("1h", 3_600_000), ("1d", 86_400_000), ("3", 3_000)]
        {
            assert_eq!(parse_duration(text).map(|time| time.as_millis()), Ok(ms), "{text}");
        }
        for text in ["", "s", "0s", "1.5s", "-1s", "1w", "99999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_for_people_have_three_digits() {
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes(1536).to_string(), "1.50 KiB");
        assert_eq!(Bytes(2 << 30).to_string(), "2.00 GiB");
        assert_eq!(Bytes(100 << 20).to_string(), "100 MiB");
        assert_eq!(Rate(0.0).to_string(), "0.00 B/s");
        assert_eq!(Rate(1.5 * 1024.0 * 1024.0).to_string(), "1.50 MiB/s");
        assert_eq!(Nanos(999.0).to_string(), "999 ns");
        assert_eq!(Nanos(12_345.0).to_string(), "12.3 us");
        assert_eq!(format!("{:>10}|", Bytes(1)), "       1 B|");
    }
}
