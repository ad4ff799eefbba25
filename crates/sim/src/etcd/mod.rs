//! A model of etcd on virtual time: several members in front of one store, with the faults that the real one has.
//!
//! In the wheel it stands in the place of etcd, below store's `Transport`: masters and workers run on it as they are. The store itself is
//! pure ([`Store`]); around it is a world of members, wires, requests and watches in which everything that takes time is an event, and
//! everything that is left to chance comes from one seed. The same seed gives the same run, to the event, on a current-thread runtime
//! whose clock is paused.
//!
//! What it must not do: read a real clock, throw other dice, or know what Evenkeel keeps in etcd.
//!
//! # What is modelled
//!
//! - The store is linearizable, as etcd's is. A request that was sent is carried out when its member comes to it, whether or not its
//!   caller still waits; what a cut wire or a frozen member has held up for a caller who is gone may be carried out late, or not at all.
//! - A cut wire holds up what is under way in that direction. After 6 to 8 s the connections break, as the client's pings find out.
//! - A frozen member accepts and does nothing; what it was sent it reads when it thaws. A dead one refuses connections.
//! - Without its leader or its quorum nothing commits. An election takes 1 to 2 s. Requests that waited for it may be lost, or fail. The
//!   new leader extends every lease to its full time and a second. A member that knows of no leader refuses everything, and ends its
//!   watches after three more seconds.
//! - An expired lease is revoked up to a second late, and not while nothing commits.
//! - A watch brings whole revisions, in order, late, and some together. It repeats what its reader asks for again. A sign of life comes
//!   when it is asked for, and by itself every ten minutes of silence. A watch whose next revision is compacted away ends with that news.

mod calls;
mod cluster;
mod core;
mod leases;
mod link;
mod refusal;
mod settings;
mod store;
mod watches;
mod wires;

use std::{fmt, sync::Arc, time::Duration};

use evenkeel_store::{KeyChange, Revision};
use rand_chacha::ChaCha8Rng;

use self::{core::World, wires::Wire};
pub use self::{
    leases::Renewal,
    link::Link,
    refusal::Refusal,
    settings::{Settings, Version},
    store::Store,
    wires::Direction,
};

/// A model of etcd; cheap to clone, all clones are the same one.
#[derive(Clone)]
pub struct Etcd {
    world: Arc<World>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd at revision {}", self.world.core().store.revision())
    }
}

impl Etcd {
    /// Starts an empty one. It must be called within a current-thread runtime of tokio whose clock is paused.
    #[must_use]
    pub fn start(settings: Settings, rng: ChaCha8Rng) -> Self {
        Self::with_store(Store::new(), settings, rng)
    }

    /// Starts one that keeps this already.
    #[must_use]
    pub fn with_store(store: Store, settings: Settings, rng: ChaCha8Rng) -> Self {
        Self { world: World::start(store, settings, rng) }
    }

    /// A network of its own for a caller, by which it can be cut off alone.
    #[must_use]
    pub fn link(&self, name: &str) -> Link {
        let mut core = self.world.core();
        let wire = core.wires.len();
        let members = core.cluster.members.len();
        core.wires.push(Wire::new(name, members));
        Link { world: self.world.clone(), wire }
    }

    /// How many members there are.
    #[must_use]
    pub fn members(&self) -> usize {
        self.world.core().cluster.members.len()
    }

    /// The member that leads; it may be frozen or cut off. None: it was killed, and no other was elected yet.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        self.world.core().cluster.leader()
    }

    /// How many events were planned so far: what a run has cost.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.world.core().planned()
    }

    /// Whether anything can be written at the moment.
    #[must_use]
    pub fn commits(&self) -> bool {
        self.world.core().cluster.commits()
    }

    /// Freezes a member, as SIGSTOP does.
    pub fn freeze(&self, member: usize) {
        self.world.core().freeze(member);
    }

    /// Lets a frozen member go on.
    pub fn thaw(&self, member: usize) {
        self.world.core().thaw(member);
    }

    /// Freezes all members.
    pub fn freeze_all(&self) {
        (0..self.members()).for_each(|member| self.freeze(member));
    }

    /// Lets all frozen members go on.
    pub fn thaw_all(&self) {
        (0..self.members()).for_each(|member| self.thaw(member));
    }

    /// Kills a member.
    pub fn kill(&self, member: usize) {
        self.world.core().kill(member);
    }

    /// Starts a member that was killed.
    pub fn restart(&self, member: usize) {
        self.world.core().restart(member);
    }

    /// Cuts a member off from the others.
    pub fn isolate(&self, member: usize) {
        self.world.core().isolate(member, true);
    }

    /// Connects a member with the others again.
    pub fn rejoin(&self, member: usize) {
        self.world.core().isolate(member, false);
    }

    /// From now on a member learns of each revision so much later: its watches tell of it later, and so do its answers.
    pub fn lag(&self, member: usize, lag: Duration) {
        self.world.core().lag(member, lag);
    }

    /// Raises or clears the alarm: puts and grants are refused while it stands.
    pub fn no_space(&self, no_space: bool) {
        self.world.core().store.set_no_space(no_space);
    }

    /// From now on, or no longer, every request that would change something is answered with "too many requests" and not carried out.
    pub fn overload(&self, is_overloaded: bool) {
        self.world.core().is_overloaded = is_overloaded;
    }

    /// Compacts the history, as if somebody else had asked for it.
    ///
    /// # Errors
    /// [`Refusal::Compacted`] and [`Refusal::FutureRevision`].
    pub fn compact(&self, revision: Revision) -> Result<(), Refusal> {
        self.world.core().compact(revision)
    }

    /// Revokes a lease under its holder, as a person might.
    ///
    /// # Errors
    /// [`Refusal::LeaseNotFound`].
    pub fn revoke_early(&self, lease: i64) -> Result<(), Refusal> {
        self.world.core().revoke(lease)
    }

    /// Looks at the store, for an oracle. Nothing of the model may be called in it.
    pub fn peek<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(&self.world.core().store)
    }

    /// From now on this is called with each revision and its changes at the moment when they are made. It replaces what was there.
    /// Nothing of the model may be called in it but the store that it is given.
    pub fn on_applied(&self, hook: impl FnMut(&Store, Revision, &[KeyChange]) + Send + 'static) {
        self.world.core().on_applied(Box::new(hook));
    }
}
