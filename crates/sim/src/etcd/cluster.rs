//! The members: who lives, who leads, who knows what.
//!
//! In the wheel it is the part of the model of etcd that stands for its consensus. There is one store, so nothing can contradict; what is
//! modelled is when nothing commits, what becomes of requests then, and what members that are cut off or behind still say.

use std::time::Duration;

use evenkeel_store::Revision;

use super::core::{Core, Event};

/// etcd's election timeout, by default; an election takes one to two of them.
const ELECTION: Duration = Duration::from_secs(1);
/// A member ends its streams when it has had no leader three times in a row, once an election timeout.
const STREAMS_LAST: Duration = Duration::from_secs(3);
/// A connection over which nothing is answered is given up by the client's pings.
pub(super) const PINGS: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(8));

/// All members, and who leads them.
pub(super) struct Cluster {
    pub(super) members: Vec<Member>,
    leader: Option<usize>,
    /// Nothing commits.
    stalled: bool,
    /// An election is planned.
    electing: bool,
    elections: u64,
}

/// One member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) endpoint: String,
    life: Life,
    /// It does not reach the others, nor they it.
    isolated: bool,
    /// How far it is behind.
    pub(super) lag: Duration,
    /// What it has seen.
    pub(super) applied: Revision,
    /// Its processes, counted.
    pub(super) incarnation: u64,
    freezes: u64,
    /// Since when it has not been connected with a leader, and when it notices.
    outage: Option<Outage>,
    outages: u64,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    noticed: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Runs,
    Frozen,
    Dead,
}

impl Cluster {
    pub(super) fn new(members: usize, applied: Revision) -> Self {
        let member = |n: usize| Member {
            endpoint: format!("http://etcd-{}:2379", n + 1),
            life: Life::Runs,
            isolated: false,
            lag: Duration::ZERO,
            applied,
            incarnation: 0,
            freezes: 0,
            outage: None,
            outages: 0,
        };
        Self { members: (0..members).map(member).collect(), leader: Some(0), stalled: false, electing: false, elections: 0 }
    }

    pub(super) fn leader(&self) -> Option<usize> {
        self.leader
    }

    /// Whether anything can be agreed on.
    pub(super) fn commits(&self) -> bool {
        !self.stalled
    }

    /// Whether anything can be agreed on through this member.
    pub(super) fn commits_for(&self, member: usize) -> bool {
        !self.stalled && self.takes_part(member)
    }

    pub(super) fn is_dead(&self, member: usize) -> bool {
        self.members[member].life == Life::Dead
    }

    pub(super) fn is_frozen(&self, member: usize) -> bool {
        self.members[member].life == Life::Frozen
    }

    fn takes_part(&self, member: usize) -> bool {
        self.members[member].life == Life::Runs && !self.members[member].isolated
    }

    fn has_quorum(&self) -> bool {
        (0..self.members.len()).filter(|member| self.takes_part(*member)).count() > self.members.len() / 2
    }
}

impl Core {
    pub(super) fn endpoint(&self, member: usize) -> String {
        self.cluster.members[member].endpoint.clone()
    }

    /// Whether the member knows that it has no leader.
    pub(super) fn is_leaderless(&self, member: usize) -> bool {
        self.cluster.members[member].outage.is_some_and(|outage| outage.noticed <= self.now())
    }

    pub(super) fn freeze(&mut self, member: usize) {
        if self.cluster.members[member].life != Life::Runs {
            return;
        }
        self.cluster.members[member].life = Life::Frozen;
        self.cluster.members[member].freezes += 1;
        let delay = self.dice.between(PINGS.0, PINGS.1);
        self.after(delay, Event::Unanswered { member, freeze: self.cluster.members[member].freezes });
        self.review();
    }

    pub(super) fn thaw(&mut self, member: usize) {
        if self.cluster.members[member].life != Life::Frozen {
            return;
        }
        self.cluster.members[member].life = Life::Runs;
        // Its timers have stood still: an outage that it knew of begins anew for it.
        self.cluster.members[member].outage = None;
        self.review();
        self.rejoin_history(member);
        self.read_unread(member);
        self.watches_go_on(|watch| watch.member == member);
    }

    pub(super) fn kill(&mut self, member: usize) {
        if self.cluster.is_dead(member) {
            return;
        }
        self.cluster.members[member].life = Life::Dead;
        self.cluster.members[member].outage = None;
        if self.cluster.leader == Some(member) {
            self.cluster.leader = None;
        }
        self.forget_calls_at(member);
        for wire in 0..self.wires.len() {
            if !self.wires[wire].cut_from_etcd {
                self.break_connections(wire, member);
            }
        }
        self.review();
    }

    pub(super) fn restart(&mut self, member: usize) {
        if !self.cluster.is_dead(member) {
            return;
        }
        self.cluster.members[member].incarnation += 1;
        self.cluster.members[member].life = Life::Runs;
        self.review();
        self.rejoin_history(member);
    }

    pub(super) fn isolate(&mut self, member: usize, isolated: bool) {
        self.cluster.members[member].isolated = isolated;
        self.review();
        self.rejoin_history(member);
    }

    pub(super) fn lag(&mut self, member: usize, lag: Duration) {
        self.cluster.members[member].lag = lag;
        self.rejoin_history(member);
    }

    /// Nothing has come from a frozen member for as long as connections live.
    pub(super) fn unanswered(&mut self, member: usize, freeze: u64) {
        if self.cluster.is_frozen(member) && self.cluster.members[member].freezes == freeze {
            for wire in 0..self.wires.len() {
                self.break_connections(wire, member);
            }
        }
    }

    /// Draws the consequences of a change in who takes part.
    fn review(&mut self) {
        let goes_on = self.cluster.leader.is_some_and(|leader| self.cluster.takes_part(leader)) && self.cluster.has_quorum();
        let was_stalled = std::mem::replace(&mut self.cluster.stalled, !goes_on);
        if goes_on {
            self.cluster.electing = false;
        } else if !was_stalled || (!self.cluster.electing && self.cluster.has_quorum()) {
            self.plan_election();
        }
        self.review_outages();
        if goes_on && was_stalled {
            self.resume(false);
        } else if goes_on {
            for member in 0..self.cluster.members.len() {
                if self.cluster.takes_part(member) {
                    self.go_on(member, true);
                }
            }
        }
    }

    fn plan_election(&mut self) {
        self.cluster.electing = true;
        self.cluster.elections += 1;
        let delay = self.dice.between(ELECTION, 2 * ELECTION);
        self.after(delay, Event::Elect(self.cluster.elections));
    }

    pub(super) fn elect(&mut self, election: u64) {
        if !self.cluster.electing || election != self.cluster.elections {
            return;
        }
        self.cluster.electing = false;
        if !self.cluster.has_quorum() {
            // A leader that hears of no quorum steps down; one whose clock stands still does not.
            self.cluster.leader = self.cluster.leader.filter(|leader| self.cluster.is_frozen(*leader));
            return;
        }
        let able: Vec<usize> = (0..self.cluster.members.len()).filter(|member| self.cluster.takes_part(*member)).collect();
        let chosen = self.dice.below(able.len() as u64);
        self.cluster.leader = usize::try_from(chosen).ok().map(|chosen| able[chosen]);
        self.cluster.stalled = false;
        let now = self.now();
        self.store.extend_all(ELECTION, now);
        self.review_outages();
        self.resume(true);
    }

    /// Things commit again.
    fn resume(&mut self, new_leader: bool) {
        if new_leader {
            self.unpark();
        }
        let leases: Vec<i64> = self.store.leases().collect();
        for lease in leases {
            self.arm(lease);
        }
        for member in 0..self.cluster.members.len() {
            if self.cluster.takes_part(member) {
                self.go_on(member, new_leader);
            }
        }
    }

    /// Who has lost the leader notices after a while; who has it again knows at once.
    fn review_outages(&mut self) {
        let now = self.now();
        for member in 0..self.cluster.members.len() {
            if self.cluster.commits_for(member) || self.cluster.members[member].life != Life::Runs {
                self.cluster.members[member].outage = None;
            } else if self.cluster.members[member].outage.is_none() {
                let noticed = self.dice.between(ELECTION, 2 * ELECTION);
                let state = &mut self.cluster.members[member];
                state.outage = Some(Outage { noticed: now + noticed });
                state.outages += 1;
                let outage = state.outages;
                self.after(noticed + STREAMS_LAST, Event::EndStreams { member, outage });
            }
        }
    }

    /// A member that still has no leader ends its streams, which require one.
    pub(super) fn end_streams(&mut self, member: usize, outage: u64) {
        let state = &self.cluster.members[member];
        if state.outage.is_some() && state.outages == outage {
            let cut: Vec<bool> = self.wires.iter().map(|wire| wire.cut_from_etcd).collect();
            self.end_watches(|watch| watch.member == member && !cut[watch.wire], "etcdserver: no leader");
            self.end_renewals(member);
        }
    }

    /// The members that take part learn of a new revision.
    pub(super) fn members_apply(&mut self, revision: Revision) {
        for member in 0..self.cluster.members.len() {
            if !self.cluster.takes_part(member) {
                continue;
            }
            let lag = self.cluster.members[member].lag;
            if lag.is_zero() {
                self.cluster.members[member].applied = revision;
            } else {
                self.after(lag, Event::CatchUp { member, to: revision });
            }
        }
    }

    pub(super) fn catch_up(&mut self, member: usize, to: Revision) {
        if self.cluster.takes_part(member) && self.cluster.members[member].applied < to {
            self.cluster.members[member].applied = to;
            self.watches_go_on(|watch| watch.member == member);
        }
    }

    /// A member that takes part again catches up with the others.
    fn rejoin_history(&mut self, member: usize) {
        let (shortest, longest) = self.settings.latency;
        let delay = self.dice.between(shortest, longest * 20);
        let to = self.store.revision();
        self.after(delay, Event::CatchUp { member, to });
    }
}
