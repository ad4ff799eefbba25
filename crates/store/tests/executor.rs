//! The executor on a member that answers as it is told to, on paused time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use evenkeel_store::{
    Client, Compare, Error, Executor, Granted, KeepAlive, KeyRange, MemberStatus, Op, Outcome, Pipeline, PipelineConfig, RangeReply,
    RangeRequest, Revision, Transport, Txn, TxnReply, Watch, Write, WriteResult,
};
use futures::{FutureExt, future::BoxFuture};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);

/// How the member answers a transaction.
#[derive(Debug)]
enum Answer {
    Done(Revision),
    TooManyRequests,
    Lost,
}

/// A member that takes nothing but transactions, and remembers each.
#[derive(Debug, Default)]
struct Fake {
    answers: Mutex<VecDeque<Answer>>,
    sent: Mutex<Vec<(Instant, Txn)>>,
}

impl Transport for Fake {
    fn endpoint(&self) -> &'static str {
        "fake"
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>> {
        self.sent.lock().unwrap().push((Instant::now(), txn));
        let answer = self.answers.lock().unwrap().pop_front().expect("no more than is expected");
        async move {
            match answer {
                Answer::Done(revision) => Ok(TxnReply { succeeded: true, revision, reads: vec![] }),
                Answer::TooManyRequests => Err(Error::Overloaded { endpoint: "fake".into() }),
                Answer::Lost => Err(Error::Unavailable { endpoint: "fake".into(), reason: "reset".into(), sent: true, source: None }),
            }
        }
        .boxed()
    }

    fn range(&self, _: RangeRequest) -> BoxFuture<'_, Result<RangeReply, Error>> {
        unreachable!("only transactions are sent")
    }

    fn put(&self, _: Vec<u8>, _: Vec<u8>) -> BoxFuture<'_, Result<Revision, Error>> {
        unreachable!("only transactions are sent")
    }

    fn grant(&self, _: i64) -> BoxFuture<'_, Result<Granted, Error>> {
        unreachable!("only transactions are sent")
    }

    fn revoke(&self, _: i64) -> BoxFuture<'_, Result<(), Error>> {
        unreachable!("only transactions are sent")
    }

    fn time_to_live(&self, _: i64) -> BoxFuture<'_, Result<Option<Duration>, Error>> {
        unreachable!("only transactions are sent")
    }

    fn compact(&self, _: Revision) -> BoxFuture<'_, Result<(), Error>> {
        unreachable!("only transactions are sent")
    }

    fn status(&self) -> BoxFuture<'_, Result<MemberStatus, Error>> {
        unreachable!("only transactions are sent")
    }

    fn watch(&self, _: KeyRange, _: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, Error>> {
        unreachable!("only transactions are sent")
    }

    fn keep_alive(&self, _: i64) -> BoxFuture<'_, Result<Box<dyn KeepAlive>, Error>> {
        unreachable!("only transactions are sent")
    }

    fn forget(&self) {}
}

/// Three writes that go in one batch; the last of them deletes.
fn pipeline() -> Pipeline {
    let mut pipeline = Pipeline::new(PipelineConfig {
        fence_key: b"/election/1".to_vec(),
        fence: Revision(1),
        lease: 7,
        slot_prefix: b"/commit/1/".to_vec(),
        journal_prefix: b"/events/".to_vec(),
        in_flight: 1,
    });
    for token in 0..2 {
        let ops = vec![Op::put(format!("/k/{token}"), "")];
        pipeline.submit(Write { token, compares: vec![], ops, entry: Some(b"{}".to_vec()) }).unwrap();
    }
    let compares = vec![Compare::ModRevision { key: b"/k/2".to_vec(), equals: Revision(3) }];
    pipeline.submit(Write { token: 2, compares, ops: vec![Op::delete("/k/2")], entry: None }).unwrap();
    pipeline
}

/// Carries out the next batch with these answers. The requests as they were sent, each with the pause before it.
async fn carried_out(pipeline: &mut Pipeline, answers: Vec<Answer>) -> (Outcome, Vec<(Duration, Txn)>, Vec<u64>) {
    let fake = Arc::new(Fake { answers: Mutex::new(answers.into()), ..Fake::default() });
    let (mut executor, mut finished) = Executor::new(Client::over(vec![fake.clone()], 1000 * MS), 1000 * MS);
    let mut last = Instant::now();
    executor.execute(pipeline.next_batch().unwrap());
    let finished = finished.recv().await.unwrap();
    let done = pipeline.finished(finished.batch, finished.outcome.clone());
    let committed = done.into_iter().filter(|done| matches!(done.result, WriteResult::Committed { .. })).map(|done| done.token);
    let sent = fake.sent.lock().unwrap().drain(..).map(|(at, txn)| (at - std::mem::replace(&mut last, at), txn)).collect();
    (finished.outcome, sent, committed.collect())
}

#[tokio::test(start_paused = true)]
async fn what_etcd_did_not_take_on_goes_again_whole_and_more_slowly_each_time() {
    let mut pipeline = pipeline();
    let mut answers: Vec<Answer> = (0..7).map(|_| Answer::TooManyRequests).collect();
    answers.push(Answer::Done(Revision(9)));
    let (outcome, sent, committed) = carried_out(&mut pipeline, answers).await;
    assert_eq!(outcome, Outcome::Applied { revision: Revision(9) });
    assert_eq!(committed, [0, 1, 2], "each is done, and once");
    let pauses: Vec<u128> = sent.iter().map(|(pause, _)| pause.as_millis()).collect();
    assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 1000, 1000]);
    // Slot, three writes and the list of entries.
    assert!(
        sent[0].1.then.len() == 5 && sent.iter().all(|(_, txn)| *txn == sent[0].1),
        "nothing is left out, and nothing is sent by itself"
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_answer_is_lost_is_not_sent_again() {
    let mut pipeline = pipeline();
    let answers = vec![Answer::TooManyRequests, Answer::Lost, Answer::TooManyRequests, Answer::Done(Revision(9))];
    let (outcome, sent, committed) = carried_out(&mut pipeline, answers).await;
    assert_eq!((outcome, committed), (Outcome::Void { slot: Revision(9) }, vec![]));
    assert_eq!(sent[0].1, sent[1].1);
    assert!(sent[2].1.then.len() == 1 && sent[2].1 == sent[3].1, "the slot is taken instead, as often as it takes");
}

#[tokio::test(start_paused = true)]
async fn without_a_mark_it_goes_again_until_there_is_an_answer() {
    let mut pipeline = pipeline();
    let full = pipeline.next_batch().unwrap();
    assert_eq!(pipeline.finished(full.id, Outcome::NoSpace).len(), 2);
    let answers = vec![Answer::TooManyRequests, Answer::Lost, Answer::TooManyRequests, Answer::Lost, Answer::Done(Revision(9))];
    let (outcome, sent, committed) = carried_out(&mut pipeline, answers).await;
    assert_eq!((outcome, committed), (Outcome::Applied { revision: Revision(9) }, vec![2]));
    assert!(sent.len() == 5 && sent.iter().all(|(_, txn)| *txn == sent[0].1 && txn.then == [Op::delete("/k/2")]));
    assert!(sent.is_sorted_by_key(|(pause, _)| *pause), "{sent:?}");
}
