//! Which ports `dev` uses: the usual where they are free, else the next above. Pure: what is free is asked through a function.
//!
//! Masters have 8081, 8082, ... and 9091, 9092, ...; workers have 8181, 8182, ... and 9191, 9192, ..., since a worker's usual 8081 and
//! 9091 would be a master's.

use std::{collections::BTreeSet, net::TcpListener};

/// How far above the usual port a free one is looked for.
const REACH: u16 = 500;

/// The ports of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) http: u16,
    pub(super) grpc: u16,
}

/// The ports of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) masters: Vec<Ports>,
    pub(super) workers: Vec<Ports>,
}

/// Chooses for so many masters and workers; none twice.
pub(super) fn choose(masters: u16, workers: u16, is_free: impl Fn(u16) -> bool) -> Option<Chosen> {
    let mut taken = BTreeSet::new();
    let mut next = |from: u16| {
        let port = (from..from + REACH).find(|port| !taken.contains(port) && is_free(*port))?;
        taken.insert(port);
        Some(port)
    };
    let mut of = |count: u16, http: u16, grpc: u16| -> Option<Vec<Ports>> {
        (1..=count).map(|n| Some(Ports { http: next(http + n)?, grpc: next(grpc + n)? })).collect()
    };
    Some(Chosen { masters: of(masters, 8080, 9090)?, workers: of(workers, 8180, 9190)? })
}

/// Whether a port of this host is free now.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(ports: &[Ports]) -> Vec<(u16, u16)> {
        ports.iter().map(|p| (p.http, p.grpc)).collect()
    }

    #[test]
    fn the_usual_ports_where_they_are_free() {
        let chosen = choose(2, 3, |_| true).expect("free");
        assert_eq!(pairs(&chosen.masters), [(8081, 9091), (8082, 9092)]);
        assert_eq!(pairs(&chosen.workers), [(8181, 9191), (8182, 9192), (8183, 9193)]);
    }

    #[test]
    fn the_next_above_where_they_are_taken() {
        let chosen = choose(2, 1, |port| port != 8081 && port != 9092).expect("free");
        assert_eq!(pairs(&chosen.masters), [(8082, 9091), (8083, 9093)]);
        assert_eq!(choose(1, 1, |_| false), None);
    }

    #[test]
    fn none_is_chosen_twice() {
        let chosen = choose(9, 50, |port| port % 3 == 0).expect("free");
        let all: Vec<u16> = chosen.masters.iter().chain(&chosen.workers).flat_map(|p| [p.http, p.grpc]).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
