//! From one discovery service to the others that it names. Each is asked once, however many name it.
//!
//! ```text
//!   where to begin ─► ask ─► entries ─┬─ subsystems: kept, each once
//!                      ▲               └─ referrals, DEPTH_MAX deep: asked in turn
//!                      └──────────────────┘
//! ```

use std::collections::{BTreeSet, VecDeque};

use super::{ENTRIES_MAX, Endpoint, Entry, SubsystemType, TransportType};
use crate::fabrics::Nqn;

/// Referrals from the first service to the last one at most.
pub const DEPTH_MAX: u32 = 4;
/// Discovery services that are asked at most.
pub const SERVICES_MAX: usize = 64;

/// A discovery service to ask.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Where it is.
    pub at: Endpoint,
    /// What it is called: [`Nqn::discovery`], or a name of its own.
    pub name: Nqn,
    /// Referrals that led to it; 0 for the first one.
    pub depth: u32,
}

/// Why a referral was not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotFollowed {
    /// It is of another transport than the services that were asked, or its address is none.
    Elsewhere(Box<Entry>),
    /// More than [`DEPTH_MAX`] referrals led to it.
    TooDeep(Service),
    /// [`SERVICES_MAX`] services were asked already.
    TooMany(Service),
}

/// What is known after a walk, or in its midst.
#[derive(Debug)]
pub struct Walk {
    /// By what services are asked.
    by: TransportType,
    to_ask: VecDeque<Service>,
    /// Places and names that were asked, or will be.
    asked: BTreeSet<(Endpoint, Nqn)>,
    found: Vec<Entry>,
    known: BTreeSet<Entry>,
    not_followed: Vec<NotFollowed>,
    /// Subsystems that did not fit into [`ENTRIES_MAX`].
    left_out: u64,
}

impl Walk {
    /// From the service at an address, by the name that all answer to; `by` is TCP or RDMA.
    pub fn from(by: TransportType, at: Endpoint) -> Self {
        let first = Service { at, name: Nqn::discovery(), depth: 0 };
        Self {
            by,
            asked: BTreeSet::from([(at, first.name.clone())]),
            to_ask: VecDeque::from([first]),
            found: Vec::new(),
            known: BTreeSet::new(),
            not_followed: Vec::new(),
            left_out: 0,
        }
    }

    /// Whom to ask now; `None`: all that are named were asked.
    pub fn next_service(&mut self) -> Option<Service> {
        self.to_ask.pop_front()
    }

    /// What `of` said.
    pub fn came(&mut self, of: &Service, entries: Vec<Entry>) {
        for entry in entries {
            match entry.kind {
                SubsystemType::Referral => self.refer(of, entry),
                // The service that was just asked says that it is there.
                SubsystemType::ThisDiscovery => {}
                SubsystemType::Nvme | SubsystemType::Other(_) if self.known.contains(&entry) => {}
                SubsystemType::Nvme | SubsystemType::Other(_) if self.found.len() as u64 >= ENTRIES_MAX => {
                    self.left_out += 1;
                }
                SubsystemType::Nvme | SubsystemType::Other(_) => {
                    self.known.insert(entry.clone());
                    self.found.push(entry);
                }
            }
        }
    }

    fn refer(&mut self, of: &Service, entry: Entry) {
        let Some(at) = entry.endpoint(self.by) else {
            self.not_follow(NotFollowed::Elsewhere(Box::new(entry)));
            return;
        };
        let service = Service { at, name: entry.subsystem, depth: of.depth.saturating_add(1) };
        let key = (at, service.name.clone());
        if self.asked.contains(&key) {
            return;
        }
        if service.depth > DEPTH_MAX {
            self.not_follow(NotFollowed::TooDeep(service));
        } else if self.asked.len() >= SERVICES_MAX {
            self.not_follow(NotFollowed::TooMany(service));
        } else {
            self.asked.insert(key);
            self.to_ask.push_back(service);
        }
    }

    /// Those are told of, as many as services are asked.
    fn not_follow(&mut self, why: NotFollowed) {
        if self.not_followed.len() < SERVICES_MAX && !self.not_followed.contains(&why) {
            self.not_followed.push(why);
        }
    }

    /// The subsystems, in the order in which they were told of; at most [`ENTRIES_MAX`].
    pub fn found(&self) -> &[Entry] {
        &self.found
    }

    /// Referrals that were not followed, the first [`SERVICES_MAX`] of them.
    pub fn not_followed(&self) -> &[NotFollowed] {
        &self.not_followed
    }

    /// Subsystems that were told of beyond [`ENTRIES_MAX`].
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::tests::entry;

    fn at(port: u16) -> Endpoint {
        Endpoint { ip: "192.0.2.1".parse().unwrap(), port }
    }

    fn referral(port: u16) -> Entry {
        Entry { subsystem: Nqn::discovery(), ..entry(SubsystemType::Referral, "192.0.2.1", port) }
    }

    /// The ports of the services in the order in which they are asked; `page` is what the one at a port says.
    fn asked(walk: &mut Walk, page: impl Fn(u16) -> Vec<Entry>) -> Vec<u16> {
        let mut ports = Vec::new();
        while let Some(service) = walk.next_service() {
            ports.push(service.at.port);
            walk.came(&service, page(service.at.port));
        }
        ports
    }

    #[test]
    fn referrals_that_go_in_a_circle_end() {
        let mut walk = Walk::from(TransportType::Tcp, at(1));
        let subsystem = |port| entry(SubsystemType::Nvme, "192.0.2.9", port);
        let page = |port: u16| vec![referral(port % 3 + 1), subsystem(port), subsystem(9), referral(port)];
        assert_eq!(asked(&mut walk, page), [1, 2, 3]);
        let ports: Vec<&str> = walk.found().iter().map(|entry| entry.service.as_str()).collect();
        assert_eq!((ports, walk.not_followed(), walk.left_out()), (vec!["1", "9", "2", "3"], &[][..], 0));
    }

    #[test]
    fn a_chain_ends_at_its_limit_and_that_is_told() {
        let mut walk = Walk::from(TransportType::Tcp, at(1));
        assert_eq!(asked(&mut walk, |port| vec![referral(port + 1)]), [1, 2, 3, 4, 5]);
        let last = Service { at: at(6), name: Nqn::discovery(), depth: 5 };
        assert_eq!(walk.not_followed(), [NotFollowed::TooDeep(last)]);
    }

    #[test]
    fn a_crowd_ends_at_its_limit_and_that_is_told() {
        let mut walk = Walk::from(TransportType::Tcp, at(1));
        let crowd: Vec<Entry> = (1..=1000).map(referral).collect();
        assert_eq!(asked(&mut walk, |_| crowd.clone()).len(), SERVICES_MAX);
        assert_eq!(walk.not_followed().len(), SERVICES_MAX);
        assert!(walk.not_followed().iter().all(|why| matches!(why, NotFollowed::TooMany(_))));
    }

    #[test]
    fn what_is_elsewhere_or_too_much_is_told() {
        let mut walk = Walk::from(TransportType::Tcp, at(1));
        let other = Entry { transport: TransportType::Rdma, ..referral(2) };
        let mut page = vec![other.clone()];
        page.extend((1..=4100).map(|port| entry(SubsystemType::Nvme, "192.0.2.1", port)));
        assert_eq!(asked(&mut walk, |_| page.clone()), [1]);
        assert_eq!(walk.not_followed(), [NotFollowed::Elsewhere(Box::new(other))]);
        assert_eq!((walk.found().len() as u64, walk.left_out()), (ENTRIES_MAX, 4));
    }
}
