//! One task, and pages of them. Under api::tasks. The script is read from etcd when it is asked for: no master keeps scripts.

use evenkeel_model::{
    Key, Stored, TaskId, TaskScript,
    task::{TaskEntry, TaskState},
};
use evenkeel_proto::v1;
use tonic::Status;

use super::{shown, task_id};
use crate::api::{
    lists::page_token,
    room::{Room, Step},
    service::Service,
};

/// The usual number of tasks on one page, and the most.
const USUAL_PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;

/// One task with all of its hosts, and with its script where that is asked for.
pub(in crate::api) async fn get(service: &Service, request: &v1::GetTaskRequest) -> Result<v1::GetTaskResponse, Status> {
    let id = task_id(request.id)?;
    let mut task = shown::whole(service, id).await?;
    if request.with_script {
        let TaskScript { script, stdin } = script(service, id).await?;
        let definition = task.task.get_or_insert_default();
        (definition.script, definition.stdin) = (script, stdin);
    }
    Ok(v1::GetTaskResponse { task: Some(task) })
}

async fn script(service: &Service, id: TaskId) -> Result<TaskScript, Status> {
    let failed = |why: &dyn std::fmt::Display| Status::unavailable(format!("the script of task {id} cannot be read from etcd: {why}"));
    let read = service.store.get(&Key::TaskScript(id)).await.map_err(|error| failed(&error))?;
    let Some(kv) = read else { return Err(failed(&"somebody has deleted it")) };
    let read = TaskScript::read(&id, &kv.value);
    read.value.ok_or_else(|| failed(&read.error.unwrap_or_default()))
}

/// A page of tasks, the newest first.
pub(in crate::api) async fn list(service: &Service, request: &v1::ListTasksRequest) -> Result<v1::ListTasksResponse, Status> {
    let wanted = request.states.iter().map(|text| state(text)).collect::<Result<Vec<_>, _>>()?;
    let size = match usize::try_from(request.page_size) {
        Ok(0) => USUAL_PAGE,
        Ok(size) => size.min(LARGEST_PAGE),
        Err(_) => {
            return Err(Status::invalid_argument(format!(
                "page_size: {} is less than 0; leave it out for {USUAL_PAGE}",
                request.page_size
            )));
        }
    };
    let mut before = page_token(&request.page_token, |text| text.parse::<TaskId>())?;
    let (mut tasks, mut room): (Vec<v1::TaskState>, _) = (Vec::new(), Room::of_a_page());
    let _place = service.turns.search().await?;
    loop {
        {
            let state = service.shared().read();
            let step = Step::begin();
            let is_next = |(id, _): &(TaskId, &TaskEntry)| before.is_none_or(|before| *id < before);
            let mut rest = state.cluster.tasks().each().rev().filter(is_next).collect::<Vec<_>>().into_iter();
            loop {
                let Some((id, entry)) = rest.next() else {
                    return Ok(v1::ListTasksResponse { tasks, next_page_token: String::new() });
                };
                if shown::is_kept(entry) && (wanted.is_empty() || wanted.contains(&entry.state())) {
                    let shown = shown::row(id, entry);
                    if tasks.len() == size || !room.takes(&shown) {
                        let next_page_token = tasks.last().map(|task| task.id.to_string()).unwrap_or_default();
                        return Ok(v1::ListTasksResponse { tasks, next_page_token });
                    }
                    tasks.push(shown);
                }
                before = Some(id);
                if step.is_over() {
                    break;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn state(text: &str) -> Result<TaskState, Status> {
    let all = [TaskState::Running, TaskState::Paused, TaskState::Done];
    let unknown =
        || Status::invalid_argument(format!("states: unknown {}; use running, paused or done", evenkeel_model::shown::shown(text)));
    all.into_iter().find(|state| state.as_str() == text).ok_or_else(unknown)
}
