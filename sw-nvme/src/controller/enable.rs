//! Disabling and enabling a controller: CC, CSTS and the waits between them.
//!
//! Base, "Controller Initialization" and "Controller Level Reset". All ones end every wait: the device is gone.

use core::time::Duration;

use sw_engine::{Error, ErrorKind, Retry};

use crate::{
    bus::{Bus, Registers},
    controller::admin::{ADMIN_ENTRIES, Admin, Patience},
    inquiry::AdminQueue,
    wire::regs::{self, Aqa, Cap, Cc, Crto, Csts, Shutdown, ShutdownStatus},
};

/// How long a controller may take to shut down when RTD3E does not say: what Linux gives it (`shutdown_timeout`).
const SHUTDOWN_DEFAULT: Duration = Duration::from_secs(5);
/// The most that RTD3E is believed: it has 32 bits of microseconds.
const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

/// What a wait on CSTS looks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// RDY 1, or CFS: then nothing becomes ready any more.
    ReadyOrFatal,
    /// RDY 1; CFS is an error.
    Ready,
    /// RDY 0.
    NotReady,
    /// SHST 10b.
    ShutDown,
}

impl Until {
    fn is(self, csts: Csts) -> bool {
        match self {
            Until::ReadyOrFatal => csts.is_ready() || csts.is_fatal(),
            Until::Ready => csts.is_ready(),
            Until::NotReady => !csts.is_ready(),
            Until::ShutDown => csts.shutdown() == ShutdownStatus::Complete,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Until::ReadyOrFatal | Until::Ready => "CSTS.RDY to become 1",
            Until::NotReady => "CSTS.RDY to become 0",
            Until::ShutDown => "CSTS.SHST to say that the shutdown is complete",
        }
    }
}

impl<B: Bus> Admin<B> {
    /// Disables the controller and sees CSTS.RDY fall: after `Ok` it touches no memory.
    ///
    /// # Errors
    /// `NoDevice`; `DeadlineExceeded` past CAP.TO and CRTO, or past `at_most` if that is shorter.
    pub(super) fn disable(&self, cap: &Cap, at_most: Duration) -> Result<(), Error> {
        let limit = self.ready_limit(cap).min(at_most);
        let cc = Cc::from_raw(self.registers.read32(regs::CC));
        let csts = self.csts();
        if csts.is_gone() {
            return Err(self.gone());
        }
        if cc.is_enabled() {
            // Clearing EN while the controller is still on its way to RDY has undefined results in revision 1.0 to 1.2;
            // a fatal one will not become ready.
            if !csts.is_ready() && !csts.is_fatal() && csts.shutdown() == ShutdownStatus::None {
                // Past the limit it is disabled all the same: nothing else is left to try.
                match self.wait(Until::ReadyOrFatal, limit) {
                    Err(error) if error.kind() == ErrorKind::NoDevice => return Err(error),
                    _ => {}
                }
            }
            self.registers.write32(regs::CC, cc.disable().raw());
        }
        self.wait(Until::NotReady, limit)
    }

    /// Tells the controller its admin queue and enables it. The rings are empty and it is disabled.
    ///
    /// # Errors
    /// `NoDevice`; `Io` for a fatal status; `DeadlineExceeded` past CAP.TO and CRTO; `Unsupported` without the NVM command
    /// set or 4 KiB pages.
    pub(super) fn enable(&self, cap: &Cap) -> Result<(), Error> {
        let (Some(sets), Some(page_code)) = (cap.nvm_command_set(), cap.page_code(4096)) else {
            return Err(self
                .error(
                    ErrorKind::Unsupported,
                    format!(
                        "the controller has command sets {:#04x} and pages from {} bytes; the NVM command set and pages of \
                         4096 bytes are needed",
                        cap.command_sets, cap.page_bytes_min
                    ),
                )
                .remedy("leave it to the kernel driver"));
        };
        let aqa = Aqa { sq_entries: ADMIN_ENTRIES, cq_entries: ADMIN_ENTRIES };
        // 32 is within 2 to 4096.
        self.registers.write32(regs::AQA, aqa.encode().unwrap_or(0));
        self.registers.write64(regs::ASQ, self.queue.sq_iova().raw());
        self.registers.write64(regs::ACQ, self.queue.cq_iova().raw());
        // Rings that were emptied for this: no zero may land on an entry of the controller's.
        self.queue.publish();
        self.registers.write32(regs::CC, Cc::enabled(page_code, sets).raw());
        let limit = self.ready_limit(cap);
        self.wait(Until::Ready, limit)
    }

    /// Announces a normal shutdown, waits for it, and disables the controller.
    ///
    /// # Errors
    /// As [`Admin::disable`]. The controller is disabled also if the shutdown took too long.
    pub(super) fn shut_down(&self, cap: &Cap, rtd3e: Option<Duration>) -> Result<(), Error> {
        let cc = Cc::from_raw(self.registers.read32(regs::CC));
        let announced = if cc.is_enabled() && self.csts().is_ready() {
            self.registers.write32(regs::CC, cc.shutdown(Shutdown::Normal).raw());
            let limit = rtd3e.map_or(SHUTDOWN_DEFAULT, |entry| entry.clamp(SHUTDOWN_DEFAULT, SHUTDOWN_MAX));
            self.wait(Until::ShutDown, limit)
        } else {
            Ok(())
        };
        self.disable(cap, Duration::MAX)?;
        announced
    }

    /// How long it may take to become ready, and not ready: CAP.TO and CRTO.
    pub(super) fn ready_limit(&self, cap: &Cap) -> Duration {
        let modes = cap.ready_modes;
        let has_crto = modes.with_media || modes.independent_of_media;
        cap.ready_limit(has_crto.then(|| Crto::decode(self.registers.read32(regs::CRTO))))
    }

    fn wait(&self, until: Until, limit: Duration) -> Result<(), Error> {
        let begun = self.bus.now();
        let mut patience = Patience::new();
        loop {
            // The clock first: a look that was late by a preemption still counts.
            let waited = self.bus.now().since(begun);
            let csts = self.csts();
            if csts.is_gone() {
                return Err(self.gone());
            }
            if until.is(csts) {
                return Ok(());
            }
            if until == Until::Ready && csts.is_fatal() {
                return Err(self
                    .error(ErrorKind::Io, "the controller reports a fatal error (CSTS.CFS) instead of becoming ready")
                    .remedy("power-cycle the drive; look at its firmware"));
            }
            if waited >= limit {
                return Err(self
                    .error(
                        ErrorKind::DeadlineExceeded,
                        format!("waited {} ms for {}: {csts:?}", limit.as_millis(), until.name()),
                    )
                    .with_retry(Retry::Never)
                    .remedy("power-cycle the drive; look at its firmware"));
            }
            patience.pause(&*self.bus);
        }
    }
}
