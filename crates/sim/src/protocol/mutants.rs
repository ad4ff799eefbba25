//! Mutants of the model: each rule weakened by itself, and what must catch it.
//!
//! Some rules back each other up: with one of them gone the other still holds. Those are weakened together, and alone to show that they do.

use super::{
    instances::SMALL,
    model::{Found, ONE_OWNER, PROPERTIES, SAME_SPEC, SETTLES, Until, check},
    rules::Weakening::{self, *},
};

/// A weakening of the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// What is weakened; more than one where each backs the others up.
    pub weakened: &'static [Weakening],
    /// The rule of the protocol, by its number in `ARCHITECTURE.md`.
    pub rule: u8,
    /// The weakening in words.
    pub words: &'static str,
    /// The instance in which it shows.
    pub instance: &'static str,
    /// The property that must be found broken; none: another rule still holds, and nothing breaks.
    pub breaks: Option<&'static str>,
}

const fn mutant(rule: u8, words: &'static str, weakened: &'static [Weakening], instance: &'static str) -> Mutant {
    Mutant { weakened, rule, words, instance, breaks: Some(ONE_OWNER) }
}

/// One that starts an epoch with another spec.
const fn respecified(words: &'static str, weakened: &'static [Weakening], instance: &'static str) -> Mutant {
    Mutant { breaks: Some(SAME_SPEC), ..mutant(8, words, weakened, instance) }
}

/// One that keeps work from running as it is wanted.
const fn unsettled(rule: u8, words: &'static str, weakened: &'static [Weakening], instance: &'static str) -> Mutant {
    Mutant { breaks: Some(SETTLES), ..mutant(rule, words, weakened, instance) }
}

/// A weakening that another rule makes up for.
const fn backed(rule: u8, words: &'static str, weakened: &'static [Weakening], instance: &'static str) -> Mutant {
    Mutant { breaks: None, ..mutant(rule, words, weakened, instance) }
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    mutant(1, "authority counts from the receipt of the answer", &[ReceiveTime], "revocation"),
    mutant(1, "neither agent nor guard ends work when authority ends", &[NobodyKills], "revocation"),
    mutant(1, "work is killed a tick late", &[KillLate], "revocation"),
    mutant(1, "work is started without asking for authority", &[StartUnchecked], "freeze"),
    mutant(1, "a proof holds if anybody is registered", &[ProofOfAnySession], "twin"),
    mutant(2, "a worker acts without an admission", &[AdmissionSkipped], "twin"),
    mutant(2, "any admission of the id counts", &[AdmissionOfAnySession], "twin"),
    mutant(2, "assignments are listed before the admission is seen", &[ListBeforeAdmission], "twin"),
    mutant(3, "the leader does not wait", &[WaitLeftOut], "revocation"),
    mutant(3, "the leader waits a tick less than the clocks' difference asks for", &[WaitTooShort], "revocation"),
    mutant(3, "a wait goes on when another session has come and gone", &[WaitNotReset], "revocations"),
    mutant(3, "the admission of a lost worker is removed without a wait", &[ForgetsTooEarly], "revocation"),
    mutant(3, "an assignment is created while there is another", &[PlacesWhileHeld], "start"),
    mutant(4, "work is moved without being told to stop", &[MovesWithoutStop], "move"),
    mutant(4, "work that was told to stop is moved without an answer", &[MovesWithoutAck], "move"),
    mutant(4, "work is reported as stopped before it is", &[AckBeforeStop], "move"),
    mutant(4, "a name that is deleted is free at once", &[DeleteFreesName], "delete"),
    mutant(5, "a session is admitted at once whose predecessor is gone", &[AdmitsUnattested], "twin"),
    mutant(5, "a session attests for another guard's", &[AttestsForOthers], "twin"),
    mutant(5, "a session attests while work of the last one runs", &[AttestWithoutReaping], "move"),
    mutant(5, "a registration is put over another", &[SessionOverwritten], "twin"),
    mutant(5, "an id is given up while work runs", &[ReleaseBeforeStop], "leave"),
    unsettled(5, "a session whose predecessor is gone is never admitted", &[NeverReadmits], "leave"),
    mutant(6, "the guard does not end the work of an agent that hangs", &[GuardSleeps], "freeze"),
    mutant(7, "writes do not compare the leader's key", &[FenceLeftOut], "leader"),
    mutant(7, "a new leader takes the waits as done", &[NewLeaderDoesNotWait], "takeover"),
    mutant(7, "a new leader acts on what it knew before it led", &[ActsBeforeCatchingUp], "first leader"),
    // Together, and then each alone.
    mutant(4, "who is not admitted reports, and no status compares the admission", &[ReportsUnadmitted, StatusWithoutAdmission], "twin"),
    backed(4, "who is not admitted reports", &[ReportsUnadmitted], "twin"),
    backed(4, "a status does not compare the admission", &[StatusWithoutAdmission], "twin"),
    mutant(4, "a stop is taken back, and a worker starts again what it reported stopped", &[StopTakenBack, ForgetsPast], "move"),
    mutant(
        4,
        "a stop is taken back, and a status compares neither session nor admission",
        &[StopTakenBack, StatusWithoutSession, StatusWithoutAdmission],
        "move",
    ),
    backed(4, "a stop is taken back", &[StopTakenBack], "move"),
    backed(4, "a worker starts again what it reported stopped", &[ForgetsPast], "move"),
    backed(4, "a status does not compare the session", &[StatusWithoutSession], "move"),
    mutant(4, "a status outlives its assignment, and any epoch's counts", &[StatusOutlivesAssignment, AnyEpochsStatus], "move"),
    mutant(4, "a status does not compare the assignment, and any epoch's counts", &[StatusWithoutAssignment, AnyEpochsStatus], "move"),
    backed(4, "a status outlives its assignment", &[StatusOutlivesAssignment], "move"),
    backed(4, "a status does not compare the assignment", &[StatusWithoutAssignment], "move"),
    backed(4, "any epoch's status counts", &[AnyEpochsStatus], "move"),
    backed(1, "what was seen before authority ended counts after it", &[ViewKept], "freeze"),
    // Change in place.
    respecified("an epoch is started again with whatever its assignment says", &[AnySpecAgain], "change"),
    respecified("a status counts that answers an earlier version of the assignment", &[StatusOfAnyVersion], "change"),
    respecified("a status says what is assigned, not what runs", &[StatusSaysAssigned], "change"),
    unsettled(8, "a worker does not say that a change needs a restart", &[SilentAboutRestart], "change"),
    unsettled(8, "the leader leaves an epoch alone that needs a restart", &[RestartIgnored], "change"),
    mutant(
        8,
        "what stops is changed and runs on, and is started again after its report, with any spec",
        &[UpdatesStopping, ForgetsPast, AnySpecAgain],
        "change and move",
    ),
    backed(8, "what stops is changed and runs on", &[UpdatesStopping], "change and move"),
    // The ways of holding.
    mutant(9, "loose work is waited for as if it were strict", &[LooseAsStrict], "loose"),
    mutant(9, "a session attests without asking what goes on of the last one", &[AttestWithoutAsking], "loose"),
    mutant(9, "what fenced work works on takes any epoch", &[OutsideAccepts], "fenced"),
    mutant(9, "the next session of another guard keeps the epochs of fenced work", &[FencedEpochKept], "fenced"),
    mutant(9, "a worker runs what was assigned for a better hold than its driver keeps", &[RunsBetterHold], "downgrade"),
    unsettled(9, "the leader leaves an assignment where its worker does not start it", &[UnfitKept], "downgrade"),
    unsettled(9, "fenced work gets its next epoch while its session is there", &[FencedAtAnyTime], "fenced"),
    unsettled(9, "an assignment does not say how its worker holds the work", &[HoldsNotCopied], "loose"),
    mutant(9, "an assignment does not say how its worker holds the work, which runs it", &[HoldsNotCopied, RunsBetterHold], "loose"),
];

impl Mutant {
    /// Runs the checker until something breaks, or to the end.
    ///
    /// # Panics
    /// If there is no instance of that name.
    #[must_use]
    pub fn run(&self, threads: usize) -> Found {
        let instance = SMALL
            .iter()
            .find(|instance| instance.name == self.instance)
            .unwrap_or_else(|| panic!("there is no instance {}", self.instance));
        let checks = self.breaks.map_or_else(|| PROPERTIES.to_vec(), |property| vec![property]);
        check(instance.protocol(self.weakened, &checks), Until::Broken, threads)
    }

    /// Whether what was found is what the table says.
    #[must_use]
    pub fn is_as_expected(&self, found: &Found) -> bool {
        found.broken.first().map(|(property, _)| *property) == self.breaks
    }
}
