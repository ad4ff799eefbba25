//! How the work of a kind is held on a worker, and whether its driver takes changes while the work runs. Each worker registers it for each of its
//! kinds. DESIGN.md section 5; docs/drivers.md.

use serde::{Deserialize, Serialize};

/// How the work of a kind is held: what is certain once its worker may not run it any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// The guard can end it without the agent: a process. What says nothing counts as this.
    #[default]
    Strict,
    /// What it works on refuses an epoch smaller than one that it has seen: a Kubernetes object.
    Fenced,
    /// Its effects outlive agent and guard: a file.
    Loose,
}

impl Holds {
    /// The word that people read.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Fenced => "fenced",
            Self::Loose => "loose",
        }
    }

    /// Whether a driver that holds work like this may run an assignment that was made for work held like `assigned`: whatever the leader concludes
    /// from the assignment must be true of the work.
    #[must_use]
    pub fn may_run(self, assigned: Self) -> bool {
        match assigned {
            // By the end of authority strict work has ended. Fenced work may go on, and what follows on it must show its epoch to the same fence.
            Self::Strict | Self::Fenced => self == assigned,
            // The leader concludes nothing.
            Self::Loose => true,
        }
    }

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(crate) fn is_strict(&self) -> bool {
        *self == Self::Strict
    }
}

/// What a worker says of the driver of one of its kinds. A worker that says nothing of a kind holds it strictly and changes it by a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DriverTraits {
    /// How it holds work.
    #[serde(skip_serializing_if = "Holds::is_strict")]
    pub holds: Holds,
    /// It can take changes while the work runs: see [`crate::Work::is_in_place`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub updates: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_run_on_a_better_word_than_its_driver_keeps() {
        use Holds::{Fenced, Loose, Strict};
        // what the assignment was made for; the drivers that may run it
        for (assigned, drivers) in [(Strict, &[Strict][..]), (Fenced, &[Fenced]), (Loose, &[Strict, Fenced, Loose])] {
            for driver in [Strict, Fenced, Loose] {
                assert_eq!(driver.may_run(assigned), drivers.contains(&driver), "{driver:?} for {assigned:?}");
            }
        }
    }

    #[test]
    fn what_says_nothing_is_strict_and_is_changed_by_a_restart() {
        let read = |text: &str| serde_json::from_str::<DriverTraits>(text).expect("traits");
        assert_eq!(read("{}"), DriverTraits { holds: Holds::Strict, updates: false });
        assert_eq!(read(r#"{"Holds":"loose","Updates":true,"More":1}"#), DriverTraits { holds: Holds::Loose, updates: true });
        assert_eq!(serde_json::to_string(&DriverTraits::default()).expect("text"), "{}");
    }
}
