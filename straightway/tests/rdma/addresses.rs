//! Addresses of `nvme+rdma://`: what they go by.

use super::*;

#[test]
fn an_address_of_rdma_goes_by_devices_or_is_refused_with_what_is_missing() {
    let nqn = "nqn.2026-11.io.example:one";
    // 192.0.2.0/24 is nobody's (RFC 5737): whatever this machine has, there is a reason and a remedy.
    let uri = format!("nvme+rdma://192.0.2.1/{nqn}?nsid=1").parse::<Uri>().unwrap();
    let error = Engine::builder().build().unwrap().open(&uri).unwrap_err();
    let is_typed = matches!(error.kind(), ErrorKind::NoDevice | ErrorKind::DeadlineExceeded | ErrorKind::Unsupported);
    assert!(is_typed && !error.remedy_text().is_empty(), "{error}");
    let text = format!("nvme+rdma://10.0.0.1:4420/{nqn}?nsid=1&fabric=emulated&serial=S1");
    assert_eq!(text.parse::<Uri>().unwrap().to_string(), text);
    for wrong in [
        format!("nvme+tcp://10.0.0.1/{nqn}?nsid=1&fabric=emulated"),
        format!("nvme+rdma://10.0.0.1/{nqn}?nsid=1&fabric=mlx5_0"),
        format!("nvme+rdma://10.0.0.1/{nqn}?fabric=emulated"),
        "/file?fabric=emulated".replace("/file", "file:///file"),
    ] {
        assert_eq!(wrong.parse::<Uri>().unwrap_err().kind(), ErrorKind::BadUri, "{wrong}");
    }
}

#[test]
fn the_two_wires_do_not_take_each_other_for_their_own() {
    if !known() {
        return;
    }
    let (emulated, uri) = target(None);
    let engine = Engine::builder().build().unwrap();
    let as_tcp = uri.to_string().replace("nvme+rdma", "nvme+tcp").replace("&fabric=emulated", "");
    let error = engine.open(&as_tcp.parse().unwrap()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Protocol), "{error}");
    drop(emulated);
    let tcp = Target::start(TargetConfig::default()).unwrap();
    let text = format!("nvme+rdma://{}/nqn.2026-11.io.straightway:target?nsid=1&fabric=emulated", tcp.address());
    let error = engine.open(&text.parse().unwrap()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Protocol), "{error}");
}
