//! Admin commands of a controller, and its properties. Pure, but for the lock around the controller that the caller holds.

use std::net::SocketAddr;

use sw_nvme::{
    status::Status,
    wire::{
        Command, IDENTIFY_BYTES,
        admin::opcode,
        feature::id,
        log::{self, Retain},
    },
};

use super::{
    CrossReset, TargetConfig,
    access::{Namespaces, Told},
    pages,
    resets::Completed,
    subsystem::{Answer, Controller, Role, Subsystem, says},
    wire::length,
};

/// Bytes of Host Behavior Support.
const HOST_BEHAVIOR_BYTES: u32 = 512;

/// A controller with what its admin commands need.
pub(super) struct Desk<'a> {
    pub(super) subsystem: &'a Subsystem,
    pub(super) controller: &'a mut Controller,
    /// The port that the host reached the target by, and its address.
    pub(super) port: usize,
    pub(super) local: SocketAddr,
}

/// Bytes that an admin command takes from the host.
pub(super) fn wants(command: &Command) -> Result<u32, Status> {
    match (command.opcode(), feature_of(command)) {
        (opcode::SET_FEATURES, id::HOST_BEHAVIOR) => Ok(HOST_BEHAVIOR_BYTES),
        (opcode::SET_FEATURES, _) => Ok(0),
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    }
}

/// FID: the low byte of dword 10. LID and CNS lie there too.
fn feature_of(command: &Command) -> u8 {
    command.dword(10).to_le_bytes()[0]
}

impl Desk<'_> {
    /// Carries out an admin command other than Asynchronous Event Request. `data`: what [`wants`] asked for. What goes to the host is
    /// put into `out`; `out_bytes` is what the command's descriptor has room for.
    pub(super) fn run(&mut self, command: &Command, data: &[u8], out: &mut Vec<u8>, out_bytes: u32) -> Answer {
        match command.opcode() {
            opcode::IDENTIFY => self.identify(command, out, out_bytes),
            opcode::GET_LOG_PAGE => self.log_page(command, out, out_bytes),
            opcode::SET_FEATURES => self.set_features(command, data),
            opcode::GET_FEATURES => self.get_features(command, out, out_bytes),
            // Nothing is looked for: bit 0, it was not aborted.
            opcode::ABORT => Answer::value(1),
            opcode::KEEP_ALIVE => Answer::SUCCESS,
            _ => Status::INVALID_OPCODE.with_dnr().into(),
        }
    }

    fn config(&self) -> &TargetConfig {
        &self.subsystem.config
    }

    /// The namespaces of this controller: a discovery controller has none.
    fn namespaces(&self) -> u32 {
        match self.controller.role {
            Role::Io => length(self.subsystem.disks.len()),
            Role::Discovery => 0,
        }
    }

    fn identify(&self, command: &Command, out: &mut Vec<u8>, out_bytes: u32) -> Answer {
        if out_bytes as usize != IDENTIFY_BYTES {
            return says::DATA_LENGTH.into();
        }
        let (config, nsid) = (self.config(), command.nsid());
        let there = (1..=self.namespaces()).contains(&nsid);
        let disk = self.subsystem.disks.get(nsid.wrapping_sub(1) as usize).filter(|_| there);
        let page = match (feature_of(command), disk) {
            (0x00, Some(disk)) => pages::namespace(config, nsid, disk),
            (0x01, _) => {
                let of = (self.controller.role, self.subsystem.offer.sgls);
                pages::controller(config, self.controller.instance, of, &self.subsystem.disks)
            }
            (0x02, _) if nsid < 0xFFFF_FFFE => pages::namespaces(self.namespaces(), nsid),
            (0x03, Some(_)) => pages::descriptors(config, nsid),
            (0x00 | 0x02 | 0x03, _) => return Status::INVALID_NAMESPACE.with_dnr().into(),
            _ => return says::INVALID_FIELD.into(),
        };
        out.extend_from_slice(&page);
        Answer::SUCCESS
    }

    fn log_page(&mut self, command: &Command, out: &mut Vec<u8>, out_bytes: u32) -> Answer {
        let dwords_z = u64::from(command.dword(10) >> 16) | u64::from(command.dword(11) & 0xFFFF) << 16;
        let bytes = (dwords_z + 1) * 4;
        let offset = u64::from(command.dword(12)) | u64::from(command.dword(13)) << 32;
        if bytes > self.config().transfer_bytes().into() || !offset.is_multiple_of(4) {
            return says::INVALID_FIELD.into();
        }
        if bytes != u64::from(out_bytes) {
            return says::DATA_LENGTH.into();
        }
        let page: &[u8] = match (feature_of(command), self.controller.role) {
            (log::id::ERROR, _) => &[0; log::ERROR_ENTRY_BYTES],
            (log::id::SMART, Role::Io) => &pages::smart(),
            (log::id::FIRMWARE, Role::Io) => &pages::firmware(),
            (log::id::ANA, Role::Io) if self.subsystem.access.is_told() => {
                // RGO, bit 0 of LSP; RAE.
                let with = if command.dword(10) >> 8 & 1 == 1 { Namespaces::Left } else { Namespaces::Listed };
                if command.dword(10) >> 15 & 1 == 0 {
                    self.controller.told = Told::Changes(self.subsystem.access.changes(self.port));
                }
                &self.subsystem.access.page(self.port, with)
            }
            (log::id::CROSS_CONTROLLER_RESET, Role::Io) if self.config().cross_reset != CrossReset::Refused => {
                // RMC, bit 0 of LSP; RAE.
                let [_, lsp, _, _] = command.dword(10).to_le_bytes();
                let after = if lsp & 1 == 1 { Completed::Removed } else { Completed::Kept };
                let event = if lsp >> 7 == 1 { Retain::Keep } else { Retain::Clear };
                &self.controller.resets.page(after, event)
            }
            (log::id::DISCOVERY, Role::Discovery) => {
                &pages::discovery(self.config(), self.subsystem.offer.transport, self.local)
            }
            _ => return Status::INVALID_LOG_PAGE.with_dnr().into(),
        };
        let Some(rest) = usize::try_from(offset).ok().and_then(|offset| page.get(offset..)) else {
            return says::INVALID_FIELD.into();
        };
        // What is asked for past the end of a page is zero.
        out.resize(out_bytes as usize, 0);
        out.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Answer::SUCCESS
    }

    /// NCQA and NSQA, from zero.
    fn queues(&self) -> Answer {
        let z = u64::from(self.config().queues_max) - 1;
        Answer::value(z << 16 | z)
    }

    fn set_features(&mut self, command: &Command, data: &[u8]) -> Answer {
        let value = command.dword(11);
        if command.dword(10) >> 31 != 0 {
            return says::NOT_SAVEABLE.into();
        }
        match (feature_of(command), self.controller.role) {
            (id::NUMBER_OF_QUEUES, Role::Io) if value & 0xFFFF == 0xFFFF || value >> 16 == 0xFFFF => {
                says::INVALID_FIELD.into()
            }
            (id::NUMBER_OF_QUEUES, Role::Io) => self.queues(),
            (id::ASYNC_EVENTS, _) => {
                self.controller.event_config = value;
                Answer::SUCCESS
            }
            (id::KEEP_ALIVE_TIMER, _) => {
                self.controller.set_keep_alive(value);
                Answer::SUCCESS
            }
            (id::HOST_BEHAVIOR, Role::Io) => {
                self.controller.host_behavior = data.first().copied().unwrap_or(0);
                Answer::SUCCESS
            }
            // There is no cache to switch off, and one power state.
            (id::VOLATILE_WRITE_CACHE, Role::Io) if self.has_cache() && value & 1 == 1 => Answer::SUCCESS,
            (id::POWER_MANAGEMENT, Role::Io) if value & 0x1F == 0 => Answer::SUCCESS,
            // Connect set it, and nothing else may (Base, "Host Identifier").
            (id::HOST_IDENTIFIER, _) => says::SEQUENCE.into(),
            _ => says::INVALID_FIELD.into(),
        }
    }

    fn has_cache(&self) -> bool {
        self.subsystem.disks.iter().any(super::backing::Disk::is_file)
    }

    fn get_features(&self, command: &Command, out: &mut Vec<u8>, out_bytes: u32) -> Answer {
        // SEL: ONCS says that there is none but the current value.
        if command.dword(10) >> 8 & 7 != 0 {
            return says::INVALID_FIELD.into();
        }
        match (feature_of(command), self.controller.role) {
            (id::NUMBER_OF_QUEUES, Role::Io) => self.queues(),
            (id::ASYNC_EVENTS, _) => Answer::value(self.controller.event_config.into()),
            (id::KEEP_ALIVE_TIMER, _) => Answer::value(self.controller.keep_alive_ms.into()),
            (id::VOLATILE_WRITE_CACHE, Role::Io) if self.has_cache() => Answer::value(1),
            (id::POWER_MANAGEMENT, Role::Io) => Answer::SUCCESS,
            (id::HOST_BEHAVIOR, Role::Io) if out_bytes == HOST_BEHAVIOR_BYTES => {
                out.resize(HOST_BEHAVIOR_BYTES as usize, 0);
                out.iter_mut().take(1).for_each(|first| *first = self.controller.host_behavior);
                Answer::SUCCESS
            }
            // EXHID: of 128 bits, as fabrics have no other.
            (id::HOST_IDENTIFIER, _) if command.dword(11) & 1 == 1 && out_bytes == 16 => {
                out.extend_from_slice(&self.controller.host_id);
                Answer::SUCCESS
            }
            _ => says::INVALID_FIELD.into(),
        }
    }
}
