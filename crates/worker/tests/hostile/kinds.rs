//! The kinds of hostile work: what each does so as not to die, or to have others die in its place.
//!
//! Beside the wheel. Each says `$DIR/$NAME.ready` when the worst of it is there. What needs system calls stands in `work.py`.

/// The program that the kinds of more than a shell are.
pub(crate) const WORK: &str = include_str!("work.py");
/// A copy of `setpriv` that becomes root, and whoever it then likes: as `sudo` and `su` do.
pub(crate) const BECOME: &str = "become";

/// One kind: its name, and the shell script that is it.
pub(crate) type Kind = (&'static str, &'static str);

/// All that harm nobody but whoever wants to end them.
pub(crate) const ALL: [Kind; 15] = [
    ("deaf", "trap '' TERM INT HUP QUIT; touch $DIR/$NAME.ready; while :; do sleep 0.05; done"),
    (
        "forked-twice",
        "(setsid sh -c 'trap \"\" TERM INT HUP; (setsid sh -c \"touch $DIR/$NAME.ready; exec sleep 300\" &); exec sleep 300' &); exec sleep 300",
    ),
    // It has no environment any more, and holds the output.
    ("unmarked", "(env -i setsid sh -c \"touch $DIR/$NAME.ready; while :; do sleep 0.05; done\" &); exec sleep 300"),
    // Generations that live for a moment each, every one in a session of its own.
    (
        "hopping",
        "echo 'setsid sh $DIR/$NAME.hop & touch $DIR/$NAME.ready; sleep 0.02' > $DIR/$NAME.hop; sh $DIR/$NAME.hop & exec sleep 300",
    ),
    (
        "forking",
        "fork() { while :; do (sleep 1 &); sleep 0.05; done; }; for i in 1 2 3; do fork & done; touch $DIR/$NAME.ready; trap '' TERM; wait",
    ),
    ("stopped", "(setsid sh -c 'touch $DIR/$NAME.ready; kill -STOP $$' &); trap '' TERM; while :; do kill -STOP $$; done"),
    ("traced", PYTHON_TRACED),
    ("sibling", "exec python3 $DIR/work.py sibling"),
    ("hidden", "exec python3 $DIR/work.py hidden"),
    ("closed", "exec python3 $DIR/work.py closed"),
    ("headless", "exec python3 $DIR/work.py headless"),
    ("adopts", "exec python3 $DIR/work.py adopts"),
    BECOMES,
    DOUBLE_FORKS,
    BOMB,
];

const PYTHON_TRACED: &str = "exec python3 $DIR/work.py traced";

/// A setuid helper makes it another user's, and an orphan.
pub(crate) const BECOMES: Kind = (
    "becomes",
    "(setsid sh -c '$DIR/become --reuid=61235 --regid=61235 --clear-groups sh -c \"trap \\\"\\\" TERM; touch $DIR/$NAME.became $DIR/$NAME.ready; \
     exec sleep 300\" || touch $DIR/$NAME.ready' &); exec sleep 300",
);

/// What shell wrappers and headless browsers do all day: each child's parent has ended.
pub(crate) const DOUBLE_FORKS: Kind = ("double-forks", "touch $DIR/$NAME.ready; while :; do (setsid sleep 0.1 &); sleep 0.02; done");

/// As many processes as it may have, each of which makes more.
pub(crate) const BOMB: Kind = ("bomb", "exec python3 $DIR/work.py bomb");

/// The kinds of that name.
pub(crate) fn kind(name: &str) -> Kind {
    ALL.into_iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no kind {name}"))
}
