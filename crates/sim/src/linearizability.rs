//! Judges what several callers of one name were told: there must be one order of what they asked for, in which each call takes effect at
//! one moment between its invocation and its return, and each answer is the one that a single register would have given. PURE.
//!
//! Beside the wheel. It knows nothing of masters and etcd: a history comes in as calls and outcomes, and a verdict comes out.
//!
//! The search is Wing and Gong's, with memoisation as Lowe has it: a configuration is the set of calls that have been put in order and
//! the content that they leave, and no configuration is looked at twice. A call whose outcome nobody knows may take effect at any time after
//! its invocation, or never. A call that was certainly refused has no effect, so it is left out.

use std::{collections::HashSet, fmt::Write};

/// The content that exists under a name, or nothing.
pub type Content = Option<u64>;

/// How many configurations are looked at before the search is given up: that takes some hundred megabytes. Histories of callers that wait for
/// their answers need a few for each call.
const CONFIGURATIONS: usize = 300_000;

/// So many calls whose outcome nobody knows come one after the other at most, with none between that was answered: two lead from any content to
/// any other that more could lead to (a delete and an add, an add and an update), and those that are not needed may as well come later.
const UNKNOWN_IN_A_ROW: usize = 2;

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// To read.
    Get,
    /// To exist with this content, if nothing or this exists.
    Add(u64),
    /// To have this content, if anything exists.
    Update(u64),
    /// To have this content.
    Apply(u64),
    /// To exist no more.
    Delete,
}

/// What a caller is told when its call took effect, or found why it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A read has found this.
    Found(Content),
    /// Nothing existed before.
    Created,
    /// Another content existed before.
    Changed,
    /// This content existed before.
    Unchanged,
    /// Another content exists, and stays.
    AlreadyExists,
    /// Nothing exists.
    NotFound,
    /// It is gone.
    Deleted,
}

/// What a caller knows of its call in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Answered(Answer),
    /// It certainly has no effect, and tells nothing of what exists.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// What is to be said of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none. The text shows the history, and what the longest order lacks.
    Impossible(String),
    /// There are too many orders to look at.
    Undecided,
}

/// The calls of one name. Invocations and returns are numbered as they are told.
#[derive(Clone, Debug, Default)]
pub struct History {
    initial: Content,
    operations: Vec<Operation>,
    moments: usize,
}

/// Names a call of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationId(usize);

#[derive(Clone, Copy, Debug)]
struct Operation {
    call: Call,
    invoked: usize,
    /// None: it is under way.
    returned: Option<(usize, Outcome)>,
}

impl Operation {
    /// The moment before which it must have taken effect, and its answer; none: there is no such moment.
    fn answered(&self) -> Option<(usize, Answer)> {
        match self.returned {
            Some((at, Outcome::Answered(answer))) => Some((at, answer)),
            Some((_, Outcome::Refused | Outcome::Unknown)) | None => None,
        }
    }

    fn may_have_effect(&self) -> bool {
        !matches!(self.returned, Some((_, Outcome::Refused)))
    }
}

impl History {
    /// Nothing was asked for yet, and this exists.
    #[must_use]
    pub fn from(initial: Content) -> Self {
        Self { initial, ..Self::default() }
    }

    fn moment(&mut self) -> usize {
        self.moments += 1;
        self.moments
    }

    /// A caller begins to ask for this.
    pub fn invoke(&mut self, call: Call) -> OperationId {
        let invoked = self.moment();
        self.operations.push(Operation { call, invoked, returned: None });
        OperationId(self.operations.len() - 1)
    }

    /// Its caller waits no more.
    pub fn returned(&mut self, id: OperationId, outcome: Outcome) {
        let at = self.moment();
        if let Some(operation) = self.operations.get_mut(id.0) {
            operation.returned = Some((at, outcome));
        }
    }

    /// This exists now, as is known from elsewhere.
    pub fn observe(&mut self, exists: Content) {
        let id = self.invoke(Call::Get);
        self.returned(id, Outcome::Answered(Answer::Found(exists)));
    }

    /// How many calls there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Whether there is an order that explains every answer.
    #[must_use]
    pub fn judge(&self) -> Verdict {
        let operations: Vec<Operation> = self.operations.iter().copied().filter(Operation::may_have_effect).collect();
        let mut seen = HashSet::new();
        let mut open = vec![Configuration { taken: Taken::none(operations.len()), content: self.initial, unknown: 0 }];
        let mut furthest: Option<(usize, Configuration)> = None;
        while let Some(configuration) = open.pop() {
            if seen.len() == CONFIGURATIONS {
                return Verdict::Undecided;
            }
            if !seen.insert(configuration.clone()) {
                continue;
            }
            let explained = configuration.explained(&operations);
            if explained == operations.iter().filter(|operation| operation.answered().is_some()).count() {
                return Verdict::Linearizable;
            }
            open.extend(configuration.next(&operations));
            if furthest.as_ref().is_none_or(|(most, _)| explained > *most) {
                furthest = Some((explained, configuration));
            }
        }
        Verdict::Impossible(self.told(&operations, furthest.map(|(_, configuration)| configuration)))
    }

    fn told(&self, operations: &[Operation], furthest: Option<Configuration>) -> String {
        let mut text = format!("no order of these calls explains their answers; {:?} existed before", self.initial);
        for (at, operation) in operations.iter().enumerate() {
            let (returned, outcome) = match operation.returned {
                Some((returned, Outcome::Answered(answer))) => (returned.to_string(), format!("{answer:?}")),
                Some((returned, outcome)) => (returned.to_string(), format!("{outcome:?}")),
                None => (String::new(), "under way".to_owned()),
            };
            let is_taken = furthest.as_ref().is_some_and(|configuration| configuration.taken.has(at));
            let mark = if is_taken || operation.answered().is_none() { ' ' } else { '?' };
            // A String takes everything.
            let _ = write!(text, "\n{mark} {:>4} to {returned:>4}: {:?}: {outcome}", operation.invoked, operation.call);
        }
        if let Some(configuration) = furthest {
            let _ = write!(text, "\nthe longest order lacks what is marked, and leaves {:?}", configuration.content);
        }
        text
    }
}

/// What a single register answers, and what exists then.
fn apply(call: Call, exists: Content) -> (Content, Answer) {
    match (call, exists) {
        (Call::Get, _) => (exists, Answer::Found(exists)),
        (Call::Add(new) | Call::Apply(new), None) => (Some(new), Answer::Created),
        (Call::Add(new) | Call::Update(new) | Call::Apply(new), Some(old)) if new == old => (exists, Answer::Unchanged),
        (Call::Add(_), Some(_)) => (exists, Answer::AlreadyExists),
        (Call::Update(new) | Call::Apply(new), Some(_)) => (Some(new), Answer::Changed),
        (Call::Update(_) | Call::Delete, None) => (None, Answer::NotFound),
        (Call::Delete, Some(_)) => (None, Answer::Deleted),
    }
}

/// A set of operations by their places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Taken(Box<[u64]>);

impl Taken {
    fn none(of: usize) -> Self {
        Self(vec![0; of.div_ceil(64)].into())
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    fn with(&self, at: usize) -> Self {
        let mut taken = self.clone();
        taken.0[at / 64] |= 1 << (at % 64);
        taken
    }
}

/// Some calls in an order, of which only what it leaves is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Configuration {
    taken: Taken,
    content: Content,
    /// How many of the last of them are unknown.
    unknown: usize,
}

impl Configuration {
    /// How many answers are explained.
    fn explained(&self, operations: &[Operation]) -> usize {
        operations.iter().enumerate().filter(|(at, operation)| operation.answered().is_some() && self.taken.has(*at)).count()
    }

    /// With one call more. What was answered comes last, so that it is tried first.
    fn next(&self, operations: &[Operation]) -> Vec<Self> {
        let left = || operations.iter().enumerate().filter(|(at, _)| !self.taken.has(*at));
        // What was invoked after another had returned comes after it.
        let first_return = left().filter_map(|(_, operation)| operation.answered()).map(|(at, _)| at).min().unwrap_or(usize::MAX);
        let (mut unknown, mut known, mut tried) = (Vec::new(), Vec::new(), Vec::new());
        for (at, operation) in left().take_while(|(_, operation)| operation.invoked < first_return) {
            let (content, answer) = apply(operation.call, self.content);
            let next = |unknown| Self { taken: self.taken.with(at), content, unknown };
            match operation.answered() {
                Some((_, told)) if told == answer => known.push(next(0)),
                Some(_) => {}
                // Without an effect it need not be in the order. Of several that ask for the same the first may stand for any.
                None if content != self.content && self.unknown < UNKNOWN_IN_A_ROW && !tried.contains(&operation.call) => {
                    tried.push(operation.call);
                    unknown.push(next(self.unknown + 1));
                }
                None => {}
            }
        }
        known.reverse();
        unknown.extend(known);
        unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Answer::{AlreadyExists, Changed, Created, Deleted, Found, NotFound, Unchanged};
    use Call::{Add, Apply, Delete, Get, Update};

    /// When a call of a table is invoked, what it asks for, and what becomes of it and when.
    type Line = (usize, Call, Option<(usize, Outcome)>);

    fn told(invoked: usize, call: Call, returned: usize, answer: Answer) -> Line {
        (invoked, call, Some((returned, Outcome::Answered(answer))))
    }

    fn refused(invoked: usize, call: Call, returned: usize) -> Line {
        (invoked, call, Some((returned, Outcome::Refused)))
    }

    fn unknown(invoked: usize, call: Call, returned: usize) -> Line {
        (invoked, call, Some((returned, Outcome::Unknown)))
    }

    fn history(initial: Content, lines: &[Line]) -> History {
        let mut history = History::from(initial);
        let end = lines.iter().flat_map(|(invoked, _, returned)| [Some(*invoked), returned.map(|(at, _)| at)]).flatten().max().unwrap_or(0);
        let mut ids = vec![None; lines.len()];
        for moment in 0..=end {
            for (line, (invoked, call, returned)) in lines.iter().enumerate() {
                if *invoked == moment {
                    ids[line] = Some(history.invoke(*call));
                }
                if let (Some((_, outcome)), Some(id)) = (returned.filter(|(at, _)| *at == moment), ids[line]) {
                    history.returned(id, outcome);
                }
            }
        }
        history
    }

    #[test]
    fn what_a_single_register_could_have_answered_is_good() {
        let cases: [(&str, Content, &[Line]); 8] = [
            ("nothing was asked", None, &[]),
            (
                "one after the other",
                None,
                &[
                    told(0, Add(1), 1, Created),
                    told(2, Add(1), 3, Unchanged),
                    told(4, Add(2), 5, AlreadyExists),
                    told(6, Update(2), 7, Changed),
                    told(8, Get, 9, Found(Some(2))),
                    told(10, Delete, 11, Deleted),
                    told(12, Update(3), 13, NotFound),
                    told(14, Apply(3), 15, Created),
                    told(16, Apply(4), 17, Changed),
                ],
            ),
            ("what was there before", Some(7), &[told(0, Get, 1, Found(Some(7))), told(2, Delete, 3, Deleted)]),
            (
                "of two at once the one that began later is first",
                None,
                &[told(0, Add(1), 5, AlreadyExists), told(2, Add(2), 4, Created), told(6, Get, 7, Found(Some(2)))],
            ),
            (
                "a read beside an add sees it or not",
                None,
                &[told(0, Add(1), 9, Created), told(1, Get, 2, Found(None)), told(3, Get, 4, Found(Some(1)))],
            ),
            ("of two deletes at once one finds nothing", Some(1), &[told(0, Delete, 3, NotFound), told(1, Delete, 2, Deleted)]),
            ("what is refused has no effect", None, &[refused(0, Add(1), 1), told(2, Get, 3, Found(None))]),
            (
                "an update between two reads",
                Some(1),
                &[
                    told(0, Update(2), 9, Changed),
                    told(1, Get, 2, Found(Some(1))),
                    told(3, Get, 4, Found(Some(2))),
                    told(5, Delete, 6, Deleted),
                ],
            ),
        ];
        for (case, initial, lines) in cases {
            assert_eq!(history(initial, lines).judge(), Verdict::Linearizable, "{case}");
        }
    }

    #[test]
    fn what_is_unknown_takes_effect_at_once_or_late_or_never() {
        let cases: [(&str, Content, &[Line]); 7] = [
            ("what is unknown took effect at once", None, &[unknown(0, Add(1), 1), told(2, Get, 3, Found(Some(1)))]),
            (
                "what is unknown took effect late",
                None,
                &[unknown(0, Add(1), 1), told(2, Get, 3, Found(None)), told(4, Get, 5, Found(Some(1)))],
            ),
            (
                "what is unknown never took effect",
                None,
                &[unknown(0, Add(1), 1), told(2, Get, 3, Found(None)), told(4, Add(2), 5, Created)],
            ),
            ("what is under way took effect", None, &[(0, Add(1), None), told(2, Get, 3, Found(Some(1)))]),
            (
                "of two that ask for the same each may have an effect",
                Some(1),
                &[unknown(0, Delete, 1), told(2, Add(1), 3, Created), unknown(4, Delete, 5), told(6, Get, 7, Found(None))],
            ),
            ("of two deletes the one that is unknown did it", Some(1), &[unknown(0, Delete, 1), told(2, Delete, 3, NotFound)]),
            (
                "of three that are unknown two took effect in a row",
                Some(1),
                &[
                    unknown(0, Delete, 1),
                    unknown(2, Update(3), 3),
                    unknown(4, Add(2), 5),
                    told(6, Get, 7, Found(Some(2))),
                    told(8, Get, 9, Found(Some(3))),
                ],
            ),
        ];
        for (case, initial, lines) in cases {
            assert_eq!(history(initial, lines).judge(), Verdict::Linearizable, "{case}");
        }
    }

    #[test]
    fn what_no_single_register_could_have_answered_is_impossible() {
        let cases: [(&str, Content, &[Line]); 15] = [
            ("a read of what was refused", None, &[refused(0, Add(1), 9), told(1, Get, 2, Found(Some(1)))]),
            ("a read that goes back", None, &[told(0, Add(1), 9, Created), told(1, Get, 2, Found(Some(1))), told(3, Get, 4, Found(None))]),
            (
                "a read that goes back over an update",
                Some(1),
                &[unknown(0, Update(2), 1), told(2, Get, 3, Found(Some(2))), told(4, Get, 5, Found(Some(1)))],
            ),
            ("an acknowledged add that a later read does not see", None, &[told(0, Add(1), 1, Created), told(2, Get, 3, Found(None))]),
            (
                "an acknowledged update that a later read does not see",
                Some(1),
                &[told(0, Update(2), 1, Changed), told(2, Get, 3, Found(Some(1)))],
            ),
            ("a delete that is answered twice", Some(1), &[told(0, Delete, 1, Deleted), told(2, Delete, 3, Deleted)]),
            ("a delete that is answered twice, at once", Some(1), &[told(0, Delete, 2, Deleted), told(1, Delete, 3, Deleted)]),
            ("two who both created it", None, &[told(0, Add(1), 2, Created), told(1, Add(2), 3, Created)]),
            ("an add twice, of which one was only tried again", None, &[told(0, Add(1), 1, Created), told(2, Add(1), 3, Created)]),
            ("what was deleted is back", Some(1), &[told(0, Delete, 1, Deleted), told(2, Get, 3, Found(Some(1)))]),
            (
                "an unknown add has an effect twice",
                None,
                &[unknown(0, Add(1), 1), told(2, Delete, 3, Deleted), told(4, Get, 5, Found(Some(1)))],
            ),
            ("what was asked for later is read before", None, &[told(0, Get, 1, Found(Some(1))), told(2, Add(1), 3, Created)]),
            (
                "an update that finds nothing though an add was acknowledged",
                None,
                &[told(0, Add(1), 1, Created), told(2, Update(2), 3, NotFound)],
            ),
            ("another exists, and nobody has added it", None, &[told(0, Add(1), 1, AlreadyExists)]),
            ("a read of what nobody wrote", Some(1), &[told(0, Get, 1, Found(Some(2)))]),
        ];
        for (case, initial, lines) in cases {
            assert!(matches!(history(initial, lines).judge(), Verdict::Impossible(_)), "{case}");
        }
    }

    #[test]
    fn what_is_impossible_is_shown_with_the_answer_that_does_not_fit() {
        let bad = history(None, &[told(0, Add(1), 1, Created), told(2, Get, 3, Found(None)), unknown(4, Add(2), 5)]);
        let Verdict::Impossible(text) = bad.judge() else { panic!("it is impossible") };
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("     1 to") && lines[2].starts_with("?    3 to") && lines[3].ends_with("Add(2): Unknown"), "{text}");
        assert!(text.ends_with("leaves Some(1)"), "{text}");
    }

    /// Everybody's calls overlap, and nobody knows of half of them. The memory of what was looked at keeps it small.
    #[test]
    fn many_at_once_are_judged() {
        let mut history = History::default();
        for round in 0..40 {
            let ids: Vec<OperationId> = (0..3).map(|caller| history.invoke(Apply(round * 10 + caller))).collect();
            let lost = history.invoke(Delete);
            let answers = [if round == 0 { Created } else { Changed }, Changed, Changed];
            ids.into_iter().zip(answers).for_each(|(id, answer)| history.returned(id, Outcome::Answered(answer)));
            history.returned(lost, Outcome::Unknown);
        }
        assert_eq!(history.judge(), Verdict::Linearizable);
        history.observe(Some(5));
        assert!(matches!(history.judge(), Verdict::Impossible(_)), "it was replaced long ago");
    }
}
