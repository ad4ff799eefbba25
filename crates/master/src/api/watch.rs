//! Streams of changes: of resources and of the history. A wake-up only says that something is new; what it is, is read again.

use std::collections::{BTreeSet, VecDeque};

use evenkeel_model::{ResourceName, Selector};
use evenkeel_proto::v1;
use futures::{StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::Status;

use super::{
    convert,
    room::Step,
    service::{Answers, Service},
    states,
};
use crate::state::{Leadership, State};

/// How many entries of the history one step takes.
const EVENTS: usize = 500;

/// A stream of resources.
struct Resources {
    service: Service,
    selector: Selector,
    only: Option<ResourceName>,
    at: At,
    /// What the caller has been shown, so that a deletion is told only of those.
    shown: BTreeSet<ResourceName>,
    ready: VecDeque<v1::WatchResourcesResponse>,
    changed: watch::Receiver<u64>,
    leadership: watch::Receiver<Leadership>,
    _place: OwnedSemaphorePermit,
}

/// Where the stream stands.
enum At {
    /// It lists, from after this name on; `since` is where the changes begin. `unseen` were shown before and have not come again.
    Listing { after: Option<ResourceName>, since: u64, unseen: BTreeSet<ResourceName>, is_first: bool },
    /// It tells of those that were shown before and have not come again.
    Missing { unseen: BTreeSet<ResourceName>, since: u64, is_first: bool },
    /// It follows the changes from this number on.
    Following { since: u64 },
}

/// Every resource that matches, then SYNCED, then each change.
pub(super) fn resources(
    service: Service,
    selector: Selector,
    only: Option<ResourceName>,
    place: OwnedSemaphorePermit,
) -> Answers<v1::WatchResourcesResponse> {
    let since = service.shared().read().next_change();
    let watcher = Resources {
        changed: service.shared().changed.subscribe(),
        leadership: service.shared().leadership.subscribe(),
        at: At::Listing { after: None, since, unseen: BTreeSet::new(), is_first: true },
        shown: BTreeSet::new(),
        ready: VecDeque::new(),
        service,
        selector,
        only,
        _place: place,
    };
    stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        loop {
            if let Some(answer) = watcher.ready.pop_front() {
                return Some((Ok(answer), Some(watcher)));
            }
            if !watcher.service.shared().leads() {
                return Some((Err(Status::unavailable("this master is no longer the leader; watch again")), None));
            }
            watcher.step().await;
        }
    })
    .boxed()
}

impl Resources {
    async fn step(&mut self) {
        self.changed.mark_unchanged();
        let has_more = match &mut self.at {
            At::Listing { .. } => self.list(),
            At::Missing { .. } => self.tell_missing(),
            At::Following { since } => {
                let since = *since;
                self.follow(since)
            }
        };
        if has_more {
            // One that finds nothing to show must not hold up the others.
            return tokio::task::yield_now().await;
        }
        tokio::select! {
            _ = self.changed.changed() => {}
            _ = self.leadership.changed() => {}
        }
    }

    /// Shows some resources more. True always: there are more, or changes to follow.
    fn list(&mut self) -> bool {
        let service = self.service.clone();
        let state = service.shared().read();
        let step = Step::begin();
        let At::Listing { after, since, unseen, is_first } = std::mem::replace(&mut self.at, At::Following { since: 0 }) else {
            return true;
        };
        let (mut after, mut unseen) = (after, unseen);
        let only = self.only.clone();
        let named = only.iter().filter(|only| state.cluster.unit(only.as_str()).is_some());
        let from = after.clone();
        let all = state.cluster.units_after(from.as_ref().map(ResourceName::as_str)).map(|(name, _)| name).take_while(|_| only.is_none());
        let mut is_over = false;
        for name in named.chain(all) {
            unseen.remove(name);
            self.show(&state, name);
            after = Some(name.clone());
            is_over = step.is_over() && only.is_none();
            if is_over {
                break;
            }
        }
        self.at = if is_over { At::Listing { after, since, unseen, is_first } } else { At::Missing { unseen, since, is_first } };
        true
    }

    /// Tells of some that are gone since they were shown. True always: there are more, or changes to follow.
    fn tell_missing(&mut self) -> bool {
        let service = self.service.clone();
        let state = service.shared().read();
        let step = Step::begin();
        let At::Missing { mut unseen, since, is_first } = std::mem::replace(&mut self.at, At::Following { since: 0 }) else { return true };
        while let Some(name) = unseen.pop_first() {
            self.show(&state, &name);
            if step.is_over() {
                self.at = At::Missing { unseen, since, is_first };
                return true;
            }
        }
        if is_first {
            self.ready.push_back(v1::WatchResourcesResponse { r#type: "SYNCED".to_owned(), resource: None });
        }
        self.at = At::Following { since };
        true
    }

    /// True: there was something to see, or too much to follow it.
    fn follow(&mut self, since: u64) -> bool {
        let service = self.service.clone();
        let state = service.shared().read();
        let next = state.next_change();
        let Some(changes) = state.changes_since(since) else {
            drop(state);
            let unseen = self.shown.clone();
            self.at = At::Listing { after: None, since: next, unseen, is_first: false };
            return true;
        };
        let step = Step::begin();
        let mut until = since;
        for name in changes {
            until += 1;
            if self.only.as_ref().is_none_or(|only| only == name) {
                self.show(&state, name);
            }
            if step.is_over() {
                break;
            }
        }
        self.at = At::Following { since: until };
        next != since
    }

    fn show(&mut self, state: &State, name: &ResourceName) {
        let unit = state.cluster.unit(name.as_str());
        let labels = unit.and_then(|u| u.record.as_deref()).map(|r| &r.value.definition.labels);
        let state = match labels.is_some_and(|labels| self.selector.matches(labels)) {
            true => states::resource(&state.cluster, name.as_str(), self.service.shared().now(), &self.service.config.planner),
            false => None,
        };
        let (kind, resource) = match state {
            Some(state) if self.shown.insert(name.clone()) => ("ADDED", state),
            Some(state) => ("MODIFIED", state),
            None if self.shown.remove(name) => {
                let resource = Some(v1::Resource { name: name.to_string(), ..Default::default() });
                ("DELETED", v1::ResourceState { resource, ..Default::default() })
            }
            None => return,
        };
        self.ready.push_back(v1::WatchResourcesResponse { r#type: kind.to_owned(), resource: Some(resource) });
    }
}

/// The history after a sequence number, then each entry as it is written.
pub(super) fn events(service: Service, after: i64, place: OwnedSemaphorePermit) -> Answers<v1::WatchEventsResponse> {
    let happened = service.shared().happened.subscribe();
    let leadership = service.shared().leadership.subscribe();
    let state = (service, happened, leadership, after, place);
    stream::unfold(Some(state), |state| async {
        let (service, mut happened, mut leadership, after, place) = state?;
        loop {
            happened.mark_unchanged();
            leadership.mark_unchanged();
            // Asked before the history is read: what a leader knew while it led is true.
            if !service.shared().leads() {
                let ended = Err(Status::unavailable("this master is no longer the leader; watch again"));
                return Some((stream::iter(vec![ended]), None));
            }
            let found: Vec<v1::Event> = {
                let state = service.shared().read();
                state.history_after(after).take(EVENTS).map(|(sequence, entry)| convert::event(*sequence, entry)).collect()
            };
            if let Some(last) = found.last().map(|event| event.sequence) {
                let answers = found.into_iter().map(|event| Ok(v1::WatchEventsResponse { event: Some(event) }));
                return Some((stream::iter(answers.collect::<Vec<_>>()), Some((service, happened, leadership, last, place))));
            }
            tokio::select! {
                _ = happened.changed() => {}
                _ = leadership.changed() => {}
            }
        }
    })
    .flatten()
    .boxed()
}
