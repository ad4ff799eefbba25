//! The environment of work: a few variables of the worker's own, what it passes on, and what the spec says. PURE but for [`Inherited::take`].
//!
//! The wheel: under worker::driver. Nothing of the worker's environment reaches work but by a rule here: its settings, its credentials and the
//! address of its service manager are nobody else's.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use evenkeel_model::process::ProcessSpec;

use crate::driver::SpecError;

/// What work has of the worker's environment without asking for it.
const ALWAYS: [&str; 4] = ["PATH", "HOME", "USER", "LANG"];
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USUAL_LANG: &str = "C.UTF-8";

/// What of its environment a worker passes on to work beside PATH, HOME, USER and LANG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvPass {
    /// These names, to work that asks for them.
    Names(BTreeSet<String>),
    /// Every name to work that asks for it, and everything to work that says nothing.
    All,
}

impl Default for EnvPass {
    fn default() -> Self {
        Self::Names(BTreeSet::new())
    }
}

/// The part of a worker's environment that work may have.
#[derive(Clone, Debug)]
pub(super) struct Inherited {
    variables: BTreeMap<OsString, OsString>,
    pass: EnvPass,
}

/// Whether a variable is meant for the worker: its settings, and the ear of its service manager, which would take work's word for the worker's.
pub(crate) fn is_the_workers(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"EVENKEEL_") || matches!(name, b"NOTIFY_SOCKET" | b"WATCHDOG_USEC" | b"WATCHDOG_PID")
}

/// A name as a shell takes it.
fn for_a_shell(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@%+,".contains(&byte);
    if name.bytes().all(is_plain) { name.to_owned() } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

impl Inherited {
    /// Takes over the environment of this process, and the account that it runs as.
    pub(super) fn take(pass: EnvPass) -> Self {
        let variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        // Asking for the account may take a while, so that it is asked only where it matters.
        let account = ["HOME", "USER"].iter().any(|name| !variables.contains_key(OsStr::new(name)));
        let user = if account { nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten() } else { None };
        let (home, name) =
            user.map_or_else(|| (OsString::from("/"), nix::unistd::geteuid().to_string()), |user| (user.dir.into_os_string(), user.name));
        Self::of(variables, pass, home, name)
    }

    fn of(mut variables: BTreeMap<OsString, OsString>, pass: EnvPass, home: OsString, user: String) -> Self {
        variables.retain(|name, _| !is_the_workers(name));
        let usual = [USUAL_PATH.into(), home, user.into(), USUAL_LANG.into()];
        for (name, value) in ALWAYS.into_iter().zip(usual) {
            variables.entry(name.into()).or_insert(value);
        }
        Self { variables, pass }
    }

    /// Whether this worker gives a spec what it asks for.
    pub(super) fn check(&self, spec: &ProcessSpec) -> Result<(), SpecError> {
        let EnvPass::Names(names) = &self.pass else { return Ok(()) };
        for (index, name) in spec.env_pass.iter().flatten().enumerate() {
            if !names.contains(name) && !ALWAYS.contains(&name.as_str()) {
                let passed = if names.is_empty() { "none".to_owned() } else { names.iter().cloned().collect::<Vec<_>>().join(", ") };
                return Err(SpecError(format!(
                    "spec.env_pass[{index}]: {name:?} is not passed on by this worker, which passes on {passed}; start it with --env-pass {}",
                    for_a_shell(name)
                )));
            }
        }
        Ok(())
    }

    /// All of the environment of work, as NAME=VALUE: what it inherits, then the spec's, then the worker's word, each over the one before.
    pub(super) fn of_work<'a>(&self, spec: &'a ProcessSpec, own: impl IntoIterator<Item = (&'a str, String)>) -> Vec<CString> {
        let passes = |name: &OsStr| {
            let is_asked_for = |asked: &Vec<String>| asked.iter().any(|asked| OsStr::new(asked) == name);
            ALWAYS.iter().any(|always| *always == name) || spec.env_pass.as_ref().map_or(self.pass == EnvPass::All, is_asked_for)
        };
        let mut all: BTreeMap<&OsStr, OsString> =
            self.variables.iter().filter(|(name, _)| passes(name)).map(|(name, value)| (name.as_os_str(), value.clone())).collect();
        all.extend(spec.env.iter().map(|(name, value)| (OsStr::new(name), value.into())));
        all.extend(own.into_iter().map(|(name, value)| (OsStr::new(name), value.into())));
        let entries = all.into_iter().map(|(name, value)| [name.as_bytes(), b"=", &value.into_vec()].concat());
        // A NUL cannot be in what was an environment, and the spec was checked for it.
        entries.filter_map(|entry| CString::new(entry).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inherited(pass: EnvPass, variables: &[(&str, &str)]) -> Inherited {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Inherited::of(variables, pass, "/srv/x".into(), "x".into())
    }

    fn names(names: &[&str]) -> EnvPass {
        EnvPass::Names(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn spec(text: &str) -> ProcessSpec {
        let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
        ProcessSpec::parse(&evenkeel_model::Spec::from_value(value).expect("spec")).expect("spec")
    }

    #[test]
    fn a_name_is_shown_as_a_shell_takes_it() {
        for (name, shown) in [("AWS_KEY", "AWS_KEY"), ("A B", "'A B'"), ("$(id)", "'$(id)'"), ("it's", r"'it'\''s'")] {
            assert_eq!(for_a_shell(name), shown);
        }
    }

    const WORKERS: [(&str, &str); 6] =
        [("PATH", "/bin"), ("AWS_SECRET", "s"), ("TZ", "UTC"), ("EVENKEEL_ETCD", "e"), ("NOTIFY_SOCKET", "n"), ("WATCHDOG_PID", "1")];

    #[test]
    fn work_has_what_a_rule_gives_it_and_nothing_else() {
        let usual = "HOME=/srv/x LANG=C.UTF-8 PATH=/bin";
        let cases = [
            (names(&[]), r#"{"command": ["a"]}"#, format!("EVENKEEL_EPOCH=7 {usual} USER=x")),
            (names(&["TZ"]), r#"{"command": ["a"]}"#, format!("EVENKEEL_EPOCH=7 {usual} USER=x")),
            (names(&["TZ"]), r#"{"command": ["a"], "env_pass": ["TZ"]}"#, format!("EVENKEEL_EPOCH=7 {usual} TZ=UTC USER=x")),
            (names(&["TZ", "NONE"]), r#"{"command": ["a"], "env_pass": ["NONE"]}"#, format!("EVENKEEL_EPOCH=7 {usual} USER=x")),
            (EnvPass::All, r#"{"command": ["a"]}"#, format!("AWS_SECRET=s EVENKEEL_EPOCH=7 {usual} TZ=UTC USER=x")),
            (EnvPass::All, r#"{"command": ["a"], "env_pass": []}"#, format!("EVENKEEL_EPOCH=7 {usual} USER=x")),
            (
                EnvPass::All,
                r#"{"command": ["a"], "env_pass": ["TZ"], "env": {"TZ": "CET", "HOME": "/"}}"#,
                "EVENKEEL_EPOCH=7 HOME=/ LANG=C.UTF-8 PATH=/bin TZ=CET USER=x".to_owned(),
            ),
        ];
        for (pass, text, expected) in cases {
            let inherited = inherited(pass, &WORKERS);
            let spec = spec(text);
            assert_eq!(inherited.check(&spec), Ok(()), "{text}");
            let found = inherited.of_work(&spec, [("EVENKEEL_EPOCH", "7".to_owned())]);
            let found: Vec<_> = found.iter().map(|entry| entry.to_str().expect("text")).collect();
            assert_eq!(found.join(" "), expected, "{text}");
        }
    }

    #[test]
    fn what_a_worker_does_not_pass_on_is_refused() {
        let asks = spec(r#"{"command": ["a"], "env_pass": ["PATH", "TZ", "AWS_SECRET"]}"#);
        let said = |pass| inherited(pass, &WORKERS).check(&asks).map_err(|error| error.to_string());
        let way_out = "start it with --env-pass";
        let expected = [
            (names(&[]), Err(format!("spec.env_pass[1]: \"TZ\" is not passed on by this worker, which passes on none; {way_out} TZ"))),
            (
                names(&["LC_ALL", "TZ"]),
                Err(format!(
                    "spec.env_pass[2]: \"AWS_SECRET\" is not passed on by this worker, which passes on LC_ALL, TZ; {way_out} AWS_SECRET"
                )),
            ),
            (EnvPass::All, Ok(())),
        ];
        for (pass, expected) in expected {
            assert_eq!(said(pass), expected);
        }
    }
}
