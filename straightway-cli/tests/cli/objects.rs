//! Object stores by the command: a server of S3 in this process, which is not ours.

use std::fs;

use sw_testkit::{
    s3::{Request, Server, Wire},
    scripted::{Scripted, error, head_of, part_of, say},
};

use crate::support::{Ran, Scratch, content};

/// Runs the command with what the environment of a user of this server has.
fn run(scratch: &Scratch, server: &Server, arguments: &[&str]) -> Ran {
    let mut command = scratch.command(arguments);
    command.envs(server.environment()).env("HOME", scratch.path("")).env_remove("AWS_PROFILE");
    Ran::of(arguments, command.output().unwrap())
}

#[test]
fn an_object_is_listed_told_read_and_copied_both_ways() {
    let (scratch, server) = (Scratch::new(), Server::start());
    let bytes = content(9 << 20);
    scratch.file("one", 9 << 20);
    let (address, folder) = (Server::uri("data/one"), Server::uri("data/"));
    let copied = run(&scratch, &server, &["cp", "one", &folder, "--json"]).ok().document("straightway.cp/1");
    assert_eq!((copied["dst"].as_str(), copied["verified"].as_bool()), (Some(address.as_str()), Some(true)));
    assert!(fs::read(server.path("data/one")).unwrap() == bytes);

    let stat = run(&scratch, &server, &["stat", &address, "--json"]).ok().document("straightway.stat/1");
    assert_eq!((stat["kind"].as_str(), stat["len"].as_u64()), (Some("object"), Some(9 << 20)));
    assert!(run(&scratch, &server, &["ls", &folder]).ok().text().contains("data/one"));
    let all = run(&scratch, &server, &["ls", "-R", &Server::uri("")]).ok();
    assert_eq!(all.text().lines().count(), 1);
    assert!(all.text().contains(&address), "{}", all.text());
    let plan = run(&scratch, &server, &["plan", &address]).ok();
    assert!(plan.text().contains("http/kernel-copy"), "{}", plan.text());

    let part = run(&scratch, &server, &["cat", &address, "--offset", "4097", "--len", "100000"]).ok();
    assert!(part.stdout == bytes[4097..104_097]);
    let part = run(&scratch, &server, &["cat", &format!("{address}?offset=7&len=9")]).ok();
    assert_eq!(part.stdout, bytes[7..16]);
    server.set(Wire::CutOnce(3 << 20));
    run(&scratch, &server, &["cp", &address, "back"]).ok();
    assert!(fs::read(scratch.path("back")).unwrap() == bytes);
    run(&scratch, &server, &["cp", &address, &Server::uri("copy")]).ok();
    assert!(fs::read(server.path("copy")).unwrap() == bytes);
}

#[test]
fn what_goes_wrong_is_told_with_a_remedy() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.file("one", 100);
    run(&scratch, &server, &["stat", &Server::uri("nobody")]).fails(3, &["404 Not Found", "nobody"]);
    run(&scratch, &server, &["cp", "one", &Server::uri("one"), "--resume"]).fails(2, &["without --resume"]);
    run(&scratch, &server, &["cat", "s3://"]).fails(2, &["s3://BUCKET/KEY"]);
    run(&scratch, &server, &["cat", &Server::uri("x"), "--engine", "s3_nonsense=1"]).fails(2, &["s3_endpoint"]);
    let mut denied = scratch.command(&["stat", &Server::uri("one")]);
    denied.envs(server.environment()).env("AWS_SECRET_ACCESS_KEY", "wrong");
    Ran::of(&["stat"], denied.output().unwrap()).fails(4, &["credentials"]);
}

#[test]
fn bytes_that_the_store_has_another_checksum_of_are_not_taken() {
    let (scratch, server) = (Scratch::new(), Server::start());
    // One by one request, and one by several: both are written with their checksums.
    for (name, len) in [("small", 1 << 20), ("large", 9 << 20)] {
        scratch.file(name, len);
        let address = Server::uri(name);
        run(&scratch, &server, &["cp", name, &address]).ok();
        run(&scratch, &server, &["cp", &address, "back"]).ok();
        // A bit falls over where the store keeps it.
        let mut bytes = fs::read(server.path(name)).unwrap();
        bytes[len / 2] ^= 1;
        fs::write(server.path(name), bytes).unwrap();
        let ran = run(&scratch, &server, &["cp", &address, "damaged"]);
        assert!(
            ran.code != Some(0) && ran.stderr.contains("checksum") | ran.stderr.contains("crc64"),
            "{}",
            ran.stderr
        );
        assert!(!scratch.path("damaged").exists());
    }
}

#[test]
fn a_store_that_stays_busy_is_asked_one_patience_long() {
    let (scratch, server) = (Scratch::new(), Server::start());
    fs::write(server.path("one"), content(100)).unwrap();
    server.set(Wire::TooMuch(Request::Range, u64::MAX));
    let ran = run(&scratch, &server, &["cat", &Server::uri("one"), "--engine", "remote_patience_ms=1000"]);
    assert!(ran.code != Some(0) && ran.stderr.contains("503"), "{}", ran.stderr);
    // Ten times again, at most.
    assert!((2..=11).contains(&server.refused()), "{}", server.refused());
}

#[test]
fn a_profile_says_who_we_are() {
    let (scratch, server) = (Scratch::new(), Server::start());
    fs::write(server.path("one"), b"bytes").unwrap();
    let [(_, endpoint), (_, key), (_, secret)] = server.environment();
    fs::create_dir(scratch.path(".aws")).unwrap();
    let credentials = format!("[mine]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    fs::write(scratch.path(".aws/credentials"), credentials).unwrap();
    fs::write(scratch.path(".aws/config"), format!("[profile mine]\nendpoint_url = {endpoint}\n")).unwrap();
    let arguments = ["cat", &Server::uri("one")];
    let mut command = scratch.command(&arguments);
    command.env("HOME", scratch.path("")).env("AWS_PROFILE", "mine");
    for name in
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
    {
        command.env_remove(name);
    }
    assert_eq!(Ran::of(&arguments, command.output().unwrap()).ok().stdout, b"bytes");
}

/// A file of one tensor of 1,000 bytes.
fn shard(name: &str, byte: u8) -> Vec<u8> {
    let head = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1000],"data_offsets":[0,1000]}}}}"#);
    let mut file = (head.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(head.as_bytes());
    file.extend(std::iter::repeat_n(byte, 1000));
    file
}

#[test]
fn a_model_is_read_by_one_who_may_not_see_what_else_is_there() {
    let (scratch, bytes) = (Scratch::new(), shard("first", 1));
    // As Amazon's answers to who may read but not list: what is not there is forbidden.
    let tag = "ETag: \"1\"\r\nLast-Modified: Tue, 01 Dec 2026 10:00:00 GMT\r\n";
    let server = Scripted::start(move |request| match request {
        _ if !request.contains(" /b/model.safetensors ") => error("403 Forbidden", "AccessDenied"),
        _ if request.starts_with("head") => head_of(bytes.len(), tag),
        _ if request.contains("range: ") => part_of(request, tag, &bytes),
        _ => say("200 OK", tag, &bytes),
    });
    let arguments = ["load", "s3://b/model.safetensors", "--digest"];
    let mut command = scratch.command(&arguments);
    command.env("AWS_ENDPOINT_URL_S3", format!("http://{}", server.address()));
    command.env("AWS_ACCESS_KEY_ID", "A").env("AWS_SECRET_ACCESS_KEY", "S").env("HOME", scratch.path(""));
    Ran::of(&arguments, command.output().unwrap()).ok();
    assert_ne!(server.asked("head /b/straightway").len(), 0, "it looked for checksums: {:?}", server.asked("head"));
}

/// A checkpoint of two shards with their index, as the field writes it.
fn model(server: &Server) {
    fs::create_dir(server.path("model")).unwrap();
    fs::write(server.path("model/a.safetensors"), shard("first", 1)).unwrap();
    fs::write(server.path("model/b.safetensors"), shard("second", 2)).unwrap();
    let index = r#"{"metadata":{},"weight_map":{"first":"a.safetensors","second":"b.safetensors"}}"#;
    fs::write(server.path("model/model.safetensors.index.json"), index).unwrap();
}

#[test]
fn a_checkpoint_and_a_dataset_are_read_where_they_are() {
    let (scratch, server) = (Scratch::new(), Server::start());
    model(&server);
    let digests = |at: &str| {
        let lines = run(&scratch, &server, &["load", at, "--digest", "--json"]).ok().json();
        lines.iter().map(|line| line["sha256"].to_string()).collect::<Vec<_>>()
    };
    let local = server.path("model").display().to_string();
    let there = digests(&Server::uri("model/"));
    assert!(there.len() >= 2 && there == digests(&local), "{there:?}");

    let samples = |at: &str| {
        let lines =
            run(&scratch, &server, &["dataset", "iterate", at, "--digest", "--seed", "7", "--json"]).ok().json();
        lines.iter().map(|line| (line["key"].to_string(), line["sha256"].to_string())).collect::<Vec<_>>()
    };
    fs::create_dir(server.path("raw")).unwrap();
    for n in 0..20 {
        fs::write(server.path(&format!("raw/{n:02}.bin")), content(1000 + n)).unwrap();
    }
    let there = samples(&Server::uri("raw/"));
    let raw = server.path("raw").display().to_string();
    assert!(there.len() >= 20, "{there:?}");
    let mut local: Vec<_> = samples(&raw);
    let mut sorted = there.clone();
    local.sort_by(|a, b| a.1.cmp(&b.1));
    sorted.sort_by(|a, b| a.1.cmp(&b.1));
    assert!(sorted.iter().map(|(_, digest)| digest).eq(local.iter().map(|(_, digest)| digest)));
}

#[test]
fn a_cache_is_warmed_told_and_emptied() {
    let (scratch, server) = (Scratch::new(), Server::start());
    let bytes = content(5 << 20);
    fs::create_dir_all(server.path("data/below")).unwrap();
    for name in ["data/one", "data/below/two"] {
        fs::write(server.path(name), &bytes).unwrap();
    }
    fs::write(server.path("data/an-empty-one"), b"").unwrap();
    run(&scratch, &server, &["cache", "status", "cache"]).fails(3, &["cache_dir=DIR"]);
    let warm = ["cache", "warm", "cache", &Server::uri("data/"), "--bytes", "64MiB", "--pin", "--json"];
    let warmed = run(&scratch, &server, &warm).ok().document("straightway.cache.warm/1");
    assert_eq!((warmed["read_bytes"].as_u64(), warmed["pinned"].as_u64()), (Some(10 << 20), Some(2)));
    let warmed = run(&scratch, &server, &warm).ok().document("straightway.cache.warm/1");
    assert_eq!((warmed["read_bytes"].as_u64(), warmed["all"].as_bool()), (Some(0), Some(true)));

    let address = Server::uri("data/one");
    let with = ["cat", &address, "--engine", "cache_dir=cache", "--json"];
    server.set(Wire::TooMuch(Request::Range, u64::MAX));
    let ran = run(&scratch, &server, &with).ok();
    assert!(ran.stdout == bytes && !ran.stderr.contains("\"http\""), "{}", ran.stderr);
    assert_eq!(server.refused(), 0);
    server.set(Wire::Good);

    let told = run(&scratch, &server, &["cache", "status", "cache", "--objects"]).ok();
    assert!(told.text().contains("data/below/two  pinned") && told.text().contains("10.0 MiB"), "{}", told.text());
    let old = ["cache", "evict", "cache", "--older-than", "1d", "--json"];
    let gone = run(&scratch, &server, &old).ok().document("straightway.cache.evict/1");
    assert_eq!((gone["name"].as_str(), gone["blocks"].as_u64()), (Some(""), Some(0)));
    let large = ["cache", "evict", "cache", "--larger-than", "1MiB", &Server::uri("data/"), "--json"];
    // They are pinned.
    let gone = run(&scratch, &server, &large).ok().document("straightway.cache.evict/1");
    assert_eq!(gone["blocks"].as_u64(), Some(0));
    let gone = run(&scratch, &server, &["cache", "evict", "cache", &address, "--json"]).ok();
    assert_eq!(gone.document("straightway.cache.evict/1")["bytes"].as_u64(), Some(5 << 20));
    run(&scratch, &server, &["cache", "evict", "cache", "--all"]).ok();
    let status = run(&scratch, &server, &["cache", "status", "cache", "--json"]).ok();
    let status = status.document("straightway.cache.status/1");
    assert_eq!((status["blocks"].as_u64(), status["capacity_bytes"].as_u64()), (Some(0), Some(64 << 20)));
}

#[test]
fn samples_are_warmed_in_the_order_of_an_epoch() {
    let (scratch, server) = (Scratch::new(), Server::start());
    fs::create_dir_all(server.path("set")).unwrap();
    for number in 0..20 {
        fs::write(server.path(&format!("set/{number:02}.bin")), content(100_000 + number)).unwrap();
    }
    run(&scratch, &server, &["dataset", "index", &Server::uri("set/"), "--out", "i.index.arrow"]).ok();
    let warm = ["cache", "warm", "cache", "--index", "i.index.arrow", "--seed", "3", "--limit", "7", "--json"];
    let warmed = run(&scratch, &server, &warm).ok().document("straightway.cache.warm/1");
    assert_eq!(warmed["objects"].as_u64(), Some(7));
    let iterate = ["dataset", "iterate", "i.index.arrow", "--seed", "3", "--limit", "7", "--digest", "--engine"];
    server.set(Wire::TooMuch(Request::Range, u64::MAX));
    run(&scratch, &server, &[&iterate[..], &["cache_dir=cache"]].concat()).ok();
    assert_eq!(server.refused(), 0);
}

/// What `cache` prints.
pub fn everything_said(scratch: &Scratch) -> Vec<serde_json::Value> {
    let server = Server::start();
    fs::write(server.path("one"), content(100)).unwrap();
    let address = Server::uri("one");
    let runs: [&[&str]; 3] = [
        &["cache", "warm", "kept", &address, "--json"],
        &["cache", "status", "kept", "--objects", "--json"],
        &["cache", "evict", "kept", &address, "--json"],
    ];
    runs.into_iter().flat_map(|arguments| run(scratch, &server, arguments).ok().json()).collect()
}
