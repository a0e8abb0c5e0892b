//! The agent: an engine behind a socket, another one before it. Both carriers, in one process.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as the tests do")]

use std::{fs, path::PathBuf};

use straightway::{
    Destination, Engine, ErrorKind, Landing, Uri,
    agent::{AgentListen, AgentServe, AgentServer},
};

/// A directory that is removed with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sw-agent-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn engine() -> Engine {
    Engine::builder().build().unwrap()
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at.wrapping_mul(2_654_435_761) >> 7) & 0xff).unwrap()).collect()
}

fn uri(text: &str) -> Uri {
    text.parse().unwrap()
}

/// An agent of each carrier, and what addresses of it begin with.
fn agents(scratch: &Scratch) -> Vec<(AgentServer, String, Engine)> {
    let keys = scratch.file("keys");
    fs::write(&keys, "team:0123456789abcdef\n").unwrap();
    let socket = scratch.file("agent.sock");
    let allow = vec![format!("file://{}", scratch.0.display())];
    let unix = AgentServe { listen: vec![AgentListen::Unix(socket.clone().into())], allow: allow.clone(), keys: None };
    let listen = vec![AgentListen::Tcp("127.0.0.1:0".into())];
    let tcp = AgentServe { listen, allow, keys: Some(keys.clone().into()) };
    let unix = AgentServer::start(engine(), &unix).unwrap();
    let tcp = AgentServer::start(engine(), &tcp).unwrap();
    let at = format!("agp://{}", tcp.addresses()[0]);
    let with_key = Engine::builder().set("agent_key_file", &keys).unwrap().build().unwrap();
    vec![(unix, format!("agp://unix:{socket}"), engine()), (tcp, at, with_key)]
}

fn read(engine: &Engine, name: &str) -> (Vec<u8>, Landing, &'static str) {
    let object = engine.open(&uri(name)).unwrap();
    let memory = engine.allocate(Destination::Host, object.len(), 0).unwrap();
    let done = engine.read(&object, 0, memory).wait().ok().unwrap();
    let route = done.path.route;
    let memory = done.into_memory().unwrap();
    let mut bytes = vec![0; usize::try_from(memory.len()).unwrap()];
    memory.read(0, &mut bytes).unwrap();
    (bytes, route.landing, route.transport)
}

#[test]
fn bytes_are_those_of_the_storage_by_either_carrier() {
    let scratch = Scratch::new("read");
    let data = content((5 << 20) + 4321);
    fs::write(scratch.file("a"), &data).unwrap();
    for (server, at, client) in agents(&scratch) {
        let (bytes, landing, transport) = read(&client, &format!("{at}/file://{}", scratch.file("a")));
        assert!(bytes == data, "{at}");
        assert_eq!((landing, transport), (Landing::Staged, "agp"));
        let counters = server.counters();
        assert_eq!(counters.reads.1, data.len() as u64, "{at}");
        client.close().unwrap();
        server.stop();
    }
}

#[test]
fn what_is_written_appears_whole_by_either_carrier() {
    let scratch = Scratch::new("write");
    let data = content((3 << 20) + 77);
    for (number, (server, at, client)) in agents(&scratch).into_iter().enumerate() {
        let path = scratch.file(&format!("out-{number}"));
        let making = client.create(&uri(&format!("{at}/file://{path}")), data.len() as u64).unwrap();
        let source = scratch.file("source");
        fs::write(&source, &data).unwrap();
        let from = client.open(&uri(&source)).unwrap();
        let memory = client.allocate(Destination::Host, data.len() as u64, 0).unwrap();
        let memory = client.read(&from, 0, memory).wait().ok().unwrap().into_memory().unwrap();
        client.write(making.object(), 0, memory).wait().ok().unwrap();
        assert!(!fs::exists(&path).unwrap(), "it has no name before it is committed");
        making.commit().unwrap();
        assert!(fs::read(&path).unwrap() == data, "{at}");
        client.close().unwrap();
        server.stop();
    }
}

#[test]
fn names_are_listed_and_what_is_not_allowed_is_not_opened() {
    let scratch = Scratch::new("list");
    fs::create_dir(scratch.file("d")).unwrap();
    fs::write(scratch.file("d/x"), b"1").unwrap();
    fs::write(scratch.file("d/y"), b"22").unwrap();
    for (server, at, client) in agents(&scratch) {
        let listed = client.list(&uri(&format!("{at}/file://{}", scratch.file("d")))).unwrap();
        let lens: Vec<_> = listed.iter().map(|entry| (entry.name.rsplit('/').next().unwrap(), entry.len)).collect();
        assert_eq!(lens, [("x", 1), ("y", 2)]);
        assert_eq!(client.stat(&uri(&listed[1].name)).unwrap().len, 2);
        let kind = |name: &str| client.open(&uri(&format!("{at}/{name}"))).unwrap_err().kind();
        assert_eq!(kind("file:///etc/hostname"), ErrorKind::PermissionDenied);
        assert_eq!(kind(&format!("file://{}/../../etc/hostname", scratch.0.display())), ErrorKind::PermissionDenied);
        assert_eq!(kind(&format!("file://{}", scratch.file("none"))), ErrorKind::NotFound);
        client.close().unwrap();
        server.stop();
    }
}

#[test]
fn who_has_no_key_or_a_wrong_one_is_not_let_in() {
    let scratch = Scratch::new("keys");
    let (server, at, _) = agents(&scratch).pop().unwrap();
    let wrong = scratch.file("wrong");
    fs::write(&wrong, "team:0123456789abcdeX\n").unwrap();
    let with_wrong = Engine::builder().set("agent_key_file", &wrong).unwrap().build().unwrap();
    for client in [engine(), with_wrong] {
        let error = client.open(&uri(&format!("{at}/file:///x"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    server.stop();
    let error = engine().open(&uri("agp://unix:/nonexistent/sock/file:///x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn reads_go_on_when_the_agent_comes_back() {
    let scratch = Scratch::new("back");
    let data = content(2 << 20);
    fs::write(scratch.file("a"), &data).unwrap();
    let socket = scratch.file("s");
    let config = AgentServe { listen: vec![AgentListen::Unix(socket.clone().into())], ..AgentServe::default() };
    let server = AgentServer::start(engine(), &config).unwrap();
    let client = engine();
    let object = client.open(&uri(&format!("agp://unix:{socket}/file://{}", scratch.file("a")))).unwrap();
    server.stop();
    let server = AgentServer::start(engine(), &config).unwrap();
    let memory = client.allocate(Destination::Host, object.len(), 0).unwrap();
    let memory = client.read(&object, 0, memory).wait().ok().unwrap().into_memory().unwrap();
    let mut bytes = vec![0; data.len()];
    memory.read(0, &mut bytes).unwrap();
    assert!(bytes == data);
    drop(object);
    client.close().unwrap();
    server.stop();
}
