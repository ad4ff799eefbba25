//! What work uses, for `-o wide`: asked of a master, which asks the workers. What is not known is a dash, and the reason goes to stderr.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use evenkeel_proto::v1::{ListUsageRequest, ResourceState, WorkerUsage};

use super::{ClientError, session::Session};
use crate::output::{self, printable};

/// The columns that it fills.
pub(super) const HEADERS: [&str; 3] = ["CPU", "MEMORY", "PROCESSES"];
/// Up to so many workers are asked for one by one; for more, all are, page by page.
const FEW: usize = 8;
/// So many reasons are told.
const REASONS: usize = 5;

/// What is known, by worker and resource.
#[derive(Debug, Default)]
pub(super) struct Usage {
    workers: BTreeMap<String, [String; 3]>,
    resources: BTreeMap<(String, String), [String; 3]>,
}

/// Of these resources.
pub(super) async fn of_resources(session: &Session, states: &[ResourceState]) -> Usage {
    // What has finished is nowhere, and shows only where it ran last.
    let states: Vec<&ResourceState> = states.iter().filter(|state| state.epoch != 0 && !state.worker.is_empty()).collect();
    let workers: BTreeSet<&str> = states.iter().map(|state| state.worker.as_str()).collect();
    let ask = |worker: &str| ListUsageRequest { worker: worker.to_owned(), ..ListUsageRequest::default() };
    let mut usage = Usage::default();
    match states.as_slice() {
        _ if workers.is_empty() => {}
        [only] => {
            let name = only.resource.as_ref().map(|resource| resource.name.clone()).unwrap_or_default();
            usage.fetch(session, ListUsageRequest { name, ..ListUsageRequest::default() }).await;
        }
        _ if workers.len() > FEW => usage.fetch(session, ask("")).await,
        _ => {
            // One that hangs holds up no other.
            let asked = workers.into_iter().map(|worker| pages(session, ask(worker)));
            usage.take_all(futures::future::join_all(asked).await.into_iter().flatten().collect());
        }
    }
    usage
}

/// Of all workers.
pub(super) async fn of_workers(session: &Session) -> Usage {
    let mut usage = Usage::default();
    usage.fetch(session, ListUsageRequest { only_totals: true, ..ListUsageRequest::default() }).await;
    usage
}

/// All that is answered, page by page; where it ends early, why.
async fn pages(session: &Session, mut request: ListUsageRequest) -> Vec<Result<WorkerUsage, ClientError>> {
    let mut said = Vec::new();
    loop {
        let answer = session.call("usage", request.clone(), async |client, request| client.list_usage(request).await).await;
        match answer {
            Ok(page) => {
                said.extend(page.workers.into_iter().map(Ok));
                request.page_token = page.next_page_token;
            }
            Err(error) => {
                request.page_token.clear();
                said.push(Err(error));
            }
        }
        if request.page_token.is_empty() {
            return said;
        }
    }
}

impl Usage {
    async fn fetch(&mut self, session: &Session, request: ListUsageRequest) {
        self.take_all(pages(session, request).await);
    }

    /// Takes what is known, and tells why the rest is not.
    fn take_all(&mut self, said: Vec<Result<WorkerUsage, ClientError>>) {
        let why = |one: Result<WorkerUsage, ClientError>| one.map_or_else(|error| Some(unknown(&error)), |worker| self.take(worker));
        let reasons: Vec<String> = said.into_iter().filter_map(why).collect();
        for reason in reasons.iter().take(REASONS) {
            eprintln!("evenkeel: {reason}");
        }
        if reasons.len() > REASONS {
            eprintln!("evenkeel: and {} workers more do not say what they use", reasons.len() - REASONS);
        }
    }

    /// Takes what one worker says; why it says nothing.
    fn take(&mut self, said: WorkerUsage) -> Option<String> {
        let WorkerUsage { worker, cpu_ns, memory_bytes, processes, reason, resources } = said;
        if let (Some(cpu_ns), Some(memory_bytes), Some(processes)) = (cpu_ns, memory_bytes, processes) {
            self.workers.insert(worker.clone(), cells(cpu_ns, memory_bytes, processes));
        }
        for used in resources {
            self.resources.insert((worker.clone(), used.name), cells(used.cpu_ns, used.memory_bytes, used.processes));
        }
        (!reason.is_empty()).then(|| format!("{}: what it uses is not known: {}", printable(&worker), printable(&reason)))
    }

    /// The cells of a worker.
    pub(super) fn of_worker(&self, id: &str) -> [String; 3] {
        self.workers.get(id).cloned().unwrap_or_else(dashes)
    }

    /// The cells of a resource: of where it is, and of nowhere else.
    pub(super) fn of_resource(&self, state: &ResourceState) -> [String; 3] {
        let name = state.resource.as_ref().map(|resource| resource.name.clone()).unwrap_or_default();
        self.resources.get(&(state.worker.clone(), name)).cloned().unwrap_or_else(dashes)
    }
}

fn unknown(error: &ClientError) -> String {
    format!("what work uses is not known: {error}")
}

fn dashes() -> [String; 3] {
    std::array::from_fn(|_| "-".to_owned())
}

fn cells(cpu_ns: u64, memory_bytes: u64, processes: u32) -> [String; 3] {
    [output::processor_time(Duration::from_nanos(cpu_ns)), output::bytes(memory_bytes), processes.to_string()]
}

#[cfg(test)]
mod tests {
    use evenkeel_proto::v1::{Resource, ResourceUsage};

    use super::*;

    #[test]
    fn what_a_worker_says_counts_for_what_is_there() {
        let mut usage = Usage::default();
        let used =
            ResourceUsage { name: "a".to_owned(), cpu_ns: 1_500_000_000, memory_bytes: 3 << 20, processes: 2, ..ResourceUsage::default() };
        let said = WorkerUsage {
            worker: "w1".to_owned(),
            cpu_ns: Some(90_000_000_000),
            memory_bytes: Some(5 << 30),
            processes: Some(2),
            resources: vec![used],
            ..WorkerUsage::default()
        };
        assert_eq!(usage.take(said), None);
        let silent = WorkerUsage { worker: "w2".to_owned(), reason: "it\nhangs".to_owned(), ..WorkerUsage::default() };
        assert_eq!(usage.take(silent).as_deref(), Some("w2: what it uses is not known: it hangs"));
        assert_eq!((usage.of_worker("w1"), usage.of_worker("w2")), (["1m30s", "5.0GiB", "2"].map(str::to_owned), dashes()));
        let at = |worker: &str| ResourceState {
            resource: Some(Resource { name: "a".to_owned(), ..Resource::default() }),
            worker: worker.to_owned(),
            ..ResourceState::default()
        };
        assert_eq!(usage.of_resource(&at("w1")), ["1.5s", "3.0MiB", "2"].map(str::to_owned));
        assert_eq!(usage.of_resource(&at("w2")), dashes(), "it has moved meanwhile");
    }
}
