//! The small instances: where each begins, and what may go wrong in it.

use super::{
    model::Protocol,
    rules::{Rules, Weakening},
    settle::rest_of,
    state::{Budget, FIRST, Holds, Mode, NAMES, Process, State},
};

/// A small instance of the protocol: two workers, two masters.
#[derive(Clone, Copy, Debug)]
pub struct Instance {
    /// Its name.
    pub name: &'static str,
    /// D in ticks. G is longer by the drift that the budget allows.
    pub authority: u8,
    /// How many workers there are at first: one or two.
    pub workers: usize,
    /// How many resources are wanted.
    pub resources: usize,
    /// Writes and statuses may arrive late.
    pub late_messages: bool,
    /// It begins with nobody registered, not with everything running.
    pub from_nothing: bool,
    /// How the drivers of all workers hold the work of each name.
    pub holds: [Holds; NAMES],
    /// How a worker's drivers hold it after a downgrade.
    pub downgraded: Holds,
    /// What may go wrong, and what people may do.
    pub budget: Budget,
}

const NOTHING: Budget = Budget {
    revocations: 0,
    crashes: 0,
    freezes: 0,
    reboots: 0,
    twins: 0,
    depositions: 0,
    drift: 0,
    leaves: 0,
    moves: 0,
    deletes: 0,
    adds: 0,
    changes: 0,
    downgrades: 0,
};

const PLAIN: Instance = Instance {
    name: "",
    authority: 2,
    workers: 2,
    resources: 1,
    late_messages: false,
    from_nothing: false,
    holds: [Holds::Strict; NAMES],
    downgraded: Holds::Loose,
    budget: NOTHING,
};
const FENCED: Instance = Instance { holds: [Holds::Fenced; NAMES], ..PLAIN };
const LOOSE: Instance = Instance { holds: [Holds::Loose; NAMES], ..PLAIN };

/// Those that every test run goes through.
pub const SMALL: &[Instance] = &[
    Instance { name: "start", from_nothing: true, ..PLAIN },
    Instance { name: "revocation", budget: Budget { revocations: 1, drift: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "revocations", budget: Budget { revocations: 2, ..NOTHING }, ..PLAIN },
    Instance { name: "move", late_messages: true, budget: Budget { moves: 1, crashes: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "leader", late_messages: true, budget: Budget { depositions: 1, moves: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "takeover", budget: Budget { revocations: 1, depositions: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "first leader", from_nothing: true, budget: Budget { depositions: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "twin", budget: Budget { revocations: 1, twins: 1, moves: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "freeze", budget: Budget { freezes: 1, revocations: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "reboot", budget: Budget { reboots: 1, moves: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "leave", budget: Budget { leaves: 1, reboots: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "delete", budget: Budget { deletes: 1, adds: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "change", workers: 1, late_messages: true, budget: Budget { changes: 2, crashes: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "change and move", late_messages: true, budget: Budget { changes: 1, moves: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "change and loss", budget: Budget { changes: 1, revocations: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "fenced", budget: Budget { revocations: 1, twins: 1, ..NOTHING }, ..FENCED },
    Instance { name: "fenced crash", budget: Budget { crashes: 1, freezes: 1, ..NOTHING }, ..FENCED },
    Instance { name: "loose", budget: Budget { crashes: 1, moves: 1, ..NOTHING }, ..LOOSE },
    Instance { name: "loose loss", budget: Budget { revocations: 1, crashes: 1, ..NOTHING }, ..LOOSE },
    Instance { name: "loose freeze", budget: Budget { freezes: 1, reboots: 1, ..NOTHING }, ..LOOSE },
    Instance { name: "loose leave", budget: Budget { leaves: 1, crashes: 1, ..NOTHING }, ..LOOSE },
    Instance { name: "downgrade", budget: Budget { downgrades: 1, revocations: 1, ..NOTHING }, ..PLAIN },
];

/// Those that take minutes.
pub const LARGE: &[Instance] = &[
    Instance { name: "longer spans", authority: 3, budget: Budget { revocations: 1, freezes: 1, drift: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "late twin", late_messages: true, budget: Budget { revocations: 1, twins: 1, moves: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "two resources", resources: 2, budget: Budget { revocations: 1, moves: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "worker and leader", budget: Budget { revocations: 1, depositions: 1, moves: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "late changes", late_messages: true, budget: Budget { changes: 2, crashes: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "changes and loss", budget: Budget { changes: 2, revocations: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "changes and twin", budget: Budget { changes: 1, revocations: 1, twins: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "change and leader", budget: Budget { changes: 1, depositions: 1, moves: 1, ..NOTHING }, ..PLAIN },
    Instance { name: "change of fenced", budget: Budget { changes: 1, revocations: 1, ..NOTHING }, ..FENCED },
    Instance { name: "change of loose", budget: Budget { changes: 1, crashes: 1, ..NOTHING }, ..LOOSE },
    Instance { name: "late fenced twin", late_messages: true, budget: Budget { revocations: 1, twins: 1, moves: 1, ..NOTHING }, ..FENCED },
    Instance { name: "fenced and leader", budget: Budget { revocations: 1, depositions: 1, ..NOTHING }, ..FENCED },
    Instance { name: "loose and leader", budget: Budget { crashes: 1, depositions: 1, revocations: 1, ..NOTHING }, ..LOOSE },
    Instance { name: "loose and moved", late_messages: true, budget: Budget { freezes: 1, moves: 1, reboots: 1, ..NOTHING }, ..LOOSE },
    Instance {
        name: "fenced and loose",
        resources: 2,
        holds: [Holds::Fenced, Holds::Loose],
        budget: Budget { revocations: 1, crashes: 1, ..NOTHING },
        ..PLAIN
    },
    Instance { name: "losses", budget: Budget { revocations: 2, crashes: 1, drift: 1, ..NOTHING }, ..PLAIN },
];

impl Instance {
    /// The model of it, with these rules weakened and these properties checked.
    #[must_use]
    pub fn protocol(&self, weakened: &'static [Weakening], checks: &[&'static str]) -> Protocol {
        let wait = self.authority + self.budget.drift - u8::from(weakened.contains(&Weakening::WaitTooShort));
        let rules = Rules {
            authority: self.authority,
            wait,
            late_messages: self.late_messages,
            changes: self.budget.changes > 0,
            downgraded: self.downgraded,
            weakened,
        };
        let sound = Rules { weakened: &[], ..rules };
        let mut begin = State::default();
        begin.etcd.wanted = std::array::from_fn(|name| if name < self.resources { FIRST } else { 0 });
        // Somebody leads in every instance.
        begin = rest_of(begin, &sound);
        for (at, process) in begin.processes.iter_mut().take(self.workers).enumerate() {
            *process = Process { mode: Mode::On, origin: u8::from(at == 1) + 1, holds: self.holds, ..Process::default() };
        }
        if !self.from_nothing {
            begin = rest_of(begin, &sound);
        }
        begin.budget = self.budget;
        Protocol::new(rules, begin, checks.to_vec())
    }
}
