//! One queue over one RDMA connection: the session (`sw_nvme::rdma::session`), connected, waited for and ended within limits of time.
//!
//! *Thread*: one at a time. Once it is [broken](Broken) it stays so; [`RdmaConnection::hang_up`] ends all access to memory.

use std::{sync::Arc, time::Duration, time::Instant};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{
        Wake,
        verbs::{Connected, Device, PrivateData},
    },
};
use sw_mem::RegionId;
use sw_nvme::{
    rdma::{
        Memory, Registering, Shelf,
        cm::{Accept, Refused, Request},
        host::HostQueue,
        session::{Looked, Over, Session, SessionConfig},
    },
    tcp::host::End,
};

use crate::{
    connection::{Broken, ConnectionCounters, Places},
    relay::Relay,
    socket::left,
};

/// How long the last completions of a queue pair that was ended are waited for.
const DRAIN: Duration = Duration::from_secs(1);
/// How often the registration of memory is tried again that was refused for want of room.
const REGISTER_STEP: Duration = Duration::from_millis(10);
/// How long a send waits for a receive of the target's, which has one for each command.
const RNR_WAIT: Duration = Duration::from_secs(5);

/// How often a connection is asked for whose wishes the target's connection manager takes for connections of before, as it may when a host
/// comes back with the numbers that its queue pairs had; and the pause between. SPDK's host has five more attempts and 10 ms; Linux's has none.
const STALE_ATTEMPTS: u32 = 6;
const STALE_PAUSE: Duration = Duration::from_millis(10);

/// By which device, and how memory is registered.
#[derive(Clone)]
pub struct RdmaWay {
    /// The device.
    pub device: Arc<dyn Device>,
    /// How the memory of commands is registered.
    pub registering: Registering,
    /// That of all connections by the device.
    pub shelf: Arc<Shelf>,
}

/// What a connection is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RdmaConfig {
    /// QID.
    pub(crate) qid: u16,
    /// CNTLID of an I/O queue's controller, 0 for the admin queue.
    pub(crate) controller: u16,
    /// Commands at a time.
    pub(crate) depth: u16,
}

impl From<Over> for Broken {
    fn from(over: Over) -> Self {
        match over {
            Over::Verbs(what) => Self::Verbs(what),
            Over::Gone(device) => Self::DeviceGone(device),
            Over::Breach(breach) => Self::Rdma(breach),
        }
    }
}

/// See the module documentation.
pub(crate) struct RdmaConnection {
    session: Session,
    relay: Arc<Relay>,
}

impl RdmaConnection {
    /// Connects, with all receives posted before.
    ///
    /// # Errors
    /// As [`Qp::connect`](sw_engine::seam::verbs::Qp::connect); `Busy` or `Protocol` for a refusal; `ResourceLimit`.
    pub(crate) fn open(way: &RdmaWay, to: &str, config: RdmaConfig, until: Instant) -> Result<Self, Error> {
        for _ in 0..STALE_ATTEMPTS {
            if let Some(made) = Self::attempt(way, to, config, until)? {
                return Ok(made);
            }
            crate::associate::pause(STALE_PAUSE);
        }
        let stale = Error::new(ErrorKind::Busy, Verb::Open).at(to);
        Err(stale
            .detail(format!(
                "the target's connection manager took {STALE_ATTEMPTS} wishes for connections that it still has"
            ))
            .remedy("try again when it has let go of them"))
    }

    /// As [`RdmaConnection::open`], once and with a new queue pair; `None`: it was taken for a connection of before.
    fn attempt(way: &RdmaWay, to: &str, config: RdmaConfig, until: Instant) -> Result<Option<Self>, Error> {
        let RdmaConfig { qid, controller, depth } = config;
        let relay = Arc::new(Relay::default());
        let (registering, shelf) = (way.registering, Arc::clone(&way.shelf));
        let with = SessionConfig { depth, registering, shelf, rnr_wait: RNR_WAIT };
        let session = Session::new(&way.device, Arc::clone(&relay) as Arc<dyn Wake>, with)?;
        let mut made = Self { session, relay };
        // Commands under way need a receive each, and there is always room for one more.
        let entries = depth.saturating_add(1);
        let wish = Request { qid, receive_entries: entries, send_entries: entries, controller };
        let private = PrivateData::new(&wish.encode()).unwrap_or(PrivateData::empty());
        let answer = match made.session.qp().connect(to, &private, left(until).unwrap_or_default())? {
            Connected::Stale => return Ok(None),
            Connected::Rejected(why) => return Err(refused(to, Refused::decode(why.as_bytes()))),
            Connected::Accepted(answer) => answer,
        };
        let accept = Accept::decode(answer.as_bytes()).map_err(|error| {
            let error = Error::new(ErrorKind::Protocol, Verb::Open).at(to).detail(error.to_string());
            error.remedy("report it to whoever makes the target")
        })?;
        if accept.receive_entries < depth {
            let places = accept.receive_entries;
            let text = format!("the target has {places} places for commands, {depth} were asked for");
            return Err(Error::new(ErrorKind::Protocol, Verb::Open).at(to).detail(text));
        }
        Ok(Some(made))
    }

    pub(crate) fn queue(&mut self) -> &mut HostQueue {
        self.session.queue()
    }

    /// Whether no byte of a command went out.
    pub(crate) fn is_unsent(&self, cid: u16) -> bool {
        self.session.commands().is_unsent(cid)
    }

    pub(crate) fn set_capsule_data_bytes(&mut self, bytes: u32) {
        self.session.set_capsule_data_bytes(bytes);
    }

    pub(crate) fn counters(&self) -> ConnectionCounters {
        let tally = self.session.tally();
        ConnectionCounters {
            sends: tally.sends,
            receives: tally.polls,
            bytes_in: tally.bytes_in,
            bytes_out: tally.bytes_out,
            registrations: tally.registrations,
            windows_refused: tally.windows_refused,
            in_capsule: tally.in_capsule,
            bytes_moved: 0,
        }
    }

    pub(crate) fn pop_end(&mut self) -> Option<End> {
        self.session.pop_end()
    }

    /// What ends a wait of another thread, and the connection with it.
    pub(crate) fn relay(&self) -> Arc<Relay> {
        Arc::clone(&self.relay)
    }

    /// Sends the capsules of the commands that have none yet.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn send(&mut self, places: &impl Places) -> Result<(), Broken> {
        Ok(self.session.send(places)?)
    }

    /// Takes what came, a bounded number of times, and asks to be woken by the next.
    ///
    /// # Errors
    /// [`Broken`].
    pub(crate) fn receive(&mut self) -> Result<(), Broken> {
        if self.session.receive()? == Looked::More {
            // Somebody else's turn; it is woken again.
            self.relay.wake();
        }
        Ok(())
    }

    /// Sends and receives until a command ends. For the control plane, which has nothing else to do.
    pub(crate) fn run(&mut self, places: &impl Places, until: Instant) -> (Result<(), Broken>, Option<End>) {
        loop {
            let moved = self.receive().and_then(|()| self.send(places));
            if let Some(end) = self.pop_end() {
                return (Ok(()), Some(end));
            }
            if let Err(broken) = moved {
                return (Err(broken), None);
            }
            if self.relay.is_ended() {
                return (Err(Broken::Closed), None);
            }
            // Nobody tells when there is memory to register again.
            let step = crate::admin::after(REGISTER_STEP);
            let next = if self.queue().has_capsules() { step.min(until) } else { until };
            if !self.relay.wait(Some(next)) && left(until).is_none() {
                return (Err(Broken::Silent), None);
            }
        }
    }

    /// Ends the connection. When this returns nothing of it reads or writes memory of commands any more, or it says that a device may.
    pub(crate) fn hang_up(&mut self) -> Memory {
        self.session.disconnect();
        let until = crate::admin::after(DRAIN);
        while !self.session.drain() && self.relay.wait(Some(until)) {}
        self.session.release()
    }

    /// A region is let go of.
    pub(crate) fn region_gone(&mut self, region: RegionId) {
        self.session.region_gone(region);
    }
}

impl Drop for RdmaConnection {
    fn drop(&mut self) {
        // Whoever asks for it hangs up before.
        let _ = self.hang_up();
    }
}

/// Why a queue was refused.
fn refused(to: &str, why: Refused) -> Error {
    let kind = if why == Refused::RESOURCES { ErrorKind::Busy } else { ErrorKind::Protocol };
    Error::new(kind, Verb::Open)
        .at(to)
        .detail(format!("the target refused the connection: {why}"))
        .with_code(why.0.into())
        .remedy("see the target's log")
}
