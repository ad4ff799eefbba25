//! Begins a session: one registration of this worker under its id.
//!
//! The wheel: before worker::desired. A session's key is never overwritten. An earlier one of the same guard is deleted first, because
//! that guard has reaped everything of it; anybody else's is waited for, as long as it may be that of a worker that has died.

use std::time::Duration;

use evenkeel_model::{Admission, Origin, Registration, Revision, Session, WorkerId};
use evenkeel_store::{Client, CreateError, Error, Holder, KeyName, Kv, LeasedKey, NewLeasedKey, keys::Keys};
use tokio::time::{Instant, sleep};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::survivors::{self, Unanswered};
use crate::{
    config::{FindHost, WorkerError},
    driver::Registry,
    guard::{LinkSender, Registered},
    protocol::authority::Timing,
};

/// The pause before etcd is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause after refusals, and what a fleet of a thousand that registers anew is spread over.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For one registration, all of its calls together.
const DEADLINE: Duration = Duration::from_secs(5);
/// What is waited for beyond the lease of a worker that may be dead.
const MARGIN: Duration = Duration::from_secs(1);

/// What it takes to register.
pub(crate) struct Registrar {
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    pub(crate) link: LinkSender,
    pub(crate) timing: Timing,
    /// What this worker says of itself; what it attests is filled in.
    pub(crate) registration: Registration,
    /// See [`WorkerConfig`](crate::WorkerConfig).
    pub(crate) find_host: Option<FindHost>,
    /// They are asked before anything is attested.
    pub(crate) registry: Registry,
}

/// A session that has begun.
pub(crate) struct Begun {
    pub(crate) key: LeasedKey,
    /// The value of its key.
    pub(crate) registration: Registration,
    /// The kinds that it does not offer.
    pub(crate) unanswered: Unanswered,
}

impl Registrar {
    /// Registers. Nothing of any earlier session of this guard may run when this is called: that is what is attested.
    /// What it waits for meanwhile is noted.
    pub(crate) async fn register(&self, mut previous: Option<Registered>, noted: impl Fn(String)) -> Result<Begun, WorkerError> {
        let mut failures = 0;
        loop {
            let held = match self.try_once(previous).await {
                Ok(begun) => return Ok(begun),
                Err(Attempt::Held(kv)) => kv,
                Err(Attempt::Failed(error)) => {
                    let Some(pause) = pause_after(&error, failures, previous.is_some(), &self.registration.id) else {
                        return Err(error.into());
                    };
                    if failures == 0 {
                        tracing::warn!(%error, "registering: etcd does not take it; going on trying");
                    }
                    failures += 1;
                    noted(format!("it cannot register: {error}"));
                    sleep(pause).await;
                    continue;
                }
            };
            let holder: Option<Registration> = serde_json::from_slice(&held.value).ok();
            if holder.as_ref().is_some_and(|holder| holder.origin == self.registration.origin) {
                // An agent of this guard that ended before it could tell.
                previous = Some(Registered { session: Session(held.created.0), lease: held.lease });
                continue;
            }
            let address = holder.map(|holder| holder.address).unwrap_or_default();
            tracing::warn!(id = %self.registration.id, address, "the id is held by another session: waiting for its end");
            noted(format!("the id is held by another session, of a worker at {address}"));
            if Holder::wait_for(&self.client, &held, self.timing.lease).await == Holder::Lives {
                let within = self.timing.lease + MARGIN;
                return Err(WorkerError::IdTaken { id: self.registration.id.clone(), address, within });
            }
        }
    }

    async fn try_once(&self, previous: Option<Registered>) -> Result<Begun, Attempt> {
        // What the live holder of this id runs is nobody else's to end.
        let held = self.client.get(self.keys.worker(&self.registration.id).as_bytes()).await.map_err(Attempt::Failed)?.kv;
        if let Some(kv) = held.filter(|kv| previous.is_none_or(|previous| previous.session.0 != kv.created.0)) {
            return Err(Attempt::Held(kv));
        }
        let unanswered = survivors::ask(self.registry.drivers().cloned()).await;
        let mut registration = self.registration.clone();
        (registration.kinds, registration.drivers) = survivors::offer(&self.registry, &unanswered);
        if let Some(host) = self.find_host.and_then(|find| find()) {
            registration.address = moved_to(&host, &registration.address);
            registration.http = moved_to(&host, &registration.http);
        }
        if unanswered.is_empty() {
            registration.attests = self.attests(previous).await.map_err(Attempt::Failed)?;
        }
        let new = NewLeasedKey {
            key: KeyName::Exact(self.keys.worker(&registration.id).into_bytes()),
            value: serde_json::to_vec(&registration).unwrap_or_default(),
            ttl: self.timing.lease,
            replaces: previous.map(|p| Revision(p.session.0)),
        };
        match LeasedKey::create(&self.client, new, DEADLINE).await {
            Ok(key) => {
                let registered = Registered { session: Session(key.created().0), lease: key.lease() };
                if !self.link.registered(registered) {
                    tracing::warn!("the guard could not be told of the session: the next agent finds it in etcd");
                }
                Ok(Begun { key, registration, unanswered })
            }
            Err(CreateError::Held { kv }) => Err(Attempt::Held(kv)),
            Err(CreateError::Store(error)) => Err(Attempt::Failed(error)),
        }
    }

    /// The session that is admitted, if it was one of this guard: it has reaped everything of all its sessions but the one to come.
    async fn attests(&self, previous: Option<Registered>) -> Result<Option<Session>, Error> {
        if cfg!(not(target_os = "linux")) {
            // Without a subreaper nobody can know.
            return Ok(None);
        }
        let read = self.client.get(self.keys.admission(&self.registration.id).as_bytes()).await?;
        let admission = read.kv.and_then(|kv| serde_json::from_slice::<Admission>(&kv.value).ok());
        Ok(match admission {
            Some(admission) if admission.origin == self.registration.origin => Some(admission.session),
            Some(_) => None,
            None => previous.map(|p| p.session),
        })
    }
}

enum Attempt {
    Held(Kv),
    Failed(Error),
}

/// PURE: the pause after so many failures before this one; none: trying again is no use. Once a session was registered everything is tried
/// again. What etcd refuses is asked for more and more slowly, and not by all workers at the same time.
fn pause_after(error: &Error, failures: u32, has_registered: bool, id: &WorkerId) -> Option<Duration> {
    if error.blames_member() {
        return Some(PAUSE);
    }
    if !has_registered && !error.may_pass() {
        return None;
    }
    let longest = PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    let share = xxh3_64_with_seed(id.as_str().as_bytes(), u64::from(failures)) % 256;
    Some(longest / 2 + longest / 512 * u32::try_from(share).unwrap_or_default())
}

/// The boot id of this machine and the id of the guard.
pub(crate) fn origin(guard: String) -> Origin {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Origin { boot_id: boot_id.trim().to_owned(), guard }
}

/// The same port on another host.
fn moved_to(host: &str, address: &str) -> String {
    address.rsplit_once(':').map_or_else(|| address.to_owned(), |(_, port)| format!("{host}:{port}"))
}

/// `host:port`, with brackets where the host is an IPv6 address.
pub(crate) fn address(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Gives the id up: the registration says so, the leader takes it away, and the lease ends. Nothing may run any more.
pub(crate) async fn release(client: &Client, key: &LeasedKey, mut registration: Registration, worker: &WorkerId) {
    const WRITE: Duration = Duration::from_secs(1);
    const TAKEN_AWAY: Duration = Duration::from_secs(1);
    registration.released = true;
    let value = serde_json::to_vec(&registration).unwrap_or_default();
    let end = Instant::now() + 2 * WRITE;
    loop {
        match key.update(value.clone(), WRITE).await {
            Ok(Some(_)) => break,
            Ok(None) => return,
            Err(error) if Instant::now() < end => {
                tracing::debug!(%error, "the release could not be written: trying again");
                sleep(PAUSE).await;
            }
            Err(error) => {
                tracing::warn!(%error, worker = %worker, "the release could not be written: the leader waits until the lease has expired");
                return;
            }
        }
    }
    let end = Instant::now() + TAKEN_AWAY;
    while Instant::now() < end {
        if matches!(client.get(key.key()).await, Ok(read) if read.kv.is_none()) {
            if let Err(error) = client.revoke(key.lease(), WRITE).await {
                tracing::debug!(%error, "the lease could not be revoked: it will expire");
            }
            return;
        }
        sleep(PAUSE / 5).await;
    }
    // The key holds the release, and a leader that comes within the lease's time reads it there: so neither of them is taken away.
    tracing::info!(worker = %worker, "no leader has seen the release yet: it stands until the lease ends");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_final_only_before_the_first_registration() {
        let id = WorkerId::new("worker-1").expect("id");
        let endpoint = String::new;
        let refused = || Error::Refused { endpoint: endpoint(), code: "InvalidArgument".to_owned(), message: String::new() };
        // a failure; whether it is waited for before the first registration, and after
        let cases = [
            (Error::Deadline { endpoint: endpoint(), after: PAUSE }, true, true),
            (Error::Overloaded { endpoint: endpoint() }, true, true),
            (Error::NoSpace { endpoint: endpoint() }, true, true),
            (Error::LeaseNotFound, true, true),
            (Error::Unauthenticated { endpoint: endpoint(), message: String::new() }, false, true),
            (refused(), false, true),
            (Error::TooOld { endpoint: endpoint(), version: String::new(), needed: String::new() }, false, true),
        ];
        for (error, before, after) in cases {
            let waits = [false, true].map(|has_registered| pause_after(&error, 0, has_registered, &id).is_some());
            assert_eq!(waits, [before, after], "{error}");
        }
    }

    #[test]
    fn a_fleet_that_is_refused_spreads_and_slows_down() {
        let refused = Error::Overloaded { endpoint: String::new() };
        let pause = |worker: u32, failures| {
            let id = WorkerId::new(&format!("worker-{worker}")).expect("id");
            pause_after(&refused, failures, true, &id).expect("a pause")
        };
        for failures in 0..40 {
            let longest = (PAUSE * 2_u32.pow(failures.min(10))).min(LONGEST_PAUSE);
            let pauses: std::collections::BTreeSet<Duration> = (0..100).map(|worker| pause(worker, failures)).collect();
            assert!(pauses.iter().all(|pause| (longest / 2..=longest).contains(pause)), "{failures}: {pauses:?}");
            assert!(pauses.len() > 50, "{failures}: {}", pauses.len());
        }
        // An outage is no refusal: etcd may be back at any moment.
        let away = Error::Deadline { endpoint: String::new(), after: PAUSE };
        assert_eq!(pause_after(&away, 30, true, &WorkerId::new("worker-1").expect("id")), Some(PAUSE));
    }

    #[test]
    fn an_address_is_one_that_can_be_dialled() {
        assert_eq!(address("10.0.0.5", 9090), "10.0.0.5:9090");
        assert_eq!(address("worker-1.example", 9090), "worker-1.example:9090");
        assert_eq!(address("::1", 9090), "[::1]:9090");
        assert_eq!(address("[::1]", 9090), "[::1]:9090");
        assert_eq!(moved_to("10.0.0.9", "10.0.0.5:9090"), "10.0.0.9:9090");
        assert_eq!(moved_to("[fd00::1]", "[::1]:9090"), "[fd00::1]:9090");
    }
}
