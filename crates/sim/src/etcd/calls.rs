//! Requests on their way: to a member, through it, and back.
//!
//! In the wheel it is the part of the model of etcd where answers get lost and effects come late. A request that was sent is carried out
//! when its member comes to it, whether or not somebody still waits for the answer.

use std::time::Duration;

use evenkeel_store::Error;
use tokio::sync::oneshot;

use super::{
    core::{Core, Event},
    leases::Renewal,
};

/// How long etcd lets a request wait for its members' agreement: five seconds and two election timeouts.
const PATIENCE: Duration = Duration::from_secs(7);
/// How long the making of a connection may take.
const CONNECT: Duration = Duration::from_secs(2);

/// What a request needs of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The agreement of the members, since it changes something.
    Write,
    /// That the leader is one.
    Read,
    /// The leader itself, which extends this lease.
    Renew(i64),
    /// Nothing but the member itself, which must know a leader.
    Alone,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting for a connection.
    Connecting,
    /// On its way.
    Sent,
    /// Held up on the way by a cut wire.
    HeldUp,
    /// Unread, at a frozen member.
    Unread,
    /// At a member that cannot do it at the moment.
    Waiting,
    /// Waiting for a lease to be revoked.
    Parked,
    /// Done; the answer is on its way.
    Answered,
    /// Done; a cut wire holds the answer up.
    AnswerHeldUp,
    /// Neither it nor its answer will ever be seen again.
    Lost,
}

/// A request on its way.
pub(super) struct Call {
    pub(super) wire: usize,
    pub(super) member: usize,
    /// Which process of the member it was sent to.
    incarnation: u64,
    kind: Kind,
    stage: Stage,
    job: Box<dyn Job>,
}

/// What a request does, and who waits for it.
trait Job: Send {
    /// Does it, on a member.
    fn run(&mut self, core: &mut Core, endpoint: &str);
    /// Hands over what came of it.
    fn answer(&mut self);
    /// Hands over a failure instead.
    fn fail(&mut self, error: Error);
    /// Whether the caller has gone.
    fn abandoned(&self) -> bool;
}

struct Typed<T, F> {
    run: Option<F>,
    result: Option<Result<T, Error>>,
    caller: Option<oneshot::Sender<Result<T, Error>>>,
}

impl<T: Send, F: FnOnce(&mut Core, &str) -> Result<T, Error> + Send> Job for Typed<T, F> {
    fn run(&mut self, core: &mut Core, endpoint: &str) {
        if let Some(run) = self.run.take() {
            self.result = Some(run(core, endpoint));
        }
    }

    fn answer(&mut self) {
        if let (Some(caller), Some(result)) = (self.caller.take(), self.result.take()) {
            // Whoever does not wait any more does not want it.
            let _ = caller.send(result);
        }
    }

    fn fail(&mut self, error: Error) {
        self.result = Some(Err(error));
        self.answer();
    }

    fn abandoned(&self) -> bool {
        self.caller.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

impl Core {
    /// Sends a request to a member over a wire. What it does is done when the member comes to it.
    pub(super) fn send<T, F>(&mut self, wire: usize, member: usize, kind: Kind, run: F) -> oneshot::Receiver<Result<T, Error>>
    where
        T: Send + 'static,
        F: FnOnce(&mut Core, &str) -> Result<T, Error> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let job = Box::new(Typed { run: Some(run), result: None, caller: Some(caller) });
        let id = self.id();
        let incarnation = self.cluster.members[member].incarnation;
        self.calls.insert(id, Call { wire, member, incarnation, kind, stage: Stage::Connecting, job });
        if self.wires[wire].is_connected(member, incarnation) {
            self.set_out(id);
        } else {
            self.connect(id);
        }
        answer
    }

    fn connect(&mut self, id: u64) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let (wire, member) = (call.wire, call.member);
        call.stage = Stage::Connecting;
        if !self.wires[wire].is_whole() {
            self.after(CONNECT, Event::NotConnected(id));
        } else if self.cluster.is_dead(member) {
            let delay = self.latency(wire);
            self.after(delay, Event::NotConnected(id));
        } else {
            let incarnation = self.cluster.members[member].incarnation;
            self.wires[wire].connect(member, incarnation);
            self.set_out(id);
        }
    }

    pub(super) fn not_connected(&mut self, id: u64) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        if call.stage != Stage::Connecting {
            self.calls.insert(id, call);
            return;
        }
        let reason = if self.wires[call.wire].is_whole() { "connection refused" } else { "deadline has elapsed" };
        let endpoint = self.endpoint(call.member);
        call.job.fail(Error::Unavailable { endpoint, reason: reason.into(), sent: false, source: None });
    }

    fn set_out(&mut self, id: u64) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let wire = call.wire;
        call.incarnation = self.cluster.members[call.member].incarnation;
        call.stage = Stage::Sent;
        let delay = self.latency(wire);
        self.after(delay, Event::Arrive(id));
    }

    /// A request reaches the other end of its wire.
    pub(super) fn arrive(&mut self, id: u64) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let (wire, member) = (call.wire, call.member);
        if self.wires[wire].cut_to_etcd {
            call.stage = Stage::HeldUp;
        } else if call.incarnation != self.cluster.members[member].incarnation || self.cluster.is_dead(member) {
            // The process that it was sent to is gone, and the system answers that nobody is there.
            self.break_call(id);
            self.calls.remove(&id);
        } else if self.cluster.is_frozen(member) {
            call.stage = Stage::Unread;
        } else {
            self.serve(id);
        }
    }

    /// The member has read the request.
    pub(super) fn serve(&mut self, id: u64) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let (kind, member, stage) = (call.kind, call.member, call.stage);
        // What was given up before it was read may have been taken back in time.
        if matches!(stage, Stage::Unread | Stage::HeldUp) && call.job.abandoned() && self.dice.one_in(2) {
            self.calls.remove(&id);
            return;
        }
        if stage != Stage::Waiting && self.is_leaderless(member) {
            self.refuse(id, "etcdserver: no leader");
        } else if kind == Kind::Alone || self.cluster.commits_for(member) {
            self.carry_out(id);
        } else if let Some(call) = self.calls.get_mut(&id) {
            call.stage = Stage::Waiting;
            self.after(PATIENCE, Event::Overdue(id));
        }
    }

    fn carry_out(&mut self, id: u64) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        if let Kind::Renew(lease) = call.kind {
            let now = self.now();
            if self.store.renew(lease, now) == Renewal::Expired {
                call.stage = Stage::Parked;
                self.calls.insert(id, call);
                self.parked.entry(lease).or_default().push(id);
                return;
            }
        }
        let endpoint = self.endpoint(call.member);
        call.job.run(self, &endpoint);
        let lost = std::mem::take(&mut self.wires[call.wire].loses_next_answer);
        call.stage = if lost { Stage::Lost } else { Stage::Answered };
        // What is linearizable is answered when the member itself has come so far.
        let lag = if matches!(call.kind, Kind::Read | Kind::Write) { self.cluster.members[call.member].lag } else { Duration::ZERO };
        let delay = self.latency(call.wire) + lag;
        self.calls.insert(id, call);
        self.after(if lost { PATIENCE } else { delay }, if lost { Event::Overdue(id) } else { Event::Answer(id) });
    }

    /// The member answers that it cannot do it.
    fn refuse(&mut self, id: u64, reason: &str) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        let error = Error::Unavailable { endpoint: self.endpoint(call.member), reason: reason.into(), sent: true, source: None };
        let endpoint = self.endpoint(call.member);
        // The failure takes the place of the result, and comes back as one.
        call.job = Box::new(Refused { job: call.job, error: Some(error) });
        call.job.run(self, &endpoint);
        call.stage = Stage::Answered;
        let delay = self.latency(call.wire);
        self.calls.insert(id, call);
        self.after(delay, Event::Answer(id));
    }

    /// An answer reaches this end of its wire.
    pub(super) fn answer(&mut self, id: u64) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        if self.wires[call.wire].cut_from_etcd {
            call.stage = Stage::AnswerHeldUp;
            self.calls.insert(id, call);
        } else {
            call.job.answer();
        }
    }

    pub(super) fn overdue(&mut self, id: u64) {
        let waits = self.calls.get(&id).is_some_and(|call| matches!(call.stage, Stage::Waiting | Stage::Lost));
        if waits {
            self.refuse(id, "etcdserver: request timed out");
        }
    }

    /// A wire is whole again: what it has held up goes on.
    pub(super) fn wire_goes_on(&mut self, wire: usize) {
        let held = self.ids(|call| call.wire == wire);
        for id in held {
            let Some(stage) = self.calls.get(&id).map(|call| call.stage) else { continue };
            let whole = self.wires[wire].is_whole();
            match stage {
                Stage::Connecting if whole => self.connect(id),
                Stage::HeldUp if !self.wires[wire].cut_to_etcd => {
                    let delay = self.latency(wire);
                    self.after(delay, Event::Arrive(id));
                }
                Stage::AnswerHeldUp if !self.wires[wire].cut_from_etcd => {
                    let delay = self.latency(wire);
                    self.after(delay, Event::Answer(id));
                }
                _ => {}
            }
        }
    }

    /// A member that was frozen reads what has come meanwhile.
    pub(super) fn read_unread(&mut self, member: usize) {
        for id in self.ids(|call| call.member == member && call.stage == Stage::Unread) {
            self.serve(id);
        }
    }

    /// The member has a leader again. What it had passed on to another one meanwhile may be lost.
    pub(super) fn go_on(&mut self, member: usize, disturbed: bool) {
        for id in self.ids(|call| call.member == member && call.stage == Stage::Waiting) {
            let kind = self.calls.get(&id).map(|call| call.kind);
            let lucky = !disturbed || self.dice.one_in(2);
            match kind {
                Some(Kind::Write) if !lucky => {
                    if let Some(call) = self.calls.get_mut(&id) {
                        call.stage = Stage::Lost;
                    }
                }
                Some(Kind::Read) if !lucky => self.refuse(id, "etcdserver: leader changed"),
                _ => self.serve(id),
            }
        }
    }

    /// A new leader has extended what had expired: whoever waits for a revocation asks again.
    pub(super) fn unpark(&mut self) {
        for id in std::mem::take(&mut self.parked).into_values().flatten() {
            self.serve(id);
        }
    }

    /// The streams that keep leases alive end at a member that has no leader.
    pub(super) fn end_renewals(&mut self, member: usize) {
        for id in self.ids(|call| call.member == member && call.stage == Stage::Waiting && matches!(call.kind, Kind::Renew(_))) {
            self.refuse(id, "etcdserver: no leader");
        }
    }

    /// The connections over a wire to a member have broken: nobody gets an answer over them. What is on the way may arrive all the same.
    pub(super) fn break_calls(&mut self, wire: usize, member: usize) {
        for id in self.ids(|call| call.wire == wire && call.member == member && call.stage != Stage::Connecting) {
            self.break_call(id);
        }
    }

    fn break_call(&mut self, id: u64) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let endpoint = self.cluster.members[call.member].endpoint.clone();
        call.job.fail(Error::Unavailable { endpoint, reason: "connection reset by peer".into(), sent: true, source: None });
        if matches!(call.stage, Stage::Answered | Stage::AnswerHeldUp | Stage::Lost) {
            self.calls.remove(&id);
        }
    }

    /// The member's process has ended, and with it what it had not carried out.
    pub(super) fn forget_calls_at(&mut self, member: usize) {
        let at_member = |call: &Call| call.member == member && matches!(call.stage, Stage::Unread | Stage::Waiting | Stage::Parked);
        for id in self.ids(at_member) {
            if let Some(call) = self.calls.get_mut(&id) {
                call.stage = Stage::Lost;
            }
        }
    }

    fn ids(&self, wanted: impl Fn(&Call) -> bool) -> Vec<u64> {
        self.calls.iter().filter(|(_, call)| wanted(call)).map(|(id, _)| *id).collect()
    }
}

/// A request that will not be carried out: the failure stands for its result.
struct Refused {
    job: Box<dyn Job>,
    error: Option<Error>,
}

impl Job for Refused {
    fn run(&mut self, _: &mut Core, _: &str) {}

    fn answer(&mut self) {
        if let Some(error) = self.error.take() {
            self.job.fail(error);
        }
    }

    fn fail(&mut self, error: Error) {
        self.job.fail(error);
    }

    fn abandoned(&self) -> bool {
        self.job.abandoned()
    }
}
