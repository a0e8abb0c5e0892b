//! The commands of `straightway` with a real server: as a program of its own, where the command that runs these tests says where it is.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use sw_testkit::{pattern, scratch::Scratch};

/// Where the program is.
const COMMAND: &str = "STRAIGHTWAY_COMMAND";

/// Says what was told by a variable of the environment.
#[expect(clippy::disallowed_methods, reason = "told by the command that brings it")]
pub fn told(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

struct Commands<'a> {
    program: PathBuf,
    folder: Scratch,
    environment: &'a [(&'static str, String)],
    engine: &'a [&'a str],
}

impl Commands<'_> {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(self.engine).current_dir(self.folder.root()).env("HOME", self.folder.root());
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).env_remove("AWS_PROFILE");
        command.output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn says(&self, arguments: &[&str], want: &str) {
        let text = String::from_utf8(self.ok(arguments)).unwrap();
        assert!(text.contains(want), "{arguments:?}: {text}");
    }
}

/// A file of one tensor, as safetensors has it.
fn model(bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len();
    let head = format!(r#"{{"weight":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    [&(head.len() as u64).to_le_bytes()[..], head.as_bytes(), bytes].concat()
}

/// Copies both ways, reads, lists and loads below `root`, which ends with a slash.
pub fn hold(name: &str, root: &str, environment: &[(&'static str, String)], engine: &[&str]) {
    let Some(program) = told(COMMAND) else {
        return println!("{name}: no commands: nobody says where straightway is ({COMMAND})");
    };
    let folder = Scratch::new(env!("CARGO_TARGET_TMPDIR"), "commands");
    let commands = Commands { program, folder, environment, engine };
    let tensor = pattern::bytes(77, 0, (9 << 20) + 77);
    let file = model(&tensor);
    fs::write(commands.folder.path("model.safetensors"), &file).unwrap();
    let there = format!("{root}model.safetensors");
    commands.ok(&["cp", "model.safetensors", root]);
    commands.says(&["ls", root], "model.safetensors");
    commands.says(&["ls", "-R", root], "model.safetensors");
    commands.says(&["stat", &there, "--json"], &format!("\"len\":{}", file.len()));
    commands.says(&["plan", &there], "http/kernel-copy");
    let part = commands.ok(&["cat", &there, "--offset", "4097", "--len", "100000"]);
    assert!(part == file[4097..104_097]);
    commands.ok(&["cp", &there, "back"]);
    assert!(fs::read(commands.folder.path("back")).unwrap() == file);
    commands.ok(&["cp", &there, &format!("{root}second.safetensors")]);
    assert!(commands.ok(&["cat", &format!("{root}second.safetensors")]) == file);
    let here = String::from_utf8(commands.ok(&["load", "model.safetensors", "--digest", "--json"])).unwrap();
    let digest = here.split_once("\"sha256\":\"").and_then(|(_, rest)| rest.split('"').next()).unwrap();
    commands.says(&["load", &there, "--digest", "--json"], digest);
    commands.says(&["load", &there, "--digest", "--policy", "require=http/kernel-copy"], "weight");
    // What no remote system does.
    let refused = commands.run(&["load", &there, "--policy", "require=dma"]);
    assert_eq!(refused.status.code(), Some(5), "{}", String::from_utf8_lossy(&refused.stderr));
    let nobody = commands.run(&["stat", &format!("{root}nobody")]);
    assert_eq!(nobody.status.code(), Some(3), "{}", String::from_utf8_lossy(&nobody.stderr));
    println!("{name}: cp, ls, stat, plan, cat and load hold");
}
