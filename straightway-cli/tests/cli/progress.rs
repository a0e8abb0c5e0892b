//! Progress bars: on stderr, if that is a terminal and nobody forbade them.

use std::{
    fs::File,
    io::Read as _,
    process::{Child, Stdio},
};

use nix::pty::{Winsize, openpty};

use crate::support::Scratch;

/// Runs a copy of 32 MiB whose stderr is a terminal; what came there, and what came on stdout.
fn on_terminal(more: &[&str]) -> (String, String) {
    let scratch = Scratch::new();
    scratch.file("a", 32 << 20);
    let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let arguments = [&["cp", "a", "b", "--piece", "64k"][..], more].concat();
    let mut command = scratch.command(&arguments);
    let child = command.env("TERM", "xterm").stdout(Stdio::piped()).stderr(pty.slave).spawn().unwrap();
    // It holds the slave's descriptor: the terminal ends with the last of them.
    drop(command);
    let terminal = std::thread::Builder::new().spawn(move || {
        let (mut master, mut seen, mut piece) = (File::from(pty.master), Vec::new(), [0; 4096]);
        // A terminal that is gone gives EIO.
        while let Ok(count @ 1..) = master.read(&mut piece) {
            seen.extend_from_slice(&piece[..count]);
        }
        seen
    });
    let terminal = terminal.unwrap();
    let output = Child::wait_with_output(child).unwrap();
    let seen = String::from_utf8(terminal.join().unwrap()).unwrap();
    assert!(output.status.success(), "{seen}");
    (seen, String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_terminal_sees_a_bar_for_each_stage_and_is_left_clean() {
    let (seen, stdout) = on_terminal(&[]);
    for word in ["copy ", "verify ", "/32.00 MiB", "eta "] {
        assert!(seen.contains(word), "no `{word}` in {seen:?}");
    }
    // The last line is erased, and what is printed for good is not on stderr.
    let end = seen.rfind("\u{1b}[2K").unwrap_or_else(|| panic!("no line was erased in {seen:?}"));
    assert!(!seen[end..].contains("MiB"), "{seen:?}");
    assert!(stdout.starts_with("a -> ") || stdout.contains("32.0 MiB"), "{stdout}");
    assert!(!stdout.contains("eta"), "{stdout}");
}

#[test]
fn no_bar_is_drawn_where_it_is_forbidden_or_nobody_sees_it() {
    let (seen, stdout) = on_terminal(&["--no-progress"]);
    assert_eq!(seen, "");
    assert!(stdout.contains("verified"), "{stdout}");
    let scratch = Scratch::new();
    scratch.file("a", 32 << 20);
    let ran = scratch.run(&["cp", "a", "b", "--piece", "64k"]).ok();
    assert_eq!(ran.stderr, "");
}
