//! PCI configuration space: the two facts that peer-to-peer routing depends on.
//!
//! Layouts: PCI Express Base Specification 5.0 §7.5.3 "PCI Express Capability Structure", §7.6.3 "PCI Express Extended
//! Capability Header", §7.7.8 "Access Control Services Extended Capability". Without privilege the kernel gives the
//! first 64 bytes only (linux `drivers/pci/pci-sysfs.c`, `pci_read_config`).

/// Bytes of the configuration space of a conventional function, and where extended capabilities begin.
const CONVENTIONAL: usize = 256;
/// Bytes of the configuration space of a PCI Express function.
const EXTENDED: usize = 4096;
/// Capabilities in one list at most: each has 4 bytes at least in the lower part, 8 in the extended one.
const CAPABILITIES_MAX: usize = (EXTENDED - CONVENTIONAL) / 8;

/// Whether a port sends peer-to-peer requests up to the root complex instead of across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// It does not, or has no such ability.
    No,
    /// It does.
    Yes,
    /// Not readable without privilege.
    Unknown,
}

/// What `config` says, of which `readable` bytes could be read and which has `size` bytes in all.
pub(crate) fn redirect(readable: &[u8], size: u64) -> Redirect {
    if size <= CONVENTIONAL as u64 {
        return Redirect::No;
    }
    if readable.len() < EXTENDED {
        return Redirect::Unknown;
    }
    match extended(readable, ACS) {
        None => Redirect::No,
        Some(at) => match word(readable, at + 6) {
            // linux drivers/pci/p2pdma.c, pci_bridge_has_acs_redir: request redirect, completion redirect, egress control.
            Some(control) if control & (1 << 2 | 1 << 3 | 1 << 5) != 0 => Redirect::Yes,
            Some(_) => Redirect::No,
            None => Redirect::Unknown,
        },
    }
}

/// Extended capability "Access Control Services".
const ACS: u32 = 0x000D;

fn extended(config: &[u8], id: u32) -> Option<usize> {
    let mut at = CONVENTIONAL;
    for _ in 0..CAPABILITIES_MAX {
        let header = double(config, at)?;
        if header == 0 || header == u32::MAX {
            return None;
        }
        if header & 0xffff == id {
            return Some(at);
        }
        at = sw_mem::index(u64::from(header >> 20)) & !3;
        if at < CONVENTIONAL {
            return None;
        }
    }
    None
}

/// Whether it is a root port of a PCI Express root complex; none if that cannot be read.
pub(crate) fn is_root_port(config: &[u8]) -> Option<bool> {
    const EXPRESS: u8 = 0x10;
    const STATUS_HAS_LIST: u16 = 1 << 4;
    if word(config, 6)? & STATUS_HAS_LIST == 0 {
        return Some(false);
    }
    let mut at = usize::from(*config.get(0x34)?) & !3;
    for _ in 0..CAPABILITIES_MAX {
        if at == 0 {
            return Some(false);
        }
        let (id, next) = (*config.get(at)?, *config.get(at + 1)?);
        if id == EXPRESS {
            // Bits 7:4 of the capabilities register are the type of the port; 4 is a root port.
            return Some(word(config, at + 2)? >> 4 & 0xf == 4);
        }
        at = usize::from(next) & !3;
    }
    Some(false)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn double(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A configuration space with a PCI Express capability of port type `kind` and, if given, an ACS control word.
    pub(crate) fn space(kind: u16, control: Option<u16>) -> Vec<u8> {
        let mut config = vec![0; EXTENDED];
        config[6] = 1 << 4;
        config[0x34] = 0x40;
        // Some other capability first, so that the list is walked.
        config[0x40..0x42].copy_from_slice(&[0x01, 0x60]);
        config[0x60..0x62].copy_from_slice(&[0x10, 0x00]);
        config[0x62..0x64].copy_from_slice(&(kind << 4 | 2).to_le_bytes());
        // Advanced error reporting, then ACS.
        let next = if control.is_some() { 0x148u32 } else { 0 };
        config[0x100..0x104].copy_from_slice(&(next << 20 | 2 << 16 | 0x0001).to_le_bytes());
        if let Some(control) = control {
            config[0x148..0x14c].copy_from_slice(&(1u32 << 16 | ACS).to_le_bytes());
            config[0x14e..0x150].copy_from_slice(&control.to_le_bytes());
        }
        config
    }

    #[test]
    fn each_redirecting_bit_redirects_and_the_others_do_not() {
        for (control, want) in
            [(0x00, Redirect::No), (0x04, Redirect::Yes), (0x08, Redirect::Yes), (0x20, Redirect::Yes)]
        {
            assert_eq!(redirect(&space(6, Some(control)), 4096), want, "{control:#x}");
        }
        // Source validation, translation blocking, upstream forwarding, direct translated.
        assert_eq!(redirect(&space(6, Some(0x53)), 4096), Redirect::No);
        assert_eq!(redirect(&space(6, None), 4096), Redirect::No);
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_what_is_not_there_is_no() {
        let config = space(6, Some(0x04));
        assert_eq!(redirect(&config[..64], 4096), Redirect::Unknown);
        assert_eq!(redirect(&config[..64], 256), Redirect::No, "a conventional function has no extended capabilities");
        assert_eq!(is_root_port(&config[..64]), None);
        assert_eq!(redirect(&[0xff; EXTENDED], 4096), Redirect::No, "a function that is gone");
    }

    #[test]
    fn lists_that_never_end_do() {
        let mut config = space(4, None);
        config[0x100..0x104].copy_from_slice(&(0x100u32 << 20 | 1).to_le_bytes());
        assert_eq!(redirect(&config, 4096), Redirect::No);
        config[0x40..0x42].copy_from_slice(&[0x01, 0x40]);
        assert_eq!(is_root_port(&config), Some(false));
    }

    #[test]
    fn a_root_port_is_told_from_other_ports() {
        assert_eq!(is_root_port(&space(4, None)), Some(true));
        assert_eq!(is_root_port(&space(6, None)), Some(false));
        assert_eq!(is_root_port(&[0; 64]), Some(false));
    }
}
