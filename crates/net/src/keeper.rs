//! Who may connect: the table of all connections of one process, and which of them is closed to make room for another.
//!
//! Under net::serve, which asks before it serves; net::activity says which connections wait. It reads and writes no stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Notify, time::Instant};

use crate::limits::Limits;

/// The connections of one process, whatever ports they came in by.
#[derive(Clone, Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    seats: BTreeMap<u64, Entry>,
    /// How many have come from each address that is counted.
    addresses: BTreeMap<IpAddr, usize>,
    /// Those without a request that is being answered, the longest first.
    waiting: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    /// Since when it waits; none: a request of it is being answered.
    since: Option<Instant>,
    close: Arc<Notify>,
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// All connections are busy.
    All(usize),
    /// All connections from this address are busy.
    Address(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(most) => write!(f, "all {most} connections of this server have a request in flight; try again later"),
            Self::Address(most) => write!(f, "all {most} connections from your address have a request in flight; end one of them"),
        }
    }
}

/// A connection's place in the table, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    shared: Arc<Shared>,
    id: u64,
    close: Arc<Notify>,
}

impl Keeper {
    /// A keeper of no connection yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { shared: Arc::new(Shared { limits, table: Mutex::default() }) }
    }

    /// The limits that it holds.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.table().seats.len()
    }

    /// Takes a connection in. At a limit, the one that has waited longest without a request is closed; if none waits, this one is refused.
    pub(crate) fn admit(&self, peer: SocketAddr) -> Result<Seat, Full> {
        let address = peer.ip().to_canonical();
        let Limits { connections, connections_of_address, .. } = self.shared.limits;
        let mut table = self.shared.table();
        // What runs on this machine has as many connections as it needs.
        let of_address = if address.is_loopback() { 0 } else { table.addresses.get(&address).copied().unwrap_or(0) };
        if of_address >= connections_of_address && !table.make_room(|entry| entry.address == address) {
            return Err(Full::Address(connections_of_address));
        }
        if table.seats.len() >= connections && !table.make_room(|_| true) {
            return Err(Full::All(connections));
        }
        Ok(Seat { shared: Arc::clone(&self.shared), id: table.next, close: table.add(address) })
    }

    /// Closes the connection that has waited longest, if one waits: the process has no file left for another.
    pub(crate) fn make_room(&self) -> bool {
        self.shared.table().make_room(|_| true)
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn add(&mut self, address: IpAddr) -> Arc<Notify> {
        let (id, close, now) = (self.next, Arc::new(Notify::new()), Instant::now());
        self.next += 1;
        if !address.is_loopback() {
            *self.addresses.entry(address).or_default() += 1;
        }
        self.waiting.insert((now, id));
        self.seats.insert(id, Entry { address, since: Some(now), close: Arc::clone(&close) });
        close
    }

    fn remove(&mut self, id: u64) {
        let Some(entry) = self.seats.remove(&id) else { return };
        if let Some(since) = entry.since {
            self.waiting.remove(&(since, id));
        }
        if let Some(count) = self.addresses.get_mut(&entry.address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&entry.address);
            }
        }
    }

    fn make_room(&mut self, among: impl Fn(&Entry) -> bool) -> bool {
        let chosen = self.waiting.iter().map(|(_, id)| *id).find(|id| self.seats.get(id).is_some_and(&among));
        let Some(id) = chosen else { return false };
        if let Some(entry) = self.seats.get(&id) {
            entry.close.notify_one();
        }
        self.remove(id);
        true
    }
}

impl Seat {
    /// Notes since when this connection waits; none: a request of it is being answered.
    pub(crate) fn waits(&self, since: Option<Instant>) {
        let mut table = self.shared.table();
        let Some(entry) = table.seats.get_mut(&self.id) else { return };
        let before = std::mem::replace(&mut entry.since, since);
        if let Some(before) = before {
            table.waiting.remove(&(before, self.id));
        }
        if let Some(since) = since {
            table.waiting.insert((since, self.id));
        }
    }

    /// Completes when this connection must make room.
    pub(crate) async fn closed(&self) {
        self.close.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.table().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    fn keeper(connections: usize, connections_of_address: usize) -> Keeper {
        Keeper::new(Limits { connections, connections_of_address, ..Limits::default() })
    }

    fn peer(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().expect(address), 7)
    }

    fn is_closed(seat: &Seat) -> bool {
        seat.closed().now_or_never().is_some()
    }

    async fn later() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_longest_makes_room() {
        let keeper = keeper(3, 9);
        let mut seats = Vec::new();
        for _ in 0..3 {
            seats.push(keeper.admit(peer("127.0.0.1")).expect("a seat"));
            later().await;
        }
        // The first is busy, the second was until now: the third has waited longest.
        seats[0].waits(None);
        seats[1].waits(None);
        seats[1].waits(Some(Instant::now()));
        later().await;
        let fourth = keeper.admit(peer("127.0.0.1")).expect("a seat");
        assert_eq!(seats.iter().map(is_closed).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(keeper.connections(), 3);
        // The closed one ends later than its place is given away.
        drop(seats.pop());
        assert_eq!(keeper.connections(), 3);
        for seat in seats.iter().chain([&fourth]) {
            seat.waits(None);
        }
        assert_eq!(keeper.admit(peer("127.0.0.1")).expect_err("all busy"), Full::All(3));
        drop(fourth);
        keeper.admit(peer("127.0.0.1")).expect("a seat");
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_takes_only_its_share() {
        let keeper = keeper(9, 2);
        let other = keeper.admit(peer("10.0.0.2")).expect("a seat");
        later().await;
        let first = keeper.admit(peer("10.0.0.1")).expect("a seat");
        later().await;
        let second = keeper.admit(peer("::ffff:10.0.0.1")).expect("a seat");
        let third = keeper.admit(peer("10.0.0.1")).expect("a seat");
        assert_eq!([&other, &first, &second, &third].map(is_closed), [false, true, false, false]);
        second.waits(None);
        third.waits(None);
        assert_eq!(keeper.admit(peer("10.0.0.1")).expect_err("both busy"), Full::Address(2));
        let local: Vec<Seat> = (0..5).map(|_| keeper.admit(peer("::1")).expect("a seat")).collect();
        assert_eq!(keeper.connections(), 8);
        drop((local, first, second, third, other));
        assert_eq!(keeper.connections(), 0);
        assert!(keeper.shared.table().addresses.is_empty() && keeper.shared.table().waiting.is_empty());
    }
}
