//! The `straightway` command where there are real controllers.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::context::Context;
use crate::registry::{Suite, Test, Verdict, fail, skip};

pub const SUITE: Suite = Suite {
    name: "command",
    tests: &[Test::new("doctor", "doctor looks at this machine and says what it found", doctor)],
};

/// Where a guest that carries it has it.
const PROGRAM: &str = "/bin/straightway";

fn doctor(context: &Context) -> Verdict {
    if !Path::new(PROGRAM).exists() {
        return skip("this guest carries no straightway");
    }
    let output = Command::new(PROGRAM).args(["doctor", "--json"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Ok(found) = serde_json::from_str::<Value>(&text) else {
        return fail(format!(
            "doctor ended with {} and said {text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ));
    };
    context.fact(&found);
    Ok(())
}
