//! What `dev` shows of the cluster: who runs what. Pure: states come in, text goes out.

use std::{collections::BTreeMap, fmt::Write};

use evenkeel_proto::v1::{MasterState, ResourceState, WorkerState};

use crate::output::{self, Row, Tone};

/// So many characters of names stand in a row.
const NAMES_WIDTH: usize = 100;

/// One look at the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct View {
    pub(super) workers: Vec<WorkerState>,
    pub(super) masters: Vec<MasterState>,
    pub(super) resources: Vec<ResourceState>,
}

/// Who and what must be there before it is worth showing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) workers: usize,
    pub(super) resources: usize,
}

/// What makes two views differ for somebody who watches: who is there, who leads, and who runs what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Placement {
    leader: String,
    workers: BTreeMap<String, String>,
    resources: BTreeMap<String, Option<String>>,
}

impl View {
    /// Whether everybody is there and everything runs, or has said that it cannot.
    pub(super) fn is_settled(&self, expected: Expected) -> bool {
        let ready = self.workers.iter().filter(|w| w.phase == "ready").count();
        let moving = |state: &ResourceState| {
            state.worker.is_empty() || matches!(state.phase.as_str(), "pending" | "starting" | "stopping" | "unknown")
        };
        ready >= expected.workers && self.resources.len() >= expected.resources && !self.resources.iter().any(moving)
    }

    pub(super) fn placement(&self) -> Placement {
        let resources = self.resources.iter().filter_map(|state| {
            let name = state.resource.as_ref()?.name.clone();
            Some((name, Some(state.worker.clone()).filter(|w| !w.is_empty())))
        });
        Placement {
            leader: self.masters.iter().find(|m| m.leader).map(|m| m.id.clone()).unwrap_or_default(),
            workers: self.workers.iter().map(|w| (w.id.clone(), w.phase.clone())).collect(),
            resources: resources.collect(),
        }
    }

    /// The table of who runs what. `pids` has the processes that `dev` started and that still run.
    pub(super) fn table(&self, pids: &BTreeMap<String, u32>, colour: bool) -> String {
        let placement = self.placement();
        let mut runs = BTreeMap::<&str, Vec<&str>>::new();
        let mut nowhere = Vec::new();
        for (name, worker) in &placement.resources {
            match worker {
                Some(worker) => runs.entry(worker).or_default().push(name),
                None => nowhere.push(name.as_str()),
            }
        }
        let rows: Vec<Row> = self
            .workers
            .iter()
            .map(|worker| {
                let names = runs.get(worker.id.as_str()).map(Vec::as_slice).unwrap_or_default();
                let pid = pids.get(&worker.id).map_or_else(|| "-".to_owned(), ToString::to_string);
                let tone = if worker.phase == "ready" { Tone::Plain } else { Tone::Waiting };
                let cells = vec![worker.id.clone(), pid, worker.phase.clone(), worker.payload.to_string(), listed(names)];
                Row { cells, tone }
            })
            .collect();
        let mut text = output::table(&["WORKER", "PID", "PHASE", "PAYLOAD", "RUNS"], &rows, colour);
        if !nowhere.is_empty() {
            let _ = writeln!(text, "pending: {}{}", listed(&nowhere), self.why());
        }
        text
    }

    /// Who leads.
    pub(super) fn leader(&self) -> Option<&str> {
        self.masters.iter().find(|m| m.leader).map(|m| m.id.as_str())
    }

    /// The first reason that a pending resource gives.
    fn why(&self) -> String {
        let reason = self.resources.iter().find(|s| s.worker.is_empty() && !s.reason.is_empty()).map(|s| output::printable(&s.reason));
        reason.map(|reason| format!(" ({reason})")).unwrap_or_default()
    }
}

/// Names up to a width, and how many more there are.
fn listed(names: &[&str]) -> String {
    let mut text = String::new();
    for (index, name) in names.iter().enumerate() {
        if text.len() + name.len() > NAMES_WIDTH {
            let _ = write!(text, " and {} more", names.len() - index);
            break;
        }
        let _ = write!(text, "{}{name}", if index == 0 { "" } else { ", " });
    }
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use evenkeel_proto::v1::Resource;

    use super::*;

    fn resource(name: &str, worker: &str, phase: &str) -> ResourceState {
        let resource = Some(Resource { name: name.to_owned(), ..Resource::default() });
        ResourceState { resource, worker: worker.to_owned(), phase: phase.to_owned(), ..ResourceState::default() }
    }

    fn worker(id: &str, phase: &str, payload: u64) -> WorkerState {
        WorkerState { id: id.to_owned(), phase: phase.to_owned(), payload, ..WorkerState::default() }
    }

    #[test]
    fn the_table_reads_like_this() {
        let mut pending = resource("c", "", "pending");
        pending.reason = "no worker has gpu=true".to_owned();
        let view = View {
            workers: vec![worker("worker-1", "ready", 2), worker("worker-2", "lost", 0)],
            masters: Vec::new(),
            resources: vec![resource("a", "worker-1", "running"), resource("b", "worker-1", "running"), pending],
        };
        let expected = "\
WORKER     PID    PHASE   PAYLOAD   RUNS
worker-1   4711   ready         2   a, b
worker-2   -      lost          0   -
pending: c (no worker has gpu=true)
";
        assert_eq!(view.table(&BTreeMap::from([("worker-1".to_owned(), 4711)]), false), expected);
        assert!(!view.is_settled(Expected { workers: 1, resources: 3 }));
    }

    #[test]
    fn it_is_settled_when_all_are_there_and_all_runs() {
        let mut view = View {
            workers: vec![worker("worker-1", "ready", 1)],
            masters: Vec::new(),
            resources: vec![resource("a", "worker-1", "running")],
        };
        let settled = |view: &View, workers, resources| view.is_settled(Expected { workers, resources });
        assert!(settled(&view, 1, 1));
        assert!(!settled(&view, 2, 1));
        assert!(!settled(&view, 1, 2));
        view.resources[0].phase = "starting".to_owned();
        assert!(!settled(&view, 1, 1));
        view.resources[0].phase = "failed".to_owned();
        assert!(settled(&view, 1, 1));
    }

    #[test]
    fn a_phase_or_a_restart_of_work_is_no_other_placement() {
        let before = View {
            workers: vec![worker("worker-1", "ready", 1)],
            masters: Vec::new(),
            resources: vec![resource("a", "worker-1", "running")],
        };
        let mut after = before.clone();
        after.resources[0].phase = "backoff".to_owned();
        after.resources[0].restarts = 3;
        assert_eq!(before.placement(), after.placement());
        after.resources[0].worker = "worker-2".to_owned();
        assert_ne!(before.placement(), after.placement());
    }

    #[test]
    fn many_names_are_cut() {
        let names: Vec<String> = (0..300).map(|n| format!("many-{n:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let text = listed(&names);
        assert!(text.ends_with(" more") && text.len() < NAMES_WIDTH + 20, "{text}");
    }
}
