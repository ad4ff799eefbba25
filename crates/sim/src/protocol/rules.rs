//! The rules of the protocol as data: the spans, and which single rule is weakened, for a mutant of the model.
//!
//! The real code has no such switches. What is weakened here is weakened in the model only.

use super::state::Holds;

/// The rules, by their numbers in `ARCHITECTURE.md`. The mutants of the model and those of the code name them; the house lint holds the three
/// together.
pub const RULES: &[(u8, &str)] = &[
    (1, "proof"),
    (2, "admission"),
    (3, "assignment"),
    (4, "a move"),
    (5, "restart of a worker"),
    (6, "the guard"),
    (7, "leader"),
    (8, "a change in place"),
    (9, "ways of holding"),
];

/// One rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weakening {
    /// Authority counts from the receipt of an answer.
    ReceiveTime,
    /// Neither agent nor guard ends work when authority ends.
    NobodyKills,
    /// The guard does not end the work of an agent that hangs.
    GuardSleeps,
    /// Work is killed a tick late.
    KillLate,
    /// Authority is not asked for when work is started.
    StartUnchecked,
    /// What was seen before authority ended counts after it.
    ViewKept,
    /// A proof holds if the id is registered by any process.
    ProofOfAnySession,
    /// A worker acts without an admission.
    AdmissionSkipped,
    /// A worker takes any admission of its id for its own.
    AdmissionOfAnySession,
    /// A worker lists its assignments before it sees its admission.
    ListBeforeAdmission,
    /// A worker reports work as stopped before it has stopped.
    AckBeforeStop,
    /// A worker reports as stopped what it was never admitted to run.
    ReportsUnadmitted,
    /// A worker starts an epoch again that it reported stopped.
    ForgetsPast,
    /// A worker gives its id up while work runs.
    ReleaseBeforeStop,
    /// A worker registers anew while work of its last session runs.
    AttestWithoutReaping,
    /// A session counts as attested that follows one of another guard.
    AttestsForOthers,
    /// A registration is put over another.
    SessionOverwritten,
    /// A status does not compare the session.
    StatusWithoutSession,
    /// A status does not compare the admission.
    StatusWithoutAdmission,
    /// A status does not compare the assignment.
    StatusWithoutAssignment,
    /// The transaction that deletes an assignment leaves its status.
    StatusOutlivesAssignment,
    /// The leader takes the status of any epoch.
    AnyEpochsStatus,
    /// The leader does not wait when a session is gone.
    WaitLeftOut,
    /// The leader waits a tick less than the difference of clocks asks for.
    WaitTooShort,
    /// The leader's wait goes on when another session has come and gone.
    WaitNotReset,
    /// A new leader takes the waits of the one before as done.
    NewLeaderDoesNotWait,
    /// A new leader acts on what it knew before it led.
    ActsBeforeCatchingUp,
    /// The leader admits a session at once whose predecessor is gone.
    AdmitsUnattested,
    /// The leader removes the admission of a lost worker without a wait.
    ForgetsTooEarly,
    /// The leader moves what still runs.
    MovesWithoutStop,
    /// The leader moves what it has told to stop, without an answer.
    MovesWithoutAck,
    /// The leader creates an assignment while there is another.
    PlacesWhileHeld,
    /// The leader takes a stop back.
    StopTakenBack,
    /// The assignment of a deleted resource is deleted with it.
    DeleteFreesName,
    /// Writes do not compare the leader's key.
    FenceLeftOut,
    /// The leader gives an epoch that is told to stop another spec, to run with.
    UpdatesStopping,
    /// A worker starts an epoch again with whatever spec its assignment has.
    AnySpecAgain,
    /// A status counts that answers an earlier version of the assignment.
    StatusOfAnyVersion,
    /// A status says the spec of the assignment, not of what runs.
    StatusSaysAssigned,
    /// A worker does not say that a change needs a restart.
    SilentAboutRestart,
    /// The leader leaves an epoch alone that needs a restart.
    RestartIgnored,
    /// The leader waits G for loose work as for strict.
    LooseAsStrict,
    /// A worker registers anew without asking what of the last session goes on.
    AttestWithoutAsking,
    /// What fenced work works on takes any epoch.
    OutsideAccepts,
    /// The leader ends an epoch of fenced work while its session is there.
    FencedAtAnyTime,
    /// The next session of another guard keeps the epochs of fenced work.
    FencedEpochKept,
    /// A worker runs an assignment that was made for a better hold than its driver keeps.
    RunsBetterHold,
    /// The leader says of each assignment that it was made for strict work.
    HoldsNotCopied,
    /// The leader leaves an assignment where its worker does not start it.
    UnfitKept,
    /// The leader does not admit a session whose predecessor is gone, however long it has waited.
    NeverReadmits,
}

/// The spans of the protocol in ticks, and what is weakened.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// D: for how long a proof gives authority.
    pub authority: u8,
    /// G: how long the leader waits.
    pub wait: u8,
    /// Writes and statuses may arrive late; if not, they arrive as they are sent.
    pub late_messages: bool,
    /// Specs change. If not, nothing is kept that only changes ask for.
    pub changes: bool,
    /// How drivers hold work after a downgrade.
    pub downgraded: Holds,
    /// None: the protocol as it is.
    pub weakened: &'static [Weakening],
}

impl Rules {
    /// Whether this rule is not kept.
    #[must_use]
    pub fn weak(&self, weakening: Weakening) -> bool {
        self.weakened.contains(&weakening)
    }
}
