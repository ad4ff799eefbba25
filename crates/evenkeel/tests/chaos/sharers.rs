//! Callers that share one name: they add, update, delete and read it at the same time, each at a master of its own choice, and write down what
//! they were told, for `linearizability` to judge.
//!
//! Beside the wheel. What they do is drawn from a seed.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_proto::v1::{
    AddResourceRequest, DeleteResourceRequest, GetResourceRequest, Resource, UpdateResourceRequest, master_client::MasterClient,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::{Code, Status, transport::Channel};

use crate::linearizability::{Answer, Call, Content, History, Outcome, Verdict};

/// The name that they share. It has no process: what is judged is what callers are told.
pub(crate) const NAME: &str = "shared";
/// The label that has the content.
const LABEL: &str = "content";
/// How many there are who change it. Beside them each master has one who only reads.
const SHARERS: usize = 3;
/// One answer may take so long. A sharer that waited for longer would change nothing while a master is frozen.
const ANSWER: Duration = Duration::from_secs(3);
/// A read may take so long. Nothing is lost with one, so that a frozen master always has one that was asked for lately.
const READ: Duration = Duration::from_secs(1);
/// The longest from one call to the next.
const LEISURE_MS: u64 = 200;

/// Sharers at work.
pub(crate) struct Sharers {
    end: watch::Sender<bool>,
    running: Vec<JoinHandle<()>>,
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    history: History,
    contents: u64,
}

impl Sharers {
    /// Starts them; they know these masters (as URLs).
    pub(crate) fn start(masters: &[String], seed: u64) -> Self {
        let (end, _) = watch::channel(false);
        let told = Arc::<Mutex<Told>>::default();
        let start = |number: usize| {
            let sharer = Sharer {
                url: masters[number % masters.len()].clone(),
                only_reads: number >= SHARERS,
                client: None,
                random: fastrand::Rng::with_seed(seed.wrapping_add(number as u64)),
                told: told.clone(),
            };
            tokio::spawn(sharer.run(end.subscribe()))
        };
        Self { running: (0..SHARERS + masters.len()).map(start).collect(), end, told }
    }

    /// Lets each finish its call, and judges what they were told; this exists at the end. How many answers there were.
    pub(crate) async fn end(self) -> impl FnOnce(Content) -> Result<usize, String> {
        self.end.send_replace(true);
        for sharer in self.running {
            sharer.await.expect("a sharer does not panic");
        }
        let told = self.told;
        move |exists| {
            let mut history = std::mem::take(&mut lock(&told).history);
            history.observe(exists);
            match history.judge() {
                Verdict::Linearizable => Ok(history.len()),
                Verdict::Impossible(why) => Err(format!("{NAME}: {why}")),
                Verdict::Undecided => Err(format!("{NAME}: {} calls have too many orders to be judged", history.len())),
            }
        }
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Sharer {
    url: String,
    only_reads: bool,
    client: Option<MasterClient<Channel>>,
    random: fastrand::Rng,
    told: Arc<Mutex<Told>>,
}

impl Sharer {
    async fn run(mut self, mut end: watch::Receiver<bool>) {
        while !*end.borrow() {
            let call = self.choose();
            let id = lock(&self.told).history.invoke(call);
            let patience = if call == Call::Get { READ } else { ANSWER };
            let outcome = match timeout(patience, self.ask(call)).await {
                Ok(outcome) => outcome,
                Err(_) => Outcome::Unknown,
            };
            if outcome == Outcome::Unknown {
                self.client = None;
            }
            lock(&self.told).history.returned(id, outcome);
            let leisure = Duration::from_millis(self.random.u64(..LEISURE_MS));
            tokio::select! {
                () = sleep(leisure) => {}
                _ = end.changed() => {}
            }
        }
    }

    fn choose(&mut self) -> Call {
        if self.only_reads {
            return Call::Get;
        }
        let mut told = lock(&self.told);
        let (dice, back) = (self.random.u8(..10), self.random.u64(..3));
        if matches!(dice, 4 | 6) {
            told.contents += 1;
        }
        // One that nobody has asked for, or one that somebody has.
        let (new, old) = (told.contents, told.contents.saturating_sub(back));
        match dice {
            0..4 => Call::Get,
            4 => Call::Add(new),
            5 => Call::Add(old),
            6 => Call::Update(new),
            7 => Call::Update(old),
            _ => Call::Delete,
        }
    }

    async fn ask(&mut self, call: Call) -> Outcome {
        if self.client.is_none() {
            let Ok(endpoint) = Channel::from_shared(self.url.clone()) else { return Outcome::Refused };
            self.client = endpoint.connect_timeout(Duration::from_secs(2)).connect().await.ok().map(MasterClient::new);
        }
        // Who is not connected has asked nothing.
        let Some(client) = &mut self.client else { return Outcome::Refused };
        let told = match call {
            Call::Get => get(client).await,
            Call::Add(content) => {
                let added = client.add_resource(AddResourceRequest { resource: Some(resource(content)) }).await;
                added.map(|added| if added.into_inner().created { Answer::Created } else { Answer::Unchanged })
            }
            Call::Update(content) | Call::Apply(content) => {
                let updated = client.update_resource(UpdateResourceRequest { resource: Some(resource(content)) }).await;
                updated.map(|updated| if updated.into_inner().changed { Answer::Changed } else { Answer::Unchanged })
            }
            Call::Delete => {
                let request = DeleteResourceRequest { name: NAME.to_owned(), ..DeleteResourceRequest::default() };
                client.delete_resource(request).await.map(|_| Answer::Deleted)
            }
        };
        match told.map_err(|status| status.code()) {
            Ok(answer) => Outcome::Answered(answer),
            Err(Code::NotFound) => Outcome::Answered(Answer::NotFound),
            Err(Code::AlreadyExists) => Outcome::Answered(Answer::AlreadyExists),
            Err(Code::Aborted | Code::ResourceExhausted | Code::FailedPrecondition) => Outcome::Refused,
            // Of a read that is all the same.
            Err(_) => Outcome::Unknown,
        }
    }
}

async fn get(client: &mut MasterClient<Channel>) -> Result<Answer, Status> {
    match client.get_resource(GetResourceRequest { name: NAME.to_owned() }).await {
        Ok(found) => {
            let resource = found.into_inner().resource.and_then(|state| state.resource).unwrap_or_default();
            Ok(Answer::Found(resource.labels.get(LABEL).and_then(|content| content.parse().ok())))
        }
        Err(status) if status.code() == Code::NotFound => Ok(Answer::Found(None)),
        Err(status) => Err(status),
    }
}

fn resource(content: u64) -> Resource {
    let labels = [(LABEL.to_owned(), content.to_string())].into();
    Resource { name: NAME.to_owned(), kind: "noop".to_owned(), labels, ..Resource::default() }
}

/// The content that a record in etcd has.
pub(crate) fn content_of(record: &serde_json::Value) -> Content {
    record["Labels"][LABEL].as_str()?.parse().ok()
}
