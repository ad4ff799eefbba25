//! Names and numbers that identify things. A value of one of these types has been checked: parse, don't validate.
//!
//! Every name obeys one rule, because every name becomes a part of an etcd key and of a file name.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Id, limits::MAX_NAME};

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("is empty; a name has 1 to {MAX_NAME} characters")]
    Empty,
    /// More than [`MAX_NAME`] bytes.
    #[error("has {0} characters; a name has 1 to {MAX_NAME}")]
    TooLong(usize),
    /// A character outside `A-Z a-z 0-9 . _ -`.
    #[error("has {0:?} at position {1}; a name is made of A-Z a-z 0-9 . _ -")]
    Character(char, usize),
    /// The first character is punctuation.
    #[error("begins with {0:?}; a name begins with a letter or digit")]
    First(char),
}

fn check_name(text: &str) -> Result<(), NameError> {
    let first = text.chars().next().ok_or(NameError::Empty)?;
    if text.len() > MAX_NAME {
        return Err(NameError::TooLong(text.len()));
    }
    for (position, c) in text.chars().enumerate() {
        if !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
            return Err(NameError::Character(c, position + 1));
        }
    }
    if first.is_ascii_alphanumeric() { Ok(()) } else { Err(NameError::First(first)) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text; see [`NameError`] for the rule.
            ///
            /// # Errors
            /// The first way in which the text breaks the rule.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check_name(text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(&text).map_err(|e| de::Error::custom(format!("{text:?} {e}")))
            }
        }
    };
}

name_type! {
    /// A resource's name, which is its uid.
    ResourceName
}
name_type! {
    /// A worker's id, which outlives its sessions.
    WorkerId
}
name_type! {
    /// A master's id.
    MasterId
}

impl Id for ResourceName {
    fn resource(&self) -> Option<&ResourceName> {
        Some(self)
    }
}

impl Id for WorkerId {
    fn worker(&self) -> Option<&WorkerId> {
        Some(self)
    }
}

/// Any text, also none.
impl Id for String {}

/// The end of a key that may be any text but none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Suffix(Box<str>);

impl Suffix {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Suffix {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() { Err(NameError::Empty) } else { Ok(Self(text.into())) }
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Id for Suffix {}

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_type! {
    /// A revision of etcd's store. Zero: not written yet, or not known.
    Revision
}
impl Revision {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(crate) fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

number_type! {
    /// One registration of a worker: the create revision of its key.
    Session
}
number_type! {
    /// One assignment: the create revision of its key. Grows with every new assignment in the cluster, so it serves as a fencing token.
    /// Zero: decided, and not yet known to be written.
    Epoch
}

/// The number of a task, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub u32);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is no number of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no id of a task: a number from 1")]
pub struct NoTaskId;

impl FromStr for TaskId {
    type Err = NoTaskId;

    /// One spelling each: it becomes a part of a key.
    fn from_str(text: &str) -> Result<Self, NoTaskId> {
        let id = text.parse().map(Self).map_err(|_| NoTaskId)?;
        if id.0 > 0 && id.to_string() == text { Ok(id) } else { Err(NoTaskId) }
    }
}

impl Id for TaskId {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_a_task_has_one_spelling() {
        assert_eq!("7".parse(), Ok(TaskId(7)));
        for text in ["", "0", "07", "+7", "-1", "4294967296", "x"] {
            assert_eq!(text.parse::<TaskId>(), Err(NoTaskId), "{text}");
        }
    }

    #[test]
    fn names_obey_the_rule() {
        for good in ["a", "9", "task-test-1", "douban_book_list", "A.b-c_d", &"x".repeat(253)] {
            assert_eq!(ResourceName::new(good).map(|n| n.to_string()), Ok(good.to_owned()));
        }
        let cases = [
            ("", NameError::Empty),
            ("-a", NameError::First('-')),
            (".a", NameError::First('.')),
            ("a/b", NameError::Character('/', 2)),
            ("a b", NameError::Character(' ', 2)),
            ("né", NameError::Character('é', 2)),
            ("a\n", NameError::Character('\n', 2)),
        ];
        for (bad, why) in cases {
            assert_eq!(ResourceName::new(bad), Err(why), "{bad:?}");
        }
        assert_eq!(ResourceName::new(&"x".repeat(254)), Err(NameError::TooLong(254)));
    }

    #[test]
    fn a_name_read_from_json_is_checked() {
        assert!(serde_json::from_str::<WorkerId>("\"worker-1\"").is_ok());
        assert!(serde_json::from_str::<WorkerId>("\"../etc\"").is_err());
    }
}
