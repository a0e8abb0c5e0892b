//! The transport over TLS that a library does: the kernel here may have none. That of the kernel is proven in a guest (suite `fabrics`).

use sw_engine::{Landing, Reason};
use sw_nvme::{
    auth::RANDOM_BYTES,
    psk::{ConfiguredPsk, Derivation, Suite, Transform},
};

use super::*;
use crate::tls::{KernelTls, Protection};

/// A target that demands TLS of this suite. `None`: there is no OpenSSL 3, which is told.
fn target(suite: Suite) -> Option<TargetConfig> {
    let psk = ConfiguredPsk::from_random(&[7; RANDOM_BYTES], suite, Transform::ByHash);
    if let Err(error) = HostTls::new(psk.clone(), Form::default(), KernelTls::Never) {
        eprintln!("skipped: {error}");
        return None;
    }
    let tls = Some(Tls { psk: psk.into(), derivation: Derivation::Standard, kernel: KernelTls::Never });
    Some(TargetConfig { tls, ..own() })
}

#[test]
fn the_transport_conforms_over_tls() {
    let Some(target) = target(Suite::Aes128GcmSha256) else { return };
    block_file::run(&mut Files::new("nvme+tcp, tls", target, ControllerConfig::default())).assert_green(SKIPS);
}

#[test]
fn the_transport_conforms_over_tls_with_digests_small_units_and_few_commands() {
    let Some(target) = target(Suite::Aes256GcmSha384) else { return };
    let target = TargetConfig {
        mdts: 2,
        capsule_data_bytes: 0,
        h2c_bytes_max: 4096,
        r2t_bytes_max: 6144,
        c2h_bytes_max: 1536,
        alignment: 7,
        ..target
    };
    let host = ControllerConfig { digests: BOTH, depth: 3, ..ControllerConfig::default() };
    block_file::run(&mut Files::new("nvme+tcp, tls, digests, small", target, host)).assert_green(SKIPS);
}

#[test]
fn small_and_large_transfers_come_as_they_were_written_and_their_way_is_told() {
    for suite in Suite::ALL {
        for digests in [Digests::default(), BOTH] {
            let Some(target) = target(suite) else { return };
            let rig = Rig::new(target, ControllerConfig { digests, ..ControllerConfig::default() });
            let object = rig.object();
            assert_eq!(rig.controller.facts().protection, Protection::TlsLibrary);
            assert_eq!(
                (object.faces[0].landing, object.faces[0].because),
                (Landing::Staged, Some(Reason::TlsInUserSpace))
            );
            let mut transport = rig.transport(TcpConfig::default());
            for (number, blocks) in (0_u8..).zip([1_u32, 2, 3, 4, 5, 16, 33, 64, 255, 256]) {
                let (len, told) = (u64::from(blocks) * BLOCK, blocks * 4096);
                let bytes: Vec<u8> = (0..len).map(|at| at.wrapping_mul(13).to_le_bytes()[1] ^ number).collect();
                let written = span(len, 0);
                written.write(0, &bytes).unwrap();
                assert_eq!(transport.submit(&io(&object, IoKind::Write, BLOCK, &written, 1)), Submit::Accepted);
                assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(told));
                let read = span(len, 0xEE);
                assert_eq!(transport.submit(&io(&object, IoKind::Read, BLOCK, &read, 2)), Submit::Accepted);
                assert_eq!(ends(&mut transport, 1, SOON)[0].result, Ok(told));
                let mut came = vec![0; bytes.len()];
                read.read(0, &mut came).unwrap();
                assert!(came == bytes, "{blocks} blocks, {suite:?}");
            }
        }
    }
}

#[test]
fn many_reads_at_a_time_are_not_slept_over() {
    let Some(target) = target(Suite::Aes128GcmSha256) else { return };
    let rig = Rig::new(target, ControllerConfig::default());
    let object = rig.object();
    let mut transport = rig.transport(TcpConfig::default());
    let memory: Vec<_> = (0..64).map(|_| span(64 * BLOCK, 0xEE)).collect();
    let begun = now();
    for round in 0..8 {
        for (number, memory) in memory.iter().enumerate() {
            let token = round * 64 + number as u64;
            assert_eq!(transport.submit(&io(&object, IoKind::Read, 0, memory, token)), Submit::Accepted);
        }
        let mut all = Vec::with_capacity(64);
        transport.ring().unwrap();
        while all.len() < 64 {
            // Longer than all of it may take: one that sleeps with bytes in the library is found out.
            let wait = Wait::For { timeout: Duration::from_secs(60), min: 1 };
            transport.poll(wait, &mut all).unwrap();
        }
        assert!(all.iter().all(|done| done.result == Ok(64 * 4096)));
    }
    // Sleeps end after LOOK_EVERY at the latest, which 512 of them would show.
    assert!(now().since(begun) < Duration::from_secs(40));
}

#[test]
fn connections_that_are_lost_under_tls_are_made_again() {
    let Some(target) = target(Suite::Aes128GcmSha256) else { return };
    let rig = Rig::new(target, ControllerConfig::default());
    let object = rig.object();
    let mut transport = rig.transport(TcpConfig::default());
    let memory = span(16 * BLOCK, 0);
    for number in 0..3 {
        // One that is lost while it is under way may be asked for again at once.
        while {
            assert_eq!(transport.submit(&io(&object, IoKind::Read, 0, &memory, number)), Submit::Accepted);
            let done = ends(&mut transport, 1, SOON).remove(0);
            assert!(
                done.result == Ok(65536) || matches!(done.result, Err(Fault { retry: Retry::Now, .. })),
                "{done:?}"
            );
            done.result.is_err()
        } {}
        rig.target.as_ref().unwrap().drop_connections();
    }
}
