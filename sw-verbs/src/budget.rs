//! A budget of registered memory, around any device.
//!
//! A NIC's translation tables, the kernel's limit on locked memory and an accelerator's BAR are all finite: registering stops at a
//! number that somebody chose, with a typed refusal, and not where the system breaks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::{
        Wake,
        verbs::{
            Cq, Device, DeviceFacts, DmaBufRequest, Gid, Listener, Mr, MrRequest, Pd, Presence, Qp, QpConfig, Sge,
        },
    },
};
use sw_mem::RemoteAddr;

/// What may be registered at a time.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes. Default 16 GiB.
    pub bytes_max: u64,
    /// Registrations. Default 16,384.
    pub registrations_max: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_max: 16 << 30, registrations_max: 1 << 14 }
    }
}

/// What is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes registered now.
    pub bytes: u64,
    /// Registrations now.
    pub registrations: u32,
    /// Registrations that the budget refused so far.
    pub refused: u64,
}

struct Account {
    budget: Budget,
    used: Mutex<Used>,
}

impl Account {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, len: u64) -> Result<(), Error> {
        let Budget { bytes_max, registrations_max } = self.budget;
        let mut used = self.used();
        let bytes = used.bytes.saturating_add(len);
        if bytes <= bytes_max && used.registrations < registrations_max {
            (used.bytes, used.registrations) = (bytes, used.registrations + 1);
            return Ok(());
        }
        used.refused += 1;
        let (left, there) = (bytes_max - used.bytes.min(bytes_max), used.registrations);
        Err(Error::new(ErrorKind::ResourceLimit, Verb::Setup)
            .at("mr budget")
            .detail(format!(
                "{len} bytes wanted, {left} of {bytes_max} left; {there} registrations of {registrations_max}"
            ))
            .remedy("wait for operations to end, use smaller ones, or raise the budget"))
    }

    fn give_back(&self, len: u64) {
        let mut used = self.used();
        (used.bytes, used.registrations) = (used.bytes.saturating_sub(len), used.registrations.saturating_sub(1));
    }
}

/// A device whose protection domains share a [`Budget`].
pub struct Budgeted {
    device: Arc<dyn Device>,
    account: Arc<Account>,
}

impl Budgeted {
    /// Around a device.
    pub fn new(device: Arc<dyn Device>, budget: Budget) -> Arc<Self> {
        Arc::new(Self { device, account: Arc::new(Account { budget, used: Mutex::default() }) })
    }

    /// Around another opening of the same device: they share the budget.
    pub fn beside(&self, device: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Self { device, account: Arc::clone(&self.account) })
    }

    /// What is in use now. Registrations and bytes return to zero.
    pub fn used(&self) -> Used {
        *self.account.used()
    }
}

impl Device for Budgeted {
    fn facts(&self) -> &DeviceFacts {
        self.device.facts()
    }

    fn presence(&self) -> Presence {
        self.device.presence()
    }

    fn gids(&self) -> Result<Vec<Gid>, Error> {
        self.device.gids()
    }

    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, Error> {
        Ok(Arc::new(BudgetedPd { pd: self.device.alloc_pd()?, account: Arc::clone(&self.account) }))
    }

    fn create_cq(&self, entries: u32, wake: Arc<dyn Wake>) -> Result<Arc<dyn Cq>, Error> {
        self.device.create_cq(entries, wake)
    }

    fn listen(&self, at: &str) -> Result<Box<dyn Listener>, Error> {
        self.device.listen(at)
    }
}

struct BudgetedPd {
    pd: Arc<dyn Pd>,
    account: Arc<Account>,
}

impl BudgetedPd {
    fn within(&self, len: u64, register: impl FnOnce() -> Result<Box<dyn Mr>, Error>) -> Result<Box<dyn Mr>, Error> {
        self.account.take(len)?;
        match register() {
            Ok(mr) => Ok(Box::new(BudgetedMr { mr: Some(mr), len, account: Arc::clone(&self.account) })),
            Err(error) => {
                self.account.give_back(len);
                Err(error)
            }
        }
    }
}

impl Pd for BudgetedPd {
    fn reg_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.within(memory.len, || self.pd.reg_mr(memory))
    }

    /// What the region ended is given back to the budget when its owner lets go of it.
    fn reg_bound_mr(&self, memory: MrRequest<'_>) -> Result<Box<dyn Mr>, Error> {
        self.within(memory.len, || self.pd.reg_bound_mr(memory))
    }

    fn reg_dmabuf_mr(&self, memory: DmaBufRequest) -> Result<Box<dyn Mr>, Error> {
        self.within(memory.len, || self.pd.reg_dmabuf_mr(memory))
    }

    fn create_qp(&self, config: QpConfig) -> Result<Box<dyn Qp>, Error> {
        self.pd.create_qp(config)
    }
}

struct BudgetedMr {
    /// There until it is dropped.
    mr: Option<Box<dyn Mr>>,
    len: u64,
    account: Arc<Account>,
}

impl Mr for BudgetedMr {
    fn len(&self) -> u64 {
        self.len
    }

    fn sge(&self, at: u64, len: u32) -> Option<Sge> {
        self.mr.as_ref()?.sge(at, len)
    }

    fn remote(&self, at: u64) -> Option<RemoteAddr> {
        self.mr.as_ref()?.remote(at)
    }

    fn deregister(mut self: Box<Self>) -> Result<(), Error> {
        self.end()
    }
}

impl BudgetedMr {
    /// Ends it, once. What cannot be ended stays registered, and on the account.
    fn end(&mut self) -> Result<(), Error> {
        let Some(mr) = self.mr.take() else { return Ok(()) };
        mr.deregister()?;
        self.account.give_back(self.len);
        Ok(())
    }
}

impl Drop for BudgetedMr {
    fn drop(&mut self) {
        // The device's own says so.
        let _ = self.end();
    }
}
