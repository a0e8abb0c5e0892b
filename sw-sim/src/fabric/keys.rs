//! Registered memory of modelled devices: what a key opens, and the copies that go through it.

use std::collections::BTreeMap;

use sw_engine::seam::verbs::{Access, LocalKey, Sge};
use sw_mem::{ByteLen, DmaRegion, RegionId, WeakRegion, model_span};

use crate::rng::Rng;

/// What of a region a registration keeps.
pub(super) enum Held {
    /// Its memory.
    Region(DmaRegion),
    /// Nothing: it is over when the region is.
    Bound(WeakRegion),
}

impl Held {
    fn region(&self) -> Option<DmaRegion> {
        match self {
            Self::Region(region) => Some(region.clone()),
            Self::Bound(region) => region.upgrade(),
        }
    }
}

/// A registration.
pub(super) struct Entry {
    /// By device and protection domain.
    pub(super) domain: (usize, u64),
    held: Held,
    /// First byte in the region.
    at: u64,
    /// The address that requests name its first byte by.
    pub(super) base: u64,
    pub(super) len: u64,
    pub(super) access: Access,
}

impl Entry {
    /// Whether a peer may do something with it.
    pub(super) fn is_remote(&self) -> bool {
        self.access.allows(Access::REMOTE_READ) || self.access.allows(Access::REMOTE_WRITE)
    }

    /// Whether it opens something.
    pub(super) fn is_open(&self) -> bool {
        match &self.held {
            Held::Region(_) => true,
            Held::Bound(region) => region.is_alive(),
        }
    }
}

/// What a device did to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Bytes were written.
    Landed {
        /// The region.
        region: RegionId,
        /// First byte in it.
        at: u64,
        /// How many.
        len: u64,
    },
    /// Bytes were read.
    Taken {
        /// The region.
        region: RegionId,
        /// First byte in it.
        at: u64,
        /// How many.
        len: u64,
    },
    /// Memory of a request was changed between its post and its completion: had the device sent it again, as it may, others would have arrived.
    Changed {
        /// QPN.
        qpn: u32,
        /// Of the request.
        wr_id: u64,
    },
}

/// Which key of a registration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// lkey.
    Local,
    /// rkey: the lkey with its lowest bit set, so that neither opens what the other does.
    Remote,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Keys {
    entries: BTreeMap<u32, Entry>,
    /// What was done since somebody looked last; nothing is noted until somebody watches.
    touches: Option<Vec<Touch>>,
}

/// A range that a key was asked for.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) domain: (usize, u64),
    pub(super) key: u32,
    pub(super) used: Use,
    pub(super) addr: u64,
    pub(super) len: u64,
    pub(super) access: Access,
}

impl Asked {
    pub(super) fn local(domain: (usize, u64), sge: &Sge, access: Access) -> Self {
        Self { domain, key: sge.lkey.0, used: Use::Local, addr: sge.addr, len: sge.len.into(), access }
    }

    /// `len` bytes from byte `at` on.
    pub(super) fn part(self, at: u64, len: u64) -> Option<Self> {
        (at.checked_add(len)? <= self.len).then_some(Self { addr: self.addr.wrapping_add(at), len, ..self })
    }
}

impl Keys {
    pub(super) fn watch(&mut self) {
        self.touches.get_or_insert_default();
    }

    pub(super) fn take_touches(&mut self) -> Vec<Touch> {
        self.touches.as_mut().map(core::mem::take).unwrap_or_default()
    }

    pub(super) fn note(&mut self, touch: Touch) {
        self.touches.iter_mut().for_each(|all| all.push(touch));
    }

    /// Registers `len` bytes from byte `at` of a region; gives the lkey.
    pub(super) fn register(
        &mut self,
        domain: (usize, u64),
        (held, base, at, len): (Held, u64, u64, u64),
        access: Access,
        rng: &mut Rng,
    ) -> LocalKey {
        loop {
            let key = rng.range32(1, u32::MAX) & !1;
            if key != 0 && !self.entries.contains_key(&key) {
                self.entries.insert(key, Entry { domain, held, at, base, len, access });
                return LocalKey(key);
            }
        }
    }

    pub(super) fn entry(&self, key: LocalKey) -> Option<&Entry> {
        self.entries.get(&key.0).filter(|entry| entry.is_open())
    }

    /// Ends a registration; what is given back is dropped without a lock.
    pub(super) fn remove(&mut self, key: LocalKey) -> Option<Entry> {
        self.entries.remove(&key.0)
    }

    /// Ends what an rkey opens; whether it opened something of the domain.
    pub(super) fn invalidate(&mut self, domain: (usize, u64), key: u32) -> bool {
        let found = self.entries.get(&(key & !1));
        let may =
            key & 1 == 1 && found.is_some_and(|entry| entry.domain == domain && entry.is_remote() && entry.is_open());
        if may {
            // The owner's handle finds nothing from now on.
            self.entries.remove(&(key & !1));
        }
        may
    }

    /// Registrations and their bytes.
    pub(super) fn count(&self) -> (usize, u64) {
        (self.entries.len(), self.entries.values().map(|entry| entry.len).sum())
    }

    pub(super) fn of_device(&self, device: usize) -> usize {
        self.entries.values().filter(|entry| entry.domain.0 == device).count()
    }

    /// The region behind a range, and the first byte in it; `None`: the key does not open it.
    fn find(&self, asked: Asked) -> Option<(DmaRegion, u64)> {
        if (asked.key & 1 == 1) != (asked.used == Use::Remote) {
            return None;
        }
        let entry = self.entries.get(&(asked.key & !1))?;
        let at = asked.addr.checked_sub(entry.base)?;
        let inside = at.checked_add(asked.len).is_some_and(|end| end <= entry.len);
        let may = entry.domain == asked.domain && inside && entry.access.allows(asked.access);
        Some((entry.held.region().filter(|_| may)?, entry.at + at))
    }

    pub(super) fn opens(&self, asked: Asked) -> bool {
        self.find(asked).is_some()
    }

    /// Reads; `None`: the key does not open it.
    pub(super) fn read(&mut self, asked: Asked) -> Option<Vec<u8>> {
        let (region, at) = self.find(asked)?;
        let mut bytes = vec![0; sw_mem::index(asked.len)];
        model_span(&region, at, ByteLen(asked.len)).ok()?.read(0, &mut bytes).ok()?;
        self.note(Touch::Taken { region: region.id(), at, len: asked.len });
        Some(bytes)
    }

    /// Writes; `false`: the key does not open it.
    pub(super) fn write(&mut self, asked: Asked, bytes: &[u8]) -> bool {
        let Some((region, at)) = self.find(asked) else { return false };
        let written = model_span(&region, at, ByteLen(asked.len)).and_then(|span| span.write(0, bytes));
        self.note(Touch::Landed { region: region.id(), at, len: asked.len });
        written.is_ok()
    }
}
