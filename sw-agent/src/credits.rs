//! Credits: how many operations and bytes a host may send. The agent grants them as totals that only rise.
//!
//! Totals since the session was attached, not differences: a grant that is lost, repeated or late does no harm, and each end can check the
//! other at any time. `used <= granted` at the host; `granted = ended + window` at the agent, once it has told.

/// Operations and payload bytes, as totals since the session was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Credit {
    /// Operations.
    pub operations: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Credit {
    /// Both more by one operation of `bytes`.
    #[must_use]
    pub const fn and_one(self, bytes: u32) -> Self {
        Self { operations: self.operations.saturating_add(1), bytes: self.bytes.saturating_add(bytes as u64) }
    }

    /// Both sums.
    #[must_use]
    pub const fn plus(self, more: Self) -> Self {
        Self {
            operations: self.operations.saturating_add(more.operations),
            bytes: self.bytes.saturating_add(more.bytes),
        }
    }

    /// Whether neither is more than that of `granted`.
    pub const fn is_within(self, granted: Self) -> bool {
        self.operations <= granted.operations && self.bytes <= granted.bytes
    }
}

/// The host's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spender {
    granted: Credit,
    used: Credit,
}

impl Spender {
    /// With a first grant.
    pub const fn new(granted: Credit) -> Self {
        Self { granted, used: Credit { operations: 0, bytes: 0 } }
    }

    /// What was granted and used.
    pub const fn totals(&self) -> (Credit, Credit) {
        (self.granted, self.used)
    }

    /// Whether there is enough for one operation of `bytes`.
    pub const fn has(&self, bytes: u32) -> bool {
        self.used.and_one(bytes).is_within(self.granted)
    }

    /// Uses it, whether there is enough or not: whoever sends asks [`has`](Self::has) first.
    pub const fn spend(&mut self, bytes: u32) {
        self.used = self.used.and_one(bytes);
    }

    /// A grant came. False if it takes something back, which none may.
    #[must_use]
    pub const fn grant(&mut self, granted: Credit) -> bool {
        if !self.granted.is_within(granted) {
            return false;
        }
        self.granted = granted;
        true
    }
}

/// The agent's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Granter {
    window: Credit,
    told: Credit,
    used: Credit,
    ended: Credit,
}

impl Granter {
    /// With a window, which is told with SESSION.
    pub const fn new(window: Credit) -> Self {
        let none = Credit { operations: 0, bytes: 0 };
        Self { window, told: window, used: none, ended: none }
    }

    /// The window: what may be under way at a time.
    pub const fn window(&self) -> Credit {
        self.window
    }

    /// What was told, used, and is ended.
    pub const fn totals(&self) -> (Credit, Credit, Credit) {
        (self.told, self.used, self.ended)
    }

    /// A descriptor came. False if it was not covered.
    #[must_use]
    pub const fn spend(&mut self, bytes: u32) -> bool {
        let used = self.used.and_one(bytes);
        if !used.is_within(self.told) {
            return false;
        }
        self.used = used;
        true
    }

    /// One has ended.
    pub const fn end(&mut self, bytes: u32) {
        self.ended = self.ended.and_one(bytes);
    }

    /// What is to be told now: when half a window came free, or nothing is under way any more.
    pub fn due(&mut self) -> Option<Credit> {
        let granted = self.ended.plus(self.window);
        let free = |now: u64, told: u64, window: u64| now - told >= window.div_ceil(2) && now > told;
        let is_half = free(granted.operations, self.told.operations, self.window.operations)
            || free(granted.bytes, self.told.bytes, self.window.bytes);
        let is_idle = self.used.operations == self.ended.operations;
        if granted == self.told || !(is_half || is_idle) {
            return None;
        }
        self.told = granted;
        Some(granted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_comes_back_when_half_is_free_or_all() {
        let window = Credit { operations: 4, bytes: 100 };
        let (mut agent, mut host) = (Granter::new(window), Spender::new(window));
        for _ in 0..4 {
            assert!(host.has(25));
            host.spend(25);
            assert!(agent.spend(25));
        }
        assert!(!host.has(0) && !agent.spend(0), "a fifth is not covered");
        agent.end(25);
        assert_eq!(agent.due(), None, "a quarter is not worth a message");
        agent.end(25);
        let granted = agent.due().expect("half of it");
        assert_eq!(granted, Credit { operations: 6, bytes: 150 });
        assert!(host.grant(granted) && host.has(50) && !host.has(51));
        assert!(!host.grant(window), "nothing is taken back");
        agent.end(25);
        agent.end(25);
        assert_eq!(agent.due(), Some(Credit { operations: 8, bytes: 200 }));
        assert_eq!(agent.due(), None);
    }
}
