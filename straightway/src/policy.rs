//! Policies and destinations as people write them.

use std::{fmt, str::FromStr};

use sw_engine::{Error, ErrorKind, Landing, Policy, RouteMatch, Verb};

/// Where bytes shall land.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Destination {
    /// Memory of this process.
    #[default]
    Host,
    /// Memory of GPU n, counted as the driver counts.
    Gpu(u16),
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let gpu = text.strip_prefix("gpu").and_then(|ordinal| ordinal.parse().ok());
        match (text, gpu) {
            ("host", _) => Ok(Destination::Host),
            (_, Some(ordinal)) => Ok(Destination::Gpu(ordinal)),
            _ => Err(Error::new(ErrorKind::ApiMisuse, Verb::Plan)
                .detail(format!("{text:?} is no destination"))
                .remedy("write host, gpu0, gpu1, …")),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Host => f.write_str("host"),
            Destination::Gpu(ordinal) => write!(f, "gpu{ordinal}"),
        }
    }
}

/// Parses `any`, `prefer=ROUTE`, `require=ROUTE` or `require-core=ROUTE`, where ROUTE is a landing (`dma`, `kernel-copy`,
/// `staged`), a transport (`io_uring`, `preadv2`), or both with a slash (`io_uring/dma`).
///
/// `require` means every byte; `require-core` lets the ragged ends of an operation bounce, at most two blocks.
///
/// # Errors
/// `ApiMisuse` with what may be written.
pub fn parse_policy(text: &str) -> Result<Policy, Error> {
    let wrong = || {
        Error::new(ErrorKind::ApiMisuse, Verb::Plan)
            .detail(format!("{text:?} is no policy"))
            .remedy("write any, prefer=ROUTE, require=ROUTE or require-core=ROUTE, with a route such as dma, staged or io_uring/dma")
    };
    match text.split_once('=') {
        None if text == "any" => Ok(Policy::Any),
        Some(("prefer", route)) => route_match(route).map(Policy::Prefer).ok_or_else(wrong),
        Some(("require", route)) => route_match(route).map(Policy::Require).ok_or_else(wrong),
        Some(("require-core", route)) => route_match(route).map(Policy::RequireCore).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

fn route_match(text: &str) -> Option<RouteMatch> {
    let landing =
        |name: &str| [Landing::Dma, Landing::KernelCopy, Landing::Staged].into_iter().find(|l| l.name() == name);
    let transport = |name: &str| crate::backends::TRANSPORTS.into_iter().find(|known| *known == name);
    match text.split_once('/') {
        Some((first, second)) => {
            Some(RouteMatch { transport: Some(transport(first)?), landing: Some(landing(second)?) })
        }
        None => match landing(text) {
            Some(landing) => Some(RouteMatch { transport: None, landing: Some(landing) }),
            None => Some(RouteMatch { transport: Some(transport(text)?), landing: None }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_written_as_documented() {
        let dma = RouteMatch { transport: None, landing: Some(Landing::Dma) };
        assert_eq!(parse_policy("any").unwrap(), Policy::Any);
        assert_eq!(parse_policy("require=dma").unwrap(), Policy::Require(dma));
        assert_eq!(parse_policy("require-core=dma").unwrap(), Policy::RequireCore(dma));
        let both = RouteMatch { transport: Some("io_uring"), ..dma };
        assert_eq!(parse_policy("prefer=io_uring/dma").unwrap(), Policy::Prefer(both));
        for wrong in ["", "require", "require=", "require=fast", "any=dma", "prefer=io_uring/", "require=dma/io_uring"]
        {
            assert_eq!(parse_policy(wrong).unwrap_err().kind(), ErrorKind::ApiMisuse, "{wrong:?}");
        }
    }

    #[test]
    fn destinations_are_host_or_a_gpu() {
        assert_eq!("gpu12".parse::<Destination>().unwrap(), Destination::Gpu(12));
        assert_eq!(Destination::Gpu(3).to_string().parse::<Destination>().unwrap(), Destination::Gpu(3));
        for wrong in ["", "gpu", "gpu-1", "gpu99999", "cpu"] {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong:?}");
        }
    }
}
