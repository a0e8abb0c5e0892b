//! A budget of registered memory, and leases out of it.
//!
//! A NIC's translation tables, the kernel's limit on locked memory and an accelerator's BAR are all finite: registering stops at a
//! number that somebody chose, with a typed refusal, and not where the system breaks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sw_engine::{
    Error, ErrorKind, Verb,
    seam::verbs::{Mr, MrRequest, Pd, Sge},
};
use sw_mem::RemoteAddr;

/// What a pool may have registered at a time.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes. Default 16 GiB.
    pub bytes_max: u64,
    /// Registrations. Default 16,384.
    pub leases_max: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_max: 16 << 30, leases_max: 1 << 14 }
    }
}

/// What is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes registered now.
    pub bytes: u64,
    /// Registrations now.
    pub leases: u32,
    /// Requests that the budget refused so far.
    pub refused: u64,
}

/// Registers memory of one protection domain within a [`Budget`]. Clones share it.
#[derive(Clone)]
pub struct MrPool(Arc<Inner>);

struct Inner {
    pd: Arc<dyn Pd>,
    budget: Budget,
    used: Mutex<Used>,
}

impl Inner {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MrPool {
    /// A pool with nothing registered.
    pub fn new(pd: Arc<dyn Pd>, budget: Budget) -> Self {
        Self(Arc::new(Inner { pd, budget, used: Mutex::default() }))
    }

    /// What is in use now. Leases and bytes return to zero.
    pub fn used(&self) -> Used {
        *self.0.used()
    }

    /// Registers memory until the lease is dropped.
    ///
    /// # Errors
    /// `ResourceLimit` past the budget; as [`Pd::reg_mr`].
    pub fn lease(&self, memory: MrRequest<'_>) -> Result<Lease, Error> {
        let Budget { bytes_max, leases_max } = self.0.budget;
        {
            let mut used = self.0.used();
            let bytes = used.bytes.saturating_add(memory.len);
            if bytes > bytes_max || used.leases >= leases_max {
                used.refused += 1;
                let have = bytes_max - used.bytes.min(bytes_max);
                return Err(Error::new(ErrorKind::ResourceLimit, Verb::Setup)
                    .at("mr budget")
                    .detail(format!(
                        "{} bytes wanted, {have} of {bytes_max} left, {} registrations of {leases_max}",
                        memory.len, used.leases
                    ))
                    .remedy("wait for operations to end, use smaller ones, or raise the budget"));
            }
            (used.bytes, used.leases) = (bytes, used.leases + 1);
        }
        match self.0.pd.reg_mr(memory) {
            Ok(mr) => Ok(Lease { bytes: memory.len, mr: Some(mr), pool: Arc::clone(&self.0) }),
            Err(error) => {
                give_back(&self.0, memory.len);
                Err(error)
            }
        }
    }
}

fn give_back(pool: &Inner, bytes: u64) {
    let mut used = pool.used();
    (used.bytes, used.leases) = (used.bytes.saturating_sub(bytes), used.leases.saturating_sub(1));
}

/// Registered memory of a pool. When its drop returns, nobody reaches the memory by it.
pub struct Lease {
    bytes: u64,
    /// There until it is dropped.
    mr: Option<Box<dyn Mr>>,
    pool: Arc<Inner>,
}

impl Lease {
    /// As [`Mr::sge`].
    pub fn sge(&self, at: u64, len: u32) -> Option<Sge> {
        self.mr.as_ref()?.sge(at, len)
    }

    /// As [`Mr::remote`].
    pub fn remote(&self, at: u64) -> Option<RemoteAddr> {
        self.mr.as_ref()?.remote(at)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(mr) = self.mr.take() {
            mr.deregister();
        }
        give_back(&self.pool, self.bytes);
    }
}
