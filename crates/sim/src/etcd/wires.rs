//! The network between one caller and the members: what a cut holds up, and when connections break.
//!
//! In the wheel it is the part of the model of etcd that faces the callers. A cut loses nothing by itself, as TCP sends again: what was
//! under way goes on when the wire is whole, unless the connection was given up meanwhile.

use std::time::Duration;

use super::{
    cluster::PINGS,
    core::{Core, Event},
};

/// A way over a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the caller to etcd: requests do not arrive.
    ToEtcd,
    /// From etcd to the caller: requests are carried out, and their answers do not arrive.
    FromEtcd,
    /// Both ways.
    Both,
}

/// The network of one caller.
#[derive(Clone, Debug, Default)]
pub(super) struct Wire {
    pub(super) name: String,
    pub(super) cut_to_etcd: bool,
    pub(super) cut_from_etcd: bool,
    cuts: u64,
    pub(super) delay: Duration,
    pub(super) loses_next_answer: bool,
    /// For each member the process that a connection leads to.
    connected: Vec<Option<u64>>,
    /// For each member how often the connections to it have broken.
    pub(super) broken: Vec<u64>,
}

impl Wire {
    pub(super) fn new(name: &str, members: usize) -> Self {
        Self { name: name.to_owned(), connected: vec![None; members], broken: vec![0; members], ..Self::default() }
    }

    pub(super) fn is_whole(&self) -> bool {
        !self.cut_to_etcd && !self.cut_from_etcd
    }

    pub(super) fn is_connected(&self, member: usize, incarnation: u64) -> bool {
        self.connected[member] == Some(incarnation)
    }

    pub(super) fn connect(&mut self, member: usize, incarnation: u64) {
        self.connected[member] = Some(incarnation);
    }

    pub(super) fn forget(&mut self, member: usize) {
        self.connected[member] = None;
    }
}

impl Core {
    pub(super) fn cut(&mut self, wire: usize, direction: Direction) {
        let state = &mut self.wires[wire];
        state.cut_to_etcd |= direction != Direction::FromEtcd;
        state.cut_from_etcd |= direction != Direction::ToEtcd;
        state.cuts += 1;
        let cut = state.cuts;
        let delay = self.dice.between(PINGS.0, PINGS.1);
        self.after(delay, Event::Silent { wire, cut });
    }

    pub(super) fn heal(&mut self, wire: usize) {
        let state = &mut self.wires[wire];
        (state.cut_to_etcd, state.cut_from_etcd) = (false, false);
        state.cuts += 1;
        self.wire_goes_on(wire);
        self.watches_go_on(|watch| watch.wire == wire);
        for member in 0..self.cluster.members.len() {
            let incarnation = self.cluster.members[member].incarnation;
            // Of a member that has ended meanwhile the system tells as soon as it can.
            if self.cluster.is_dead(member) || self.wires[wire].connected[member].is_some_and(|process| process != incarnation) {
                self.break_connections(wire, member);
            }
        }
    }

    /// A cut has lasted for as long as connections live.
    pub(super) fn silent(&mut self, wire: usize, cut: u64) {
        if self.wires[wire].cuts == cut && !self.wires[wire].is_whole() {
            for member in 0..self.cluster.members.len() {
                self.break_connections(wire, member);
            }
        }
    }

    /// All that runs over a wire to a member ends.
    pub(super) fn break_connections(&mut self, wire: usize, member: usize) {
        self.wires[wire].forget(member);
        self.wires[wire].broken[member] += 1;
        self.break_calls(wire, member);
        self.end_watches(|watch| watch.wire == wire && watch.member == member, "connection reset by peer");
    }
}
