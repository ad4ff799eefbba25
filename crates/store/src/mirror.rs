//! List and watch, joined by revision: a stream of updates from which a copy of a range of keys is kept whole and in order.
//!
//! In the wheel this is store::watch. It must not interpret keys or values, and it never shows half a list or half a transaction.
//!
//! # When a member falls silent
//!
//! A watch of which nothing comes looks the same whether nothing happens or its member is frozen or cut off. So a stream that has been
//! quiet for [`QUIET`] is probed for liveness, and is given up for another member if no answer comes within [`ANSWER`]: a frozen
//! member is noticed within 3 s. If another call of the same client has missed its deadline and left the member (a worker's proof
//! does so within a second), the stream is asked at once. The question is etcd's progress request, which its member answers alone: no
//! read, no write, nothing between the members. A member that lives but has lost its quorum ends the stream by itself, since the watch
//! requires a leader. HTTP/2 pings stand behind all this: they find a dead connection within 8 s.

use std::time::Duration;

use evenkeel_model::Revision;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use crate::{
    client::Client,
    error::Error,
    in_use::Moves,
    streams::WatchStream,
    task::of_this_process,
    transport::WatchMessage,
    types::{KeyRange, Kv},
};

/// How long a stream may be quiet before it is probed for liveness.
const QUIET: Duration = Duration::from_secs(2);
/// How long the sign may take. It doubles with every stream in a row that gave none, since a member that reads a long history for a
/// watch that resumes far back gives none either.
const ANSWER: Duration = Duration::from_secs(1);
const LONGEST_ANSWER: Duration = Duration::from_secs(8);
/// The first and the longest pause between two failures in a row.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After so many signs of life a watch has surely repeated what it must: it catches up within a tenth of a second, and is asked for a
/// sign only after [`QUIET`].
const SIGNS: u8 = 3;
/// How many updates may wait for the owner before the watch waits too.
const CHANNEL: usize = 256;

/// What has happened to the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The whole range as it stands at a revision: it replaces everything that was known. It is the first update that tells of keys.
    Reset {
        /// The keys, in order.
        kvs: Vec<Kv>,
        /// The revision at which all of them were read.
        revision: Revision,
        /// When the list was begun: the time before its first page was asked for. What was committed by then is in it.
        begun: Instant,
    },
    /// What has changed since the update before: whole transactions, in order. Never empty.
    Changes {
        /// The changes, by growing revision.
        changes: Vec<KeyChange>,
        /// The revision of the last one.
        revision: Revision,
    },
    /// etcd cannot be followed at the moment: what is known may be stale until `Recovered` or `Reset`. Sent once for each such time.
    Lost {
        /// Why.
        reason: String,
    },
    /// etcd is followed again. What was missed, if anything, comes next.
    Recovered,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// The key was written.
    Put(Kv),
    /// The key was deleted, by a request or because its lease ended.
    Delete {
        /// The key.
        key: Vec<u8>,
        /// The revision of the deletion.
        revision: Revision,
    },
}

impl KeyChange {
    /// The key that has changed.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(kv) => kv.modified,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Follows a range from now on: first a `Reset`, then what changes. It goes on through failures of etcd and its members, and ends when
/// the receiver is dropped. It must be called within a tokio runtime.
///
/// One watch over one range is what keeps transactions whole; two mirrors are not ordered with each other.
#[must_use]
pub fn mirror(client: &Client, range: KeyRange) -> mpsc::Receiver<Update> {
    let (updates, receiver) = mpsc::channel(CHANNEL);
    let member_changes = client.current_changes();
    let mirror = Mirror {
        client: client.clone(),
        range,
        updates,
        member_changes,
        last: Vec::new(),
        repeat_within: None,
        lost: false,
        pause: PAUSE,
        answer: ANSWER.max(client.deadline()),
    };
    tokio::spawn(of_this_process(mirror.run()));
    receiver
}

/// Where the mirror stands.
enum State {
    /// Nothing is known, or what is known can no longer be carried on: the whole range is to be listed.
    Listing,
    /// Everything up to `seen` is known, and no watch is open.
    Opening { seen: Revision },
    /// A watch is open that goes on after `seen`.
    Following { seen: Revision, stream: Box<WatchStream>, pulse: Pulse },
}

/// What is known of the life of the member behind a watch.
#[derive(Clone, Copy)]
enum Pulse {
    /// It was heard of at this time.
    Heard(Instant),
    /// It was probed for liveness, and has until this time.
    Asked { until: Instant },
}

/// What an open watch brings next.
enum Event {
    Message(Result<WatchMessage, Error>),
    /// Nothing came for too long, or other calls have left the member.
    Doubt,
    /// No answer to the probe came.
    Silence,
}

/// The owner has dropped the receiver.
struct Closed;

struct Mirror {
    client: Client,
    range: KeyRange,
    updates: mpsc::Sender<Update>,
    member_changes: Moves,
    /// The changes of the revision that was seen last, if it was one that changed the range. A watch that goes on after it repeats them;
    /// one that does not tells of another history, since etcd was restored from a backup and has gone on from there.
    last: Vec<KeyChange>,
    /// The repetition is still to come: after how many signs of life it is given up.
    repeat_within: Option<u8>,
    /// Whether the owner was told that its view may be stale.
    lost: bool,
    pause: Duration,
    answer: Duration,
}

impl Mirror {
    async fn run(mut self) {
        let mut state = State::Listing;
        while let Ok(next) = self.step(state).await {
            state = next;
        }
    }

    async fn step(&mut self, state: State) -> Result<State, Closed> {
        match state {
            State::Listing => self.list().await,
            State::Opening { seen } => self.open(seen).await,
            State::Following { seen, stream, pulse } => self.follow(seen, stream, pulse).await,
        }
    }

    async fn list(&mut self) -> Result<State, Closed> {
        let begun = Instant::now();
        let listed = tokio::select! {
            biased;
            listed = self.client.list(&self.range) => listed,
            () = self.updates.closed() => return Err(Closed),
        };
        match listed {
            Ok(listed) => {
                self.lost = false;
                self.last.clear();
                self.send(Update::Reset { kvs: listed.kvs, revision: listed.revision, begun }).await?;
                Ok(State::Opening { seen: listed.revision })
            }
            Err(error) => self.failed(&error, State::Listing).await,
        }
    }

    async fn open(&mut self, seen: Revision) -> Result<State, Closed> {
        self.member_changes.forget();
        let opened = tokio::select! {
            biased;
            opened = WatchStream::open(&self.client, &self.range, seen, self.client.deadline()) => opened,
            () = self.updates.closed() => return Err(Closed),
        };
        match opened {
            Ok(stream) if stream.created_at() < seen => self.check_history(seen, stream).await,
            Ok(stream) => self.opened(seen, stream).await,
            Err(error) => self.failed(&error, State::Opening { seen }).await,
        }
    }

    async fn opened(&mut self, seen: Revision, stream: WatchStream) -> Result<State, Closed> {
        self.pause = PAUSE;
        self.repeat_within = (!self.last.is_empty()).then_some(SIGNS);
        if std::mem::take(&mut self.lost) {
            info!(endpoint = self.client.endpoint_of(stream.member()), revision = %seen, "etcd is followed again");
            self.send(Update::Recovered).await?;
        }
        Ok(State::Following { seen, stream: Box::new(stream), pulse: Pulse::Heard(Instant::now()) })
    }

    /// The member's revision is less than what was seen. Either it lags, which passes, or etcd has been restored from an older state
    /// or started anew, and would tell of nothing until its new history has outgrown the old one.
    async fn check_history(&mut self, seen: Revision, stream: WatchStream) -> Result<State, Closed> {
        match self.client.get(&self.range.start).await {
            Ok(read) if read.revision < seen => {
                let reason = format!("etcd's revision went back from {seen} to {}", read.revision);
                self.tell_lost(reason).await?;
                Ok(State::Listing)
            }
            Ok(_) => self.opened(seen, stream).await,
            Err(error) => self.failed(&error, State::Opening { seen }).await,
        }
    }

    async fn follow(&mut self, seen: Revision, mut stream: Box<WatchStream>, pulse: Pulse) -> Result<State, Closed> {
        match self.next_event(&mut stream, pulse).await? {
            Event::Message(Ok(WatchMessage::Changes(changes))) => {
                if self.repeat_within.take().is_some() && !changes.iter().filter(|c| c.revision() == seen).eq(&self.last) {
                    return self.other_history(seen).await;
                }
                let seen = self.pass_on(seen, changes).await?;
                Ok(self.heard(seen, stream))
            }
            Event::Message(Ok(WatchMessage::Alive(progress))) => {
                self.repeat_within = self.repeat_within.map(|signs| signs.saturating_sub(1));
                if self.repeat_within == Some(0) {
                    return self.other_history(seen).await;
                }
                let further = progress.filter(|p| *p > seen && self.repeat_within.is_none());
                if further.is_some() {
                    self.last.clear();
                }
                Ok(self.heard(further.unwrap_or(seen), stream))
            }
            Event::Message(Ok(WatchMessage::Compacted(compacted))) => {
                debug!(%seen, %compacted, "the watch lagged behind etcd's compaction: listing again");
                self.tell_lost(format!("etcd has compacted its history up to {compacted}, past {seen}")).await?;
                Ok(State::Listing)
            }
            Event::Message(Err(error)) => self.broken(seen, &stream, &error).await,
            Event::Doubt => match stream.ask(self.answer).await {
                Ok(()) => Ok(State::Following { seen, stream, pulse: Pulse::Asked { until: Instant::now() + self.answer } }),
                Err(error) => self.broken(seen, &stream, &error).await,
            },
            Event::Silence => {
                let error = stream.silent(self.answer);
                self.answer = (self.answer * 2).min(LONGEST_ANSWER);
                self.broken(seen, &stream, &error).await
            }
        }
    }

    async fn other_history(&mut self, seen: Revision) -> Result<State, Closed> {
        self.repeat_within = None;
        self.tell_lost(format!("etcd tells of another history than before: its revision {seen} is not the one that was seen")).await?;
        Ok(State::Listing)
    }

    /// The member lives.
    fn heard(&mut self, seen: Revision, stream: Box<WatchStream>) -> State {
        self.answer = ANSWER.max(self.client.deadline());
        State::Following { seen, stream, pulse: Pulse::Heard(Instant::now()) }
    }

    /// The stream is of no use any more: on with another member, from where this one ended.
    async fn broken(&mut self, seen: Revision, stream: &WatchStream, error: &Error) -> Result<State, Closed> {
        self.client.left_because(stream.member(), error);
        self.failed(error, State::Opening { seen }).await
    }

    async fn next_event(&mut self, stream: &mut WatchStream, pulse: Pulse) -> Result<Event, Closed> {
        let (until, asked) = match pulse {
            Pulse::Heard(at) => (at + QUIET, false),
            Pulse::Asked { until } => (until, true),
        };
        tokio::select! {
            biased;
            message = stream.next() => Ok(Event::Message(message)),
            () = self.updates.closed() => Err(Closed),
            () = self.member_changes.next(), if !asked => Ok(Event::Doubt),
            () = sleep_until(until) => Ok(if asked { Event::Silence } else { Event::Doubt }),
        }
    }

    /// Hands changes to the owner. What was seen before is left out: a watch repeats the last revision.
    async fn pass_on(&mut self, seen: Revision, mut changes: Vec<KeyChange>) -> Result<Revision, Closed> {
        changes.retain(|change| change.revision() > seen);
        let Some(revision) = changes.last().map(KeyChange::revision) else { return Ok(seen) };
        self.last = changes.iter().filter(|change| change.revision() == revision).cloned().collect();
        self.send(Update::Changes { changes, revision }).await?;
        Ok(revision)
    }

    /// Tells the owner, waits a little, and goes on from `next`.
    async fn failed(&mut self, error: &Error, next: State) -> Result<State, Closed> {
        self.tell_lost(error.to_string()).await?;
        tokio::select! {
            biased;
            () = self.updates.closed() => return Err(Closed),
            () = sleep(self.pause) => {}
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(next)
    }

    async fn tell_lost(&mut self, reason: String) -> Result<(), Closed> {
        if std::mem::replace(&mut self.lost, true) {
            debug!(reason, "etcd still cannot be followed");
            return Ok(());
        }
        warn!(reason, "etcd cannot be followed at the moment");
        self.send(Update::Lost { reason }).await
    }

    async fn send(&self, update: Update) -> Result<(), Closed> {
        self.updates.send(update).await.map_err(|_| Closed)
    }
}
