//! Tasks: scripts that run once on each of the chosen workers. What stands of one in etcd, what it is made from, and what is known of its hosts.
//!
//! The wheel: the values of `/tasks/`, `/intents/tasks/`, `/orders/`, `/results/` and, outside of what masters watch, `/x/`. PURE: the time of day
//! is an argument.
//!
//! | file | |
//! |---|---|
//! | `draft.rs` | what a person asks for, checked |
//! | `definition.rs` | `/tasks/<id>` and the script |
//! | `order.rs`, `result.rs` | what the leader wants of one host, what came of it |
//! | `intent.rs` | what is wanted of a whole task |
//! | `share.rs` | a number, a percentage, or all |
//! | `entry.rs` | all that is known of one task, with its cached totals |
//! | `tasks.rs` | all tasks of a Cluster |
//! | `action.rs` | what the leader does for a task, and what that writes |

mod action;
mod definition;
mod draft;
mod entry;
mod intent;
mod order;
mod result;
mod share;
mod tasks;

pub use action::{Close, TaskAction, with_intent};
pub use definition::{Children, NextTask, OnLost, Task, TaskScript, TaskTargets};
pub use draft::{NewTask, TaskDraft, TaskError};
pub use entry::{Counts, HostState, TaskEntry, TaskHost, TaskState};
pub use intent::{TaskGoal, TaskIntent};
pub use order::{Order, OrderIntent};
pub use result::{Outcome, ResultPhase, TaskResult, TaskTail};
pub use share::Share;
pub use tasks::Tasks;

/// What a record leaves out.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
