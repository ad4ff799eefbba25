//! The accounts that scripts may run as, and whether one may.
//!
//! The wheel: under worker::task. An allow list says which; the system says who that is. It is asked before anything is forked, as it may ask others
//! (LDAP, say) and take locks. It starts nothing.

use std::{
    collections::BTreeSet,
    ffi::{CString, OsStr},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use evenkeel_model::shown::shown;
use nix::unistd::{Gid, Uid, User};

use crate::driver::process::cells::Account;

const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const USUAL_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Which accounts scripts may run as, and who this worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accounts {
    allowed: BTreeSet<String>,
    /// The user of this worker.
    own: u32,
}

/// Whom a script runs as, and where that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Login {
    /// The name.
    pub(crate) name: String,
    /// The user, and its groups.
    pub(crate) account: Account,
    /// It is the worker's own: nothing is changed then.
    pub(crate) is_own: bool,
    /// Its home, whether it exists or not.
    pub(crate) home: PathBuf,
    /// Its shell.
    pub(crate) shell: PathBuf,
}

impl Accounts {
    /// These names, on a worker that this process is.
    pub(crate) fn new(allowed: impl IntoIterator<Item = String>) -> Self {
        Self { allowed: allowed.into_iter().collect(), own: nix::unistd::geteuid().as_raw() }
    }

    /// Finds an account; an empty name is the worker's own. Blocks for as long as the system takes.
    ///
    /// # Errors
    /// Why nothing may run as it here.
    pub(crate) fn find(&self, name: &str) -> Result<Login, String> {
        let found = if name.is_empty() { User::from_uid(Uid::from_raw(self.own)) } else { User::from_name(name) };
        let found = found.map_err(|errno| format!("account {}: the system does not say who that is: {errno}", shown(name)))?;
        let user = match found {
            Some(user) => user,
            // A user without a name, as containers have them.
            None if name.is_empty() => nobody_known(self.own),
            None => return Err(self.refusal(name).unwrap_or_else(|| format!("account {}: does not exist on this worker", shown(name)))),
        };
        if let Some(refusal) = self.refusal(&user.name) {
            return Err(refusal);
        }
        let is_own = user.uid.as_raw() == self.own;
        if !is_own && self.own != 0 {
            return Err(format!(
                "account {}: this worker runs as user {}, and only root can become another; run the worker as root, or leave the account out",
                shown(&user.name),
                self.own
            ));
        }
        let groups = if is_own { Vec::new() } else { groups_of(&user)? };
        let account = Account { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups };
        Ok(Login { name: user.name, account, is_own, home: user.dir, shell: user.shell })
    }

    /// PURE: why an account is not allowed, if it is not.
    fn refusal(&self, name: &str) -> Option<String> {
        if self.allowed.contains(name) {
            return None;
        }
        let allowed: Vec<&str> = self.allowed.iter().map(String::as_str).collect();
        let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
        let name = shown(name);
        Some(format!("account {name}: not allowed on this worker, which allows {allowed}; start it with --task-accounts {name}"))
    }
}

fn nobody_known(uid: u32) -> User {
    User {
        name: uid.to_string(),
        passwd: CString::default(),
        uid: Uid::from_raw(uid),
        gid: nix::unistd::getegid(),
        gecos: CString::default(),
        dir: PathBuf::from("/"),
        shell: PathBuf::from("/bin/sh"),
    }
}

#[cfg(target_os = "linux")]
fn groups_of(user: &User) -> Result<Vec<u32>, String> {
    let name = CString::new(user.name.as_str()).map_err(|_| format!("account {}: has a NUL", shown(&user.name)))?;
    let groups = nix::unistd::getgrouplist(&name, user.gid);
    let groups = groups.map_err(|errno| format!("account {}: its groups cannot be read: {errno}", shown(&user.name)))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

#[cfg(not(target_os = "linux"))]
fn groups_of(user: &User) -> Result<Vec<u32>, String> {
    Ok(vec![user.gid.as_raw()])
}

impl Login {
    /// Where its script begins: its home, or `/` with the reason.
    pub(crate) fn cwd(&self) -> (PathBuf, Option<String>) {
        if self.home.is_absolute() && self.home.is_dir() && self.may_enter(&self.home) {
            return (self.home.clone(), None);
        }
        let home = shown(&self.home.to_string_lossy());
        (PathBuf::from("/"), Some(format!("home {home} of {} cannot be entered: it began in /", self.name)))
    }

    /// Whether it may enter a folder, and all above it, as far as their modes say. The kernel has the last word.
    pub(crate) fn may_enter(&self, folder: &Path) -> bool {
        let may = |metadata: std::fs::Metadata| {
            let shift = match (metadata.uid() == self.account.uid, self.account.has_group(metadata.gid())) {
                (true, _) => 6,
                (_, true) => 3,
                _ => 0,
            };
            metadata.mode() >> shift & 1 == 1
        };
        self.is_own || self.account.uid == 0 || folder.ancestors().all(|folder| std::fs::metadata(folder).is_ok_and(may))
    }

    /// What its script finds of the system in its environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, Vec<u8>)> {
        let bytes = |text: &OsStr| text.as_bytes().to_vec();
        let path = if self.account.uid == 0 { ROOT_PATH } else { USUAL_PATH };
        vec![
            ("HOME", bytes(self.home.as_os_str())),
            ("USER", self.name.clone().into_bytes()),
            ("LOGNAME", self.name.clone().into_bytes()),
            ("SHELL", bytes(self.shell.as_os_str())),
            ("PATH", path.as_bytes().to_vec()),
            ("LANG", b"C.UTF-8".to_vec()),
        ]
    }
}

impl Account {
    fn has_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(allowed: &[&str], own: u32) -> Accounts {
        Accounts { allowed: allowed.iter().map(|name| (*name).to_owned()).collect(), own }
    }

    #[test]
    fn only_what_is_allowed_and_can_be_become_is_found() {
        // allowed, the worker's own user, the account asked for; what is said
        let cases: [(&[&str], u32, &str, &str); 6] = [
            (&[], 0, "root", "account \"root\": not allowed on this worker, which allows none; start it with --task-accounts \"root\""),
            (&["nobody"], 0, "", "account \"root\": not allowed on this worker, which allows nobody"),
            (&["nobody"], 0, "no-such", "account \"no-such\": not allowed on this worker"),
            (&["no-such"], 0, "no-such", "account \"no-such\": does not exist on this worker"),
            (&["root"], 65_534, "root", "this worker runs as user 65534, and only root can become another"),
            (&["root", "nobody"], 65_534, "root", "run the worker as root, or leave the account out"),
        ];
        for (allowed, own, name, expected) in cases {
            let said = accounts(allowed, own).find(name).expect_err(name);
            assert!(said.contains(expected), "{said}");
        }
        let own = accounts(&["root"], 0).find("").expect("its own");
        assert_eq!((own.name.as_str(), own.account.uid, own.is_own), ("root", 0, true));
        let nobody = accounts(&["nobody"], 0).find("nobody").expect("another");
        assert!(!nobody.is_own && nobody.account.groups.contains(&nobody.account.gid), "{nobody:?}");
    }

    #[test]
    fn a_user_without_a_name_is_called_by_its_number() {
        assert_eq!(accounts(&["54321"], 54_321).find("").map(|login| (login.name, login.home)), Ok(("54321".to_owned(), "/".into())));
    }

    #[test]
    fn a_home_that_cannot_be_entered_is_told_of() {
        let folder = tempfile::tempdir().expect("folder");
        let home = folder.path().join("home");
        std::fs::create_dir(&home).expect("made");
        let account = Account { uid: 54_321, gid: 54_321, groups: vec![] };
        let shell = PathBuf::from("/bin/sh");
        let login = Login { name: "x".to_owned(), account, is_own: false, home: home.clone(), shell };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(folder.path(), mode).expect("set");
        let (cwd, note) = login.cwd();
        assert_eq!((cwd, note.is_some()), (PathBuf::from("/"), true));
        assert_eq!(Login { is_own: true, ..login.clone() }.cwd(), (home, None));
        assert_eq!(Login { home: "/".into(), ..login }.cwd(), ("/".into(), None));
    }
}
