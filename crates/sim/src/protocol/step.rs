//! The steps of the model: of the protocol, of time, and of what goes wrong.
//!
//! [`carry_out`] is the whole next-state relation. Nothing here is a rule of the protocol; what goes wrong is paid for from the budget.

use super::{
    leader,
    rules::Rules,
    state::{ID_OF, IDS, MASTERS, Mode, NAMES, PROCESSES, Process, State, Write},
    worker,
};

/// One step. Numbers name processes, masters, worker ids and resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Time goes on by one tick, on all clocks.
    Tick,
    /// A proof is confirmed by etcd.
    Prove(usize),
    /// The answer to a proof arrives.
    Proved(usize),
    /// A process finds out that its session is gone.
    LearnLoss(usize),
    /// A process deletes the registration of its guard's earlier agent.
    ReplaceOwn(usize),
    /// A process registers.
    Register(usize),
    /// A process looks at its admission.
    SeeAdmission(usize),
    /// A process lists its assignments, or hears of changes.
    List(usize),
    /// A process has its drivers end what goes on of an earlier session.
    EndSurvivors(usize),
    /// A process takes a change of work that runs.
    Take(usize, usize),
    /// A process finds that what is assigned needs a restart.
    NeedRestart(usize, usize),
    /// A process stops work.
    Halt(usize, usize),
    /// A process starts work.
    Start(usize, usize),
    /// A process reports work as stopped, or what it runs with.
    Report(usize, usize),
    /// A status write reaches etcd.
    StatusArrives(usize),
    /// A process gives its id up.
    Release(usize),
    /// The lease of a registration ends whose agent is dead or frozen.
    LeaseEnds(usize),
    /// A master campaigns.
    Campaign(usize),
    /// A master becomes the leader.
    BecomeLeader(usize),
    /// A master takes in the watch.
    Follow(usize),
    /// A master sees that its key is gone, and steps down.
    StepDown(usize),
    /// A master sends a write that the state asks for.
    Decide(usize, Write),
    /// A master sends a write that a person or the balance asks for.
    Request(usize, Write),
    /// A master's write reaches etcd.
    Commit(usize),
    /// A frozen agent goes on.
    Thaw(usize),
    /// Fault: a lease ends although its holder lives.
    Revoke(usize),
    /// Fault: an agent crashes.
    Crash(usize),
    /// Fault: an agent freezes.
    Freeze(usize),
    /// Fault: guard, agent and work end at once, and begin anew with another guard. Also the return of a worker that has left.
    Reboot(usize),
    /// Fault: the first worker is started a second time, elsewhere.
    Twin,
    /// An agent is started again, with drivers that hold work worse.
    Downgrade(usize),
    /// Fault: a leader's lease ends.
    Depose(usize),
    /// Fault: a leader's clock runs ahead by a tick.
    ClockGains(usize),
    /// A worker is asked to leave.
    Leave(usize),
}

/// Every step that may be possible in a state; some of them will turn out to change nothing.
pub(super) fn all(state: &State, rules: &Rules) -> Vec<Step> {
    let mut steps = vec![Step::Tick, Step::Twin];
    for p in 0..PROCESSES {
        if state.processes[p] == Process::default() {
            continue;
        }
        steps.extend([Step::Prove(p), Step::Proved(p), Step::LearnLoss(p), Step::ReplaceOwn(p), Step::Register(p)]);
        steps.extend([Step::SeeAdmission(p), Step::List(p), Step::StatusArrives(p), Step::Release(p), Step::EndSurvivors(p)]);
        for name in 0..NAMES {
            if rules.changes {
                steps.extend([Step::Take(p, name), Step::NeedRestart(p, name)]);
            }
            steps.extend([Step::Halt(p, name), Step::Start(p, name), Step::Report(p, name)]);
        }
        steps.extend([Step::Thaw(p), Step::Crash(p), Step::Freeze(p), Step::Reboot(p), Step::Leave(p), Step::Downgrade(p)]);
    }
    for id in 0..IDS {
        steps.extend([Step::LeaseEnds(id), Step::Revoke(id)]);
    }
    for m in 0..MASTERS {
        steps.extend([Step::Campaign(m), Step::BecomeLeader(m), Step::Follow(m), Step::StepDown(m), Step::Commit(m)]);
        steps.extend([Step::Depose(m), Step::ClockGains(m)]);
        let choices = leader::choices(&state.masters[m], rules);
        for (at, write) in choices.writes.into_iter().enumerate() {
            steps.push(if at < choices.needed { Step::Decide(m, write) } else { Step::Request(m, write) });
        }
    }
    steps
}

/// The state after a step; none: it is not possible, or changes nothing.
pub(super) fn carry_out(before: &State, step: Step, rules: &Rules) -> Option<State> {
    let mut state = *before;
    let s = &mut state;
    let done = match step {
        Step::Tick => tick(s, rules),
        Step::Prove(p) => worker::prove(s, p, rules),
        Step::Proved(p) => worker::proved(s, p, rules),
        Step::LearnLoss(p) => worker::learn_loss(s, p, rules),
        Step::ReplaceOwn(p) => worker::replace_own(s, p, rules),
        Step::Register(p) => worker::register(s, p, rules),
        Step::SeeAdmission(p) => worker::see_admission(s, p, rules),
        Step::List(p) => worker::list(s, p, rules),
        Step::EndSurvivors(p) => worker::end_survivors(&mut s.processes[p], rules),
        Step::Take(p, name) => worker::take(s, p, name, rules),
        Step::NeedRestart(p, name) => worker::need_restart(s, p, name, rules),
        Step::Halt(p, name) => worker::halt(s, p, name, rules),
        Step::Start(p, name) => worker::start(s, p, name, rules),
        Step::Report(p, name) => worker::report(s, p, name, rules) && at_once(rules, || worker::status_arrives(s, p, rules)),
        Step::StatusArrives(p) => worker::status_arrives(s, p, rules),
        Step::Release(p) => worker::release(s, p, rules),
        Step::LeaseEnds(id) => lease_ends(s, id),
        Step::Campaign(m) => leader::campaign(s, m),
        Step::BecomeLeader(m) => leader::become_leader(s, m, rules),
        Step::Follow(m) => leader::follow(s, m, rules),
        Step::StepDown(m) => leader::step_down(s, m),
        Step::Decide(m, write) => decide(s, m, write, rules),
        Step::Request(m, write) => pay_for_request(s, write) && decide(s, m, write, rules),
        Step::Commit(m) => leader::commit(s, m, rules),
        Step::Thaw(_) | Step::Crash(_) | Step::Freeze(_) | Step::Reboot(_) | Step::Twin | Step::Leave(_) | Step::Downgrade(_) => {
            disturb(s, step, rules)
        }
        Step::Revoke(id) => s.etcd.workers[id].registration.take().is_some() && pay(&mut s.budget.revocations),
        Step::Depose(m) => std::mem::take(&mut s.election[m]) != 0 && pay(&mut s.budget.depositions),
        Step::ClockGains(m) => clock_gains(s, m) && pay(&mut s.budget.drift),
    };
    (done && state != *before).then(|| state.canonical())
}

/// Where messages are not late, they arrive with the step that sends them.
fn at_once(rules: &Rules, arrive: impl FnOnce() -> bool) -> bool {
    rules.late_messages || arrive()
}

fn pay(budget: &mut u8) -> bool {
    let has = *budget > 0;
    *budget = budget.saturating_sub(1);
    has
}

fn decide(state: &mut State, m: usize, write: Write, rules: &Rules) -> bool {
    leader::decide(state, m, write);
    at_once(rules, || leader::commit(state, m, rules))
}

fn pay_for_request(state: &mut State, write: Write) -> bool {
    pay(match write {
        Write::Delete { .. } => &mut state.budget.deletes,
        Write::Add { .. } => &mut state.budget.adds,
        Write::Change { .. } => &mut state.budget.changes,
        _ => &mut state.budget.moves,
    })
}

fn tick(state: &mut State, rules: &Rules) -> bool {
    for process in &mut state.processes {
        worker::tick(process, rules);
    }
    for m in 0..MASTERS {
        clock_gains(state, m);
    }
    true
}

fn clock_gains(state: &mut State, m: usize) -> bool {
    let running = |left: &&mut u8| **left > 0;
    let mut any = false;
    for left in state.masters[m].waits.iter_mut().flatten().filter(running) {
        *left -= 1;
        any = true;
    }
    any
}

fn lease_ends(state: &mut State, id: usize) -> bool {
    let session = state.etcd.workers[id].session();
    let extends = |p: usize| ID_OF[p] == id && state.processes[p].mode == Mode::On && state.processes[p].session == session;
    if session == 0 || (0..PROCESSES).any(extends) {
        return false;
    }
    state.etcd.workers[id].registration = None;
    true
}

/// What happens to processes.
fn disturb(state: &mut State, step: Step, rules: &Rules) -> bool {
    let newest = state.processes.iter().map(|process| process.origin).max().unwrap_or_default();
    let State { processes, budget, .. } = state;
    match step {
        Step::Thaw(p) if processes[p].mode == Mode::Frozen => {
            processes[p].mode = Mode::On;
            true
        }
        Step::Crash(p) if processes[p].mode != Mode::Off => {
            worker::restart_agent(&mut processes[p], rules);
            pay(&mut budget.crashes)
        }
        Step::Downgrade(p) if processes[p].mode == Mode::On => {
            worker::restart_agent(&mut processes[p], rules);
            processes[p].holds = [rules.downgraded; NAMES];
            pay(&mut budget.downgrades)
        }
        Step::Freeze(p) if processes[p].mode == Mode::On => {
            processes[p].mode = Mode::Frozen;
            pay(&mut budget.freezes)
        }
        Step::Reboot(p) => {
            let Process { report, holds, .. } = processes[p];
            let strays = worker::strays(&processes[p], false);
            processes[p] = Process { mode: Mode::On, origin: newest + 1, report, holds, strays, ..Process::default() };
            pay(&mut budget.reboots)
        }
        Step::Twin if processes[PROCESSES - 1] == Process::default() => {
            let holds = processes[0].holds;
            processes[PROCESSES - 1] = Process { mode: Mode::On, origin: newest + 1, holds, ..Process::default() };
            pay(&mut budget.twins)
        }
        Step::Leave(p) if processes[p].mode == Mode::On && !processes[p].leaving => {
            processes[p].leaving = true;
            pay(&mut budget.leaves)
        }
        _ => false,
    }
}
