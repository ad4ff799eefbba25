//! Callers that add, update and delete resources all the time, at any master, each trying one thing until it is acknowledged.
//!
//! Beside the wheel. What they do is drawn from a seed; what they were told is judged by `history`.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use evenkeel_proto::v1::{AddResourceRequest, DeleteResourceRequest, Resource, UpdateResourceRequest, master_client::MasterClient};
use prost_types::{ListValue, Struct, Value, value::Kind};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    history::{Asked, History, Operation},
    work::{self, Manner},
};

/// One answer may take so long; a master itself gives up after ten seconds.
const ANSWER: Duration = Duration::from_secs(12);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(50);
/// Between two operations of one caller.
const PACE: Duration = Duration::from_millis(120);
/// How long one thing is tried. It decides nothing: what is not acknowledged by then counts as not acknowledged.
const PATIENCE: Duration = Duration::from_secs(90);
/// How many names a caller has.
const NAMES: usize = 3;

/// Callers at work.
pub(crate) struct Callers {
    end: watch::Sender<bool>,
    running: Vec<JoinHandle<History>>,
    /// For each, when it began the last thing that was acknowledged.
    answered: Vec<Arc<AtomicU64>>,
}

impl Callers {
    /// Starts so many, who know these masters (as URLs) and write their work's log to this folder.
    pub(crate) fn start(count: usize, masters: &[String], folder: &Path, seed: u64) -> Self {
        let (end, _) = watch::channel(false);
        let answered: Vec<Arc<AtomicU64>> = (0..count).map(|_| Arc::default()).collect();
        let start = |(number, answered): (usize, &Arc<AtomicU64>)| {
            let caller = Caller {
                masters: masters.to_vec(),
                folder: folder.to_owned(),
                end: end.subscribe(),
                random: fastrand::Rng::with_seed(seed.wrapping_add(number as u64)),
                client: None,
                history: History::default(),
                tries: 0,
                answered: Arc::clone(answered),
            };
            tokio::spawn(caller.run(number + 1))
        };
        let running = answered.iter().enumerate().map(start).collect();
        Self { end, running, answered }
    }

    /// Whether each was told of the success of something that it had begun after this time.
    pub(crate) fn all_answered_since(&self, stamp: u64) -> bool {
        self.answered.iter().all(|answered| answered.load(Ordering::Relaxed) > stamp)
    }

    /// Lets each finish what it is trying, and gives what they were told.
    pub(crate) async fn end(self) -> Vec<History> {
        self.end.send_replace(true);
        let mut histories = Vec::new();
        for caller in self.running {
            histories.push(caller.await.expect("a caller does not panic"));
        }
        histories
    }
}

struct Caller {
    masters: Vec<String>,
    folder: std::path::PathBuf,
    end: watch::Receiver<bool>,
    random: fastrand::Rng,
    client: Option<MasterClient<Channel>>,
    history: History,
    tries: usize,
    answered: Arc<AtomicU64>,
}

impl Caller {
    async fn run(mut self, number: usize) -> History {
        let mut stands: BTreeMap<String, bool> = (1..=NAMES).map(|n| (format!("call-{number}-{n}"), false)).collect();
        let mut version = 0;
        while !*self.end.borrow() {
            let name = format!("call-{number}-{}", self.random.usize(1..=NAMES));
            let stood = stands[&name];
            version += 1;
            // One in three of what stands is deleted; the rest is changed.
            let asked = if stood && self.random.u8(..3) == 0 { Asked::Delete } else { Asked::Put(format!("v{version}")) };
            let began = work::boot_time();
            let acknowledged = self.until_acknowledged(&name, &asked, stood).await;
            if !acknowledged {
                // What stands is not known any more: the name is left alone.
                self.history.operations.push(Operation { name, asked, acknowledged });
                break;
            }
            self.answered.store(began, Ordering::Relaxed);
            stands.insert(name.clone(), asked != Asked::Delete);
            self.history.operations.push(Operation { name, asked, acknowledged });
            let _ = timeout(PACE, self.end.changed()).await;
        }
        self.history
    }

    async fn until_acknowledged(&mut self, name: &str, asked: &Asked, stood: bool) -> bool {
        let began = Instant::now();
        let mut tries = 0;
        while began.elapsed() < PATIENCE {
            tries += 1;
            match timeout(ANSWER, self.ask(name, asked, stood)).await {
                Ok(Ok(())) => return true,
                Ok(Err(status)) => {
                    // That a delete finds nothing is its own doing, if it was tried before.
                    if status.code() == Code::NotFound && *asked == Asked::Delete && tries > 1 {
                        return true;
                    }
                    if is_an_answer(status.code()) {
                        let surprise = format!("{name}: {asked:?} (try {tries}) was answered {:?}: {}", status.code(), status.message());
                        self.history.surprises.push(surprise);
                        return false;
                    }
                }
                Err(_) => {}
            }
            self.client = None;
            sleep(AGAIN).await;
        }
        false
    }

    async fn ask(&mut self, name: &str, asked: &Asked, stood: bool) -> Result<(), Status> {
        let resource = |content: &str| Some(resource(name, content, &self.folder, Manner::Good));
        let unreachable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        if self.client.is_none() {
            self.tries += 1;
            let url = self.masters[self.tries % self.masters.len()].clone();
            let endpoint = Channel::from_shared(url).map_err(|e| Status::internal(e.to_string()))?.connect_timeout(Duration::from_secs(2));
            self.client = Some(MasterClient::new(endpoint.connect().await.map_err(unreachable)?));
        }
        let Some(client) = &mut self.client else { return Err(Status::internal("just connected")) };
        match asked {
            Asked::Put(content) if stood => client.update_resource(UpdateResourceRequest { resource: resource(content) }).await.map(drop),
            Asked::Put(content) => client.add_resource(AddResourceRequest { resource: resource(content) }).await.map(drop),
            Asked::Delete => {
                client.delete_resource(DeleteResourceRequest { name: name.to_owned(), ..DeleteResourceRequest::default() }).await.map(drop)
            }
        }
    }
}

/// Whether the cluster has decided, as against not having come to it.
fn is_an_answer(code: Code) -> bool {
    matches!(code, Code::NotFound | Code::AlreadyExists | Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented)
}

/// A resource whose work is `chaos work`.
pub(crate) fn resource(name: &str, content: &str, folder: &Path, manner: Manner) -> Resource {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let map = |fields: &[(&str, Value)]| Struct { fields: fields.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect() };
    let program = std::env::current_exe().expect("the own program");
    let env = [
        (work::FOLDER, text(&folder.display().to_string())),
        (work::CONTENT, text(content)),
        (work::MANNER, text(manner.as_str())),
        // Whatever is done to the clock of a worker, that of the log is true.
        ("LD_PRELOAD", text("")),
    ];
    let env = map(&env);
    let command = ListValue { values: vec![text(&program.display().to_string()), text("work")] };
    let spec = map(&[("command", Value { kind: Some(Kind::ListValue(command)) }), ("env", Value { kind: Some(Kind::StructValue(env)) })]);
    Resource { name: name.to_owned(), kind: "process".to_owned(), spec: Some(spec), ..Resource::default() }
}
