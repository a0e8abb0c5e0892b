//! Lines that a guest writes to its second serial port. `hwtests/guest/src/wire.rs` is the other side.
//!
//! ```text
//! SW-UP SECONDS                              init runs; seconds since the kernel started
//! SW-BEGIN SUITE                             tests of a suite follow
//! SW-TEST NAME ok|fail|skip SECONDS REASON   one for each test
//! SW-FACT NAME JSON                          something that a test measured, for the record
//! SW-NOTE TEXT                               kept by the host for the guest of the next phase
//! SW-HOST VERB ARGUMENTS                     something the host shall do; it answers with "ok TEXT" or "no REASON"
//! SW-LOG TEXT                                a line of the kernel's log, after the tests
//! SW-END STATUS SECONDS                      nothing follows
//! ```

/// One line, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    Up(f64),
    Begin(String),
    Test(Test),
    Fact { test: String, value: serde_json::Value },
    Note(String),
    Host { verb: String, argument: String },
    Log(String),
    End { status: i32, seconds: f64 },
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    pub name: String,
    pub end: End,
    pub seconds: f64,
    /// Why it failed or was skipped; empty when it passed.
    pub reason: String,
}

/// The three ends of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Ok,
    Fail,
    Skip,
}

impl End {
    pub fn word(self) -> &'static str {
        match self {
            End::Ok => "ok",
            End::Fail => "fail",
            End::Skip => "skip",
        }
    }
}

impl Line {
    /// None for a line that is not of this protocol.
    pub fn parse(text: &str) -> Option<Line> {
        let text = text.trim_end();
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        match kind {
            "SW-UP" => Some(Line::Up(rest.trim().parse().ok()?)),
            "SW-BEGIN" => Some(Line::Begin(rest.to_string())),
            "SW-TEST" => parse_test(rest).map(Line::Test),
            "SW-FACT" => {
                let (test, json) = rest.split_once(' ')?;
                Some(Line::Fact { test: test.to_string(), value: serde_json::from_str(json).ok()? })
            }
            "SW-NOTE" => Some(Line::Note(rest.to_string())),
            "SW-HOST" => {
                let (verb, argument) = rest.split_once(' ').unwrap_or((rest, ""));
                Some(Line::Host { verb: verb.to_string(), argument: argument.to_string() })
            }
            "SW-LOG" => Some(Line::Log(rest.to_string())),
            "SW-END" => {
                let (status, seconds) = rest.split_once(' ')?;
                Some(Line::End { status: status.parse().ok()?, seconds: seconds.trim().parse().ok()? })
            }
            _ => None,
        }
    }
}

fn parse_test(rest: &str) -> Option<Test> {
    let mut words = rest.splitn(4, ' ');
    let name = words.next()?.to_string();
    let end = match words.next()? {
        "ok" => End::Ok,
        "fail" => End::Fail,
        "skip" => End::Skip,
        _ => return None,
    };
    let seconds = words.next()?.parse().ok()?;
    Some(Test { name, end, seconds, reason: words.next().unwrap_or_default().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line_is_read() {
        let test = |end, reason: &str| {
            Some(Line::Test(Test { name: "bed.io".into(), end, seconds: 0.25, reason: reason.into() }))
        };
        assert_eq!(Line::parse("SW-TEST bed.io ok 0.25"), test(End::Ok, ""));
        assert_eq!(Line::parse("SW-TEST bed.io fail 0.25 two words\r"), test(End::Fail, "two words"));
        assert_eq!(Line::parse("SW-TEST bed.io skip 0.25 no peer"), test(End::Skip, "no peer"));
        assert_eq!(Line::parse("SW-UP 1.5"), Some(Line::Up(1.5)));
        assert_eq!(Line::parse("SW-END 42 9.1"), Some(Line::End { status: 42, seconds: 9.1 }));
        let host = Line::Host { verb: "device_del".into(), argument: "nvme-b".into() };
        assert_eq!(Line::parse("SW-HOST device_del nvme-b"), Some(host));
        let fact = Line::Fact { test: "a.b".into(), value: serde_json::json!({"n": 1}) };
        assert_eq!(Line::parse("SW-FACT a.b {\"n\":1}"), Some(fact));
    }

    #[test]
    fn a_damaged_line_is_no_line() {
        for text in ["SW-TEST bed.io maybe 1", "SW-TEST bed.io ok", "SW-END 42", "SW-FACT a {", "hello", ""] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }
}
