//! Work: what a kind and a spec ask of a worker, however they are spelled.
//!
//! The wheel: before model::diff and under the planner, which both ask here whether something has changed. A spec that spells out a default
//! asks for the same as one that leaves it out. Nothing here is stored: what is in etcd has a [`crate::Hash`] of the text, and what an
//! earlier version wrote is compared by what it asks for.

use std::hash::{Hash as _, Hasher as _};

use xxhash_rust::xxh3::Xxh3;

use crate::{
    DriverTraits, Spec,
    builtin::{self, Digest},
};

/// Names the work of a kind and a spec, with its defaults filled in. Made anew by each process, and never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    all: u64,
    /// What no driver changes while the work runs.
    fixed: u64,
}

impl Work {
    /// The work of a kind and a spec.
    #[must_use]
    pub fn of(kind: &str, spec: &Spec) -> Self {
        let mut fixed = Xxh3::new();
        kind.hash(&mut fixed);
        let mut digest = Digest { all: fixed.clone(), fixed };
        let specs = builtin::specs_of(kind);
        if !specs.is_some_and(|specs| (specs.feed)(spec, &mut digest)) {
            spec.as_str().hash(&mut digest.all);
            // Where only the driver knows what a spec asks for, it finds out what it can take. Of what the worker's catalog names, and of a spec that
            // cannot be read, nobody knows what a change changes.
            if kind.is_empty() || specs.is_some() {
                spec.as_str().hash(&mut digest.fixed);
            }
        }
        let [all, fixed] = [digest.all, digest.fixed].map(|hasher| hasher.finish().min(u64::MAX - 1));
        Self { all, fixed }
    }

    /// Whether a driver of these traits takes this change while the work runs; else the work is stopped and started with another epoch. A driver of
    /// a kind that is not known here may still answer that it needs a restart.
    #[must_use]
    pub fn is_in_place(self, new: Self, driver: DriverTraits) -> bool {
        driver.updates && self.fixed == new.fixed && self != Self::unknown() && new != Self::unknown()
    }

    /// The work of what could not be read, or is not kept; no definition has it.
    #[must_use]
    pub fn unknown() -> Self {
        Self { all: u64::MAX, fixed: u64::MAX }
    }
}

/// Whether two specs of one kind ask for the same work: by what they say with their defaults filled in where the kind's specs can be read here,
/// else by their text.
#[must_use]
pub fn is_same(kind: &str, old: &Spec, new: &Spec) -> bool {
    old == new || builtin::specs_of(kind).is_some_and(|specs| (specs.is_same)(old, new))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::process::{IN_PLACE, ProcessSpec};

    fn spec(value: Value) -> Spec {
        Spec::stored(value).expect("an object")
    }

    fn same(kind: &str, old: Value, new: Value) -> bool {
        let (old, new) = (spec(old), spec(new));
        let same = is_same(kind, &old, &new);
        assert_eq!(Work::of(kind, &old) == Work::of(kind, &new), same, "both say the same of {old:?} and {new:?}");
        same
    }

    fn with(field: &str, value: Value) -> Value {
        let mut spec = json!({"command": ["a", "b"]});
        spec[field] = value;
        spec
    }

    #[test]
    fn a_default_that_is_spelled_out_is_no_change_and_anything_else_is() {
        let plain = || json!({"command": ["a", "b"]});
        for (field, value) in [
            ("restart", json!("always")),
            ("env", json!({})),
            ("stop_signal", json!("TERM")),
            ("stop_signal", json!("SIGTERM")),
            ("cwd", json!("/")),
            ("allow_privilege_escalation", json!(false)),
        ] {
            assert!(same("process", plain(), with(field, value.clone())), "{field}: {value}");
        }
        let grace = |text: &str| with("stop_grace", json!(text));
        assert!(same("process", grace("3000ms"), grace("3s")) && same("process", grace("1m"), grace("60s")));
        assert!(same("process", with("stop_signal", json!("INT")), with("stop_signal", json!("SIGINT"))));
        for (field, value) in [
            ("restart", json!("never")),
            ("env", json!({"A": ""})),
            ("stop_signal", json!("INT")),
            // What a worker takes where nothing is said is its own to know.
            ("stop_grace", json!("500ms")),
            ("cwd", json!("/srv")),
            ("env_pass", json!([])),
            ("allow_privilege_escalation", json!(true)),
            ("command", json!(["a", "b", ""])),
        ] {
            assert!(!same("process", plain(), with(field, value.clone())), "{field}: {value}");
        }
        assert!(!same("process", grace("3s"), grace("3001ms")));
    }

    #[test]
    fn what_only_concerns_how_a_process_is_watched_and_stopped_is_changed_while_it_runs() {
        let updates = DriverTraits { updates: true, ..DriverTraits::default() };
        let in_place =
            |old: Value, new: Value, driver| Work::of("process", &spec(old)).is_in_place(Work::of("process", &spec(new)), driver);
        let cases = [
            ("restart", json!("never")),
            ("stop_signal", json!("INT")),
            ("stop_grace", json!("3s")),
            ("command", json!(["a"])),
            ("env", json!({"A": ""})),
            ("env_pass", json!([])),
            ("cwd", json!("/srv")),
            ("allow_privilege_escalation", json!(true)),
        ];
        for (field, value) in cases {
            let is_in_place = IN_PLACE.contains(&field);
            assert_eq!(in_place(with("command", json!(["a", "b"])), with(field, value.clone()), updates), is_in_place, "{field}");
            assert_eq!(in_place(with(field, value.clone()), with("restart", json!("on-failure")), updates), is_in_place, "{field}");
            assert!(
                !in_place(with("command", json!(["a", "b"])), with(field, value), DriverTraits::default()),
                "an earlier version's worker"
            );
        }
    }

    #[test]
    fn a_kind_that_is_not_known_here_says_itself_whether_it_takes_changes() {
        let of = |kind: &str, n: u64| Work::of(kind, &spec(json!({"n": n})));
        for updates in [false, true] {
            let driver = DriverTraits { updates, ..DriverTraits::default() };
            assert_eq!(of("scrape", 1).is_in_place(of("scrape", 2), driver), updates);
            assert!(!of("scrape", 1).is_in_place(of("crawl", 2), driver), "another kind is other work");
            assert!(!of("", 1).is_in_place(of("", 2), driver), "the worker's catalog decides what it is");
            assert!(!Work::unknown().is_in_place(of("scrape", 1), driver) && !of("scrape", 1).is_in_place(Work::unknown(), driver));
            let broken = Work::of("process", &spec(json!({"restart": "never"})));
            assert!(!broken.is_in_place(Work::of("process", &spec(with("restart", json!("never")))), driver));
        }
    }

    #[test]
    fn what_cannot_be_read_here_goes_by_its_text() {
        let always = || with("restart", json!("always"));
        assert!(!same("crawler", json!({"command": ["a", "b"]}), always()), "only its driver knows what its fields mean");
        assert!(!same("", json!({"command": ["a", "b"]}), always()), "the worker's catalog decides");
        let broken = || json!({"command": ["a", "b"], "restart": "sometimes"});
        assert!(same("process", broken(), broken()));
        assert!(!same("process", broken(), json!({"command": ["a", "b"], "restart": "sometimes", "env": {}})));
        assert!(!same("process", json!({"command": ["a", "b"]}), broken()) && !same("process", broken(), always()));
        assert!(!same("process", json!({}), always()));
        assert_ne!(Work::of("process", &Spec::default()), Work::of("", &Spec::default()));
        assert_ne!(Work::of("process", &spec(always())), Work::unknown());
    }

    /// The same spec twice, in two spellings.
    fn any_spellings() -> impl Strategy<Value = (Value, Value)> {
        let field = |name: &'static str, spellings: &'static [&'static [Option<&'static str>]]| {
            let one = prop::sample::select(spellings);
            (one.clone().prop_flat_map(|same| (prop::sample::select(same), prop::sample::select(same)))).prop_map(move |pair| (name, pair))
        };
        const RESTART: &[&[Option<&str>]] = &[&[None, Some("always")], &[Some("never")], &[Some("on-failure")]];
        const SIGNAL: &[&[Option<&str>]] = &[&[None, Some("TERM"), Some("SIGTERM")], &[Some("HUP"), Some("SIGHUP")], &[Some("SIGKILL")]];
        const GRACE: &[&[Option<&str>]] =
            &[&[None], &[Some("2s"), Some("2000ms"), Some("02s")], &[Some("1m"), Some("60s")], &[Some("0s"), Some("0ms")]];
        let fields = (field("restart", RESTART), field("stop_signal", SIGNAL), field("stop_grace", GRACE));
        let env = prop_oneof![Just(json!({})), Just(json!({"A": "b"}))];
        (fields, env, any::<[bool; 2]>()).prop_map(|((restart, signal, grace), env, leaves_out)| {
            let spelled = |which: usize| {
                let mut spec = json!({"command": ["a"]});
                for (name, (first, second)) in [restart, signal, grace] {
                    if let Some(text) = [first, second][which] {
                        spec[name] = json!(text);
                    }
                }
                if env != json!({}) || !leaves_out[which] {
                    spec["env"] = env.clone();
                }
                spec
            };
            (spelled(0), spelled(1))
        })
    }

    proptest! {
        #[test]
        fn any_spelling_of_a_spec_is_the_same_work((old, new) in any_spellings()) {
            prop_assert!(same("process", old, new));
        }

        #[test]
        fn two_spellings_are_the_same_work_exactly_when_they_are_read_alike((old, _) in any_spellings(), (new, _) in any_spellings()) {
            let read = |value: &Value| ProcessSpec::parse(&spec(value.clone())).expect("a good spec");
            prop_assert_eq!(same("process", old.clone(), new.clone()), read(&old) == read(&new));
        }
    }
}
