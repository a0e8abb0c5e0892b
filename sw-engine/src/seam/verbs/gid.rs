//! Which address of a port a connection is made from.
//!
//! A port has several: a packet with the wrong kind of GID goes nowhere, and the failure looks like a dead peer.

use core::fmt;

use crate::error::{Error, ErrorKind, Verb};

/// What kind of address a GID is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GidKind {
    /// InfiniBand: the port's own.
    InfiniBand,
    /// RoCE v1: not routed.
    RoceV1,
    /// RoCE v2: over UDP and IP.
    RoceV2,
}

/// An entry of a port's GID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gid {
    /// Its place in the table.
    pub index: u32,
    /// What kind it is.
    pub kind: GidKind,
    /// The address.
    pub raw: [u8; 16],
}

impl Gid {
    /// Whether there is an address in it: tables have empty entries.
    fn is_set(&self) -> bool {
        self.raw != [0; 16]
    }

    /// An IPv4 address as IPv6 writes it (`::ffff:a.b.c.d`).
    fn is_ipv4(&self) -> bool {
        self.raw[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]
    }

    /// `fe80::/10`: reaches the link only.
    fn is_link_local(&self) -> bool {
        self.raw[0] == 0xFE && self.raw[1] & 0xC0 == 0x80
    }

    /// The larger, the better.
    fn rank(&self) -> u8 {
        match (self.kind, self.is_ipv4(), self.is_link_local()) {
            (GidKind::RoceV2, true, _) => 5,
            (GidKind::RoceV2, false, false) => 4,
            (GidKind::InfiniBand, ..) => 3,
            (GidKind::RoceV2, false, true) => 2,
            (GidKind::RoceV1, ..) => 1,
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gid {} {:?} {}", self.index, self.kind, std::net::Ipv6Addr::from(self.raw))
    }
}

/// Who chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GidChoice {
    /// The rule: RoCE v2 with IPv4 first, then RoCE v2 that is routed, InfiniBand, RoCE v2 of the link, RoCE v1; the first of each in the table.
    #[default]
    Rule,
    /// Somebody who knows: this index.
    Index(u32),
}

/// The GID to use.
///
/// # Errors
/// `NoDevice`: the table has none, or not the one that was named; the text lists what there is.
pub fn choose_gid(table: &[Gid], choice: GidChoice) -> Result<Gid, Error> {
    let set = || table.iter().copied().filter(Gid::is_set);
    let found = match choice {
        GidChoice::Index(index) => set().find(|gid| gid.index == index),
        // The last of equals wins in `max_by_key`: from behind it is the first.
        GidChoice::Rule => {
            let mut all: Vec<Gid> = set().collect();
            all.reverse();
            all.into_iter().max_by_key(Gid::rank)
        }
    };
    found.ok_or_else(|| {
        let there: Vec<String> = set().map(|gid| gid.to_string()).collect();
        let error = Error::new(ErrorKind::NoDevice, Verb::Open).at("gid table");
        match choice {
            GidChoice::Index(index) => {
                error.detail(format!("no address at index {index}; there are: {}", there.join(", ")))
            }
            GidChoice::Rule => error.detail("the port has no address").remedy("give its network device an address"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u32, kind: GidKind, text: &str) -> Gid {
        Gid { index, kind, raw: text.parse::<std::net::Ipv6Addr>().unwrap().octets() }
    }

    #[test]
    fn a_routed_address_of_ipv4_is_taken_first_unless_somebody_says_otherwise() {
        // As rxe has it in a guest: its link-local pair first, then the IPv4 one.
        let table = [
            gid(0, GidKind::RoceV1, "fe80::1"),
            gid(1, GidKind::RoceV2, "fe80::1"),
            gid(2, GidKind::RoceV1, "::ffff:10.0.0.1"),
            gid(3, GidKind::RoceV2, "::ffff:10.0.0.1"),
            gid(4, GidKind::RoceV2, "::ffff:10.0.0.2"),
            gid(5, GidKind::RoceV2, "::"),
        ];
        assert_eq!(choose_gid(&table, GidChoice::Rule).unwrap().index, 3);
        assert_eq!(choose_gid(&table[..2], GidChoice::Rule).unwrap().index, 1);
        assert_eq!(choose_gid(&table, GidChoice::Index(0)).unwrap().index, 0);
        let error = choose_gid(&table, GidChoice::Index(5)).unwrap_err();
        assert!(error.kind() == ErrorKind::NoDevice && error.to_string().contains("10.0.0.1"), "{error}");
        assert!(choose_gid(&table[5..], GidChoice::Rule).is_err());
    }
}
