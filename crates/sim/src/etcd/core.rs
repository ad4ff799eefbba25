//! The world of the model: what is to happen when, and the one place where the store changes.
//!
//! In the wheel it is the engine of the model of etcd. Everything that takes time is an event in one queue, which one task works off on
//! tokio's clock; events of the same time happen in the order in which they were planned. What an event does stands in `calls`,
//! `cluster`, `watches` and `wires`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use evenkeel_store::{KeyChange, Revision};
use rand_chacha::ChaCha8Rng;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    calls::Call,
    cluster::Cluster,
    refusal::Refusal,
    settings::{Dice, Settings},
    store::Store,
    watches::Watching,
    wires::Wire,
};

/// Looks at each change when it is made.
pub(super) type Hook = Box<dyn FnMut(&Store, Revision, &[KeyChange]) + Send>;

/// The first lease's id: etcd's are large, too.
const FIRST_LEASE: i64 = 0x0700_0000_0000_0001;

/// What is planned.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A request reaches its member.
    Arrive(u64),
    /// An answer reaches its caller.
    Answer(u64),
    /// The caller of a request that waits for the cluster has waited as long as etcd lets it.
    Overdue(u64),
    /// A connection could not be made in time.
    NotConnected(u64),
    /// A watch may send what it owes.
    Deliver(u64),
    /// A question for a sign of life reaches the member of a watch.
    Asked(u64),
    /// A watch tells of its progress by itself.
    Progress(u64),
    /// A lease may have expired.
    LeaseDue(i64),
    /// The members without a leader elect one.
    Elect(u64),
    /// A member that has had no leader for so long ends its streams.
    EndStreams { member: usize, outage: u64 },
    /// A member that lags behind has come to this revision.
    CatchUp { member: usize, to: Revision },
    /// Nothing has come over a wire for as long as a connection lives.
    Silent { wire: usize, cut: u64 },
    /// A frozen member has answered no ping for as long as a connection lives.
    Unanswered { member: usize, freeze: u64 },
}

/// Everything there is.
pub(super) struct Core {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) dice: Dice,
    pub(super) cluster: Cluster,
    pub(super) wires: Vec<Wire>,
    pub(super) calls: BTreeMap<u64, Call>,
    pub(super) watches: BTreeMap<u64, Watching>,
    /// Extensions of leases that have expired and are not revoked yet.
    pub(super) parked: BTreeMap<i64, Vec<u64>>,
    /// Leases for which [`Event::LeaseDue`] is planned.
    pub(super) armed: BTreeSet<i64>,
    /// It takes on no request that would change something.
    pub(super) is_overloaded: bool,
    hook: Option<Hook>,
    started: Instant,
    queue: BTreeMap<(Duration, u64), Event>,
    planned: u64,
    next_id: u64,
    next_lease: i64,
    /// The clerk sleeps until then; none: until he is woken.
    sleeps_until: Option<Duration>,
    wake: Arc<Notify>,
}

/// What all handles share. The clerk ends when the last of them is dropped.
pub(super) struct World {
    core: Mutex<Core>,
    wake: Arc<Notify>,
}

impl World {
    /// Starts the clerk. It must be called within a tokio runtime.
    pub(super) fn start(store: Store, settings: Settings, rng: ChaCha8Rng) -> Arc<Self> {
        let wake = Arc::new(Notify::new());
        let core = Core {
            cluster: Cluster::new(settings.members.max(1), store.revision()),
            store,
            settings,
            dice: Dice(rng),
            wires: Vec::new(),
            calls: BTreeMap::new(),
            watches: BTreeMap::new(),
            parked: BTreeMap::new(),
            armed: BTreeSet::new(),
            is_overloaded: false,
            hook: None,
            started: Instant::now(),
            queue: BTreeMap::new(),
            planned: 0,
            next_id: 0,
            next_lease: FIRST_LEASE,
            sleeps_until: Some(Duration::ZERO),
            wake: wake.clone(),
        };
        let started = core.started;
        let world = Arc::new(Self { core: Mutex::new(core), wake: wake.clone() });
        tokio::spawn(work_off(Arc::downgrade(&world), wake, started));
        world
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// The clerk: does what is due, and sleeps until the next thing is.
async fn work_off(world: Weak<World>, wake: Arc<Notify>, started: Instant) {
    loop {
        let next = match world.upgrade() {
            Some(world) => world.core().run_due(),
            None => return,
        };
        match next {
            Some(next) => tokio::select! {
                biased;
                () = wake.notified() => {}
                () = sleep_until(started + next) => {}
            },
            None => wake.notified().await,
        }
    }
}

impl Core {
    /// How long the world has existed.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn planned(&self) -> u64 {
        self.planned
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn on_applied(&mut self, hook: Hook) {
        self.hook = Some(hook);
    }

    /// Plans an event.
    pub(super) fn after(&mut self, delay: Duration, event: Event) {
        let at = self.now() + delay;
        self.planned += 1;
        self.queue.insert((at, self.planned), event);
        if self.sleeps_until.is_none_or(|until| at < until) {
            self.sleeps_until = Some(at);
            self.wake.notify_one();
        }
    }

    /// How long a message takes on a wire in one direction.
    pub(super) fn latency(&mut self, wire: usize) -> Duration {
        let (shortest, longest) = self.settings.latency;
        let mut latency = self.dice.between(shortest, longest);
        if self.dice.one_in(self.settings.slow_one_in) {
            latency = self.dice.between(longest, self.settings.slow.max(longest));
        }
        latency + self.wires[wire].delay
    }

    fn run_due(&mut self) -> Option<Duration> {
        let now = self.now();
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= now) {
            let event = entry.remove();
            self.happen(event);
        }
        self.sleeps_until = self.queue.first_key_value().map(|((at, _), _)| *at);
        self.sleeps_until
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(call) => self.arrive(call),
            Event::Answer(call) => self.answer(call),
            Event::Overdue(call) => self.overdue(call),
            Event::NotConnected(call) => self.not_connected(call),
            Event::Deliver(watch) => self.deliver(watch),
            Event::Asked(watch) => self.asked(watch),
            Event::Progress(watch) => self.progress(watch),
            Event::LeaseDue(lease) => self.lease_due(lease),
            Event::Elect(election) => self.elect(election),
            Event::EndStreams { member, outage } => self.end_streams(member, outage),
            Event::CatchUp { member, to } => self.catch_up(member, to),
            Event::Silent { wire, cut } => self.silent(wire, cut),
            Event::Unanswered { member, freeze } => self.unanswered(member, freeze),
        }
    }

    /// Changes the store, and tells everyone who has to know.
    pub(super) fn change<T>(&mut self, change: impl FnOnce(&mut Store) -> T) -> T {
        let before = self.store.revision();
        let done = change(&mut self.store);
        let revision = self.store.revision();
        if revision != before {
            if let Some(hook) = &mut self.hook {
                hook(&self.store, revision, self.store.changes(revision));
            }
            self.members_apply(revision);
            self.watches_notice(revision);
        }
        done
    }

    /// Grants a lease, and plans to look whether it has expired.
    pub(super) fn grant(&mut self, seconds: i64) -> Result<(i64, Duration), Refusal> {
        let (lease, now) = (self.next_lease, self.now());
        let ttl = self.store.grant(lease, seconds, now)?;
        self.next_lease += 1;
        self.arm(lease);
        Ok((lease, ttl))
    }

    /// Revokes a lease, and answers those who have asked for its extension too late.
    pub(super) fn revoke(&mut self, lease: i64) -> Result<(), Refusal> {
        self.change(|store| store.revoke(lease))?;
        for call in self.parked.remove(&lease).unwrap_or_default() {
            self.serve(call);
        }
        Ok(())
    }

    /// Plans to look whether the lease has expired, unless that is planned.
    pub(super) fn arm(&mut self, lease: i64) {
        let Some(expires) = self.store.expires(lease) else { return };
        if self.armed.insert(lease) {
            let late = self.dice.between(Duration::ZERO, self.settings.lateness);
            self.after(expires.saturating_sub(self.now()) + late, Event::LeaseDue(lease));
        }
    }

    fn lease_due(&mut self, lease: i64) {
        self.armed.remove(&lease);
        let Some(expires) = self.store.expires(lease) else { return };
        if expires > self.now() {
            self.arm(lease);
        } else if self.cluster.commits() {
            // The lease exists, so that nothing can go wrong with its revocation.
            let _ = self.revoke(lease);
        }
    }

    /// Compacts the history. A watch that still owes what is forgotten has it in hand already, or has lost it.
    pub(super) fn compact(&mut self, revision: Revision) -> Result<(), Refusal> {
        self.watches_take_before(revision);
        let keep = self.settings.version == super::settings::Version::V3_5;
        self.store.compact(revision, keep)
    }
}
