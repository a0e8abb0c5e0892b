//! What a connection is to the subsystem, whichever wire it came by: its queue, and the commands that are carried out for it.
//!
//! The commands themselves are in [`connection`](super::connection), beside the wire that they were written for first.

use std::{net::SocketAddr, time::Instant};

use sw_nvme::{
    fabrics::{self, ConnectData, FabricsCommand},
    wire::{Command, Completion, completion::CompletionFields},
};

use super::{
    CrossReset, Seen, TargetConfig,
    access::{CHANGED, Told},
    gate::Gate,
    listen::Shared,
    secure::Wire,
    subsystem::{Answer, Joined, add},
};

/// See the module documentation.
pub(super) struct Session<'a> {
    pub(super) shared: &'a Shared,
    pub(super) number: u64,
    /// Where the host came by TLS: it may be nobody but whom its key is for.
    wire: Option<&'a Wire<'a>>,
    /// The port that the host reached the target by, and its address.
    pub(super) port: usize,
    pub(super) local: Option<SocketAddr>,
    pub(super) joined: Option<Joined>,
    /// What stands before the queue until its host has shown who it is.
    pub(super) gate: Gate,
    /// CATTR bit 2: SQHD means nothing.
    pub(super) no_flow_control: bool,
    pub(super) sq_head: u16,
    /// Commands so far.
    pub(super) commands: u64,
    /// Asynchronous Event Requests.
    pub(super) held: Vec<u16>,
    /// The keep-alive timer began anew: when it ends, if it does. Whoever waits for the host takes it.
    pub(super) timer: Option<Option<Instant>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(shared: &'a Shared, number: u64, (port, local): (usize, Option<SocketAddr>)) -> Self {
        Self {
            shared,
            number,
            wire: None,
            port,
            local,
            joined: None,
            gate: Gate::Open,
            no_flow_control: false,
            sq_head: 0,
            commands: 0,
            held: Vec::new(),
            timer: None,
        }
    }

    pub(super) fn behind(mut self, wire: &'a Wire<'a>) -> Self {
        self.wire = Some(wire);
        self
    }

    /// Whether the host may say of itself what it says with Connect.
    pub(super) fn lets(&self, data: &ConnectData) -> bool {
        self.wire.is_none_or(|wire| wire.lets(data))
    }

    pub(super) fn config(&self) -> &'a TargetConfig {
        &self.shared.subsystem.config
    }

    /// Counts a command; what there is to know of it.
    pub(super) fn came(&mut self, command: &Command) -> Seen {
        add(&self.shared.subsystem.tally.commands, 1);
        if let Some(joined) = self.joined.filter(|_| !self.no_flow_control) {
            self.sq_head = (self.sq_head + 1) % joined.entries;
        }
        let seen = self.seen(command);
        self.commands += 1;
        seen
    }

    fn seen(&self, command: &Command) -> Seen {
        let asks = match FabricsCommand::decode(command) {
            Some(FabricsCommand::Connect { queue, .. }) => queue.qid,
            _ => 0,
        };
        let opcode = command.opcode();
        Seen {
            connection: self.number,
            number: self.commands,
            qid: self.joined.map_or(asks, |joined| joined.qid),
            opcode,
            fabrics_kind: if opcode == fabrics::OPCODE { command.bytes()[4] } else { 0 },
            cid: command.cid(),
            nsid: command.nsid(),
            slba: command.range().slba,
        }
    }

    /// The identifier of a request that an event answers, and its DW0, if there is one to tell of.
    pub(super) fn event(&mut self) -> Option<(u16, u32)> {
        let joined = self.joined.filter(|joined| joined.qid == 0 && !self.held.is_empty())?;
        let (access, port) = (&self.shared.subsystem.access, self.port);
        let event = self.shared.subsystem.with(joined.controller, |controller| {
            if access.has_event(port, controller.event_config, controller.told) {
                controller.told = Told::Event;
                return Some(CHANGED);
            }
            controller.resets.event(controller.event_config)
        });
        event.flatten().map(|event| (self.held.remove(0), event))
    }

    /// Whether there may be events to tell of.
    pub(super) fn awaits_events(&self) -> bool {
        let subsystem = &self.shared.subsystem;
        !self.held.is_empty() && (subsystem.access.is_told() || subsystem.config.cross_reset != CrossReset::Refused)
    }

    /// The completion of a command.
    pub(super) fn completion(&mut self, cid: u16, answer: Answer) -> Completion {
        let sq_id = self.joined.map_or(0, |joined| joined.qid);
        let sq_head = self.sq_head;
        if self.no_flow_control {
            self.sq_head = 0;
        }
        let fields = CompletionFields { dw0: 0, sq_head, sq_id, cid, phase: false, status: answer.status };
        let mut raw = *Completion::build(fields).bytes();
        raw[..8].copy_from_slice(&answer.value.to_le_bytes());
        Completion::new(raw)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(joined) = self.joined {
            let ended = self.shared.subsystem.leave(&joined, self.number);
            self.shared.hang_up(&ended);
        }
    }
}
