//! The gRPC services: calls become requests to the control loop, or views of what is known. They run on the leader; standbys pass
//! calls on before they come here.

use std::{pin::Pin, sync::Arc, time::Duration};

use evenkeel_model::{
    Definition, IntentKind, Key, ResourceName, Selector, WorkerId,
    limits::{MAX_NAME, MAX_WAITING_OF_STREAMS},
    shown::shown,
};
use evenkeel_proto::v1::{self, master_server::Master};
use evenkeel_store::{Client, keys::Keys};
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::{sync::oneshot, time::timeout};
use tonic::{Response, Status, Streaming};

use super::{
    convert,
    forward::without_effect,
    lists,
    room::{Turns, with_place},
    sources, states, tasks,
};
use crate::{
    config::MasterConfig,
    control::{
        intake::Ticket,
        request::{Refusal, Reply, Request},
        resources::{Effect, PutAnswer, PutMode},
        subjects::Subject,
        task::TaskVerb,
    },
    engine::Handle,
    source::SourceHandle,
    state::{Shared, State},
};

/// How long a caller waits for a commit before it is told that the outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(10);

/// What of etcd no master keeps in memory.
#[derive(Clone)]
pub(crate) struct Store {
    client: Client,
    keys: Keys,
}

impl Store {
    pub(crate) fn new(client: Client, prefix: &str) -> Self {
        Self { client, keys: Keys::new(prefix) }
    }

    /// What stands under a key; none: it does not exist.
    pub(crate) async fn get(&self, key: &Key) -> Result<Option<evenkeel_store::Kv>, evenkeel_store::Error> {
        Ok(self.client.get(self.keys.spell(key).as_bytes()).await?.kv)
    }
}

/// What all services of a master share.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) config: Arc<MasterConfig>,
    pub(crate) engine: Handle,
    pub(crate) turns: Turns,
    /// Where what no master keeps is read: scripts, and the ends of their output.
    pub(crate) store: Store,
    /// The file of resources, if this master follows one.
    pub(crate) source: Option<SourceHandle>,
}

/// A stream of answers.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotFound(_) | Refusal::NoWorker(_) | Refusal::NoTask(_) | Refusal::NoHost(..) => Self::not_found(message),
            Refusal::AlreadyExists(_) | Refusal::KeyTaken(..) => Self::already_exists(message),
            Refusal::Conflict(_) => Self::aborted(message),
            Refusal::NotLeader => without_effect(Self::unavailable(message)),
            Refusal::Unknown(_) | Refusal::UnknownOutcome => Self::unavailable(message),
            Refusal::NoSpace | Refusal::Busy | Refusal::TooManyTasks { .. } | Refusal::NoTaskIds => Self::resource_exhausted(message),
            Refusal::TooLarge(_) | Refusal::WrongTask(_) => Self::invalid_argument(message),
            Refusal::Rejected(_) | Refusal::OfAnother(..) | Refusal::TaskState(_) => Self::failed_precondition(message),
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

/// What a resource is worth in places, beside the text of its message: names, epochs, and what the loop notes of it.
pub(super) const OVERHEAD: usize = 512;

impl Service {
    /// Puts a resource and waits for the commit.
    pub(crate) async fn put(&self, definition: Definition, mode: PutMode, bytes: usize) -> Result<PutAnswer, Status> {
        let ticket = self.engine.intake.one(bytes + OVERHEAD)?;
        self.put_with(definition, mode, "", ticket).await
    }

    /// As [`Service::put`], for who asks for many: it waits for its place.
    pub(crate) async fn put_of_source(&self, definition: Definition, mode: PutMode, source: &str) -> Result<PutAnswer, Status> {
        let ticket = self.engine.intake.one_of_many(definition.spec.as_str().len() + OVERHEAD).await;
        self.put_with(definition, mode, source, ticket).await
    }

    async fn put_with(&self, definition: Definition, mode: PutMode, source: &str, ticket: Ticket) -> Result<PutAnswer, Status> {
        let name = definition.name.clone();
        let answer = self.ask_to_put(definition, mode, source, ticket)?;
        settled(answer, || Refusal::Unknown(Subject::Resource(name))).await
    }

    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn ask_to_put(&self, definition: Definition, mode: PutMode, source: &str, ticket: Ticket) -> Result<Answer<PutAnswer>, Status> {
        let (reply, answer) = Reply::new(ticket);
        self.engine.ask(Request::put(Box::new(definition), mode, source.into(), reply))?;
        Ok(answer)
    }

    /// Deletes a resource and waits for the commit.
    pub(crate) async fn delete(&self, name: ResourceName, id: Option<u64>) -> Result<(), Status> {
        let ticket = self.engine.intake.one(OVERHEAD)?;
        self.delete_with(name, "", id, ticket).await
    }

    /// As [`Service::delete`], for a source: only what it keeps.
    pub(crate) async fn delete_of_source(&self, name: ResourceName, source: &str) -> Result<(), Status> {
        let ticket = self.engine.intake.one_of_many(OVERHEAD).await;
        self.delete_with(name, source, None, ticket).await
    }

    async fn delete_with(&self, name: ResourceName, source: &str, id: Option<u64>, ticket: Ticket) -> Result<(), Status> {
        let (reply, answer) = Reply::new(ticket);
        self.engine.ask(Request::delete(name.clone(), source.into(), id, reply))?;
        settled(answer, || Refusal::Unknown(Subject::Resource(name))).await
    }

    /// Wants something of a worker, or nothing more, and waits for the commit; then shows the worker.
    async fn want(&self, id: &str, intent: Option<IntentKind>) -> Result<Option<v1::WorkerState>, Status> {
        let worker = worker_id("id", id)?;
        let (reply, answer) = Reply::new(Ticket::default());
        self.engine.ask(Request::intent(worker.clone(), intent, reply))?;
        settled(answer, || Refusal::Unknown(Subject::Worker(worker.clone()))).await?;
        let shared = self.shared();
        let now = shared.now();
        let state = shared.read();
        Ok(state.cluster.worker(worker.as_str()).map(|found| states::worker(&state.cluster, &worker, found, now, &self.config.planner)))
    }

    /// What this master knows.
    pub(crate) fn shared(&self) -> &Shared {
        &self.engine.shared
    }

    fn state(&self, state: &State, name: &str) -> Option<v1::ResourceState> {
        states::resource(&state.cluster, name, self.shared().now(), &self.config.planner)
    }

    fn put_state(answer: &PutAnswer) -> v1::ResourceState {
        let mut state = states::wanted(&answer.record);
        state.epoch = answer.epoch.0;
        if let Some((worker, address)) = &answer.node {
            state.worker = worker.to_string();
            state.address.clone_from(address);
            answer.holds.as_str().clone_into(&mut state.holds);
        }
        state.phase = if answer.node.is_some() { "starting" } else { "pending" }.to_owned();
        state.reason = answer.pending.as_ref().map(ToString::to_string).unwrap_or_default();
        if let Some(finish) = answer.record.finish() {
            states::show_finish(&mut state, finish);
        }
        state
    }

    /// Asks for one of a stream. It is asked for in the order of the stream, and answered whether or not anybody looks: a caller who does not
    /// read its answers holds no place.
    fn begin_put(&self, request: v1::AddResourcesRequest, ticket: Ticket) -> Begun {
        // As much of it as a name may have: the rest only fills the answer.
        let shown = request.resource.as_ref().map(|r| r.name.chars().take(MAX_NAME).collect()).unwrap_or_default();
        let mode = if request.replace { PutMode::Apply } else { PutMode::Add };
        let answer = convert::definition(request.resource).and_then(|definition| {
            let name = definition.name.clone();
            Ok((name, self.ask_to_put(definition, mode, "", ticket)?))
        });
        Begun { shown, answer }
    }
}

/// A request of a stream that was asked for, or what is wrong with it: that is its result, and the stream goes on.
struct Begun {
    shown: String,
    answer: Result<(ResourceName, Answer<PutAnswer>), Status>,
}

impl Begun {
    async fn answer(self) -> v1::AddResourcesResponse {
        let name = self.shown;
        let result = match self.answer {
            Ok((name, answer)) => settled(answer, || Refusal::Unknown(Subject::Resource(name))).await,
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
}

/// What a request to the control loop is answered with.
pub(super) type Answer<T> = oneshot::Receiver<Result<T, Refusal>>;

pub(super) async fn settled<T>(answer: Answer<T>, unknown: impl FnOnce() -> Refusal) -> Result<T, Status> {
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

#[tonic::async_trait]
impl Master for Service {
    async fn add_resource(&self, request: tonic::Request<v1::AddResourceRequest>) -> Result<Response<v1::AddResourceResponse>, Status> {
        let request = request.into_inner();
        let bytes = request.encoded_len();
        let answer = self.put(convert::definition(request.resource)?, PutMode::Add, bytes).await?;
        let created = answer.effect == Effect::Created;
        Ok(Response::new(v1::AddResourceResponse { resource: Some(Self::put_state(&answer)), created }))
    }

    type AddResourcesStream = Answers<v1::AddResourcesResponse>;

    async fn add_resources(
        &self,
        request: tonic::Request<Streaming<v1::AddResourcesRequest>>,
    ) -> Result<Response<Self::AddResourcesStream>, Status> {
        let service = self.clone();
        // The next request is read when this one has its place: so one stream has one at most that waits for that.
        let begun = request.into_inner().then(move |item| {
            let service = service.clone();
            async move {
                let request = item?;
                let ticket = service.engine.intake.one_of_many(request.encoded_len() + OVERHEAD).await;
                Ok::<_, Status>(service.begin_put(request, ticket))
            }
        });
        // In the order of the requests, with many commits under way.
        let answers = begun.map(async |begun| Ok(begun?.answer().await)).buffered(MAX_WAITING_OF_STREAMS);
        Ok(Response::new(answers.boxed()))
    }

    async fn update_resource(
        &self,
        request: tonic::Request<v1::UpdateResourceRequest>,
    ) -> Result<Response<v1::UpdateResourceResponse>, Status> {
        let request = request.into_inner();
        let bytes = request.encoded_len();
        let answer = self.put(convert::definition(request.resource)?, PutMode::Update, bytes).await?;
        let changed = answer.effect != Effect::Unchanged;
        Ok(Response::new(v1::UpdateResourceResponse { resource: Some(Self::put_state(&answer)), changed }))
    }

    async fn delete_resource(
        &self,
        request: tonic::Request<v1::DeleteResourceRequest>,
    ) -> Result<Response<v1::DeleteResourceResponse>, Status> {
        let v1::DeleteResourceRequest { name: text, id } = request.into_inner();
        let wrong = |_| Status::invalid_argument(format!("id: invalid {}: the id that the resource is shown with, or nothing", shown(&id)));
        let id = if id.is_empty() { None } else { Some(id.parse().map_err(wrong)?) };
        self.delete(name(&text)?, id).await?;
        Ok(Response::new(v1::DeleteResourceResponse {}))
    }

    async fn get_resource(&self, request: tonic::Request<v1::GetResourceRequest>) -> Result<Response<v1::GetResourceResponse>, Status> {
        let name = name(&request.into_inner().name)?;
        let state = self.state(&self.shared().read(), name.as_str());
        let resource = state.ok_or_else(|| Status::from(Refusal::NotFound(name)))?;
        Ok(Response::new(v1::GetResourceResponse { resource: Some(resource) }))
    }

    async fn list_resources(
        &self,
        request: tonic::Request<v1::ListResourcesRequest>,
    ) -> Result<Response<v1::ListResourcesResponse>, Status> {
        lists::resources(self, request.get_ref()).await.map(Response::new)
    }

    type WatchResourcesStream = Answers<v1::WatchResourcesResponse>;

    async fn watch_resources(
        &self,
        request: tonic::Request<v1::WatchResourcesRequest>,
    ) -> Result<Response<Self::WatchResourcesStream>, Status> {
        let request = request.into_inner();
        let selector = selector(&request.selector)?;
        let only = if request.name.is_empty() { None } else { Some(name(&request.name)?) };
        Ok(Response::new(super::watch::resources(self.clone(), selector, only, self.turns.watch()?)))
    }

    async fn list_workers(&self, request: tonic::Request<v1::ListWorkersRequest>) -> Result<Response<v1::ListWorkersResponse>, Status> {
        lists::workers(self, request.get_ref()).await.map(Response::new)
    }

    async fn list_masters(&self, _: tonic::Request<v1::ListMastersRequest>) -> Result<Response<v1::ListMastersResponse>, Status> {
        let state = self.shared().read();
        let masters = state.masters.values().enumerate().map(|(place, (_, record))| v1::MasterState {
            id: record.id.to_string(),
            grpc_address: record.address.clone(),
            http_address: record.http.clone(),
            leader: place == 0,
            version: record.version.clone(),
        });
        Ok(Response::new(v1::ListMastersResponse { masters: masters.collect() }))
    }

    async fn cordon_worker(&self, request: tonic::Request<v1::CordonWorkerRequest>) -> Result<Response<v1::CordonWorkerResponse>, Status> {
        let worker = self.want(&request.into_inner().id, Some(IntentKind::Cordon)).await?;
        Ok(Response::new(v1::CordonWorkerResponse { worker }))
    }

    async fn uncordon_worker(
        &self,
        request: tonic::Request<v1::UncordonWorkerRequest>,
    ) -> Result<Response<v1::UncordonWorkerResponse>, Status> {
        let worker = self.want(&request.into_inner().id, None).await?;
        Ok(Response::new(v1::UncordonWorkerResponse { worker }))
    }

    async fn drain_worker(&self, request: tonic::Request<v1::DrainWorkerRequest>) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        let request = request.into_inner();
        let worker = self.want(&request.id, Some(IntentKind::Drain { deadline_ms: request.deadline_ms })).await?;
        Ok(Response::new(v1::DrainWorkerResponse { worker }))
    }

    async fn release_brake(&self, _: tonic::Request<v1::ReleaseBrakeRequest>) -> Result<Response<v1::ReleaseBrakeResponse>, Status> {
        let (reply, answer) = Reply::new(Ticket::default());
        self.engine.ask(Request::release_brake(reply))?;
        let sessions = settled(answer, || Refusal::Unknown(Subject::Brake)).await?;
        Ok(Response::new(v1::ReleaseBrakeResponse { workers: sessions.keys().map(ToString::to_string).collect() }))
    }

    async fn plan(&self, request: tonic::Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        super::plan::plan(self, request.into_inner().suppose).await.map(Response::new)
    }

    async fn explain(&self, request: tonic::Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let name = name(&request.into_inner().name)?;
        super::explain::explain(self, &name).await.map(Response::new)
    }

    async fn list_events(&self, request: tonic::Request<v1::ListEventsRequest>) -> Result<Response<v1::ListEventsResponse>, Status> {
        lists::events(self.shared(), request.get_ref()).await.map(Response::new)
    }

    type WatchEventsStream = Answers<v1::WatchEventsResponse>;

    async fn watch_events(&self, request: tonic::Request<v1::WatchEventsRequest>) -> Result<Response<Self::WatchEventsStream>, Status> {
        Ok(Response::new(super::watch::events(self.clone(), request.into_inner().after, self.turns.watch()?)))
    }

    async fn list_sources(&self, _: tonic::Request<v1::ListSourcesRequest>) -> Result<Response<v1::ListSourcesResponse>, Status> {
        Ok(Response::new(v1::ListSourcesResponse { sources: sources::list(self).await? }))
    }

    async fn get_source(&self, request: tonic::Request<v1::GetSourceRequest>) -> Result<Response<v1::GetSourceResponse>, Status> {
        let source = Some(sources::get(self, &request.into_inner().name).await?);
        Ok(Response::new(v1::GetSourceResponse { source }))
    }

    async fn sync_source(&self, request: tonic::Request<v1::SyncSourceRequest>) -> Result<Response<v1::SyncSourceResponse>, Status> {
        let source = Some(sources::sync(self, &request.into_inner().name).await?);
        Ok(Response::new(v1::SyncSourceResponse { source }))
    }

    async fn release_source(
        &self,
        request: tonic::Request<v1::ReleaseSourceRequest>,
    ) -> Result<Response<v1::ReleaseSourceResponse>, Status> {
        let request = request.into_inner();
        let source = Some(sources::release(self, &request.name, &request.digest).await?);
        Ok(Response::new(v1::ReleaseSourceResponse { source }))
    }

    async fn list_usage(&self, request: tonic::Request<v1::ListUsageRequest>) -> Result<Response<v1::ListUsageResponse>, Status> {
        super::usage::list(self, request.get_ref()).await.map(Response::new)
    }

    type ReadLogsStream = Answers<v1::ReadLogsResponse>;

    async fn read_logs(&self, request: tonic::Request<v1::ReadLogsRequest>) -> Result<Response<Self::ReadLogsStream>, Status> {
        let request = request.into_inner();
        let name = name(&request.name)?;
        let state = self.state(&self.shared().read(), name.as_str()).ok_or_else(|| Status::from(Refusal::NotFound(name.clone())))?;
        if state.worker.is_empty() {
            return Err(Status::failed_precondition(format!("{name} is pending, so no worker has output of it: {}", state.reason)));
        }
        let place = self.turns.watch()?;
        let output = super::logs::read(&state, request, &self.config).await?;
        Ok(output.map(|output| with_place(output, place).boxed()))
    }

    async fn create_task(&self, request: tonic::Request<v1::CreateTaskRequest>) -> Result<Response<v1::CreateTaskResponse>, Status> {
        tasks::create(self, request).await.map(Response::new)
    }

    async fn list_tasks(&self, request: tonic::Request<v1::ListTasksRequest>) -> Result<Response<v1::ListTasksResponse>, Status> {
        tasks::list(self, request.get_ref()).await.map(Response::new)
    }

    async fn get_task(&self, request: tonic::Request<v1::GetTaskRequest>) -> Result<Response<v1::GetTaskResponse>, Status> {
        tasks::get(self, request.get_ref()).await.map(Response::new)
    }

    async fn pause_task(&self, request: tonic::Request<v1::PauseTaskRequest>) -> Result<Response<v1::PauseTaskResponse>, Status> {
        let task = tasks::want(self, &request, request.get_ref().id, TaskVerb::Pause).await?;
        Ok(Response::new(v1::PauseTaskResponse { task }))
    }

    async fn resume_task(&self, request: tonic::Request<v1::ResumeTaskRequest>) -> Result<Response<v1::ResumeTaskResponse>, Status> {
        let task = tasks::want(self, &request, request.get_ref().id, TaskVerb::Resume).await?;
        Ok(Response::new(v1::ResumeTaskResponse { task }))
    }

    async fn cancel_task(&self, request: tonic::Request<v1::CancelTaskRequest>) -> Result<Response<v1::CancelTaskResponse>, Status> {
        let task = tasks::want(self, &request, request.get_ref().id, TaskVerb::Cancel).await?;
        Ok(Response::new(v1::CancelTaskResponse { task }))
    }

    async fn kill_task(&self, request: tonic::Request<v1::KillTaskRequest>) -> Result<Response<v1::KillTaskResponse>, Status> {
        let task = tasks::want(self, &request, request.get_ref().id, TaskVerb::Kill).await?;
        Ok(Response::new(v1::KillTaskResponse { task }))
    }

    async fn redo_task(&self, request: tonic::Request<v1::RedoTaskRequest>) -> Result<Response<v1::RedoTaskResponse>, Status> {
        let v1::RedoTaskRequest { id, workers, failed } = request.get_ref();
        let task = tasks::redo(self, &request, *id, workers, *failed).await?;
        Ok(Response::new(v1::RedoTaskResponse { task }))
    }

    async fn redo_task_host(&self, request: tonic::Request<v1::RedoTaskHostRequest>) -> Result<Response<v1::RedoTaskHostResponse>, Status> {
        let v1::RedoTaskHostRequest { id, worker } = request.get_ref();
        let task = tasks::redo(self, &request, *id, std::slice::from_ref(worker), false).await?;
        Ok(Response::new(v1::RedoTaskHostResponse { task }))
    }

    async fn kill_task_host(&self, request: tonic::Request<v1::KillTaskHostRequest>) -> Result<Response<v1::KillTaskHostResponse>, Status> {
        let v1::KillTaskHostRequest { id, worker } = request.get_ref();
        let task = tasks::kill_host(self, &request, *id, worker).await?;
        Ok(Response::new(v1::KillTaskHostResponse { task }))
    }

    async fn ignore_task_host(
        &self,
        request: tonic::Request<v1::IgnoreTaskHostRequest>,
    ) -> Result<Response<v1::IgnoreTaskHostResponse>, Status> {
        let v1::IgnoreTaskHostRequest { id, worker } = request.get_ref();
        let task = tasks::ignore_host(self, &request, *id, worker).await?;
        Ok(Response::new(v1::IgnoreTaskHostResponse { task }))
    }

    type WatchTaskStream = Answers<v1::WatchTaskResponse>;

    async fn watch_task(&self, request: tonic::Request<v1::WatchTaskRequest>) -> Result<Response<Self::WatchTaskStream>, Status> {
        tasks::watch(self, request.into_inner().id).map(Response::new)
    }

    type ReadTaskOutputStream = Answers<v1::ReadTaskOutputResponse>;

    async fn read_task_output(
        &self,
        request: tonic::Request<v1::ReadTaskOutputRequest>,
    ) -> Result<Response<Self::ReadTaskOutputStream>, Status> {
        tasks::read_output(self, request.into_inner()).await.map(Response::new)
    }
}
