//! One attempt: recorded, told to etcd, executed, and its end recorded and told; each step in this order, whatever fails in between.
//!
//! The wheel: worker::task::rules -> **worker::task** -> worker::task::keeper. What is to be done was decided; here it is carried out, and what came of it
//! is handed back. Before and after each step a test may kill the agent (see [`crate::fault`]).

use std::{os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc, time::Duration};

use evenkeel_model::{
    Key, Origin, Revision, Session, TaskId, WorkerId,
    task::{Outcome, Task, TaskResult, TaskScript, TaskTail},
};
use evenkeel_store::{Client, Compare, Op, Txn, keys::Keys};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::sleep,
};

use super::{
    ends, follow,
    journal::{End, Journal, Record, Stage},
    keeper::{Cause, Keeper, Ran, Spans, Told},
    output::Blotter,
    rules::{self, SeenResult},
    script::{Kept, Prepared, Scripts},
};
use crate::{
    driver::process::cells::Cells,
    fault,
    protocol::authority::{Clock, Gate},
};

/// For one transaction.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);
/// The pause before etcd is asked again, the first time; and the longest: an end that was not taken yet is told within this after etcd is back.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often the gate is looked at.
pub(crate) const GATE_PERIOD: Duration = Duration::from_millis(100);
/// Why nothing begins, where tasks are off.
const NO_TASKS: &str = "this worker takes no tasks; start it with --tasks on";
/// Why nothing goes on, where the worker leaves.
pub(crate) const LEFT: &str = "the worker left";
/// Where more of its output is, as results say it.
const ON_DISK: &str = "disk";

/// What all attempts share.
pub(crate) struct Shared<C, J, S> {
    pub(crate) worker: WorkerId,
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    pub(crate) cells: Arc<C>,
    pub(crate) journal: J,
    pub(crate) scripts: S,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) gate: Gate,
    pub(crate) origin: Origin,
    /// It takes tasks.
    pub(crate) is_on: bool,
    pub(crate) counts: Arc<super::Counts>,
    pub(crate) ends: super::Ends,
}

/// Under what an attempt is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The session.
    pub session: Session,
    /// The revision of its admission.
    pub admission: Revision,
}

/// What came of a step.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// The record as it is now; none: as it was.
    pub(crate) record: Option<Record>,
    /// The result that was written.
    pub(crate) result: Option<SeenResult>,
    /// Nothing more is done before this has passed.
    pub(crate) pause: Option<Duration>,
    /// The record was removed: it was of another task.
    pub(crate) is_forgotten: bool,
}

impl Done {
    /// Etcd has changed, or does not answer: all is looked at again.
    fn again(record: Option<Record>) -> Self {
        Self { record, pause: Some(PAUSES.0), ..Self::default() }
    }
}

/// What came of a transaction.
enum Written {
    At(Revision),
    /// What it was made from is not so any more.
    Refused,
    /// Nobody knows, or it certainly was not.
    Unknown,
}

/// What was made of a definition.
struct Made {
    prepared: Prepared,
    spans: Spans,
}

/// One attempt that goes on.
pub(crate) struct Attempt<C, J, S> {
    pub(crate) shared: Arc<Shared<C, J, S>>,
    pub(crate) id: TaskId,
    pub(crate) told: watch::Receiver<Told>,
}

impl<C: Cells, J: Journal, S: Scripts> Attempt<C, J, S> {
    /// Begins an attempt, and stays with it to the end. The place is given back when nothing runs any more.
    pub(crate) async fn begin(
        mut self,
        (attempt, order): (u32, Revision),
        admitted: Admitted,
        before: Revision,
        place: OwnedSemaphorePermit,
    ) -> Done {
        let shared = Arc::clone(&self.shared);
        let began = shared.clock.unix_ns();
        let begin = Begin { id: self.id, order, admitted, before };
        let running = TaskResult::running(attempt, order, began);
        let reject = async |why: String| self.reject(&begin, running.clone(), &why).await;
        if !shared.is_on {
            return reject(NO_TASKS.to_owned()).await;
        }
        let (task, script) = match follow::definition(&shared.client, &shared.keys, self.id).await {
            Ok(Some(Ok(found))) => found,
            Ok(Some(Err(why))) => return reject(why).await,
            Ok(None) => return reject("its definition is gone".to_owned()).await,
            Err(_) => return Done::again(None),
        };
        let origin = shared.origin.clone();
        let record = Record { id: self.id, attempt, created: task.created, order, origin, began, tail: task.tail(), stage: Stage::Ordered };
        if let Err(error) = shared.journal.order(&record).await {
            return reject(format!("it cannot be recorded: {error}")).await;
        }
        let made = match self.make(&record, &task, &script).await {
            Ok(made) => made,
            Err(why) => {
                let done = reject(why).await;
                shared.scripts.clear(self.id, attempt).await;
                return Done { record: Some(record), ..done };
            }
        };
        let (told, ordered) = match fault::at("task.begin") {
            Ok(()) => self.tell_begin(&begin, &running).await,
            Err(_) => (Written::Unknown, Ordered::Before),
        };
        match told {
            Written::At(at) => self.execute(record, made, at, place, ordered).await,
            Written::Refused | Written::Unknown => {
                shared.scripts.clear(self.id, attempt).await;
                Done::again(Some(record))
            }
        }
    }

    /// Goes on with an attempt of which etcd was told, and that was not executed.
    pub(crate) async fn go_on(mut self, record: Record, told_at: Revision, place: OwnedSemaphorePermit) -> Done {
        if !self.shared.is_on {
            return self.end_unexecuted(record, told_at, Outcome::Rejected, NO_TASKS).await;
        }
        let (task, script) = match follow::definition(&self.shared.client, &self.shared.keys, self.id).await {
            Ok(Some(Ok(found))) => found,
            Ok(found) => {
                let why = found.and_then(Result::err).unwrap_or_else(|| "its definition is gone".to_owned());
                return self.end_unexecuted(record, told_at, Outcome::Rejected, &why).await;
            }
            Err(_) => return Done::again(None),
        };
        match self.make(&record, &task, &script).await {
            Ok(made) => self.execute(record, made, told_at, place, Ordered::Before).await,
            Err(why) => self.end_unexecuted(record, told_at, Outcome::Rejected, &why).await,
        }
    }

    async fn make(&self, record: &Record, task: &Task, script: &TaskScript) -> Result<Made, String> {
        let prepared = self.shared.scripts.prepare(record, task, script).await?;
        Ok(Made { prepared, spans: Spans { timeout: task.timeout(), grace: task.grace() } })
    }

    /// Tells etcd that it begins. True only if that is certain.
    async fn tell_begin(&self, begin: &Begin, running: &TaskResult) -> (Written, Ordered) {
        match self.write(begin.txn(&self.shared.keys, &self.shared.worker, running)).await {
            Written::Unknown => {}
            certain => return (certain, Ordered::JustNow),
        }
        loop {
            sleep(PAUSES.0).await;
            // What arrives later still is found by the record. Much may have happened since it was written.
            match self.read_result().await {
                Ok(Some(seen)) if seen.result == *running => return (Written::At(seen.modified), Ordered::Before),
                Ok(_) => return (Written::Refused, Ordered::Before),
                Err(()) if self.told.borrow().stop.is_some() => return (Written::Unknown, Ordered::Before),
                Err(()) => {}
            }
        }
    }

    /// Says that it will not begin. It may be that nobody takes it: then it is decided again.
    async fn reject(&self, begin: &Begin, running: TaskResult, why: &str) -> Done {
        let result = TaskResult { began: 0, ..running.with_end(Outcome::Rejected, self.shared.clock.unix_ns(), why) };
        match self.write(begin.txn(&self.shared.keys, &self.shared.worker, &result)).await {
            Written::At(modified) => {
                tracing::warn!(task = %self.id, attempt = result.attempt, why, "a script is rejected");
                self.shared.counts.ended(Outcome::Rejected);
                Done { result: Some(SeenResult { result, modified }), ..Done::default() }
            }
            Written::Refused | Written::Unknown => Done::again(None),
        }
    }

    /// Executes it, and tells its end.
    async fn execute(&mut self, mut record: Record, made: Made, told_at: Revision, place: OwnedSemaphorePermit, ordered: Ordered) -> Done {
        let shared = Arc::clone(&self.shared);
        let Made { prepared, spans } = made;
        let Prepared { mut start, output, mut notes, blotter } = prepared;
        let label = format!("task-{}.{}", record.id, record.attempt);
        // What was just told to etcd rests on the order as it is. While it waits for authority, the leader may give it up.
        let mut is_ordered = ordered == Ordered::JustNow && shared.gate.is_open();
        let ran = loop {
            // Nothing begins without authority, and what is not begun may be told to stop.
            let (not_after, why) = match self.authority().await {
                Some(until) if is_ordered => (Some(until), String::new()),
                Some(until) => match self.why_not(&record).await {
                    Ok(None) => (Some(until), String::new()),
                    Ok(Some(why)) => (None, why),
                    Err(()) => {
                        sleep(GATE_PERIOD).await;
                        continue;
                    }
                },
                None => (None, self.told.borrow().stop.clone().unwrap_or_else(|| LEFT.to_owned())),
            };
            is_ordered = false;
            let Some(not_after) = not_after else {
                break if record.stage == Stage::Ordered {
                    return self.end_unexecuted(record, told_at, Outcome::Killed, &format!("{why}, before it was executed")).await;
                } else {
                    Ran::Ended { status: None, cause: Some(Cause::Told(format!("{why}, before it was executed"))), left: 0 }
                };
            };
            if record.stage == Stage::Ordered {
                if let Err(error) = shared.journal.begun(&record).await {
                    let why = format!("it cannot be recorded, and was not executed: {error}");
                    return self.end_unexecuted(record, told_at, Outcome::Rejected, &why).await;
                }
                record.stage = Stage::Begun;
            }
            if let Err(error) = fault::at("task.exec") {
                break Ran::Refused(error.to_string());
            }
            let key = (record.id, record.attempt);
            if !shared.ends.begin(key, shared.clock.now() + spans.timeout + spans.grace + ends::SLACK) {
                tracing::warn!(task = %record.id, "the guard does not hear by when a script has to have ended: it is not executed yet");
                sleep(GATE_PERIOD).await;
                continue;
            }
            shared.counts.begun(1);
            let (cells, clock) = (&shared.cells, &shared.clock);
            let kill_ordered = || shared.ends.end(key);
            let keeper = Keeper { cells, clock, told: &mut self.told, output: &output, spans, kill_ordered: &kill_ordered };
            start.not_after = not_after;
            let ran = keeper.run(&label, start.clone()).await;
            shared.ends.end(key);
            shared.counts.begun(-1);
            if ran != Ran::TooLate {
                break ran;
            }
        };
        drop(place);
        self.shared.counts.freed.notify_one();
        if let Some(lost) = output.finish().await {
            notes.push(format!("some of its output is not kept: {lost}"));
        }
        shared.scripts.clear(record.id, record.attempt).await;
        let kept = shared.scripts.kept(record.id, record.attempt).await;
        let (out, err) = output.totals();
        let ended = end_of(&record, ran, spans, notes, shared.clock.unix_ns());
        let result = TaskResult { out, err, kept: kept_on(out, err), ..ended };
        let end = End { tail: tail_of(&record, &kept, Some(&blotter)), result };
        self.finish(record, end, told_at).await
    }

    /// Why an attempt of which etcd was told is not wanted any more, by its order as it is now; none: it is.
    async fn why_not(&self, record: &Record) -> Result<Option<String>, ()> {
        let key = self.shared.keys.spell(&Key::Order(self.shared.worker.clone(), self.id));
        let read = self.shared.client.get(key.as_bytes()).await.map_err(|_| ())?;
        Ok(rules::why_not(read.kv.as_ref().map(follow::order).as_ref(), record))
    }

    /// Until when it may be started, once it may; none: it will not any more.
    async fn authority(&mut self) -> Option<crate::protocol::authority::BootTime> {
        loop {
            let told = self.told.borrow_and_update().clone();
            if told.stop.is_some() || told.leaving {
                return None;
            }
            if let Some(until) = self.shared.gate.opens_until() {
                return Some(until);
            }
            tokio::select! {
                _ = self.told.changed() => {}
                () = sleep(GATE_PERIOD) => {}
            }
        }
    }

    /// Ends an attempt of which etcd was told, and that was not executed.
    async fn end_unexecuted(&self, record: Record, told_at: Revision, outcome: Outcome, why: &str) -> Done {
        self.shared.scripts.clear(record.id, record.attempt).await;
        let result = TaskResult::running(record.attempt, record.order, record.began).with_end(outcome, self.shared.clock.unix_ns(), why);
        let tail = TaskTail { attempt: record.attempt, out: Vec::new(), err: Vec::new() };
        self.finish(record, End { result, tail }, told_at).await
    }

    /// Ends an attempt that nobody stays with any more: what is known of it.
    pub(crate) async fn close(self, record: Record, told_at: Option<Revision>, outcome: Outcome, why: String) -> Done {
        self.shared.scripts.clear(record.id, record.attempt).await;
        let kept = self.shared.scripts.kept(record.id, record.attempt).await;
        let [out, err] = kept.written;
        let ended = TaskResult::running(record.attempt, record.order, record.began).with_end(outcome, self.shared.clock.unix_ns(), why);
        let result = TaskResult { out, err, kept: kept_on(out, err), ..ended };
        let end = End { tail: tail_of(&record, &kept, None), result };
        match told_at {
            Some(told_at) => self.finish(record, end, told_at).await,
            None => Done { record: Some(self.record_end(record, end).await), ..Done::default() },
        }
    }

    async fn finish(&self, record: Record, end: End, told_at: Revision) -> Done {
        let record = self.record_end(record, end.clone()).await;
        let TaskResult { attempt, outcome, message, .. } = &end.result;
        tracing::info!(task = %self.id, attempt, ?outcome, %message, "a script has ended");
        outcome.iter().for_each(|outcome| self.shared.counts.ended(*outcome));
        Done { record: Some(record), ..self.say(&end, told_at).await }
    }

    /// What cannot be recorded is said all the same: as long as this agent lives nothing is lost.
    async fn record_end(&self, record: Record, end: End) -> Record {
        if let Err(error) = self.shared.journal.ended(&record, &end).await {
            tracing::warn!(task = %record.id, attempt = record.attempt, %error, "the end of a script cannot be recorded");
        }
        Record { stage: Stage::Ended(Box::new(end)), ..record }
    }

    /// Tells etcd an end, until it takes it or knows something else of this task.
    pub(crate) async fn say(&self, end: &End, told_at: Revision) -> Done {
        let keys = &self.shared.keys;
        let key = keys.spell(&Key::TaskResult(self.shared.worker.clone(), self.id));
        let tail = keys.spell(&Key::TaskTail(self.shared.worker.clone(), self.id));
        let json = (serde_json::to_vec(&end.result).unwrap_or_default(), serde_json::to_vec(&end.tail).unwrap_or_default());
        let mut pause = PAUSES.0;
        loop {
            let compares = vec![Compare::ModRevision { key: key.clone().into_bytes(), equals: told_at }];
            let then = vec![Op::put(key.as_str(), json.0.as_slice()), Op::put(tail.as_str(), json.1.as_slice())];
            let written = match fault::at("task.end") {
                Ok(()) => self.write(Txn { compares, then, ..Txn::default() }).await,
                Err(_) => Written::Unknown,
            };
            match written {
                Written::At(modified) => {
                    let _ = fault::at("task.done");
                    return Done { result: Some(SeenResult { result: end.result.clone(), modified }), ..Done::default() };
                }
                // It was written before, and the answer was lost; or the task is gone, or another attempt is told of.
                Written::Refused => return Done { result: self.read_result().await.ok().flatten(), ..Done::again(None) },
                Written::Unknown => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Tells etcd that an attempt has ended of which nothing is known here.
    pub(crate) async fn say_lost(self, seen: SeenResult, why: String) -> Done {
        let SeenResult { result, modified } = seen;
        let attempt = result.attempt;
        tracing::warn!(task = %self.id, attempt, why, "a script is lost");
        self.shared.counts.ended(Outcome::Lost);
        let result = result.with_end(Outcome::Lost, self.shared.clock.unix_ns(), why);
        let end = End { result, tail: TaskTail { attempt, out: Vec::new(), err: Vec::new() } };
        self.say(&end, modified).await
    }

    /// Tells etcd the end that is recorded of an order, of which it knows nothing any more: its result was deleted, or etcd was restored from a backup.
    pub(crate) async fn say_again(self, record: Record, admitted: Admitted, before: Revision) -> Done {
        let Record { order, stage: Stage::Ended(end), .. } = &record else { return Done::default() };
        let begin = Begin { id: self.id, order: *order, admitted, before };
        self.say_once(&begin, end).await
    }

    /// Tells apart two tasks of one id. Of the same task, an attempt that may have been executed is lost; another task's record is removed.
    pub(crate) async fn compare(self, record: Record, (attempt, order): (u32, Revision), admitted: Admitted, before: Revision) -> Done {
        let task = match follow::definition(&self.shared.client, &self.shared.keys, self.id).await {
            Ok(Some(Ok((task, _)))) => task,
            Ok(_) | Err(_) => return Done::again(None),
        };
        if record.created != 0 && record.created != task.created {
            tracing::warn!(task = %self.id, attempt = record.attempt, "another task had this id before: what is recorded of it is removed");
            self.shared.journal.remove(record.id, record.attempt).await;
            return Done { is_forgotten: true, ..Done::default() };
        }
        let why = format!("attempt {} may have been executed before, by an order that etcd does not know any more", record.attempt);
        let now = self.shared.clock.unix_ns();
        let result = TaskResult { began: 0, ..TaskResult::running(attempt, order, now).with_end(Outcome::Lost, now, why) };
        let begin = Begin { id: self.id, order, admitted, before };
        self.say_once(&begin, &End { result, tail: TaskTail { attempt, out: Vec::new(), err: Vec::new() } }).await
    }

    /// Puts an end in the place of a beginning.
    async fn say_once(&self, begin: &Begin, end: &End) -> Done {
        let tail = self.shared.keys.spell(&Key::TaskTail(self.shared.worker.clone(), self.id));
        let mut txn = begin.txn(&self.shared.keys, &self.shared.worker, &end.result);
        txn.then.push(Op::put(tail, serde_json::to_vec(&end.tail).unwrap_or_default()));
        match self.write(txn).await {
            Written::At(modified) => {
                tracing::warn!(task = %self.id, attempt = end.result.attempt, "etcd did not know of a script that has ended: it is told again");
                Done { result: Some(SeenResult { result: end.result.clone(), modified }), ..Done::default() }
            }
            Written::Refused | Written::Unknown => Done::again(None),
        }
    }

    async fn write(&self, txn: Txn) -> Written {
        match self.shared.client.txn(txn, DEADLINE).await {
            Ok(reply) if reply.succeeded => Written::At(reply.revision),
            Ok(_) => Written::Refused,
            Err(error) => {
                tracing::debug!(task = %self.id, %error, "what became of a script could not be told");
                Written::Unknown
            }
        }
    }

    async fn read_result(&self) -> Result<Option<SeenResult>, ()> {
        let key = self.shared.keys.spell(&Key::TaskResult(self.shared.worker.clone(), self.id));
        let read = self.shared.client.get(key.as_bytes()).await.map_err(|_| ())?;
        Ok(read.kv.as_ref().map(follow::result))
    }
}

/// Whether an attempt that is to be executed was ordered by what was just compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ordered {
    JustNow,
    /// Its order may be another by now.
    Before,
}

/// What the first word about an attempt rests on.
struct Begin {
    id: TaskId,
    /// The version of the order that it acts on.
    order: Revision,
    admitted: Admitted,
    /// The version of the result that it follows; zero: there was none.
    before: Revision,
}

impl Begin {
    /// PURE: puts the result, if all that it rests on is still so. Exactly one of this and of what the leader does to close the order takes effect.
    fn txn(&self, keys: &Keys, worker: &WorkerId, result: &TaskResult) -> Txn {
        let Self { id, order, admitted, before } = *self;
        let key = keys.spell(&Key::TaskResult(worker.clone(), id));
        let is_as_read = |key: &str, equals| Compare::ModRevision { key: key.as_bytes().to_vec(), equals };
        let compares = vec![
            is_as_read(&keys.spell(&Key::Order(worker.clone(), id)), order),
            Compare::CreateRevision { key: keys.worker(worker).into_bytes(), equals: Revision(admitted.session.0) },
            is_as_read(&keys.admission(worker), admitted.admission),
            is_as_read(&key, before),
        ];
        Txn { compares, then: vec![Op::put(key, serde_json::to_vec(result).unwrap_or_default())], ..Txn::default() }
    }
}

/// PURE: what a run means for its attempt.
fn end_of(record: &Record, ran: Ran, spans: Spans, notes: Vec<String>, ended: i64) -> TaskResult {
    let running = TaskResult::running(record.attempt, record.order, record.began);
    let (outcome, status, left, why) = match ran {
        Ran::Refused(why) => (Outcome::Rejected, None, 0, why),
        Ran::TooLate => (Outcome::Killed, None, 0, "the worker had no authority to execute it".to_owned()),
        Ran::Ended { status, cause: Some(Cause::Timeout), left } => {
            (Outcome::TimedOut, status, left, format!("it was stopped after its timeout of {:?}", spans.timeout))
        }
        Ran::Ended { status, cause: Some(Cause::Told(why)), left } => (Outcome::Killed, status, left, why),
        Ran::Ended { status: None, left, .. } => (Outcome::Lost, None, left, "its shim was killed, and nobody saw how it ended".to_owned()),
        Ran::Ended { status: Some(status), left, .. } => {
            (if status.success() { Outcome::Succeeded } else { Outcome::Failed }, Some(status), left, String::new())
        }
    };
    // What was refused was never begun.
    let running = if outcome == Outcome::Rejected { TaskResult { began: 0, ..running } } else { running };
    let message = [why].into_iter().chain(notes).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    TaskResult {
        exit: status.and_then(|status: ExitStatus| status.code()),
        signal: status.and_then(|status| status.signal()).unwrap_or_default(),
        leftover: left,
        ..running.with_end(outcome, ended, message)
    }
}

fn kept_on(out: u64, err: u64) -> Box<str> {
    if out + err > 0 { ON_DISK.into() } else { Box::default() }
}

/// PURE: the last of what it wrote, as etcd is told. Without a blotter nobody knows what of it is secret.
fn tail_of(record: &Record, kept: &Kept, blotter: Option<&Blotter>) -> TaskTail {
    let nobody_knows = blotter.is_none() && kept.has_secrets;
    let none = Blotter::default();
    let [out, err] = [0, 1].map(|stream| {
        let text = if nobody_knows { &[] } else { kept.last[stream].as_slice() };
        blotter.unwrap_or(&none).tail(text, record.tail)
    });
    TaskTail { attempt: record.attempt, out, err }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::output::Stretch;

    fn record() -> Record {
        let (id, origin) = (TaskId(7), Origin::default());
        Record { id, attempt: 2, created: 3, order: Revision(10), origin, began: 5, tail: 4, stage: Stage::Begun }
    }

    #[test]
    fn the_first_word_rests_on_order_session_admission_and_result() {
        let (keys, worker) = (Keys::new("/p"), WorkerId::new("w").expect("id"));
        let admitted = Admitted { session: Session(20), admission: Revision(30) };
        let begin = Begin { id: TaskId(7), order: Revision(10), admitted, before: Revision(40) };
        let result = TaskResult::running(2, Revision(10), 5);
        let txn = begin.txn(&keys, &worker, &result);
        let is_at = |key: &str, equals| Compare::ModRevision { key: key.as_bytes().to_vec(), equals: Revision(equals) };
        let expected = [
            is_at("/p/orders/w/7", 10),
            Compare::CreateRevision { key: b"/p/workers/w".to_vec(), equals: Revision(20) },
            is_at("/p/admissions/w", 30),
            is_at("/p/results/w/7", 40),
        ];
        assert_eq!((txn.compares.as_slice(), txn.otherwise.len()), (expected.as_slice(), 0));
        assert_eq!(txn.then, [Op::put("/p/results/w/7", serde_json::to_vec(&result).expect("json"))]);
    }

    #[test]
    fn an_end_is_told_by_what_made_it() {
        let spans = Spans { timeout: Duration::from_secs(5), grace: Duration::ZERO };
        let status = |raw| Some(ExitStatus::from_raw(raw));
        let ended = |status, cause| Ran::Ended { status, cause, left: 3 };
        let told = |why: &str| Some(Cause::Told(why.to_owned()));
        // how it ran; outcome, exit status, signal, what is left, message
        let cases = [
            (ended(status(0), None), Outcome::Succeeded, Some(0), 0, 3, "a note"),
            (ended(status(3 << 8), None), Outcome::Failed, Some(3), 0, 3, "a note"),
            (ended(status(9), None), Outcome::Failed, None, 9, 3, "a note"),
            (ended(status(0), Some(Cause::Timeout)), Outcome::TimedOut, Some(0), 0, 3, "it was stopped after its timeout of 5s; a note"),
            (ended(status(15), told("by a person")), Outcome::Killed, None, 15, 3, "by a person; a note"),
            (ended(None, None), Outcome::Lost, None, 0, 3, "its shim was killed, and nobody saw how it ended; a note"),
            (Ran::Refused("no".to_owned()), Outcome::Rejected, None, 0, 0, "no; a note"),
        ];
        for (ran, outcome, exit, signal, left, message) in cases {
            let result = end_of(&record(), ran.clone(), spans, vec!["a note".to_owned()], 9);
            let found = (result.end(), result.exit, result.signal, result.leftover, &*result.message);
            assert_eq!(found, (Some(outcome), exit, signal, left, message), "{ran:?}");
            let began = if outcome == Outcome::Rejected { 0 } else { 5 };
            assert_eq!((result.attempt, result.order, result.began, result.ended), (2, Revision(10), began, 9));
        }
    }

    #[test]
    fn what_may_hold_secrets_that_nobody_knows_is_not_told() {
        let last = |text: &str| vec![Stretch { bytes: text.into(), ..Stretch::default() }];
        let kept = |has_secrets| Kept { written: [9, 1], last: [last("the secret"), last("x")], has_secrets };
        let tail = |has_secrets, blotter| {
            let TaskTail { attempt, out, err } = tail_of(&record(), &kept(has_secrets), blotter);
            assert_eq!(attempt, 2);
            (String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text"))
        };
        let of = |out: &str, err: &str| (out.to_owned(), err.to_owned());
        assert_eq!(tail(false, None), of("cret", "x"));
        assert_eq!(tail(true, None), of("", ""));
        assert_eq!(tail(true, Some(&Blotter::of([b"secret".to_vec()]))), of("ret]", "x"));
    }
}
