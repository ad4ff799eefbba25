//! Watches: what each still owes, and when it comes.
//!
//! In the wheel it is the part of the model of etcd that feeds the mirrors. Whole revisions, in order, none left out: how many of them
//! come in one message, and how late, is up to the dice. No message is made before it is sent, so a cut or a freeze holds up nothing
//! but the sending.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use evenkeel_store::{Error, KeyChange, KeyRange, Revision, WatchMessage};
use tokio::sync::mpsc;

use super::{
    core::{Core, Event},
    settings::Version,
};

/// A watch that begins in the past is looked at within this time.
const SYNC: Duration = Duration::from_millis(100);
/// So many revisions at most come in one message.
const MAX_REVISIONS: usize = 1_000;
/// So many messages wait for a slow reader; then the watch waits too, and is tried again after this time.
const UNREAD: usize = 64;
const RETRY: Duration = Duration::from_millis(50);
/// How often a watch tells of its progress by itself if it has nothing else to say; etcd adds up to a tenth.
const PROGRESS: Duration = Duration::from_secs(600);

type Messages = mpsc::UnboundedSender<Result<WatchMessage, Error>>;

/// A watch at its member.
pub(super) struct Watching {
    pub(super) wire: usize,
    pub(super) member: usize,
    range: KeyRange,
    start: Revision,
    /// The first revision that it may still owe; none: it owes nothing.
    from: Option<Revision>,
    /// It began in the past, and was not looked at yet.
    unsynced: bool,
    /// What it had in hand when the history was compacted.
    taken: VecDeque<Vec<KeyChange>>,
    /// How many signs of life are to be given, after what is owed.
    signs: usize,
    /// Questions for a sign of life that a cut wire or a frozen member holds up.
    questions: usize,
    /// It has sent something since it told of its progress.
    spoke: bool,
    /// It will tell of its progress, after what is owed.
    progress: bool,
    planned: bool,
    messages: Messages,
    unread: Arc<AtomicUsize>,
}

/// The reader's end of a watch.
pub(super) struct Opened {
    pub(super) id: u64,
    pub(super) created_at: Revision,
    pub(super) messages: mpsc::UnboundedReceiver<Result<WatchMessage, Error>>,
    /// How many messages are not read yet.
    pub(super) unread: Arc<AtomicUsize>,
}

impl Core {
    pub(super) fn open_watch(
        &mut self,
        wire: usize,
        member: usize,
        mut range: KeyRange,
        start: Revision,
        endpoint: &str,
    ) -> Result<Opened, Error> {
        // A watch takes the empty key, which all other requests refuse, for the first one there can be.
        if range.start.is_empty() {
            range.start.push(0);
        }
        if !range.end.is_empty() && range.end != [0] && range.start >= range.end {
            let reason = "mvcc: watcher range is empty".to_owned();
            return Err(Error::Unavailable { endpoint: endpoint.into(), reason, sent: true, source: None });
        }
        let created_at = self.cluster.members[member].applied;
        let start = if start > Revision(0) { start } else { Revision(created_at.0 + 1) };
        let past = start <= created_at;
        let (messages, receiver) = mpsc::unbounded_channel();
        let unread = Arc::new(AtomicUsize::new(0));
        let watch = Watching {
            wire,
            member,
            range,
            start,
            // What was agreed on and has not come to the member yet is owed as well.
            from: (past || start <= self.store.revision()).then_some(start),
            unsynced: past,
            taken: VecDeque::new(),
            signs: 0,
            questions: 0,
            spoke: false,
            progress: false,
            planned: false,
            messages,
            unread: unread.clone(),
        };
        let id = self.id();
        self.watches.insert(id, watch);
        if past {
            let delay = self.dice.between(Duration::ZERO, SYNC);
            self.plan_delivery(id, delay);
        }
        let progress = self.dice.between(PROGRESS, PROGRESS * 11 / 10);
        self.after(progress, Event::Progress(id));
        Ok(Opened { id, created_at, messages: receiver, unread })
    }

    /// Each watch whose range has changed owes its reader a message.
    pub(super) fn watches_notice(&mut self, revision: Revision) {
        let changes = self.store.changes(revision);
        let mut owing = Vec::new();
        self.watches.retain(|id, watch| {
            let concerned = watch.from.is_none() && watch.start <= revision && changes.iter().any(|c| watch.range.contains(c.key()));
            if concerned {
                watch.from = Some(revision);
                owing.push((*id, watch.wire));
            }
            !watch.messages.is_closed()
        });
        for (id, wire) in owing {
            let delay = self.latency(wire);
            self.plan_delivery(id, delay);
        }
    }

    fn plan_delivery(&mut self, id: u64, delay: Duration) {
        if self.watches.get_mut(&id).is_some_and(|watch| !std::mem::replace(&mut watch.planned, true)) {
            self.after(delay, Event::Deliver(id));
        }
    }

    /// Sends what the watch owes, or a part of it.
    pub(super) fn deliver(&mut self, id: u64) {
        let Some(mut watch) = self.watches.remove(&id) else { return };
        watch.planned = false;
        if watch.messages.is_closed() {
            return;
        }
        if !self.is_held_up(&watch) {
            if watch.unread.load(Relaxed) >= UNREAD {
                self.watches.insert(id, watch);
                self.plan_delivery(id, RETRY);
                return;
            }
            if !self.send_owed(&mut watch) {
                return;
            }
        }
        let goes_on = watch.owes(self.cluster.members[watch.member].applied) && !self.is_held_up(&watch);
        let wire = watch.wire;
        self.watches.insert(id, watch);
        if goes_on {
            let delay = self.latency(wire);
            self.plan_delivery(id, delay);
        }
    }

    fn is_held_up(&self, watch: &Watching) -> bool {
        self.wires[watch.wire].cut_from_etcd || self.cluster.is_frozen(watch.member)
    }

    /// False: the watch is over.
    fn send_owed(&mut self, watch: &mut Watching) -> bool {
        watch.unsynced = false;
        if let Some(changes) = watch.taken.pop_front() {
            watch.say(WatchMessage::Changes(changes));
            return true;
        }
        let applied = self.cluster.members[watch.member].applied;
        if let Some(from) = watch.from.filter(|from| *from <= applied) {
            if from < self.store.compacted() {
                watch.say(WatchMessage::Compacted(self.store.compacted()));
                return false;
            }
            // Mostly all that there is, at times less.
            let most = if self.dice.one_in(8) { 1 + self.dice.below(3) as usize } else { MAX_REVISIONS };
            let (changes, next) = self.owed(watch, from, applied, most);
            watch.from = next.or_else(|| (self.store.revision() > applied).then_some(Revision(applied.0 + 1)));
            if !changes.is_empty() {
                watch.say(WatchMessage::Changes(changes));
            }
        }
        if watch.from.is_none_or(|from| from > applied) {
            for _ in 0..std::mem::take(&mut watch.signs) {
                watch.say(WatchMessage::Alive(None));
            }
            if std::mem::take(&mut watch.progress) {
                watch.say(WatchMessage::Alive(Some(applied)));
            }
        }
        true
    }

    /// The changes of the watch's range from a revision on, and the revision to go on from.
    fn owed(&self, watch: &Watching, from: Revision, applied: Revision, most: usize) -> (Vec<KeyChange>, Option<Revision>) {
        let mut changes = Vec::new();
        let mut revisions = 0;
        for revision in (from.0..=applied.0).map(Revision) {
            let before = changes.len();
            if revisions == most {
                return (changes, Some(revision));
            }
            changes.extend(self.store.changes(revision).iter().filter(|change| watch.range.contains(change.key())).cloned());
            revisions += usize::from(changes.len() > before);
        }
        (changes, None)
    }

    /// The history before a revision is about to be forgotten. What a watch still owes of it stands in its channel, or is lost to it.
    pub(super) fn watches_take_before(&mut self, compacted: Revision) {
        if compacted <= self.store.compacted() || compacted > self.store.revision() {
            return;
        }
        let late: Vec<u64> = self.watches.iter().filter(|(_, w)| w.from.is_some_and(|from| from < compacted)).map(|(id, _)| *id).collect();
        for id in late {
            let Some(mut watch) = self.watches.remove(&id) else { continue };
            let applied = self.cluster.members[watch.member].applied;
            let in_hand = !watch.unsynced && applied >= self.store.revision() && self.dice.one_in(2);
            if let Some(from) = watch.from.filter(|from| in_hand && *from >= self.store.compacted()) {
                let (changes, _) = self.owed(&watch, from, applied, usize::MAX);
                if !changes.is_empty() {
                    watch.taken.push_back(changes);
                }
                watch.from = None;
            }
            self.watches.insert(id, watch);
        }
    }

    /// The reader's question for a sign of life has reached the member.
    pub(super) fn asked(&mut self, id: u64) {
        let Some(mut watch) = self.watches.remove(&id) else { return };
        watch.questions += 1;
        if self.wires[watch.wire].cut_to_etcd || self.cluster.is_frozen(watch.member) {
            self.watches.insert(id, watch);
            return;
        }
        let applied = self.cluster.members[watch.member].applied;
        let questions = std::mem::take(&mut watch.questions);
        let answers = match self.settings.version {
            Version::V3_4 => true,
            Version::V3_5 => !watch.unsynced && watch.start <= applied,
        };
        if answers {
            watch.signs += questions;
        }
        // Not in order with what is owed, in older versions.
        if self.settings.version == Version::V3_4 && !self.is_held_up(&watch) {
            for _ in 0..std::mem::take(&mut watch.signs) {
                watch.say(WatchMessage::Alive(None));
            }
        }
        let (signs, wire) = (watch.signs, watch.wire);
        self.watches.insert(id, watch);
        if signs > 0 {
            let delay = self.latency(wire);
            self.plan_delivery(id, delay);
        }
    }

    /// The watch tells of its progress if it has said nothing for long.
    pub(super) fn progress(&mut self, id: u64) {
        let Some(watch) = self.watches.get_mut(&id) else { return };
        if watch.messages.is_closed() {
            self.watches.remove(&id);
            return;
        }
        watch.progress = !std::mem::take(&mut watch.spoke) && !watch.unsynced && watch.start <= self.cluster.members[watch.member].applied;
        let (tells, wire) = (watch.progress, watch.wire);
        if tells {
            let delay = self.latency(wire);
            self.plan_delivery(id, delay);
        }
        self.after(PROGRESS, Event::Progress(id));
    }

    /// What has held some watches up is over.
    pub(super) fn watches_go_on(&mut self, which: impl Fn(&Watching) -> bool) {
        let ids: Vec<(u64, usize, bool)> =
            self.watches.iter().filter(|(_, watch)| which(watch)).map(|(id, watch)| (*id, watch.wire, watch.questions > 0)).collect();
        for (id, wire, asked) in ids {
            let delay = self.latency(wire);
            self.plan_delivery(id, delay);
            if asked {
                if let Some(watch) = self.watches.get_mut(&id) {
                    watch.questions -= 1;
                }
                self.after(delay, Event::Asked(id));
            }
        }
    }

    /// Watches end with a failure.
    pub(super) fn end_watches(&mut self, which: impl Fn(&Watching) -> bool, reason: &str) {
        let ids: Vec<u64> = self.watches.iter().filter(|(_, watch)| which(watch)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(watch) = self.watches.remove(&id) else { continue };
            let error = Error::Unavailable { endpoint: self.endpoint(watch.member), reason: reason.into(), sent: true, source: None };
            // Nobody listens to a watch that its reader has dropped.
            let _ = watch.messages.send(Err(error));
        }
    }
}

impl Watching {
    fn owes(&self, applied: Revision) -> bool {
        !self.taken.is_empty() || self.from.is_some_and(|from| from <= applied) || self.signs > 0 || self.progress
    }

    fn say(&mut self, message: WatchMessage) {
        self.spoke |= matches!(message, WatchMessage::Changes(_));
        self.unread.fetch_add(1, Relaxed);
        // Nobody listens to a watch that its reader has dropped.
        let _ = self.messages.send(Ok(message));
    }
}
