//! Two ports of a subsystem on the emulated fabric.

use super::*;

#[test]
fn an_address_of_two_ports_is_read_by_both_and_goes_on_by_the_one_that_is_left() {
    if !known() {
        return;
    }
    let disk = std::env::temp_dir().join(format!("straightway-rdma-ports-{}", std::process::id()));
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    // A target over RDMA has one port; two of one name and serial number over one file are one subsystem.
    let config = TargetConfig { namespaces: vec![Backing::File(disk.clone(), FileAccess::ReadWrite)], ..own() };
    let [first, second] = [0, 1].map(|_| start_rdma_emulated(config.clone()).unwrap());
    let at = |ports: &str| -> Uri {
        let uri = format!("nvme+rdma://{ports}/{}?nsid=1&fabric=emulated&serial=SWTARGET0001", config.subsystem);
        uri.parse().unwrap()
    };
    // The controllers of a subsystem have numbers of their own: the first of the second port is for somebody else.
    Engine::builder().build().unwrap().open(&at(&second.address().to_string())).map(drop).unwrap();
    let uri = at(&format!("{},{}", first.address(), second.address()));
    let engine = Engine::builder().build().unwrap();
    let object = engine.open_for_update(&uri).unwrap();
    let content = bytes(4 << 20);
    // The connection that is made first has all of the first I/Os.
    let are_both_used = || {
        engine.write(&object, 0, memory(&content)).wait().ok().unwrap();
        assert!(read(&engine, &object, 0, content.len()).unwrap() == content);
        [&first, &second].iter().all(|target| target.counters().reads > 0 && target.counters().writes > 0)
    };
    assert!((0..100).any(|_| are_both_used()), "{:?}, {:?}", first.counters(), second.counters());
    let states = || {
        let paths = engine.paths(&uri).unwrap();
        paths.iter().map(|path| path.state.name()).collect::<Vec<_>>()
    };
    assert_eq!(states(), ["optimized", "optimized"]);
    let (before, start) = (second.counters().reads, now());
    first.stop();
    for _ in 0..4 {
        assert!(read(&engine, &object, 0, content.len()).unwrap() == content);
    }
    engine.write(&object, 0, memory(&content)).wait().ok().unwrap();
    assert!(now().duration_since(start) < LIMIT && second.counters().reads > before);
    assert_ne!(states()[0], "optimized");
    drop((object, engine));
    std::fs::remove_file(&disk).unwrap();
}
