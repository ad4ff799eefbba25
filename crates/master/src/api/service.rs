//! The gRPC services: requests become wishes for the control loop or views of what is known. They run on the leader; standbys pass
//! calls on before they come here.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use evenkeel_model::{Definition, ResourceName, Selector, WorkerId, WorkerWish, limits::MAX_PAGE};
use evenkeel_proto::v1::{self, master_server::Master};
use futures::{Stream, StreamExt};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::{Request, Response, Status, Streaming};

use super::{convert, states};
use crate::{
    config::MasterConfig,
    control::request::{Effect, PutAnswer, PutMode, Refusal, Request as Wish},
    known::{Known, Leadership, Shared},
};

/// How long a caller waits for a commit before it is told that the outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many resources of one stream may wait for their commits.
const STREAM_WINDOW: usize = 2048;
/// The usual number of entries on one page.
const USUAL_PAGE: usize = 500;

/// What all services of a master share.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) config: Arc<MasterConfig>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) wishes: mpsc::Sender<Wish>,
}

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotFound(_) | Refusal::NoWorker(_) => Self::not_found(message),
            Refusal::AlreadyExists(_) => Self::already_exists(message),
            Refusal::Conflict(_) => Self::aborted(message),
            Refusal::NotLeader | Refusal::Unknown(_) | Refusal::UnknownOf(_) => Self::unavailable(message),
            Refusal::NoSpace | Refusal::Busy => Self::resource_exhausted(message),
            Refusal::Rejected(_) => Self::failed_precondition(message),
        }
    }
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
pub(crate) fn name(text: &str) -> Result<ResourceName, Status> {
    ResourceName::new(text).map_err(|e| Status::invalid_argument(format!("name: {:?} {e}", text.chars().take(80).collect::<String>())))
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
pub(crate) fn worker_id(field: &str, text: &str) -> Result<WorkerId, Status> {
    WorkerId::new(text).map_err(|e| Status::invalid_argument(format!("{field}: {:?} {e}", text.chars().take(80).collect::<String>())))
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
pub(crate) fn selector(text: &str) -> Result<Selector, Status> {
    text.parse().map_err(|e: evenkeel_model::SelectorError| Status::invalid_argument(format!("selector: {e}")))
}

impl Service {
    /// Puts a resource and waits for the commit.
    pub(crate) async fn put(&self, definition: Definition, mode: PutMode, source: &str) -> Result<PutAnswer, Status> {
        let (reply, answer) = oneshot::channel();
        let name = definition.name.clone();
        self.wish(Wish::Put { definition: Box::new(definition), mode, source: source.into(), reply })?;
        settled(answer, || Refusal::Unknown(name)).await
    }

    /// Deletes a resource and waits for the commit.
    pub(crate) async fn delete(&self, name: ResourceName) -> Result<(), Status> {
        let (reply, answer) = oneshot::channel();
        self.wish(Wish::Delete { name: name.clone(), reply })?;
        settled(answer, || Refusal::Unknown(name)).await
    }

    /// Wants something of a worker, or nothing more, and waits for the commit; then shows the worker.
    async fn want(&self, id: &str, wish: Option<WorkerWish>) -> Result<Option<v1::WorkerState>, Status> {
        let worker = worker_id("id", id)?;
        let (reply, answer) = oneshot::channel();
        self.wish(Wish::Wish { worker: worker.clone(), wish, reply })?;
        settled(answer, || Refusal::UnknownOf(worker.clone())).await?;
        let now = self.shared.now();
        let known = self.shared.read();
        Ok(known.cluster.worker(worker.as_str()).map(|found| states::worker(&known.cluster, &worker, found, now, &self.config.planner)))
    }

    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn wish(&self, wish: Wish) -> Result<(), Status> {
        self.wishes.try_send(wish).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Status::from(Refusal::Busy),
            mpsc::error::TrySendError::Closed(_) => Status::from(Refusal::NotLeader),
        })
    }

    fn state(&self, known: &Known, name: &str) -> Option<v1::ResourceState> {
        states::resource(&known.cluster, name, self.shared.now(), &self.config.planner)
    }

    fn put_state(answer: &PutAnswer) -> v1::ResourceState {
        let mut state = states::wanted(&answer.record);
        state.epoch = answer.epoch.0;
        if let Some((worker, address)) = &answer.node {
            state.worker = worker.to_string();
            state.address.clone_from(address);
        }
        state.phase = if answer.node.is_some() { "starting" } else { "pending" }.to_owned();
        state.reason = answer.pending.as_ref().map(ToString::to_string).unwrap_or_default();
        state
    }

    /// One request of a stream; what is wrong with it is its result, and the stream goes on.
    async fn put_one(self, request: v1::AddResourcesRequest) -> v1::AddResourcesResponse {
        let name = request.resource.as_ref().map(|r| r.name.clone()).unwrap_or_default();
        let mode = if request.replace { PutMode::Apply } else { PutMode::Add };
        let result = match convert::definition(request.resource) {
            Ok(definition) => self.put_patiently(definition, mode, &request.source).await,
            Err(status) => Err(status),
        };
        match result {
            Ok(answer) => v1::AddResourcesResponse {
                name,
                outcome: outcome(answer.effect).to_owned(),
                worker: answer.node.map(|(worker, _)| worker.to_string()).unwrap_or_default(),
                code: 0,
                message: answer.pending.map(|p| p.to_string()).unwrap_or_default(),
            },
            Err(status) => v1::AddResourcesResponse {
                name,
                code: status.code() as i32,
                message: status.message().to_owned(),
                ..v1::AddResourcesResponse::default()
            },
        }
    }

    /// Puts a resource; where the loop is busy it waits, since a stream is held back by its own window.
    async fn put_patiently(&self, definition: Definition, mode: PutMode, source: &str) -> Result<PutAnswer, Status> {
        let (reply, answer) = oneshot::channel();
        let name = definition.name.clone();
        let wish = Wish::Put { definition: Box::new(definition), mode, source: source.into(), reply };
        let sent = timeout(PATIENCE, self.wishes.send(wish)).await.map_err(|_| Status::from(Refusal::Busy))?;
        sent.map_err(|_| Status::from(Refusal::NotLeader))?;
        settled(answer, || Refusal::Unknown(name)).await
    }
}

async fn settled<T>(answer: oneshot::Receiver<Result<T, Refusal>>, unknown: impl FnOnce() -> Refusal) -> Result<T, Status> {
    match timeout(PATIENCE, answer).await {
        Ok(Ok(result)) => result.map_err(Status::from),
        Ok(Err(_)) | Err(_) => Err(unknown().into()),
    }
}

fn outcome(effect: Effect) -> &'static str {
    match effect {
        Effect::Created => "created",
        Effect::Changed => "changed",
        Effect::Unchanged => "unchanged",
    }
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn page_size(asked: i32) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(USUAL_PAGE),
        Ok(n) => Ok(n.min(MAX_PAGE)),
        Err(_) => Err(Status::invalid_argument(format!("page_size: {asked} is less than 0; leave it out for {USUAL_PAGE}"))),
    }
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn page_token(text: &str) -> Result<Option<ResourceName>, Status> {
    let wrong = |_| Status::invalid_argument("page_token: is none that a page before has given");
    if text.is_empty() { Ok(None) } else { ResourceName::new(text).map(Some).map_err(wrong) }
}

#[tonic::async_trait]
impl Master for Service {
    async fn add_resource(&self, request: Request<v1::AddResourceRequest>) -> Result<Response<v1::AddResourceResponse>, Status> {
        let definition = convert::definition(request.into_inner().resource)?;
        let answer = self.put(definition, PutMode::Add, "").await?;
        let created = answer.effect == Effect::Created;
        Ok(Response::new(v1::AddResourceResponse { resource: Some(Self::put_state(&answer)), created }))
    }

    type AddResourcesStream = Answers<v1::AddResourcesResponse>;

    async fn add_resources(
        &self,
        request: Request<Streaming<v1::AddResourcesRequest>>,
    ) -> Result<Response<Self::AddResourcesStream>, Status> {
        let service = self.clone();
        let answers = request.into_inner().map(move |item| {
            let service = service.clone();
            async move { Ok(service.put_one(item?).await) }
        });
        // In the order of the requests, with many commits under way.
        Ok(Response::new(answers.buffered(STREAM_WINDOW).boxed()))
    }

    async fn update_resource(&self, request: Request<v1::UpdateResourceRequest>) -> Result<Response<v1::UpdateResourceResponse>, Status> {
        let definition = convert::definition(request.into_inner().resource)?;
        let answer = self.put(definition, PutMode::Update, "").await?;
        let changed = answer.effect != Effect::Unchanged;
        Ok(Response::new(v1::UpdateResourceResponse { resource: Some(Self::put_state(&answer)), changed }))
    }

    async fn delete_resource(&self, request: Request<v1::DeleteResourceRequest>) -> Result<Response<v1::DeleteResourceResponse>, Status> {
        self.delete(name(&request.into_inner().name)?).await?;
        Ok(Response::new(v1::DeleteResourceResponse {}))
    }

    async fn get_resource(&self, request: Request<v1::GetResourceRequest>) -> Result<Response<v1::GetResourceResponse>, Status> {
        let name = name(&request.into_inner().name)?;
        let state = self.state(&self.shared.read(), name.as_str());
        let resource = state.ok_or_else(|| Status::from(Refusal::NotFound(name)))?;
        Ok(Response::new(v1::GetResourceResponse { resource: Some(resource) }))
    }

    async fn list_resources(&self, request: Request<v1::ListResourcesRequest>) -> Result<Response<v1::ListResourcesResponse>, Status> {
        let request = request.into_inner();
        let (selector, size) = (selector(&request.selector)?, page_size(request.page_size)?);
        let after = page_token(&request.page_token)?;
        let known = self.shared.read();
        let mut resources = Vec::new();
        let mut next_page_token = String::new();
        for (name, unit) in known.cluster.units_after(after.as_ref().map(ResourceName::as_str)) {
            let selected = unit
                .record
                .as_ref()
                .map_or(request.selector.is_empty() && unit.unreadable.is_some(), |r| selector.matches(&r.value.definition.labels));
            if !selected {
                continue;
            }
            if resources.len() == size {
                next_page_token = last_name(&resources);
                break;
            }
            resources.extend(self.state(&known, name.as_str()));
        }
        Ok(Response::new(v1::ListResourcesResponse { resources, next_page_token }))
    }

    type WatchResourcesStream = Answers<v1::WatchResourcesResponse>;

    async fn watch_resources(&self, request: Request<v1::WatchResourcesRequest>) -> Result<Response<Self::WatchResourcesStream>, Status> {
        let request = request.into_inner();
        let selector = selector(&request.selector)?;
        let only = if request.name.is_empty() { None } else { Some(name(&request.name)?) };
        Ok(Response::new(super::watch::resources(self.clone(), selector, only)))
    }

    async fn list_workers(&self, _: Request<v1::ListWorkersRequest>) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let now = self.shared.now();
        let known = self.shared.read();
        let workers = states::workers(&known.cluster, now, &self.config.planner);
        let brake = evenkeel_planner::brake(&known.cluster, &self.config.planner).map(|brake| brake.to_string()).unwrap_or_default();
        Ok(Response::new(v1::ListWorkersResponse { workers, brake }))
    }

    async fn list_masters(&self, _: Request<v1::ListMastersRequest>) -> Result<Response<v1::ListMastersResponse>, Status> {
        let known = self.shared.read();
        let masters = known.masters.values().enumerate().map(|(place, (_, record))| v1::MasterState {
            id: record.id.to_string(),
            grpc_address: record.address.clone(),
            http_address: record.http.clone(),
            leader: place == 0,
            version: record.version.clone(),
        });
        Ok(Response::new(v1::ListMastersResponse { masters: masters.collect() }))
    }

    async fn cordon_worker(&self, request: Request<v1::CordonWorkerRequest>) -> Result<Response<v1::CordonWorkerResponse>, Status> {
        let worker = self.want(&request.into_inner().id, Some(WorkerWish::Cordon)).await?;
        Ok(Response::new(v1::CordonWorkerResponse { worker }))
    }

    async fn uncordon_worker(&self, request: Request<v1::UncordonWorkerRequest>) -> Result<Response<v1::UncordonWorkerResponse>, Status> {
        let worker = self.want(&request.into_inner().id, None).await?;
        Ok(Response::new(v1::UncordonWorkerResponse { worker }))
    }

    async fn drain_worker(&self, request: Request<v1::DrainWorkerRequest>) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        let request = request.into_inner();
        let worker = self.want(&request.id, Some(WorkerWish::Drain { deadline_ms: request.deadline_ms })).await?;
        Ok(Response::new(v1::DrainWorkerResponse { worker }))
    }

    async fn release_brake(&self, _: Request<v1::ReleaseBrakeRequest>) -> Result<Response<v1::ReleaseBrakeResponse>, Status> {
        let (reply, answer) = oneshot::channel();
        self.wish(Wish::ReleaseBrake { reply })?;
        let sessions = settled(answer, || Refusal::NotLeader).await?;
        Ok(Response::new(v1::ReleaseBrakeResponse { workers: sessions.keys().map(ToString::to_string).collect() }))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let supposed = request.into_inner().suppose;
        let (now, planner) = (self.shared.now(), &self.config.planner);
        let known = self.shared.read();
        let plan = match supposed {
            None => evenkeel_planner::plan(&known.cluster, now, planner),
            Some(supposed) => {
                let supposed = super::plan::supposition(supposed, &known.cluster)?;
                evenkeel_planner::suppose(&known.cluster, now, planner, &supposed)
            }
        };
        Ok(Response::new(super::plan::show(&plan)))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let name = name(&request.into_inner().name)?;
        let explained = super::explain::explain(&self.shared.read(), &name, self.shared.now(), &self.config.planner);
        explained.map(Response::new).ok_or_else(|| Refusal::NotFound(name).into())
    }

    async fn list_events(&self, request: Request<v1::ListEventsRequest>) -> Result<Response<v1::ListEventsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let known = self.shared.read();
        let about = |wanted: &str, is: &[&str]| wanted.is_empty() || is.contains(&wanted);
        let wanted = known.history_after(request.after);
        let wanted = wanted.filter(|(_, h)| about(&request.resource, &[&h.resource]) && about(&request.worker, &[&h.worker, &h.from]));
        let newest = wanted.rev().take(size);
        let mut events: Vec<v1::Event> = newest.map(|(sequence, happening)| convert::event(*sequence, happening)).collect();
        events.reverse();
        Ok(Response::new(v1::ListEventsResponse { events }))
    }

    type WatchEventsStream = Answers<v1::WatchEventsResponse>;

    async fn watch_events(&self, request: Request<v1::WatchEventsRequest>) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(super::watch::events(self.clone(), request.into_inner().after)))
    }

    type ReadLogsStream = Answers<v1::ReadLogsResponse>;

    async fn read_logs(&self, request: Request<v1::ReadLogsRequest>) -> Result<Response<Self::ReadLogsStream>, Status> {
        let request = request.into_inner();
        let name = name(&request.name)?;
        let state = self.state(&self.shared.read(), name.as_str()).ok_or_else(|| Status::from(Refusal::NotFound(name.clone())))?;
        if state.worker.is_empty() {
            return Err(Status::failed_precondition(format!("{name} is pending, so no worker has output of it: {}", state.reason)));
        }
        super::logs::read(&state, request, &self.config).await
    }
}

fn last_name(resources: &[v1::ResourceState]) -> String {
    resources.last().and_then(|r| r.resource.as_ref()).map(|r| r.name.clone()).unwrap_or_default()
}

/// Whether this master leads.
pub(crate) fn leads(shared: &Shared) -> bool {
    *shared.leadership.borrow() == Leadership::Mine
}

/// The resources of a source, by name, for a diff.
pub(crate) fn definitions_of(known: &Known, source: &str) -> BTreeMap<ResourceName, Definition> {
    let units = known.cluster.units_after(None).filter_map(|(name, unit)| Some((name, unit.record.as_deref()?)));
    units.filter(|(_, r)| *r.value.source == *source).map(|(name, r)| (name.clone(), r.value.definition.clone())).collect()
}
