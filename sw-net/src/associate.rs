//! How an association with a controller is made: Connect, registers, Identify, queues, namespaces.
//!
//! Base 2.x, "Fabrics Initialization".

use std::time::Duration;

use sw_engine::{Error, ErrorKind, Fault};
use sw_nvme::{
    fabrics::{ANY_CONTROLLER, CONNECT_DATA_BYTES, ConnectData, Demand, FabricsFacts, PropertySize, QueueRequest},
    inquiry::{self, AdminQueue, Answer, Data, Known},
    resets::Life,
    status::{RetryDelays, sct},
    tcp::{host::DEPTH_MAX, pdu::ADMIN_CAPSULE_DATA_BYTES},
    wire::{
        Command,
        feature::{Feature, QueueCounts},
        regs::{self, Cap, Cc, Csts, Version},
    },
};

use crate::{
    admin::{Admin, after},
    authenticate::{HostKeys, authenticate, no_key},
    carrier::{Carrier, QueueOf, Way},
    connection::ConnectionConfig,
    controller::{Address, ControllerConfig, HostIdentity},
    events,
    facts::Facts,
    family::Family,
    socket::left,
};

/// Entries of the admin queue, as Linux has it.
pub(crate) const ADMIN_ENTRIES: u16 = 32;
/// Between two looks at CSTS.RDY.
const READY_STEP: Duration = Duration::from_millis(10);

/// Makes an association; `before`: the one that was lost, of a controller of that family.
pub(crate) fn associate(
    (name, way): (&str, &Way),
    (address, host): (&Address, &HostIdentity),
    config: ControllerConfig,
    (family, before): (&Family, Option<&Facts>),
) -> Result<(Admin, Facts), Error> {
    let Address { host: to, port, subsystem } = address;
    let limits = ConnectionConfig {
        digests: config.digests,
        depth: ADMIN_ENTRIES - 1,
        capsule_data_bytes: ADMIN_CAPSULE_DATA_BYTES,
    };
    let until = after(config.association_timeout);
    let peers = host.peers(subsystem, before.map(|before| before.protection));
    let limits = (QueueOf::ADMIN, limits);
    let connection = Carrier::open((way, peers), (to, *port), limits, after(config.timeout).min(until))?;
    let (digests, protection) = (connection.digests(), connection.protection());
    let mut admin = Admin::new(name.to_owned(), connection, config.timeout)?;
    admin.finish_by(Some(until));
    let request = QueueRequest { qid: 0, entries: ADMIN_ENTRIES, keep_alive_ms: millis(config.keep_alive) };
    let data = ConnectData {
        host_id: host.id,
        controller: ANY_CONTROLLER,
        subsystem: subsystem.clone(),
        host: host.nqn.clone(),
    };
    let id = connect(&mut admin, (request, &data), host.keys.as_deref(), config.timeout)?;
    let (cap, version) = enable(&mut admin, config.timeout)?;
    let info = inquiry::identify_controller(&mut admin)?;
    let FabricsFacts { io_data_bytes, quiesce, .. } = fabrics_facts(&admin, way)?;
    let queues = negotiate(&mut admin, config.queues)?;
    let known = Known { info: &info, version, page_bytes_min: cap.page_bytes_min };
    let mut namespaces = inquiry::namespaces(&mut admin, known)?;
    let association = before.map_or(1, |before| before.association + 1);
    family.name(&mut namespaces, info.serial.as_str());
    let entries = u16::try_from(cap.queue_entries_max).unwrap_or(u16::MAX);
    let likes = if info.commands_max == 0 { u16::MAX } else { info.commands_max };
    let depth = config.depth.min(entries - 1).min(likes).clamp(1, DEPTH_MAX);
    // First the events, then what they are about: nothing changes unheard in between.
    events::watch(&mut admin, &info)?;
    let access = events::first_access(&mut admin, &info, cap.page_bytes_min)?;
    admin.finish_by(None);
    let life = Life::of(&info, id, (&host.nqn, host.id));
    let facts = Facts {
        association,
        info,
        cap,
        version,
        id,
        life,
        queues,
        depth,
        capsule_data_bytes: io_data_bytes,
        quiesce,
        digests,
        protection,
        namespaces: namespaces.into(),
        absent: Box::default(),
        access,
        revision: before.map_or(1, |before| before.revision + 1),
    };
    Ok((admin, facts))
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// Connect, and authentication if it is demanded, which takes `limit` at most; gives CNTLID.
pub(crate) fn connect(
    admin: &mut Admin,
    (request, data): (QueueRequest, &ConnectData),
    keys: Option<&HostKeys>,
    limit: Duration,
) -> Result<u16, Error> {
    admin.fill_page(&data.encode());
    let answer = admin.run(Data::Out(CONNECT_DATA_BYTES), |_| Command::connect(request))?;
    if !answer.status.is_success() {
        return Err(refused(admin, answer, data, keys));
    }
    authenticate(admin, data, keys, Demand::decode(answer.dw0), limit)?;
    Ok(u16::try_from(answer.dw0 & 0xFFFF).unwrap_or(0))
}

/// Why Connect was refused (Base, "Connect Command – Status").
fn refused(admin: &Admin, answer: Answer, data: &ConnectData, keys: Option<&HostKeys>) -> Error {
    let Answer { status, dw0 } = answer;
    let told = |kind, text: String, remedy: String| {
        admin.error(kind, format!("{text} ({status})")).with_code(i32::from(status.code())).remedy(remedy)
    };
    match (status.sct(), status.sc()) {
        (sct::COMMAND, 0x84) => told(
            ErrorKind::PermissionDenied,
            "the subsystem does not let this host in".into(),
            format!("allow the host {} there", data.host),
        ),
        // IATTR in bit 16: the data; IPO in the low half: SUBNQN at 256, HOSTNQN at 512.
        (sct::COMMAND, 0x82) if dw0 & 0x1_FFFF == 0x1_0100 => told(
            ErrorKind::NoDevice,
            "the target has no such subsystem".into(),
            "look at the name of the subsystem behind the address".into(),
        ),
        (sct::COMMAND, 0x82) => told(
            ErrorKind::Protocol,
            format!("the target does not take the parameters of the connection (at {dw0:#x})"),
            "see the target's log".into(),
        ),
        (sct::COMMAND, 0x81) => {
            told(ErrorKind::Busy, "the controller is busy".into(), "try again, or look who else uses it".into())
        }
        (sct::COMMAND, 0x91) if keys.is_none_or(|keys| keys.own(&data.subsystem).is_none()) => no_key(admin, data),
        (sct::COMMAND, 0x91) => told(
            ErrorKind::PermissionDenied,
            "the target refuses this host before it can show who it is".into(),
            format!("look in the target's log whether it has a key for {}, for dh-hmac-chap", data.host),
        ),
        _ => {
            let fault = status.fault(&RetryDelays::default()).unwrap_or(Fault::new(ErrorKind::Protocol, 0));
            told(fault.kind, "the connection was refused".into(), "see the target's log".into())
        }
    }
}

/// Sets CC and waits for CSTS.RDY.
pub(crate) fn enable(admin: &mut Admin, timeout: Duration) -> Result<(Cap, Version), Error> {
    let raw = admin.property(regs::CAP, PropertySize::Eight)?;
    let cap = Cap::decode(raw).map_err(|cause| {
        admin.error(ErrorKind::Protocol, format!("the controller's data is not what it should be: {cause}"))
    })?;
    let version = Version(u32::try_from(admin.property(regs::VS, PropertySize::Four)?).unwrap_or(0));
    let sets = cap
        .nvm_command_set()
        .ok_or_else(|| admin.error(ErrorKind::Unsupported, "the controller has no NVM command set"))?;
    // Fabrics use no memory pages; the field is there all the same.
    let page = cap.page_code(cap.page_bytes_min).unwrap_or(0);
    let cc = Cc::enabled(page, sets);
    admin.expect("enable the controller", Data::None, |_| Command::property_set(regs::CC, cc.raw()))?;
    let until = after(cap.ready_limit(None).max(timeout));
    loop {
        let csts = Csts(u32::try_from(admin.property(regs::CSTS, PropertySize::Four)?).unwrap_or(0));
        if csts.is_ready() {
            return Ok((cap, version));
        }
        if csts.is_fatal() {
            return Err(
                admin.error(ErrorKind::Io, "the controller reports a fatal error (CSTS.CFS) instead of becoming ready")
            );
        }
        if left(until).is_none() {
            return Err(admin.error(ErrorKind::DeadlineExceeded, "the controller did not become ready (CSTS.RDY)"));
        }
        pause(READY_STEP);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a target has no interrupt for its readiness; bounded by a limit of the caller's"
)]
pub(crate) fn pause(span: Duration) {
    std::thread::sleep(span);
}

/// What the page that was just identified says for fabrics.
fn fabrics_facts(admin: &Admin, way: &Way) -> Result<FabricsFacts, Error> {
    let limits = FabricsFacts::decode(&admin.page()).map_err(|cause| {
        admin.error(ErrorKind::Protocol, format!("the controller's data is not what it should be: {cause}"))
    })?;
    Ok(FabricsFacts { io_data_bytes: limits.data_bytes(way.transport_type()), ..limits })
}

/// Asks for `wanted` I/O queues; how many there are.
fn negotiate(admin: &mut Admin, wanted: u16) -> Result<u16, Error> {
    let wanted = u32::from(wanted.max(1));
    // Within 1 to 65,535.
    let dword11 = QueueCounts { submission: wanted, completion: wanted }.encode().unwrap_or(0);
    let feature = Feature::NumberOfQueues { dword11 };
    let answer = admin.expect("set number of queues", Data::None, |data| Command::set_features(&feature, data))?;
    let there = QueueCounts::decode(answer.dw0);
    Ok(u16::try_from(there.submission.min(there.completion).min(wanted)).unwrap_or(u16::MAX))
}
