//! Pages of resources, workers and events. They are made in steps, so that the control loop waits for none of them, and end before they are
//! larger than a client takes.

use std::time::Duration;

use evenkeel_model::{HistoryEntry, Labels, ResourceName, Selector, WorkerId, limits::MAX_PAGE};
use evenkeel_planner::PlannerConfig;
use evenkeel_proto::v1;
use tokio::time::{sleep, timeout};
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
/// How long a list of events waits for the watch to bring what was answered last. It is behind by milliseconds, or etcd is in trouble.
const FOLLOWED: Duration = Duration::from_secs(1);
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(10);

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

/// The newest events that are asked for; after a number, those that follow it, so that who goes on behind the last gets each of them once.
/// Oldest first in any case. The history is bounded, so one step is enough.
pub(super) async fn events(shared: &Shared, request: &v1::ListEventsRequest) -> Result<v1::ListEventsResponse, Status> {
    let size = page_size(request.page_size, USUAL_PAGE)?;
    for_history(shared).await;
    let state = shared.read();
    let about = |wanted: &str, is: &[&str]| wanted.is_empty() || is.contains(&wanted);
    let wanted = state.history_after(request.after);
    let wanted = wanted.filter(|(_, h)| about(&request.resource, &[&h.resource]) && about(&request.worker, &[&h.worker, &h.from]));
    let shown = |(sequence, entry): &(i64, HistoryEntry)| convert::event(*sequence, entry);
    let goes_on = request.after != 0;
    let mut events: Vec<v1::Event> =
        if goes_on { wanted.take(size).map(shown).collect() } else { wanted.rev().take(size).map(shown).collect() };
    drop(state);
    Room::of_a_page().cut(&mut events);
    if !goes_on {
        events.reverse();
    }
    Ok(v1::ListEventsResponse { events })
}

/// Waits, for a while, until the history has what was answered before: who was told that something was done finds it there.
pub(super) async fn for_history(shared: &Shared) {
    let answered = shared.read().answered;
    until(FOLLOWED, || answered <= shared.read().followed).await;
}

/// Waits until something is, and no longer than that.
async fn until(span: Duration, is: impl Fn() -> bool) {
    // Whether it is or not: the caller is answered with what there is.
    let _ = timeout(span, async {
        while !is() {
            sleep(LOOK).await;
        }
    })
    .await;
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
pub(super) fn page_token<T, E>(text: &str, parse: fn(&str) -> Result<T, E>) -> Result<Option<T>, Status> {
    let wrong = |_| Status::invalid_argument("page_token: invalid: it must be one that the page before has given");
    if text.is_empty() { Ok(None) } else { parse(text).map(Some).map_err(wrong) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use evenkeel_model::{Change, Definition, Entry, EntryKind, Epoch, HistoryEntry, Record, Revision};

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
                finished: None,
                failed: None,
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
    /// What is asked for of the history, by the numbers of the entries.
    async fn page(shared: &Shared, after: i64, page_size: i32, resource: &str) -> Vec<i64> {
        let request = v1::ListEventsRequest { after, page_size, resource: resource.to_owned(), worker: String::new() };
        events(shared, &request).await.expect("a page").events.iter().map(|event| event.sequence).collect()
    }

    fn entry(resource: &str) -> HistoryEntry {
        HistoryEntry {
            time: 0,
            kind: EntryKind::Added,
            resource: resource.to_owned(),
            worker: String::new(),
            from: String::new(),
            reason: "x".repeat(20_000),
            master: String::new(),
            epoch: Epoch::default(),
            task: evenkeel_model::TaskId::default(),
        }
    }

    /// The middle of what came after a number was skipped when it was more than one page.
    #[tokio::test(start_paused = true)]
    async fn who_goes_on_behind_the_last_event_gets_each_once() {
        let shared = Shared::new(Arc::new(SystemClock::start()));
        for batch in 1..=50 {
            shared.write().take_history(
                batch.to_string().into(),
                Revision(batch),
                (0..8).map(|n| entry(if n % 2 == 0 { "even" } else { "odd" })).collect(),
            );
        }
        let all: Vec<i64> = shared.read().history_after(0).map(|(sequence, _)| *sequence).collect();
        assert_eq!(all.len(), 400);
        // The numbers bound a page, or the bytes do: 400 entries are some 8 MB.
        for size in [7, 5000] {
            let (mut seen, mut pages) = (vec![all[0]], 0);
            loop {
                let more = page(&shared, *seen.last().expect("one"), size, "").await;
                if more.is_empty() {
                    break;
                }
                pages += 1;
                seen.extend(more);
            }
            assert_eq!(seen, all, "pages of {size}");
            assert!(pages > 1, "pages of {size}");
        }
        assert_eq!(page(&shared, 0, 3, "").await, all[397..], "without a number the newest");
        assert_eq!(page(&shared, all[0], 2, "even").await, [all[2], all[4]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_of_events_waits_for_what_was_answered_and_not_for_ever() {
        let shared = Arc::new(Shared::new(Arc::new(SystemClock::start())));
        shared.write().answered = Revision(7);
        let begun = tokio::time::Instant::now();
        let reader = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move { page(&shared, 0, 10, "").await }
        });
        sleep(FOLLOWED / 2).await;
        assert!(!reader.is_finished(), "what was answered has not come yet");
        shared.write().take_history("7".into(), Revision(7), vec![entry("a")]);
        shared.write().followed = Revision(7);
        assert_eq!(reader.await.expect("no panic"), [7000]);
        assert!(begun.elapsed() < FOLLOWED, "{:?}", begun.elapsed());
        shared.write().answered = Revision(8);
        assert_eq!(page(&shared, 0, 10, "").await, [7000], "after a while with what there is");
    }
}
