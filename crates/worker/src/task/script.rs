//! What a script needs on the disk and in its environment before it can be executed: its file, its input, its secrets.
//!
//! The wheel: under worker::task, between the order of an attempt and its beginning: what cannot be had rejects the attempt, which was never begun then.
//! It executes nothing. A simulator puts its own in its place.

use std::{
    ffi::{CString, OsStr},
    fs::{self, DirBuilder, File, Permissions},
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use evenkeel_model::{
    TaskId, WorkerId,
    shown::shown,
    task::{Children, Task, TaskScript},
};

use nix::fcntl::OFlag;
use tokio::time::timeout;

use super::{
    accounts::{Accounts, Login},
    journal::{DiskJournal, Record},
    output::{self, Blotter, Output, Stream, Stretch},
};
use crate::{
    driver::{
        EnvPass,
        process::{
            cells::{Start, Terms},
            environment::is_the_workers,
        },
    },
    hold::{GUARD_MARK, child::in_words},
    protocol::authority::BootTime,
};

/// For how long the system is asked for an account (by LDAP, say). One that takes longer would hold up the place of others.
const SYSTEM: Duration = Duration::from_secs(30);
/// The shell of a script that names none.
const SHELL: &str = "/bin/sh";
/// The file that says where the secrets of an attempt are. It stays when they are gone: what such a script wrote is not told without a look at them.
const SECRETS: &str = "secrets";
/// Where what is in memory alone can be put.
const MEMORY: [&str; 2] = ["/dev/shm", "/run"];
const SECRETS_NAME: &str = "evenkeel-secrets-";
/// Where an administrator puts secrets that any allowed account may be given. A script of the worker's own user may be given any file: it could read it.
const SECRET_FOLDERS: [&str; 2] = ["/run/secrets", "/etc/evenkeel/secrets"];
/// A larger file is no secret but data.
const MOST_SECRET: u64 = 64 << 10;
/// A value may begin before the tail: so much of the text is looked at.
const LOOKED_AT: usize = 128 << 10;

/// What an attempt is executed from.
#[derive(Debug)]
pub struct Prepared {
    /// The program, its account and its environment. Until when it may be started is filled in.
    pub start: Start,
    /// Where what it writes goes.
    pub output: Output,
    /// For people, beside its end.
    pub notes: Vec<String>,
    /// What must not be shown of what it writes.
    pub(crate) blotter: Blotter,
}

impl Prepared {
    /// From this, with nothing that must not be shown.
    #[must_use]
    pub fn new(start: Start, output: Output) -> Self {
        Self { start, output, notes: Vec::new(), blotter: Blotter::default() }
    }
}

/// What is kept of what an attempt wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How much it wrote, to each stream.
    pub written: [u64; 2],
    /// The last of each.
    pub last: [Vec<Stretch>; 2],
    /// There were secrets, which may be in it.
    pub has_secrets: bool,
}

/// Prepares scripts.
pub trait Scripts: Send + Sync + 'static {
    /// Makes all that the attempt needs, again where it was made before.
    ///
    /// # Errors
    /// Why it cannot run here, for people.
    fn prepare(&self, record: &Record, task: &Task, script: &TaskScript) -> impl Future<Output = Result<Prepared, String>> + Send;

    /// What is kept of what an attempt wrote.
    fn kept(&self, id: TaskId, attempt: u32) -> impl Future<Output = Kept> + Send;

    /// Removes what an attempt that has ended must not leave: its secrets.
    fn clear(&self, id: TaskId, attempt: u32) -> impl Future<Output = ()> + Send;
}

/// Scripts on this machine.
#[derive(Clone, Debug)]
pub(crate) struct DiskScripts {
    pub(crate) worker: WorkerId,
    pub(crate) journal: DiskJournal,
    pub(crate) accounts: Arc<Accounts>,
    /// The mark of the guard.
    pub(crate) mark: String,
    /// Whatever user a script becomes, it can be killed.
    pub(crate) ends_any_user: bool,
    pub(crate) env_pass: EnvPass,
}

impl Scripts for DiskScripts {
    async fn prepare(&self, record: &Record, task: &Task, script: &TaskScript) -> Result<Prepared, String> {
        let (this, record, task, script) = (self.clone(), record.clone(), task.clone(), script.clone());
        let wanted = Wanted::default();
        let wants = wanted.clone();
        let making = tokio::task::spawn_blocking(move || this.make(&record, &task, &script, &wants));
        let _unwanted = Unwanted(wanted);
        let silent = |_| format!("the system has not said within {} s who its account is, or the disk hangs", SYSTEM.as_secs());
        let made = timeout(SYSTEM, making).await.map_err(silent)?.map_err(|error| error.to_string())??;
        let output = Output::begin(&made.folder);
        Ok(Prepared { notes: made.notes, blotter: made.blotter, ..Prepared::new(made.start, output) })
    }

    async fn kept(&self, id: TaskId, attempt: u32) -> Kept {
        let folder = self.journal.folder(id, attempt);
        let read = tokio::task::spawn_blocking(move || {
            let streams = [Stream::Out, Stream::Err];
            let written = streams.map(|stream| output::written(&folder, stream).unwrap_or_default());
            let last = streams.map(|stream| output::last(&folder, stream, LOOKED_AT).unwrap_or_default());
            Kept { written, last, has_secrets: folder.join(SECRETS).exists() }
        });
        read.await.unwrap_or_default()
    }

    async fn clear(&self, id: TaskId, attempt: u32) {
        let folder = self.journal.folder(id, attempt);
        let _ = tokio::task::spawn_blocking(move || remove_secrets(&folder)).await;
    }
}

/// Whether somebody still waits for what is made. The thread that makes it cannot be ended: it ends by itself when nobody does.
#[derive(Clone, Debug, Default)]
struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// # Errors
    /// Nobody waits for it.
    fn check(&self) -> Result<(), String> {
        if self.0.load(Ordering::Relaxed) { Err("nobody waits for it any more".to_owned()) } else { Ok(()) }
    }
}

/// Its end is the end of the wait.
struct Unwanted(Wanted);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

struct Made {
    folder: PathBuf,
    start: Start,
    notes: Vec<String>,
    blotter: Blotter,
}

impl DiskScripts {
    fn make(&self, record: &Record, task: &Task, script: &TaskScript, wanted: &Wanted) -> Result<Made, String> {
        let login = self.accounts.find(&task.account)?;
        let folder = self.journal.folder(record.id, record.attempt);
        if !login.may_enter(&folder) {
            let (folder, name) = (folder.display(), &login.name);
            return Err(format!("account {name}: may not enter {folder}; give the worker a --data-dir that it may pass through"));
        }
        let (text, note) = unix_lines(&script.script);
        let disk = |error: io::Error| format!("the script cannot be written: {}", in_words(&error));
        let path = folder.join("script");
        wanted.check()?;
        write_for(&path, text.as_bytes(), 0o700, &login).map_err(disk)?;
        let mut stdin = PathBuf::new();
        if !script.stdin.is_empty() {
            stdin = folder.join("stdin");
            wanted.check()?;
            // The worker opens it.
            fs::write(&stdin, &script.stdin).and_then(|()| fs::set_permissions(&stdin, Permissions::from_mode(0o600))).map_err(disk)?;
        }
        let (secrets, blotter) = self.secrets(&folder, record, task, (&login, wanted))?;
        let (cwd, homeless) = login.cwd();
        let notes = note.into_iter().chain(homeless).collect();
        let environment = self.environment(record, task, &login, secrets.as_deref())?;
        let has_interpreter = text.starts_with("#!");
        let command = (!has_interpreter).then(|| OsStr::new(SHELL)).into_iter().chain([path.as_os_str()]);
        let command = command.map(OsStr::as_bytes).chain(task.args.iter().map(String::as_bytes));
        let command = command.map(|word| c_text("args", word)).collect::<Result<_, _>>()?;
        let start = Start {
            not_after: BootTime(0),
            may_gain_privileges: self.ends_any_user,
            errors_apart: true,
            leaves_children: task.children == Children::Leave,
            terms: Terms::Task,
            account: (!login.is_own).then_some(login.account),
            cgroup: CString::default(),
            cwd: c_text("cwd", cwd.as_os_str().as_bytes())?,
            stdin: c_text("stdin", stdin.as_os_str().as_bytes())?,
            command,
            environment,
        };
        Ok(Made { folder, start, notes, blotter })
    }

    /// All of its environment. The task's own counts before the system's, and the worker's word before both.
    fn environment(&self, record: &Record, task: &Task, login: &Login, secrets: Option<&Path>) -> Result<Vec<CString>, String> {
        let mut all: std::collections::BTreeMap<&str, Vec<u8>> = login.environment().into_iter().collect();
        all.extend(task.env.iter().map(|(name, value)| (name.as_str(), value.clone().into_bytes())));
        let own = [
            ("EVENKEEL_TASK", record.id.to_string()),
            ("EVENKEEL_ATTEMPT", record.attempt.to_string()),
            ("EVENKEEL_WORKER", self.worker.to_string()),
            // No resource has such a name.
            ("EVENKEEL_RESOURCE", format!("task/{}.{}", record.id, record.attempt)),
            ("EVENKEEL_EPOCH", record.order.to_string()),
            (GUARD_MARK, self.mark.clone()),
        ];
        all.extend(own.into_iter().map(|(name, value)| (name, value.into_bytes())));
        all.extend(secrets.map(|folder| ("EVENKEEL_SECRETS", folder.as_os_str().as_bytes().to_vec())));
        all.into_iter().map(|(name, value)| c_text(name, &[name.as_bytes(), b"=", &value].concat())).collect()
    }

    /// Puts its secrets where they are in memory alone: the folder, if it has any.
    fn secrets(
        &self,
        folder: &Path,
        record: &Record,
        task: &Task,
        (login, wanted): (&Login, &Wanted),
    ) -> Result<(Option<PathBuf>, Blotter), String> {
        remove_secrets(folder);
        if task.secrets.is_empty() {
            return Ok((None, Blotter::default()));
        }
        let values = task.secrets.iter().map(|(name, reference)| Ok((name, self.resolve(name, reference, login)?)));
        let values = values.collect::<Result<Vec<(&String, Vec<u8>)>, String>>()?;
        let place = MEMORY
            .into_iter()
            .map(Path::new)
            .find(|place| is_memory(place) && nix::unistd::access(*place, nix::unistd::AccessFlags::W_OK).is_ok());
        let place = place.ok_or_else(|| format!("secrets: none of {} is a tmpfs that this worker may write to", MEMORY.join(", ")))?;
        let random = RandomState::new().hash_one((record.id, record.attempt));
        let room = place.join(format!("{SECRETS_NAME}{random:016x}"));
        let wrong = |error: io::Error| format!("secrets: cannot be written: {}", in_words(&error));
        wanted.check()?;
        // Known before it is there.
        fs::write(folder.join(SECRETS), room.as_os_str().as_bytes()).map_err(wrong)?;
        DirBuilder::new().mode(0o700).create(&room).map_err(wrong)?;
        let fill = || {
            for (name, value) in &values {
                wanted.check()?;
                write_for(&room.join(name), value, 0o400, login).map_err(wrong)?;
            }
            // The folder stays the worker's: its owner could put a link in its place.
            if !login.is_own {
                chown(&room, None, Some(login.account.gid)).map_err(wrong)?;
            }
            fs::set_permissions(&room, Permissions::from_mode(0o750)).map_err(wrong)?;
            // Who has given up has removed what was there then.
            wanted.check()
        };
        if let Err(why) = fill() {
            let _ = fs::remove_dir_all(&room);
            return Err(why);
        }
        Ok((Some(room), Blotter::of(values.into_iter().map(|(_, value)| value))))
    }

    /// The value that a reference stands for.
    fn resolve(&self, name: &str, reference: &str, login: &Login) -> Result<Vec<u8>, String> {
        let refused = |why: &str| format!("secret {}: {} {why}", shown(name), shown(reference));
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(format!("secret {}: invalid name; use letters, digits, '-' and '_'", shown(name)));
        }
        match reference.split_once(':') {
            Some(("env", variable)) => {
                let is_passed = match &self.env_pass {
                    EnvPass::All => true,
                    EnvPass::Names(names) => names.contains(variable),
                };
                if !is_passed || is_the_workers(OsStr::new(variable)) {
                    return Err(refused(&format!("is not passed on by this worker; start it with --env-pass {variable}")));
                }
                let value = std::env::var_os(variable).ok_or_else(|| refused("is not in the environment of this worker"))?;
                Ok(value.as_bytes().to_vec())
            }
            Some(("file", path)) => {
                if !Path::new(path).is_absolute() {
                    return Err(refused("is not a full path; begin it with /"));
                }
                let wrong = |error: io::Error| refused(&format!("cannot be read: {}", in_words(&error)));
                let path = fs::canonicalize(path).map_err(wrong)?;
                let is_open = login.is_own || SECRET_FOLDERS.into_iter().any(|folder| is_below(&path, folder));
                if !is_open {
                    return Err(refused(&format!(
                        "may not be given to another account than the worker's own; put it below {}",
                        SECRET_FOLDERS.join(" or ")
                    )));
                }
                // A pipe that nobody writes to would hold it up without end.
                let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(wrong)?;
                let mut value = Vec::new();
                if !file.metadata().map_err(wrong)?.is_file()
                    || file.take(MOST_SECRET + 1).read_to_end(&mut value).map_err(wrong)? as u64 > MOST_SECRET
                {
                    return Err(refused(&format!("is no file of at most {MOST_SECRET} bytes")));
                }
                Ok(value)
            }
            _ => Err(refused("is no reference; use one of file:PATH, env:NAME")),
        }
    }
}

/// What is below a folder, however that is reached.
fn is_below(path: &Path, folder: &str) -> bool {
    fs::canonicalize(folder).is_ok_and(|folder| path.starts_with(folder))
}

/// A text as the system takes it.
fn c_text(what: &str, bytes: &[u8]) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| format!("{what}: has a NUL, which no program can be given"))
}

/// The lines of a script as interpreters take them.
fn unix_lines(script: &str) -> (String, Option<String>) {
    if script.contains("\r\n") {
        (script.replace("\r\n", "\n"), Some("its lines ended in CR LF, and were written with LF alone".to_owned()))
    } else {
        (script.to_owned(), None)
    }
}

/// A file that is the account's alone.
fn write_for(path: &Path, content: &[u8], mode: u32, login: &Login) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    own(path, login)
}

fn own(path: &Path, login: &Login) -> io::Result<()> {
    if login.is_own { Ok(()) } else { chown(path, Some(login.account.uid), Some(login.account.gid)) }
}

#[cfg(target_os = "linux")]
fn is_memory(place: &Path) -> bool {
    nix::sys::statfs::statfs(place).is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn is_memory(_: &Path) -> bool {
    false
}

/// Removes the secrets of an attempt, if it has any.
pub(crate) fn remove_secrets(folder: &Path) {
    let Ok(room) = fs::read(folder.join(SECRETS)) else { return };
    let room = Path::new(OsStr::from_bytes(&room));
    let is_ours = room.file_name().is_some_and(|name| name.as_bytes().starts_with(SECRETS_NAME.as_bytes()))
        && MEMORY.into_iter().any(|place| room.parent() == Some(Path::new(place)));
    if !is_ours || !room.exists() {
        return;
    }
    if let Err(error) = fs::remove_dir_all(room) {
        tracing::warn!(folder = %room.display(), %error, "the secrets of a script cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{Origin, Revision};

    use super::*;
    use crate::task::journal::Stage;

    fn scripts(folder: &Path) -> DiskScripts {
        let own = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("asked").expect("a user").name;
        DiskScripts {
            worker: WorkerId::new("w").expect("id"),
            journal: DiskJournal::new(folder.to_owned()),
            accounts: Arc::new(Accounts::new([own])),
            mark: String::new(),
            ends_any_user: false,
            env_pass: EnvPass::All,
        }
    }

    #[test]
    fn a_secret_is_a_file_of_a_full_path() {
        let folder = tempfile::tempdir().expect("folder");
        let scripts = scripts(folder.path());
        let login = scripts.accounts.find("").expect("its own");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "value").expect("written");
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        let reference = |name: &str| format!("file:{}", path(name).display());
        assert_eq!(scripts.resolve("A", &reference("file"), &login), Ok(b"value".to_vec()));
        // A pipe that nobody writes to holds up nobody.
        let cases =
            [(reference("pipe"), "is no file"), (reference(""), "is no file"), ("file:Cargo.toml".to_owned(), "is not a full path")];
        for (reference, expected) in cases {
            let said = scripts.resolve("A", &reference, &login).expect_err("no secret");
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_written() {
        let folder = tempfile::tempdir().expect("folder");
        let scripts = scripts(folder.path());
        let record = Record {
            id: TaskId(7),
            attempt: 1,
            created: 3,
            order: Revision(3),
            origin: Origin::default(),
            began: 5,
            tail: 9,
            stage: Stage::Ordered,
        };
        let task = serde_json::json!({"ID": 7, "Created": 1, "SHA256": "", "On": {"Workers": ["w"]}, "Batch": "50", "Tolerance": "0"});
        let task: Task = serde_json::from_value(task).expect("a task");
        let script: TaskScript = serde_json::from_value(serde_json::json!({"Script": "true"})).expect("a script");
        fs::create_dir(scripts.journal.folder(record.id, 1)).expect("made");
        let wanted = Wanted::default();
        scripts.make(&record, &task, &script, &wanted).map(drop).expect("made");
        let path = scripts.journal.folder(record.id, 1).join("script");
        fs::remove_file(&path).expect("written");
        drop(Unwanted(wanted.clone()));
        let said = scripts.make(&record, &task, &script, &wanted).map(drop);
        assert_eq!((said, path.exists()), (Err("nobody waits for it any more".to_owned()), false));
    }
}
