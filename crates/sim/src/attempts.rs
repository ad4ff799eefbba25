//! A model of how an attempt of a task is begun, closed and begun again, for all interleavings of small instances: a leader that looks and writes, one or
//! two agents under one id, each with a journal, and transactions whose answers are lost and which are carried out late. It is beside the wheel: the
//! rules are written anew here. Three promises: an attempt is begun once at most; what the leader closed as never begun is never begun; an end that a
//! worker knows is not said of a script that runs.
//!
//! Two comparisons are made all the same and break nothing alone: of the session, when an attempt is begun (the gate makes up for it), and of the order,
//! when the next attempt is ordered (the number of the attempt does).
//!
//! Left out: time (the gate is open exactly while the agent's session is registered, where the real one shuts before), admissions (a session stands for
//! both), more than one task (keys of two have nothing in common).

use stateright::{Checker, HasDiscoveries, Model, Property};

/// What must hold in every state.
pub const PROMISES: [&str; 5] = [
    "an attempt is begun once at most",
    "what was closed as never begun is never begun",
    "no end is said of a script that runs",
    "what was said of an attempt stays said",
    "what was written off is not begun afterwards",
];

/// A rule of the protocol; a mutant leaves one out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// The begin transaction compares the order's revision.
    BeginComparesOrder,
    /// It compares the revision of the result.
    BeginComparesResult,
    /// An agent notes that it begins before it begins.
    NoteBeforeExec,
    /// What was noted as begun is not begun by the next agent.
    BegunIsNotBegunAgain,
    /// A result that says running, without a note of it, is lost.
    RunningWithoutNoteIsLost,
    /// Whoever closes an attempt compares the revision of the result.
    CloseComparesResult,
    /// The gate is asked before a script is executed.
    GateBeforeExec,
    /// Where the session is another than that of the begin transaction, the order is looked at before a script is executed.
    OrderBeforeExec,
    /// The end transaction compares the revision of the result.
    EndComparesResult,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::BeginComparesOrder,
        Self::BeginComparesResult,
        Self::NoteBeforeExec,
        Self::BegunIsNotBegunAgain,
        Self::RunningWithoutNoteIsLost,
        Self::CloseComparesResult,
        Self::GateBeforeExec,
        Self::OrderBeforeExec,
        Self::EndComparesResult,
    ];
}

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Attempts {
    /// Machines that run under the worker's id, one after another or at once.
    pub machines: usize,
    /// How often an agent dies.
    pub crashes: u8,
    /// How often a session is lost.
    pub losses: u8,
    /// How often a machine loses its journal.
    pub wipes: u8,
    /// How many attempts are ordered.
    pub attempts: u8,
    /// The rule that is left out.
    pub without: Option<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Intent {
    Run,
    Closed,
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Order {
    revision: u8,
    attempt: u8,
    intent: Intent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Phase {
    Running,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Said {
    revision: u8,
    attempt: u8,
    order: u8,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Stage {
    Order,
    Begun,
    Ended,
}

/// What a machine has on its disk of the attempt that it dealt with last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Note {
    order: u8,
    attempt: u8,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    /// Nothing goes on here.
    Idle,
    /// The order is noted.
    Noted,
    /// The begin transaction was sent.
    Asked,
    /// The result says running, by this agent or the one before.
    Granted,
    /// That it begins is noted.
    Begins,
    Runs,
    /// It goes on no more, and the end is to be written.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Agent {
    session: u8,
    /// The session under which it learned that it may begin.
    granted: u8,
    seen: (Order, Option<Said>),
    step: Step,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Machine {
    agent: Option<Agent>,
    note: Option<Note>,
}

/// A transaction that may be carried out at any time, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Flying {
    Begin { order: u8, attempt: u8, result: u8, session: u8 },
    End { order: u8, attempt: u8, result: u8 },
}

/// All of it at one time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    revision: u8,
    order: Order,
    result: Option<Said>,
    /// 0: nobody is registered.
    session: u8,
    sessions: u8,
    machines: Vec<Machine>,
    flying: Vec<Flying>,
    leader: (Order, Option<Said>),
    /// How often each attempt was executed, and which the leader closed as never begun.
    begun: Vec<u8>,
    promised: Vec<bool>,
    /// An end that was said is said no longer of the same attempt.
    taken_back: bool,
    /// An attempt was begun that the leader had written off.
    late: bool,
    left: (u8, u8, u8),
}

/// Something that happens: to a machine, to a transaction on its way, or at the leader.
#[allow(missing_docs, reason = "each says what it is")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happens {
    Register(usize),
    Look(usize),
    Note(usize),
    Ask(usize),
    ReadBack(usize),
    NoteBegun(usize),
    Exec(usize),
    Finish(usize),
    TellEnd(usize),
    Crash(usize),
    Wipe(usize),
    LoseSession,
    CarryOut(usize),
    /// The same, and its sender learns of it.
    Answer(usize),
    Forget(usize),
    LeaderLooks,
    LeaderCloses,
    LeaderWritesOff,
    LeaderOrdersAgain,
}

fn revision_of(result: Option<Said>) -> u8 {
    result.map_or(0, |said| said.revision)
}

impl Attempts {
    fn holds(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// What a new agent concludes from its disk and from what etcd says.
    fn recover(&self, state: &State, note: Option<Note>) -> (Option<Note>, Step) {
        let said = state.result.filter(|said| said.phase == Phase::Running);
        match note {
            Some(note) if note.stage == Stage::Begun => {
                if self.holds(Rule::BegunIsNotBegunAgain) {
                    (Some(Note { stage: Stage::Ended, ..note }), Step::Over)
                } else {
                    (Some(note), Step::Begins)
                }
            }
            Some(note) if note.stage == Stage::Ended => (Some(note), Step::Over),
            // It certainly did not run.
            Some(note) if said.is_some_and(|said| said.order == note.order) => (Some(note), Step::Granted),
            _ => match said {
                Some(said) if self.holds(Rule::RunningWithoutNoteIsLost) => {
                    (Some(Note { order: said.order, attempt: said.attempt, stage: Stage::Ended }), Step::Over)
                }
                Some(said) => (Some(Note { order: said.order, attempt: said.attempt, stage: Stage::Order }), Step::Granted),
                None => (None, Step::Idle),
            },
        }
    }

    /// Whether an agent that sees this begins by it.
    fn begins(order: Order, result: Option<Said>, note: Option<Note>) -> bool {
        order.intent == Intent::Run
            && result.is_none_or(|said| said.attempt < order.attempt)
            && note.is_none_or(|note| note.attempt < order.attempt || note.stage == Stage::Order)
    }

    fn carry_out(&self, state: &mut State, flying: Flying) {
        match flying {
            Flying::Begin { order, attempt, result, session } => {
                let fits = (!self.holds(Rule::BeginComparesOrder) || state.order.revision == order)
                    && (!self.holds(Rule::BeginComparesResult) || revision_of(state.result) == result)
                    && state.session == session;
                if fits {
                    state.revision += 1;
                    state.taken_back |= state.result.is_some_and(|said| said.attempt >= attempt && said.phase == Phase::Ended);
                    state.result = Some(Said { revision: state.revision, attempt, order, phase: Phase::Running });
                }
            }
            Flying::End { order, attempt, result } => {
                let fits = revision_of(state.result) == result || !self.holds(Rule::EndComparesResult);
                if fits && state.result.is_some() {
                    state.revision += 1;
                    state.taken_back |= state.result.is_some_and(|said| said.attempt > attempt);
                    state.result = Some(Said { revision: state.revision, attempt, order, phase: Phase::Ended });
                }
            }
        }
    }

    fn of_machine(&self, state: &State, n: usize, actions: &mut Vec<Happens>) {
        let machine = state.machines[n];
        let Some(agent) = machine.agent else {
            if state.session == 0 && state.sessions < 4 {
                actions.push(Happens::Register(n));
            }
            if state.left.2 > 0 && machine.note.is_some() {
                actions.push(Happens::Wipe(n));
            }
            return;
        };
        if state.left.0 > 0 {
            actions.push(Happens::Crash(n));
        }
        if agent.session != state.session && state.session == 0 && state.sessions < 4 {
            actions.push(Happens::Register(n));
        }
        match agent.step {
            Step::Idle => {
                if agent.seen != (state.order, state.result) {
                    actions.push(Happens::Look(n));
                }
                if Self::begins(agent.seen.0, agent.seen.1, machine.note) {
                    actions.push(Happens::Note(n));
                }
            }
            Step::Noted => actions.push(Happens::Ask(n)),
            Step::Asked => actions.push(Happens::ReadBack(n)),
            Step::Granted => actions.push(if self.holds(Rule::NoteBeforeExec) { Happens::NoteBegun(n) } else { Happens::Exec(n) }),
            Step::Begins => actions.push(Happens::Exec(n)),
            Step::Runs => actions.push(Happens::Finish(n)),
            Step::Over => actions.push(Happens::TellEnd(n)),
        }
    }

    fn of_leader(&self, state: &State, actions: &mut Vec<Happens>) {
        let (order, result) = state.leader;
        if state.leader != (state.order, state.result) {
            actions.push(Happens::LeaderLooks);
        }
        let current = result.filter(|said| said.attempt == order.attempt);
        if order.intent == Intent::Run {
            match current.map(|said| said.phase) {
                None => actions.push(Happens::LeaderCloses),
                // Its worker has been gone for so long that nothing of it can run.
                Some(Phase::Running) if state.session == 0 && state.runs().is_empty() => actions.push(Happens::LeaderWritesOff),
                Some(_) => {}
            }
        }
        let is_at_an_end = order.intent != Intent::Run || current.is_some_and(|said| said.phase != Phase::Running);
        if is_at_an_end && order.attempt < self.attempts {
            actions.push(Happens::LeaderOrdersAgain);
        }
    }

    fn leader_writes(&self, state: &mut State, compares_order: bool, compares_result: bool, order: Order) {
        let (seen, result) = state.leader;
        let fits = (!compares_order || state.order.revision == seen.revision)
            && (!compares_result || revision_of(state.result) == revision_of(result));
        if fits {
            state.revision += 1;
            state.order = Order { revision: state.revision, ..order };
            if order.intent == Intent::Closed {
                state.promised[usize::from(order.attempt)] = true;
            }
        }
    }

    fn of_agent(&self, state: &mut State, n: usize, happens: Happens) {
        let (order, result, session) = (state.order, state.result, state.session);
        let Machine { agent: Some(mut agent), mut note } = state.machines[n] else { return };
        match happens {
            Happens::Look(_) => agent.seen = (order, result),
            Happens::Note(_) => {
                note = Some(Note { order: agent.seen.0.revision, attempt: agent.seen.0.attempt, stage: Stage::Order });
                agent.step = Step::Noted;
            }
            Happens::Ask(_) => {
                let (seen, said) = agent.seen;
                let (order, attempt) = (seen.revision, seen.attempt);
                state.flying.push(Flying::Begin { order, attempt, result: revision_of(said), session: agent.session });
                agent.step = Step::Asked;
            }
            Happens::ReadBack(_) => {
                agent.seen = (order, result);
                let is_mine = |said: Said| note.is_some_and(|note| note.order == said.order) && said.phase == Phase::Running;
                agent.step = if result.is_some_and(is_mine) { Step::Granted } else { Step::Idle };
                // A session that is gone grants nothing, and neither does an order that has been rewritten meanwhile.
                let is_ordered = note.is_some_and(|note| note.order == order.revision);
                agent.granted = if session == agent.session && is_ordered { session } else { 0 };
            }
            Happens::NoteBegun(_) => {
                note = note.map(|note| Note { stage: Stage::Begun, ..note });
                agent.step = Step::Begins;
            }
            Happens::Exec(_) => {
                let attempt = note.map_or(0, |note| note.attempt);
                let is_open = !self.holds(Rule::GateBeforeExec) || session == agent.session;
                let is_ordered = note.is_some_and(|note| note.order == order.revision);
                let is_wanted = agent.granted == agent.session || is_ordered || !self.holds(Rule::OrderBeforeExec);
                if is_open && is_wanted {
                    state.late |= order.attempt == attempt && order.intent == Intent::Lost;
                    state.begun[usize::from(attempt)] += 1;
                    agent.step = Step::Runs;
                } else {
                    // It was never begun, and that is known.
                    note = note.map(|note| Note { stage: Stage::Ended, ..note });
                    agent.step = Step::Over;
                }
            }
            Happens::Finish(_) => {
                note = note.map(|note| Note { stage: Stage::Ended, ..note });
                agent.step = Step::Over;
            }
            Happens::TellEnd(_) => {
                let Some(ended) = note else { return };
                let said = result.filter(|said| said.order == ended.order && said.phase == Phase::Running);
                if said.is_some() || (!self.holds(Rule::EndComparesResult) && result.is_some()) {
                    let (order, attempt) = (ended.order, ended.attempt);
                    state.flying.push(Flying::End { order, attempt, result: revision_of(said) });
                }
                agent.seen = (order, result);
                agent.step = Step::Idle;
            }
            _ => {}
        }
        state.machines[n] = Machine { agent: Some(agent), note };
    }
}

impl State {
    /// The attempts whose scripts run.
    fn runs(&self) -> Vec<u8> {
        let runs = |machine: &Machine| Some((machine.agent?.step, machine.note?)).filter(|(step, _)| *step == Step::Runs);
        self.machines.iter().filter_map(runs).map(|(_, note)| note.attempt).collect()
    }
}

impl Model for Attempts {
    type State = State;
    type Action = Happens;

    fn init_states(&self) -> Vec<State> {
        let order = Order { revision: 1, attempt: 1, intent: Intent::Run };
        vec![State {
            revision: 1,
            order,
            result: None,
            session: 0,
            sessions: 0,
            machines: vec![Machine::default(); self.machines],
            flying: Vec::new(),
            leader: (order, None),
            begun: vec![0; usize::from(self.attempts) + 1],
            promised: vec![false; usize::from(self.attempts) + 1],
            taken_back: false,
            late: false,
            left: (self.crashes, self.losses, self.wipes),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Happens>) {
        (0..self.machines).for_each(|n| self.of_machine(state, n, actions));
        self.of_leader(state, actions);
        (0..state.flying.len()).for_each(|n| actions.extend([Happens::CarryOut(n), Happens::Answer(n), Happens::Forget(n)]));
        if state.left.1 > 0 && state.session != 0 {
            actions.push(Happens::LoseSession);
        }
    }

    fn next_state(&self, last: &State, happens: Happens) -> Option<State> {
        let mut state = last.clone();
        match happens {
            Happens::Register(n) => {
                state.sessions += 1;
                state.session = state.sessions;
                let seen = (state.order, state.result);
                let machine = state.machines[n];
                let (note, step) = match machine.agent {
                    // What it does goes on in its next session.
                    Some(agent) => (machine.note, agent.step),
                    None => self.recover(&state, machine.note),
                };
                let granted = machine.agent.map_or(0, |agent| agent.granted);
                state.machines[n] = Machine { agent: Some(Agent { session: state.session, granted, seen, step }), note };
            }
            Happens::Crash(n) => {
                state.left.0 -= 1;
                // Its guard has reaped all of it.
                state.machines[n].agent = None;
            }
            Happens::Wipe(n) => {
                state.left.2 -= 1;
                state.machines[n].note = None;
            }
            Happens::LoseSession => {
                state.left.1 -= 1;
                state.session = 0;
            }
            Happens::CarryOut(n) => {
                let flying = state.flying.remove(n);
                self.carry_out(&mut state, flying);
            }
            Happens::Answer(n) => {
                let flying = state.flying.remove(n);
                let before = state.revision;
                self.carry_out(&mut state, flying);
                let Flying::Begin { order, session, .. } = flying else { return None };
                let asked = |machine: &&mut Machine| machine.note.is_some_and(|note| note.order == order && note.stage == Stage::Order);
                let machine = state.machines.iter_mut().filter(asked).find_map(|machine| machine.agent.as_mut())?;
                if state.revision == before || machine.step != Step::Asked || machine.session != session {
                    return None;
                }
                (machine.step, machine.granted) = (Step::Granted, session);
            }
            Happens::Forget(n) => drop(state.flying.remove(n)),
            Happens::LeaderLooks => state.leader = (state.order, state.result),
            Happens::LeaderCloses => {
                let closed = Order { intent: Intent::Closed, ..state.leader.0 };
                self.leader_writes(&mut state, true, self.holds(Rule::CloseComparesResult), closed);
            }
            Happens::LeaderWritesOff => {
                let lost = Order { intent: Intent::Lost, ..state.leader.0 };
                self.leader_writes(&mut state, true, true, lost);
            }
            Happens::LeaderOrdersAgain => {
                let again = Order { attempt: state.leader.0.attempt + 1, intent: Intent::Run, revision: 0 };
                self.leader_writes(&mut state, true, true, again);
            }
            of_agent => match of_agent {
                Happens::Look(n)
                | Happens::Note(n)
                | Happens::Ask(n)
                | Happens::ReadBack(n)
                | Happens::NoteBegun(n)
                | Happens::Exec(n)
                | Happens::Finish(n)
                | Happens::TellEnd(n) => self.of_agent(&mut state, n, of_agent),
                _ => return None,
            },
        }
        state.flying.sort_unstable();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(PROMISES[0], |_, state: &State| state.begun.iter().all(|times| *times <= 1)),
            Property::always(PROMISES[1], |_, state: &State| {
                state.promised.iter().zip(&state.begun).all(|(promised, times)| !promised || *times == 0)
            }),
            Property::always(PROMISES[2], |_, state: &State| {
                let ended = state.result.filter(|said| said.phase == Phase::Ended).map(|said| said.attempt);
                state.machines.len() > 1 || state.runs().into_iter().all(|attempt| Some(attempt) != ended)
            }),
            Property::always(PROMISES[3], |_, state: &State| !state.taken_back),
            Property::always(PROMISES[4], |_, state: &State| !state.late),
            Property::sometimes("a second attempt runs", |_, state: &State| state.begun.get(2).is_some_and(|times| *times > 0)),
            Property::sometimes("an end is said", |_, state: &State| state.result.is_some_and(|said| said.phase == Phase::Ended)),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        // More than two transactions on their way are orders of two; whoever writes more often goes round in a circle.
        state.flying.len() <= 2 && state.revision <= 10
    }
}

/// The promises that a model breaks, and those of its landmarks that it never reaches.
#[must_use]
pub fn broken(model: Attempts, threads: usize) -> Vec<&'static str> {
    let checker = model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries();
    let is_broken = |property: &Property<Attempts>| {
        found.contains_key(property.name) == matches!(property.expectation, stateright::Expectation::Always)
    };
    checker.model().properties().iter().filter(|property| is_broken(property)).map(|property| property.name).collect()
}
