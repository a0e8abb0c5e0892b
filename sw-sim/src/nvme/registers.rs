//! The register file and the state behind it (NVMe Base, "Controller Properties" and "Controller Initialization").
//!
//! ```text
//!   Disabled ── EN 1 ─► Enabling ── Ready ─► Ready ── EN 0 ─► Disabling ── Disabled ─► Disabled
//!      all states ── link down ─► Gone (all ones, for good)
//! ```
//!
//! Commands that were taken go on to touch memory until RDY = 0 can be seen. That is when they are dropped.

use super::{NvmeEvent, NvmeParams, Step};
use crate::log::Mark;

/// Reads of a controller that is gone, at most: a driver that asks more often does not take all ones for an answer.
const GONE_READS_MAX: u64 = 200;
/// How long after CAP.TO a controller that hangs in a reset is off after all: nobody waits for it any more.
const HANG_NS: u64 = 1_000_000_000;
const CC: u32 = 0x14;
const CSTS: u32 = 0x1C;
/// Bytes before the doorbells.
const DOORBELLS: u32 = 0x1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Disabled,
    Enabling { since: u64 },
    Ready,
    Disabling,
    Gone,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Registers {
    state: State,
    cap: u64,
    cc: u32,
    fatal: bool,
    /// CSTS.SHST.
    shutdown: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    masked: u32,
    cmbmsc: u64,
    len: u32,
    timeout_ns: u64,
    gone_reads: u64,
}

impl Registers {
    pub(super) fn new(params: &NvmeParams) -> Self {
        let mqes = u64::from(params.entries_max.clamp(2, 0x1_0000) - 1);
        // CQR, TO, DSTRD, the NVM command set; pages of 4 KiB to 64 KiB.
        let cap = mqes
            | 1 << 16
            | u64::from(params.timeout_halves) << 24
            | u64::from(params.stride & 0xF) << 32
            | 1 << 37
            | 4 << 52;
        let stride = 4u32 << params.stride;
        let queues = u32::from(params.queue_pairs) + 1;
        let mut registers = Self {
            state: State::Disabled,
            cap,
            cc: 0,
            fatal: false,
            shutdown: 0,
            aqa: 0,
            asq: 0,
            acq: 0,
            masked: 0,
            cmbmsc: 0,
            len: (DOORBELLS + 2 * queues * stride).next_multiple_of(0x1000),
            timeout_ns: u64::from(params.timeout_halves.max(1)) * 500_000_000,
            gone_reads: 0,
        };
        if params.left_enabled {
            // Somebody's queues, at addresses that mean nothing here; it must not be believed.
            registers.state = State::Ready;
            registers.cc = 0x0046_0001;
            registers.aqa = 0x001F_001F;
        }
        registers
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// CSTS.CFS.
    pub(super) fn fail(&mut self) {
        self.fatal = true;
    }

    pub(super) fn vanish(&mut self) {
        self.state = State::Gone;
    }

    /// A function-level reset.
    pub(super) fn reset(&mut self) {
        if !self.is_gone() {
            self.state = State::Disabled;
            (self.cc, self.fatal, self.shutdown) = (0, false, 0);
        }
    }

    /// Bytes of a memory page that the driver chose.
    pub(super) fn page(&self) -> u64 {
        0x1000 << (self.cc >> 7 & 0xF)
    }

    fn takes_commands(&self) -> bool {
        matches!(self.state, State::Ready | State::Disabling) && !self.fatal
    }

    fn status(&self) -> u32 {
        let ready = matches!(self.state, State::Ready | State::Disabling);
        u32::from(ready) | u32::from(self.fatal) << 1 | self.shutdown << 2
    }

    fn word(&self, at: u32) -> u32 {
        let half = |value: u64| value >> (8 * (at & 4));
        let value = match at {
            0x00 | 0x04 => half(self.cap),
            0x08 => 0x0001_0400,
            0x0C | 0x10 => u64::from(self.masked),
            CC => u64::from(self.cc),
            CSTS => u64::from(self.status()),
            0x24 => u64::from(self.aqa),
            0x28 | 0x2C => half(self.asq),
            // ACQ is at 0x30, a multiple of 8 as the others are.
            0x30 | 0x34 => half(self.acq),
            0x50 | 0x54 => half(self.cmbmsc),
            _ => 0,
        };
        u32::try_from(value & 0xFFFF_FFFF).unwrap_or(0)
    }
}

/// The value with one half replaced.
fn put_half(old: u64, at: u32, value: u32) -> u64 {
    let shift = 8 * (at & 4);
    old & !(0xFFFF_FFFF << shift) | u64::from(value) << shift
}

impl Step<'_> {
    /// A register read.
    pub(crate) fn read_register(&mut self, at: u32) -> u32 {
        self.ctrl.counts.register_reads += 1;
        if self.ctrl.registers.is_gone() {
            self.ctrl.registers.gone_reads += 1;
            let reads = self.ctrl.registers.gone_reads;
            if reads == GONE_READS_MAX {
                self.violate("liveness", format!("a controller that is gone was read {reads} times"));
            }
            // No event ends a loop that goes on, so the run must.
            assert!(reads < 100 * GONE_READS_MAX, "a controller that is gone was read {reads} times");
            return u32::MAX;
        }
        if !at.is_multiple_of(4) || at >= self.ctrl.registers.len() {
            self.violate("limits", format!("register {at:#x} is read"));
            return u32::MAX;
        }
        if let Some(noise) = self.ctrl.noise
            && self.ctrl.moods.per_mille(noise.registers)
        {
            // CC.EN and CSTS.RDY stay true, and no status is all ones: they are all that a driver has to tell whether memory is
            // still touched, and no driver could be right without them.
            let (kept, cleared) = if matches!(at, CC | CSTS) { (1, 1 << 31) } else { (0, 0) };
            let noise = self.ctrl.moods.range32(0, u32::MAX) & !(kept | cleared);
            return noise | self.ctrl.registers.word(at) & kept;
        }
        self.ctrl.registers.word(at)
    }

    /// A register write.
    pub(crate) fn write_register(&mut self, at: u32, value: u32) {
        self.ctrl.counts.register_writes += 1;
        if self.ctrl.registers.is_gone() {
            return;
        }
        if !at.is_multiple_of(4) || at >= self.ctrl.registers.len() {
            return self.violate("limits", format!("register {at:#x} is written"));
        }
        if at >= DOORBELLS {
            return self.doorbell(at - DOORBELLS, value);
        }
        self.note("register", &[self.number as u64, u64::from(at), u64::from(value)]);
        let enabled = self.ctrl.registers.cc & 1 == 1;
        let registers = &mut self.ctrl.registers;
        match at {
            0x0C => registers.masked |= value,
            0x10 => registers.masked &= !value,
            CC => self.write_cc(value),
            0x24 | 0x28 | 0x2C | 0x30 | 0x34 if enabled => {
                self.violate("state", format!("register {at:#x} is written while CC.EN is 1"));
            }
            0x24 => registers.aqa = value,
            0x28 | 0x2C => registers.asq = put_half(registers.asq, at, value),
            0x30 | 0x34 => registers.acq = put_half(registers.acq, at, value),
            0x50 | 0x54 => registers.cmbmsc = put_half(registers.cmbmsc, at, value),
            _ => {}
        }
    }

    fn write_cc(&mut self, value: u32) {
        let now = self.now();
        let (old, state) = (self.ctrl.registers.cc, self.ctrl.registers.state);
        self.ctrl.registers.cc = value;
        match (old & 1, value & 1) {
            (0, 1) => {
                if state != State::Disabled {
                    self.violate("state", "CC.EN is set before CSTS.RDY was 0".to_string());
                }
                self.enable();
            }
            (1, 0) => {
                let timeout = self.ctrl.registers.timeout_ns;
                // A driver that was shown a fatal status gives up earlier.
                if let State::Enabling { since } = state
                    && !self.ctrl.registers.fatal
                    && !self.ctrl.hostile
                    && now < since + timeout
                {
                    self.violate("state", "CC.EN is cleared before CSTS.RDY was 1".to_string());
                }
                self.disable();
            }
            (1, 1) if (old ^ value) & 0x3FF0 != 0 => {
                self.violate("state", format!("CC goes from {old:#x} to {value:#x} while it is enabled"));
            }
            _ => {}
        }
        if value >> 14 & 3 != 0 && old >> 14 & 3 == 0 {
            self.ctrl.registers.shutdown = 1;
            let delay = self.ctrl.params.shutdown_ns;
            self.plan(delay, NvmeEvent::ShutDown);
        }
    }

    fn enable(&mut self) {
        self.ctrl.stopped = false;
        if !self.memories.is_visible(self.number) {
            self.violate("order", "CC.EN is set and no barrier follows what was stored into rings".to_string());
        }
        let registers = &self.ctrl.registers;
        let (asq, acq, aqa, page) = (registers.asq, registers.acq, registers.aqa, registers.page());
        let sizes = (aqa & 0xFFF, aqa >> 16 & 0xFFF);
        let right = sizes.0 > 0
            && sizes.1 > 0
            && asq.is_multiple_of(page)
            && acq.is_multiple_of(page)
            && page <= 0x1_0000
            && registers.cc >> 4 & 7 == 0
            && registers.cc >> 11 & 7 == 0;
        if !right {
            let cc = registers.cc;
            self.violate("limits", format!("CC {cc:#x}, AQA {aqa:#x}, ASQ {asq:#x}, ACQ {acq:#x} cannot be enabled"));
        }
        let now = self.now();
        self.ctrl.registers.state = State::Enabling { since: now };
        let (low, high) = self.ctrl.params.ready_ns;
        let delay = self.ctrl.latency.range(low, high);
        if delay > self.ctrl.registers.timeout_ns {
            self.mark(Mark::NvmeReadyTooLate);
        }
        self.plan(delay, NvmeEvent::Ready);
    }

    fn disable(&mut self) {
        self.ctrl.registers.state = State::Disabling;
        let hangs = self.ctrl.params.reset_hangs;
        if self.ctrl.moods.per_mille(hangs) {
            self.mark(Mark::NvmeResetHangs);
            let late = self.ctrl.registers.timeout_ns + HANG_NS;
            return self.plan(late, NvmeEvent::Disabled);
        }
        let (low, high) = self.ctrl.params.ready_ns;
        let delay = self.ctrl.latency.range(low, high).min(self.ctrl.registers.timeout_ns / 2);
        if !self.ctrl.commands.is_empty() {
            self.mark(Mark::NvmeResetInFlight);
        }
        self.plan(delay, NvmeEvent::Disabled);
    }

    pub(super) fn become_ready(&mut self) {
        if !matches!(self.ctrl.registers.state, State::Enabling { .. }) {
            return;
        }
        self.note("ready", &[self.number as u64]);
        self.ctrl.counts.enables += 1;
        self.ctrl.registers.state = State::Ready;
        let registers = &self.ctrl.registers;
        let (asq, acq, aqa) = (registers.asq, registers.acq, registers.aqa);
        self.make_queues(0, (asq, (aqa & 0xFFF) + 1), (acq, (aqa >> 16 & 0xFFF) + 1));
    }

    pub(super) fn become_disabled(&mut self) {
        if self.ctrl.registers.state != State::Disabling {
            return;
        }
        self.note("disabled", &[self.number as u64]);
        self.let_go();
        self.ctrl.registers.state = State::Disabled;
        self.ctrl.registers.fatal = false;
        self.ctrl.registers.shutdown = 0;
    }

    pub(super) fn become_shut_down(&mut self) {
        self.mark(Mark::NvmeShutDown);
        self.ctrl.registers.shutdown = 2;
    }

    pub(super) fn takes_commands(&self) -> bool {
        self.ctrl.registers.takes_commands() && !self.ctrl.stopped
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ctrl.registers.state == State::Ready
    }
}
