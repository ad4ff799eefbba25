//! What the real runner of tasks finds on a simulated machine: a disk that records, and scripts that are prepared.
//!
//! The wheel: under **worker::task**. The disk belongs to the machine: what was recorded outlives agent, guard and power, until somebody wipes it. What a
//! script does is the kernel's to say.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use evenkeel_model::{
    TaskId,
    task::{Task, TaskScript},
};
use evenkeel_worker::{
    driver::process::cells::{Start, Terms},
    protocol::authority::BootTime,
    task::{End, Journal, Kept, Output, Prepared, Record, Scripts, Stage},
};
use tokio::time::sleep;

use crate::fleet::{dice::Dice, ledger::Ledger};

/// The longest that a disk takes to the moment at which something is recorded, and from there to its word.
const LONGEST_WRITE: Duration = Duration::from_millis(30);
/// The longest that a script takes to be prepared.
const LONGEST_LOOK: Duration = Duration::from_millis(60);

/// The disk of a machine. Clones are the same.
#[derive(Clone, Debug)]
pub(in crate::fleet) struct SimJournal {
    records: Arc<Mutex<BTreeMap<(TaskId, u32), Record>>>,
    ledger: Ledger,
    dice: Dice,
}

impl SimJournal {
    pub(in crate::fleet) fn new(ledger: Ledger, dice: Dice) -> Self {
        Self { records: Arc::default(), ledger, dice }
    }

    /// All of it is lost.
    pub(in crate::fleet) fn wipe(&self) {
        self.records().clear();
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<(TaskId, u32), Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to what is recorded. Whoever dies before or after that leaves it undone, or done.
    async fn write(&self, change: impl FnOnce(&mut BTreeMap<(TaskId, u32), Record>) -> io::Result<()> + Send) -> io::Result<()> {
        sleep(self.dice.span(Duration::ZERO, LONGEST_WRITE)).await;
        let fails = self.ledger.is_rough() && self.dice.per_mille(8);
        if fails {
            self.ledger.count(|counts| counts.task_disk_errors += 1);
        }
        // One that failed may have been done all the same.
        if !fails || self.dice.per_mille(500) {
            change(&mut self.records())?;
        }
        sleep(self.dice.span(Duration::ZERO, LONGEST_WRITE)).await;
        if fails { Err(io::Error::other("input/output error")) } else { Ok(()) }
    }

    async fn set_stage(&self, record: &Record, stage: Stage) -> io::Result<()> {
        let key = (record.id, record.attempt);
        self.write(move |records| {
            records.get_mut(&key).ok_or(io::ErrorKind::NotFound)?.stage = stage;
            Ok(())
        })
        .await
    }
}

impl Journal for SimJournal {
    async fn load(&self) -> io::Result<Vec<Record>> {
        self.write(|_| Ok(())).await?;
        Ok(self.records().values().cloned().collect())
    }

    async fn order(&self, record: &Record) -> io::Result<()> {
        let record = record.clone();
        self.write(move |records| {
            records.insert((record.id, record.attempt), Record { stage: Stage::Ordered, ..record });
            Ok(())
        })
        .await
    }

    async fn begun(&self, record: &Record) -> io::Result<()> {
        self.set_stage(record, Stage::Begun).await
    }

    async fn ended(&self, record: &Record, end: &End) -> io::Result<()> {
        self.set_stage(record, Stage::Ended(Box::new(end.clone()))).await
    }

    async fn remove(&self, id: TaskId, attempt: u32) {
        let _ = self
            .write(move |records| {
                records.remove(&(id, attempt));
                Ok(())
            })
            .await;
    }

    /// Some of it is too much, whatever it is.
    async fn prune(&self, kept: Vec<(TaskId, u32)>) -> Vec<(TaskId, u32)> {
        let mut removed = Vec::new();
        self.records().retain(|key, record| {
            let is_removed = matches!(record.stage, Stage::Ended(_)) && !kept.contains(key) && self.dice.per_mille(300);
            removed.extend(is_removed.then_some(*key));
            !is_removed
        });
        removed
    }
}

/// Prepares scripts that are nothing but their names.
#[derive(Clone, Debug)]
pub(in crate::fleet) struct SimScripts {
    pub(in crate::fleet) ledger: Ledger,
    pub(in crate::fleet) dice: Dice,
}

impl Scripts for SimScripts {
    async fn prepare(&self, record: &Record, _: &Task, _: &TaskScript) -> Result<Prepared, String> {
        sleep(self.dice.span(Duration::ZERO, LONGEST_LOOK)).await;
        if self.ledger.is_rough() && self.dice.per_mille(20) {
            return Err("its account is none of this machine".to_owned());
        }
        let variable = |text: String| CString::new(text).map_err(|error| error.to_string());
        let start = Start {
            not_after: BootTime::default(),
            may_gain_privileges: false,
            cgroup: CString::default(),
            cwd: CString::default(),
            stdin: CString::default(),
            errors_apart: true,
            leaves_children: false,
            account: None,
            terms: Terms::Task,
            command: vec![CString::from(c"script")],
            environment: vec![variable(format!("EVENKEEL_TASK={}", record.id))?, variable(format!("EVENKEEL_ATTEMPT={}", record.attempt))?],
        };
        Ok(Prepared::new(start, Output::nowhere()))
    }

    async fn kept(&self, _: TaskId, _: u32) -> Kept {
        sleep(self.dice.span(Duration::ZERO, LONGEST_LOOK)).await;
        Kept::default()
    }

    async fn clear(&self, _: TaskId, _: u32) {
        sleep(self.dice.span(Duration::ZERO, LONGEST_WRITE)).await;
    }
}
