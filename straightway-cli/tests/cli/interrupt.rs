//! Signals: nothing half is left, and what can be resumed is.

use std::{
    os::fd::OwnedFd,
    process::{Child, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use sw_testkit::s3::{Server, Wire};

use crate::support::{Ran, Scratch, content};

/// How long a command may take to start working, and to end after a signal.
const PATIENCE: Duration = Duration::from_secs(30);

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Waits until `seen` holds, at most [`PATIENCE`].
#[expect(clippy::disallowed_methods, reason = "a test that watches another process has nothing to wait on but time")]
fn wait_until(what: &str, mut seen: impl FnMut() -> bool) {
    let start = Instant::now();
    while !seen() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn end(mut child: Child) -> Output {
    wait_until("the end", || child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

fn has_partial(scratch: &Scratch) -> bool {
    scratch.names().iter().any(|name| name.ends_with(".straightway-partial"))
}

#[test]
fn an_interrupted_copy_leaves_nothing() {
    let scratch = Scratch::new();
    scratch.file("a", 64 << 20);
    let mut child =
        scratch.command(&["cp", "a", "b", "--piece", "4k", "--depth", "2"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the copy", || has_partial(&scratch) || child.try_wait().unwrap().is_some());
    signal(&child, Signal::SIGINT);
    let output = end(child);
    if output.status.code() == Some(0) {
        println!("skip interrupt: the copy was done before the signal came");
        return;
    }
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("signal 2"));
    assert_eq!(scratch.names(), ["a"]);
}

#[test]
fn an_interrupted_upload_leaves_nothing() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.file("a", 64 << 20);
    // Ten seconds for all of it.
    server.set(Wire::Slow(64 << 10));
    let mut command = scratch.command(&["cp", "a", &Server::uri("a"), "--engine", "remote_part_bytes=5MiB"]);
    command.envs(server.environment()).env("HOME", scratch.path("")).env_remove("AWS_PROFILE");
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the upload", || !server.uploads_left().unwrap().is_empty());
    signal(&child, Signal::SIGINT);
    let output = end(child);
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    let left = server.uploads_left().unwrap();
    assert!(left.is_empty() && !server.path("a").exists(), "{left:?}");
}

/// Bytes that the interrupted copies of these tests have.
const LEN: usize = 64 << 20;
/// Copies that may be over, or have nothing done, when the signal comes, before a test gives up.
const ATTEMPTS: u64 = 40;

/// The hidden file whose name ends so.
fn hidden(scratch: &Scratch, end: &str) -> Option<std::path::PathBuf> {
    scratch.names().into_iter().find(|name| name.ends_with(end)).map(|name| scratch.path(&name))
}

/// Interrupts copies of `a` to `b` until one has something done and something left; the bytes that its sidecar says.
#[expect(clippy::disallowed_methods, reason = "each attempt lets the copy go on a little longer")]
fn interrupted(scratch: &Scratch, with: Signal) -> u64 {
    scratch.file("a", LEN);
    let arguments = ["cp", "--resume", "a", "b", "--piece", "64k", "--depth", "4"];
    for attempt in 0..ATTEMPTS {
        let mut child = scratch.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the copy", || has_partial(scratch) || child.try_wait().unwrap().is_some());
        std::thread::sleep(Duration::from_millis(attempt % 10 * 3));
        signal(&child, with);
        let ran = Ran::of(&arguments, end(child));
        if ran.code != Some(0) {
            assert_eq!(ran.code, Some(128 + with as i32), "{}", ran.stderr);
            assert!(!scratch.path("b").exists());
            let sidecar = hidden(scratch, ".straightway-resume").map(|path| std::fs::read_to_string(path).unwrap());
            let done: u64 = sidecar.map_or(0, |text| text.trim_end().rsplit(' ').next().unwrap().parse().unwrap());
            if done > 0 && done < LEN as u64 {
                return done;
            }
        }
        for name in scratch.names().iter().filter(|name| *name != "a") {
            std::fs::remove_file(scratch.path(name)).unwrap();
        }
    }
    panic!("none of {ATTEMPTS} copies was interrupted half way");
}

#[test]
fn an_interrupted_resumable_copy_goes_on_where_it_was() {
    let scratch = Scratch::new();
    let done = interrupted(&scratch, Signal::SIGTERM);
    let again = scratch.run(&["cp", "--resume", "a", "b", "--json"]).ok().document("straightway.cp/1");
    assert_eq!(again["verified"].as_bool(), Some(true));
    assert_eq!(again["resumed_from"].as_u64(), Some(done));
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), content(LEN));
    assert_eq!(scratch.names(), ["a", "b"]);
}

#[test]
fn a_damaged_part_of_an_old_copy_is_not_believed() {
    let scratch = Scratch::new();
    interrupted(&scratch, Signal::SIGINT);
    let partial = hidden(&scratch, ".straightway-partial").unwrap();
    let mut bytes = std::fs::read(&partial).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&partial, bytes).unwrap();
    let again = scratch.run(&["cp", "--resume", "a", "b", "--json"]).ok().document("straightway.cp/1");
    assert_eq!(again["resumed_from"].as_u64(), Some(0));
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), content(LEN));
}

#[test]
fn a_killed_copy_leaves_the_old_destination() {
    let scratch = Scratch::new();
    scratch.file("a", 64 << 20);
    std::fs::write(scratch.path("b"), "old").unwrap();
    let mut child = scratch.command(&["cp", "a", "b", "--piece", "4k", "--depth", "2"]).spawn().unwrap();
    wait_until("the copy", || has_partial(&scratch) || child.try_wait().unwrap().is_some());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), b"old");
    scratch.run(&["cp", "a", "b"]).ok();
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), content(64 << 20));
}

#[test]
fn a_changed_source_does_not_continue_an_old_copy() {
    let scratch = Scratch::new();
    interrupted(&scratch, Signal::SIGINT);
    let mut other = content(LEN);
    other.reverse();
    std::fs::write(scratch.path("a"), &other).unwrap();
    let again = scratch.run(&["cp", "--resume", "a", "b", "--json"]).ok().document("straightway.cp/1");
    assert_eq!(again["resumed_from"].as_u64(), Some(0));
    assert_eq!(std::fs::read(scratch.path("b")).unwrap(), other);
}

/// A checkpoint of that many tensors of 16 MiB, which are holes.
fn checkpoint(scratch: &Scratch, name: &str, tensors: u64) {
    let len = 16 << 20;
    let entry = |number: u64| {
        let at = [number * len, (number + 1) * len];
        (format!("t{number}"), serde_json::json!({"dtype": "U8", "shape": [len], "data_offsets": at}))
    };
    let head = serde_json::Value::Object((0..tensors).map(entry).collect()).to_string();
    let bytes = [&(head.len() as u64).to_le_bytes()[..], head.as_bytes()].concat();
    std::fs::write(scratch.path(name), &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(scratch.path(name)).unwrap();
    file.set_len(bytes.len() as u64 + tensors * len).unwrap();
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let scratch = Scratch::new();
    checkpoint(&scratch, "a.safetensors", 48);
    for format in ["dcp", "safetensors"] {
        let arguments = ["checkpoint", "convert", "a.safetensors", "--to", format, "--out", "b"];
        let mut child = scratch.command(&arguments).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        wait_until("the conversion", || scratch.names().len() > 1 || child.try_wait().unwrap().is_some());
        if child.try_wait().unwrap().is_none() {
            signal(&child, Signal::SIGINT);
        }
        let ran = Ran::of(&arguments, end(child));
        if ran.code == Some(0) {
            println!("skip interrupt of {format}: the conversion was done before the signal came");
            std::fs::remove_dir_all(scratch.path("b")).unwrap();
            continue;
        }
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        assert!(ran.stderr.contains("signal 2"), "{}", ran.stderr);
        assert_eq!(scratch.names(), ["a.safetensors"], "{format}");
    }
}

#[test]
fn an_interrupted_bench_and_demo_remove_their_files() {
    let scratch = Scratch::new();
    for arguments in [
        &["bench", "write", "w", "--file-size", "8MiB", "--time", "1h", "--no-ceiling"][..],
        &["demo", "--size", "512MiB", "--into", "host"],
    ] {
        let child = scratch.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("a file", || !scratch.names().is_empty());
        signal(&child, Signal::SIGINT);
        let output = end(child);
        assert_eq!(output.status.code(), Some(130), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(scratch.names().is_empty(), "{:?}", scratch.names());
    }
}

#[test]
fn a_second_interrupt_ends_a_command_that_waits_for_its_reader() {
    let scratch = Scratch::new();
    scratch.file("a", 8 << 20);
    // Nobody reads the pipe, so that the command is stuck in a write.
    let (reader, writer): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
    let child = scratch.command(&["cat", "a"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the pipe to fill", || blocked(&child));
    signal(&child, Signal::SIGINT);
    wait_until("the first signal", || blocked(&child));
    signal(&child, Signal::SIGINT);
    assert_eq!(end(child).status.code(), Some(130));
    drop(reader);
}

/// Whether its main thread sleeps in a write to a pipe.
fn blocked(child: &Child) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap_or_default();
    text.contains("pipe_write")
}
