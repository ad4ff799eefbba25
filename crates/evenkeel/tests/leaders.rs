//! A change of leadership as callers see it, on real processes: no call is lost on the way, none has its effect twice, nobody reads of a
//! world that has another leader, and the next master leads at once.

mod support;

#[allow(dead_code, reason = "its other kinds of weather are for the fault tests")]
#[path = "chaos/links.rs"]
mod links;

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use evenkeel_model::MasterRecord;
use evenkeel_proto::v1::{AddResourceRequest, DeleteResourceRequest, GetResourceRequest, Resource, master_client::MasterClient};
use evenkeel_store::KeyRange;
use links::{Links, Weather};
use nix::sys::signal::Signal;
use support::Stage;
use tonic::{Code, Status, transport::Channel};

type Client = MasterClient<Channel>;

/// A candidacy that nobody gives up lasts for 3 s: what takes less has not waited for its end.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn add(client: &mut Client, name: String) -> Result<bool, Status> {
    let resource = Some(Resource { name, ..Resource::default() });
    client.add_resource(AddResourceRequest { resource }).await.map(|answer| answer.into_inner().created)
}

async fn get(client: &mut Client, name: &str) -> Result<(), Status> {
    client.get_resource(GetResourceRequest { name: name.to_owned() }).await.map(|_| ())
}

/// What became of the calls of one caller.
#[derive(Debug, Default)]
struct Calls {
    answered: usize,
    longest: Duration,
    /// The first answer that is none of a call's own, or that says that the call had its effect before.
    wrong: Option<String>,
}

/// Adds resource after resource until it is told to end, or the connection does.
async fn call(mut client: Client, caller: String, ends: Arc<AtomicBool>, answered: Arc<AtomicUsize>) -> Calls {
    let mut calls = Calls::default();
    while !ends.load(Ordering::Relaxed) && calls.wrong.is_none() {
        let begun = Instant::now();
        match add(&mut client, format!("{caller}.{}", calls.answered)).await {
            Ok(true) => calls.answered += 1,
            Ok(false) => calls.wrong = Some("it existed already".to_owned()),
            // A status that was answered has no source; one of the connection has.
            Err(status) if status.source().is_some() => {
                calls.wrong = Some(format!("no answer after {:?}: {status}", begun.elapsed()));
            }
            Err(status) => calls.wrong = Some(format!("answered after {:?}: {status}", begun.elapsed())),
        }
        calls.longest = calls.longest.max(begun.elapsed());
        answered.fetch_add(1, Ordering::Relaxed);
    }
    calls
}

/// Callers of one master at the same time.
struct Callers {
    ends: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<Calls>>,
}

impl Callers {
    async fn of(stage: &Stage, master: &str, name: &str) -> Self {
        let (ends, answered) = (Arc::default(), Arc::<AtomicUsize>::default());
        let mut callers = Vec::new();
        for n in 0..16 {
            let client = stage.connect(master).await.expect("connected");
            callers.push(tokio::spawn(call(client, format!("{name}.{n}"), Arc::clone(&ends), Arc::clone(&answered))));
        }
        Self { ends, answered, callers }
    }

    /// Waits until so many calls more have been answered.
    async fn go_on(&self, stage: &Stage, calls: usize) {
        let until = self.answered.load(Ordering::Relaxed) + calls;
        stage.eventually("calls are answered", async || (self.answered.load(Ordering::Relaxed) >= until).then_some(())).await;
    }

    async fn end(self) -> Vec<Calls> {
        self.ends.store(true, Ordering::Relaxed);
        let mut calls = Vec::new();
        for caller in self.callers {
            calls.push(caller.await.expect("no panic"));
        }
        calls
    }
}

/// Waits until so many masters lead or campaign.
async fn candidates(stage: &Stage, count: usize) {
    stage.eventually("the masters campaign", async || (in_order(stage).await.len() == count).then_some(())).await;
}

/// The masters in the order in which they are to lead.
async fn in_order(stage: &Stage) -> Vec<String> {
    let mut kvs = stage.client.list(&KeyRange::prefix("/election/")).await.expect("listed").kvs;
    kvs.sort_by_key(|kv| kv.created);
    kvs.iter().map(|kv| serde_json::from_slice::<MasterRecord>(&kv.value).expect("a record").id.to_string()).collect()
}

/// A caller waited for 2 s and was refused: the master that ended kept the call and waited for a leader.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_passed_on_survive_the_end_of_the_leader() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    let mut wrong = Vec::new();
    for round in 0..6 {
        candidates(&stage, 2).await;
        let order = in_order(&stage).await;
        let (leader, standby) = (&order[0], &order[1]);
        let callers = Callers::of(&stage, standby, &format!("r{round}")).await;
        callers.go_on(&stage, 200).await;
        stage.signal(leader, Signal::SIGTERM);
        callers.go_on(&stage, 200).await;
        assert_eq!(stage.ended(leader).await, Some(0));
        callers.go_on(&stage, 200).await;
        for calls in callers.end().await {
            if calls.wrong.is_some() || calls.longest > AT_ONCE {
                wrong.push((round, calls));
            }
        }
        stage.spawn(leader, &[]);
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stage.logs());
}

/// Calls at the very master that ends are passed on by it; what it does not take any more ends with the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_ends_passes_on_what_it_has_taken() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    let mut wrong = Vec::new();
    for round in 0..4 {
        candidates(&stage, 2).await;
        let leader = in_order(&stage).await.remove(0);
        let callers = Callers::of(&stage, &leader, &format!("r{round}")).await;
        callers.go_on(&stage, 200).await;
        stage.signal(&leader, Signal::SIGTERM);
        assert_eq!(stage.ended(&leader).await, Some(0));
        for calls in callers.end().await {
            let is_refused = calls.wrong.as_ref().is_some_and(|wrong| !wrong.starts_with("no answer"));
            if is_refused || calls.longest > AT_ONCE {
                wrong.push((round, calls));
            }
        }
        stage.spawn(&leader, &[]);
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stage.logs());
}

/// A master that was about to lead, or campaigned, left its key to expire.
#[tokio::test(flavor = "multi_thread")]
async fn the_third_leads_at_once_when_two_masters_end() {
    let mut stage = Stage::start().await;
    stage.masters(3, &[]).await;
    for round in 0..6 {
        candidates(&stage, 3).await;
        let order = in_order(&stage).await;
        // The one that leads first, or the one that is next in line.
        let (first, second) = if round % 2 == 0 { (&order[0], &order[1]) } else { (&order[1], &order[0]) };
        let mut client = stage.connect(&order[2]).await.expect("connected");
        get(&mut client, "none").await.expect_err("nothing is there");
        stage.signal(first, Signal::SIGTERM);
        // The next one is about to become the leader, or is it just now.
        tokio::time::sleep(Duration::from_millis(round)).await;
        stage.signal(second, Signal::SIGTERM);
        let begun = Instant::now();
        stage
            .eventually("the third leads", async || {
                let page = stage.curl(&order[2], "/readyz", &[]);
                page.contains("ready: this master leads").then_some(())
            })
            .await;
        let took = begun.elapsed();
        assert!(took < AT_ONCE, "round {round}: {took:?}\n{}", stage.logs());
        let answered = Instant::now();
        assert!(add(&mut client, format!("r{round}")).await.expect("answered"));
        assert!(answered.elapsed() < AT_ONCE, "round {round}: {:?}", answered.elapsed());
        for ended in [first, second] {
            assert_eq!(stage.ended(ended).await, Some(0));
        }
        for again in [first, second] {
            stage.spawn(again, &[]);
        }
    }
}

/// A leader that was stopped goes on with the world as it was, and the first that it does is to answer who has waited.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_stopped_does_not_answer_with_the_world_as_it_was() {
    let mut stage = Stage::start().await;
    stage.masters(2, &[]).await;
    for round in 0..3 {
        candidates(&stage, 2).await;
        let order = in_order(&stage).await;
        let (old, new) = (&order[0], &order[1]);
        let mut before = stage.connect(old).await.expect("connected");
        let name = format!("r{round}");
        assert!(add(&mut before, name.clone()).await.expect("added"));
        stage.signal(old, Signal::SIGSTOP);
        let mut after = stage.connect(new).await.expect("connected");
        delete(&stage, &mut after, &name).await;
        // They wait in the old one's connection for it to go on.
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let (mut client, name) = (before.clone(), name.clone());
                tokio::spawn(async move { get(&mut client, &name).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.signal(old, Signal::SIGCONT);
        for reader in readers {
            let answer = reader.await.expect("no panic");
            let code = answer.expect_err("it was deleted, and that was acknowledged before this was asked").code();
            assert!([Code::NotFound, Code::Unavailable].contains(&code), "{code:?}");
        }
    }
}

/// Deletes by a master that is about to become the leader.
async fn delete(stage: &Stage, client: &mut Client, name: &str) {
    let client = tokio::sync::Mutex::new(client);
    stage
        .eventually("the other one leads", async || {
            let request = DeleteResourceRequest { name: name.to_owned(), ..DeleteResourceRequest::default() };
            client.lock().await.delete_resource(request).await.ok().map(|_| ())
        })
        .await;
}

/// For some seconds a leader without etcd answered reads of a world that had another leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_alone_does_not_answer_once_another_leads() {
    let mut stage = Stage::start().await;
    let links = Links::default();
    let port = stage.etcd.endpoint(0).rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let way = links.open("master-1", "etcd", port).await;
    stage.routes.insert("master-1".to_owned(), vec![format!("http://127.0.0.1:{way}")]);
    stage.spawn("master-1", &[]);
    stage.leader().await;
    stage.spawn("master-2", &[]);
    candidates(&stage, 2).await;
    let (mut old, mut new) = (stage.connect("master-1").await.expect("connected"), stage.connect("master-2").await.expect("connected"));
    assert!(add(&mut old, "a".to_owned()).await.expect("added"));
    let deleted = Arc::new(AtomicBool::new(false));
    let reader = {
        let deleted = Arc::clone(&deleted);
        tokio::spawn(async move {
            let (mut stale, mut reads_after) = (0, 0);
            while reads_after < 40 {
                let is_deleted = deleted.load(Ordering::SeqCst);
                let seen = tokio::time::timeout(Duration::from_millis(100), get(&mut old, "a")).await;
                reads_after += usize::from(is_deleted);
                stale += usize::from(is_deleted && matches!(seen, Ok(Ok(()))));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stale
        })
    };
    links.set(&["master-1"], &["etcd"], Weather::CUT);
    delete(&stage, &mut new, "a").await;
    deleted.store(true, Ordering::SeqCst);
    assert_eq!(reader.await.expect("no panic"), 0, "reads of what had been deleted");
    // When it is back it passes calls on.
    links.clear();
    let mut old = stage.connect("master-1").await.expect("connected");
    assert_eq!(get(&mut old, "a").await.expect_err("it is deleted").code(), Code::NotFound);
}
