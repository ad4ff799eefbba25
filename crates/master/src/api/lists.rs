//! Pages of resources, workers and events. They are made in steps, so that the control loop waits for none of them, and end before they are
//! larger than a client takes.

use evenkeel_model::{Labels, ResourceName, Selector, WorkerId, limits::MAX_PAGE};
use evenkeel_planner::PlannerConfig;
use evenkeel_proto::v1;
use tonic::Status;

use super::{
    convert,
    room::{Room, Step},
    service::{Service, selector},
    states,
};
use crate::state::Shared;

/// The usual number of entries on one page.
const USUAL_PAGE: usize = 500;

/// A page of resources by name.
pub(super) async fn resources(service: &Service, request: &v1::ListResourcesRequest) -> Result<v1::ListResourcesResponse, Status> {
    let mut page = Resources {
        selector: selector(&request.selector)?,
        selects_all: request.selector.is_empty(),
        size: page_size(request.page_size, USUAL_PAGE)?,
        after: page_token(&request.page_token, ResourceName::new)?,
        last: None,
        found: Vec::new(),
        room: Room::of_a_page(),
    };
    let _place = service.turns.search().await?;
    loop {
        let is_done = page.step(service.shared(), &service.config.planner);
        if is_done {
            let next_page_token = page.last.map(|name| name.to_string()).unwrap_or_default();
            return Ok(v1::ListResourcesResponse { resources: page.found, next_page_token });
        }
        tokio::task::yield_now().await;
    }
}

/// A page in the making.
struct Resources {
    selector: Selector,
    selects_all: bool,
    size: usize,
    /// The last name that was looked at.
    after: Option<ResourceName>,
    /// The last name on the page, if there are more behind it.
    last: Option<ResourceName>,
    found: Vec<v1::ResourceState>,
    room: Room,
}

impl Resources {
    /// Looks at some resources more. True: the page is full, or there are no more.
    fn step(&mut self, shared: &Shared, planner: &PlannerConfig) -> bool {
        let (now, step) = (shared.now(), Step::begin());
        let state = shared.read();
        let after = self.after.clone();
        for (name, unit) in state.cluster.units_after(after.as_ref().map(ResourceName::as_str)) {
            let labels: Option<&Labels> = unit.record.as_ref().map(|record| &record.value.definition.labels);
            let is_selected = labels.map_or(self.selects_all && unit.unreadable.is_some(), |labels| self.selector.matches(labels));
            if is_selected && let Some(state) = states::resource(&state.cluster, name.as_str(), now, planner) {
                if self.found.len() == self.size || !self.room.takes(&state) {
                    self.last = self.after.take();
                    return true;
                }
                self.found.push(state);
            }
            self.after = Some(name.clone());
            if step.is_over() {
                return false;
            }
        }
        true
    }
}

/// A page of workers by id.
pub(super) async fn workers(service: &Service, request: &v1::ListWorkersRequest) -> Result<v1::ListWorkersResponse, Status> {
    let size = page_size(request.page_size, MAX_PAGE)?;
    let mut after = page_token(&request.page_token, WorkerId::new)?;
    let mut room = Room::of_a_page();
    let mut workers: Vec<v1::WorkerState> = Vec::new();
    let (shared, planner) = (service.shared(), &service.config.planner);
    let _place = service.turns.search().await?;
    loop {
        {
            let (now, step) = (shared.now(), Step::begin());
            let state = shared.read();
            let brake = || evenkeel_planner::brake(&state.cluster, planner).map(|brake| brake.to_string()).unwrap_or_default();
            let from = after.clone();
            let mut is_over = false;
            for id in state.cluster.workers_after(from.as_ref().map_or("", WorkerId::as_str)) {
                let Some(worker) = state.cluster.worker(id.as_str()) else { continue };
                if states::is_shown(worker) {
                    let state = states::worker(&state.cluster, id, worker, now, planner);
                    if workers.len() == size || !room.takes(&state) {
                        let next_page_token = workers.last().map(|worker| worker.id.clone()).unwrap_or_default();
                        return Ok(v1::ListWorkersResponse { workers, brake: brake(), next_page_token });
                    }
                    workers.push(state);
                }
                after = Some(id.clone());
                is_over = step.is_over();
                if is_over {
                    break;
                }
            }
            if !is_over {
                return Ok(v1::ListWorkersResponse { workers, brake: brake(), next_page_token: String::new() });
            }
        }
        tokio::task::yield_now().await;
    }
}

/// The newest events that are asked for, oldest first. The history is bounded, so one step is enough.
pub(super) fn events(service: &Service, request: &v1::ListEventsRequest) -> Result<v1::ListEventsResponse, Status> {
    let size = page_size(request.page_size, USUAL_PAGE)?;
    let state = service.shared().read();
    let about = |wanted: &str, is: &[&str]| wanted.is_empty() || is.contains(&wanted);
    let wanted = state.history_after(request.after);
    let wanted = wanted.filter(|(_, h)| about(&request.resource, &[&h.resource]) && about(&request.worker, &[&h.worker, &h.from]));
    let mut events: Vec<v1::Event> = wanted.rev().take(size).map(|(sequence, entry)| convert::event(*sequence, entry)).collect();
    drop(state);
    Room::of_a_page().cut(&mut events);
    events.reverse();
    Ok(v1::ListEventsResponse { events })
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn page_size(asked: i32, usual: usize) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(usual),
        Ok(n) => Ok(n.min(MAX_PAGE)),
        Err(_) => Err(Status::invalid_argument(format!("page_size: {asked} is less than 0; leave it out for {usual}"))),
    }
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn page_token<T, E>(text: &str, parse: fn(&str) -> Result<T, E>) -> Result<Option<T>, Status> {
    let wrong = |_| Status::invalid_argument("page_token: invalid: it must be one that the page before has given");
    if text.is_empty() { Ok(None) } else { parse(text).map(Some).map_err(wrong) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use evenkeel_model::{Change, Definition, Entry, Record, Revision};

    use super::*;
    use crate::time::SystemClock;

    /// Readers had the whole list under one lock, however long that took.
    #[test]
    fn a_search_that_finds_nothing_gives_way_to_others() {
        let shared = Shared::new(Arc::new(SystemClock::start()));
        let now = shared.now();
        for n in 0..50_000 {
            let name = ResourceName::new(&format!("r{n}")).expect("a name");
            let record = Record {
                id: n,
                creation_time: 0,
                assigned_node: "".into(),
                source: "".into(),
                definition: Definition::named(name.clone()),
            };
            shared.write().cluster.apply(Change::at(Revision(1), Entry::Resource(name, Some(record))), now);
        }
        let page = |selector: &str| Resources {
            selector: selector.parse().expect("a selector"),
            selects_all: selector.is_empty(),
            size: 10,
            after: None,
            last: None,
            found: Vec::new(),
            room: Room::of_a_page(),
        };
        let planner = PlannerConfig::default();
        let mut nothing = page("team=none");
        let mut steps = 1;
        while !nothing.step(&shared, &planner) {
            steps += 1;
        }
        assert!(steps > 1, "50,000 resources take longer than one step");
        assert!(nothing.found.is_empty() && nothing.last.is_none());
        let mut first = page("");
        while !first.step(&shared, &planner) {}
        assert_eq!((first.found.len(), first.last.map(|name| name.to_string())), (10, Some("r10004".to_owned())));
    }
}
